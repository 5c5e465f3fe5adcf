"""Prices to watch, from bars: the previous day's pivots and volume profile, support and resistance.

Bars in time order → one value per bar, known at that bar's close: a swing counts from the bar that
confirms it, a day's levels from the next day on. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.levels import classic_pivots, value_area
from domain.intervals import DAY_MS
from ingestion.indicators import Floats, Ints

SWING_BARS = 5  # bars on either side that a swing has to tower over
MAX_PROFILE_BINS = 4_096
_BIN_ATR_RATIO = 1 / 50
_CLUSTER_ATR_RATIO = 0.25
LEVEL_NAMES = ("pivot", "r1", "r2", "r3", "s1", "s2", "s3", "poc", "vah", "val")


class DayBars(NamedTuple):
    """Bars of one completed UTC day."""

    high: Floats
    low: Floats
    close: Floats
    vwap: Floats
    volume: Floats


def day_levels(day: DayBars, atr: float, tick: float) -> dict[str, float]:
    """Pivots and volume profile of one completed day, by ``LEVEL_NAMES``; NaN where undefined.

    A bar's volume is put at its VWAP; bins are ``max(tick, ATR / 50)`` wide.
    """
    pivots = classic_pivots(float(day.high.max()), float(day.low.min()), float(day.close[-1]))
    found = {name: getattr(pivots, name) for name in LEVEL_NAMES[:7]}
    return found | dict(zip(LEVEL_NAMES[7:], _profile(day, atr, tick), strict=True))


def _profile(day: DayBars, atr: float, tick: float) -> tuple[float, float, float]:
    """Point of control, and high and low of the value area: centres of their bins."""
    traded = day.volume > 0
    prices, volumes = day.vwap[traded], day.volume[traded]
    if not len(prices):
        return (np.nan, np.nan, np.nan)
    low, high = float(prices.min()), float(prices.max())
    width = max(tick, atr * _BIN_ATR_RATIO if np.isfinite(atr) else 0.0)
    width = max(width, (high - low) / (MAX_PROFILE_BINS - 1))
    if width <= 0:
        return (low, low, low)
    base = np.floor(low / width)  # bins lie on multiples of their width
    bins = (np.floor(prices / width) - base).astype(np.int64)
    area = value_area(np.bincount(bins, weights=volumes).tolist())
    if area is None:
        return (np.nan, np.nan, np.nan)
    poc, top, bottom = ((base + i + 0.5) * width for i in (area.poc, area.high, area.low))
    return (float(poc), float(top), float(bottom))


def swings(prices: Floats, reach: int = SWING_BARS, *, lows: bool = False) -> Ints:
    """Indices of the bars that tower over ``reach`` bars on both sides; of a plateau the leftmost.

    A swing at ``i`` is known at the close of ``i + reach``, not before.
    """
    if len(prices) < 2 * reach + 1:
        return np.empty(0, dtype=np.int64)
    values = -prices if lows else prices
    windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1)
    centre = windows[:, reach]
    towers = (windows[:, :reach].max(axis=1) < centre) & (
        windows[:, reach + 1 :].max(axis=1) <= centre
    )
    return (np.flatnonzero(towers) + reach).astype(np.int64)


def support_and_resistance(
    high: Floats, low: Floats, close: Floats, atr: Floats, days: Ints, *, lookback: int
) -> tuple[Floats, Floats]:
    """The strongest level below and above each close, from swings confirmed before its day began.

    Levels are drawn once a day, as pivots are. Swings within a quarter of the ATR are one level; its
    strength is the sum of the recency (1 down to 0 over the look-back) of its touches, so many and
    fresh touches win.

    Args:
        high: Of each bar.
        low: Of each bar.
        close: Of each bar.
        atr: Of each bar.
        days: Start of each bar's UTC day, sorted.
        lookback: Bars before the day in which swings count.

    Returns:
        Support and resistance per bar; NaN without a swing on that side.
    """
    highs, lows = swings(high), swings(low, lows=True)
    at = np.concatenate([highs, lows])
    price = np.concatenate([high[highs], low[lows]])
    order = np.argsort(at, kind="stable")
    at, price = at[order], price[order]
    support, resistance = np.full(len(close), np.nan), np.full(len(close), np.nan)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(days)) + 1, [len(days)]])
    first = np.searchsorted(at, edges - lookback, side="right")
    end = np.searchsorted(at, edges - 1 - SWING_BARS, side="right")
    for day in range(len(edges) - 1):
        begin, stop = int(edges[day]), int(edges[day + 1])
        if end[day] <= first[day] or not np.isfinite(atr[begin - 1]):
            continue
        known = slice(first[day], end[day])
        recency = 1.0 - (begin - at[known]) / lookback
        levels, strengths = _clusters(price[known], recency, _CLUSTER_ATR_RATIO * atr[begin - 1])
        support[begin:stop] = _strongest(levels, strengths, close[begin:stop], below=True)
        resistance[begin:stop] = _strongest(levels, strengths, close[begin:stop], below=False)
    return support, resistance


def _strongest(levels: Floats, strengths: Floats, close: Floats, *, below: bool) -> Floats:
    """For each close the strongest level on one side of it; NaN where there is none."""
    on_side = (levels < close[:, None]) if below else (levels > close[:, None])
    best = np.argmax(np.where(on_side, strengths, -np.inf), axis=1)
    return np.where(on_side.any(axis=1), levels[best], np.nan)


def _clusters(prices: Floats, weights: Floats, width: float) -> tuple[Floats, Floats]:
    """Levels (weighted means of prices no more than ``width`` from their neighbour) and strengths."""
    order = np.argsort(prices, kind="stable")
    prices, weights = prices[order], weights[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(prices) > width) + 1])
    strengths = np.add.reduceat(weights, starts)
    return np.add.reduceat(prices * weights, starts) / strengths, strengths


def previous_day(days: Ints, day: int) -> slice:
    """The bars of the UTC day before ``day`` in a sorted array of day starts."""
    return slice(
        int(np.searchsorted(days, day - DAY_MS, side="left")),
        int(np.searchsorted(days, day, side="left")),
    )
