"""Order flow imbalance of the best quotes, event by event and over whole arrays.

Top-of-book quotes → signed base-unit events and their sum. Cont, Kukanov & Stoikov (2014),
"The Price Impact of Order Book Events", Journal of Financial Econometrics 12(1):

    e_n = 1{Pb_n >= Pb_n-1} qb_n - 1{Pb_n <= Pb_n-1} qb_n-1
        - 1{Pa_n <= Pa_n-1} qa_n + 1{Pa_n >= Pa_n-1} qa_n-1

Both indicators of a side hold at an unchanged price, where the event is the change of size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

type Quote = tuple[float, float, float, float]
"""``(bid price, bid size, ask price, ask size)``; prices in quote units, sizes in base units."""


def ofi_event(previous: Quote, current: Quote) -> float:
    """One level-1 order flow event.

    Args:
        previous: The quote before.
        current: The quote now, of the same unbroken update chain.

    Returns:
        Base units; positive: buying pressure (bids added or asks taken away).
    """
    bid_before, bid_size_before, ask_before, ask_size_before = previous
    bid, bid_size, ask, ask_size = current
    event = 0.0
    if bid >= bid_before:
        event += bid_size
    if bid <= bid_before:
        event -= bid_size_before
    if ask <= ask_before:
        event -= ask_size
    if ask >= ask_before:
        event += ask_size_before
    return event


def ofi_events(quotes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """All level-1 events of one unbroken sequence of quotes.

    Args:
        quotes: float64 (n, 4), rows as in ``Quote``.

    Returns:
        float64 (n - 1), base units; empty below two quotes (the first quote is no event).
    """
    if len(quotes) < 2:
        return np.empty(0, dtype=np.float64)
    bid, bid_size, ask, ask_size = quotes.T
    bids = (bid[1:] >= bid[:-1]) * bid_size[1:] - (bid[1:] <= bid[:-1]) * bid_size[:-1]
    asks = (ask[1:] <= ask[:-1]) * ask_size[1:] - (ask[1:] >= ask[:-1]) * ask_size[:-1]
    events: npt.NDArray[np.float64] = bids - asks
    return events
