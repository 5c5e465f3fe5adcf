"""Recorded frames on disk: the one writer and reader of ``raw/stream/{trades,depth}/<date>/*.parquet``.

Consumes trade rows (``TRADE_DTYPE``) and depth columns, produces whole Parquet files, one per UTC date
of ``transact_time_ms``, sorted by symbol; and the reverse. In files ``symbol`` and ``source`` are plain
strings, in tables dictionaries. Floats are the nearest doubles: ``Decimal(repr(x))`` is exact.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domain.market import NO_VALUE
from lake.atomic import StepHook, no_hook, write_atomic
from lake.columns import (
    fixed_array,
    index_array,
    mask_array,
    numpy_of,
    string_array,
    strings_of,
)
from lake.part_files import (
    FILE_SUFFIX,
    DamagedFile,
    RowRange,
    date_of,
    date_start_ms,
    empty_table,
    read_failure,
    wanted_groups,
)
from lake.paths import DAY_MS, LakePaths
from lake.stream_merges import FILE_KEY, current_files, new_token

type Kind = Literal["trades", "depth"]
type StreamTable = pa.Table
"""Rows in ``SCHEMAS[kind]``, for those who only hand them on."""

TIME_COLUMN: Final = "transact_time_ms"
_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_LEVELS: Final = pa.list_(pa.list_(pa.float64()))

TRADE_SCHEMA: Final = pa.schema(
    [
        pa.field("symbol", _NAME, nullable=False),
        pa.field("agg_trade_id", pa.int64(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("quantity", pa.float64(), nullable=False),
        pa.field("first_trade_id", pa.int64(), nullable=False),
        pa.field("last_trade_id", pa.int64(), nullable=False),
        pa.field("transact_time_ms", pa.int64(), nullable=False),
        pa.field("is_buyer_maker", pa.bool_(), nullable=False),
        pa.field("quantity_ex_rpi", pa.float64()),
        pa.field("event_time_ms", pa.int64()),
        pa.field("receive_time_ns", pa.int64()),
        pa.field("source", _NAME, nullable=False),  # "stream" | "rest" | "archive"
    ]
)
DEPTH_SCHEMA: Final = pa.schema(
    [
        pa.field("symbol", _NAME, nullable=False),
        pa.field("event_time_ms", pa.int64(), nullable=False),
        pa.field("transact_time_ms", pa.int64(), nullable=False),
        pa.field("receive_time_ns", pa.int64(), nullable=False),
        pa.field("first_update_id", pa.int64(), nullable=False),
        pa.field("final_update_id", pa.int64(), nullable=False),
        pa.field("prev_final_update_id", pa.int64()),  # spot has none
        pa.field("bids", _LEVELS, nullable=False),  # [price, quantity], best first
        pa.field("asks", _LEVELS, nullable=False),
    ]
)
SCHEMAS: Final[Mapping[str, pa.Schema]] = {"trades": TRADE_SCHEMA, "depth": DEPTH_SCHEMA}
_ORDER_IN_SYMBOL: Final[Mapping[str, tuple[str, ...]]] = {
    "trades": ("agg_trade_id",),
    "depth": ("transact_time_ms", "final_update_id"),
}
ROW_GROUP_ROWS: Final[Mapping[str, int]] = {"trades": 131_072, "depth": 16_384}
"""About 10 MiB decoded each."""

_COMPRESSION_LEVEL: Final[Mapping[str, int]] = {"trades": 1, "depth": 3}
"""Trades are as small at level 1; depth is a tenth smaller at 3, for a third of its time."""
_MAX_EDGES: Final = 2_048
_BLOCK_ROWS: Final = 4_096  # stay in the cache
_BATCH_VALUES: Final = 131_072
_DICTIONARY_BYTES: Final = 4 << 20
"""Prices and quantities repeat: as indices into a dictionary they take half of what doubles do."""


class LevelColumn(msgspec.Struct, frozen=True):
    """One side of many books: ``counts[i]`` levels of snapshot i, all levels one after the other.

    ``levels`` is float64[2 * sum(counts)]: price, quantity, price, quantity …
    """

    counts: np.ndarray
    levels: np.ndarray


def trade_table(
    rows: np.ndarray, symbols: Sequence[str], source: str, *, order: np.ndarray | None = None
) -> pa.Table:
    """Trade rows as a table in ``TRADE_SCHEMA``.

    Args:
        rows: ``TRADE_DTYPE``; ``symbol_index`` counts in ``symbols``.
        symbols: The run's symbols.
        source: Where the rows come from: ``"stream"``, ``"rest"`` or ``"archive"``.
        order: int64[m], the places of the rows wanted, in their order (``trade_order``); ``None``
            for all as they are.
    """
    columns = _columns_of(rows, order)
    ex_rpi, event, received = (
        columns[name] for name in ("quantity_ex_rpi", "event_time_ms", "receive_time_ns")
    )
    arrays = [
        _names(columns["symbol_index"], symbols),
        _integers(columns["agg_trade_id"]),
        _floats(columns["price"]),
        _floats(columns["quantity"]),
        _integers(columns["first_trade_id"]),
        _integers(columns["last_trade_id"]),
        _integers(columns["transact_time_ms"]),
        mask_array(columns["is_buyer_maker"]),
        _floats(ex_rpi, ex_rpi >= 0),
        _integers(event, event != NO_VALUE),
        _integers(received, received != NO_VALUE),
        _names(np.zeros(len(event), np.int32), [source]),
    ]
    return pa.Table.from_arrays(arrays, schema=TRADE_SCHEMA)


_DECIMALS_OF: Final = {
    "price": "price_decimals",
    "quantity": "quantity_decimals",
    "quantity_ex_rpi": "quantity_decimals",
}
_COPIED: Final = (
    *("symbol_index", "agg_trade_id", "first_trade_id", "last_trade_id", "transact_time_ms"),
    *("is_buyer_maker", "event_time_ms", "receive_time_ns"),
)


def _columns_of(rows: np.ndarray, order: np.ndarray | None) -> dict[str, np.ndarray]:
    """Fields of rows as arrays of their own, prices and quantities as the nearest doubles.

    Block by block: rows are fetched from memory once, not once per field. No value is negative.
    """
    count = len(rows) if order is None else len(order)
    columns = {name: np.empty(count, rows.dtype[name]) for name in _COPIED}
    columns |= {name: np.empty(count) for name in _DECIMALS_OF}
    for start in range(0, count, _BLOCK_ROWS):
        stop = start + _BLOCK_ROWS
        block = rows[start:stop] if order is None else rows.take(order[start:stop])
        for name in _COPIED:
            columns[name][start:stop] = block[name]
        for name, decimals in _DECIMALS_OF.items():
            _nearest(block[name], block[decimals], out=columns[name][start:stop])
    return columns


def depth_table(
    symbol_index: np.ndarray,
    symbols: Sequence[str],
    *,
    event_time_ms: np.ndarray,
    transact_time_ms: np.ndarray,
    receive_time_ns: np.ndarray,
    first_update_id: np.ndarray,
    final_update_id: np.ndarray,
    prev_final_update_id: np.ndarray,
    bids: LevelColumn,
    asks: LevelColumn,
) -> pa.Table:
    """Depth columns as a table in ``DEPTH_SCHEMA``; rows stay in order.

    Args:
        symbol_index: int32[n], position in ``symbols``.
        symbols: The run's symbols.
        event_time_ms: int64[n], as the other times and ids.
        transact_time_ms: See the schema.
        receive_time_ns: See the schema.
        first_update_id: See the schema.
        final_update_id: See the schema.
        prev_final_update_id: ``NO_VALUE`` where the market has none.
        bids: Best first.
        asks: Best first.
    """
    columns = [
        _names(symbol_index, symbols),
        _integers(event_time_ms),
        _integers(transact_time_ms),
        _integers(receive_time_ns),
        _integers(first_update_id),
        _integers(final_update_id),
        _integers(prev_final_update_id, prev_final_update_id != NO_VALUE),
        _levels(bids),
        _levels(asks),
    ]
    return pa.Table.from_arrays(columns, schema=DEPTH_SCHEMA)


def trade_order(rows: np.ndarray, symbols: Sequence[str]) -> np.ndarray:
    """int64[n], the places of trade rows by symbol, each symbol's as they came.

    So ids nearly always rise already, and sorting the table (``sorted_table``) moves nothing.
    """
    ranks = _ranks(symbols)[rows["symbol_index"]]
    return np.argsort(ranks, kind="stable")  # a radix sort


def _ranks(names: Sequence[str]) -> np.ndarray:
    """uint16[n], each name's place in the sorted list."""
    ranks = np.empty(len(names), np.uint16)
    ranks[np.argsort(np.array(names))] = np.arange(len(names), dtype=np.uint16)
    return ranks


def sorted_table(kind: Kind, table: pa.Table) -> pa.Table:
    """The rows in the order of the files: symbol, then id or time."""
    if table.num_rows < 2:
        return table
    codes, names = symbol_codes(table)
    keys = [
        _ranks(names)[codes],
        *(numpy_of(table.column(name)) for name in _ORDER_IN_SYMBOL[kind]),
    ]
    if _is_sorted(keys):
        return table
    return table.take(index_array(np.lexsort(keys[::-1])))


def _is_sorted(keys: Sequence[np.ndarray]) -> bool:
    """Whether rows rise by their first key, where that is equal by the second, and so on."""
    is_equal: np.ndarray | bool = True
    for key in keys:
        if bool(((key[1:] < key[:-1]) & is_equal).any()):
            return False
        is_equal = (key[1:] == key[:-1]) & is_equal
    return True


def symbol_codes(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """The ``symbol`` column as int32[n] positions in a list of names."""
    column = table.column("symbol").unify_dictionaries().combine_chunks()
    if not isinstance(column, pa.DictionaryArray):  # no rows, no chunks
        return np.empty(0, np.int32), []
    return numpy_of(column.indices), strings_of(column.dictionary)


def write_stream_file(
    paths: LakePaths,
    kind: Kind,
    table: pa.Table,
    *,
    metadata: Mapping[str, str],
    hook: StepHook = no_hook,
) -> list[Path]:
    """Write rows as one new file per UTC date, each whole or not at all. Blocks.

    Args:
        paths: The tree.
        kind: ``"trades"`` or ``"depth"``.
        table: Rows in ``SCHEMAS[kind]``, any order; no file for no rows.
        metadata: Added to the files' key-value metadata.
        hook: See ``lake.atomic.StepHook``.

    Returns:
        The files, oldest date first.

    Raises:
        StorageError: The disk refused; files of earlier dates may have been written.
    """
    written = []
    for date, part in by_date(table):
        start_ms = int(numpy_of(part.column(TIME_COLUMN)).min())
        folder, rows = paths.stream(kind, date), sorted_table(kind, part)
        written.append(_write_new(folder, kind, start_ms, rows, metadata, hook))
    return written


def by_date(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each UTC date, oldest date first."""
    if table.num_rows == 0:
        return
    times = numpy_of(table.column(TIME_COLUMN))
    first, last = int(times.min()) // DAY_MS, int(times.max()) // DAY_MS
    if first == last:
        yield date_of(first * DAY_MS), table
        return
    start_ms: int | None = first * DAY_MS
    while start_ms is not None:
        is_later = times >= start_ms + DAY_MS  # sorting times for their days takes far longer
        yield date_of(start_ms), _rows_where(table, ~is_later & (times >= start_ms))
        start_ms = int(times[is_later].min()) // DAY_MS * DAY_MS if is_later.any() else None


def _rows_where(table: pa.Table, keep: np.ndarray) -> pa.Table:
    """The rows kept; where they lie in few stretches (files are sorted), without a copy."""
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    if len(edges) > _MAX_EDGES:
        return table.filter(mask_array(keep))
    stretches = zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True)
    parts = [table.slice(first, stop - first) for first, stop in stretches]
    return pa.concat_tables(parts) if parts else table.slice(0, 0)


def open_stream_writer(handle: Any, kind: Kind, metadata: Mapping[str, str]) -> pq.ParquetWriter:
    """The encoding of stream files; write sorted tables to it in sorted order.

    Integers rise or move little (deltas), doubles of trades repeat (dictionary), neighbouring books
    of one symbol share most levels (plain, so that zstd finds whole runs of them).
    """
    schema = SCHEMAS[kind]
    repeating: Any = [f.name for f in schema if f.type == _NAME]
    if kind == "trades":
        repeating += ["price", "quantity", "quantity_ex_rpi"]
    writer = pq.ParquetWriter(
        handle,
        schema,
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL[kind],
        use_dictionary=repeating,
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        column_encoding={f.name: "DELTA_BINARY_PACKED" for f in schema if f.type == pa.int64()},
        write_statistics=["symbol", TIME_COLUMN, *_ORDER_IN_SYMBOL[kind]],  # what reads prune by
        write_batch_size=_BATCH_VALUES,
        write_page_checksum=True,
        store_schema=False,  # no Arrow types in the file: every reader sees plain strings
    )
    # Without the Arrow schema the writer leaves out its metadata, unless given so.
    writer.add_key_value_metadata({FILE_KEY.decode(): new_token(), **metadata})
    return writer


def _write_new(
    folder: Path,
    kind: Kind,
    start_ms: int,
    table: pa.Table,
    metadata: Mapping[str, str],
    hook: StepHook,
) -> Path:
    content = pa.BufferOutputStream()  # one write to the file, not one per page
    with open_stream_writer(content, kind, metadata) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS[kind])
    encoded = memoryview(content.getvalue())
    for path in _names_for(folder, kind, start_ms):
        try:
            write_atomic(path, encoded, hook=hook)
        except FileExistsError:  # taken, perhaps by another process at this moment
            continue
        return path
    raise AssertionError("unreachable: names do not end")


def free_name(folder: Path, kind: Kind, start_ms: int) -> Path:
    """The next free name for rows that begin at ``start_ms``."""
    return next(path for path in _names_for(folder, kind, start_ms) if not path.exists())


def _names_for(folder: Path, kind: Kind, start_ms: int) -> Iterator[Path]:
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(start_ms // 1000))
    yield folder / f"{kind}_{stamp}{FILE_SUFFIX}"
    for number in itertools.count(1):
        yield folder / f"{kind}_{stamp}_{number}{FILE_SUFFIX}"


def stream_dates(paths: LakePaths, kind: Kind) -> list[str]:
    """The UTC dates that have a folder, oldest first; other names are left alone."""
    try:
        names = [path.name for path in (paths.raw / "stream" / kind).iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if _is_date(name))


def stream_files(paths: LakePaths, kind: Kind, date: str) -> list[Path]:
    """The files to read of one date, sorted by name; a file may be merged away meanwhile: list again.

    Raises:
        StorageError: The system refused.
    """
    return current_files(paths.stream(kind, date), lambda name: name.startswith(f"{kind}_"))


def _is_date(text: str) -> bool:
    try:
        return date_of(date_start_ms(text)) == text
    except ValueError:
        return False


_POW10: Final = 10.0 ** np.arange(19)
_EXACT_BELOW: Final = 2**53
"""Doubles hold such integers exactly, and powers of ten up to 10**22: their quotient is nearest."""


def _nearest(mantissa: np.ndarray, decimals: np.ndarray, out: np.ndarray) -> None:
    """Fill float64[n] with the nearest doubles of ``mantissa / 10**decimals``."""
    is_uniform = bool((decimals == decimals[0]).all())
    np.divide(mantissa, _POW10[decimals[0] if is_uniform else decimals], out=out)
    if mantissa.max(initial=0) >= _EXACT_BELOW:
        for place in np.flatnonzero(mantissa >= _EXACT_BELOW).tolist():
            out[place] = int(mantissa[place]) / 10 ** int(decimals[place])


def _integers(values: np.ndarray, present: np.ndarray | None = None) -> pa.Array[Any]:
    return fixed_array(pa.int64(), np.ascontiguousarray(values), len(values), present)


def _floats(values: np.ndarray, present: np.ndarray | None = None) -> pa.Array[Any]:
    return fixed_array(pa.float64(), values, len(values), present)


def _names(codes: np.ndarray, names: Sequence[str]) -> pa.Array[Any]:
    indices = np.ascontiguousarray(codes, dtype=np.int32)
    return pa.DictionaryArray.from_arrays(
        fixed_array(pa.int32(), indices, len(indices), None),
        string_array([name.encode() for name in names]),
    )


def _levels(column: LevelColumn) -> pa.Array[Any]:
    pairs = len(column.levels) // 2
    inner = _lists(
        pa.list_(pa.float64()),
        np.arange(0, 2 * pairs + 1, 2, dtype=np.int32),
        _floats(column.levels),
    )
    offsets = np.zeros(len(column.counts) + 1, dtype=np.int32)
    np.cumsum(column.counts, out=offsets[1:])
    return _lists(_LEVELS, offsets, inner)


def _lists(kind: pa.DataType, offsets: np.ndarray, items: pa.Array[Any]) -> pa.Array[Any]:
    return pa.Array.from_buffers(
        kind, len(offsets) - 1, [None, pa.py_buffer(offsets)], children=[items]
    )


def read_stream_file(
    path: Path,
    kind: Kind,
    *,
    symbol: str | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    columns: Sequence[str] | None = None,
    use_threads: bool = False,
) -> pa.Table:
    """Read ``start_ms <= transact_time_ms < end_ms`` of one file, pruned by row-group statistics.

    Args:
        path: The file.
        kind: What it holds.
        symbol: Only this symbol; ``None`` for all.
        start_ms: UTC milliseconds; ``None`` is unlimited.
        end_ms: UTC milliseconds; ``None`` is unlimited.
        columns: Names out of ``SCHEMAS[kind]``, in the order wanted; ``None`` for all.
        use_threads: Decode on several cores (beside a live feed: better not).

    Raises:
        FileNotFoundError: It is gone (compacted, meanwhile).
        DamagedFile: Its content cannot be read.
        StorageError: The system refused.
    """
    schema = SCHEMAS[kind]
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    rows = RowRange.of(TIME_COLUMN, symbol, start_ms, end_ms)
    needed = list(schema.names)
    if symbol is not None:
        needed.append("symbol")
    if start_ms is not None or end_ms is not None:
        needed.append(TIME_COLUMN)
    try:
        with pq.ParquetFile(
            path,
            page_checksum_verification=True,
            pre_buffer=False,
            read_dictionary=[f.name for f in SCHEMAS[kind] if f.type == _NAME],
        ) as file:
            missing = set(needed) - set(file.schema_arrow.names)
            if missing:
                raise DamagedFile(path, f"lacks {', '.join(sorted(missing))}")
            groups = wanted_groups(file, rows)
            names = list(dict.fromkeys(needed))
            if not groups:
                return empty_table(schema)
            table = file.read_row_groups(groups, columns=names, use_threads=use_threads)
    except (FileNotFoundError, pa.ArrowMemoryError):
        raise
    except KeyError as error:  # a column that ``read_dictionary`` names
        raise DamagedFile(path, f"lacks {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
    return _selected(table, rows).select(schema.names).cast(schema)


def _selected(table: pa.Table, rows: RowRange) -> pa.Table:
    masks = []
    if table.num_rows and (rows.start_ms is not None or rows.end_ms is not None):
        times = numpy_of(table.column(TIME_COLUMN))
        if rows.start_ms is not None and int(times.min()) < rows.start_ms:
            masks.append(times >= rows.start_ms)
        if rows.end_ms is not None and int(times.max()) >= rows.end_ms:
            masks.append(times < rows.end_ms)
    if rows.symbols is not None:
        codes, names = symbol_codes(table)
        if not set(names) <= rows.symbols:
            masks.append(np.array([name in rows.symbols for name in names], np.bool_)[codes])
    if not masks:
        return table
    return _rows_where(table, np.logical_and.reduce(masks))
