"""Price impact as a regression: of moves on signed volume (Kyle's λ) or on order flow.

Moves and flow per bar → slope with a t statistic that minds autocorrelation, None where undefined.
``price_impact.py`` keeps the rolling λ of the live bot.
"""

from __future__ import annotations

from math import sqrt

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-12  # share of a sum of squares below which its variance is rounding


class ImpactFit(msgspec.Struct, frozen=True, gc=False):
    """``move = intercept + slope · flow + e`` over ``count`` bars.

    ``t`` is the slope's by Newey & West (1987), None where the fit is exact; ``r2`` is None where the
    moves do not vary.
    """

    slope: float
    intercept: float
    t: float | None
    r2: float | None
    count: int


def impact_fit(moves: Floats, flow: Floats, *, lags: int | None = None) -> ImpactFit | None:
    """Least squares of moves on flow: Kyle (1985), Cont, Kukanov & Stoikov (2014).

    Args:
        moves: float64[n], changes of the mid; bars with NaN are left out.
        flow: float64[n], signed volume or OFI of the same bars.
        lags: Autocovariances in the standard error; by default ``⌊4·(n/100)^(2/9)⌋``.

    Returns:
        None below three bars or where the flow does not vary.
    """
    known = ~(np.isnan(moves) | np.isnan(flow))
    x, y = flow[known], moves[known]
    count = len(x)
    if count < 3:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    spread, squares = float(dx @ dx), float(dy @ dy)
    if spread <= _ROUNDING * float(x @ x):
        return None
    slope = float(dx @ dy) / spread
    residual = dy - slope * dx
    left = float(residual @ residual)
    lag_count = int(4.0 * (count / 100.0) ** (2.0 / 9.0)) if lags is None else lags
    variance = _long_run(dx * residual, min(lag_count, count - 1)) / spread**2
    is_exact = left <= _ROUNDING * squares or variance <= 0.0
    return ImpactFit(
        slope=slope,
        intercept=float(y.mean() - slope * x.mean()),
        t=None if is_exact else slope / sqrt(variance),
        r2=1.0 - left / squares if squares > 0.0 else None,
        count=count,
    )


def _long_run(scores: Floats, lags: int) -> float:
    """Sum of autocovariances with Bartlett weights."""
    total = float(scores @ scores)
    for lag in range(1, lags + 1):
        weight = 1.0 - lag / (lags + 1.0)
        total += 2.0 * weight * float(scores[lag:] @ scores[:-lag])
    return total
