"""The largest trades of a window, one by one, for whoever watches.

A window's rows (``TRADE_DTYPE``) → ``WhalePrint``s. How many there are is known from the exact sums.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from domain.flow import WhalePrint
from domain.market import Side
from microstructure.trade_flow import WhaleUnit


def whale_prints(rows: np.ndarray, count: int, unit: WhaleUnit) -> tuple[WhalePrint, ...]:
    """The ``count`` largest trades by notional, in time order.

    Args:
        rows: ``TRADE_DTYPE[n]``, one symbol's, by id.
        count: How many; 0 gives none.
        unit: What one trade is.
    """
    if not count or not len(rows):
        return ()
    starts = _starts(rows, unit)
    notional = rows["price"] / 10.0 ** rows["price_decimals"]
    notional *= rows["quantity"] / 10.0 ** rows["quantity_decimals"]
    largest = np.argsort(-np.add.reduceat(notional, starts), kind="stable")[:count]
    ends = np.append(starts[1:], len(rows))
    return tuple([_print(rows[starts[place] : ends[place]]) for place in np.sort(largest)])


def _starts(rows: np.ndarray, unit: WhaleUnit) -> np.ndarray:
    """Where each trade begins: a sweep is what one side took in one millisecond."""
    if unit is WhaleUnit.AGG_TRADE:
        return np.arange(len(rows))
    times, sides = rows["transact_time_ms"], rows["is_buyer_maker"]
    is_new = (times[1:] != times[:-1]) | (sides[1:] != sides[:-1])
    return np.append(0, np.flatnonzero(is_new) + 1)


def _print(rows: np.ndarray) -> WhalePrint:
    last = rows[-1]
    return WhalePrint(
        transact_time_ms=int(last["transact_time_ms"]),
        aggressor_side=Side.SELL if last["is_buyer_maker"] else Side.BUY,
        price=_exact(last["price"], last["price_decimals"]),
        quantity=sum((_exact(r["quantity"], r["quantity_decimals"]) for r in rows), Decimal(0)),
    )


def _exact(value: np.int64, decimals: np.uint8) -> Decimal:
    return Decimal(int(value)).scaleb(-int(decimals))
