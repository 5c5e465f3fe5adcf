"""Stored trades, depth and archive months for the tests of reads and audits."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from domain.market import NO_VALUE, TRADE_DTYPE
from lake.gap_ledger import GapLedger
from lake.historical_files import AboutMonth, HistoryKind
from lake.month_build import ArchiveSource, Month, build_month
from lake.paths import LakePaths
from lake.stream_files import LevelColumn, depth_table, trade_table, write_stream_file

MONTH = "2024-07"
MONTH_MS = 1_719_792_000_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
SYMBOL = "BTCUSDT"


def trades(
    ids: Iterable[int], *, start_ms: int = MONTH_MS, every_ms: int = 1_000, first_id: int = 1
) -> np.ndarray:
    """``TRADE_DTYPE`` rows with these ids, ``every_ms`` apart from ``first_id`` at ``start_ms`` on."""
    numbers = np.array(list(ids), dtype=np.int64)
    rows = np.zeros(len(numbers), TRADE_DTYPE)
    rows["agg_trade_id"] = numbers
    rows["price"], rows["price_decimals"] = 600_000 + numbers * 7 % 101, 1
    rows["quantity"], rows["quantity_decimals"] = 1 + numbers * 13 % 997, 3
    rows["quantity_ex_rpi"] = rows["quantity"]
    rows["first_trade_id"] = numbers * 10
    rows["last_trade_id"] = numbers * 10 + numbers % 3
    rows["transact_time_ms"] = start_ms + (numbers - first_id) * every_ms
    rows["event_time_ms"] = rows["transact_time_ms"] + 5
    rows["receive_time_ns"] = (rows["event_time_ms"] + 10) * 1_000_000
    rows["is_buyer_maker"] = numbers % 2 == 0
    return rows


def store(
    paths: LakePaths, rows: np.ndarray, source: str = "stream", symbol: str = SYMBOL
) -> list[Path]:
    """One recorded (or repaired) file per date."""
    if source != "stream":
        rows = rows.copy()
        for name in ("event_time_ms", "receive_time_ns", "quantity_ex_rpi"):
            rows[name] = NO_VALUE
    table = trade_table(rows, [symbol], source)
    return write_stream_file(paths, "trades", table, metadata={})


def store_depth(
    paths: LakePaths, times_ms: Sequence[int], finals: Sequence[int], previous: Sequence[int]
) -> list[Path]:
    """Recorded snapshots of one level a side, received 20 ms after their event time."""
    count = len(times_ms)
    times = np.array(times_ms, dtype=np.int64)
    counts = np.ones(count, np.int64)
    bids, asks = (np.column_stack([np.full(count, p), counts]).ravel() for p in (59_999.9, 60_000))
    table = depth_table(
        np.zeros(count, np.int32),
        [SYMBOL],
        event_time_ms=times + 2,
        transact_time_ms=times,
        receive_time_ns=(times + 22) * 1_000_000,
        first_update_id=np.array(previous, dtype=np.int64) + 1,
        final_update_id=np.array(finals, dtype=np.int64),
        prev_final_update_id=np.array(previous, dtype=np.int64),
        bids=LevelColumn(counts, bids),
        asks=LevelColumn(counts, asks),
    )
    return write_stream_file(paths, "depth", table, metadata={})


def archive(
    paths: LakePaths,
    kind: HistoryKind,
    lines: Iterable[str],
    *,
    symbol: str = SYMBOL,
    month: str = MONTH,
    absent_days: Iterable[str] = (),
) -> AboutMonth:
    """A month's file, built from a zip like the archive's own."""
    work = paths.root / "work"
    work.mkdir(parents=True, exist_ok=True)
    zipped = work / f"{symbol}-{kind}-{month}.zip"
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr(zipped.with_suffix(".csv").name, "".join(line + "\n" for line in lines))
    source = ArchiveSource(path=zipped, period=month, url="test", sha256="0" * 64)
    about = build_month(
        paths,
        Month(symbol=symbol, kind=kind, month=month),
        [source],
        work=work,
        absent_days=absent_days,
    )
    zipped.unlink()
    return about


def trade_lines(rows: np.ndarray) -> list[str]:
    """The archive's CSV of trades, with its header."""
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
    return [
        header,
        *(
            f"{row['agg_trade_id']},{row['price'] / 10:.1f},{row['quantity'] / 1000:.3f},"
            f"{row['first_trade_id']},{row['last_trade_id']},{row['transact_time_ms']},"
            f"{'true' if row['is_buyer_maker'] else 'false'}"
            for row in rows
        ),
    ]


def kline_lines(rows: np.ndarray, minutes: Iterable[int]) -> list[str]:
    """The archive's CSV of the bars of these trades, at ``minutes`` after the month's start."""
    lines = ["open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"]
    lines[0] += "taker_buy_quote_volume,ignore"
    price, times = 60_000.0, rows["transact_time_ms"]
    for minute in minutes:
        start_ms = MONTH_MS + minute * MINUTE_MS
        begin, end = np.searchsorted(times, (start_ms, start_ms + MINUTE_MS)).tolist()
        if begin == end:
            flat = ",".join([f"{price:.1f}"] * 4)
            lines.append(f"{start_ms},{flat},0,{start_ms + MINUTE_MS - 1},0,0,0,0,0")
            continue
        part = rows[begin:end]
        prices, sizes = part["price"] / 10, part["quantity"]
        bars = (prices[0], prices.max(), prices.min(), prices[-1])
        price = bars[3]
        bought = sizes[~part["is_buyer_maker"]]
        quote = float((prices * sizes / 1000).sum())
        fills = int((part["last_trade_id"] - part["first_trade_id"] + 1).sum())
        lines.append(
            f"{start_ms},{','.join(f'{value:.1f}' for value in bars)},{sizes.sum() / 1000:.3f},"
            f"{start_ms + MINUTE_MS - 1},{quote:.5f},{fills},{bought.sum() / 1000:.3f},0,0"
        )
    return lines


def ledger_of(paths: LakePaths) -> GapLedger:
    """The recorder's."""
    return GapLedger(paths.gaps, "recorder")
