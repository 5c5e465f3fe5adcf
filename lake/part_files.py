"""The Parquet files of one dated folder tree: their names, listing, reading and setting aside.

Consumes ``<folder>/date=YYYY-MM-DD/*.parquet``, produces Arrow tables of one schema whatever columns
a file has. A file someone damaged is named once, moved to ``<parent>/damaged/…`` and left out.
Reads prune by row-group statistics and verify page checksums.
"""

from __future__ import annotations

import calendar
import itertools
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from lake.atomic import storage_error
from lake.columns import mask_array, numpy_of, string_array
from lake.paths import DAY_MS

log = structlog.get_logger()

FILE_SUFFIX: Final = ".parquet"
DATE_PREFIX: Final = "date="
REPLACES_KEY: Final = b"orderflow.replaces"
MERGED_PREFIX: Final = "merged"
PART_PREFIX: Final = "part"

_RUN_TOKEN: Final = secrets.token_hex(3)
_COUNTER: Final = itertools.count(1)
_LISTING_ATTEMPTS: Final = 20
_DECODED_ROWS: Final = 17_280
"""Rows decoded at a time: what a filter drops must not fill the memory first."""


class DamagedFile(Exception):
    """A Parquet file cannot be read for what it contains, not for what the system refused."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class RowRange(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows to read: ``start_ms <= time < end_ms`` and the symbols; ``None`` is unlimited."""

    time_column: str
    symbols: frozenset[str] | None = None
    start_ms: int | None = None
    end_ms: int | None = None

    @classmethod
    def of(
        cls,
        time_column: str,
        symbols: str | Iterable[str] | None,
        start_ms: int | None,
        end_ms: int | None,
    ) -> Self:
        """One symbol, several or all; times in UTC milliseconds."""
        if isinstance(symbols, str):
            symbols = (symbols,)
        return cls(
            time_column=time_column,
            symbols=None if symbols is None else frozenset(symbols),
            start_ms=start_ms,
            end_ms=end_ms,
        )

    def holds(self, symbol: str, time_ms: int) -> bool:
        """Whether a row is one of them."""
        return (
            (self.symbols is None or symbol in self.symbols)
            and (self.start_ms is None or time_ms >= self.start_ms)
            and (self.end_ms is None or time_ms < self.end_ms)
        )

    def may_be_in(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        """Whether a row group with these column minima and maxima can hold such rows."""
        low, high = bounds.get(self.time_column, (None, None))
        if low is not None and self.end_ms is not None and low >= self.end_ms:
            return False
        if high is not None and self.start_ms is not None and high < self.start_ms:
            return False
        first, last = bounds.get("symbol", (None, None))
        if self.symbols is None or first is None:
            return True
        return any(first <= symbol <= last for symbol in self.symbols)

    def covers_date(self, date: str) -> bool:
        """Whether ``date=<date>`` can hold such rows."""
        start_ms = date_start_ms(date)
        return not (
            (self.end_ms is not None and start_ms >= self.end_ms)
            or (self.start_ms is not None and start_ms + DAY_MS <= self.start_ms)
        )


def date_of(time_ms: int) -> str:
    """UTC date of a time, ``YYYY-MM-DD``."""
    return time.strftime("%Y-%m-%d", time.gmtime(time_ms // 1000))


def date_start_ms(date: str) -> int:
    """Midnight UTC of ``YYYY-MM-DD``.

    Raises:
        ValueError: Not a date.
    """
    return calendar.timegm(time.strptime(date, "%Y-%m-%d")) * 1000


def new_name(prefix: str) -> str:
    """A file name no other process, run or call ever gives; names sort by time of creation."""
    stamp = time.time_ns() // 1000
    return f"{prefix}-{stamp:017d}-{os.getpid()}-{_RUN_TOKEN}-{next(_COUNTER):06d}{FILE_SUFFIX}"


def dates_in(folder: Path) -> list[str]:
    """The dates that have a folder, oldest first; other names are left alone."""
    try:
        names = [path.name for path in folder.iterdir() if path.name.startswith(DATE_PREFIX)]
    except OSError:
        return []
    return sorted(date for name in names if _is_date(date := name.removeprefix(DATE_PREFIX)))


def _is_date(text: str) -> bool:
    try:
        return date_of(date_start_ms(text)) == text
    except ValueError:
        return False


def files_in(folder: Path, date: str) -> list[Path]:
    """The Parquet files of one date, oldest first."""
    dated = folder / f"{DATE_PREFIX}{date}"
    try:
        names = [path.name for path in dated.iterdir()]
    except OSError:
        return []
    visible = [n for n in names if n.endswith(FILE_SUFFIX) and n[0] not in "._"]
    return [dated / name for name in sorted(visible, key=_creation_order)]


def _creation_order(name: str) -> tuple[str, str]:
    return name.partition("-")[2], name


def stable_files(folder: Path, dates: Iterable[str]) -> list[Path]:
    """The files of several dates as they were at one moment.

    A listing can miss a merged file that appears and the parts that vanish while it runs; one that
    equals the next listing did not, because the merged file appears before its parts vanish.
    """
    dates = list(dates)
    files = [path for date in dates for path in files_in(folder, date)]
    for _ in range(_LISTING_ATTEMPTS):
        again = [path for date in dates for path in files_in(folder, date)]
        if again == files:
            break
        files = again
    return files


def read_file(path: Path, schema: pa.Schema, rows: RowRange) -> pa.Table:
    """Read the wanted rows of one file in ``schema``; columns it lacks are null.

    Raises:
        FileNotFoundError: It is gone (merged into another one, meanwhile).
        DamagedFile: Its content cannot be read.
        StorageError: The system refused.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            groups = wanted_groups(file, rows)
            names = set(file.schema_arrow.names)
            missing = {rows.time_column, "symbol"} - names
            if missing:
                raise DamagedFile(path, f"lacks {', '.join(sorted(missing))}")
            wanted = [name for name in (*schema.names, "symbol", rows.time_column) if name in names]
            tables = [
                conform(_filtered(_read_groups(file, some, wanted), rows), schema)
                for some in _batches(file.metadata, groups)
            ]
            return pa.concat_tables(tables) if tables else empty_table(schema)
    except FileNotFoundError:
        raise
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error


def read_failure(path: Path, error: Exception) -> Exception:
    """What to raise: the system's refusals carry an error number, unreadable content does not."""
    if isinstance(error, OSError) and error.errno is not None:
        return storage_error("cannot read", path, error)
    return DamagedFile(path, str(error).splitlines()[0] if str(error) else type(error).__name__)


def wanted_groups(file: pq.ParquetFile, rows: RowRange) -> list[int]:
    """The row groups that may hold such rows, by their statistics."""
    metadata = file.metadata
    indices = {
        name: index
        for index in range(metadata.num_columns)
        if (name := metadata.schema.column(index).path) in {"symbol", rows.time_column}
    }
    wanted = []
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        bounds = {}
        for name, index in indices.items():
            statistics = about.column(index).statistics
            if statistics is not None and statistics.has_min_max:
                bounds[name] = (statistics.min, statistics.max)
        if about.num_rows and rows.may_be_in(bounds):
            wanted.append(group)
    return wanted


def _batches(metadata: pq.FileMetaData, groups: Sequence[int]) -> Iterator[list[int]]:
    """Row groups to decode together."""
    batch: list[int] = []
    held = 0
    for group in groups:
        count = metadata.row_group(group).num_rows
        if batch and held + count > _DECODED_ROWS:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += count
    if batch:
        yield batch


def _read_groups(file: pq.ParquetFile, groups: list[int], names: Sequence[str]) -> pa.Table:
    # one thread: the other cores belong to the feed
    columns = list(dict.fromkeys(names))
    return file.read_row_groups(groups, columns=columns, use_threads=False)


def newest_ms(path: Path, time_column: str) -> int | None:
    """The latest time in a file by its statistics; ``None`` if it does not say or is unreadable."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return None
    found: list[int] = []
    for index in range(metadata.num_columns):
        if metadata.schema.column(index).path != time_column:
            continue
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(index).statistics
            if statistics is not None and statistics.has_min_max and statistics.max is not None:
                found.append(statistics.max)
    return max(found, default=None)


def _filtered(table: pa.Table, rows: RowRange) -> pa.Table:
    times = numpy_of(table.column(rows.time_column))
    keep = np.ones(len(times), dtype=np.bool_)
    if rows.start_ms is not None:
        keep &= times >= rows.start_ms
    if rows.end_ms is not None:
        keep &= times < rows.end_ms
    if rows.symbols is not None:
        symbols = string_array([symbol.encode() for symbol in sorted(rows.symbols)])
        keep &= numpy_of(pc.is_in(table.column("symbol"), value_set=symbols))
    return table if keep.all() else table.filter(mask_array(keep))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema``, null where the table lacks them."""
    found = dict(zip(table.column_names, table.columns, strict=True))
    columns = []
    for field in schema:
        column = found.get(field.name)
        if column is None:
            column = pa.nulls(table.num_rows, field.type)
        elif column.type != field.type:
            column = column.cast(field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def empty_table(schema: pa.Schema) -> pa.Table:
    """No rows (``Schema.empty_table`` imports pandas)."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def merged_schema(files: Sequence[Path], schema: pa.Schema) -> pa.Schema:
    """``schema`` plus the columns only some files have; nullable where a file lacks or allows it.

    Raises:
        FileNotFoundError, DamagedFile, StorageError: As ``read_file``.
    """
    fields = {field.name: field for field in schema}
    required: Counter[str] = Counter()
    for path in files:
        for field in _file_schema(path):
            fields.setdefault(field.name, field.remove_metadata())
            required[field.name] += not field.nullable
    return pa.schema(
        [field.with_nullable(required[name] < len(files)) for name, field in fields.items()]
    )


def _file_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error


def replaced_names(path: Path) -> list[str]:
    """Names of the files whose rows a merged file took over; empty for a part file."""
    try:
        text = (pq.read_metadata(path).metadata or {}).get(REPLACES_KEY)
    except (pa.ArrowException, OSError):
        return []
    return [] if text is None else msgspec.json.decode(text, type=list[str])


def set_aside(folder: Path, damaged: DamagedFile) -> bool:
    """Move a damaged file out of the tree that readers glob, and say so.

    Returns:
        Whether it is out of the way (another reader may have moved it).
    """
    path = damaged.path
    target = folder.parent / "damaged" / folder.name / path.parent.name / f"{path.name}.damaged"
    problem = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    except FileNotFoundError:
        return True
    except OSError as error:
        problem = str(error)
    log.error(
        "store.file_damaged",
        path=str(path),
        reason=damaged.reason,
        set_aside=None if problem else str(target),
        problem=problem,
    )
    return problem is None
