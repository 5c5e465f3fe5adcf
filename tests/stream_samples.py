"""Trades and books for the tests of stream files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from domain.market import NO_VALUE, TRADE_DTYPE
from lake.paths import LakePaths
from lake.stream_files import (
    Kind,
    LevelColumn,
    depth_table,
    read_stream_file,
    stream_dates,
    stream_files,
    trade_table,
    write_stream_file,
)

START_MS = 1_721_347_200_000 - 60_000  # 2024-07-18 23:59:00 UTC
STEP_MS = 1_000  # between trades: id 60 is the first one of the 19th
OLD_DATE, NEW_DATE = "2024-07-18", "2024-07-19"


def trade_rows(ids: Iterable[int], symbol_index: int = 0, *, streamed: bool = True) -> np.ndarray:
    """Trade ``n`` costs n/10, has quantity n/1000 and happens ``n`` steps after the start."""
    numbers = np.array(list(ids), dtype=np.int64)
    rows = np.zeros(len(numbers), dtype=TRADE_DTYPE)
    rows["symbol_index"] = symbol_index
    rows["agg_trade_id"] = rows["price"] = rows["quantity"] = numbers
    rows["price_decimals"], rows["quantity_decimals"] = 1, 3
    rows["first_trade_id"] = rows["last_trade_id"] = 2 * numbers
    rows["transact_time_ms"] = START_MS + STEP_MS * numbers
    rows["is_buyer_maker"] = numbers % 2 == 0
    rows["quantity_ex_rpi"] = NO_VALUE
    rows["event_time_ms"] = rows["transact_time_ms"] + 50 if streamed else NO_VALUE
    rows["receive_time_ns"] = rows["transact_time_ms"] * 1_000_000 if streamed else NO_VALUE
    return rows


def trades(ids: Iterable[int], symbol: str = "BTCUSDT", source: str = "stream") -> pa.Table:
    return trade_table(trade_rows(ids, streamed=source == "stream"), [symbol], source)


def depth(numbers: Iterable[int], symbol: str = "BTCUSDT") -> pa.Table:
    n = np.array(list(numbers), dtype=np.int64)
    levels = LevelColumn(
        np.full(len(n), 2, dtype=np.int64), np.repeat(n, 4).astype(np.float64) / 10 + 1
    )
    return depth_table(
        np.zeros(len(n), dtype=np.int32),
        [symbol],
        event_time_ms=START_MS + STEP_MS * n + 5,
        transact_time_ms=START_MS + STEP_MS * n,
        receive_time_ns=(START_MS + STEP_MS * n) * 1_000_000,
        first_update_id=10 * n,
        final_update_id=10 * n + 9,
        prev_final_update_id=10 * n - 1,
        bids=levels,
        asks=levels,
    )


def write(paths: LakePaths, table: pa.Table, kind: Kind = "trades", **options) -> list[Path]:
    return write_stream_file(paths, kind, table, metadata={}, **options)


def read_all(paths: LakePaths, kind: Kind = "trades") -> list[dict]:
    """Every row that readers get, as it is stored: duplicates would show."""
    tables = [
        read_stream_file(path, kind)
        for date in stream_dates(paths, kind)
        for path in stream_files(paths, kind, date)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    key = ("symbol", "agg_trade_id") if kind == "trades" else ("symbol", "final_update_id")
    return sorted(rows, key=lambda row: tuple(row[name] for name in key))


def stored_ids(paths: LakePaths, symbol: str = "BTCUSDT") -> list[int]:
    return [row["agg_trade_id"] for row in read_all(paths) if row["symbol"] == symbol]


def sources(paths: LakePaths, symbol: str = "BTCUSDT") -> dict[int, str]:
    rows = [row for row in read_all(paths) if row["symbol"] == symbol]
    return {row["agg_trade_id"]: row["source"] for row in rows}
