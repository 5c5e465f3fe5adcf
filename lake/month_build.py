"""One month's file from its archives: parse, sort, describe, publish.

Consumes verified zips, and perhaps the file there is already → produces
``raw/historical/SYMBOL/{klines,aggTrades}_YYYY-MM.parquet``, whole or as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from lake.archive_csv import BytesRead, UnreadableArchive, agg_trade_batches, kline_batches
from lake.atomic import StepHook, no_hook, publish_file
from lake.columns import numpy_of
from lake.historical_files import (
    ABOUT_KEY,
    LAYOUTS,
    AboutMonth,
    ArchivePart,
    HistoryKind,
    KindLayout,
    about_month,
    days_of,
    month_bounds_ms,
    month_path,
)
from lake.month_run import RunWriter
from lake.month_sort import MonthSorter
from lake.paths import DAY_MS, LakePaths

_BATCHES: Final = {"aggTrades": agg_trade_batches, "klines": kline_batches}


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol, kind and month (``YYYY-MM``)."""

    symbol: str
    kind: HistoryKind
    month: str

    @property
    def name(self) -> str:
        """``BTCUSDT aggTrades 2024-07``."""
        return f"{self.symbol} {self.kind} {self.month}"


class ArchiveSource(msgspec.Struct, frozen=True, kw_only=True):
    """A verified zip on disk and where it came from; ``period`` is a month or a day."""

    path: Path
    period: str
    url: str
    sha256: str


def build_month(
    paths: LakePaths,
    month: Month,
    sources: Sequence[ArchiveSource],
    *,
    work: Path,
    base: AboutMonth | None = None,
    absent_days: Iterable[str] = (),
    on_read: BytesRead | None = None,
    check: Callable[[], None] = lambda: None,
    hook: StepHook = no_hook,
) -> AboutMonth:
    """Write a month's file; blocks for seconds to minutes.

    Memory does not grow with the month: 100 million rows need some 300 MiB.

    Args:
        paths: The tree.
        month: What the file holds.
        sources: The archives whose rows go in, the more trustworthy first.
        work: Folder for working files, on the same filesystem.
        base: What the present file says of itself, if its rows are to be kept.
        absent_days: Days the archive does not have, for good.
        on_read: See ``lake.archive_csv.BytesRead``.
        check: Called between batches; what it raises ends the work, and nothing has changed.
        hook: See ``lake.atomic.StepHook``.

    Raises:
        UnreadableArchive: One of the archives is damaged or of something else.
        DamagedFile: The present file is.
        StorageError: The disk refused.
    """
    layout = LAYOUTS[month.kind]
    target = month_path(paths, month.symbol, month.kind, month.month)
    name = work / f"{month.symbol}-{month.kind}-{month.month}"
    with MonthSorter(name, layout, target if base is not None else None) as sorter:
        parts = [_add(sorter, month, source, on_read, check) for source in sources]
        run = sorter.sorted_run(check)
        with run:
            about = _describe(run, month, base, parts, sorter, set(absent_days))
            run.describe({ABOUT_KEY.decode(): msgspec.json.encode(about).decode(), **_plain(about)})
        about_month(run.path)  # what cannot be read, or lacks rows, must not become visible
        publish_file(run.path, target, hook=hook)
    return about


def _add(
    sorter: MonthSorter,
    month: Month,
    source: ArchiveSource,
    on_read: BytesRead | None,
    check: Callable[[], None],
) -> ArchivePart:
    layout = LAYOUTS[month.kind]
    row_count = 0
    for batch in _BATCHES[month.kind](source.path, on_read):
        check()
        _check_times(batch, month, layout, source)
        sorter.add(batch)
        row_count += batch.num_rows
    return ArchivePart(
        period=source.period, url=source.url, sha256=source.sha256, row_count=row_count
    )


def _check_times(
    batch: pa.RecordBatch, month: Month, layout: KindLayout, source: ArchiveSource
) -> None:
    """Rows near the month's ends may be a neighbour's; others show that this is another archive."""
    times = numpy_of(batch.column(layout.time_column))
    start_ms, end_ms = month_bounds_ms(month.month)
    if len(times) and (times.min() < start_ms - DAY_MS or times.max() >= end_ms + DAY_MS):
        raise UnreadableArchive(source.path, f"holds rows of another time than {month.month}")


def _describe(
    run: RunWriter,
    month: Month,
    base: AboutMonth | None,
    parts: list[ArchivePart],
    sorter: MonthSorter,
    absent_days: set[str],
) -> AboutMonth:
    kept = () if base is None else base.parts
    every = (*kept, *parts)
    worked_in = {part.period for part in every}
    # Without the monthly archive only what was worked in is known.
    found = run.continuity.doubtful_days(month.month) if month.month in worked_in else None
    doubtful = days_of(month.month) if found is None else found
    doubtful = [day for day in doubtful if day not in worked_in]
    continuity = run.continuity
    disordered = sorter.late_count - sorter.duplicate_count if base is None else 0
    return AboutMonth(
        symbol=month.symbol,
        kind=month.kind,
        month=month.month,
        parts=every,
        row_count=continuity.row_count,
        first_key=continuity.first_key,
        last_key=continuity.last_key,
        duplicate_count=base.duplicate_count if base else sorter.duplicate_count,
        conflict_count=sorter.conflict_count + (base.conflict_count if base else 0),
        disordered_count=base.disordered_count if base else disordered,
        missing_count=continuity.missing_count,
        doubtful_days=tuple(day for day in doubtful if day not in absent_days),
        absent_days=tuple(day for day in doubtful if day in absent_days),
        is_complete=set(doubtful) <= absent_days,
    )


def _plain(about: AboutMonth) -> dict[str, str]:
    """The same for people and other programs: one line per archive."""
    return {
        "source": "\n".join(part.url for part in about.parts),
        "checksum": "\n".join(f"{part.sha256}  {part.url.rsplit('/')[-1]}" for part in about.parts),
        "sha256": "\n".join(part.sha256 for part in about.parts),
    }
