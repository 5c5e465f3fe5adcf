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
from collections.abc import Callable, Iterator, Sequence
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


class MergeMethod(msgspec.Struct, frozen=True, kw_only=True):
    """How files of one kind are read, put in order and written."""

    times_ms: Callable[[Path], np.ndarray]  # of all rows of a file
    read: Callable[[Path, int, int], pa.Table]  # rows with start_ms <= time < end_ms
    settle: Callable[[pa.Table], pa.Table]  # in order, one row per key
    open_writer: Callable[[BinaryIO], pq.ParquetWriter]
    row_group_rows: int


def merge_files(
    files: Sequence[Path], layout: TableLayout, *, merge_rows: int, hook: StepHook
) -> Path:
    """Merge files of one date into a new one beside them and remove them.

    Args:
        files: At least one; all in the same folder.
        layout: Keys and schema.
        merge_rows: Rows held in memory at a time (those of a single second may exceed it).
        hook: See ``lake.atomic.StepHook``.

    Returns:
        The merged file.

    Raises:
        FileNotFoundError, DamagedFile, StorageError: As ``part_files.read_file``; nothing changed.
    """
    schema = merged_schema(files, layout.schema)
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    replaces = msgspec.json.encode([path.name for path in files])

    def settle(found: pa.Table) -> pa.Table:
        return as_schema(sort_latest(found, layout.keys, layout.revision_column), schema)

    method = MergeMethod(
        times_ms=lambda path: _times_in(path, layout.time_column),
        read=lambda path, start_ms, end_ms: read_file(
            path,
            nullable,
            RowRange(time_column=layout.time_column, start_ms=start_ms, end_ms=end_ms),
        ),
        settle=settle,
        open_writer=lambda handle: open_writer(
            handle, schema.with_metadata({REPLACES_KEY: replaces})
        ),
        row_group_rows=ROW_GROUP_ROWS,
    )
    target = files[0].with_name(new_name(MERGED_PREFIX))
    merge_into(target, files, method, merge_rows=merge_rows, hook=hook)
    return target


def merge_into(
    target: Path, files: Sequence[Path], method: MergeMethod, *, merge_rows: int, hook: StepHook
) -> None:
    """Write all rows of ``files`` to ``target``, then remove the files.

    Args:
        target: A new file in the same folder; its metadata must say what it replaces.
        files: At least one.
        method: How to read and write them.
        merge_rows: Rows held in memory at a time (those of a single second may exceed it).
        hook: See ``lake.atomic.StepHook``.

    Raises:
        FileExistsError: The target exists.
        FileNotFoundError, DamagedFile, StorageError: As ``method.read``; nothing changed.
    """
    seconds = {path: _count_seconds(method.times_ms(path)) for path in files}
    total: Counter[int] = Counter()
    for counts in seconds.values():
        total.update(counts)
    spans = {path: (min(c), max(c)) for path, c in seconds.items() if c}
    with atomic_file(target, hook=hook) as handle, method.open_writer(handle) as writer:
        for start, end in _slices(total, merge_rows):
            found = [
                method.read(path, start * 1_000, end * 1_000)
                for path, (first, last) in spans.items()
                if first < end and last >= start
            ]
            table = method.settle(pa.concat_tables(found))
            writer.write_table(table, row_group_size=method.row_group_rows)
    pa.default_memory_pool().release_unused()
    remove_files(files, hook)


def _times_in(path: Path, time_column: str) -> np.ndarray:
    schema = pa.schema([(time_column, pa.int64())])
    return numpy_of(read_file(path, schema, RowRange(time_column=time_column)).column(0))


def _count_seconds(times_ms: np.ndarray) -> dict[int, int]:
    """How many rows there are of each second."""
    seconds, counts = np.unique(times_ms // 1_000, return_counts=True)
    return dict(zip(seconds.tolist(), counts.tolist(), strict=True))


def _slices(counts: Counter[int], merge_rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive seconds ``[start, end)``, so many at a time that their rows fit the budget.

    Slices of time and not of symbols, because files hold a stretch of time of all symbols: so each
    is decoded about once, however many there are.
    """
    start = last = held = 0
    for second in sorted(counts):
        if held and held + counts[second] > merge_rows:
            yield start, second
            held = 0
        if not held:
            start = second
        last = second
        held += counts[second]
    if held:
        yield start, last + 1


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same columns under another schema's nullability and metadata."""
    return pa.Table.from_arrays(table.columns, schema=schema)


def open_writer(handle: BinaryIO | pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """The encoding of all our files: zstd, checksummed pages, dictionaries for what repeats."""
    repeating: Any = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return pq.ParquetWriter(
        handle, schema, compression="zstd", use_dictionary=repeating, write_page_checksum=True
    )


def remove_files(files: Sequence[Path], hook: StepHook) -> None:
    """Remove files another one has taken over."""
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
    remove_files(list(replaced.values()), hook)
    return removed + len(replaced)
