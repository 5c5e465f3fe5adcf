"""Microstructure noise: variance that is the market's, and what the recording of prices adds. Pure.

Log prices in order → two-scale and pre-averaged variance, noise variance and its share. On pairs whose
spread is one tick the noise at a second and more is small, and trade prices are autocorrelated by
sweeps rather than noisy: prefer the mid price on a regular grid.
"""

from __future__ import annotations

from math import floor, sqrt
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

THETA: Final = 0.8


class TwoScales(msgspec.Struct, frozen=True, gc=False):
    """Two-scale realized variance.

    Attributes:
        variance: Raw estimate; may be below 0 and is clamped only for a root.
        adjusted: The same corrected for small samples; None where the correction is not defined.
        fast: Realized variance of all returns.
        slow: Mean realized variance of the sparse grids.
        count: Returns n.
    """

    variance: float
    adjusted: float | None
    fast: float
    slow: float
    count: int


class NoiseVariance(msgspec.Struct, frozen=True, gc=False):
    """Variance of the noise of one price.

    ``raw`` takes all variation for noise; ``corrected`` is what two scales leave, at least 0;
    ``is_rejected`` says that it had to be clamped: independent noise does not describe these prices.
    """

    raw: float
    corrected: float
    is_rejected: bool


def scale_of(count: int) -> int:
    """The usual number of grids, ``⌊n^(2/3)⌋``, at least 2."""
    grids: float = count ** (2.0 / 3.0)
    return max(2, floor(grids + 1e-9))


def two_scales(log_prices: Floats, grids: int | None = None) -> TwoScales | None:
    """Zhang, Mykland & Aït-Sahalia (2005), "A Tale of Two Time Scales".

    ``[Y,Y]^avg − n̄/n·[Y,Y]^all`` with ``n̄ = (n − K + 1)/K`` and K grids.

    Returns:
        None where there are fewer than 2K returns.
    """
    count = len(log_prices) - 1
    scale = scale_of(count) if grids is None else grids
    if scale < 1 or count < max(2 * scale, 2):
        return None
    fast_moves, slow_moves = np.diff(log_prices), log_prices[scale:] - log_prices[:-scale]
    fast = float(fast_moves @ fast_moves)
    slow = float(slow_moves @ slow_moves) / scale
    share = (count - scale + 1.0) / scale / count
    variance = slow - share * fast
    return TwoScales(variance, variance / (1.0 - share) if share < 1.0 else None, fast, slow, count)


def noise_variance(scales: TwoScales) -> NoiseVariance:
    """Variance of the noise: Bandi & Russell (2006) raw, corrected as in Zhang et al. (2005)."""
    variance = scales.variance if scales.adjusted is None else scales.adjusted
    corrected = (scales.fast - variance) / (2.0 * scales.count)
    return NoiseVariance(
        raw=scales.fast / (2.0 * scales.count),
        corrected=max(0.0, corrected),
        is_rejected=corrected < 0.0,
    )


def noise_ratio(noise: float, variance: float, returns: int) -> float | None:
    """Share of noise in one return, ``2ω² / (2ω² + IV/n)`` (Aït-Sahalia & Yu 2009).

    Args:
        noise: Noise variance ω² of one price.
        variance: Integrated variance IV of the span.
        returns: Returns n that the span is cut into.

    Returns:
        None where the variance is not positive.
    """
    if variance <= 0.0 or returns <= 0:
        return None
    return 2.0 * noise / (2.0 * noise + variance / returns)


def pre_averaged_variance(log_prices: Floats, window: int | None = None) -> float | None:
    """Pre-averaged variance of Jacod, Li, Mykland, Podolskij & Vetter (2009).

    ``Σ Ȳ² / (k·ψ₂) − ψ₁ / (2·θ²·ψ₂·n) · Σ r²`` with ``Ȳ_i = Σ_{0<j<k} g(j/k)·r_{i+j}``,
    ``g(x) = min(x, 1 − x)``, θ = k/√n and ψ of finite k.

    Args:
        log_prices: float64[n + 1].
        window: Returns k per average; by default ``⌊0.8·√n⌋``.

    Returns:
        May be below 0. None where k < 2 or fewer than k returns are there.
    """
    returns = np.diff(log_prices)
    count = len(returns)
    k = floor(THETA * sqrt(count)) if window is None else window
    if k < 2 or count < k:
        return None
    place = np.arange(k + 1) / k
    weights = np.minimum(place, 1.0 - place)
    slopes = np.diff(weights)
    psi_1, psi_2 = float(slopes @ slopes) * k, float(weights @ weights) / k
    averages = np.convolve(returns, weights[1:-1][::-1], mode="valid")
    variance = float(averages @ averages) / (k * psi_2)
    bias = psi_1 / (2.0 * k * k * psi_2) * float(returns @ returns)
    return variance - bias
