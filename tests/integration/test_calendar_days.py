"""Recorded days over a leap day and a year's end: replayed, merged, reported on and counted by retention."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

import main
from domain.features import FeatureRow
from domain.market import TRADE_DTYPE
from feature_store import FeatureStore
from lake import read
from lake.part_files import date_start_ms, dates_in
from lake.paths import DAY_MS, LakePaths
from lake.retention import RetentionSettings, plan_retention
from lake.stream_compaction import StreamCompaction
from lake.stream_files import stream_dates, stream_files
from tests.lake_months import SYMBOL, store

LEAP_DAY = ("2028-02-28", "2028-02-29", "2028-03-01", "2028-03-02")
YEARS_END = ("2027-12-30", "2027-12-31", "2028-01-01", "2028-01-02")
WINDOW_S = 600
EVERY_MS = 300_000
PER_DAY = DAY_MS // EVERY_MS
WINDOWS = DAY_MS // WINDOW_S // 1_000
HOUR_MS = 3_600_000

pytestmark = [
    pytest.mark.usefixtures("clean_environment"),
    pytest.mark.parametrize("dates", [LEAP_DAY, YEARS_END], ids=lambda d: d[1]),
]


def day_of_trades(date: str, number: int) -> np.ndarray:
    """One trade every 5 minutes on a path of its own; the first one at midnight to the millisecond."""
    rows = np.zeros(PER_DAY, TRADE_DTYPE)
    rows["agg_trade_id"] = rows["first_trade_id"] = rows["last_trade_id"] = (
        1 + number * PER_DAY + np.arange(PER_DAY)
    )
    steps = np.random.default_rng(number).integers(-5, 6, PER_DAY)
    rows["price"] = 100_000 + 1_000 * number + np.cumsum(steps)
    rows["quantity"] = rows["quantity_ex_rpi"] = 1 + np.arange(PER_DAY) % 7
    rows["price_decimals"], rows["quantity_decimals"] = 1, 3
    rows["transact_time_ms"] = date_start_ms(date) + EVERY_MS * np.arange(PER_DAY)
    rows["event_time_ms"] = rows["transact_time_ms"] + 5
    rows["receive_time_ns"] = (rows["event_time_ms"] + 10) * 1_000_000
    rows["is_buyer_maker"] = np.arange(PER_DAY) % 3 == 0
    return rows


@pytest.fixture
def lake(tmp_path: Path, dates: tuple[str, ...]) -> LakePaths:
    """Four recorded days, each in two files that meet over its noon."""
    paths = LakePaths.of(tmp_path / "lake")
    days = np.concatenate([day_of_trades(date, n) for n, date in enumerate(dates)])
    half = PER_DAY // 2
    for first in range(0, len(days), half):
        store(paths, days[first : first + half])
    return paths


def replayed(lake: LakePaths) -> Path:
    """The data folder of a replay."""
    out = lake.root.parent / "out"
    command = ["replay", str(lake.root), "--data-dir", str(out), "--headless"]
    assert main.main([*command, "--window-duration", str(WINDOW_S)]) == 0
    return out


def test_a_replay_keeps_days_apart_and_knows_the_day_before(
    lake: LakePaths, dates: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = replayed(lake)
    store = FeatureStore(out)
    assert tuple(dates_in(out / "features")) == tuple(dates_in(out / "signals")) == dates
    for number, date in enumerate(dates):
        start_ms = date_start_ms(date)
        rows = store.read_rows(SYMBOL, start_ms, start_ms + DAY_MS)
        count = WINDOWS - (date == dates[-1])  # the last one did not close
        assert [r.window_start_ms for r in rows] == [
            start_ms + k * WINDOW_S * 1_000 for k in range(count)
        ]
        check_day(rows, number, start_ms)
    (out / "raw").symlink_to(lake.raw)
    for date in dates[1:3]:
        assert main.main(["signals", "--data-dir", str(out), "--from", date, "--to", date]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{WINDOWS} signals on 1 symbol ({SYMBOL})" in shown
        assert f"ended {date} 00:00 to {date} 23:50 UTC; {WINDOWS} scored" in shown


def check_day(rows: Sequence[FeatureRow], number: int, start_ms: int) -> None:
    """CVD and session begin at midnight, the levels are those of the trades of the day before."""
    assert {row.cvd_anchor_ms for row in rows} == {start_ms}
    assert rows[0].cvd == pytest.approx(rows[0].delta)
    assert (rows[0].first_agg_id, rows[0].trade_count) == (1 + number * PER_DAY, 2)
    assert rows[-1].session_coverage_ratio == 1.0
    ((*found, pivot),) = {
        (r.previous_high, r.previous_low, r.previous_close, r.pivot) for r in rows
    }
    ((*profile,),) = {(r.profile_val, r.profile_poc, r.profile_vah) for r in rows}
    if number == 0:
        assert [*found, pivot, *profile] == [None] * 7
        return
    price = day_of_trades("2000-01-01", number - 1)["price"] / 10
    high, low, close = price.max(), price.min(), price[-1]
    assert found == [high, low, close]
    assert pivot == pytest.approx((high + low + close) / 3)
    edges = [low * 0.999, *(value or 0.0 for value in profile), high * 1.001]
    assert edges == sorted(edges)


def test_closed_days_become_one_file_and_reads_go_over_midnight(
    lake: LakePaths, dates: tuple[str, ...]
) -> None:
    now_ms = date_start_ms(dates[-1]) + HOUR_MS
    merged = StreamCompaction(lake).compact_due(now_ms)
    assert [path.parent.name for path in merged] == list(dates)
    assert stream_dates(lake, "trades") == list(dates)
    assert [len(stream_files(lake, "trades", date)) for date in dates] == [1] * 4
    for date, following in itertools.pairwise(dates):
        table = read("trades", SYMBOL, date, following, data_dir=lake.root)
        assert table.num_rows == PER_DAY
    midnight_ms = date_start_ms(dates[2])
    around = read("trades", SYMBOL, midnight_ms - 1, midnight_ms + 1, data_dir=lake.root)
    assert around.column("transact_time_ms").to_pylist() == [midnight_ms]


def test_retention_counts_the_days_that_there_were(lake: LakePaths, dates: tuple[str, ...]) -> None:
    now_ms = date_start_ms(dates[-1]) + HOUR_MS
    for keep in range(1, 5):
        settings = msgspec.structs.replace(RetentionSettings(), stream_trades=keep)
        gone = plan_retention(lake, settings, [], now_ms=now_ms)
        assert tuple(item.name for item in gone) == dates[: len(dates) - keep]
    calendar = [dt.date.fromisoformat(date) for date in dates]
    assert [(b - a).days for a, b in itertools.pairwise(calendar)] == [1, 1, 1]
