"""The archive's tables: trades of a period as the CSV, zip and CHECKSUM the exchange publishes.

Consumes past trades of a market → produces zip bytes. Layout as published: futures with a header,
spot without, with one more column, ``True``/``False`` and µs since 2025. The same trades give the
same bytes. https://github.com/binance/binance-public-data
"""

from __future__ import annotations

import calendar
import hashlib
import io
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec
import numpy as np

from domain.intervals import MINUTE_MS
from domain.market import Market
from simulator import candles
from simulator.frames import SymbolSpec, Tape, decimal_text
from simulator.vision_faults import VisionFaultKind

DAY_MS = 86_400_000
MICROSECONDS_SINCE_MS = calendar.timegm((2025, 1, 1, 0, 0, 0)) * 1_000
_AGG_TRADE_HEADER = (
    "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
)
_KLINE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore\n"
)
_WRITTEN_AT = (2024, 1, 1, 0, 0, 0)
_EDITION_LACKS = 50  # a first edition lacks every so many-th row


class PastTrades(Protocol):
    """Where an archive's trades come from; a ``MarketSource`` is one."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol listed."""

    def spec(self, symbol: str) -> SymbolSpec:
        """Tick and step of a listed symbol."""

    def between(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Trades with ``start_ms ≤ T < end_ms``."""

    def before(self, symbol: str, due_ns: int, limit: int) -> Tape:
        """The last ``limit`` trades that are due by ``due_ns``."""


class ArchiveName(msgspec.Struct, frozen=True):
    """What an archive is of. ``data`` is ``aggTrades`` or ``klines``, ``interval`` of klines."""

    data: str
    symbol: str
    period: str
    interval: str = ""

    @property
    def file_name(self) -> str:
        """Without extension: ``BTCUSDT-aggTrades-2024-07``."""
        return f"{self.symbol}-{self.interval or self.data}-{self.period}"

    def days_ms(self) -> range:
        """Starts of its days, UTC ms."""
        year, month, *day = (int(part) for part in self.period.split("-"))
        start_ms = calendar.timegm((year, month, day[0] if day else 1, 0, 0, 0)) * 1_000
        count = 1 if day else calendar.monthrange(year, month)[1]
        return range(start_ms, start_ms + count * DAY_MS, DAY_MS)


class Content(msgspec.Struct, frozen=True):
    """How an archive's content deviates from the clean one."""

    faults: frozenset[VisionFaultKind] = frozenset()
    lost_days: frozenset[int] = frozenset()  # of the month, from 1
    is_first_edition: bool = False


class ArchiveFile(msgspec.Struct, frozen=True):
    """One published zip. ``data`` is empty if there was no trade: nothing is published then."""

    data: bytes
    sha256: str


def make_archive(
    source: PastTrades, market: Market, name: ArchiveName, content: Content
) -> ArchiveFile:
    """Build one archive; a month takes as long as its trades take to print."""
    rows = _rows(source, market, name, content)
    first = next(rows, None)
    if first is None:
        return ArchiveFile(b"", "")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(f"{name.file_name}.csv", _WRITTEN_AT)
        member.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(member, "w", force_zip64=True) as file:
            if (market is Market.UM) != (VisionFaultKind.HEADER in content.faults):
                file.write(
                    (_AGG_TRADE_HEADER if name.data == "aggTrades" else _KLINE_HEADER).encode()
                )
            for part in _chained(first, rows):
                file.write("".join(part).encode())
    data = packed.getvalue()
    if VisionFaultKind.CUT_ARCHIVE in content.faults:
        data = data[: len(data) * 2 // 3]
    return ArchiveFile(data, hashlib.sha256(data).hexdigest())


def _chained(first: list[str], rest: Iterable[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rest


def _rows(
    source: PastTrades, market: Market, name: ArchiveName, content: Content
) -> Iterator[list[str]]:
    """Lines day by day; days without any are left out."""
    lines_of: Callable[[PastTrades, Market, ArchiveName, int], list[str]]
    lines_of = _agg_trade_lines if name.data == "aggTrades" else _kline_lines
    for day_ms in name.days_ms():
        day = (day_ms - name.days_ms()[0]) // DAY_MS + 1
        if day in content.lost_days:
            continue
        lines = lines_of(source, market, name, day_ms)
        if lines:
            yield _disturbed(lines, content, random.Random(f"{name.file_name}-{day}"))


def _disturbed(lines: list[str], content: Content, source: random.Random) -> list[str]:
    if content.is_first_edition:
        lines = [line for place, line in enumerate(lines) if place % _EDITION_LACKS]
    if VisionFaultKind.DOUBLED in content.faults:
        twice = source.sample(range(len(lines)), len(lines) // 5)
        lines = lines + [lines[place] for place in twice] + lines[: len(lines) // 3]
    if VisionFaultKind.SHUFFLED in content.faults:
        middle = len(lines) // 2
        tail = lines[middle:]
        source.shuffle(tail)
        lines = lines[:middle] + tail
    return lines


def _agg_trade_lines(
    source: PastTrades, market: Market, name: ArchiveName, day_ms: int
) -> list[str]:
    tape = source.between(name.symbol, day_ms, day_ms + DAY_MS)
    columns = ("agg_trade_id", "price", "price_decimals", "quantity", "quantity_decimals")
    others = ("first_trade_id", "last_trade_id", "transact_time_ms", "is_buyer_maker")
    is_spot = market is Market.SPOT
    unit = "000" if is_spot and day_ms >= MICROSECONDS_SINCE_MS else ""
    yes, no = ("True,True", "False,True") if is_spot else ("true", "false")
    return [
        f"{a},{decimal_text(p, pd)},{decimal_text(q, qd)},{f},{last},{at}{unit},"
        f"{yes if maker else no}\n"
        for a, p, pd, q, qd, f, last, at, maker in zip(
            *(tape.rows[column].tolist() for column in (*columns, *others)), strict=True
        )
    ]


def _kline_lines(source: PastTrades, market: Market, name: ArchiveName, day_ms: int) -> list[str]:
    """Candles of the whole day; silent ones repeat the last close, none come before the market."""
    spec = source.spec(name.symbol)
    minutes = candles.minute_rows(source.between(name.symbol, day_ms, day_ms + DAY_MS), spec)
    earlier = candles.minute_rows(source.before(name.symbol, day_ms * 1_000_000 - 1, 1), spec)
    rows = candles.kline_rows(_whole_day(minutes, earlier, day_ms), spec, name.interval)
    is_micro = market is Market.SPOT and day_ms >= MICROSECONDS_SINCE_MS
    lines = [row.strip("[]").replace('"', "") for row in rows]
    return [_in_microseconds(line) if is_micro else f"{line}\n" for line in lines]


def _whole_day(minutes: np.ndarray, earlier: np.ndarray, day_ms: int) -> np.ndarray:
    """With a silent first and last minute where they are missing: all between them follow."""
    last_ms = day_ms + DAY_MS - MINUTE_MS
    if len(earlier) and (not len(minutes) or minutes["open_time_ms"][0] > day_ms):
        minutes = np.concatenate((_silent(earlier[-1:], day_ms), minutes))
    if len(minutes) and minutes["open_time_ms"][-1] < last_ms:
        minutes = np.concatenate((minutes, _silent(minutes[-1:], last_ms)))
    return minutes


def _silent(before: np.ndarray, open_ms: int) -> np.ndarray:
    row = np.zeros(1, candles.MINUTE_DTYPE)
    row["open_time_ms"] = open_ms
    for price in ("open", "high", "low", "close"):
        row[price] = before["close"]
    return row


def _in_microseconds(line: str) -> str:
    parts = line.split(",")
    parts[0] += "000"
    parts[6] += "999"  # the close is the last µs of the candle
    return ",".join(parts) + "\n"
