"""What several files hold of one symbol, as one sequence without overlap.

Consumes the files of recorded frames and of the archive's months, produces their rows as pieces in
file order, and those woven into one table: each key once, from the source trusted most, sorted.
Files that follow one another are joined without touching a row.
"""

from __future__ import annotations

import calendar
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import numpy as np
import pyarrow as pa
import structlog

from domain.errors import StorageError
from lake.columns import fixed_array, index_array, numpy_of, string_array
from lake.historical_files import (
    AGG_TRADE_SCHEMA,
    KLINE_SCHEMA,
    HistoryKind,
    month_bounds_ms,
    month_path,
    months_of,
    read_month,
)
from lake.part_files import DamagedFile, date_start_ms, empty_table, set_aside
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import (
    DEPTH_SCHEMA,
    TRADE_SCHEMA,
    Kind,
    read_stream_file,
    stream_dates,
    stream_files,
)

log = structlog.get_logger()

type Rows = pa.Table
"""What reads give; for whoever passes it on without building any."""
type SequenceKind = Literal["trades", "depth", "klines"]

HISTORICAL: Final = "historical"
"""``source`` of rows out of the archive's months; "stream", "rest" and "archive" are in the files."""
TRUST: Final = ("stream", "rest", "archive", HISTORICAL)
"""Whose row counts where several have one: the recording knows most columns, the archive is final."""

_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_SYMBOL: Final = pa.field("symbol", _NAME, nullable=False)
_SOURCE: Final = pa.field("source", _NAME, nullable=False)
SCHEMAS: Final[Mapping[SequenceKind, pa.Schema]] = {
    "trades": TRADE_SCHEMA,
    "depth": DEPTH_SCHEMA.append(_SOURCE),
    "klines": pa.schema([_SYMBOL, *KLINE_SCHEMA, _SOURCE]),
}
KEYS: Final[Mapping[SequenceKind, tuple[str, ...]]] = {
    "trades": ("agg_trade_id",),
    "depth": ("transact_time_ms", "final_update_id"),
    "klines": ("open_time_ms",),
}
TIME_COLUMNS: Final[Mapping[SequenceKind, str]] = {
    "trades": "transact_time_ms",
    "depth": "transact_time_ms",
    "klines": "open_time_ms",
}
_STREAM_KINDS: Final[Mapping[SequenceKind, Kind]] = {"trades": "trades", "depth": "depth"}
_ARCHIVE_KINDS: Final[Mapping[SequenceKind, HistoryKind]] = {
    "trades": "aggTrades",
    "klines": "klines",
}
_READ_ATTEMPTS: Final = 20
_SPILL_MS: Final = 3_600_000
"""A month's archive may begin and end with trades of its neighbours."""
_MOST_SLICES: Final = 4_096


class Piece(msgspec.Struct, frozen=True):
    """Rows of one file, in its order."""

    table: pa.Table
    path: Path


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows: ``start_ms <= time < end_ms`` of one symbol; and which columns, keys included."""

    kind: SequenceKind
    symbol: str
    start_ms: int | None = None
    end_ms: int | None = None
    schema: pa.Schema

    @classmethod
    def of(
        cls,
        kind: SequenceKind,
        symbol: str,
        start_ms: int | None,
        end_ms: int | None,
        columns: Sequence[str] | None = None,
    ) -> Wanted:
        """The columns named and those that weaving needs.

        Raises:
            ValueError: There is no such kind or column.
        """
        if kind not in SCHEMAS:
            raise ValueError(f"no such kind: {kind}; there are {', '.join(SCHEMAS)}")
        known = SCHEMAS[kind]
        unknown = sorted(set(columns or ()) - set(known.names))
        if unknown:
            raise ValueError(f"no such column of {kind}: {', '.join(unknown)}")
        names = known.names if columns is None else [*columns, *KEYS[kind], "source"]
        return cls(
            kind=kind,
            symbol=symbol,
            start_ms=start_ms,
            end_ms=end_ms,
            schema=pa.schema([known.field(name) for name in dict.fromkeys(names)]),
        )

    def overlaps(self, start_ms: int, end_ms: int) -> bool:
        """Whether ``[start_ms, end_ms)`` can hold such rows."""
        return (self.end_ms is None or start_ms < self.end_ms) and (
            self.start_ms is None or end_ms > self.start_ms
        )


def stored_pieces(paths: LakePaths, wanted: Wanted, *, recorded_only: bool = False) -> list[Piece]:
    """The rows of every file, as they are in it. A damaged file is named, set aside and left out.

    Args:
        paths: The tree.
        wanted: Which rows and columns.
        recorded_only: Leave out the archive's months.

    Raises:
        StorageError: The system refused to read a file.
    """
    unreadable: set[Path] = set()
    for _ in range(_READ_ATTEMPTS):
        try:
            months = [] if recorded_only else _month_readers(paths, wanted)
            readers = [*_stream_readers(paths, wanted), *months]
            return [
                Piece(table, path)
                for path, reader in readers
                if (table := _read(path, reader, unreadable)) is not None and table.num_rows
            ]
        except FileNotFoundError:  # merged into another one, meanwhile
            continue
    raise StorageError(f"cannot read {paths.raw}: its files keep changing")


type _Reader = Callable[[], pa.Table]


def _read(path: Path, reader: _Reader, unreadable: set[Path]) -> pa.Table | None:
    if path in unreadable:
        return None
    try:
        return reader()
    except DamagedFile as damaged:
        if not set_aside(path.parents[1], damaged):
            unreadable.add(path)
        return None


def _stream_readers(paths: LakePaths, wanted: Wanted) -> Iterator[tuple[Path, _Reader]]:
    kind = _STREAM_KINDS.get(wanted.kind)
    if kind is None:
        return
    names = [name for name in wanted.schema.names if wanted.kind == "trades" or name != "source"]
    for date in stream_dates(paths, kind):
        day_ms = date_start_ms(date)
        if not wanted.overlaps(day_ms, day_ms + DAY_MS):
            continue
        for path in stream_files(paths, kind, date):
            if wanted.end_ms is None or _named_time_ms(path, day_ms) < wanted.end_ms:
                yield path, _stream_reader(path, kind, names, wanted)


def _stream_reader(path: Path, kind: Kind, names: list[str], wanted: Wanted) -> _Reader:
    def reader() -> pa.Table:
        table = read_stream_file(
            path,
            kind,
            symbol=wanted.symbol,
            start_ms=wanted.start_ms,
            end_ms=wanted.end_ms,
            columns=names,
            use_threads=True,
        )
        return _completed(table, wanted, "stream")

    return reader


def _named_time_ms(path: Path, day_ms: int) -> int:
    """No row of a recorded file is older than its name says; one that says nothing may hold any."""
    _, _, stamp = path.stem.partition("_")
    try:
        return calendar.timegm(time.strptime(stamp[:15], "%Y%m%d_%H%M%S")) * 1000
    except ValueError:
        return day_ms


def _month_readers(paths: LakePaths, wanted: Wanted) -> Iterator[tuple[Path, _Reader]]:
    kind = _ARCHIVE_KINDS.get(wanted.kind)
    if kind is None:
        return
    in_file = AGG_TRADE_SCHEMA if kind == "aggTrades" else KLINE_SCHEMA
    names = [name for name in wanted.schema.names if name in in_file.names]
    for month in months_of(paths, wanted.symbol, kind):
        start_ms, end_ms = month_bounds_ms(month)
        if wanted.overlaps(start_ms - _SPILL_MS, end_ms + _SPILL_MS):
            path = month_path(paths, wanted.symbol, kind, month)
            yield path, _month_reader(paths, kind, month, names, wanted)


def _month_reader(
    paths: LakePaths, kind: HistoryKind, month: str, names: list[str], wanted: Wanted
) -> _Reader:
    def reader() -> pa.Table:
        table = read_month(
            paths,
            wanted.symbol,
            kind,
            month,
            columns=names,
            start_ms=wanted.start_ms,
            end_ms=wanted.end_ms,
            use_threads=True,
        )
        return _completed(table, wanted, HISTORICAL)

    return reader


def _completed(table: pa.Table, wanted: Wanted, source: str) -> pa.Table:
    """The wanted columns; those the file lacks are constant or null."""
    constants = {"symbol": wanted.symbol, "source": source}
    columns = []
    for field in wanted.schema:
        if field.name in table.column_names:
            columns.append(table.column(field.name))
        elif field.name in constants:
            columns.append(pa.chunked_array([constant(constants[field.name], table.num_rows)]))
        else:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
    return pa.Table.from_arrays(columns, schema=wanted.schema)


def constant(text: str, count: int) -> pa.Array[Any]:
    """A dictionary array that says the same in every row."""
    indices = fixed_array(pa.int32(), np.zeros(count, np.int32), count, None)
    return pa.DictionaryArray.from_arrays(indices, string_array([text.encode()]))


def woven(wanted: Wanted, pieces: Sequence[Piece]) -> pa.Table:
    """All rows in the order of their keys, each key once."""
    tables = [piece.table for piece in pieces if piece.table.num_rows]
    if not tables:
        return empty_table(wanted.schema)
    keys = [_keys(wanted.kind, table) for table in tables]
    order = sorted(range(len(tables)), key=lambda i: tuple(int(column[0]) for column in keys[i]))
    joined = pa.concat_tables([tables[i] for i in order])
    columns = [np.concatenate(parts) for parts in zip(*(keys[i] for i in order), strict=True)]
    if is_rising(columns):
        return joined
    return _rows(joined, _first_of_each(columns, trust_ranks(joined)))


def _keys(kind: SequenceKind, table: pa.Table) -> list[np.ndarray]:
    return [numpy_of(table.column(name)) for name in KEYS[kind]]


def is_rising(columns: Sequence[np.ndarray]) -> bool:
    """Whether every row's key is greater than the one before."""
    first, *others = columns
    if not others:
        return bool((first[1:] > first[:-1]).all())
    greater, equal = first[1:] > first[:-1], first[1:] == first[:-1]
    for column in others:
        greater |= equal & (column[1:] > column[:-1])
        equal &= column[1:] == column[:-1]
    return bool(greater.all())


def trust_ranks(table: pa.Table) -> np.ndarray:
    """int8[n]: position of each row's source in ``TRUST``; unknown ones are trusted least."""
    ranks = []
    for chunk in cast("list[pa.DictionaryArray[Any, Any]]", table.column("source").chunks):
        named = [TRUST.index(n) if n in TRUST else len(TRUST) for n in chunk.dictionary.to_pylist()]
        ranks.append(np.array(named, dtype=np.int8)[numpy_of(chunk.indices)])
    return np.concatenate(ranks) if ranks else np.empty(0, np.int8)


def _first_of_each(columns: Sequence[np.ndarray], distrust: np.ndarray) -> np.ndarray:
    """Indices of the rows to keep, in order."""
    order = np.lexsort((distrust, *reversed(columns)))
    is_new = np.zeros(len(order), dtype=np.bool_)
    is_new[0] = True
    for column in columns:
        ordered = column[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    kept: np.ndarray = order[is_new]
    return kept


def _rows(table: pa.Table, indices: np.ndarray) -> pa.Table:
    """These rows; long stretches that are in order already are not copied."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    if len(breaks) > _MOST_SLICES:
        return table.take(index_array(indices))
    bounds = [0, *breaks.tolist(), len(indices)]
    return pa.concat_tables(
        [table.slice(int(indices[a]), b - a) for a, b in itertools.pairwise(bounds)]
    )
