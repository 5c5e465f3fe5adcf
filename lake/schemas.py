"""Arrow schemas derived from row types: a ``msgspec.Struct``'s fields are the columns, in order.

int → int64, float → float64, Decimal → float64 (nearest double), str and enums → string, bool →
bool, tuple[float, ...] → list of float64, ``X | None`` → nullable, everything else (dict, other
lists and tuples, Struct) → its JSON text.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from decimal import Decimal
from typing import Any, Final

import msgspec
import pyarrow as pa


class ColumnKind(enum.Enum):
    """How the values of a field are stored."""

    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    STRING = "string"
    FLOAT_LIST = "float_list"
    JSON = "json"


_ARROW_TYPES: Final = {
    ColumnKind.INTEGER: pa.int64(),
    ColumnKind.FLOAT: pa.float64(),
    ColumnKind.DECIMAL: pa.float64(),
    ColumnKind.BOOLEAN: pa.bool_(),
    ColumnKind.STRING: pa.string(),
    ColumnKind.FLOAT_LIST: pa.list_(pa.float64()),
    ColumnKind.JSON: pa.string(),
}
_KINDS: Final[dict[Any, ColumnKind]] = {
    int: ColumnKind.INTEGER,
    float: ColumnKind.FLOAT,
    Decimal: ColumnKind.DECIMAL,
    bool: ColumnKind.BOOLEAN,
    str: ColumnKind.STRING,
    tuple[float, ...]: ColumnKind.FLOAT_LIST,
}


class Column(msgspec.Struct, frozen=True):
    """One field of a row type. ``value_type`` is its annotation without ``None``."""

    name: str
    kind: ColumnKind
    value_type: Any
    is_nullable: bool
    has_default: bool


@functools.cache
def columns_of(row_type: type[msgspec.Struct]) -> tuple[Column, ...]:
    """The columns of a row type, in order."""
    return tuple(_column(field) for field in msgspec.structs.fields(row_type))


def _column(field: msgspec.structs.FieldInfo) -> Column:
    value_type, is_nullable = _without_none(field.type)
    if isinstance(value_type, type) and issubclass(value_type, enum.StrEnum):
        kind = ColumnKind.STRING
    else:
        kind = _KINDS.get(value_type, ColumnKind.JSON)
    return Column(field.name, kind, value_type, is_nullable, not field.required)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in {typing.Union, types.UnionType}:
        return annotation, False
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    is_nullable = len(members) < len(typing.get_args(annotation))
    return (members[0] if len(members) == 1 else annotation), is_nullable


@functools.cache
def written_schema(row_type: type[msgspec.Struct]) -> pa.Schema:
    """The schema of the files: required fields are ``not null``."""
    return pa.schema(
        [pa.field(c.name, _ARROW_TYPES[c.kind], c.is_nullable) for c in columns_of(row_type)]
    )


@functools.cache
def read_schema(row_type: type[msgspec.Struct]) -> pa.Schema:
    """The schema of what is read: all nullable, since older files may lack newer columns."""
    return pa.schema([pa.field(c.name, _ARROW_TYPES[c.kind]) for c in columns_of(row_type)])
