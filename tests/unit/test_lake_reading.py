from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.events import GapState
from domain.market import Market
from domain.times import time_ms
from lake import gaps, read
from lake.hole_times import hole_times, touching_holes
from lake.paths import LakePaths
from lake.stream_files import read_stream_file, stream_files
from tests.lake_months import (
    HOUR_MS,
    MONTH_MS,
    SYMBOL,
    archive,
    kline_lines,
    ledger_of,
    store,
    store_depth,
    trade_lines,
    trades,
)

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def paths(data_dir: Path) -> LakePaths:
    return LakePaths.of(data_dir)


def ids_and_sources(table) -> list[tuple[int, str]]:
    return list(
        zip(
            table.column("agg_trade_id").to_pylist(),
            table.column("source").to_pylist(),
            strict=True,
        )
    )


def test_recorded_repaired_and_historical_trades_are_one_sequence(
    paths: LakePaths, data_dir: Path
) -> None:
    archive(paths, "aggTrades", trade_lines(trades(range(1, 101))))
    store(paths, trades(range(40, 61)))
    store(paths, trades(range(70, 81)))
    store(paths, trades(range(60, 66)), "rest")
    store(paths, trades(range(64, 68)), "archive")
    table = read("trades", SYMBOL, data_dir=data_dir)
    expected = [(n, "historical") for n in range(1, 40)]
    expected += [(n, "stream") for n in range(40, 61)]
    expected += [(n, "rest") for n in range(61, 66)]
    expected += [(n, "archive") for n in range(66, 68)]
    expected += [(n, "historical") for n in range(68, 70)]
    expected += [(n, "stream") for n in range(70, 81)]
    expected += [(n, "historical") for n in range(81, 101)]
    assert ids_and_sources(table) == expected
    wanted = trades(range(1, 101))
    for name, power in (("price", 10), ("quantity", 1000)):
        assert table.column(name).to_pylist() == (wanted[name] / power).tolist()
    received = table.column("receive_time_ns").to_pylist()
    assert [value is not None for value in received] == [s == "stream" for _, s in expected]


@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(1, 60), min_size=1), st.sampled_from(["stream", "rest", "archive"])
        ),
        max_size=6,
    )
)
def test_whatever_the_files_overlap_each_id_is_read_once_from_the_best_source(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[set[int], str]]
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    best: dict[int, str] = {}
    order = ["stream", "rest", "archive"]
    for numbers, source in files:  # two hours apart: several dates
        store(LakePaths.of(folder), trades(sorted(numbers), every_ms=2 * HOUR_MS), source)
        for number in numbers:
            best[number] = min(source, best.get(number, source), key=order.index)
    table = read("trades", SYMBOL, data_dir=folder)
    assert ids_and_sources(table) == sorted(best.items())


def test_start_is_inclusive_and_end_exclusive_however_they_are_written(
    paths: LakePaths, data_dir: Path
) -> None:
    store(paths, trades(range(1, 11), every_ms=60_000))
    begin, end = MONTH_MS + 120_000, MONTH_MS + 300_000
    zone = dt.timezone(dt.timedelta(hours=2))
    for start, stop in (
        (begin, end),
        (np.int64(begin), np.int64(end)),
        ("2024-07-01T00:02:00", "2024-07-01T00:05:00Z"),
        ("2024-07-01 02:02+02:00", "2024-07-01 00:05"),
        (dt.datetime(2024, 7, 1, 0, 2), dt.datetime(2024, 7, 1, 2, 5, tzinfo=zone)),  # noqa: DTZ001
    ):
        table = read("trades", SYMBOL, start, stop, data_dir=data_dir)
        assert table.column("agg_trade_id").to_pylist() == [3, 4, 5]
    assert time_ms("2024-07-01") == time_ms(dt.date(2024, 7, 1)) == MONTH_MS
    assert read("trades", SYMBOL, end, begin, data_dir=data_dir).num_rows == 0


@pytest.mark.parametrize("when", ["yesterday", "", "2024-13-01"])
def test_text_that_is_no_time_is_refused(when: str, data_dir: Path) -> None:
    with pytest.raises(ValueError, match="is no time"):
        read("trades", SYMBOL, when, data_dir=data_dir)


def test_only_the_columns_asked_for_are_given_in_their_order(
    paths: LakePaths, data_dir: Path
) -> None:
    store(paths, trades(range(1, 5)))
    archive(paths, "aggTrades", trade_lines(trades(range(3, 9))))
    table = read("trades", "btcusdt", data_dir=data_dir, columns=["price", "source"])
    assert table.column_names == ["price", "source"]
    assert table.num_rows == 8
    with pytest.raises(ValueError, match="no such column of trades: bids"):
        read("trades", SYMBOL, data_dir=data_dir, columns=["bids"])
    with pytest.raises(ValueError, match="no such kind"):
        read("quotes", SYMBOL, data_dir=data_dir)  # type: ignore[call-overload]


def test_rows_come_as_polars_or_pandas_too(paths: LakePaths, data_dir: Path) -> None:
    store(paths, trades(range(1, 5)))
    arrow = read("trades", SYMBOL, data_dir=data_dir)
    as_polars = read("trades", SYMBOL, data_dir=data_dir, as_="polars")
    as_pandas = read("trades", SYMBOL, data_dir=data_dir, as_="pandas")
    assert isinstance(as_polars, pl.DataFrame)
    assert isinstance(as_pandas, pd.DataFrame)
    assert as_polars.columns == list(as_pandas.columns) == arrow.column_names
    assert as_polars["price"].to_list() == as_pandas["price"].tolist()
    assert set(as_pandas["source"]) == {"stream"}
    with pytest.raises(ValueError, match="as_ must be"):
        read("trades", SYMBOL, data_dir=data_dir, as_="list")  # type: ignore[call-overload]


def test_another_symbol_and_another_market_stay_out(paths: LakePaths, data_dir: Path) -> None:
    store(paths, trades(range(1, 5)))
    store(paths, trades(range(11, 14)), symbol="ETHUSDT")
    store(LakePaths.of(data_dir, Market.SPOT), trades(range(21, 24)))
    found = {
        (symbol, market): read("trades", symbol, data_dir=data_dir, market=market)
        .column("agg_trade_id")
        .to_pylist()
        for symbol in (SYMBOL, "ETHUSDT")
        for market in ("um", "spot")
    }
    assert found == {
        (SYMBOL, "um"): [1, 2, 3, 4],
        ("ETHUSDT", "um"): [11, 12, 13],
        (SYMBOL, "spot"): [21, 22, 23],
        ("ETHUSDT", "spot"): [],
    }


def test_nothing_stored_gives_the_columns_without_rows(data_dir: Path) -> None:
    for kind in ("trades", "depth", "klines"):
        table = read(kind, SYMBOL, data_dir=data_dir)
        assert table.num_rows == 0
        assert {"symbol", "source"} <= set(table.column_names)
    assert gaps(data_dir=data_dir) == []


def test_depth_is_sorted_by_time_and_labelled(paths: LakePaths, data_dir: Path) -> None:
    store_depth(paths, [MONTH_MS + 200, MONTH_MS + 300], [30, 40], [20, 30])
    store_depth(paths, [MONTH_MS, MONTH_MS + 100, MONTH_MS + 200], [10, 20, 30], [0, 10, 20])
    table = read("depth", SYMBOL, data_dir=data_dir)
    assert table.column("final_update_id").to_pylist() == [10, 20, 30, 40]
    assert table.column("bids").to_pylist()[0] == [[59_999.9, 1.0]]
    assert set(table.column("source").to_pylist()) == {"stream"}


def test_klines_come_from_the_archives_months(paths: LakePaths, data_dir: Path) -> None:
    archive(paths, "klines", kline_lines(trades(range(1, 600)), range(10)))
    table = read("klines", SYMBOL, MONTH_MS, MONTH_MS + 5 * 60_000, data_dir=data_dir)
    opened = table.column("open_time_ms").to_pylist()
    assert opened == [MONTH_MS + n * 60_000 for n in range(5)]
    assert set(table.column("source").to_pylist()) == {"historical"}


def test_a_damaged_file_is_set_aside_and_the_rest_is_read(paths: LakePaths, data_dir: Path) -> None:
    (damaged,) = store(paths, trades(range(1, 5)))
    store(paths, trades(range(5, 9)))
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    archive(paths, "aggTrades", trade_lines(trades(range(9, 12))))
    month = data_dir / "raw" / "historical" / SYMBOL / "aggTrades_2024-07.parquet"
    month.write_bytes(b"PAR1 no more")
    table = read("trades", SYMBOL, data_dir=data_dir)
    assert table.column("agg_trade_id").to_pylist() == [5, 6, 7, 8]
    assert not damaged.exists()
    assert not month.exists()
    aside = {path.name for path in data_dir.rglob("*.damaged")}
    assert aside == {f"{damaged.name}.damaged", f"{month.name}.damaged"}
    assert len(stream_files(paths, "trades", "2024-07-01")) == 1


def test_a_file_merged_away_while_it_is_read_is_found_in_the_merged_one(
    paths: LakePaths, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(paths, trades(range(1, 5)))
    (other,) = store(paths, trades(range(5, 9)))

    def read_after_merge(path: Path, *given, **options):
        if path == other and other.exists():
            other.unlink()
            store(paths, trades(range(4, 9)))
            store(paths, trades(range(9, 10)))
        return read_stream_file(path, *given, **options)

    monkeypatch.setattr("lake.sequence.read_stream_file", read_after_merge)
    table = read("trades", SYMBOL, data_dir=data_dir, columns=["agg_trade_id"])
    assert table.column(0).to_pylist() == list(range(1, 10))


def test_gaps_are_the_recorders_and_repaired_ones_only_if_asked_for(
    paths: LakePaths, data_dir: Path
) -> None:
    ledger = ledger_of(paths)
    now = MONTH_MS * 1_000_000
    for first, hour in ((10, 1), (50, 5)):
        at_ms = MONTH_MS + hour * HOUR_MS
        ledger.found(
            "trades",
            SYMBOL,
            first,
            first + 9,
            cause="x",
            at_ns=now,
            from_ms=at_ms,
            until_ms=at_ms + 9,
        )
    ledger.found("depth", "ETHUSDT", None, None, cause="y", at_ns=now, from_ms=1, until_ms=2)
    ledger.resolve("trades", SYMBOL, 10, 19, GapState.REPAIRED, at_ns=now, by="rest")
    ledger.flush()
    assert [gap.first_id for gap in gaps("btcusdt", data_dir=data_dir)] == [50]
    every = gaps(SYMBOL, data_dir=data_dir, include_repaired=True)
    assert [gap.first_id for gap in every] == [10, 50]
    before = gaps(SYMBOL, end=MONTH_MS + 2 * HOUR_MS, data_dir=data_dir, include_repaired=True)
    assert [gap.first_id for gap in before] == [10]
    assert [gap.symbol for gap in gaps(kind="depth", data_dir=data_dir)] == ["ETHUSDT"]
    assert gaps(data_dir=data_dir, role="bot") == []


def test_rows_within_a_long_hole_are_left_out_of_training(paths: LakePaths, data_dir: Path) -> None:
    store(paths, trades(range(61), every_ms=60_000, first_id=0))
    ledger = ledger_of(paths)
    for kind, state, begin, end in (
        ("depth", GapState.LOST, 10, 20),  # ten minutes: short enough
        ("depth", GapState.LOST, 30, 40),
        ("trades", GapState.OPEN, 40, 50),  # twenty minutes with the one before
    ):
        ledger.found(
            kind,
            SYMBOL,
            None,
            None,
            cause="x",
            at_ns=1,
            from_ms=MONTH_MS + begin * 60_000,
            until_ms=MONTH_MS + end * 60_000,
            state=state,
        )
    ledger.flush()
    table = read(
        "trades",
        SYMBOL,
        data_dir=data_dir,
        columns=["agg_trade_id"],
        exclude_holes_longer_than_s=900,
    )
    assert table.column_names == ["agg_trade_id"]
    assert table.column(0).to_pylist() == [*range(31), *range(50, 61)]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=8),
)
def test_a_window_touches_a_hole_when_some_of_its_time_lies_between_the_holes_ends(
    ends: list[tuple[int, int]], windows: list[tuple[int, int]]
) -> None:
    merged: list[list[int]] = []
    for start, end in sorted((min(pair), max(pair)) for pair in ends):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    holes = np.array(merged, dtype=np.int64).reshape(-1, 2)
    starts = np.array([start for start, _ in windows])
    stops = np.array([start + length for start, length in windows])
    expected = [
        any(start < until and start + length - 1 > since for since, until in merged)
        for start, length in windows
    ]
    assert touching_holes(starts, stops, holes).tolist() == expected


def test_a_hole_without_an_end_reaches_as_far_as_there_are_windows(paths: LakePaths) -> None:
    ledger = ledger_of(paths)
    ledger.found("trades", SYMBOL, 5, None, cause="x", at_ns=1, from_ms=1_000)
    holes = hole_times(ledger.all())
    starts = np.array([0, 500, 10**15])
    assert touching_holes(starts, starts + 1_000, holes).tolist() == [False, True, True]
