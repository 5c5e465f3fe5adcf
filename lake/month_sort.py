"""An external sort by key for files that are sorted already, or nearly.

Consumes batches in any order → produces one run, sorted and unique. Rows that rise above all before
go straight into the main run: a sorted archive costs one comparison per row. The others are sorted
in pieces of ``PIECE_ROWS``, and all runs are merged at the end, ``MERGED_ROWS`` in memory at a time.
Of rows with one key the one that came first is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa

from lake.columns import index_array, mask_array, numpy_of
from lake.historical_files import KindLayout, month_batches
from lake.month_run import RunWriter

PIECE_ROWS: Final = 1 << 20
MERGED_ROWS: Final = 1 << 21
_SMALLEST_BATCH: Final = 1 << 12
_LARGEST_BATCH: Final = 1 << 16


class MonthSorter:
    """Takes rows in any order; a context manager that removes its working files.

    Args:
        work: Folder and first part of the name of its working files, of its own.
        layout: Of the rows.
        base: A sorted file whose rows count as having come first; it stays as it is.

    Attributes:
        late_count: Rows that came after a row with the same or a higher key.
        duplicate_count, conflict_count: Rows left out for their key, and those among them whose
            other columns differ from the row that was kept; both known after ``sorted_run``.
    """

    def __init__(self, work: Path, layout: KindLayout, base: Path | None = None) -> None:
        self._work = work
        self._layout = layout
        self._base = base
        self._main = None if base is not None else RunWriter(self._name("sorted"), layout)
        self._highest = np.array([np.iinfo(np.int64).min])
        self._late: list[pa.Table] = []
        self._late_rows = 0
        self._pieces: list[Path] = []
        self.late_count = self.duplicate_count = self.conflict_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._main is not None:
            self._main.__exit__(kind, error, trace)
            self._main = None
        for path in self._work.parent.glob(f"{self._work.name}.*.run"):
            path.unlink(missing_ok=True)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take the next rows."""
        if not batch.num_rows:
            return
        if self._main is None:
            self._keep_late(pa.Table.from_batches([batch]))
            return
        keys = numpy_of(batch.column(self._layout.key))
        highest = np.maximum.accumulate(np.concatenate((self._highest, keys)))
        rises = keys > highest[:-1]
        self._highest = highest[-1:]
        if rises.all():
            self._main.append(batch)
            return
        self._main.append(batch.filter(mask_array(rises)))
        self._keep_late(pa.Table.from_batches([batch.filter(mask_array(~rises))]))

    def sorted_run(self, check: Callable[[], None]) -> RunWriter:
        """The one run, still open: the caller describes it, closes it and takes its file.

        Args:
            check: Called now and then; what it raises ends the sorting.
        """
        if self._main is not None and not self._late and not self._pieces:
            main, self._main = self._main, None
            return main
        self._write_piece()
        first = self._base
        if self._main is not None:
            main, self._main = self._main, None
            with main:
                first = main.path
        merged = RunWriter(self._name("merged"), self._layout)
        try:
            for rows in self._merged([first, *self._pieces] if first else self._pieces):
                check()
                merged.append(rows)
        except BaseException as error:
            merged.__exit__(type(error), error, None)
            raise
        return merged

    def _keep_late(self, rows: pa.Table) -> None:
        self.late_count += rows.num_rows
        self._late.append(rows)
        self._late_rows += rows.num_rows
        if self._late_rows >= PIECE_ROWS:
            self._write_piece()

    def _write_piece(self) -> None:
        late, self._late, self._late_rows = self._late, [], 0
        if not late:
            return
        path = self._name(f"piece{len(self._pieces):04d}")
        with RunWriter(path, self._layout) as writer:
            writer.append(self._unique(pa.concat_tables(late)))
        self._pieces.append(path)

    def _merged(self, paths: Sequence[Path]) -> Iterator[pa.Table]:
        batch_rows = min(max(MERGED_ROWS // len(paths), _SMALLEST_BATCH), _LARGEST_BATCH)
        live = [_Run(path, self._layout, batch_rows) for path in paths]
        while live := [run for run in live if run.has_rows()]:
            bound = min(run.last_key for run in live)
            taken = [part for run in live if (part := run.take_up_to(bound)).num_rows]
            yield taken[0] if len(taken) == 1 else self._unique(pa.concat_tables(taken))

    def _unique(self, rows: pa.Table) -> pa.Table:
        """Sorted by key; of equal keys the first row in the present order."""
        keys = numpy_of(rows.column(self._layout.key))
        order = np.argsort(keys, kind="stable")
        rows, keys = rows.take(index_array(order)), keys[order]
        again = np.concatenate(([False], keys[1:] == keys[:-1]))
        if not again.any():
            return rows
        places = np.flatnonzero(again)
        values = (numpy_of(column) for column in rows.columns)
        differs = np.logical_or.reduce([v[places] != v[places - 1] for v in values])
        self.duplicate_count += len(places)
        self.conflict_count += int(np.count_nonzero(differs))
        return rows.filter(mask_array(~again))

    def _name(self, what: str) -> Path:
        return self._work.with_name(f"{self._work.name}.{what}.run")


class _Run:
    """A run being read: the rows not yet taken of its present batch."""

    def __init__(self, path: Path, layout: KindLayout, batch_rows: int) -> None:
        self._batches = month_batches(path, layout.schema.names, batch_rows)
        self._key = layout.key
        self._rows: pa.Table | None = None
        self._keys = np.empty(0, np.int64)

    def has_rows(self) -> bool:
        """Whether there are more; reads the next batch when the present one is used up."""
        while not len(self._keys):
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._rows = pa.Table.from_batches([batch])
            self._keys = numpy_of(batch.column(self._key))
        return True

    @property
    def last_key(self) -> int:
        """Highest key of the present batch."""
        return int(self._keys[-1])

    def take_up_to(self, bound: int) -> pa.Table:
        """The present batch's rows with keys up to and including ``bound``; they are gone then."""
        assert self._rows is not None  # noqa: S101 - has_rows() was asked
        count = int(np.searchsorted(self._keys, bound, side="right"))
        rows = self._rows.slice(0, count)
        self._rows, self._keys = self._rows.slice(count), self._keys[count:]
        return rows
