"""Size and speed of stream files, beside ``pandas.to_parquet(compression="zstd")`` of the same rows.

Rows come from a recording (lines ``<receive ns> <combined frame>``, gzip), once for the size and repeated with
later times and ids for the speed. ``write``: decoded rows to a file, ours from columns (sorting, fsync and
rename included), the peer from a list of dicts. ``from_frames``: from payloads, the peer by ``json.loads``.
Without a recording: some minutes of the synthetic market.

``python -m benchmarks.bench_stream_size [RECORDING] [--smoke] [--json FILE] [--rows N] [--runs N]``
"""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.report import arguments, machine, publish, spread, versions
from binance_api.decode import decode_trades
from binance_api.decode_depth import decode_depth
from collectors.depth_levels import read_levels
from collectors.recorder_files import Batch, StreamWriter
from collectors.recorder_rows import Rows
from domain.market import Market
from lake.paths import LakePaths
from lake.stream_files import (
    TRADE_SCHEMA,
    depth_table,
    trade_order,
    trade_table,
    write_stream_file,
)
from simulator.synthetic import SyntheticMarket

_SYMBOLS = ["BTCUSDT", "ETHUSDT"]
_INDEX = {symbol: i for i, symbol in enumerate(_SYMBOLS)}
_SYNTHETIC_START_MS = 1_786_171_800_000


class Frames(msgspec.Struct):
    """Payloads and receive stamps."""

    trades: list[tuple[bytes, int]]
    depth: list[tuple[bytes, int]]


def frames_of(recording: Path | None, seconds: float) -> Frames:
    """A recording's frames, or the synthetic market's."""
    frames = Frames([], [])
    for payload, stamp in _lines(recording) if recording else _synthetic(seconds):
        (frames.trades if b"@aggTrade" in payload[:60] else frames.depth).append((payload, stamp))
    return frames


def _lines(recording: Path) -> Iterator[tuple[bytes, int]]:
    with gzip.open(recording, "rb") as lines:
        for line in lines:
            stamp, _, payload = line.rstrip().partition(b" ")
            yield payload, int(stamp)


def _synthetic(seconds: float) -> Iterator[tuple[bytes, int]]:
    market = SyntheticMarket(1, tuple(_SYMBOLS), start_ms=_SYNTHETIC_START_MS)
    end_ns = market.start_ns + int(seconds * 1e9)
    for frame in itertools.chain.from_iterable(market.chunks()):
        if frame.due_ns >= end_ns:
            return
        yield frame.combined, frame.due_ns


def later(rows: np.ndarray, count: int) -> np.ndarray:
    """At least ``count`` rows: the given ones again and again, with later times and ids."""
    rounds = -(-count // len(rows))
    repeated = np.concatenate([rows] * rounds)
    number = np.repeat(np.arange(rounds), len(rows))
    span_ms = int(np.ptp(rows["transact_time_ms"])) + 100
    for name in ("transact_time_ms", "event_time_ms"):
        repeated[name] += number * span_ms
    repeated["receive_time_ns"] += number * span_ms * 1_000_000
    for index in np.unique(rows["symbol_index"]).tolist():
        own = rows["symbol_index"] == index
        is_own = np.tile(own, rounds)
        for name in ("agg_trade_id", "first_trade_id", "last_trade_id"):
            repeated[name][is_own] += number[is_own] * (int(np.ptp(rows[name][own])) + 1)
    return repeated


def depth_rows(frames: list[tuple[bytes, int]]) -> Rows:
    """Frames as the recorder holds them."""
    payloads, stamps = [p for p, _ in frames], [n for _, n in frames]
    tops = decode_depth(payloads, stamps, _INDEX).tops
    return Rows([], tops, len(tops), sum(map(len, payloads)))


# --- one run of each, in seconds ------------------------------------------------------------


def write_trades(rows: np.ndarray, paths: LakePaths) -> None:
    order = trade_order(rows, _SYMBOLS)
    table = trade_table(rows, _SYMBOLS, "stream", order=order)
    write_stream_file(paths, "trades", table, metadata={})


def write_depth(columns: dict[str, Any], paths: LakePaths) -> None:
    write_stream_file(paths, "depth", depth_table(**columns), metadata={})


def write_frames(frames: Frames, paths: LakePaths) -> None:
    """All a flush does, decoding included."""
    payloads, stamps = [p for p, _ in frames.trades], [n for _, n in frames.trades]
    trades = decode_trades(payloads, stamps, _INDEX).rows
    depth = depth_rows(frames.depth)
    writer = StreamWriter(paths, _SYMBOLS, Market.UM)
    writer.write(Batch.of(1, Rows([trades], depth.tops, 0, 0)))


def pandas_write(records: list[dict[str, Any]], folder: Path) -> None:
    import pandas as pd  # noqa: PLC0415 - the peer

    pd.DataFrame(records).to_parquet(folder / "peer.parquet", compression="zstd")


def pandas_frames(frames: Frames, folder: Path) -> None:
    trades, depth = [], []
    for payload, stamp in frames.trades:
        data = json.loads(payload)["data"]
        trades.append(
            {
                "symbol": data["s"],
                "agg_trade_id": data["a"],
                "price": float(data["p"]),
                "quantity": float(data["q"]),
                "first_trade_id": data["f"],
                "last_trade_id": data["l"],
                "transact_time_ms": data["T"],
                "is_buyer_maker": data["m"],
                "event_time_ms": data["E"],
                "receive_time_ns": stamp,
            }
        )
    for payload, stamp in frames.depth:
        data = json.loads(payload)["data"]
        depth.append(
            {
                "symbol": data["s"],
                "event_time_ms": data["E"],
                "transact_time_ms": data["T"],
                "receive_time_ns": stamp,
                "first_update_id": data["U"],
                "final_update_id": data["u"],
                "prev_final_update_id": data["pu"],
                "bids": [[float(p), float(q)] for p, q in data["b"]],
                "asks": [[float(p), float(q)] for p, q in data["a"]],
            }
        )
    pandas_write(trades, folder)
    pandas_write(depth, folder)


def compare(
    count: int,
    runs: int,
    ours: Callable[[LakePaths], None],
    peer: Callable[[Path], None],
) -> dict[str, Any]:
    """Rows per second of both, in turn; the first run of each is not counted."""
    rates: dict[str, list[float]] = {"ours": [], "pandas": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = LakePaths.of(folder / "lake")  # a day's folder is there but for its first file
        for run in range(runs + 1):
            began = time.perf_counter()
            ours(paths)
            between = time.perf_counter()
            peer(folder)
            ended = time.perf_counter()
            if run:
                rates["ours"].append(count / (between - began))
                rates["pandas"].append(count / (ended - between))
        written = sum(path.stat().st_size for path in paths.raw.rglob("*.parquet")) / (runs + 1)
        sizes = {"ours": written, "pandas": (folder / "peer.parquet").stat().st_size}
    return {
        "rows": count,
        "bytes_per_row": {name: round(size / count, 2) for name, size in sizes.items()},
        "size_ratio": round(sizes["ours"] / sizes["pandas"], 3),
        "rows_per_s": {name: spread(values, 0) for name, values in rates.items()},
        "speed_ratio": round(
            statistics.median(rates["ours"]) / statistics.median(rates["pandas"]), 2
        ),
    }


def measure(frames: Frames, rows: int, runs: int) -> dict[str, Any]:
    """All comparisons."""
    payloads, stamps = [p for p, _ in frames.trades], [n for _, n in frames.trades]
    trades = decode_trades(payloads, stamps, _INDEX).rows
    names = [name for name in TRADE_SCHEMA.names if name != "source"]  # the peer has no such column
    columns = depth_columns(depth_rows(frames.depth))
    books = depth_table(**columns).to_pylist()

    def trades_in(count: int) -> dict[str, Any]:
        many = later(trades, count)
        records = trade_table(many, _SYMBOLS, "stream").select(names).to_pylist()
        return compare(
            len(many),
            runs,
            lambda paths: write_trades(many, paths),
            lambda folder: pandas_write(records, folder),
        )

    total = len(frames.trades) + len(frames.depth)
    return {
        "trades": trades_in(1),
        "trades_repeated": trades_in(rows),
        "depth": compare(
            len(books),
            runs,
            lambda paths: write_depth(columns, paths),
            lambda folder: pandas_write(books, folder),
        ),
        "from_frames": {
            name: value
            for name, value in compare(
                total,
                runs,
                lambda paths: write_frames(frames, paths),
                lambda folder: pandas_frames(frames, folder),
            ).items()
            if name in {"rows", "rows_per_s", "speed_ratio"}
        },
    }


def depth_columns(rows: Rows) -> dict[str, Any]:
    """What ``depth_table`` takes, in the order of the files, in which a flush reads the levels."""
    tops = sorted(rows.tops, key=lambda top: (top.symbol, top.transact_time_ms))
    levels = read_levels([top.payload for top in tops], Market.UM)
    integers = (
        *("event_time_ms", "transact_time_ms", "receive_time_ns"),
        *("first_update_id", "final_update_id", "prev_final_update_id"),
    )
    return {
        "symbol_index": np.array([_INDEX[top.symbol] for top in tops], np.int32),
        "symbols": _SYMBOLS,
        **{name: np.array([getattr(top, name) for top in tops], np.int64) for name in integers},
        "bids": levels.bids,
        "asks": levels.asks,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("recording", type=Path, nargs="?", help="of BTCUSDT and ETHUSDT futures")
    parser.add_argument("--rows", type=int, help="trades in trades_repeated (default 200,000)")
    parser.add_argument("--runs", type=int, help="of each (default 7)")
    given = parser.parse_args()
    rows = given.rows or (20_000 if given.smoke else 200_000)
    runs = given.runs or (1 if given.smoke else 7)
    frames = frames_of(given.recording, seconds=30.0 if given.smoke else 300.0)
    result = {
        "benchmark": "stream_size",
        "source": "recording" if given.recording else "synthetic",
        **measure(frames, rows, runs),
        "versions": versions(("numpy", "pyarrow", "pandas")),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
