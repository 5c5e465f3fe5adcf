"""The largest trades of a window, one by one: aggTrades, or sweeps, exact and in time order."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from domain.market import TRADE_DTYPE, Side
from microstructure.trade_flow import WhaleUnit
from microstructure.whale_prints import whale_prints


def rows(*trades: tuple[int, int, int, bool]) -> np.ndarray:
    """(time, price in cents, quantity in thousandths, whether the aggressor sold)."""
    found = np.zeros(len(trades), TRADE_DTYPE)
    found["price_decimals"], found["quantity_decimals"] = 2, 3
    for place, (time_ms, price, quantity, is_sell) in enumerate(trades):
        found[place]["transact_time_ms"] = time_ms
        found[place]["price"], found[place]["quantity"] = price, quantity
        found[place]["is_buyer_maker"] = is_sell
    return found


TRADES = rows((1, 6_400_010, 5, False), (2, 6_400_020, 2_500, True), (3, 6_400_030, 1_750, False))


def test_the_largest_come_in_time_order_with_exact_numbers() -> None:
    sold, bought = whale_prints(TRADES, 2, WhaleUnit.AGG_TRADE)
    assert (sold.aggressor_side, sold.price, sold.quantity) == (
        Side.SELL,
        Decimal("64000.20"),
        Decimal("2.500"),
    )
    assert (bought.transact_time_ms, bought.aggressor_side) == (3, Side.BUY)


def test_a_sweep_is_what_one_side_took_in_one_millisecond() -> None:
    swept = rows((1, 100, 10, False), (1, 101, 20, False), (1, 101, 5, True), (2, 102, 20, False))
    (found,) = whale_prints(swept, 1, WhaleUnit.SWEEP)
    assert (found.quantity, found.price) == (Decimal("0.030"), Decimal("1.01"))
    assert len(whale_prints(swept, 9, WhaleUnit.SWEEP)) == 3


def test_without_whales_there_are_none() -> None:
    assert whale_prints(TRADES, 0, WhaleUnit.AGG_TRADE) == ()
    assert whale_prints(TRADES[:0], 3, WhaleUnit.AGG_TRADE) == ()
