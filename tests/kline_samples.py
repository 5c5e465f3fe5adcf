"""Candles of a made-up market, as the simulator's tables and as stored files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domain.intervals import INTERVAL_MS
from domain.market import Market
from ingestion.day_files import DayFiles, Fetched
from lake.kline_files import Columns
from lake.paths import LakePaths
from simulator.candle_table import CandleTable
from simulator.candles import MINUTE_DTYPE
from simulator.frames import SymbolSpec

MONDAY_MS = 1_719_792_000_000  # 2024-07-01, a Monday
DAY_MS = 86_400_000


def table_rows(
    count: int, interval: str, *, start_ms: int = MONDAY_MS, seed: int = 1
) -> np.ndarray:
    """A random walk around 60,000.00, volumes in thousandths; MINUTE_DTYPE."""
    source = np.random.default_rng(seed)
    rows = np.zeros(count, MINUTE_DTYPE)
    rows["open_time_ms"] = start_ms + np.arange(count) * INTERVAL_MS[interval]
    steps = source.normal(0.0, 3_000.0, count).astype(np.int64)
    rows["close"] = 6_000_000 + np.cumsum(steps)
    rows["open"] = rows["close"] - steps
    rows["high"] = np.maximum(rows["open"], rows["close"]) + source.integers(0, 2_000, count)
    rows["low"] = np.minimum(rows["open"], rows["close"]) - source.integers(0, 2_000, count)
    rows["volume"] = source.integers(1, 500_000, count)
    rows["taker_buy_volume"] = rows["volume"] * source.random(count)
    rows["fills"] = source.integers(1, 3_000, count)
    middle = (rows["high"] + rows["low"]) // 2
    for name, volume in (("quote", rows["volume"]), ("taker_quote", rows["taker_buy_volume"])):
        rows[f"{name}_high"], rows[f"{name}_low"] = np.divmod(middle * volume, 10**9)
    return rows


def spec_of(symbol: str) -> SymbolSpec:
    return SymbolSpec(
        symbol=symbol, price_decimals=2, tick_mantissa=1, quantity_decimals=3, step_mantissa=1
    )


def candle_table(
    symbols: tuple[str, ...], count: int, interval: str = "15m", *, start_ms: int = MONDAY_MS
) -> CandleTable:
    rows = table_rows(count, interval, start_ms=start_ms)
    return CandleTable({symbol: (rows, spec_of(symbol)) for symbol in symbols}, interval)


def columns_of_rows(rows: np.ndarray, interval: str) -> Columns:
    """Table rows as stored columns: the nearest doubles of the exact numbers."""
    quote = rows["quote_high"] * 10**9 + rows["quote_low"]
    taker_quote = rows["taker_quote_high"] * 10**9 + rows["taker_quote_low"]
    return {
        "open_time_ms": rows["open_time_ms"].copy(),
        **{name: rows[name] / 100 for name in ("open", "high", "low", "close")},
        "volume": rows["volume"] / 1_000,
        "close_time_ms": rows["open_time_ms"] + INTERVAL_MS[interval] - 1,
        "quote_volume": quote / 100_000,
        "trade_count": rows["fills"].copy(),
        "taker_buy_volume": rows["taker_buy_volume"] / 1_000,
        "taker_buy_quote_volume": taker_quote / 100_000,
    }


def bars(count: int, interval: str, *, start_ms: int = MONDAY_MS, seed: int = 1) -> Columns:
    return columns_of_rows(table_rows(count, interval, start_ms=start_ms, seed=seed), interval)


def store_bars(
    paths: LakePaths, symbol: str, interval: str, columns: Columns, absent: tuple[int, ...] = ()
) -> int:
    """As an ingestion would have written them."""
    files = DayFiles(paths, symbol, interval, Market.UM)
    return files.add(
        Fetched(
            columns=columns,
            absent=np.array(absent, np.int64),
            latency_ms=1.5,
            fetched_at_ms=MONDAY_MS,
            endpoint="/fapi/v1/klines",
        )
    )


def rows_where(columns: Columns, keep: np.ndarray) -> Columns:
    return {name: values[keep] for name, values in columns.items()}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: inode and bytes; an unchanged file keeps both."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
