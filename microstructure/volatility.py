"""Realized variance, its signature over sampling intervals, bipower variation and jumps. Pure.

Log prices on a regular grid (gaps: split before) → plain numbers; undefined is None. ``n`` is the
number of returns, log prices one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gamma, pi, sqrt
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

_SECONDS_PER_YEAR: Final = 365 * 86_400
_MU_FOUR_THIRDS: Final = 2.0 ** (2.0 / 3.0) * gamma(7.0 / 6.0) / gamma(0.5)
_JUMP_SCALE: Final = pi * pi / 4.0 + pi - 5.0


class JumpTest(msgspec.Struct, frozen=True, gc=False):
    """Variance of a span split into its continuous part and jumps.

    Attributes:
        variance: RV, the sum of squared returns.
        bipower: BV, robust to jumps.
        tripower: TQ, the integrated quarticity behind the test's scale.
        jump: ``max(0, RV − BV)``.
        z: Standard normal without jumps, above 3.09 one in a thousand; None where BV is 0.
    """

    variance: float
    bipower: float
    tripower: float
    jump: float
    z: float | None


def realized_variance(log_prices: Floats) -> float | None:
    """Sum of squared returns (Andersen & Bollerslev 1998); None below two returns."""
    returns = np.diff(log_prices)
    return float(returns @ returns) if len(returns) >= 2 else None


def annualised_volatility(variance: float, returns: int, bar_s: float) -> float | None:
    """``√(RV / n · bars per year)``, a year having 365 days of 24 hours; None without returns."""
    return sqrt(variance / returns * _SECONDS_PER_YEAR / bar_s) if returns > 0 else None


def signature(log_prices: Floats, steps: Sequence[int]) -> list[float | None]:
    """Realized variance at coarser sampling: for each step the mean over all its offsets.

    Rising towards small steps shows bid-ask noise, falling positive autocorrelation or stale prices.
    A mean over offsets, scaled to the whole span; None where a step leaves fewer than two returns.
    """
    values: list[float | None] = []
    count = len(log_prices) - 1
    for step in steps:
        if step < 1 or count < 2 * step:
            values.append(None)
            continue
        moves = log_prices[step:] - log_prices[:-step]
        values.append(float(moves @ moves) / len(moves) * count / step)
    return values


def jump_test(log_prices: Floats) -> JumpTest | None:
    """Bipower variation and the ratio test for jumps.

    Barndorff-Nielsen & Shephard (2004), Huang & Tauchen (2005). Use bars of a minute or more: many
    zero returns drive the bipower variation to 0 and make jumps of nothing.

    Returns:
        None below three returns or where prices do not move.
    """
    returns = np.diff(log_prices)
    count = len(returns)
    size = np.abs(returns)
    variance = float(returns @ returns)
    if count < 3 or variance <= 0.0:
        return None
    bipower = pi / 2.0 * count / (count - 1.0) * float(size[1:] @ size[:-1])
    thirds = size ** (4.0 / 3.0)
    triple = float((thirds[2:] * thirds[1:-1] * thirds[:-2]).sum())
    tripower = count * _MU_FOUR_THIRDS**-3 * count / (count - 2.0) * triple
    z = None
    if bipower > 0.0:
        scale = _JUMP_SCALE / count * max(1.0, tripower / bipower**2)
        z = (variance - bipower) / variance / sqrt(scale)
    return JumpTest(variance, bipower, tripower, max(0.0, variance - bipower), z)
