"""``DataCuration``: ingested klines → curated ones, only where something changed.

Consumes ``raw/<interval>/…`` → produces ``curated/<interval>_curated_<YYYYMMDD>.parquet`` with all
symbols. A curated file has a mark of the raw files it was made from; what is missing, new or changed
is computed, with the warm-up before it, and every day after it.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import structlog

from domain.intervals import INTERVAL_MS
from ingestion.curated_bars import CURATION_VERSION, CurationSettings, curate
from lake.kline_files import (
    RAW_COLUMNS,
    TIME_COLUMN,
    Columns,
    by_day,
    curated_path,
    joined,
    raw_dates,
    raw_path,
    read_bars,
    read_metadata,
    read_raw,
    read_summary,
    write_bars,
)
from lake.lock import FolderLock
from lake.part_files import DamagedFile, date_start_ms, set_aside
from lake.paths import DAY_MS, LakePaths

if TYPE_CHECKING:
    from config import Settings

log = structlog.get_logger()

CHUNK_DAYS: Final = 180  # held in memory at once, of all symbols


class CurationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one call did.

    Attributes:
        interval: Of the bars.
        symbols: Whose raw bars were found.
        rows: Rows written.
        days: Files written.
        rejected: Raw bars left out, by reason.
        elapsed_s: Wall time.
    """

    interval: str
    symbols: tuple[str, ...]
    rows: int
    days: int
    rejected: dict[str, int]
    elapsed_s: float

    def __str__(self) -> str:
        """One line for people."""
        if not self.symbols:
            return f"{self.interval}: no ingested bars; run: python main.py ingest --interval {self.interval}"
        text = (
            f"{self.interval}: {self.rows} rows in {self.days} files of {', '.join(self.symbols)}"
        )
        text += f", {self.elapsed_s:.1f} s"
        if self.rejected:
            reasons = ", ".join(f"{count} {name}" for name, count in self.rejected.items())
            text += f"; left out: {reasons}"
        return text


class DataCuration:
    """Curates the ingested klines of a data folder.

    Args:
        settings: Where the files lie; ``None``: as the environment and ``.env`` say.
        curation: Look-backs.
    """

    def __init__(
        self, settings: Settings | None = None, curation: CurationSettings | None = None
    ) -> None:
        if settings is None:
            from config import Settings  # noqa: PLC0415 - a script's default, not a part's way in

            settings = Settings()
        self._paths: LakePaths = settings.paths
        self._settings = curation or CurationSettings()

    def curate_timeframe(
        self,
        interval: str,
        *,
        rebuild: bool = False,
        on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> CurationReport:
        """Bring the curated bars of one interval up to date.

        Args:
            interval: Such as ``1h``.
            rebuild: Compute everything again.
            on_progress: Told how many of how many days are done.

        Raises:
            ValueError: The exchange has no such interval.
            FolderInUse: Another process curates this data folder.
            StorageError: The disk refused; what was written stands.
        """
        if interval not in INTERVAL_MS:
            raise ValueError(f"unknown interval {interval!r}; there are {', '.join(INTERVAL_MS)}")
        begun = time.perf_counter()
        with FolderLock(self._paths.root, "curation"):
            run = _Run(self._paths, interval, self._settings)
            stale = run.stale_from(rebuild=rebuild)
            for done, of in run.chunks(stale):
                on_progress(done, of)
        report = CurationReport(
            interval=interval,
            symbols=tuple(run.dates),
            rows=run.rows,
            days=run.days,
            rejected=run.rejected,
            elapsed_s=round(time.perf_counter() - begun, 3),
        )
        log.info("curation.done", **msgspec.to_builtins(report))
        return report


class _Run:
    """One call: state that is carried from chunk to chunk."""

    def __init__(self, paths: LakePaths, interval: str, settings: CurationSettings) -> None:
        self._paths = paths
        self._interval = interval
        self._settings = settings
        self._atr: dict[str, float] = {}
        self._marks: dict[tuple[str, str], str] = {}
        self.dates = raw_dates(paths, interval)
        self.rows = 0
        self.days = 0
        self.rejected: dict[str, int] = {}

    def stale_from(self, *, rebuild: bool) -> dict[str, str]:
        """Symbol → the first date that has to be curated."""
        made_from = _LazySources(self._paths, self._interval, self._settings)
        found = {}
        for symbol, dates in self.dates.items():
            mark = ""
            for date in dates:
                mark = self._marks[symbol, date] = self._mark(symbol, date, mark)
                if symbol not in found and (rebuild or made_from(date).get(symbol) != mark):
                    found[symbol] = date
        return found

    def chunks(self, stale: dict[str, str]) -> Iterator[tuple[int, int]]:
        """Curate chunk by chunk; yields days done and days in all."""
        wanted = {s: [d for d in self.dates[s] if d >= first] for s, first in stale.items()}
        days = sorted({date for dates in wanted.values() for date in dates})
        done = 0
        for part in itertools.batched(days, CHUNK_DAYS):
            self._curate(wanted, part)
            done += len(part)
            yield done, len(days)

    def _curate(self, wanted: dict[str, list[str]], days: Sequence[str]) -> None:
        fresh: dict[str, dict[str, Columns]] = {}
        for symbol, dates in wanted.items():
            mine = [date for date in dates if days[0] <= date <= days[-1]]
            if not mine:
                continue
            columns = self._bars(symbol, mine)
            by_date = dict(by_day(columns))
            nothing = {name: values[:0] for name, values in columns.items()}
            for date in mine:  # a day without bars is noted as well, or it would stay stale
                fresh.setdefault(date, {})[symbol] = by_date.get(date, nothing)
        for date in days:
            self._write(date, fresh.get(date, {}))

    def _bars(self, symbol: str, dates: Sequence[str]) -> Columns:
        start_ms = date_start_ms(dates[0])
        end_ms = date_start_ms(dates[-1]) + DAY_MS
        before = self._atr_before(symbol, dates[0])
        from_ms = date_start_ms(self.dates[symbol][0])
        if before is not None:
            from_ms = self._warm_up_from_ms(symbol, dates[0])
        raw, damaged = read_raw(self._paths, symbol, self._interval, from_ms, end_ms)
        for file in damaged:  # out of the way: the next ingestion asks for it again
            set_aside(file.path.parent, file)
        columns, rejected = curate(raw, self._interval, start_ms, self._settings, atr_before=before)
        for reason, count in rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
            log.warning("curation.rejected", symbol=symbol, reason=reason, count=count)
        if len(columns["atr"]):
            self._atr[symbol] = float(columns["atr"][-1])
        return columns

    def _atr_before(self, symbol: str, date: str) -> float | None:
        """ATR at the end of the last curated day before ``date``; ``None`` at the series' beginning."""
        if symbol in self._atr:
            return self._atr[symbol] if not math.isnan(self._atr[symbol]) else None
        last, row_count = next(self._earlier(symbol, date), ("", 0))
        if not row_count:
            return None
        try:
            found = read_bars(curated_path(self._paths, self._interval, last), ["symbol", "atr"])
        except (FileNotFoundError, DamagedFile):
            return None
        values = found["atr"][found["symbol"] == symbol]
        return float(values[-1]) if len(values) and not math.isnan(values[-1]) else None

    def _warm_up_from_ms(self, symbol: str, date: str) -> int:
        """Start of the first day that the bars from ``date`` on look back to."""
        bars, stretch_ms = self._settings.warm_up(self._interval)
        start_ms = date_start_ms(date)
        from_ms, found = start_ms, 0
        for earlier, row_count in self._earlier(symbol, date):
            if found >= bars and from_ms <= start_ms - stretch_ms:
                break
            from_ms, found = date_start_ms(earlier), found + row_count
        return from_ms

    def _earlier(self, symbol: str, date: str) -> Iterator[tuple[str, int]]:
        """Dates before ``date`` that have raw bars, newest first, and how many."""
        dates = self.dates[symbol]
        for earlier in reversed(dates[: bisect.bisect_left(dates, date)]):
            try:
                row_count, _ = read_summary(raw_path(self._paths, symbol, self._interval, earlier))
            except (FileNotFoundError, DamagedFile):
                continue
            if row_count:
                yield earlier, row_count

    def _write(self, date: str, fresh: dict[str, Columns]) -> None:
        """One day's file: the fresh symbols, and what it holds of the others."""
        path = curated_path(self._paths, self._interval, date)
        about = _sources(path, self._settings)
        kept = self._kept(path, about, set(fresh)) if about else {}
        parts = {**kept, **fresh}
        if not parts:
            return
        rows: dict[str, np.ndarray] = {
            "symbol": np.concatenate(
                [np.full(len(p[TIME_COLUMN]), s, dtype=object) for s, p in sorted(parts.items())]
            )
        }
        rows |= joined([parts[symbol] for symbol in sorted(parts)], list(parts[min(parts)]))
        sources = {s: mark for s, mark in about.items() if s in kept}
        sources |= {s: self._marks[s, date] for s in fresh}
        write_bars(
            path,
            rows,
            {
                "interval": self._interval,
                "curation": _described(self._settings),
                "sources": msgspec.json.encode(sources).decode(),
            },
        )
        self.rows += sum(len(part[TIME_COLUMN]) for part in fresh.values())
        self.days += 1

    def _kept(self, path: Path, known: Iterable[str], replaced: set[str]) -> dict[str, Columns]:
        names = ["symbol", *CURATED_COLUMNS]
        try:
            stored = read_bars(path, names)
        except (FileNotFoundError, DamagedFile):
            return {}
        symbols = stored.pop("symbol")
        return {
            symbol: {name: values[symbols == symbol] for name, values in stored.items()}
            for symbol in known
            if symbol not in replaced and symbol in self.dates
        }

    def _mark(self, symbol: str, date: str, before: str) -> str:
        """What a day was made from: its raw file, written anew whenever it changes, and all before it.

        So that a curation that was cut short leaves the days it did not reach stale.
        """
        try:
            status = raw_path(self._paths, symbol, self._interval, date).stat()
        except FileNotFoundError:  # removed just now
            return before
        text = f"{before} {date} {status.st_size} {status.st_mtime_ns}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _LazySources:
    """What the curated files of some dates were made from, each read once."""

    def __init__(self, paths: LakePaths, interval: str, settings: CurationSettings) -> None:
        self._paths, self._interval, self._settings = paths, interval, settings
        self._found: dict[str, dict[str, str]] = {}

    def __call__(self, date: str) -> dict[str, str]:
        if date not in self._found:
            path = curated_path(self._paths, self._interval, date)
            self._found[date] = _sources(path, self._settings)
        return self._found[date]


def _sources(path: Path, settings: CurationSettings) -> dict[str, str]:
    """Symbol → mark of its raw files; empty if the file is none of this version and look-backs."""
    metadata = read_metadata(path)
    if metadata.get("curation") != _described(settings):
        return {}
    try:
        return msgspec.json.decode(metadata.get("sources", "{}"), type=dict[str, str])
    except msgspec.DecodeError:
        return {}


def _described(settings: CurationSettings) -> str:
    values = msgspec.to_builtins(settings) | {"version": CURATION_VERSION}
    return msgspec.json.encode(values, order="sorted").decode()


def _curated_columns() -> tuple[str, ...]:
    """Names of the columns besides ``symbol``, as ``curate`` gives them."""
    nothing = joined([], RAW_COLUMNS)
    return tuple(curate(nothing, "1h", 0, CurationSettings())[0])


CURATED_COLUMNS: Final = _curated_columns()
