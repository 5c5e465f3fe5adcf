"""Rows of trades that were missing: which of them are stored already, and those an archive holds.

Consumes what is missing (ranges of ids, ranges of time where no id is known), produces ids, and tables
in ``TRADE_SCHEMA`` for ``write_stream_file``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from domain.errors import StorageError
from lake.archive_csv import agg_trade_batches
from lake.columns import fixed_array, index_array, mask_array, numpy_of, string_array, strings_of
from lake.part_files import DamagedFile, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import TRADE_SCHEMA, read_stream_file, stream_dates, stream_files

type Span = tuple[int, int]
"""Inclusive ends."""
type TradeTable = pa.Table
"""Rows in ``TRADE_SCHEMA``."""

_ATTEMPTS: Final = 20
_COLUMNS: Final = ("agg_trade_id", "transact_time_ms", "source")


class Missing(msgspec.Struct, frozen=True):
    """What is missing of one symbol: disjoint spans of ids, and of exchange times in ms."""

    ids: tuple[Span, ...] = ()
    times_ms: tuple[Span, ...] = ()

    def mask(self, ids: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """bool[n]: which of these trades are missing."""
        mask: np.ndarray = _inside(ids, self.ids) | _inside(times_ms, self.times_ms)
        return mask

    def __bool__(self) -> bool:
        return bool(self.ids or self.times_ms)


class StoredTrades(msgspec.Struct, frozen=True):
    """Trades of one source that are in the files: ascending ids, each once, and their times."""

    source: str
    ids: np.ndarray
    times_ms: np.ndarray


def _inside(values: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    if not spans:
        return np.zeros(len(values), dtype=np.bool_)
    bounds = np.array(sorted(spans), dtype=np.int64)
    place = np.searchsorted(bounds[:, 0], values, side="right") - 1
    inside: np.ndarray = (place >= 0) & (values <= bounds[place, 1])
    return inside


def runs_of(ids: np.ndarray) -> list[Span]:
    """Ascending unique ids as spans without holes."""
    if not len(ids):
        return []
    cuts = np.flatnonzero(np.diff(ids) != 1)
    firsts, lasts = ids[np.append(0, cuts + 1)], ids[np.append(cuts, len(ids) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def ids_and_times(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Ids and exchange times of rows in ``TRADE_SCHEMA``."""
    return numpy_of(table.column("agg_trade_id")), numpy_of(table.column("transact_time_ms"))


def stored_trades(
    paths: LakePaths, symbol: str, missing: Missing, start_ms: int, end_ms: int | None
) -> list[StoredTrades]:
    """Trades of the stream files that are said to be missing. Blocks.

    Args:
        paths: The tree.
        symbol: Whose.
        missing: What is said to be missing.
        start_ms: Where to look, exchange time; ``end_ms`` exclusive, ``None`` to the end.
        end_ms: See ``start_ms``.

    Raises:
        StorageError: The system refused.
    """
    found: dict[str, list[pa.Table]] = {}
    for date in stream_dates(paths, "trades"):
        day_ms = date_start_ms(date)
        if day_ms + DAY_MS <= start_ms or (end_ms is not None and day_ms >= end_ms):
            continue
        for table in _tables_of(paths, date, symbol, start_ms, end_ms):
            keep = missing.mask(numpy_of(table.column(0)), numpy_of(table.column(1)))
            for source, rows in _by_source(table.filter(mask_array(keep))):
                found.setdefault(source, []).append(rows)
    return [_stored(source, tables) for source, tables in found.items()]


def _tables_of(
    paths: LakePaths, date: str, symbol: str, start_ms: int, end_ms: int | None
) -> list[pa.Table]:
    for _ in range(_ATTEMPTS):
        tables = []
        try:
            for path in stream_files(paths, "trades", date):
                try:
                    tables.append(
                        read_stream_file(
                            path,
                            "trades",
                            symbol=symbol,
                            start_ms=start_ms,
                            end_ms=end_ms,
                            columns=_COLUMNS,
                        )
                    )
                except DamagedFile:  # holds nothing anybody can read
                    continue
        except FileNotFoundError:  # merged meanwhile
            continue
        return tables
    raise StorageError(f"cannot read {paths.stream('trades', date)}: its files keep changing")


def _by_source(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    column = table.column("source").unify_dictionaries().combine_chunks()
    if isinstance(column, pa.DictionaryArray):  # else there are no rows
        codes = numpy_of(column.indices)
        for code, source in enumerate(strings_of(column.dictionary)):
            if (codes == code).any():
                yield source, table.filter(mask_array(codes == code))


def _stored(source: str, tables: Sequence[pa.Table]) -> StoredTrades:
    ids, at = np.unique(
        np.concatenate([numpy_of(table.column(0)) for table in tables]), return_index=True
    )
    times_ms = np.concatenate([numpy_of(table.column(1)) for table in tables])
    return StoredTrades(source, ids, times_ms[at])


def archive_trades(
    archive: Path,
    symbol: str,
    missing: Callable[[], Missing],
    *,
    known_ids: np.ndarray,
    max_rows: int,
    is_stopping: Callable[[], bool],
) -> Iterator[pa.Table]:
    """What an archive has of the missing trades, in tables of about ``max_rows``. Blocks.

    Args:
        archive: A daily or monthly zip of aggTrades.
        symbol: Whose.
        missing: Asked before each table: what is missing still.
        known_ids: Left out: of holes known by time, what is stored already.
        max_rows: Rows per table.
        is_stopping: Asked often; what was not yielded by then is left out.

    Yields:
        Rows in ``TRADE_SCHEMA``, ids ascending and each once.

    Raises:
        UnreadableArchive: It holds no such rows.
    """
    held: list[pa.RecordBatch] = []
    held_rows = 0
    wanted = missing()
    for batch in agg_trade_batches(archive):
        if is_stopping():
            return
        ids, times = (numpy_of(batch.column(n)) for n in ("agg_trade_id", "transact_time_ms"))
        keep = wanted.mask(ids, times) & ~np.isin(ids, known_ids)
        if not keep.any():
            continue
        held.append(batch.filter(mask_array(keep)))
        held_rows += int(keep.sum())
        if held_rows >= max_rows:
            yield _repaired(held, symbol)
            held, held_rows, wanted = [], 0, missing()
    if held:
        yield _repaired(held, symbol)


def _repaired(batches: Sequence[pa.RecordBatch], symbol: str) -> pa.Table:
    table = pa.Table.from_batches(list(batches)).combine_chunks()
    _, first_at = np.unique(numpy_of(table.column("agg_trade_id")), return_index=True)
    table = table.take(index_array(first_at))
    count = table.num_rows
    columns: list[Any] = []
    for field in TRADE_SCHEMA:
        if field.name in {"symbol", "source"}:
            name = symbol if field.name == "symbol" else "archive"
            columns.append(_constant(name, count))
        elif field.name in table.column_names:
            columns.append(table.column(field.name))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(columns, schema=TRADE_SCHEMA)


def _constant(name: str, count: int) -> pa.Array[Any]:
    indices = fixed_array(pa.int32(), np.zeros(count, dtype=np.int32), count, None)
    return pa.DictionaryArray.from_arrays(indices, string_array([name.encode()]))
