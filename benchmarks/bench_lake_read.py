"""How many rows a second ``lake.read`` gives of a compacted day of trades, beside pandas.

A day of one symbol is written as the recorder does, in one file, and read from the page cache: all
columns, and the four that most work needs. ``pandas.read_parquet`` reads the same file, in turn. A
second case reads the day while the archive's month holds the same trades, so that every row is
there twice. Rates are rows a second, medians over the rounds.

``python -m benchmarks.bench_lake_read [--smoke] [--json FILE] [--rounds N] [--rows N]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.report import arguments, machine, publish, spread, versions
from domain.market import TRADE_DTYPE
from lake import read
from lake.historical_files import AGG_TRADE_SCHEMA, LAYOUTS, month_path
from lake.month_run import RunWriter
from lake.paths import LakePaths
from lake.stream_files import stream_files, trade_table, write_stream_file

SYMBOL = "BTCUSDT"
DATE = "2026-03-01"
START_MS = 1_772_323_200_000
FEW = ("transact_time_ms", "price", "quantity", "is_buyer_maker")


def day_of_trades(count: int, seed: int = 1) -> np.ndarray:
    """``TRADE_DTYPE`` rows of one day: a walking price, small sizes, times in order."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, TRADE_DTYPE)
    fills = rng.geometric(0.6, count)
    last = 8_000_000_000 + np.cumsum(fills)
    times = START_MS + np.sort(rng.integers(0, 86_400_000, count))
    event = times + rng.integers(1, 160, count)
    rows["agg_trade_id"] = 3_000_000_000 + np.arange(count)
    rows["price"] = 640_000 + np.cumsum(rng.integers(-2, 3, count))
    rows["price_decimals"], rows["quantity_decimals"] = 1, 3
    rows["quantity"] = 1 + rng.exponential(60, count).astype(np.int64)
    rows["quantity_ex_rpi"] = rows["quantity"]
    rows["first_trade_id"], rows["last_trade_id"] = last - fills + 1, last
    rows["transact_time_ms"], rows["event_time_ms"] = times, event
    rows["is_buyer_maker"] = rng.random(count) < 0.5
    rows["receive_time_ns"] = (event + 3) * 1_000_000 + rng.integers(0, 20_000_000, count)
    return rows


def write_day(folder: Path, rows: np.ndarray) -> Path:
    """One file of the day, as after compaction."""
    paths = LakePaths.of(folder)
    write_stream_file(paths, "trades", trade_table(rows, [SYMBOL], "stream"), metadata={})
    (path,) = stream_files(paths, "trades", DATE)
    return path


def write_month(folder: Path, rows: np.ndarray) -> None:
    """The same trades once more, in the archive's month."""
    table = trade_table(rows, [SYMBOL], "stream").select(AGG_TRADE_SCHEMA.names)
    table = table.cast(AGG_TRADE_SCHEMA)
    path = month_path(LakePaths.of(folder), SYMBOL, "aggTrades", DATE[:7])
    with RunWriter(path, LAYOUTS["aggTrades"]) as run:
        run.append(table)


def once(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    found = work()
    took = time.perf_counter() - began
    del found
    return took


def compare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = given.rows or (150_000 if given.smoke else 1_500_000)
    rounds = given.rounds or (3 if given.smoke else 11)
    path = write_day(folder, day_of_trades(count))
    day = (SYMBOL, DATE, START_MS + 86_400_000)
    cases: dict[str, Callable[[], Any]] = {
        "lake.read, all columns": lambda: read("trades", *day, data_dir=folder),
        "pandas, all columns": lambda: pd.read_parquet(path),
        "lake.read, 4 columns": lambda: read("trades", *day, data_dir=folder, columns=FEW),
        "pandas, 4 columns": lambda: pd.read_parquet(path, columns=list(FEW)),
        "lake.read as pandas, all columns": lambda: read(
            "trades", *day, data_dir=folder, as_="pandas"
        ),
    }
    both = folder / "both"
    write_day(both, day_of_trades(count))
    write_month(both, day_of_trades(count))
    cases["lake.read, every row in the archive too"] = lambda: read("trades", *day, data_dir=both)
    took: dict[str, list[float]] = {name: [] for name in cases}
    for name, work in cases.items():  # the page cache and the libraries are warm from here on
        if len(work()) != count:
            raise RuntimeError(f"{name}: not all rows")
    for _ in range(rounds):
        for name, work in cases.items():
            took[name].append(once(work))
    rates = {name: [count / seconds for seconds in runs] for name, runs in took.items()}

    def ratio(columns: str) -> float:
        ours, theirs = (statistics.median(rates[f"{who}, {columns}"]) for who in _WHO)
        return round(ours / theirs, 2)

    return {
        "benchmark": "lake_read",
        "rows": count,
        "file_bytes_per_row": round(path.stat().st_size / count, 2),
        "rounds": rounds,
        "rows_per_s": {name: spread(values, 0) for name, values in rates.items()},
        "lake_over_pandas": {c: ratio(c) for c in ("all columns", "4 columns")},
        "versions": {**versions(), **versions(("pandas",))},
        "arrow_threads": pa.cpu_count(),
        "machine": machine(),
    }


_WHO = ("lake.read", "pandas")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="reads of each case, default 11")
    parser.add_argument("--rows", type=int, help="trades of the day, default 1.5 million")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish(compare(given, Path(folder)), given)


if __name__ == "__main__":
    main()
