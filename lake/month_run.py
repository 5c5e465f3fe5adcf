"""A run: one Parquet file of rows with rising keys, and what its keys say about missing rows.

Consumes batches in order of their key → produces the file (in the encoding of the archive's months)
and a ``Continuity``. Sorted months, and the pieces of those that must be sorted first, are runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domain.errors import StorageError
from lake.atomic import ensure_folder, storage_error
from lake.columns import numpy_of
from lake.historical_files import KindLayout, month_bounds_ms
from lake.part_files import date_of
from lake.paths import DAY_MS

ROW_GROUP_ROWS: Final = 1 << 19
_COMPRESSION_LEVEL: Final = 3
_DICTIONARY_BYTES: Final = 4 << 20
TRADE_SILENCE_MS: Final = 3_600_000
"""Without a trade for so long at a month's beginning or end, the archive may have lost some."""


class Continuity:
    """Which keys are missing between those seen, and on which days.

    Args:
        layout: Of the rows.
    """

    def __init__(self, layout: KindLayout) -> None:
        self._layout = layout
        self.row_count = 0
        self.missing_count = 0
        self.first_key: int | None = None
        self.last_key: int | None = None
        self._first_ms = self._last_ms = 0
        self._holed_days: set[int] = set()

    def add(self, keys: np.ndarray, times_ms: np.ndarray) -> None:
        """Take the next rows: int64[n] rising keys above all before, int64[n] their times."""
        if not len(keys):
            return
        if self.first_key is None or self.last_key is None:
            self.first_key, self._first_ms = int(keys[0]), int(times_ms[0])
            before, before_ms = keys[:1] - self._layout.step, times_ms[:1]
        else:
            before, before_ms = np.array([self.last_key]), np.array([self._last_ms])
        steps = np.diff(keys, prepend=before)
        holes = np.flatnonzero(steps > self._layout.step)
        if len(holes):
            self.missing_count += int((steps[holes] // self._layout.step - 1).sum())
            earlier = np.where(holes > 0, times_ms[holes - 1], before_ms[0]) // DAY_MS
            later = times_ms[holes] // DAY_MS
            for first, last in set(zip(earlier.tolist(), later.tolist(), strict=True)):
                self._holed_days.update(range(min(first, last), max(first, last) + 1))
        self.row_count += len(keys)
        self.last_key, self._last_ms = int(keys[-1]), int(times_ms[-1])

    def doubtful_days(self, month: str) -> list[str]:
        """Days of ``month`` that lack rows, or may: beside missing keys, or silent at its ends."""
        start_ms, end_ms = month_bounds_ms(month)
        first_day, end_day = start_ms // DAY_MS, end_ms // DAY_MS
        days = set(self._holed_days)
        if self.first_key is None:
            days.update(range(first_day, end_day))
        else:
            is_trades = self._layout.key != self._layout.time_column
            silence_ms = TRADE_SILENCE_MS if is_trades else self._layout.step
            if self._first_ms - start_ms >= silence_ms:
                days.update(range(first_day, self._first_ms // DAY_MS + 1))
            if end_ms - self._last_ms > silence_ms:
                days.update(range(self._last_ms // DAY_MS, end_day))
        return [date_of(day * DAY_MS) for day in sorted(days) if first_day <= day < end_day]


class RunWriter:
    """Writes one run; leave its context to close the file, which is whole if no error left with it.

    Args:
        path: The file; replaced if it exists. Nobody else knows it.
        layout: Of the rows.

    Attributes:
        continuity: What was written, so far.

    Raises:
        StorageError: The disk refused (from every method).
    """

    def __init__(self, path: Path, layout: KindLayout) -> None:
        self.path = path
        self.continuity = Continuity(layout)
        self._layout = layout
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        ensure_folder(path.parent)
        try:
            self._writer = _opened(path, layout.schema)
        except (pa.ArrowException, OSError) as error:
            raise _refused(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
            self._writer.close()
        except (pa.ArrowException, OSError) as failure:
            if error is None:
                raise _refused(self.path, failure) from failure

    def append(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Write rows whose keys rise and are above all before; copies nothing, keeps some."""
        layout = self._layout
        keys = numpy_of(rows.column(layout.key))
        self.continuity.add(keys, numpy_of(rows.column(layout.time_column)))
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
        self._waiting.append(table)
        self._waiting_rows += len(keys)
        if self._waiting_rows >= ROW_GROUP_ROWS:
            self._flush()

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Put this into the file's footer."""
        self._writer.add_key_value_metadata(dict(metadata))

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if waiting:
            try:
                self._writer.write_table(
                    pa.concat_tables(waiting), row_group_size=2 * ROW_GROUP_ROWS
                )
            except (pa.ArrowException, OSError) as error:
                raise _refused(self.path, error) from error


def _opened(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        str(path),
        schema,
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=_names(schema, pa.float64()),
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        column_encoding=dict.fromkeys(_names(schema, pa.int64()), "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
        store_schema=False,
    )


def _names(schema: pa.Schema, kind: Any) -> Any:
    return [field.name for field in schema if field.type == kind]


def _refused(path: Path, error: Exception) -> StorageError:
    if isinstance(error, OSError):
        return storage_error("cannot write", path, error)
    return StorageError(f"cannot write {path}: {str(error).splitlines()[0]}")
