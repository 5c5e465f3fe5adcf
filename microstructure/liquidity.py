"""Liquidity from prices and volumes alone: Amihud's illiquidity and Roll's implied spread.

Bars or trade prices → plain numbers; undefined is None.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

AMIHUD_SCALE: Final = 1e6


def amihud(returns: Floats, quote_volumes: Floats) -> float | None:
    """Amihud's (2002) illiquidity: mean of ``|r| / quote volume`` times a million.

    Bars without volume, and with an unknown return, are skipped rather than counted as 0; None where
    none is left.
    """
    usable = (quote_volumes > 0.0) & ~np.isnan(returns)
    if not usable.any():
        return None
    return AMIHUD_SCALE * float(np.mean(np.abs(returns[usable]) / quote_volumes[usable]))


def roll_spread(prices: Floats, *, is_zero_mean: bool = True) -> float | None:
    """Roll's (1984) spread ``2·√(−cov(Δp_t, Δp_{t−1}))`` in units of the prices.

    Args:
        prices: float64[n], trade prices in order.
        is_zero_mean: Covariance around 0 over ``n − 2`` pairs; otherwise the sample covariance.

    Returns:
        None below three prices (four for the sample covariance) and where the covariance is not
        negative: no bounce is to be seen then, and 0 would be a claim.
    """
    moves = np.diff(prices)
    now, before = moves[1:], moves[:-1]
    if len(now) < (1 if is_zero_mean else 2):
        return None
    if is_zero_mean:
        covariance = float(now @ before) / len(now)
    else:
        covariance = float((now - now.mean()) @ (before - before.mean())) / (len(now) - 1)
    return 2.0 * sqrt(-covariance) if covariance < 0.0 else None
