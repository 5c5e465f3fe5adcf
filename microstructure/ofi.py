"""Order flow imbalance of the best quotes and of deeper levels, event by event and over whole arrays.

Quotes or book tapes → signed base-unit events, their sums, and the integrated flow of many levels. Cont, Kukanov & Stoikov (2014),
"The Price Impact of Order Book Events", Journal of Financial Econometrics 12(1):

    e_n = 1{Pb_n >= Pb_n-1} qb_n - 1{Pb_n <= Pb_n-1} qb_n-1
        - 1{Pa_n <= Pa_n-1} qa_n + 1{Pa_n >= Pa_n-1} qa_n-1

Both indicators of a side hold at an unchanged price, where the event is the change of size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from microstructure.book_tape import BookTape

_RANK_ONE: Final = 1e-12  # a second eigenvalue this much smaller than the first is rounding

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


def level_events(tape: BookTape, levels: int) -> npt.NDArray[np.float64]:
    """The events of each of the best levels, one row per snapshot.

    The m-th level is the m-th one that holds an order: after a move of the touch the levels are
    numbered anew, as Xu, Gould & Howison (2018), "Multi-Level Order-Flow Imbalance in a Limit Order
    Book", intend.

    Args:
        tape: Snapshots; NaN where a level is absent.
        levels: How many levels M to take, at most those of the tape.

    Returns:
        float64 (n, M), base units. NaN: the first snapshot, one behind a break, and a level that
        this snapshot or the one before lacks.
    """
    bid, bid_size = tape.bid_price[:, :levels], tape.bid_size[:, :levels]
    ask, ask_size = tape.ask_price[:, :levels], tape.ask_size[:, :levels]
    events = np.full(bid.shape, np.nan)
    events[1:] = (bid[1:] >= bid[:-1]) * bid_size[1:] - (bid[1:] <= bid[:-1]) * bid_size[:-1]
    events[1:] -= (ask[1:] <= ask[:-1]) * ask_size[1:] - (ask[1:] >= ask[:-1]) * ask_size[:-1]
    events[tape.is_break] = np.nan
    return events


def scaled_ofi(
    flow: npt.NDArray[np.float64],
    bid_size: npt.NDArray[np.float64],
    ask_size: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Order flow per mean depth Q, the mean of ``(q_b + q_a) / 2`` over levels and snapshots.

    Args:
        flow: float64 (M,), base units.
        bid_size: float64 (n, M) of the snapshots that the flow lies between.
        ask_size: Same shape.

    Returns:
        float64 (M,); NaN where there is no depth.
    """
    sizes = (bid_size + ask_size) / 2.0
    known = sizes[~np.isnan(sizes)]
    mean = known.mean() if len(known) else 0.0
    return flow / mean if mean > 0.0 else np.full_like(flow, np.nan)


def principal_weights(covariances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights of the integrated OFI from covariances of the levels' past flow.

    Cont, Cucuringu & Zhang (2023), "Cross-Impact of Order Flow Imbalance in Equity Markets": the
    first principal component w₁, Σ w₁ > 0, over its 1-norm.

    Args:
        covariances: float64 (n, M, M) of scaled flow over past windows.

    Returns:
        float64 (n, M), each row of 1-norm 1: ``(1, 0, …)`` where the covariance has rank 0 or 1, NaN
        where it is not known.
    """
    weights = np.full(covariances.shape[:2], np.nan)
    known = np.isfinite(covariances).all(axis=(1, 2))
    values, vectors = np.linalg.eigh(covariances[known])
    first = vectors[:, :, -1]
    first = np.where(first.sum(axis=1, keepdims=True) < 0.0, -first, first)
    if covariances.shape[1] > 1:
        largest, second = values[:, -1:], values[:, -2:-1]
        only_touch = np.arange(covariances.shape[1]) == 0
        first = np.where(second <= _RANK_ONE * np.maximum(largest, 0.0), only_touch, first)
    weights[known] = first / np.abs(first).sum(axis=1, keepdims=True)
    return weights


def integrated_ofi(
    flow: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """``w₁ᵀ·ofi / ‖w₁‖₁`` of scaled flow (n, M) with weights (n, M) or (M,) of any norm."""
    total = np.zeros(len(flow))
    norm = np.zeros(len(flow))
    for level in range(flow.shape[1]):
        total = total + weights[..., level] * flow[:, level]
        norm = norm + np.abs(weights[..., level])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 0.0, total / norm, np.nan)
