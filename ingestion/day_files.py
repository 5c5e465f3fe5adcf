"""One symbol's candles of one interval on disk, day by day: what is there, what is absent, adding.

Consumes fetched candles → produces daily files (see ``lake.kline_files``) whose metadata say where
the last rows came from and which candles the exchange does not have. Adding what is there already
changes no file. One writer per data folder; calls of one instance may come from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import structlog

from domain.market import Kline, Market
from ingestion.kline_gaps import KlineGap, expected_opens, runs
from lake.atomic import write_atomic
from lake.kline_files import (
    RAW_COLUMNS,
    TIME_COLUMN,
    Columns,
    by_day,
    joined,
    raw_path,
    read_bars,
    read_metadata,
    write_bars,
)
from lake.part_files import DamagedFile, date_of, set_aside
from lake.paths import DAY_MS, LakePaths

log = structlog.get_logger()


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Closed candles of one request, oldest first, and the open times it should have had."""

    bars: tuple[Kline, ...]
    absent: tuple[int, ...]
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
        columns = columns_of(fetched.bars)
        parts = dict(by_day(columns))
        absent: dict[str, list[int]] = {}
        for at in fetched.absent:
            absent.setdefault(date_of(at), []).append(at)
        with self._writing:
            return sum(
                self._add_day(date, parts.get(date), absent.get(date, []), fetched)
                for date in sorted({*parts, *absent})
            )

    def missing(self, start_ms: int, end_ms: int) -> np.ndarray:
        """Open times in ``[start_ms, end_ms)`` that are neither stored nor absent; int64[n]."""
        opens = expected_opens(self._interval, start_ms, end_ms)
        known = [np.empty(0, np.int64)]
        for date in self._dates(opens):
            known += [self._stored(date), np.array(self._absent(date), np.int64)]
        return np.setdiff1d(opens, np.concatenate(known), assume_unique=False)

    def gaps(self, start_ms: int, end_ms: int) -> list[KlineGap]:
        """What is missing, and what the exchange does not have; sorted by time."""
        begin_ms = max(start_ms, self.first_bar_ms() or start_ms)
        opens = expected_opens(self._interval, begin_ms, end_ms)
        absent = [at for date in self._dates(opens) for at in self._absent(date)]
        kinds = (
            (self.missing(begin_ms, end_ms), False),
            (np.array([at for at in sorted(absent) if begin_ms <= at < end_ms], np.int64), True),
        )
        found = [
            KlineGap(self._symbol, self._interval, start, end, count, at_exchange)
            for times, at_exchange in kinds
            for start, end, count in runs(times, self._interval)
        ]
        return sorted(found, key=lambda gap: gap.start_ms)

    def forget_absent(self, start_ms: int, end_ms: int) -> None:
        """Let candles the exchange did not have be asked for again."""
        opens = expected_opens(self._interval, start_ms, end_ms)
        with self._writing:
            for date in self._dates(opens):
                left = [at for at in self._absent(date) if not start_ms <= at < end_ms]
                metadata = read_metadata(self._path(date))
                stored = self._read(date)
                if metadata and stored is not None:
                    metadata["absent"] = msgspec.json.encode(left).decode()
                    write_bars(self._path(date), stored, _own(metadata))

    def first_bar_ms(self) -> int | None:
        """Open time of the listing's first candle; ``None`` while it was never asked for."""
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

    def _add_day(
        self, date: str, fresh: Columns | None, absent: list[int], fetched: Fetched
    ) -> int:
        stored = self._read(date)
        before = joined([], RAW_COLUMNS) if stored is None else stored
        merged = before if fresh is None else _merged(before, fresh)
        was_absent = self._absent(date)
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

    def _dates(self, opens: np.ndarray) -> Iterator[str]:
        return (date_of(int(day) * DAY_MS) for day in np.unique(opens // DAY_MS))

    def _read(self, date: str) -> Columns | None:
        try:
            return read_bars(self._path(date), RAW_COLUMNS)
        except FileNotFoundError:
            return None
        except DamagedFile as damaged:
            set_aside(self._path(date).parent, damaged)
            return None

    def _stored(self, date: str) -> np.ndarray:
        found = self._read(date)
        return np.empty(0, np.int64) if found is None else found[TIME_COLUMN]

    def _absent(self, date: str) -> list[int]:
        text = read_metadata(self._path(date)).get("absent", "[]")
        try:
            return sorted(msgspec.json.decode(text, type=list[int]))
        except msgspec.DecodeError:
            return []


_LISTINGS = threading.Lock()


def columns_of(bars: tuple[Kline, ...]) -> Columns:
    """Candles as ``RAW_COLUMNS``: each number the nearest double of the exact one."""
    found: Columns = {}
    for name in RAW_COLUMNS:
        values = [getattr(bar, name) for bar in bars]
        is_integer = name.endswith("_ms") or name == "trade_count"
        found[name] = np.array(values, np.int64 if is_integer else np.float64)
    return found


def _merged(before: Columns, fresh: Columns) -> Columns:
    """Both, each open time once; the fresh candle counts."""
    both = joined([fresh, before], RAW_COLUMNS)
    _, first = np.unique(both[TIME_COLUMN], return_index=True)
    return {name: values[first] for name, values in both.items()}


def _equal(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in RAW_COLUMNS)


def _own(metadata: dict[str, str]) -> dict[str, str]:
    """Without what the Parquet writer adds itself."""
    return {key: text for key, text in metadata.items() if not key.startswith("ARROW:")}
