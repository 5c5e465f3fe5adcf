"""Raw bars of one symbol → curated columns, and the bars that cannot be true. Pure.

Consumes columns in any order, with a stretch of warm-up bars before the wanted ones → produces the
wanted bars in time order, each once, with everything known at their close.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from domain.intervals import DAY_MS, INTERVAL_MS, open_times_ms
from ingestion import indicators
from ingestion.indicators import Floats, Ints
from ingestion.price_levels import (
    LEVEL_NAMES,
    SWING_BARS,
    DayBars,
    day_levels,
    support_and_resistance,
)

CURATION_VERSION: Final = 1
"""Part of every curated file; another one means that it is computed again."""

VWAP_OUTSIDE: Final = 1
NOT_SILENT: Final = 2
JUMP: Final = 4
"""Bits of ``suspect``: flagged, not removed. Quote volume / volume lies outside low … high by more
than 1 bp; no trade, but a volume or a range; opens more than 20 bps from the last close."""
_VWAP_SLACK_RATIO = 1e-4
_JUMP_RATIO = 20e-4

type Columns = dict[str, np.ndarray]

_PRICES = ("open", "high", "low", "close")
_AMOUNTS = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")


class CurationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Look-backs of the curated columns.

    Attributes:
        atr_period: bars of Wilder's average true range.
        volatility_days: days of returns in the realized volatility; at least 30 bars.
        level_bars: bars in which swings count for support and resistance.
        minimum_day_coverage_ratio: share of a day's bars needed for it to leave levels (0-1).
    """

    atr_period: int = 14
    volatility_days: int = 30
    level_bars: int = 500
    minimum_day_coverage_ratio: float = 0.95

    def volatility_bars(self, interval: str) -> int:
        """Bars of the realized volatility."""
        return max(30, self.volatility_days * DAY_MS // INTERVAL_MS[interval])

    def warm_up(self, interval: str) -> tuple[int, int]:
        """What has to lie before the first wanted bar: bars, and a stretch of time, ms."""
        stretch_ms = 2 * self.volatility_bars(interval) * INTERVAL_MS[interval]
        return self.level_bars + 2 * SWING_BARS + 2, max(stretch_ms, 2 * DAY_MS)


def clean(raw: Columns, interval: str) -> tuple[Columns, dict[str, int]]:
    """Bars sorted, each open time once, and only those that can be true.

    Args:
        raw: ``lake.kline_files.RAW_COLUMNS``.
        interval: Whose grid they must lie on.

    Returns:
        The bars, and how many were left out by reason (``duplicate``, ``grid``, ``not_finite``,
        ``negative``, ``ohlc``, ``taker_volume``).
    """
    order = np.argsort(raw["open_time_ms"], kind="stable")
    bars = {name: values[order] for name, values in raw.items()}
    faults = _faults(bars, interval)
    keep = np.ones(len(order), dtype=np.bool_)
    counts: dict[str, int] = {}
    for reason, is_faulty in faults.items():
        found = int((is_faulty & keep).sum())
        if found:
            counts[reason] = found
            keep &= ~is_faulty
    return ({name: values[keep] for name, values in bars.items()}, counts)


def _faults(bars: Columns, interval: str) -> dict[str, np.ndarray]:
    times = bars["open_time_ms"]
    if not len(times):
        return {}
    opened, high, low, close = (bars[name] for name in _PRICES)
    values = np.vstack([bars[name] for name in (*_PRICES, *_AMOUNTS)])
    repeated = np.zeros(len(times), dtype=np.bool_)
    repeated[1:] = np.diff(times) == 0
    # Nearest doubles of equal sums may differ in the last digit.
    slack = 1e-9 * np.abs(bars["volume"])
    is_whole = bars["close_time_ms"] > times
    if interval != "1M":
        is_whole &= bars["close_time_ms"] - times == INTERVAL_MS[interval] - 1
    return {
        "duplicate": repeated,
        "grid": (open_times_ms(times, interval) != times) | ~is_whole,
        "not_finite": ~np.isfinite(values).all(axis=0),
        "negative": (values[:4] <= 0).any(axis=0) | (values[4:] < 0).any(axis=0),
        "ohlc": (high < np.maximum(opened, close)) | (low > np.minimum(opened, close)),
        "taker_volume": bars["taker_buy_volume"] > bars["volume"] + slack,
    }


def curate(
    raw: Columns,
    interval: str,
    start_ms: int,
    settings: CurationSettings,
    *,
    atr_before: float | None = None,
) -> tuple[Columns, dict[str, int]]:
    """Curate the bars that open at ``start_ms`` or later; those before it only warm up.

    Args:
        raw: ``lake.kline_files.RAW_COLUMNS``.
        interval: Such as ``1h``.
        start_ms: Start of a UTC day.
        settings: Look-backs.
        atr_before: ATR of the last bar before ``start_ms``, as curated before; ``None`` if ``raw``
            begins where the series begins.

    Returns:
        The curated columns (NaN: undefined), and the counts of ``clean`` (of the wanted bars).
    """
    wanted = {name: values[raw["open_time_ms"] >= start_ms] for name, values in raw.items()}
    rejected = clean(wanted, interval)[1]
    bars, _ = clean(raw, interval)
    first = int(np.searchsorted(bars["open_time_ms"], start_ms))
    columns = dict(bars) | _measured(bars, first, interval, settings, atr_before)
    return {name: values[first:] for name, values in columns.items()}, rejected


def _measured(
    bars: Columns,
    first: int,
    interval: str,
    settings: CurationSettings,
    atr_before: float | None,
) -> Columns:
    times, close = bars["open_time_ms"], bars["close"]
    interval_ms = INTERVAL_MS[interval]
    index = indicators.places(times, interval)
    simple, logarithmic = indicators.returns(close, index)
    ranges = indicators.true_range(bars["high"], bars["low"], close)
    atr = np.full(len(times), np.nan)
    if atr_before is None:
        atr = indicators.atr(ranges, settings.atr_period)
    else:
        atr[first:] = indicators.atr(ranges[first:], settings.atr_period, before=atr_before)
        atr[max(0, first - 1) : first] = atr_before
    lookback = settings.volatility_bars(interval)
    volatility = indicators.realized_volatility(logarithmic, index, interval_ms, lookback)
    # A week has no day before it: there the bar before stands for it.
    days = times if interval_ms > DAY_MS else indicators.day_starts(times)
    support, resistance = support_and_resistance(
        bars["high"], bars["low"], close, atr, days, lookback=settings.level_bars
    )
    vwap = indicators.vwap(bars["quote_volume"], bars["volume"])
    return {
        "missing_before": np.diff(index, prepend=index[:1] - 1) - 1,
        "suspect": _suspect(bars, vwap),
        "vwap": vwap,
        "delta": 2.0 * bars["taker_buy_volume"] - bars["volume"],
        "return_simple": simple,
        "return_log": logarithmic,
        "true_range": ranges,
        "atr": atr,
        "realized_volatility": volatility,
        **_day_so_far(bars, days),
        **_levels(bars, days, atr, first, interval_ms, settings),
        "support": support,
        "resistance": resistance,
    }


def _suspect(bars: Columns, vwap: Floats) -> Ints:
    """Bits of what is odd about each bar."""
    high, low = bars["high"], bars["low"]
    outside = (vwap > high * (1 + _VWAP_SLACK_RATIO)) | (vwap < low * (1 - _VWAP_SLACK_RATIO))
    not_silent = (bars["trade_count"] == 0) & ((bars["volume"] > 0) | (high > low))
    jump = np.zeros(len(high), dtype=np.bool_)
    jump[1:] = np.abs(bars["open"][1:] / bars["close"][:-1] - 1.0) > _JUMP_RATIO
    found: Ints = outside * VWAP_OUTSIDE + not_silent * NOT_SILENT + jump * JUMP
    return found


def _day_so_far(bars: Columns, days: Ints) -> Columns:
    """The running day up to each bar; its last bar has the day's aggregates."""
    volume = indicators.running(bars["volume"], days, np.add)
    quote_volume = indicators.running(bars["quote_volume"], days, np.add)
    begins = np.searchsorted(days, days, side="left")
    return {
        "day_open": bars["open"][begins],
        "day_high": indicators.running(bars["high"], days, np.maximum),
        "day_low": indicators.running(bars["low"], days, np.minimum),
        "day_volume": volume,
        "day_quote_volume": quote_volume,
        "day_vwap": indicators.vwap(quote_volume, volume),
    }


def _levels(
    bars: Columns,
    days: Ints,
    atr: Floats,
    first: int,
    interval_ms: int,
    settings: CurationSettings,
) -> Columns:
    """The levels the day before leaves behind, for every bar from ``first`` on."""
    found = {name: np.full(len(days), np.nan) for name in LEVEL_NAMES}
    vwap = indicators.vwap(bars["quote_volume"], bars["volume"])
    edges = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    span_ms = max(interval_ms, DAY_MS)
    needed = settings.minimum_day_coverage_ratio * (span_ms // interval_ms)
    for begin, middle, end in zip(edges, edges[1:], edges[2:], strict=False):
        follows = days[middle] - days[begin] == span_ms if middle < len(days) else False
        if end <= first or not follows or middle - begin < needed:
            continue
        of_day = slice(begin, middle)
        day = DayBars(
            bars["high"][of_day], bars["low"][of_day], bars["close"][of_day],
            vwap[of_day], bars["volume"][of_day],
        )  # fmt: skip
        for name, level in day_levels(day, float(atr[middle - 1]), 0.0).items():
            found[name][middle:end] = level
    return found
