"""Rows held in memory until a flush writes them as one file per date, and reads that see both.

Consumes single rows on the event loop's thread, produces batches for a ``PartitionedStore`` in a
worker thread. A failed flush keeps its rows for the next one; beyond ``max_pending_rows`` the
buffer refuses rows instead of growing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import msgspec
import pyarrow as pa

from domain.errors import StorageError
from lake.partitioned import PartitionedStore


class BufferSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``max_pending_rows``: rows kept while the disk refuses them (feature rows: about 3 KiB each)."""

    max_pending_rows: int = 100_000


class BufferedStore[R: msgspec.Struct]:
    """``append`` from one thread, ``flush`` and reads from any.

    Args:
        partitioned: Where rows go.
        settings: See ``BufferSettings``.
    """

    def __init__(
        self, partitioned: PartitionedStore[R], settings: BufferSettings | None = None
    ) -> None:
        self.partitioned = partitioned
        self._settings = settings or BufferSettings()
        self._lock = threading.Lock()  # guards the two lists; held for moments
        self._flushing = threading.Lock()
        self._pending: list[R] = []
        self._in_flight: list[R] = []
        self._flushes = 0
        self._failed_flushes = 0

    def append(self, row: R) -> None:
        """Hold a row for the next flush.

        Raises:
            StorageError: Too many rows wait already, because flushes fail.
        """
        with self._lock:
            if len(self._pending) >= self._settings.max_pending_rows:
                raise StorageError(
                    f"{len(self._pending)} rows wait to be written to {self.partitioned.folder}"
                )
            self._pending.append(row)

    def extend(self, rows: Iterable[R]) -> None:
        """``append`` each of several rows."""
        for row in rows:
            self.append(row)

    def pending(self) -> list[R]:
        """The rows no flush has written yet, oldest first."""
        with self._lock:
            return self._in_flight + self._pending

    def flush(self) -> int:
        """Write all rows held, one file per date. Blocks: call it in a worker thread.

        Returns:
            How many rows were taken from the buffer.

        Raises:
            StorageError: The disk refused; rows not written are kept for the next flush.
        """
        with self._flushing:
            with self._lock:
                self._in_flight, self._pending = self._pending, []
            if not self._in_flight:
                return 0
            waiting = self.partitioned.by_date(self._in_flight)
            taken = 0
            try:
                for date in list(waiting):
                    self.partitioned.write_date(date, waiting[date])
                    taken += len(waiting.pop(date))
                    with self._lock:
                        self._in_flight = [row for rows in waiting.values() for row in rows]
            finally:
                with self._lock:
                    self._pending[:0] = self._in_flight
                    self._in_flight = []
                self._failed_flushes += bool(waiting)
            self._flushes += 1
            return taken

    def write_batch(self, rows: Iterable[R]) -> None:
        """Write rows past the buffer: one file per date and one rename each.

        Raises:
            StorageError: The disk refused; files of earlier dates may be written.
        """
        self.partitioned.write_batch(rows)

    def read(
        self,
        symbols: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        columns: Sequence[str] | None = None,
        *,
        latest_only: bool = True,
    ) -> pa.Table:
        """``PartitionedStore.read`` with the rows still held."""
        held = self.pending()  # before the files are listed: a row may be seen twice, never missed
        return self.partitioned.read(
            symbols, start_ms, end_ms, columns, latest_only=latest_only, extra_rows=held
        )

    def read_rows(
        self,
        symbols: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> list[R]:
        """``PartitionedStore.read_rows`` with the rows still held."""
        return self.partitioned.read_rows(symbols, start_ms, end_ms, extra_rows=self.pending())

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since construction and rows held now."""
        with self._lock:
            held = len(self._in_flight) + len(self._pending)
        return {
            **self.partitioned.statistics(),
            "rows_pending": held,
            "flushes": self._flushes,
            "failed_flushes": self._failed_flushes,
        }
