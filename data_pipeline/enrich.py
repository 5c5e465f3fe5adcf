"""Layer 2, Enrich: one window's flow and book as numbers a model can use.

``FlowMetrics`` + ``BookWindow`` → ``EnrichedWindow``. Every exact value becomes the nearest double
here, once. Nothing looks beyond the window; without a frame or with a one-sided book, the book's
values are ``None``.
"""

from __future__ import annotations

from itertools import pairwise
from math import log, sqrt

import msgspec

from domain.flow import BookWindow, FlowMetrics
from domain.market import DepthSnapshot
from microstructure.book import (
    DepthProfile,
    Wall,
    depth_profile,
    find_walls,
    queue_imbalance,
    spread_bps,
    two_sides,
    wall_threshold,
    weighted_mid,
)

DEPTH_BANDS_BPS = (1.0, 5.0, 10.0, 25.0)
IMBALANCE_LEVELS = 5


class EnrichSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What may be a wall: a level's notional ``≥ max(multiple · median, floor)``.

    Attributes:
        wall_multiple: times the median notional of the levels around the mid.
        wall_within_bps: levels within this distance of the mid are looked at.
        wall_floor_quote: least notional of a wall, quote units.
    """

    wall_multiple: float = 8.0
    wall_within_bps: float = 25.0
    wall_floor_quote: float = 10_000.0


class BookShape(msgspec.Struct, frozen=True, gc=False):
    """The book at a window's last snapshot."""

    mid_price: float
    bid_price: float
    bid_size: float
    ask_price: float
    ask_size: float
    spread_bps: float
    microprice: float
    imbalance_1: float | None
    imbalance_5: float | None
    imbalance_10: float | None
    imbalance_20: float | None
    bids: DepthProfile  # ``within`` at DEPTH_BANDS_BPS
    asks: DepthProfile
    bid_walls: tuple[Wall, ...]  # candidates, nearest first: how long they stand is not known here
    ask_walls: tuple[Wall, ...]
    wall_within_bps: float


class EnrichedWindow(msgspec.Struct, frozen=True, gc=False):
    """One window with its exact numbers as nearest doubles, and its book."""

    metrics: FlowMetrics
    book: BookWindow | None
    shape: BookShape | None
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    vwap: float | None
    volume: float
    quote_volume: float
    delta: float
    net_flow_quote: float
    realized_vol: float | None


class MeasuredBook(msgspec.Struct, frozen=True, gc=False):
    """A snapshot and its shape, ``None`` where it has none."""

    snapshot: DepthSnapshot
    shape: BookShape | None


def enrich(
    metrics: FlowMetrics,
    book: BookWindow | None,
    settings: EnrichSettings,
    measured: MeasuredBook | None = None,
) -> EnrichedWindow:
    """Measure one validated window.

    Args:
        metrics: Validated.
        book: Of the same window; ``None`` where none was recorded (recovered windows).
        settings: Wall thresholds.
        measured: A book that was measured before, used where it is the window's last.
    """
    last = book.last if book is not None else None
    if measured is None or measured.snapshot is not last:
        measured = measure_book(last, settings) if last is not None else None
    return EnrichedWindow(
        metrics,
        book,
        measured.shape if measured is not None else None,
        None if metrics.open is None else float(metrics.open),
        None if metrics.high is None else float(metrics.high),
        None if metrics.low is None else float(metrics.low),
        None if metrics.close is None else float(metrics.close),
        None if metrics.vwap is None else float(metrics.vwap),
        float(metrics.volume),
        float(metrics.quote_volume),
        float(metrics.delta),
        float(metrics.net_flow_quote),
        realized_vol(metrics.second_closes),
    )


def realized_vol(second_closes: tuple[float | None, ...]) -> float | None:
    """Root of the summed squared log returns of a window's second closes; not annualised.

    A second without trades has no close and carries no return: the next one is taken from the last
    second that traded (which leaves the sum what carrying the price forward would make it).

    Args:
        second_closes: Last price of each second of the window, ``None`` where none traded.

    Returns:
        Dimensionless; ``None`` below two returns, that is below three seconds with trades.
    """
    logs = [log(price) for price in second_closes if price is not None and price > 0.0]
    if len(logs) < 3:
        return None
    return sqrt(sum([(after - before) ** 2 for before, after in pairwise(logs)]))


def measure_book(snapshot: DepthSnapshot, settings: EnrichSettings) -> MeasuredBook:
    """``book_shape`` with what it was measured of."""
    return MeasuredBook(snapshot, book_shape(snapshot, settings))


def book_shape(snapshot: DepthSnapshot, settings: EnrichSettings) -> BookShape | None:
    """Measure one snapshot; ``None`` if it is one-sided, crossed or not finite."""
    sides = two_sides(snapshot)
    if sides is None:
        return None
    bid_prices, bid_sizes = sides.bid_prices, sides.bid_sizes
    ask_prices, ask_sizes = sides.ask_prices, sides.ask_sizes
    mid_price = sides.mid_price
    bids = depth_profile(bid_prices, bid_sizes, mid_price, DEPTH_BANDS_BPS)
    asks = depth_profile(ask_prices, ask_sizes, mid_price, DEPTH_BANDS_BPS)
    within_bps = settings.wall_within_bps
    threshold = wall_threshold(
        bids,
        asks,
        within_bps=within_bps,
        multiple=settings.wall_multiple,
        floor=settings.wall_floor_quote,
    )
    return BookShape(
        mid_price,
        bid_prices[0],
        bid_sizes[0],
        ask_prices[0],
        ask_sizes[0],
        spread_bps(bid_prices[0], ask_prices[0]),
        weighted_mid(bid_prices[0], bid_sizes[0], ask_prices[0], ask_sizes[0]),
        queue_imbalance(bid_sizes, ask_sizes, 1),
        queue_imbalance(bid_sizes, ask_sizes, IMBALANCE_LEVELS),
        queue_imbalance(bid_sizes, ask_sizes, 10),
        queue_imbalance(bid_sizes, ask_sizes, 20),
        bids,
        asks,
        find_walls(bid_prices, bid_sizes, bids, threshold, within_bps),
        find_walls(ask_prices, ask_sizes, asks, threshold, within_bps),
        within_bps,
    )
