"""Builds window batches from plain trades, for the tests of the flow analyzer."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from domain.flow import Origin, WindowBatch
from domain.market import NO_VALUE, TRADE_DTYPE


class Trade(NamedTuple):
    """One aggTrade as on the wire; ``fills`` gives its first and last trade id."""

    agg_trade_id: int
    price: Decimal
    quantity: Decimal
    is_sell: bool
    time_ms: int
    fills: int = 1
    suspect: int = 0


def buy(agg_trade_id: int, price: str, quantity: str, time_ms: int) -> Trade:
    return Trade(agg_trade_id, Decimal(price), Decimal(quantity), False, time_ms)


def sell(agg_trade_id: int, price: str, quantity: str, time_ms: int) -> Trade:
    return Trade(agg_trade_id, Decimal(price), Decimal(quantity), True, time_ms)


def window_batch(
    windows: Sequence[Sequence[Trade]],
    *,
    start_ms: int = 0,
    duration_ms: int = 5000,
    symbol_index: Sequence[int] | None = None,
    complete: Sequence[bool] | None = None,
) -> WindowBatch:
    """A batch of the windows ``[start_ms, start_ms + duration_ms)``, one per symbol."""
    symbols = list(range(len(windows)) if symbol_index is None else symbol_index)
    rows = np.zeros(sum(map(len, windows)), TRADE_DTYPE)
    trades = [(k, trade) for k, window in zip(symbols, windows, strict=True) for trade in window]
    for row, (symbol, trade) in zip(rows, trades, strict=True):
        row["symbol_index"] = symbol
        row["is_buyer_maker"] = trade.is_sell
        row["price"], row["price_decimals"] = _scaled(trade.price)
        row["quantity"], row["quantity_decimals"] = _scaled(trade.quantity)
        row["suspect"] = trade.suspect
        row["agg_trade_id"] = trade.agg_trade_id
        row["first_trade_id"] = 10 * trade.agg_trade_id
        row["last_trade_id"] = 10 * trade.agg_trade_id + trade.fills - 1
        row["transact_time_ms"] = trade.time_ms
        row["event_time_ms"] = row["receive_time_ns"] = NO_VALUE
    flags = [True] * len(symbols) if complete is None else list(complete)
    return WindowBatch(
        start_ms=start_ms,
        end_ms=start_ms + duration_ms,
        symbol_index=symbols,
        offsets=np.cumsum([0, *map(len, windows)]),
        rows=rows,
        complete=flags,
        missing_trades=[0 if flag else None for flag in flags],
        origin=Origin.LIVE,
    )


def _scaled(value: Decimal) -> tuple[int, int]:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent <= 0, "write 1000, not 1E3"
    return int(value.scaleb(-exponent)), -exponent
