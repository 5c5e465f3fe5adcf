"""Rows of trades: grouped by symbol, told apart by what they say, and made of single trades. Pure.

``TRADE_DTYPE`` rows → groups and 64-bit digests; ``AggTrade`` → one row.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import numpy as np

from domain.market import NO_VALUE, TRADE_DTYPE, AggTrade, Side

_POWERS = 10.0 ** np.arange(20)
_MAX_DECIMALS = 18


def by_symbol(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The rows grouped by symbol, arrival order kept, and (symbol_index, start, stop) of each group."""
    if not len(rows):
        return rows, []
    symbols = rows["symbol_index"]
    if symbols[0] == symbols[-1] and (symbols == symbols[0]).all():
        return rows, [(int(symbols[0]), 0, len(rows))]
    order = np.argsort(symbols, kind="stable")
    rows = rows[order]
    symbols = rows["symbol_index"]
    cuts = np.flatnonzero(np.diff(symbols)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    return rows, [(int(symbols[a]), a, b) for a, b in pairwise(edges)]


def groups_left(
    is_new: np.ndarray, groups: list[tuple[int, int, int]], last_ms: list[int]
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The groups among the rows that stay, and their last known times."""
    before = np.concatenate([[0], np.cumsum(is_new)]).tolist()
    kept = [
        ((symbol_index, before[start], before[stop]), time_ms)
        for (symbol_index, start, stop), time_ms in zip(groups, last_ms, strict=True)
        if before[start] < before[stop]
    ]
    return [group for group, _ in kept], [time_ms for _, time_ms in kept]


def prices_and_quantities(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prices (quote units) and quantities (base units) of rows as float64[n], for statistics."""
    price = rows["price"] / _POWERS[rows["price_decimals"]]
    quantity = rows["quantity"] / _POWERS[rows["quantity_decimals"]]
    return price, quantity


def digests_of(rows: np.ndarray) -> np.ndarray:
    """A 64-bit digest of what a trade says; equal payloads have equal digests (int64, wrapping).

    Numbers enter by value: ``1.0`` and ``1.00`` are the same, ``10`` and ``1.0`` are not.
    """
    price, quantity = (values.view(np.int64) for values in prices_and_quantities(rows))
    digest: np.ndarray = price * np.int64(-0x61C8864680B583EB)
    digest += quantity * np.int64(-0x3D4D51C2D82B14B1)
    digest += rows["transact_time_ms"] * np.int64(0x165667B19E3779F9)
    digest += rows["last_trade_id"] * np.int64(0x27D4EB2F165667C5)
    digest ^= rows["first_trade_id"]
    digest += rows["is_buyer_maker"]
    return digest


def as_row(trade: AggTrade, symbol_index: int) -> np.ndarray | None:
    """The trade as a row; None if a number has more digits than a row can hold."""
    price, quantity = _scaled(trade.price), _scaled(trade.quantity)
    if price is None or quantity is None:
        return None
    row = np.zeros(1, dtype=TRADE_DTYPE)
    row["symbol_index"] = symbol_index
    row["is_buyer_maker"] = trade.aggressor_side is Side.SELL
    row["price"], row["price_decimals"] = price
    row["quantity"], row["quantity_decimals"] = quantity
    row["quantity_ex_rpi"] = NO_VALUE
    row["agg_trade_id"] = trade.agg_trade_id
    row["first_trade_id"], row["last_trade_id"] = trade.first_trade_id, trade.last_trade_id
    row["transact_time_ms"] = trade.transact_time_ms
    row["event_time_ms"] = trade.event_time_ms if trade.event_time_ms is not None else NO_VALUE
    row["receive_time_ns"] = (
        trade.receive_time_ns if trade.receive_time_ns is not None else NO_VALUE
    )
    return row


def _scaled(value: Decimal) -> tuple[int, int] | None:
    """Mantissa and decimals of a positive finite number."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - finite, as checked by the caller
    if -exponent > _MAX_DECIMALS or len(digits) + max(0, exponent) > _MAX_DECIMALS:
        return None
    mantissa = int("".join(map(str, digits))) * 10 ** max(0, exponent)
    return mantissa, max(0, -exponent)
