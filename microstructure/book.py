"""Shape of one book snapshot: spread, queue imbalance, size-weighted microprice, depth, walls.

Price and size lists, best level first → plain numbers. Undefined is ``None``: never NaN, never 0.
Prices are quote units, sizes base units, notionals quote units, distances bps of the mid price.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import isfinite

import msgspec

from domain.market import DepthSnapshot

BPS = 10_000.0


class BookSides(msgspec.Struct, frozen=True, gc=False):
    """A two-sided, uncrossed snapshot in columns, best level first; all numbers finite, > 0."""

    bid_prices: list[float]
    bid_sizes: list[float]
    ask_prices: list[float]
    ask_sizes: list[float]

    @property
    def mid_price(self) -> float:
        """Middle of the best quotes."""
        return (self.bid_prices[0] + self.ask_prices[0]) / 2.0


class DepthProfile(msgspec.Struct, frozen=True, gc=False):
    """Resting notional of one side.

    ``within[i]`` sums the levels at most ``bands[i]`` bps from the mid. The snapshot ends
    ``reach_bps`` away: a band wider than that is truncated, its sum a lower bound.
    """

    within: list[float]
    reach_bps: float
    total: float
    distances_bps: list[float]
    notionals: list[float]


class Wall(msgspec.Struct, frozen=True, gc=False):
    """A level much larger than its neighbours."""

    price: float
    size: float
    distance_bps: float


def two_sides(snapshot: DepthSnapshot) -> BookSides | None:
    """Split a snapshot's levels into columns.

    Returns:
        ``None`` where no two-sided measure is defined: a side is missing, the book is crossed, or
        a number is not finite or not positive.
    """
    if not snapshot.bids or not snapshot.asks:
        return None
    bid_prices, bid_sizes = map(list, zip(*snapshot.bids, strict=True))
    ask_prices, ask_sizes = map(list, zip(*snapshot.asks, strict=True))
    smallest = min(*bid_prices, *bid_sizes, *ask_prices, *ask_sizes)
    total = sum(bid_prices) + sum(bid_sizes) + sum(ask_prices) + sum(ask_sizes)
    if not smallest > 0.0 or not isfinite(total) or ask_prices[0] < bid_prices[0]:
        return None
    return BookSides(bid_prices, bid_sizes, ask_prices, ask_sizes)


def spread_bps(bid_price: float, ask_price: float) -> float:
    """Quoted spread in bps of the mid price."""
    return BPS * (ask_price - bid_price) / ((ask_price + bid_price) / 2.0)


def queue_imbalance(
    bid_sizes: Sequence[float], ask_sizes: Sequence[float], levels: int
) -> float | None:
    """Imbalance of resting size over the best ``levels``: ``2·q_b / (q_b + q_a) − 1``.

    Gould & Bonart (2016), "Queue Imbalance as a One-Tick-Ahead Price Predictor".

    Returns:
        −1 (only asks) to 1 (only bids); ``None`` if a side is missing or both are empty. A side
        with fewer levels than asked counts with those it has.
    """
    if not bid_sizes or not ask_sizes:
        return None
    bid, ask = sum(bid_sizes[:levels]), sum(ask_sizes[:levels])
    total = bid + ask
    return 2.0 * bid / total - 1.0 if total > 0.0 else None


def weighted_mid(bid_price: float, bid_size: float, ask_price: float, ask_size: float) -> float:
    """Size-weighted mid price ``I·P_a + (1 − I)·P_b`` with ``I = q_b / (q_b + q_a)``.

    This is the column ``microprice``; Stoikov's (2018) martingale estimator is another measure.
    Both sizes zero give the plain mid.
    """
    total = bid_size + ask_size
    share = bid_size / total if total > 0.0 else 0.5
    return share * ask_price + (1.0 - share) * bid_price


def depth_profile(
    prices: Sequence[float], sizes: Sequence[float], mid_price: float, bands_bps: Sequence[float]
) -> DepthProfile:
    """Resting notional of one side within each distance of the mid.

    Args:
        prices: Level prices, best first; not empty.
        sizes: Level sizes, same length.
        mid_price: Reference price.
        bands_bps: Distances; a level exactly on a band counts.
    """
    scale = BPS / mid_price
    distances = [abs(price - mid_price) * scale for price in prices]
    notionals = [price * size for price, size in zip(prices, sizes, strict=True)]
    cumulated = list(accumulate(notionals, initial=0.0))
    within = [cumulated[bisect_right(distances, band)] for band in bands_bps]
    return DepthProfile(within, distances[-1], cumulated[-1], distances, notionals)


def wall_threshold(
    bids: DepthProfile, asks: DepthProfile, *, within_bps: float, multiple: float, floor: float
) -> float:
    """Notional from which a level is a wall: ``max(multiple · median, floor)``.

    The median is taken over both sides' levels within ``within_bps`` of the mid; the best levels
    always count, so that it exists.
    """
    near = bids.notionals[: max(1, bisect_right(bids.distances_bps, within_bps))]
    near += asks.notionals[: max(1, bisect_right(asks.distances_bps, within_bps))]
    near.sort()
    half = len(near) // 2
    median = near[half] if len(near) % 2 else (near[half - 1] + near[half]) / 2.0
    return max(multiple * median, floor)


def find_walls(
    prices: Sequence[float],
    sizes: Sequence[float],
    profile: DepthProfile,
    threshold: float,
    within_bps: float,
) -> tuple[Wall, ...]:
    """The levels of one side that are as large as a wall, nearest to the touch first.

    The touch itself is left out: on large-tick pairs it is always big, and it has columns of its
    own. Levels are taken one by one: twenty levels of a small-tick pair span less than the 1 bp
    over which a full book would merge them.
    """
    distances, notionals = profile.distances_bps, profile.notionals
    stop = bisect_right(distances, within_bps)
    return tuple(
        [
            Wall(prices[index], sizes[index], distances[index])
            for index in range(1, stop)
            if notionals[index] >= threshold
        ]
    )
