"""The feature store: one row per symbol, window and revision in ``features/date=YYYY-MM-DD``.

Consumes ``FeatureRow``s, produces Arrow tables, rows, pandas or polars frames of the highest
revisions, rows not flushed yet included. One process appends, any number read; what a crash leaves
half done is finished by ``recover``.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from domain.features import FeatureRow
from lake.atomic import StepHook, no_hook
from lake.buffered import BufferedStore, BufferSettings
from lake.columns import numpy_of
from lake.cvd_chain import ChainColumns, ChainReport, check_chain
from lake.part_files import date_of, date_start_ms
from lake.partitioned import PartitionedSettings, PartitionedStore
from lake.paths import DAY_MS

if typing.TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_CHAIN_COLUMNS: Final = (
    "symbol",
    "window_start_ms",
    "delta",
    "cvd",
    "cvd_anchor_ms",
    "complete",
    "cvd_complete",
)


class FeatureStoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the feature store.

    ``max_pending_rows``: rows held while the disk refuses them; then ``append`` raises.
    ``merge_rows``: rows in memory while files are merged.
    """

    max_pending_rows: int = 100_000
    merge_rows: int = 17_280


class FeatureStore:
    """Feature rows on disk.

    Args:
        root: The market's data folder; rows go below ``root/features``.
        settings: See ``FeatureStoreSettings``.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        root: Path,
        settings: FeatureStoreSettings | None = None,
        *,
        hook: StepHook = no_hook,
    ) -> None:
        self.settings = settings or FeatureStoreSettings()
        self._partitioned = PartitionedStore(
            root / "features",
            FeatureRow,
            keys=("symbol", "window_start_ms"),
            time_column="window_start_ms",
            revision_column="revision",
            settings=PartitionedSettings(merge_rows=self.settings.merge_rows),
            hook=hook,
        )
        self._buffered = BufferedStore(
            self._partitioned, BufferSettings(max_pending_rows=self.settings.max_pending_rows)
        )

    @property
    def folder(self) -> Path:
        """The hive-partitioned dataset."""
        return self._partitioned.folder

    def recover(self) -> int:
        """Remove temporaries and already merged files of a dead process. Call once before writing.

        Returns:
            How many files were removed.
        """
        return self._partitioned.recover()

    # --- writing ---

    def append(self, row: FeatureRow) -> None:
        """Hold a row for the next flush; never touches the disk.

        Raises:
            StorageError: ``max_pending_rows`` wait already, because flushes fail.
        """
        self._buffered.append(row)

    def extend(self, rows: Iterable[FeatureRow]) -> None:
        """``append`` each of several rows."""
        self._buffered.extend(rows)

    def flush(self) -> int:
        """Write all rows held, one file per date. Blocks: call it in a worker thread.

        Returns:
            How many rows were taken from the buffer.

        Raises:
            StorageError: The disk refused; the rows stay held (and readable) for the next flush.
        """
        return self._buffered.flush()

    def write_batch(self, rows: Iterable[FeatureRow]) -> None:
        """Write a repair past the buffer: one file per date and one rename each. Blocks.

        Raises:
            StorageError: The disk refused; files of earlier dates may be written.
        """
        self._buffered.write_batch(rows)

    # --- reading ---

    def read(
        self,
        symbol: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        columns: Sequence[str] | None = None,
        *,
        latest_only: bool = True,
    ) -> pa.Table:
        """Rows with ``start_ms <= window_start_ms < end_ms``, sorted by symbol and window.

        Args:
            symbol: One, several, or ``None`` for all.
            start_ms: UTC, inclusive; ``None`` from the beginning.
            end_ms: UTC, exclusive; ``None`` to the end.
            columns: Names in the order wanted; ``None`` for all.
            latest_only: Only the highest revision of each window. Without it all revisions still
                on disk (merging files drops superseded ones).

        Raises:
            ValueError: No such column.
            StorageError: The system refused to read a file.
        """
        return self._buffered.read(symbol, start_ms, end_ms, columns, latest_only=latest_only)

    def read_rows(
        self,
        symbol: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> list[FeatureRow]:
        """``read`` as rows, highest revisions."""
        return self._buffered.read_rows(symbol, start_ms, end_ms)

    def pending(self, symbol: str) -> list[FeatureRow]:
        """Rows of a symbol that no flush has written yet, oldest first; never touches the disk."""
        return [row for row in self._buffered.pending() if row.symbol == symbol]

    @property
    def pending_count(self) -> int:
        """Rows that no flush has written yet."""
        return len(self._buffered.pending())

    def scan_recent(self, symbol: str | Iterable[str], since_ms: int) -> list[FeatureRow]:
        """Rows of windows that start at or after ``since_ms``, highest revisions, in order."""
        return self.read_rows(symbol, since_ms)

    def last_rows(self, symbols: Iterable[str]) -> dict[str, FeatureRow]:
        """The latest window of each symbol; symbols without any are absent."""
        held = self._buffered.pending()
        latest = self._partitioned.last_keys(symbols, extra_rows=held)
        by_time: dict[int, list[str]] = {}
        for symbol, (start_ms, _) in latest.items():
            by_time.setdefault(start_ms, []).append(symbol)
        return {
            row.symbol: row
            for start_ms, names in by_time.items()
            for row in self._partitioned.read_rows(names, start_ms, start_ms + 1, extra_rows=held)
        }

    def last_row(self, symbol: str) -> FeatureRow | None:
        """The latest window of a symbol, highest revision."""
        return self.last_rows([symbol]).get(symbol)

    def last_window(self, symbol: str) -> int | None:
        """Start (ms UTC) of the latest window of a symbol."""
        held = self._buffered.pending()
        latest = self._partitioned.last_keys([symbol], extra_rows=held)
        return latest[symbol][0] if symbol in latest else None

    def last_known_ids(self, symbols: Iterable[str]) -> dict[str, int]:
        """``last_agg_id`` of each symbol's latest window that has one."""
        latest = self._partitioned.last_keys(
            symbols, with_value="last_agg_id", extra_rows=self._buffered.pending()
        )
        return {symbol: value for symbol, (_, value) in latest.items() if value is not None}

    def last_known_id(self, symbol: str) -> int | None:
        """The last non-null ``last_agg_id`` of a symbol; ``None`` if it never traded."""
        return self.last_known_ids([symbol]).get(symbol)

    def as_of(self, symbol: str, at_ms: int) -> FeatureRow | None:
        """The latest window that had ended by ``at_ms``, in its highest revision.

        A revision made after ``at_ms`` is included: the row says what is known of that window now.
        """
        held = self._buffered.pending()
        dates = {*self._partitioned.dates(), *self._partitioned.by_date(held)}
        for date in sorted((d for d in dates if d <= date_of(at_ms)), reverse=True):
            start_ms = date_start_ms(date)
            rows = self._partitioned.read(
                symbol,
                start_ms,
                min(at_ms, start_ms + DAY_MS),
                ("window_start_ms", "window_end_ms"),
                extra_rows=held,
            )
            ended = numpy_of(rows.column(0))[numpy_of(rows.column(1)) <= at_ms]
            if len(ended):
                last = int(ended[-1])
                found = self._partitioned.read_rows(symbol, last, last + 1, extra_rows=held)
                return found[0] if found else None
        return None

    def find_breaks(self, symbol: str, since_ms: int, window_ms: int) -> ChainReport:
        """Missing windows, incomplete ones and breaks of the CVD chain since ``since_ms``."""
        return self.find_all_breaks([symbol], since_ms, window_ms)[symbol]

    def find_all_breaks(
        self, symbols: Iterable[str], since_ms: int, window_ms: int
    ) -> dict[str, ChainReport]:
        """``find_breaks`` of several symbols in one read."""
        wanted = list(symbols)
        table = self.read(wanted, since_ms, columns=_CHAIN_COLUMNS)
        columns = {name: numpy_of(table.column(name)) for name in _CHAIN_COLUMNS[1:]}
        reports = {}
        for symbol, rows in zip(wanted, _slices(table.column("symbol"), wanted), strict=True):
            part = ChainColumns(**{name: values[rows] for name, values in columns.items()})
            reports[symbol] = check_chain(symbol, part, window_ms)
        return reports

    def to_pandas(
        self,
        symbol: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """``read`` as a pandas frame (pandas is imported by this call only)."""
        return self.read(symbol, start_ms, end_ms, columns).to_pandas()

    def to_polars(
        self,
        symbol: str | Iterable[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """``read`` as a polars frame (polars is imported by this call only)."""
        import polars  # noqa: ICN001, PLC0415 - the live bot must not load it

        frame = polars.from_arrow(self.read(symbol, start_ms, end_ms, columns))
        return typing.cast("pl.DataFrame", frame)

    # --- merging ---

    def compact(self, date: str) -> Path | None:
        """Merge all files of one date (``YYYY-MM-DD``) into one. Blocks.

        Returns:
            The merged file; ``None`` if there was at most one file.
        """
        return self._partitioned.compact(date)

    def compact_due(self, now_ms: int) -> list[Path]:
        """Merge what is due: closed dates into one file, the open date's parts into one more.

        Call it hourly in a worker thread.

        Args:
            now_ms: Market time, UTC.
        """
        return self._partitioned.compact_due(now_ms)

    def release_memory(self) -> None:
        """Give buffers of finished reads and writes back to the system; Arrow's pool keeps them else."""
        pa.default_memory_pool().release_unused()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Rows and files written, rejected, damaged, merged and pending."""
        return self._buffered.statistics()


def _slices(symbols: pa.ChunkedArray[Any], wanted: Sequence[str]) -> list[slice]:
    """Where each symbol lies in a sorted column."""
    if len(symbols) == 0:
        return [slice(0, 0)] * len(wanted)
    encoded = symbols.combine_chunks().dictionary_encode()  # codes rise, since symbols do
    codes = {symbol: code for code, symbol in enumerate(encoded.dictionary.to_pylist())}
    rows = numpy_of(encoded.indices)
    bounds = (codes.get(symbol, -1) for symbol in wanted)
    return [slice(*np.searchsorted(rows, (code, code + 1))) for code in bounds]
