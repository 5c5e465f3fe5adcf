"""The downloader against the simulated archive: what it stores, skips, patches and survives."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from binance_api.vision import VisionClient
from collectors.historical import HistorySettings, collect_history, months_between
from collectors.historical_month import MonthState
from domain.errors import ConfigError, DataFolderError, StorageError
from domain.market import Market
from lake.atomic import Step
from lake.historical_files import about_month, month_path, months_of
from lake.lock import FolderLock
from lake.paths import LakePaths
from simulator.vision_faults import VisionFault, VisionFaultKind, random_vision_faults
from tests.lake_fakes import FullDisk
from tests.vision_archives import (
    SYMBOL,
    at_ms,
    run,
    served,
    stored,
    table_of_trades,
    true_trades,
)

NOW_MS = at_ms(2024, 8, 20, 12)
MONTHS = ("2024-06", "2024-07")


@pytest.fixture(scope="module")
def trades():
    return table_of_trades((2024, 5, 10), (2024, 9, 2))


@pytest.fixture
def paths(tmp_path):
    return LakePaths.of(tmp_path / "data")


@pytest.fixture
def wanted(paths):
    return HistorySettings(paths=paths, symbols=(SYMBOL,), months=MONTHS, kinds=("aggTrades",))


def collect(trades, wanted, *faults, now_ms=NOW_MS, **options):
    async def scenario():
        async with served(trades, now_ms, faults, wanted.market) as (exchange, client):
            report = await collect_history(wanted, client, now_ms=lambda: now_ms, **options)
            return report, exchange

    return run(scenario())


def of(kind, **fields):
    return VisionFault(kind=kind, **fields)


def states(report):
    return [outcome.state for outcome in report.outcomes]


def assert_true(paths, trades, *months):
    for month in months:
        assert stored(paths, month).equals(true_trades(trades, month)), month


def test_months_are_stored_as_they_were_traded(trades, wanted, paths):
    report, _ = collect(trades, wanted)
    assert states(report) == [MonthState.WHOLE, MonthState.WHOLE]
    assert report.exit_code == 0
    assert_true(paths, trades, *MONTHS)
    assert list((paths.raw / "historical" / ".work").iterdir()) == []


def test_klines_equal_the_archives_and_have_every_minute(trades, wanted, paths):
    report, _ = collect(trades, msgspec.structs.replace(wanted, kinds=("klines",)))
    assert states(report) == [MonthState.WHOLE] * 2
    for month, days in (("2024-06", 30), ("2024-07", 31)):
        rows = stored(paths, month, "klines")
        assert rows.num_rows == days * 1_440
        truth = true_trades(trades, month)
        fills = sum(truth["last_trade_id"].to_numpy() - truth["first_trade_id"].to_numpy() + 1)
        assert sum(rows["trade_count"].to_pylist()) == fills


@pytest.mark.parametrize(
    ("first", "end", "now", "month", "last_day"),
    [
        ((2028, 1, 30), (2028, 3, 2), (2028, 3, 1, 12), "2028-02", 29),
        ((2027, 11, 29), (2028, 1, 2), (2028, 1, 1, 12), "2027-12", 31),
    ],
    ids=["leap", "year"],
)
def test_a_month_that_ended_last_night_is_had_from_each_of_its_days(
    paths, first, end, now, month, last_day
):
    trades = table_of_trades(first, end)
    kinds = ("aggTrades", "klines")
    wanted = HistorySettings(paths=paths, symbols=(SYMBOL,), months=(month,), kinds=kinds)
    report, _ = collect(trades, wanted, now_ms=at_ms(*now))
    assert states(report) == [MonthState.WHOLE, MonthState.WHOLE]
    assert_true(paths, trades, month)
    assert stored(paths, month, "klines").num_rows == last_day * 1_440
    for outcome in report.outcomes:
        days = [part.period for part in outcome.about.parts]
        assert days == [f"{month}-{day:02d}" for day in range(1, last_day + 1)]


def test_symbols_in_lower_case_are_meant(trades, wanted, paths):
    collect(trades, msgspec.structs.replace(wanted, symbols=("btcusdt",)))
    assert months_of(paths, SYMBOL, "aggTrades") == list(MONTHS)


def test_spot_lies_in_its_own_tree_and_in_milliseconds(tmp_path):
    trades = table_of_trades((2024, 12, 20), (2025, 2, 1))
    paths = LakePaths.of(tmp_path / "data", Market.SPOT)
    months = ("2024-12", "2025-01")
    wanted = HistorySettings(
        paths=paths, symbols=(SYMBOL,), months=months, kinds=("aggTrades",), market=Market.SPOT
    )
    collect(trades, wanted, now_ms=at_ms(2025, 3, 10))
    assert_true(paths, trades, *months)
    assert (tmp_path / "data" / "spot" / "raw" / "historical" / SYMBOL).is_dir()


def test_whole_months_are_skipped_without_asking(trades, wanted):
    collect(trades, wanted)
    report, exchange = collect(trades, wanted)
    assert states(report) == [MonthState.PRESENT] * 2
    assert exchange.statistics()["vision_requests"] == 0


def test_a_file_someone_damaged_is_set_aside_and_had_again(trades, wanted, paths):
    collect(trades, wanted)
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    path.write_bytes(path.read_bytes()[:-30])
    report, _ = collect(trades, wanted)
    assert states(report) == [MonthState.WHOLE, MonthState.PRESENT]
    assert_true(paths, trades, *MONTHS)
    assert list((paths.raw / "damaged").rglob("*.damaged"))


def test_verify_finds_damage_that_the_footer_does_not_show(trades, wanted, paths):
    collect(trades, wanted)
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))
    assert states(collect(trades, wanted)[0]) == [MonthState.PRESENT] * 2
    report, _ = collect(trades, msgspec.structs.replace(wanted, verify=True))
    assert states(report) == [MonthState.WHOLE, MonthState.PRESENT]
    assert_true(paths, trades, *MONTHS)


def test_verify_fetches_a_replaced_archive_anew(trades, wanted, paths):
    first_edition = of(VisionFaultKind.REPLACED, period="2024-06")

    async def scenario():
        async with served(trades, NOW_MS, [first_edition]) as (_, client):
            await collect_history(wanted, client, now_ms=lambda: NOW_MS)
            assert about_month(month_path(paths, SYMBOL, "aggTrades", "2024-06")).missing_count
            again = msgspec.structs.replace(wanted, verify=True)
            return await collect_history(again, client, now_ms=lambda: NOW_MS)

    report = run(scenario())
    assert states(report) == [MonthState.WHOLE, MonthState.PRESENT]
    assert_true(paths, trades, *MONTHS)


def test_lost_days_of_a_monthly_archive_come_from_the_daily_ones(trades, wanted, paths):
    report, _ = collect(
        trades, wanted, of(VisionFaultKind.LOST_DAYS, period="2024-06", days=(1, 14, 15, 30))
    )
    assert states(report) == [MonthState.WHOLE] * 2
    assert_true(paths, trades, *MONTHS)
    parts = about_month(month_path(paths, SYMBOL, "aggTrades", "2024-06")).parts
    assert {"2024-06-01", "2024-06-14", "2024-06-15", "2024-06-30"} <= {p.period for p in parts}


@pytest.mark.parametrize(
    "fault",
    [
        of(VisionFaultKind.ABSENT, span="monthly"),
        of(VisionFaultKind.CUT_ARCHIVE, span="monthly"),
        of(VisionFaultKind.WRONG_CHECKSUM, span="monthly", count=0),
    ],
    ids=lambda fault: fault.kind.value,
)
def test_daily_archives_stand_in_for_an_unusable_monthly_one(trades, wanted, paths, fault):
    report, _ = collect(trades, wanted, fault)
    assert states(report) == [MonthState.WHOLE] * 2
    assert_true(paths, trades, *MONTHS)


def test_this_month_grows_day_by_day_until_its_monthly_archive_is_there(trades, wanted, paths):
    august = msgspec.structs.replace(wanted, months=("2024-08",))
    report, _ = collect(trades, august, now_ms=at_ms(2024, 8, 5, 12))
    assert states(report) == [MonthState.PARTIAL]
    assert "27 days to come" in report.text()
    held = stored(paths, "2024-08")
    truth = true_trades(trades, "2024-08")
    assert held.equals(truth.slice(0, held.num_rows))
    report, exchange = collect(trades, august, now_ms=at_ms(2024, 8, 7, 12))
    assert exchange.vision.statistics()["vision_made"] == 2  # only the new days were fetched
    assert stored(paths, "2024-08").num_rows > held.num_rows
    report, _ = collect(trades, august, now_ms=at_ms(2024, 9, 3, 12))
    assert states(report) == [MonthState.WHOLE]
    assert_true(paths, trades, "2024-08")


def test_a_day_that_never_comes_does_not_keep_its_month_open(trades, wanted, paths):
    faults = (
        of(VisionFaultKind.LOST_DAYS, period="2024-06", days=(14,)),
        of(VisionFaultKind.ABSENT, period="2024-06-14"),
    )
    report, _ = collect(trades, wanted, *faults)
    assert states(report) == [MonthState.WHOLE] * 2
    assert report.outcomes[0].about.absent_days == ("2024-06-14",)
    assert report.outcomes[0].about.missing_count > 0
    assert states(collect(trades, wanted, *faults)[0]) == [MonthState.PRESENT] * 2


def test_months_before_the_market_existed_are_a_warning(trades, wanted, paths):
    report, _ = collect(trades, msgspec.structs.replace(wanted, months=("2024-03", "2024-05")))
    assert states(report) == [MonthState.NOT_PUBLISHED, MonthState.WHOLE]
    assert report.exit_code == 0
    assert "before the market existed" in report.text()
    assert_true(paths, trades, "2024-05")


def test_an_unknown_symbol_is_bad_usage(trades, wanted):
    unknown = msgspec.structs.replace(wanted, symbols=("NOSUCHUSDT",))
    with pytest.raises(ConfigError, match="nothing of NOSUCHUSDT") as caught:
        collect(trades, unknown)
    assert caught.value.exit_code == 2


def test_months_that_are_too_early_are_no_unknown_symbol(trades, wanted):
    report, _ = collect(trades, msgspec.structs.replace(wanted, months=("2024-01",)))
    assert states(report) == [MonthState.NOT_PUBLISHED]


def test_an_archive_out_of_reach_ends_the_run_with_exit_code_3(trades, wanted):
    many = msgspec.structs.replace(wanted, months=months_between("2022-01", "2024-07", NOW_MS))
    report, _ = collect(trades, many, of(VisionFaultKind.UNAVAILABLE, count=0))
    assert report.exit_code == 3
    assert states(report).count(MonthState.NOT_TRIED) > 20
    assert "503" in report.text()


def test_a_proxys_web_page_is_one_clear_line(trades, wanted):
    report, _ = collect(trades, wanted, of(VisionFaultKind.HTML, count=0))
    assert report.exit_code == 1
    assert "HTML instead of data" in report.text()


def test_a_second_download_into_the_folder_is_refused(trades, wanted, paths):
    with (
        FolderLock(paths.root, "history"),
        pytest.raises(DataFolderError, match="in use by the history"),
    ):
        collect(trades, wanted)


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(trades, wanted, paths):
    wanted = msgspec.structs.replace(wanted, months=MONTHS[:1])
    with pytest.raises(BaseExceptionGroup) as caught:
        collect(trades, wanted, hook=FullDisk(Step.SYNCED))
    assert caught.group_contains(StorageError, match="No space left")
    assert months_of(paths, SYMBOL, "aggTrades") == []
    report, exchange = collect(trades, wanted)
    assert states(report) == [MonthState.WHOLE]
    assert exchange.statistics()["vision_bytes"] < 10_000  # the month itself was kept
    assert_true(paths, trades, *MONTHS[:1])


async def interrupted(wanted, client: VisionClient, source: random.Random) -> bool:
    """Cancel a run after a random time; whether it was over before."""
    try:
        async with asyncio.timeout(source.uniform(0.02, 0.5)):
            await collect_history(wanted, client, now_ms=lambda: NOW_MS)
    except TimeoutError:
        return False
    return True


def test_a_run_called_off_at_any_moment_is_taken_up_again(trades, wanted, paths):
    months = months_between("2024-05", "2024-08", NOW_MS)
    wanted = msgspec.structs.replace(wanted, months=months)
    faults = random_vision_faults(8, months, stall_ms=100)
    source = random.Random(1)

    async def scenario():
        async with served(trades, NOW_MS, faults) as (_, client):
            for _ in range(10):
                if await interrupted(wanted, client, source):
                    break
                for path in (paths.raw / "historical").glob(f"{SYMBOL}/*"):
                    assert about_month(path) is not None  # whole or not there
            await collect_history(wanted, client, now_ms=lambda: NOW_MS)
            again = msgspec.structs.replace(wanted, verify=True)
            return await collect_history(again, client, now_ms=lambda: NOW_MS)

    report = run(scenario())
    assert report.exit_code == 0
    assert_true(paths, trades, *months[:-1])
    held = stored(paths, "2024-08")
    assert held.equals(true_trades(trades, "2024-08").slice(0, held.num_rows))
    assert list((paths.raw / "historical" / ".work").iterdir()) == []
