"""Highest revision wins: sorts a table by its key and keeps one row per key.

Pure: table → table. Among rows of equal key and revision the one read last stays, so that a row
seen twice (before and after a merge of files) counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.columns import index_array, numpy_of


def sort_latest(
    table: pa.Table, keys: Sequence[str], revision: str | None, *, latest_only: bool = True
) -> pa.Table:
    """Sort by ``keys`` and revision; with ``latest_only`` keep the highest revision of each key.

    Args:
        table: Holds at least the key and revision columns.
        keys: Columns that identify a row, in sort order.
        revision: Column that orders versions of a row; ``None`` if there is only one version.
        latest_only: Whether to drop all but the last version.
    """
    if table.num_rows == 0:
        return table
    names = [*keys, revision] if revision is not None else list(keys)
    ordering = table.select(names)
    order = pc.sort_indices(ordering, sort_keys=[(name, "ascending") for name in names])
    indices = numpy_of(order)
    if latest_only:
        indices = indices[is_last_of_key(ordering.take(order), keys)]
    if len(indices) == table.num_rows and bool((np.diff(indices.astype(np.int64)) == 1).all()):
        return table
    return table.take(index_array(indices))


def is_last_of_key(ordered: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """bool[n], true where the next row of a sorted table has another key. Needs a row."""
    is_last = np.zeros(ordered.num_rows, dtype=np.bool_)
    is_last[-1] = True
    for name in keys:
        values = _comparable(ordered.column(name))
        is_last[:-1] |= values[1:] != values[:-1]
    return is_last


def _comparable(column: pa.ChunkedArray[Any]) -> np.ndarray:
    """Numbers that are equal where the values are."""
    values = column.combine_chunks()
    if pa.types.is_string(values.type):
        values = values.dictionary_encode().indices
    return numpy_of(values)
