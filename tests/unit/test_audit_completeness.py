from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.certificate import Repair, Status
from audit.check_completeness import CompletenessReport, check_completeness
from audit.completeness import SymbolAudit, audit_symbol
from audit.id_gaps import IdGaps
from audit.minute_bars import MinuteBars, Trades, exact_sums
from binance_api.rest import RestClient, RestSettings
from domain.errors import ConfigError
from domain.events import GapState
from lake.paths import LakePaths
from tests.lake_months import (
    HOUR_MS,
    MINUTE_MS,
    MONTH,
    MONTH_MS,
    SYMBOL,
    archive,
    kline_lines,
    ledger_of,
    store,
    trade_lines,
    trades,
)

MAIN = Path(__file__).resolve().parents[2] / "main.py"
MINUTES = 44_640
LATER_MS = MONTH_MS + 90 * 24 * HOUR_MS


@pytest.fixture
def paths(data_dir: Path) -> LakePaths:
    return LakePaths.of(data_dir)


def audited(paths: LakePaths, *, symbol: str = SYMBOL, now_ms: int = LATER_MS) -> SymbolAudit:
    return audit_symbol(paths, symbol, [MONTH], now_ms=now_ms)


def statuses(found: SymbolAudit) -> dict[int, Status]:
    """Hour of the month → what it is certified to be."""
    return {(hour.start_ms - MONTH_MS) // HOUR_MS: hour.status for hour in found.hours}


# --- the real month ---


def test_exactly_the_three_real_holes_of_eth_are_found(
    paths: LakePaths, recordings_dir: Path
) -> None:
    for symbol in ("ETHUSDT", SYMBOL):
        with gzip.open(recordings_dir / "klines" / f"{symbol}-1m-2024-07.csv.gz", "rt") as file:
            archive(paths, "klines", file.read().splitlines(), symbol=symbol)
    found = audited(paths, symbol="ETHUSDT")
    assert [
        (hole.kind, hole.from_ms, hole.until_ms, hole.missing_count) for hole in found.holes
    ] == [
        ("klines", begin, begin + 1_500 * MINUTE_MS, 1_500)
        for begin in (1_720_100_700_000, 1_721_990_700_000, 1_722_260_700_000)
    ]
    (month,) = found.months
    assert (month.klines, month.missing_klines, month.minutes) == (40_140, 4_500, 40_140)
    assert len(found.hours) == 744
    holed = [hour for hour in found.hours if hour.status is Status.HOLED]
    assert len(holed) == 3 * 26  # 25 hours each, begun and ended within an hour
    assert {tuple(hour.holes) for hour in holed} == {(0,), (1,), (2,)}
    whole = audited(paths)
    assert whole.holes == []
    assert set(statuses(whole).values()) == {Status.WHOLE}
    assert whole.months[0].klines == MINUTES


# --- ids ---


def test_missing_doubled_and_disordered_ids_are_counted(paths: LakePaths) -> None:
    store(paths, trades([*range(1, 50), *range(60, 100)]))
    store(paths, trades([40, 41, 110, 111]))
    found = audited(paths)
    (month,) = found.months
    assert month.trades == 91
    assert (month.first_id, month.last_id) == (1, 111)
    assert (month.missing_ids, month.missing_ranges) == (20, 2)
    assert (month.duplicated_ids, month.disordered_ids) == (2, 0)
    first, second = found.holes
    assert (first.first_id, first.last_id, first.missing_count) == (50, 59, 10)
    assert (first.from_ms, first.until_ms) == (MONTH_MS + 48_000, MONTH_MS + 59_000)
    assert (second.first_id, second.last_id) == (100, 109)
    assert statuses(found) == {0: Status.HOLED}


def test_what_the_archive_had_twice_or_out_of_order_is_told(paths: LakePaths) -> None:
    lines = trade_lines(trades(range(1, 101)))
    lines[10], lines[20] = lines[20], lines[10]
    archive(paths, "aggTrades", [*lines, lines[30], lines[31]])
    (month,) = audited(paths).months
    assert (month.trades, month.duplicated_ids, month.disordered_ids) == (100, 0, 0)
    assert month.archive_duplicates == 2
    assert month.archive_disordered


@given(
    st.lists(st.integers(0, 200), unique=True, max_size=120),
    st.lists(st.integers(0, 200), max_size=4),
    st.integers(0, 3),
)
def test_gaps_are_the_ids_nobody_brought_even_if_some_came_a_stretch_late(
    numbers: list[int], cuts: list[int], late: int
) -> None:
    ids = sorted(numbers)
    bounds = [0, *sorted(cuts), 201]
    stretches = [[n for n in ids if low <= n < high] for low, high in itertools.pairwise(bounds)]
    for earlier, later in itertools.pairwise(stretches):
        moved = [earlier.pop(-2) for _ in range(min(late, max(0, len(earlier) - 2)))]
        later[:0] = sorted(moved)
    gaps = IdGaps()
    for stretch in stretches:
        gaps.add(np.array(stretch, dtype=np.int64), np.array(stretch, dtype=np.int64) * 10)
    missing = {n for gap in gaps.found() for n in range(gap.first_id, gap.last_id + 1)}
    expected = set(range(ids[0], ids[-1])) - set(ids) if ids else set()
    assert missing == expected
    assert all(gap.from_ms < gap.first_id * 10 for gap in gaps.found())


# --- minutes and bars ---


def test_minutes_without_trades_are_told_from_missing_ones(paths: LakePaths) -> None:
    rows = trades(range(1, 601))  # ten minutes
    minute = (rows["transact_time_ms"] - MONTH_MS) // MINUTE_MS
    silent = rows[(minute != 3) & (minute != 4)]  # renumbered below: ids prove that nothing was
    silent["agg_trade_id"] = np.arange(1, len(silent) + 1)
    kept = silent[(silent["transact_time_ms"] - MONTH_MS) // MINUTE_MS != 7]  # lost
    store(paths, kept)
    (month,) = audited(paths).months
    assert (month.minutes, month.zero_trade_minutes, month.missing_minutes) == (10, 2, 1)
    archive(paths, "klines", kline_lines(silent, range(10)))
    (month,) = audited(paths).months
    assert (month.zero_trade_minutes, month.missing_minutes) == (2, 1)
    assert month.klines == 10


def test_an_official_bar_with_trades_where_none_are_stored_is_a_missing_minute(
    paths: LakePaths,
) -> None:
    rows = trades(range(1, 601))
    archive(paths, "klines", kline_lines(rows, range(MINUTES)))
    archive(paths, "aggTrades", trade_lines(rows[:480]))  # two minutes short, then silence
    found = audited(paths)
    (month,) = found.months
    assert month.missing_minutes == 2
    assert month.zero_trade_minutes == MINUTES - 10
    (hole,) = found.holes
    assert (hole.kind, hole.from_ms) == ("trades", MONTH_MS + 479_000)
    assert hole.missing_count is None


def test_rebuilt_bars_equal_the_official_ones_or_are_named(paths: LakePaths) -> None:
    rows = trades(range(1, 7_201), every_ms=500)  # an hour
    lines = kline_lines(rows, range(MINUTES))
    archive(paths, "aggTrades", trade_lines(rows))
    archive(paths, "klines", lines)
    (month,) = audited(paths).months
    assert (month.compared_bars, month.differing_bars) == (MINUTES, 0)
    columns = lines[31].split(",")
    columns[5] = str(float(columns[5]) + 0.001)
    lines[31] = ",".join(columns)
    archive(paths, "klines", lines)
    found = audited(paths)
    (month,) = found.months
    assert month.differing_bars == 1
    (difference,) = month.differences
    assert (difference.column, difference.open_time_ms) == ("volume", MONTH_MS + 30 * MINUTE_MS)
    assert difference.official == pytest.approx(difference.rebuilt + 0.001)
    assert found.holes == []


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.integers(0, 8))
def test_sums_are_the_nearest_doubles_of_the_exact_ones(sizes: list[int], decimals: int) -> None:
    values = np.array(sizes) / 10**decimals
    expected = sum(sizes) / 10**decimals
    assert exact_sums(values, np.array([0])).tolist() == [expected]


def test_a_trade_whose_time_runs_back_is_in_the_minute_of_its_time() -> None:
    bars = MinuteBars(MONTH_MS, MONTH_MS + 2 * MINUTE_MS)
    times = MONTH_MS + np.array([0, 60_001, 59_999, 60_002])
    ones = np.ones(4)
    prices = np.array([1.0, 2.0, 3.0, 4.0])
    bars.add(Trades(np.arange(4), times, prices, ones, np.ones(4, np.int64), ones > 0))
    assert bars.trade_count.tolist() == [2, 2]
    assert bars.columns["open"].tolist() == [1.0, 2.0]
    assert bars.columns["close"].tolist() == [3.0, 4.0]


def test_a_month_without_klines_is_rebuilt_and_compared_with_none(paths: LakePaths) -> None:
    store(paths, trades(range(1, 601)))
    (month,) = audited(paths).months
    assert (month.klines, month.missing_klines, month.compared_bars) == (None, None, 0)
    assert month.minutes == 10


# --- where a month begins and ends ---


def test_a_market_that_began_within_the_month_is_not_missing_before(paths: LakePaths) -> None:
    rows = trades(range(1, 601), start_ms=MONTH_MS + 26 * HOUR_MS)
    archive(paths, "aggTrades", trade_lines(rows))
    archive(paths, "klines", kline_lines(rows, range(26 * 60, MINUTES)))
    found = audited(paths)
    assert found.holes == []
    assert min(statuses(found)) == 26


def test_a_month_that_begins_or_ends_late_has_a_hole_there(paths: LakePaths) -> None:
    rows = trades(range(5_001, 5_601), start_ms=MONTH_MS + 26 * HOUR_MS, first_id=5_001)
    archive(paths, "aggTrades", trade_lines(rows))
    found = audited(paths)
    assert [(hole.from_ms, hole.until_ms) for hole in found.holes] == [
        (MONTH_MS, MONTH_MS + 26 * HOUR_MS),
        (MONTH_MS + 26 * HOUR_MS + 599_000, MONTH_MS + 31 * 24 * HOUR_MS),
    ]
    assert len(found.hours) == 744


def test_nothing_is_expected_of_the_future(paths: LakePaths) -> None:
    rows = trades(range(1, 601))
    archive(paths, "aggTrades", trade_lines(rows))
    archive(paths, "klines", kline_lines(rows, range(10)))
    found = audited(paths, now_ms=MONTH_MS + 10 * MINUTE_MS)
    assert found.holes == []
    assert statuses(found) == {0: Status.WHOLE}


# --- the certificate ---


def test_hours_are_whole_repaired_or_holed_with_cause_and_deadline(paths: LakePaths) -> None:
    rows = trades(range(1, 5 * 3_600 + 1))
    hour = (rows["transact_time_ms"] - MONTH_MS) // HOUR_MS
    ids = rows["agg_trade_id"]
    by_rest, by_archive = (ids > 5_000) & (ids <= 5_010), hour == 2
    lost = (hour == 3) & (ids > 3 * 3_600 + 1) & (ids < 4 * 3_600)
    store(paths, rows[~by_rest & ~by_archive & ~lost])
    store(paths, rows[by_rest], "rest")
    store(paths, rows[by_archive], "archive")
    ledger = ledger_of(paths)
    limit_ms = MONTH_MS + 52 * HOUR_MS
    ledger.found(
        "trades",
        SYMBOL,
        3 * 3_600 + 2,
        4 * 3_600 - 1,
        cause="disconnected",
        at_ns=1,
        from_ms=MONTH_MS + 3 * HOUR_MS,
        until_ms=MONTH_MS + 4 * HOUR_MS,
        repairable_until_ms=limit_ms,
    )
    ledger.flush()
    found = audited(paths)
    assert statuses(found) == {
        0: Status.WHOLE,
        1: Status.REPAIRED,
        2: Status.REPAIRED,
        3: Status.HOLED,
        4: Status.WHOLE,
    }
    assert [hour.repaired_from for hour in found.hours[1:3]] == [["rest"], ["archive"]]
    (hole,) = found.holes
    assert (hole.cause, hole.repair, hole.repairable_until_ms) == ("disconnected", "rest", limit_ms)
    assert hole.missing_count == 3_598


def test_a_hole_the_ledger_does_not_know_can_be_repaired_from_rest_for_48_hours(
    paths: LakePaths,
) -> None:
    store(paths, trades([1, 2, 5, 6]))
    (hole,) = audited(paths, now_ms=MONTH_MS + 10_000).holes
    assert hole.repair is Repair.REST
    assert hole.repairable_until_ms == MONTH_MS + 1_000 + 48 * HOUR_MS
    (hole,) = audited(paths).holes
    assert (hole.repair, hole.repairable_until_ms) == (Repair.ARCHIVE, None)


def test_a_hole_of_which_the_ledger_knows_parts_is_told_in_parts(paths: LakePaths) -> None:
    store(paths, trades([1, 2, 30, 31]))
    ledger = ledger_of(paths)
    for first, last, state in ((5, 9, GapState.LOST), (10, 19, GapState.EXPIRED)):
        ledger.found("trades", SYMBOL, first, last, cause=state.value, at_ns=1, state=state)
    ledger.flush()
    found = [(h.first_id, h.last_id, h.missing_count, h.cause) for h in audited(paths).holes]
    unknown = "not in the ledger"
    assert found == [
        (3, 4, 2, unknown),
        (5, 9, 5, "lost"),
        (10, 19, 10, "expired"),
        (20, 29, 10, unknown),
    ]


def test_a_day_the_archive_does_not_have_cannot_be_repaired(paths: LakePaths) -> None:
    rows = trades(range(1, 31 * 24 + 1), every_ms=HOUR_MS)
    kept = (rows["transact_time_ms"] - MONTH_MS) // (24 * HOUR_MS) != 9
    part = kept & (rows["agg_trade_id"] != 500)
    for absent, repair in (
        ([10], Repair.ARCHIVE),  # the days beside it may have had the trades
        ([9, 10, 11], Repair.NOBODY),
    ):
        days = [f"2024-07-{day:02d}" for day in absent]
        archive(paths, "aggTrades", trade_lines(rows[part]), absent_days=days)
        found = [(hole.missing_count, hole.repair) for hole in audited(paths).holes]
        assert found == [(24, repair), (1, Repair.ARCHIVE)]


@pytest.mark.parametrize(
    ("state", "repair"),
    [
        (GapState.OPEN, Repair.REST),
        (GapState.EXPIRED, Repair.ARCHIVE),
        (GapState.LOST, Repair.NOBODY),
    ],
)
def test_the_state_in_the_ledger_says_who_can_repair(
    paths: LakePaths, state: GapState, repair: Repair
) -> None:
    store(paths, trades([1, 2, 5, 6]))
    ledger = ledger_of(paths)
    ledger.found("trades", SYMBOL, 3, 4, cause="x", at_ns=1, from_ms=1, until_ms=2, state=state)
    ledger.flush()
    (hole,) = audited(paths).holes
    assert hole.repair is repair


def test_the_archives_month_repairs_what_the_recording_lacks(paths: LakePaths) -> None:
    rows = trades(range(1, 3_601))
    store(paths, np.concatenate([rows[:100], rows[200:]]))
    ledger = ledger_of(paths)
    ledger.found(
        "trades",
        SYMBOL,
        101,
        200,
        cause="x",
        at_ns=1,
        from_ms=MONTH_MS + 99_000,
        until_ms=MONTH_MS + 200_000,
    )
    ledger.flush()
    assert statuses(audited(paths)) == {0: Status.HOLED}
    archive(paths, "aggTrades", trade_lines(rows))
    found = audited(paths, now_ms=MONTH_MS + HOUR_MS)
    assert statuses(found) == {0: Status.REPAIRED}
    assert found.hours[0].repaired_from == ["historical"]
    assert found.months[0].sources == {"stream": 3_500, "historical": 100}
    assert found.months[0].duplicated_ids == 0


def test_a_hole_that_has_not_ended_yet_is_in_the_certificate(paths: LakePaths) -> None:
    store(paths, trades(range(1, 101)))
    ledger = ledger_of(paths)
    ledger.found("trades", SYMBOL, 101, None, cause="outage", at_ns=1, from_ms=MONTH_MS + 99_000)
    ledger.flush()
    found = audited(paths, now_ms=MONTH_MS + 3 * HOUR_MS)
    assert statuses(found) == {0: Status.HOLED, 1: Status.HOLED, 2: Status.HOLED}
    (hole,) = found.holes
    assert (hole.cause, hole.missing_count) == ("outage", None)


def test_a_damaged_file_is_a_hole_and_the_rest_is_audited(paths: LakePaths) -> None:
    store(paths, trades(range(1, 101)))
    (damaged,) = store(paths, trades(range(101, 201)))
    store(paths, trades(range(201, 301)))
    damaged.write_bytes(os.urandom(1_000))
    found = audited(paths)
    (hole,) = found.holes
    assert (hole.first_id, hole.last_id) == (101, 200)
    assert found.months[0].trades == 200


# --- the command ---


def run_audit(folder: Path, *arguments: str, module: str | None = None, what: str = "completeness"):
    command = ["-m", module] if module else [str(MAIN), "audit", what]
    return subprocess.run(
        [sys.executable, *command, "--data-dir", str(folder), *arguments],
        cwd=MAIN.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_a_table_writes_json_and_exits_4_when_there_are_holes(
    paths: LakePaths, data_dir: Path, tmp_path: Path
) -> None:
    store(paths, trades([*range(1, 50), *range(60, 100)]))
    report = tmp_path / "report.json"
    done = run_audit(data_dir, "--json", str(report), "--rest-pages", "0")
    assert done.returncode == 4, done.stderr
    assert "hole #1: BTCUSDT 10 trades (ids 50 to 59)" in done.stdout
    assert "ETHUSDT" not in done.stdout
    found = msgspec.json.decode(report.read_bytes())
    assert found["has_holes"] is True
    (certified,) = found["symbols"][0]["certificate"]
    assert (certified["status"], certified["holes"]) == ("holed", [0])


def test_the_module_exits_0_when_all_is_whole_and_says_what_is_not_reachable(
    paths: LakePaths, data_dir: Path
) -> None:
    store(paths, trades(range(1, 100)))
    done = run_audit(
        data_dir,
        *("--binance-rest-url", "http://127.0.0.1:9"),
        module="audit.check_completeness",
    )
    assert done.returncode == 0, done.stderr
    assert "0 trades compared with REST; REST did not answer" in done.stdout
    assert list((data_dir / "audit").glob("completeness-*.json"))


@pytest.mark.parametrize("what", ["completeness", "stream"])
def test_a_symbol_nothing_is_known_of_is_said_and_is_not_whole(
    paths: LakePaths, data_dir: Path, what: str
) -> None:
    store(paths, trades(range(1, 100)))
    for symbols, code in (("SOLUSDT", 4), (SYMBOL, 0)):
        done = run_audit(data_dir, "--symbols", symbols, "--rest-pages", "0", what=what)
        assert done.returncode == code, done.stderr
        assert ("nothing is known of SOLUSDT here" in done.stderr) is (code == 4)


def test_a_month_that_is_none_is_bad_usage(paths: LakePaths) -> None:
    with pytest.raises(ConfigError, match="--from: 'July' is no month"):
        asyncio.run(checked(paths, first_month="July"))


def test_a_cancelled_audit_stops_reading_soon(paths: LakePaths) -> None:
    store(paths, trades(range(1, 100)))
    seen: list[float] = []

    async def go() -> None:
        loop = asyncio.get_running_loop()
        begun, go_on = asyncio.Event(), threading.Event()

        def on_progress(symbol: str, month: str, done: float) -> None:
            seen.append(done)
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(10)

        task = asyncio.create_task(checked(paths, on_progress=on_progress))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(go())  # ends when the thread has ended
    assert len(seen) == 1


async def checked(paths: LakePaths, **given) -> CompletenessReport:
    async with RestClient(RestSettings(base_url="http://127.0.0.1:9")) as rest:
        return await check_completeness(paths, [SYMBOL], rest, rest_pages=0, **given)
