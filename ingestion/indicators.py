"""Indicators of closed bars as columns: returns, true range, ATR, volatility, VWAP, the running day.

Equal-length float64 arrays in time order → arrays of the same length; NaN is "undefined" (the writer
stores null). Pure. No value depends on where the series begins, once its look-back is there: adding
a day later gives the same bits as computing everything, so curation can be incremental.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from domain.intervals import DAY_MS, INTERVAL_MS

YEAR_S = 365 * 86_400  # these markets never close: not 252 days
MIN_RETURNS = 20  # fewer are no volatility

type Floats = npt.NDArray[np.float64]
type Ints = npt.NDArray[np.int64]


def places(open_time_ms: Ints, interval: str) -> Ints:
    """Each bar's absolute place on the interval's grid: neighbours differ by one."""
    if interval == "1M":
        months: Ints = (
            open_time_ms.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        )
        return months
    return open_time_ms // INTERVAL_MS[interval]


def returns(close: Floats, index: Ints) -> tuple[Floats, Floats]:
    """Simple and logarithmic returns; NaN at the first bar and after a missing one.

    A missing bar makes its return unknown, not zero.

    Args:
        close: Of each bar.
        index: The bars' places on the grid.
    """
    simple = np.full(len(close), np.nan)
    if len(close) > 1:
        simple[1:] = close[1:] / close[:-1] - 1.0
        simple[1:][np.diff(index) != 1] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithmic = np.full(len(close), np.nan)
        logarithmic[1:] = np.where(np.isnan(simple[1:]), np.nan, np.log(close[1:] / close[:-1]))
    return simple, logarithmic


def true_range(high: Floats, low: Floats, close: Floats) -> Floats:
    """``max(H - L, |H - C₋₁|, |L - C₋₁|)``; ``H - L`` at the first bar. After a hole the last close counts."""
    ranges = high - low
    if len(close) > 1:
        before = close[:-1]
        ranges[1:] = np.maximum(
            ranges[1:], np.maximum(np.abs(high[1:] - before), np.abs(low[1:] - before))
        )
    return ranges


def atr(ranges: Floats, period: int = 14, *, before: float | None = None) -> Floats:
    """Average true range (Wilder, New Concepts in Technical Trading Systems, 1978).

    ``ATR = ((p - 1) ATR₋₁ + TR) / p``, seeded at index ``p`` with the mean of ``TR₁ … TR_p``, as
    TA-Lib does it.

    Args:
        ranges: True ranges, the first of the whole series first.
        period: ``p``.
        before: ATR of the bar before ``ranges[0]``, to go on with a series; NaN if it had none.
    """
    found = np.full(len(ranges), np.nan)
    values = ranges.tolist()
    begin = 0
    if before is not None and not math.isnan(before):
        current = before
    elif len(values) > period:
        # TA-Lib adds the ranges one by one; np.sum pairs them and differs in the last digit.
        current = sum(values[1 : period + 1]) / period
        found[period] = current
        begin = period + 1
    else:
        return found
    smoothed = []
    for value in values[begin:]:
        current = (current * (period - 1) + value) / period
        smoothed.append(current)
    found[begin:] = smoothed
    return found


def windowed_sum(values: Floats, index: Ints, length: int) -> Floats:
    """Sum over the last ``length`` grid places up to each value; absent places count nothing.

    The sum is put together from a block's tail and the next one's head, with blocks fixed by the
    absolute grid: it is the same to the last bit wherever the series begins.

    Args:
        values: Finite numbers.
        index: Their absolute places on the grid of bars, increasing.
        length: Places.
    """
    if not len(values):
        return np.empty(0)
    first_block = int(index[0]) // length - 1  # one more: the first window may reach into it
    blocks = int(index[-1]) // length - first_block + 1
    places = index - first_block * length
    grid = np.zeros(blocks * length)
    grid[places] = values
    rows = grid.reshape(blocks, length)
    heads = np.cumsum(rows, axis=1).ravel()
    tails = np.cumsum(rows[:, ::-1], axis=1)[:, ::-1].ravel()
    is_whole = places % length == length - 1  # the window is exactly one block
    start = np.maximum(places - length + 1, 0)
    return np.where(is_whole, heads[places], heads[places] + tails[start])


def realized_volatility(
    log_returns: Floats, index: Ints, interval_ms: int, lookback: int
) -> Floats:
    """Annualised ``√(Σr² / n · N_year)`` over the last ``lookback`` bars, zero mean, 365 days a year.

    NaN below ``MIN_RETURNS`` known returns (or below ``lookback``, if that is less).
    """
    known = ~np.isnan(log_returns)
    squares = windowed_sum(np.where(known, log_returns, 0.0) ** 2, index, lookback)
    count = windowed_sum(known.astype(np.float64), index, lookback)
    per_year = YEAR_S * 1_000 / interval_ms
    with np.errstate(divide="ignore", invalid="ignore"):
        annual = np.sqrt(squares / count * per_year)
    return np.where(count >= min(MIN_RETURNS, lookback), annual, np.nan)


def vwap(quote_volume: Floats, volume: Floats) -> Floats:
    """Volume-weighted price of each bar, exact from the exchange's quote volume; NaN without volume."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(volume > 0, quote_volume / volume, np.nan)


def day_starts(open_time_ms: Ints) -> Ints:
    """Start of each bar's UTC day, ms."""
    return open_time_ms - open_time_ms % DAY_MS


def running(values: Floats, days: Ints, accumulate: np.ufunc) -> Floats:
    """Each UTC day's running ``np.add``, ``np.maximum`` or ``np.minimum``, up to and with each bar."""
    found = np.empty(len(values))
    edges = np.flatnonzero(np.diff(days)) + 1
    for part, out in zip(np.split(values, edges), np.split(found, edges), strict=True):
        accumulate.accumulate(part, out=out)
    return found
