"""Stream files: named, dated and sorted as promised, exact, readable by everybody, never overwritten."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domain.market import NO_VALUE, TRADE_DTYPE
from lake.part_files import DamagedFile
from lake.paths import LakePaths
from lake.stream_files import (
    DEPTH_SCHEMA,
    TRADE_SCHEMA,
    read_stream_file,
    stream_dates,
    stream_files,
    trade_order,
    trade_table,
)
from tests.stream_samples import START_MS, STEP_MS, depth, read_all, trade_rows, trades, write


@pytest.fixture
def paths(tmp_path: Path) -> LakePaths:
    return LakePaths.of(tmp_path)


def test_a_file_holds_the_rows_of_one_date_and_is_named_by_its_first(paths: LakePaths) -> None:
    written = write(paths, trades(range(50, 70)))
    assert [path.relative_to(paths.raw).as_posix() for path in written] == [
        "stream/trades/2024-07-18/trades_20240718_235950.parquet",
        "stream/trades/2024-07-19/trades_20240719_000000.parquet",
    ]
    assert stream_dates(paths, "trades") == ["2024-07-18", "2024-07-19"]
    assert stream_files(paths, "trades", "2024-07-19") == written[1:]
    assert [row["agg_trade_id"] for row in read_all(paths)] == list(range(50, 70))


def test_a_second_file_of_the_same_second_gets_a_number(paths: LakePaths) -> None:
    names = [write(paths, depth([0]), "depth")[0].name for _ in range(3)]
    assert names == [
        "depth_20240718_235900.parquet",
        "depth_20240718_235900_1.parquet",
        "depth_20240718_235900_2.parquet",
    ]


def test_rows_are_sorted_by_symbol_and_id(paths: LakePaths) -> None:
    table = pa.concat_tables([trades([5, 3, 4]), trades([2, 1], "AAVEUSDT")])
    (path,) = write(paths, table)
    rows = pq.read_table(path).select(["symbol", "agg_trade_id"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        *(("AAVEUSDT", 1), ("AAVEUSDT", 2)),
        *(("BTCUSDT", 3), ("BTCUSDT", 4), ("BTCUSDT", 5)),
    ]


def test_rows_by_symbol_keep_the_order_in_which_they_came() -> None:
    rows = np.concatenate([trade_rows([7, 6], 1), trade_rows([9, 8], 0), trade_rows([5], 1)])
    order = trade_order(rows, ["ETHUSDT", "BTCUSDT"])
    assert rows["agg_trade_id"][order].tolist() == [7, 6, 5, 9, 8]


def test_prices_and_quantities_are_the_nearest_doubles_of_the_exact_values() -> None:
    """2**53 + 1 has no double; 0.1 and 64000.1 none that is exact."""
    exact = ["0.1", "64000.10", "9007199254740993", "900719925474099.3", "0.00000001"]
    rows = np.zeros(len(exact), dtype=TRADE_DTYPE)
    for row, text in zip(rows, exact, strict=True):
        digits = text.replace(".", "")
        row["price"], row["price_decimals"] = int(digits), len(text.partition(".")[2])
        row["quantity"] = 1
        row["quantity_ex_rpi"] = NO_VALUE
    table = trade_table(rows, ["BTCUSDT"], "rest")
    prices = table.column("price").to_pylist()
    assert prices == [float(Decimal(text)) for text in exact]
    assert [Decimal(repr(price)) for price in prices[:2]] == [Decimal("0.1"), Decimal("64000.1")]
    assert table.column("quantity_ex_rpi").null_count == len(exact)


def test_what_rest_does_not_say_is_null(paths: LakePaths) -> None:
    write(paths, trades([1], source="rest"))
    (row,) = read_all(paths)
    absent = ("quantity_ex_rpi", "event_time_ms", "receive_time_ns")
    assert [row[name] for name in absent] == [None] * 3
    assert row["source"] == "rest"


def test_tables_and_files_have_the_contracts_columns(paths: LakePaths) -> None:
    (trade_file,), (depth_file,) = write(paths, trades([1])), write(paths, depth([1]), "depth")
    assert read_stream_file(trade_file, "trades").schema.equals(TRADE_SCHEMA)
    assert read_stream_file(depth_file, "depth").schema.equals(DEPTH_SCHEMA)
    assert pq.read_schema(trade_file).names == TRADE_SCHEMA.names
    assert pq.read_schema(trade_file).field("symbol").type == pa.string()


def test_pandas_polars_and_duckdb_read_the_files_as_they_are(paths: LakePaths) -> None:
    (path,) = write(paths, depth([1, 2]), "depth")
    bids = [[[1.1, 1.1], [1.1, 1.1]], [[1.2, 1.2], [1.2, 1.2]]]
    assert pl.read_parquet(path)["bids"].to_list() == bids
    assert [[list(level) for level in book] for book in pd.read_parquet(path)["bids"]] == bids
    found = duckdb.read_parquet(str(path)).project("bids, symbol").fetchall()
    assert found == [(book, "BTCUSDT") for book in bids]


@pytest.mark.parametrize("symbol", [None, "BTCUSDT", "ETHUSDT", "XRPUSDT"])
@pytest.mark.parametrize("span", [(None, None), (10, None), (None, 20), (10, 20), (90, 99)])
def test_a_read_gives_the_rows_asked_for(
    paths: LakePaths, symbol: str | None, span: tuple[int | None, int | None]
) -> None:
    (path,) = write(paths, pa.concat_tables([trades(range(30)), trades(range(5, 25), "ETHUSDT")]))
    start, end = span
    found = read_stream_file(
        path,
        "trades",
        symbol=symbol,
        start_ms=None if start is None else START_MS + STEP_MS * start,
        end_ms=None if end is None else START_MS + STEP_MS * end,
        columns=("agg_trade_id", "symbol"),
    )
    stored = [(n, "BTCUSDT") for n in range(30)] + [(n, "ETHUSDT") for n in range(5, 25)]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (n, name)
        for n, name in stored
        if symbol in {None, name} and (start is None or n >= start) and (end is None or n < end)
    ]


def test_no_rows_make_no_file(paths: LakePaths) -> None:
    assert write(paths, trades([])) == []
    assert stream_dates(paths, "trades") == []
    assert stream_files(paths, "trades", "2024-07-18") == []


@pytest.mark.parametrize("harm", ["cut", "flipped", "another table"])
def test_a_damaged_file_is_named(paths: LakePaths, harm: str) -> None:
    (path,) = write(paths, trades(range(30)))
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[:-20])
    elif harm == "flipped":
        content[len(content) // 4] ^= 0xFF
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"symbol": ["BTCUSDT"]}), path)
    with pytest.raises(DamagedFile):
        read_stream_file(path, "trades")
