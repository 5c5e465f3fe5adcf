"""One symbol's candles of one interval on disk, day by day: what is there, what is absent, adding.

Consumes fetched candles → produces daily files (see ``lake.kline_files``) whose metadata say where
the last rows came from and which candles the exchange does not have. Adding what is there already
changes no file. One writer per data folder; calls of one instance may come from several threads.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np
import structlog

from domain.market import Market
from ingestion.kline_gaps import KlineGap, expected_opens, gaps_of
from lake.atomic import write_atomic
from lake.kline_files import (
    RAW_COLUMNS,
    TIME_COLUMN,
    Columns,
    by_day,
    joined,
    raw_path,
    read_bars,
    read_summary,
    write_bars,
)
from lake.part_files import DamagedFile, date_of, set_aside
from lake.paths import DAY_MS, LakePaths

log = structlog.get_logger()


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Closed candles of some days, oldest first, and how they were asked for.

    Attributes:
        columns: ``RAW_COLUMNS``.
        absent: Open times the exchange was asked for and does not have.
        latency_ms: Of the slowest request.
        fetched_at_ms: Local time of the last reply.
        endpoint: Path without query.
    """

    columns: Columns
    absent: np.ndarray
    latency_ms: float
    fetched_at_ms: int
    endpoint: str


class DayFiles:
    """The daily files of one symbol and interval."""

    def __init__(self, paths: LakePaths, symbol: str, interval: str, market: Market) -> None:
        self._paths = paths
        self._symbol = symbol
        self._interval = interval
        self._market = market
        self._writing = threading.Lock()

    def add(self, fetched: Fetched) -> int:
        """Store candles and what is absent; returns how many candles are new.

        Raises:
            StorageError: The disk refused; days before it are written.
        """
        parts = dict(by_day(fetched.columns))
        absent: dict[str, list[int]] = {}
        for at in fetched.absent.tolist():
            absent.setdefault(date_of(at), []).append(at)
        with self._writing:
            return sum(
                self._add_day(date, parts.get(date), absent.get(date, []), fetched)
                for date in sorted({*parts, *absent})
            )

    def lacking(self, start_ms: int, end_ms: int) -> tuple[np.ndarray, np.ndarray]:
        """Open times in ``[start_ms, end_ms)`` without a stored candle.

        Returns:
            Those never asked for or not settled, and those the exchange does not have; int64 each.
        """
        missing, absent = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        opens = expected_opens(self._interval, start_ms, end_ms)
        edges = np.flatnonzero(np.diff(opens // DAY_MS)) + 1
        for of_day in np.split(opens, edges) if len(opens) else ():
            lacks, at_exchange = self._lacking_of(of_day)
            missing.append(lacks)
            absent.append(at_exchange)
        return np.concatenate(missing), np.concatenate(absent)

    def gaps(self, start_ms: int, end_ms: int) -> list[KlineGap]:
        """What is missing, and what the exchange does not have; sorted by time."""
        begin_ms = max(start_ms, self.first_bar_ms() or start_ms)
        missing, absent = self.lacking(begin_ms, end_ms)
        found = [
            *gaps_of(self._symbol, self._interval, missing, at_exchange=False),
            *gaps_of(self._symbol, self._interval, absent, at_exchange=True),
        ]
        return sorted(found, key=lambda gap: gap.start_ms)

    def first_bar_ms(self) -> int | None:
        """Open time of the listing's first candle; ``None`` while the exchange has not told."""
        return self._listings().get(self._interval, {}).get(self._symbol)

    def remember_first_bar(self, open_ms: int) -> None:
        """Keep the listing's first candle in ``raw/listings.json``."""
        with _LISTINGS:
            known = self._listings()
            known.setdefault(self._interval, {})[self._symbol] = open_ms
            content = msgspec.json.encode(known, order="sorted")
            write_atomic(self._paths.raw / "listings.json", content, overwrite=True)

    def _listings(self) -> dict[str, dict[str, int]]:
        try:
            content = (self._paths.raw / "listings.json").read_bytes()
            return msgspec.json.decode(content, type=dict[str, dict[str, int]])
        except (OSError, msgspec.DecodeError):
            return {}

    def _lacking_of(self, opens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``lacking`` of one day; a whole day is known by its row count, without its columns."""
        date = date_of(int(opens[0]))
        row_count, absent = self._summary(date)
        known_absent = np.intersect1d(opens, np.array(absent, np.int64))
        day_ms = int(opens[0]) // DAY_MS * DAY_MS
        if row_count + len(absent) == len(expected_opens(self._interval, day_ms, day_ms + DAY_MS)):
            return np.empty(0, np.int64), known_absent
        stored = self._read(date, (TIME_COLUMN,)) if row_count else None
        times = np.empty(0, np.int64) if stored is None else stored[TIME_COLUMN]
        return np.setdiff1d(np.setdiff1d(opens, times), known_absent), known_absent

    def _add_day(
        self, date: str, fresh: Columns | None, absent: list[int], fetched: Fetched
    ) -> int:
        was_absent = self._summary(date)[1]
        stored = self._read(date, RAW_COLUMNS)
        before = joined([], RAW_COLUMNS) if stored is None else stored
        merged = before if fresh is None else _merged(before, fresh)
        there = set(merged[TIME_COLUMN].tolist())
        now_absent = sorted({*was_absent, *absent} - there)
        is_same = stored is not None and now_absent == was_absent and _equal(before, merged)
        if not is_same:
            write_bars(
                self._path(date),
                merged,
                {
                    "source": f"binance-{self._market.value}-rest",
                    "latency_ms": f"{fetched.latency_ms:.3f}",
                    "fetched_at": str(fetched.fetched_at_ms),
                    "endpoint": fetched.endpoint,
                    "interval": self._interval,
                    "symbol": self._symbol,
                    "absent": msgspec.json.encode(now_absent).decode(),
                },
            )
        return len(merged[TIME_COLUMN]) - len(before[TIME_COLUMN])

    def _path(self, date: str) -> Path:
        return raw_path(self._paths, self._symbol, self._interval, date)

    def _read(self, date: str, names: tuple[str, ...]) -> Columns | None:
        try:
            return read_bars(self._path(date), names)
        except FileNotFoundError:
            return None
        except DamagedFile as damaged:
            set_aside(self._path(date).parent, damaged)
            return None

    def _summary(self, date: str) -> tuple[int, list[int]]:
        """Rows stored, and open times known to be absent; nothing if there is no sound file."""
        try:
            row_count, metadata = read_summary(self._path(date))
        except FileNotFoundError:
            return 0, []
        except DamagedFile as damaged:
            set_aside(self._path(date).parent, damaged)
            return 0, []
        try:
            absent = msgspec.json.decode(metadata.get("absent", "[]"), type=list[int])
        except msgspec.DecodeError:
            absent = []
        return row_count, sorted(absent)


_LISTINGS = threading.Lock()


def _merged(before: Columns, fresh: Columns) -> Columns:
    """Both, each open time once; the fresh candle counts."""
    both = joined([fresh, before], RAW_COLUMNS)
    _, first = np.unique(both[TIME_COLUMN], return_index=True)
    return {name: values[first] for name, values in both.items()}


def _equal(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in RAW_COLUMNS)
