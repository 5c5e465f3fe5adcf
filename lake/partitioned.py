"""Rows of one type in a hive-partitioned Parquet folder: ``date=YYYY-MM-DD/*.parquet``.

Consumes batches of rows, produces one part file per date and batch (one rename each) and reads of
the highest revisions, sorted by key. Files are merged by ``compact_due``: of closed dates into one
file, of the open date every time it is called. Synchronous; safe from several threads. One process
writes; any number read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import structlog

from domain.errors import StorageError
from lake.atomic import StepHook, no_hook, write_atomic
from lake.columns import mask_array, numpy_of, rows_of, strings_of, table_of
from lake.compaction import (
    TableLayout,
    finish_merges,
    merge_files,
    open_writer,
)
from lake.part_files import (
    DATE_PREFIX,
    MERGED_PREFIX,
    PART_PREFIX,
    DamagedFile,
    RowRange,
    conform,
    date_of,
    date_start_ms,
    dates_in,
    empty_table,
    files_in,
    merged_schema,
    new_name,
    newest_ms,
    read_file,
    set_aside,
    stable_files,
)
from lake.paths import DAY_MS
from lake.revisions import is_last_of_key, sort_latest
from lake.schemas import read_schema, written_schema

log = structlog.get_logger()

_READ_ATTEMPTS: Final = 20
_LOOK_BACK_MS: Final = 600_000


class PartitionedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How files are merged.

    ``merge_rows``: rows held in memory while merging (120 columns: 50 MiB with the default).
    """

    merge_rows: int = 17_280


class PartitionedStore[R: msgspec.Struct]:
    """Parquet storage of one row type.

    Args:
        folder: Holds the ``date=`` folders; created by the first write.
        row_type: The rows; its fields are the columns, ``symbol`` among them.
        keys: Columns that identify a row and sort the files; ``symbol`` first.
        time_column: int64 UTC milliseconds whose date is the partition.
        revision_column: Orders versions of a row; ``None`` if rows are never written again.
        settings: See ``PartitionedSettings``.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        folder: Path,
        row_type: type[R],
        *,
        keys: tuple[str, ...],
        time_column: str,
        revision_column: str | None,
        settings: PartitionedSettings | None = None,
        hook: StepHook = no_hook,
    ) -> None:
        self.folder = folder
        self._row_type = row_type
        self._layout = TableLayout(
            schema=written_schema(row_type),
            keys=keys,
            time_column=time_column,
            revision_column=revision_column,
        )
        self._settings = settings or PartitionedSettings()
        self._hook = hook
        self._merging = threading.Lock()
        self._unreadable: set[Path] = set()
        self._counting = threading.Lock()
        self._counts = dict.fromkeys(
            ("rows_written", "rows_rejected", "files_written", "files_damaged", "merges"), 0
        )

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since construction."""
        return dict(self._counts)

    def _count(self, name: str, amount: int) -> None:
        with self._counting:
            self._counts[name] += amount

    def recover(self) -> int:
        """Finish what a dead writer began. Call once at start, by the process that writes.

        Returns:
            How many files (temporaries, and parts already merged) were removed.
        """
        return sum(finish_merges(self.folder, date, self._hook) for date in self.dates())

    def dates(self) -> list[str]:
        """Dates stored, oldest first."""
        return dates_in(self.folder)

    # --- writing ---

    def by_date(self, rows: Iterable[R]) -> dict[str, list[R]]:
        """Group rows by the UTC date of their time column."""
        groups: dict[int, list[R]] = {}
        name = self._layout.time_column
        for row in rows:
            groups.setdefault(getattr(row, name) // DAY_MS, []).append(row)
        return {date_of(day * DAY_MS): groups[day] for day in sorted(groups)}

    def write_batch(self, rows: Iterable[R]) -> list[Path]:
        """Write rows: one file per date, each visible whole or not at all.

        Returns:
            The files, by date.

        Raises:
            StorageError: The disk refused; files of earlier dates may be written.
        """
        written = [self.write_date(date, part) for date, part in self.by_date(rows).items()]
        return [path for path in written if path is not None]

    def write_date(self, date: str, rows: Sequence[R]) -> Path | None:
        """Write rows of one date as one file; ``None`` if no row could be stored."""
        table, rejected = table_of(rows, self._row_type)
        for row, reason in rejected:
            log.error("store.row_unstorable", reason=reason, row=repr(row)[:500])
        self._count("rows_rejected", len(rejected))
        if table.num_rows == 0:
            return None
        # every row of the batch stays: which revision is the highest is the readers' question
        table = sort_latest(
            table, self._layout.keys, self._layout.revision_column, latest_only=False
        )
        path = self.folder / f"{DATE_PREFIX}{date}" / new_name(PART_PREFIX)
        write_atomic(path, _encoded(table), hook=self._hook)
        self._count("rows_written", table.num_rows)
        self._count("files_written", 1)
        return path

    # --- reading ---

    def read(
        self,
        symbols: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        columns: Sequence[str] | None = None,
        *,
        latest_only: bool = True,
        extra_rows: Sequence[R] = (),
    ) -> pa.Table:
        """Read rows with ``start_ms <= time < end_ms``, sorted by key.

        Args:
            symbols: One, several, or ``None`` for all.
            start_ms: UTC milliseconds, inclusive.
            end_ms: UTC milliseconds, exclusive.
            columns: Names in the order wanted; ``None`` for all fields of the row type.
            latest_only: Keep only the highest revision of each key.
            extra_rows: Rows not in files yet, taken as the newest.

        Raises:
            ValueError: A column that neither the row type nor any file has.
            StorageError: The system refused to read a file.
        """
        wanted = RowRange.of(self._layout.time_column, symbols, start_ms, end_ms)
        schema = self._schema_for(columns)
        tables = self._read_files(wanted, schema)
        fresh = [row for row in extra_rows if wanted.holds(*self._symbol_and_time(row))]
        if fresh:
            table, _ = table_of(fresh, self._row_type)
            tables.append(conform(table, schema))
        found = pa.concat_tables(tables) if tables else empty_table(schema)
        latest = sort_latest(
            found, self._layout.keys, self._layout.revision_column, latest_only=latest_only
        )
        return latest if columns is None else latest.select(list(columns))

    def read_rows(
        self,
        symbols: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        extra_rows: Sequence[R] = (),
    ) -> list[R]:
        """Like ``read``, as rows; ones an older version wrote without a required value are left out."""
        rows, skipped = rows_of(
            self.read(symbols, start_ms, end_ms, extra_rows=extra_rows), self._row_type
        )
        if skipped:
            log.warning("store.rows_of_older_version", folder=str(self.folder), count=skipped)
        return rows

    def last_keys(
        self,
        symbols: Iterable[str],
        *,
        with_value: str | None = None,
        extra_rows: Sequence[R] = (),
    ) -> dict[str, tuple[int, int | None]]:
        """The latest stored time of each symbol, newest dates first.

        Args:
            symbols: Which ones; those without a row are absent from the result.
            with_value: An integer column; only rows where it is not null count.
            extra_rows: Rows not in files yet.

        Returns:
            symbol → (time in ms, the value or ``None``).
        """
        missing = set(symbols)
        found: dict[str, tuple[int, int | None]] = {}
        columns = ["symbol", self._layout.time_column, *([with_value] if with_value else [])]
        dates = {*self.dates(), *self.by_date(extra_rows)}
        for date in sorted(dates, reverse=True):
            if not missing:
                break
            for start_ms in self._look_back(date, extra_rows):
                end_ms = date_start_ms(date) + DAY_MS
                table = self.read(missing, start_ms, end_ms, columns, extra_rows=extra_rows)
                found.update(_last_of_each(table))
                missing -= found.keys()
        return found

    def _look_back(self, date: str, extra_rows: Sequence[R]) -> Iterator[int]:
        """Where to begin reading for the latest rows of a date: its last minutes, then all of it."""
        start_ms = date_start_ms(date)
        stored = (newest_ms(path, self._layout.time_column) for path in files_in(self.folder, date))
        held = (self._symbol_and_time(row)[1] for row in extra_rows)
        known = [time_ms for time_ms in (*stored, *held) if time_ms is not None]
        last_ms = max((t for t in known if t < start_ms + DAY_MS), default=start_ms)
        if last_ms - _LOOK_BACK_MS > start_ms:
            yield last_ms - _LOOK_BACK_MS
        yield start_ms

    def _symbol_and_time(self, row: R) -> tuple[str, int]:
        return getattr(row, self._layout.keys[0]), getattr(row, self._layout.time_column)

    def _schema_for(self, columns: Sequence[str] | None) -> pa.Schema:
        known = read_schema(self._row_type)
        if columns is None:
            return known
        needed = [*self._layout.keys, *columns]
        if self._layout.revision_column is not None:
            needed.append(self._layout.revision_column)
        names = list(dict.fromkeys(needed))
        if not set(names) <= set(known.names):
            known = self._schema_of_files(known)
            unknown = sorted(set(names) - set(known.names))
            if unknown:
                raise ValueError(f"no such column: {', '.join(unknown)}")
        return pa.schema([known.field(name).with_nullable(True) for name in names])

    def _schema_of_files(self, known: pa.Schema) -> pa.Schema:
        for _ in range(_READ_ATTEMPTS):
            files = stable_files(self.folder, self.dates())
            try:
                return merged_schema([f for f in files if f not in self._unreadable], known)
            except FileNotFoundError:
                continue
            except DamagedFile as damaged:
                self._set_aside(damaged)
        raise StorageError(f"cannot read {self.folder}: its files keep changing")

    def _read_files(self, wanted: RowRange, schema: pa.Schema) -> list[pa.Table]:
        """All files at one moment; starts again when one was merged away meanwhile."""
        for _ in range(_READ_ATTEMPTS):
            dates = [date for date in self.dates() if wanted.covers_date(date)]
            tables = []
            try:
                for path in stable_files(self.folder, dates):
                    table = self._read_or_set_aside(path, schema, wanted)
                    if table.num_rows:
                        tables.append(table)
            except FileNotFoundError:
                continue
            return tables
        raise StorageError(f"cannot read {self.folder}: its files keep changing")

    def _read_or_set_aside(self, path: Path, schema: pa.Schema, wanted: RowRange) -> pa.Table:
        if path in self._unreadable:
            return empty_table(schema)
        try:
            return read_file(path, schema, wanted)
        except DamagedFile as damaged:
            self._set_aside(damaged)
            return empty_table(schema)

    def _set_aside(self, damaged: DamagedFile) -> None:
        self._count("files_damaged", 1)
        if not set_aside(self.folder, damaged):
            self._unreadable.add(damaged.path)

    # --- merging ---

    def compact(self, date: str, *, parts_only: bool = False) -> Path | None:
        """Merge the files of one date into one.

        Args:
            date: ``YYYY-MM-DD``.
            parts_only: Leave files that are merges already (the open date, every hour).

        Returns:
            The merged file; ``None`` if there was nothing to merge.

        Raises:
            StorageError: The disk refused; nothing changed.
        """
        with self._merging:
            for _ in range(_READ_ATTEMPTS):
                files = [f for f in files_in(self.folder, date) if f not in self._unreadable]
                if parts_only:
                    files = [f for f in files if not f.name.startswith(MERGED_PREFIX)]
                if len(files) < 2:
                    return None
                try:
                    merged = merge_files(
                        files,
                        self._layout,
                        merge_rows=self._settings.merge_rows,
                        hook=self._hook,
                    )
                except FileNotFoundError:
                    continue
                except DamagedFile as damaged:
                    self._set_aside(damaged)
                    continue
                self._count("merges", 1)
                return merged
        raise StorageError(f"cannot merge {self.folder / date}: its files keep changing")

    def compact_due(self, now_ms: int) -> list[Path]:
        """Merge closed dates into one file each and the parts of open dates into one more file.

        Args:
            now_ms: Market time, UTC; dates that ended by then are closed.

        Returns:
            The merged files.
        """
        merged = []
        for date in self.dates():
            is_open = date_start_ms(date) + DAY_MS > now_ms
            path = self.compact(date, parts_only=is_open)
            if path is not None:
                merged.append(path)
        return merged


def _encoded(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _last_of_each(table: pa.Table) -> dict[str, tuple[int, int | None]]:
    """The last row of each symbol whose third column, if there is one, is not null."""
    if table.num_columns == 3:
        table = table.filter(table.column(2).is_valid())
    if table.num_rows == 0:
        return {}
    is_last = is_last_of_key(table, ["symbol"])
    last = table.filter(mask_array(is_last))
    symbols, times = strings_of(last.column(0)), numpy_of(last.column(1)).tolist()
    values = last.column(2).to_pylist() if last.num_columns == 3 else [None] * len(symbols)
    return dict(zip(symbols, zip(times, values, strict=True), strict=True))
