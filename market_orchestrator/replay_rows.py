"""Rows of stream files → what ``MarketFlow`` takes: trades as rows, books as frames. Pure.

Consumes tables in the schemas of ``lake.stream_files``, produces ``TRADE_DTYPE`` rows whose numbers
are the decimals that their doubles stand for, and combined frames with the levels of each book.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from binance_api.decode import parse_decimal
from binance_api.endpoints import StreamKind, stream_name
from binance_api.wire import DepthFrame, DepthMessage, SpotDepthFrame, SpotPartialDepthMessage
from domain.errors import StorageError
from domain.market import NO_VALUE, TRADE_DTYPE, Market
from lake.columns import numpy_of
from lake.stream_files import StreamTable, symbol_codes

_EXACT_BELOW: Final = 2**53
_MOST_DECIMALS: Final = 12


def symbol_numbers(table: StreamTable, index: Mapping[str, int]) -> np.ndarray:
    """int32[n]: each row's symbol as its row number, -1 where it was not asked for."""
    codes, names = symbol_codes(table)
    numbers: np.ndarray = np.array([index.get(name, -1) for name in names], np.int32)[codes]
    return numbers


def trade_rows(table: StreamTable, index: Mapping[str, int]) -> np.ndarray:
    """Rows of a table in ``TRADE_SCHEMA``, in its order; numbers are what their doubles stand for."""
    rows = np.zeros(table.num_rows, TRADE_DTYPE)
    rows["symbol_index"] = symbol_numbers(table, index)
    for name in ("agg_trade_id", "first_trade_id", "last_trade_id", "transact_time_ms"):
        rows[name] = numpy_of(table.column(name))
    rows["is_buyer_maker"] = numpy_of(table.column("is_buyer_maker"))
    for name in ("event_time_ms", "receive_time_ns"):
        column: Any = table.column(name)
        rows[name] = numpy_of(column.fill_null(NO_VALUE))
    rows["price"], rows["price_decimals"] = scaled(numpy_of(table.column("price")))
    without_rpi = numpy_of(table.column("quantity_ex_rpi"))
    is_known = ~np.isnan(without_rpi)
    quantity = scaled(numpy_of(table.column("quantity")))
    without = scaled(np.where(is_known, without_rpi, 0.0))
    decimals = np.maximum(quantity[1], without[1])
    rows["quantity"], rows["quantity_decimals"] = _at(quantity, decimals), decimals
    rows["quantity_ex_rpi"] = np.where(is_known, _at(without, decimals), NO_VALUE)
    return rows[rows["symbol_index"] >= 0]


def scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int64[n], uint8[n]): the shortest decimals that these doubles are the nearest ones to."""
    mantissa, decimals = np.zeros(len(values), np.int64), np.zeros(len(values), np.uint8)
    left = np.arange(len(values))
    for places in range(_MOST_DECIMALS + 1):
        wanted = values[left]
        whole = np.rint(wanted * 10.0**places)
        is_exact = (whole / 10.0**places == wanted) & (whole < _EXACT_BELOW)
        mantissa[left[is_exact]], decimals[left[is_exact]] = whole[is_exact], places
        left = left[~is_exact]
        if not len(left):
            break
    for place in left.tolist():
        parsed = parse_decimal(np.format_float_positional(values[place], trim="-"))
        if parsed is None:
            raise StorageError(f"{values[place]} has more digits than a trade can have")
        mantissa[place], decimals[place] = parsed
    return mantissa, decimals


def _at(numbers: tuple[np.ndarray, np.ndarray], decimals: np.ndarray) -> np.ndarray:
    """Mantissas at these decimals, which are no fewer than they have."""
    mantissa, have = numbers
    at_these: np.ndarray = mantissa * 10 ** (decimals - have).astype(np.int64)
    return at_these


def depth_frames(table: StreamTable, index: Mapping[str, int], market: Market) -> list[bytes]:
    """The wanted rows of a table in ``DEPTH_SCHEMA`` as combined frames, in its order."""
    codes, names = symbol_codes(table)
    streams = [stream_name(StreamKind.DEPTH20, name) for name in names]
    columns = [
        numpy_of(table.column(name)).tolist()
        for name in ("event_time_ms", "transact_time_ms", "first_update_id", "final_update_id")
    ]
    before = table.column("prev_final_update_id").to_pylist()
    sides = (_levels(table.column("bids")), _levels(table.column("asks")))
    frames = []
    for code, event_ms, time_ms, first, final, previous, bids, asks in zip(
        codes.tolist(), *columns, before, *sides, strict=True
    ):
        if names[code] not in index:
            continue
        if market is Market.SPOT:
            partial = SpotPartialDepthMessage(final, bids, asks)
            frames.append(msgspec.json.encode(SpotDepthFrame(streams[code], partial)))
            continue
        message = DepthMessage(event_ms, names[code], first, final, bids, asks, time_ms, previous)
        frames.append(msgspec.json.encode(DepthFrame(streams[code], message)))
    return frames


def _levels(column: Any) -> Iterator[list[tuple[float, float]]]:
    """One side of each book, without an object per level of all of them at once."""
    for chunk in column.chunks:
        bounds = numpy_of(chunk.values.offsets)[numpy_of(chunk.offsets)] // 2
        pairs = numpy_of(chunk.values.values).reshape(-1, 2)
        for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield pairs[first:stop].tolist()
