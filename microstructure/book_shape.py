"""Shape of many book snapshots at once: imbalance, weighted mid, slope, elasticity, depth bands, walls.

Level columns float64[n, L], best first, NaN where a level is absent → one float64 per snapshot, NaN
where undefined. ``book.py`` has the same measures for one snapshot. Sums run level by level in a fixed
order, so that a row's value does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from microstructure.book import BPS

type Floats = npt.NDArray[np.float64]

LEAST_SLOPE_LEVELS: Final = 3


def cumulated(sizes: Floats) -> Floats:
    """Running sum from the best level on; absent levels add nothing."""
    total: Floats = np.cumsum(np.where(np.isnan(sizes), 0.0, sizes), axis=1)
    return total


def imbalance(bid: Floats, ask: Floats) -> Floats:
    """``2·b / (b + a) − 1`` of resting sizes: −1 (only asks) to 1; NaN where both are 0.

    Gould & Bonart (2016), "Queue Imbalance as a One-Tick-Ahead Price Predictor".
    """
    total = bid + ask
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0.0, 2.0 * bid / total - 1.0, np.nan)


def queue_imbalances(bid_sizes: Floats, ask_sizes: Floats, levels: int) -> Floats:
    """Imbalance over the best ``levels`` of each snapshot; NaN where a best level is absent.

    A side with fewer levels than asked counts with those it has.
    """
    one_sided = np.isnan(bid_sizes[:, 0]) | np.isnan(ask_sizes[:, 0])
    bid = cumulated(bid_sizes[:, :levels])[:, -1]
    ask = cumulated(ask_sizes[:, :levels])[:, -1]
    return np.where(one_sided, np.nan, imbalance(bid, ask))


def weighted_mids(
    bid_price: Floats, bid_size: Floats, ask_price: Floats, ask_size: Floats
) -> Floats:
    """``I·P_a + (1 − I)·P_b`` of best quotes; both sizes zero give the plain mid."""
    total = bid_size + ask_size
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0.0, bid_size / total, 0.5)
    return share * ask_price + (1.0 - share) * bid_price


def distances_bps(prices: Floats, mid: Floats) -> Floats:
    """How far levels lie from the mid of their snapshot."""
    column = mid[:, None]
    return np.abs(prices - column) * (BPS / column)


def book_slopes(distances: Floats, sizes: Floats, *, is_log: bool = False) -> Floats:
    """Slope of one side: least squares through the origin of its cumulated depth on the distance.

    Args:
        distances: Distances of the levels, bps of the mid.
        sizes: Sizes of the levels, base units.
        is_log: Take ``ln(1 + cumulated depth)``.

    Returns:
        Base units (or log units) per bps; NaN below three levels.
    """
    depth = cumulated(sizes)
    if is_log:
        depth = np.log1p(depth)
    is_there = ~np.isnan(sizes)
    distance = np.where(is_there, distances, 0.0)
    shared = np.cumsum(distance * depth, axis=1)[:, -1]
    squares = np.cumsum(distance * distance, axis=1)[:, -1]
    enough = (is_there.sum(axis=1) >= LEAST_SLOPE_LEVELS) & (squares > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(enough, shared / squares, np.nan)


def book_elasticities(prices: Floats, sizes: Floats, mid: Floats) -> Floats:
    """Næs & Skjeltorp's (2006) slope of one side: relative growth of log depth per relative price.

    The mean over the steps τ of ``(v_{τ+1} / v_τ − 1) / |p_{τ+1} / p_τ − 1|`` with ``v = ln`` of the
    cumulated size and ``p_0`` the mid; the first step is ``v_1 / |p_1 / p_0 − 1|``. Steps from a depth
    of at most one base unit, whose logarithm is not positive, are left out.

    Returns:
        NaN below three levels or where no step is left.
    """
    volume = np.log(np.maximum(cumulated(sizes), 1e-300))
    with np.errstate(divide="ignore", invalid="ignore"):
        first = volume[:, :1] / np.abs(prices[:, :1] / mid[:, None] - 1.0)
        grown = volume[:, 1:] / volume[:, :-1] - 1.0
        later = grown / np.abs(prices[:, 1:] / prices[:, :-1] - 1.0)
    steps = np.concatenate([first, later], axis=1)
    before = np.concatenate([volume[:, :1], volume[:, :-1]], axis=1)
    usable = np.isfinite(steps) & (before > 0.0) & ~np.isnan(sizes)
    count = usable.sum(axis=1)
    enough = ((~np.isnan(sizes)).sum(axis=1) >= LEAST_SLOPE_LEVELS) & (count > 0)
    total = np.cumsum(np.where(usable, steps, 0.0), axis=1)[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(enough, total / count, np.nan)


def depth_within(prices: Floats, sizes: Floats, distances: Floats, band_bps: float) -> Floats:
    """Resting notional at most ``band_bps`` from the mid, quote units.

    A snapshot whose levels end nearer than the band gives what it has: a lower bound.
    """
    notional = np.where(distances <= band_bps, prices * sizes, 0.0)
    return cumulated(notional)[:, -1]


def asymmetry(bid: Floats, ask: Floats) -> Floats:
    """``(b − a) / (b + a)``; NaN where the sum is not positive."""
    total = bid + ask
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0.0, (bid - ask) / total, np.nan)


def wall_levels(
    notionals: Floats, distances: Floats, *, within_bps: float, multiple: float, floor: float
) -> npt.NDArray[np.bool_]:
    """Which levels are walls, the touch left out: bool[n, 2L], bids then asks as given.

    Args:
        notionals: float64[n, 2L], a snapshot's bids then asks, quote units, NaN where absent.
        distances: float64[n, 2L], bps of the mid.
        within_bps: Only levels this near count, as walls and for the median.
        multiple: A wall holds this many times the median of the near levels …
        floor: … and at least this notional.
    """
    levels = notionals.shape[1] // 2
    near = (distances <= within_bps) & ~np.isnan(notionals)
    near[:, [0, levels]] |= ~np.isnan(notionals[:, [0, levels]])
    ordered = np.sort(np.where(near, notionals, np.inf), axis=1)
    count = near.sum(axis=1)
    row = np.arange(len(notionals))
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    median = (ordered[row, low] + ordered[row, np.minimum(high, 2 * levels - 1)]) / 2.0
    threshold = np.maximum(multiple * median, floor)
    walls: npt.NDArray[np.bool_] = (
        near & (distances <= within_bps) & (notionals >= threshold[:, None])
    )
    walls[:, [0, levels]] = False
    return walls


def wall_age_ms(is_wall: npt.NDArray[np.bool_], time_ms: npt.NDArray[np.int64]) -> int | None:
    """How long a price has held a wall at the last snapshot.

    Args:
        is_wall: bool[n], whether the price was a wall in each snapshot.
        time_ms: int64[n].

    Returns:
        Milliseconds since the first of the unbroken run of walls; ``None`` without a wall at the end.
    """
    if not len(is_wall) or not is_wall[-1]:
        return None
    gaps = np.flatnonzero(~is_wall)
    first = int(gaps[-1]) + 1 if len(gaps) else 0
    return int(time_ms[-1] - time_ms[first])
