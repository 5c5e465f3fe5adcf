"""The best quotes at the end of every slot of time, for labels, gains and pictures. Pure.

``BookTape`` → columns. The quote of a slot is that of the last snapshot before the slot's end, if it is
two-sided, no older than a second, and the chain did not break after it. Where nobody recorded books,
trades tell the touch: the last sale met the bid, the last purchase the ask.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from microstructure.book_tape import BookTape, Floats
from microstructure.trade_rows import prices_and_quantities

STALE_MS: Final = 1_000
"""A book that nothing was heard of for so long is not known any more."""
STALE_TRADES_MS: Final = 10_000
"""A touch told by trades, the same."""
SLOT_MS: Final = 100


class QuotePath(msgspec.Struct, frozen=True, eq=False):
    """Quotes at times.

    Attributes:
        time_ms: int64[m]; the quote is what was known just before.
        bid_price: float64[m], NaN where undefined.
        ask_price: float64[m], NaN where undefined.
    """

    time_ms: npt.NDArray[np.int64]
    bid_price: Floats
    ask_price: Floats


def snapshots_before(tape: BookTape, times_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The snapshot that is valid at each time, of any shape; -1 where there is none.

    The last one with ``T`` before it, unless it is one-sided or older than ``STALE_MS``.
    """
    place = np.searchsorted(tape.time_ms, times_ms, side="left") - 1
    known = np.maximum(place, 0)
    if not len(tape):
        return np.full(np.shape(times_ms), -1, np.intp)
    is_fresh = times_ms - tape.time_ms[known] <= STALE_MS
    return np.where((place >= 0) & is_fresh & tape.is_two_sided[known], place, -1)


def quote_path(tape: BookTape, start_ms: int, end_ms: int, slot_ms: int = SLOT_MS) -> QuotePath:
    """Quotes at the ends of all slots of ``[start_ms, end_ms)``.

    Args:
        tape: From ``STALE_MS`` before the start on. What comes after the end tells whether the chain
            broke before it.
        start_ms: A multiple of ``slot_ms``, as is ``end_ms``.
        end_ms: Exclusive.
        slot_ms: Length of a slot.
    """
    times = np.arange(start_ms + slot_ms, end_ms + 1, slot_ms, dtype=np.int64)
    place = snapshots_before(tape, times)
    found = place >= 0
    breaks_next = np.zeros(len(tape) + 1, np.bool_)
    breaks_next[: max(len(tape) - 1, 0)] = tape.is_break[1:]
    is_in_slot = np.zeros(len(times), np.bool_)
    is_in_slot[found] = tape.time_ms[place[found]] >= times[found] - slot_ms
    found &= is_in_slot | ~breaks_next[place]
    bid, ask = np.full(len(times), np.nan), np.full(len(times), np.nan)
    bid[found], ask[found] = tape.bid_price[place[found], 0], tape.ask_price[place[found], 0]
    return QuotePath(times, bid, ask)


def trade_quote_path(
    trades: np.ndarray, start_ms: int, end_ms: int, slot_ms: int = SLOT_MS
) -> QuotePath:
    """The same from trades alone: the last trade is at the touch, the other side where it last was.

    Args:
        trades: ``TRADE_DTYPE`` rows of one symbol, ascending, from twice ``STALE_TRADES_MS``
            before the start on.
        start_ms: A multiple of ``slot_ms``, as is ``end_ms``.
        end_ms: Exclusive.
        slot_ms: Length of a slot.
    """
    times = np.arange(start_ms + slot_ms, end_ms + 1, slot_ms, dtype=np.int64)
    return QuotePath(times, *trade_touch(trades, times))


def trade_touch(trades: np.ndarray, times_ms: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Bid and ask as trades tell them just before each time, of any shape; NaN where undefined.

    Args:
        trades: ``TRADE_DTYPE`` rows of one symbol, ascending, from twice ``STALE_TRADES_MS`` before
            the first time on.
        times_ms: Where to look.
    """
    bid, ask = np.full(times_ms.shape, np.nan), np.full(times_ms.shape, np.nan)
    if not len(trades):
        return bid, ask
    at_ms = np.maximum.accumulate(trades["transact_time_ms"])
    price, _ = prices_and_quantities(trades)
    place = np.searchsorted(at_ms, times_ms, side="left") - 1
    found = place >= 0
    found &= times_ms - at_ms[place] <= STALE_TRADES_MS
    last = place[found]
    lower = _of_side(trades["is_buyer_maker"], at_ms, price)[last]
    upper = _of_side(~trades["is_buyer_maker"], at_ms, price)[last]
    bid[found], ask[found] = np.fmin(lower, price[last]), np.fmax(upper, price[last])
    return bid, ask


def _of_side(is_side: npt.NDArray[np.bool_], at_ms: npt.NDArray[np.int64], price: Floats) -> Floats:
    """Price of the last trade of one side up to each trade; NaN where it is too old."""
    place = np.maximum.accumulate(np.where(is_side, np.arange(len(price)), -1))
    is_fresh = (place >= 0) & (at_ms - at_ms[place] <= STALE_TRADES_MS)
    return np.where(is_fresh, price[place], np.nan)
