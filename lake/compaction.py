"""Merges part files into one, in bounded memory, safely at every kill point.

The merged file is written atomically and names in its metadata the files it replaces; only then
are those removed. A crash in between leaves rows in two files, which readers that keep the highest
revision count once, and ``finish_merges`` removes the rest at the next start. Of each key only the
highest revision is kept; columns unknown to the row type are carried over. Rows are sorted by symbol and
time: of the whole date where it fits ``merge_rows``, else of one stretch of time after the other.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lake.atomic import Step, StepHook, atomic_file, remove_leftovers
from lake.columns import numpy_of
from lake.part_files import (
    DATE_PREFIX,
    MERGED_PREFIX,
    REPLACES_KEY,
    RowRange,
    files_in,
    merged_schema,
    new_name,
    read_file,
    replaced_names,
)
from lake.revisions import sort_latest

ROW_GROUP_ROWS: Final = 17_280
"""Rows of one symbol in a day of 5-second windows."""


class TableLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a row and how files are encoded."""

    schema: pa.Schema
    keys: tuple[str, ...]  # "symbol" first
    time_column: str
    revision_column: str | None


def merge_files(
    files: Sequence[Path], layout: TableLayout, *, merge_rows: int, hook: StepHook
) -> Path:
    """Merge files of one date into a new one beside them and remove them.

    Args:
        files: At least one; all in the same folder.
        layout: Keys and schema.
        merge_rows: Rows held in memory at a time (those of a single window may exceed it).
        hook: See ``lake.atomic.StepHook``.

    Returns:
        The merged file.

    Raises:
        FileNotFoundError, DamagedFile, StorageError: As ``part_files.read_file``; nothing changed.
    """
    schema = merged_schema(files, layout.schema)
    times = {path: _count_times(path, layout.time_column) for path in files}
    replaces = msgspec.json.encode([path.name for path in files])
    target = files[0].with_name(new_name(MERGED_PREFIX))
    with (
        atomic_file(target, hook=hook) as handle,
        open_writer(handle, schema.with_metadata({REPLACES_KEY: replaces})) as writer,
    ):
        total: Counter[int] = Counter()
        for counts in times.values():
            total.update(counts)
        for start_ms, end_ms in _time_slices(total, merge_rows):
            concerned = [p for p in files if any(start_ms <= t < end_ms for t in times[p])]
            table = _read_slice(concerned, schema, layout, start_ms, end_ms)
            writer.write_table(as_schema(table, schema), row_group_size=ROW_GROUP_ROWS)
    pa.default_memory_pool().release_unused()
    _remove(files, hook)
    return target


def _read_slice(
    files: Sequence[Path], schema: pa.Schema, layout: TableLayout, start_ms: int, end_ms: int
) -> pa.Table:
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    rows = RowRange(time_column=layout.time_column, start_ms=start_ms, end_ms=end_ms)
    found = pa.concat_tables([read_file(path, nullable, rows) for path in files])
    return sort_latest(found, layout.keys, layout.revision_column)


def _count_times(path: Path, time_column: str) -> dict[int, int]:
    """How many rows a file has of each time."""
    schema = pa.schema([(time_column, pa.int64())])
    found = read_file(path, schema, RowRange(time_column=time_column))
    times, counts = np.unique(numpy_of(found.column(0)), return_counts=True)
    return dict(zip(times.tolist(), counts.tolist(), strict=True))


def _time_slices(counts: Counter[int], merge_rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive times ``[start, end)``, so many at a time that their rows fit the budget.

    Slices of time and not of symbols, because files hold a stretch of time of all symbols: so each
    is decoded about once, however many there are.
    """
    start_ms = last_ms = held = 0
    for time_ms in sorted(counts):
        if held and held + counts[time_ms] > merge_rows:
            yield start_ms, time_ms
            held = 0
        if not held:
            start_ms = time_ms
        last_ms = time_ms
        held += counts[time_ms]
    if held:
        yield start_ms, last_ms + 1


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same columns under another schema's nullability and metadata."""
    return pa.Table.from_arrays(table.columns, schema=schema)


def open_writer(handle: BinaryIO | pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """The encoding of all our files: zstd, checksummed pages, dictionaries for what repeats."""
    repeating: Any = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return pq.ParquetWriter(
        handle, schema, compression="zstd", use_dictionary=repeating, write_page_checksum=True
    )


def _remove(files: Sequence[Path], hook: StepHook) -> None:
    for path in files:
        # Windows refuses while a reader has it open: the next start removes it then.
        with contextlib.suppress(OSError):
            path.unlink()
        hook(Step.REMOVED, path)


def finish_merges(folder: Path, date: str, hook: StepHook) -> int:
    """Remove what a dead process left in one date: temporaries, and files a merged one replaces.

    Returns:
        How many files were removed.
    """
    removed = remove_leftovers(folder / f"{DATE_PREFIX}{date}")
    files = files_in(folder, date)
    if len(files) < 2:
        return removed
    by_name = {path.name: path for path in files}
    replaced: dict[str, Path] = {}
    for path in files:
        if path.name.startswith(MERGED_PREFIX):
            for name in replaced_names(path):
                if name in by_name and name != path.name:
                    replaced[name] = by_name[name]
    _remove(list(replaced.values()), hook)
    return removed + len(replaced)
