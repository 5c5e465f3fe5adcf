"""Gaps, pages and daily files of ingested candles."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from domain.intervals import INTERVAL_MS
from domain.market import Market
from ingestion.day_files import DayFiles
from ingestion.kline_gaps import batches, closed_before_ms, expected_opens, pages, runs
from lake.kline_files import RAW_COLUMNS, raw_path, read_raw
from lake.part_files import date_of, date_start_ms
from lake.paths import LakePaths
from tests.kline_samples import DAY_MS, MONDAY_MS, bars, contents, rows_where, store_bars


@pytest.fixture
def paths(data_dir):
    return LakePaths.of(data_dir)


def test_candles_are_expected_on_the_intervals_grid_weeks_from_monday():
    week = expected_opens("1w", MONDAY_MS - 1, MONDAY_MS + 15 * DAY_MS)
    assert week.tolist() == [MONDAY_MS, MONDAY_MS + 7 * DAY_MS, MONDAY_MS + 14 * DAY_MS]
    assert expected_opens("1h", MONDAY_MS + 1, MONDAY_MS + 3_600_000).tolist() == []
    assert len(expected_opens("1M", MONDAY_MS, MONDAY_MS + 92 * DAY_MS)) == 3


def test_months_open_on_their_first_day_over_a_leap_february_and_a_years_end():
    firsts = [f"2027-{month:02d}-01" for month in range(1, 13)]
    firsts += [f"2028-{month:02d}-01" for month in range(1, 5)]
    opens = [date_start_ms(first) for first in firsts]
    found = expected_opens("1M", opens[0], opens[-1] + 1)
    assert found.tolist() == opens
    assert runs(found[:-1], "1M") == [(opens[0], opens[-1], len(opens) - 1)]
    leap_ms = date_start_ms("2028-02-29")
    days = expected_opens("1d", leap_ms - DAY_MS, leap_ms + 2 * DAY_MS)
    assert [date_of(at) for at in days.tolist()] == ["2028-02-28", "2028-02-29", "2028-03-01"]


@pytest.mark.parametrize("interval", ["1m", "15m", "4h", "1d", "1w", "1M"])
def test_the_open_candle_is_left_out_until_its_close(interval):
    far_ms = MONDAY_MS + 400 * DAY_MS
    closed = closed_before_ms(interval, far_ms, MONDAY_MS - 1)
    assert closed < MONDAY_MS
    assert closed_before_ms(interval, far_ms, MONDAY_MS) == MONDAY_MS
    assert closed_before_ms(interval, MONDAY_MS - DAY_MS, MONDAY_MS) == MONDAY_MS - DAY_MS


def test_neighbouring_missing_candles_are_one_gap():
    opens = MONDAY_MS + np.array([0, 1, 2, 5, 9]) * 60_000
    assert [(s - MONDAY_MS, count) for s, _, count in runs(opens, "1m")] == [
        *((0, 3), (5 * 60_000, 1)),
        (9 * 60_000, 1),
    ]


@pytest.mark.parametrize(
    ("interval", "bars_a_batch", "requests"), [("15m", 480, 1), ("1m", 1440, 3), ("1d", 500, 1)]
)
def test_a_batch_holds_whole_days_and_a_page_at_most_the_limit(interval, bars_a_batch, requests):
    start_ms = 20_000 * DAY_MS  # a multiple of the days in a batch
    opens = start_ms + np.arange(bars_a_batch * 2) * INTERVAL_MS[interval]
    found = batches(opens, interval, 500)
    assert [len(batch) for batch in found] == [bars_a_batch, bars_a_batch]
    asked = list(pages(found[0], interval, 500))
    assert len(asked) == requests
    assert all(limit <= 500 for _, _, limit in asked)
    assert asked[0][0] == start_ms
    assert asked[-1][1] == found[0][-1] + INTERVAL_MS[interval] - 1


def test_scattered_missing_candles_share_a_page():
    opens = MONDAY_MS + np.array([0, 100, 499, 500]) * 60_000
    asked = list(pages(opens, "1m", 500))
    assert [(s - MONDAY_MS) // 60_000 for s, _, _ in asked] == [0, 500]
    assert [limit for _, _, limit in asked] == [500, 1]


def test_a_day_is_one_snappy_file_that_says_where_it_came_from(paths):
    store_bars(paths, "BTCUSDT", "1h", bars(30, "1h"))
    path = paths.raw / "1h" / "BTCUSDT_1h_20240701.parquet"
    assert path == raw_path(paths, "BTCUSDT", "1h", "2024-07-01")
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == list(RAW_COLUMNS)
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    about = {k.decode(): v.decode() for k, v in file.schema_arrow.metadata.items()}
    assert about["source"] == "binance-um-rest"
    assert float(about["latency_ms"]) == 1.5
    assert int(about["fetched_at"]) == MONDAY_MS
    assert (about["endpoint"], about["interval"], about["symbol"]) == (
        *("/fapi/v1/klines", "1h"),
        "BTCUSDT",
    )
    assert (file.metadata.num_rows, len(list(path.parent.iterdir()))) == (24, 2)


def test_storing_the_same_candles_again_changes_no_file(paths):
    series = bars(60, "1h")
    assert store_bars(paths, "BTCUSDT", "1h", series) == 60
    before = contents(paths.raw)
    assert store_bars(paths, "BTCUSDT", "1h", rows_where(series, np.arange(60) < 40)) == 0
    assert contents(paths.raw) == before


def test_missing_and_absent_candles_are_told_apart_and_a_late_candle_ends_its_absence(paths):
    series = bars(48, "1h")
    times = series["open_time_ms"]
    absent = tuple(times[[30, 31]].tolist())
    keep = ~np.isin(np.arange(48), [3, 30, 31])
    store_bars(paths, "BTCUSDT", "1h", rows_where(series, keep), absent)
    files = DayFiles(paths, "BTCUSDT", "1h", Market.UM)
    gaps = files.gaps(MONDAY_MS, MONDAY_MS + 2 * DAY_MS)
    assert [(gap.start_ms, gap.bar_count, gap.at_exchange) for gap in gaps] == [
        (times[3], 1, False),
        (times[30], 2, True),
    ]
    store_bars(paths, "BTCUSDT", "1h", rows_where(series, ~keep))
    assert files.gaps(MONDAY_MS, MONDAY_MS + 2 * DAY_MS) == []


def test_candles_before_the_listing_are_no_gap(paths):
    series = bars(24, "1h")
    store_bars(paths, "NEWUSDT", "1h", rows_where(series, np.arange(24) >= 10))
    files = DayFiles(paths, "NEWUSDT", "1h", Market.UM)
    files.remember_first_bar(int(series["open_time_ms"][10]))
    assert files.gaps(MONDAY_MS, MONDAY_MS + DAY_MS) == []


def test_a_damaged_file_is_set_aside_and_its_day_asked_for_again(paths):
    store_bars(paths, "BTCUSDT", "1h", bars(48, "1h"))
    raw_path(paths, "BTCUSDT", "1h", "2024-07-01").write_bytes(b"PAR1 torn")
    files = DayFiles(paths, "BTCUSDT", "1h", Market.UM)
    missing, absent = files.lacking(MONDAY_MS, MONDAY_MS + 2 * DAY_MS)
    assert (len(missing), len(absent)) == (24, 0)
    assert not raw_path(paths, "BTCUSDT", "1h", "2024-07-01").exists()
    assert list((paths.raw / "damaged").rglob("*.damaged"))


def test_stored_candles_come_back_to_the_last_bit(paths):
    series = bars(200, "15m")
    store_bars(paths, "BTCUSDT", "15m", series)
    found, damaged = read_raw(paths, "BTCUSDT", "15m", MONDAY_MS, MONDAY_MS + 3 * DAY_MS)
    assert damaged == []
    for name in RAW_COLUMNS:
        np.testing.assert_array_equal(found[name], series[name])
