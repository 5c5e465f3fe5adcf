"""What the market did after each decision, as classes: 0 down, 1 flat, 2 up; -1 undefined. Pure.

``DayData`` → labels read off the quote path: smoothed mid moves with a smoothing window of their own
(TLOB; with it tied to the horizon, scores rise with the horizon by themselves), and triple barriers
(López de Prado 2018, ch. 3) on the side of the book one would trade at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from research.dataset import DayData, Floats

DOWN: Final = 0
FLAT: Final = 1
UP: Final = 2
UNDEFINED: Final = -1

_CHUNK_ROWS: Final = 1024
_SECOND_MS: Final = 1000
_LEAST_RETURNS: Final = 30

type Labels = npt.NDArray[np.int8]


def smooth_moves(day: DayData, horizon_s: float, smoothing_s: float) -> Floats:
    """Mean mid over the ``smoothing_s`` up to ``t + horizon_s``, against that up to ``t``, minus 1.

    Args:
        day: Of one symbol.
        horizon_s: From the decision on.
        smoothing_s: Length of both averages.

    Returns:
        float64[n]; NaN where a quote of either average is undefined or lies outside the day.

    Raises:
        ValueError: A length is no whole, positive number of slots.
    """
    if len(day.quote_slot_ms) < 2:
        return np.full(len(day), np.nan)
    slot_ms = _slot_ms(day)
    width, ahead = _slots(smoothing_s, slot_ms), _slots(horizon_s, slot_ms)
    mids = (day.quote_bid + day.quote_ask) / 2.0
    place = _place(day, slot_ms)
    now, then = _means(mids, place, width), _means(mids, place + ahead, width)
    return then / now - 1.0


def smooth_labels(moves: Floats, alpha: float) -> Labels:
    """Moves by more than ``alpha`` up or down as int8[n]; -1 where undefined."""
    labels = np.full(len(moves), FLAT, np.int8)
    labels[moves > alpha] = UP
    labels[moves < -alpha] = DOWN
    labels[np.isnan(moves)] = UNDEFINED
    return labels


def fit_alpha(moves_of_training_days: Floats | Iterable[Floats]) -> float:
    """Half the mean absolute move. Of training days alone: the test's own would leak.

    Raises:
        ValueError: No move is defined.
    """
    parts = (
        [moves_of_training_days]
        if isinstance(moves_of_training_days, np.ndarray)
        else list(moves_of_training_days)
    )
    moves = np.concatenate([np.asarray(part, np.float64) for part in parts] or [np.empty(0)])
    known = np.abs(moves[np.isfinite(moves)])
    if not len(known):
        raise ValueError("no move of these days is defined")
    return float(known.mean() / 2.0)


def trailing_sigma(day: DayData, horizon_s: float, look_back_s: float = 600.0) -> Floats:
    """Volatility of the mid over the past, scaled to the horizon: float64[n], a share of the price.

    Root mean square of 1-second log returns within ``look_back_s`` before the decision, times the
    root of the horizon; NaN below 30 defined returns.
    """
    if len(day.quote_slot_ms) < 2:
        return np.full(len(day), np.nan)
    slot_ms = _slot_ms(day)
    step, count = _slots(1.0, slot_ms), int(look_back_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log((day.quote_bid + day.quote_ask) / 2.0)
    place = _place(day, slot_ms)
    squares, known = np.zeros(len(day)), np.zeros(len(day), np.int64)
    for second in range(count):
        later = _at(logs, place - second * step)
        moves = later - _at(logs, place - (second + 1) * step)
        is_known = np.isfinite(moves)
        squares += np.where(is_known, moves, 0.0) ** 2
        known += is_known
    variance = np.divide(squares, known, out=np.full(len(day), np.nan), where=known > 0)
    variance[known < _LEAST_RETURNS] = np.nan
    sigma: Floats = np.sqrt(variance * horizon_s)
    return sigma


def triple_barrier_labels(
    day: DayData, horizon_s: float, width: float, sigma: Floats | None = None
) -> Labels:
    """Which side would have been paid: bought at the ask and sold at the bid, or the reverse.

    Up: a long reaches ``entry * (1 + width * sigma)`` within the horizon before its stop at
    ``entry * (1 - width * sigma)``; down: the same of a short; else flat. A quote that touches both
    counts as the stop.

    Args:
        day: Of one symbol.
        horizon_s: The vertical barrier.
        width: Of the barriers, in ``sigma``.
        sigma: float64[n], known at the decision; ``None``: ``trailing_sigma``.

    Returns:
        int8[n]; -1 where the entry, sigma or a quote before the outcome is undefined.
    """
    labels = np.full(len(day), UNDEFINED, np.int8)
    if len(day.quote_slot_ms) < 2:
        return labels
    distance = width * (trailing_sigma(day, horizon_s) if sigma is None else sigma)
    slot_ms = _slot_ms(day)
    place, ahead = _place(day, slot_ms), _slots(horizon_s, slot_ms)
    for first in range(0, len(day), _CHUNK_ROWS):
        rows = slice(first, first + _CHUNK_ROWS)
        path = place[rows, None] + np.arange(ahead + 1)
        labels[rows] = _outcomes(
            _at(day.quote_bid, path), _at(day.quote_ask, path), distance[rows, None]
        )
    return labels


def _outcomes(bid: Floats, ask: Floats, distance: Floats) -> Labels:
    """Paths from the entry (column 0) to the horizon → classes."""
    count, end = len(bid), bid.shape[1] - 1
    bought, sold = ask[:, :1], bid[:, :1]
    bid, ask = bid[:, 1:], ask[:, 1:]
    long_target = _first(bid >= bought * (1.0 + distance), end)
    long_stop = _first(bid <= bought * (1.0 - distance), end)
    short_target = _first(ask <= sold * (1.0 - distance), end)
    short_stop = _first(ask >= sold * (1.0 + distance), end)
    unknown = _first(np.isnan(bid) | np.isnan(ask), end)
    labels = np.full(count, FLAT, np.int8)
    is_up, is_down = long_target < long_stop, short_target < short_stop
    labels[is_up], labels[is_down] = UP, DOWN
    settled = np.where(is_up, long_target, np.where(is_down, short_target, end - 1))
    is_known = np.isfinite(bought + sold + distance)[:, 0] & (unknown > settled)
    labels[~is_known] = UNDEFINED
    return labels


def _first(is_hit: npt.NDArray[np.bool_], none: int) -> npt.NDArray[np.intp]:
    return np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), none)


def _slot_ms(day: DayData) -> int:
    return int(day.quote_slot_ms[1] - day.quote_slot_ms[0])


def _slots(length_s: float, slot_ms: int) -> int:
    count = round(length_s * _SECOND_MS / slot_ms)
    if count < 1 or abs(count * slot_ms - length_s * _SECOND_MS) > 1e-6:
        raise ValueError(f"{length_s} s is no whole number of slots of {slot_ms} ms")
    return count


def _place(day: DayData, slot_ms: int) -> npt.NDArray[np.int64]:
    """The slot that ends at each decision."""
    place: npt.NDArray[np.int64] = (day.decision_ms - day.quote_slot_ms[0]) // slot_ms
    return place


def _at(values: Floats, place: npt.NDArray[np.int64]) -> Floats:
    inside = (place >= 0) & (place < len(values))
    return np.where(inside, values[np.clip(place, 0, len(values) - 1)], np.nan)


def _means(mids: Floats, place: npt.NDArray[np.int64], width: int) -> Floats:
    """Mean over the ``width`` slots up to each place."""
    total = np.zeros(len(place))
    for back in range(width):
        total += _at(mids, place - back)
    return total / width
