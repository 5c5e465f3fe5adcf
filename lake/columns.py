"""Rows ⇄ columns: ``msgspec.Struct`` rows into Arrow buffers and back.

Consumes lists of rows, produces Arrow tables and the reverse. Built for a worker thread beside a
busy event loop: slices of ``SLICE_ROWS`` rows, the interpreter lock offered between them. Buffers
are filled directly because ``pyarrow.array`` imports pandas, which the live bot must not.
A NaN in a nullable column is stored as null; in a required column it makes the row unstorable.
"""

from __future__ import annotations

import enum
import itertools
import time
from array import array
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.schemas import Column, ColumnKind, columns_of, written_schema

SLICE_ROWS: Final = 250
"""Rows converted between two offers of the interpreter lock: about 2 ms for 90 columns."""


_COMMA: Final = 44


class UnstorableRow(ValueError):
    """A value does not fit its column; the message names row type and column."""


def table_of[R: msgspec.Struct](
    rows: Sequence[R], row_type: type[R]
) -> tuple[pa.Table, list[tuple[R, str]]]:
    """Convert rows to a table.

    Returns:
        The table in ``written_schema(row_type)``, and the rows that could not be stored with why.
    """
    batches: list[pa.RecordBatch] = []
    rejected: list[tuple[R, str]] = []
    for start in range(0, len(rows), SLICE_ROWS):
        part = rows[start : start + SLICE_ROWS]
        try:
            batches.append(_batch(part, row_type))
        except UnstorableRow:
            for row in part:
                try:
                    batches.append(_batch([row], row_type))
                except UnstorableRow as error:
                    rejected.append((row, str(error)))
        time.sleep(0)
    return pa.Table.from_batches(batches, schema=written_schema(row_type)), rejected


def _batch(rows: Sequence[msgspec.Struct], row_type: type[msgspec.Struct]) -> pa.RecordBatch:
    arrays = []
    values = zip(*map(msgspec.structs.astuple, rows), strict=True)
    for column, column_values in zip(columns_of(row_type), values, strict=True):
        try:
            arrays.append(_ENCODERS[column.kind](column, column_values))
        except (TypeError, ValueError, OverflowError) as error:
            raise UnstorableRow(f"{row_type.__name__}.{column.name}: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=written_schema(row_type))


def _integers(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    if None not in values:
        return fixed_array(pa.int64(), array("q", values), len(values), None)
    present = _require_nullable(column, values)
    return fixed_array(pa.int64(), array("q", [v or 0 for v in values]), len(values), present)


def _floats(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    numbers = np.array(values, dtype=np.float64)  # None becomes NaN
    present = ~np.isnan(numbers)
    if present.all():
        return fixed_array(pa.float64(), numbers, len(values), None)
    if not column.is_nullable:
        raise ValueError("not a number")
    return fixed_array(pa.float64(), numbers, len(values), present)


def _booleans(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    present = _require_nullable(column, values) if None in values else None
    bits = np.packbits(np.array(values, dtype=np.bool_), bitorder="little")
    return fixed_array(pa.bool_(), bits, len(values), present)


def _strings(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    present = _require_nullable(column, values) if None in values else None
    encoded = [b"" if value is None else str.encode(value) for value in values]
    return string_array(encoded, present)


def _json_texts(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    present = _require_nullable(column, values) if None in values else None
    encode = msgspec.json.encode
    return string_array([b"" if value is None else encode(value) for value in values], present)


def _float_lists(column: Column, values: tuple[Any, ...]) -> pa.Array[Any]:
    present = _require_nullable(column, values) if None in values else None
    lists = values if present is None else [value or () for value in values]
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(items) for items in lists], out=offsets[1:])
    items = array("d", itertools.chain.from_iterable(lists))
    return pa.Array.from_buffers(
        pa.list_(pa.float64()),
        len(lists),
        [_validity(present), pa.py_buffer(offsets)],
        children=[fixed_array(pa.float64(), items, len(items), None)],
    )


def _require_nullable(column: Column, values: tuple[Any, ...]) -> np.ndarray:
    if not column.is_nullable:
        raise ValueError("missing value")
    return np.array([value is not None for value in values], dtype=np.bool_)


_ENCODERS: Final[dict[ColumnKind, Callable[[Column, tuple[Any, ...]], pa.Array[Any]]]] = {
    ColumnKind.INTEGER: _integers,
    ColumnKind.FLOAT: _floats,
    ColumnKind.DECIMAL: _floats,
    ColumnKind.BOOLEAN: _booleans,
    ColumnKind.STRING: _strings,
    ColumnKind.FLOAT_LIST: _float_lists,
    ColumnKind.JSON: _json_texts,
}


def fixed_array(
    kind: pa.DataType,
    data: np.ndarray | array[int] | array[float],
    count: int,
    present: np.ndarray | None,
) -> pa.Array[Any]:
    """An Arrow array of numbers in place; ``present`` is bool[n], false where null."""
    return pa.Array.from_buffers(kind, count, [_validity(present), pa.py_buffer(data)])


def _validity(present: np.ndarray | None) -> pa.Buffer | None:
    return None if present is None else pa.py_buffer(np.packbits(present, bitorder="little"))


def string_array(encoded: Sequence[bytes], present: np.ndarray | None = None) -> pa.Array[Any]:
    """An Arrow string array of UTF-8 bytes; ``present`` is bool[n], false where null."""
    offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    buffers = [_validity(present), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def parse_floats(text: bytes) -> np.ndarray | None:
    """Numbers separated by commas as float64[n], the nearest doubles; ``None`` if one is malformed.

    Arrow parses them without holding the interpreter lock, four times as fast as numpy does.
    """
    if not text:
        return np.empty(0)
    commas = np.flatnonzero(np.frombuffer(text, np.uint8) == _COMMA)
    offsets = np.zeros(len(commas) + 2, dtype=np.int32)
    offsets[1:-1] = commas - np.arange(len(commas))
    offsets[-1] = len(text) - len(commas)
    digits = pa.py_buffer(text.translate(None, b","))
    texts = pa.Array.from_buffers(
        pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), digits]
    )
    try:
        return numpy_of(pc.cast(texts, pa.float64()))
    except pa.ArrowInvalid:
        return None


def mask_array(mask: np.ndarray) -> pa.Array[Any]:
    """An Arrow boolean array of bool[n]."""
    return fixed_array(pa.bool_(), np.packbits(mask, bitorder="little"), len(mask), None)


def index_array(indices: np.ndarray) -> pa.Array[Any]:
    """An Arrow int64 array of int[n]."""
    return fixed_array(
        pa.int64(), np.ascontiguousarray(indices, dtype=np.int64), len(indices), None
    )


def numpy_of(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> np.ndarray:
    """A numeric or boolean column as numpy (pyarrow's own conversion imports pandas).

    Null is NaN in floats, false in booleans and undefined in integers.
    """
    if isinstance(column, pa.ChunkedArray):
        return _joined([numpy_of(chunk) for chunk in column.chunks], column.type)
    count, offset = len(column), column.offset
    validity, data = column.buffers()
    if pa.types.is_boolean(column.type):
        bits = _bits(data, offset, count)
        return bits if validity is None else bits & _bits(validity, offset, count)
    values: np.ndarray = np.frombuffer(memoryview(data or b""), dtype=_NUMPY_TYPES[column.type])
    values = values[offset : offset + count]
    if validity is not None and pa.types.is_floating(column.type):
        values = np.where(_bits(validity, offset, count), values, np.nan)
    return values


_NUMPY_TYPES: Final[dict[pa.DataType, type[np.generic]]] = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint64(): np.uint64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def _joined(parts: list[np.ndarray], kind: pa.DataType) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    if parts:
        return np.concatenate(parts)
    return np.empty(0, dtype=_NUMPY_TYPES.get(kind, np.bool_))


def _bits(buffer: pa.Buffer | None, offset: int, count: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(memoryview(buffer or b""), np.uint8), bitorder="little")
    return bits[offset : offset + count].astype(np.bool_)


def strings_of(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> list[str]:
    """A string column without nulls as a list."""
    return [str(value) for value in column.to_pylist()]


def rows_of[R: msgspec.Struct](table: pa.Table, row_type: type[R]) -> tuple[list[R], int]:
    """Build rows from a table in ``read_schema(row_type)``.

    Returns:
        The rows, and how many were left out because they lack a value that is required today
        (written by an older version). A column with a default is filled with it.
    """
    rows: list[R] = []
    skipped = 0
    columns = columns_of(row_type)
    optional_names = {c.name for c in columns if c.has_default and not c.is_nullable}
    required_names = {c.name for c in columns if not c.has_default and not c.is_nullable}
    for start in range(0, table.num_rows, SLICE_ROWS):
        part = table.slice(start, SLICE_ROWS)
        decoded = {c.name: _DECODERS[c.kind](c, part.column(c.name).to_pylist()) for c in columns}
        for values in zip(*decoded.values(), strict=True):
            fields = dict(zip(decoded, values, strict=True))
            if None in values:
                missing = {name for name, value in fields.items() if value is None}
                if missing & required_names:
                    skipped += 1
                    continue
                for name in missing & optional_names:
                    del fields[name]
            rows.append(row_type(**fields))
        time.sleep(0)
    return rows, skipped


def _same(_column: Column, values: list[Any]) -> list[Any]:
    return values


def _decimals(_column: Column, values: list[Any]) -> list[Any]:
    return [None if value is None else Decimal(repr(value)) for value in values]


def _texts(column: Column, values: list[Any]) -> list[Any]:
    if not (isinstance(column.value_type, type) and issubclass(column.value_type, enum.Enum)):
        return values
    return [None if value is None else column.value_type(value) for value in values]


def _tuples(_column: Column, values: list[Any]) -> list[Any]:
    return [None if value is None else tuple(value) for value in values]


def _from_json(column: Column, values: list[Any]) -> list[Any]:
    decode = msgspec.json.Decoder(column.value_type).decode
    return [None if value is None else decode(value) for value in values]


_DECODERS: Final[dict[ColumnKind, Callable[[Column, list[Any]], list[Any]]]] = {
    ColumnKind.INTEGER: _same,
    ColumnKind.FLOAT: _same,
    ColumnKind.DECIMAL: _decimals,
    ColumnKind.BOOLEAN: _same,
    ColumnKind.STRING: _texts,
    ColumnKind.FLOAT_LIST: _tuples,
    ColumnKind.JSON: _from_json,
}
