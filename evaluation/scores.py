"""Scores of probabilities, directions and ranks: pure functions of arrays.

Formulas: Wilson (1927) score interval; Brier (1950), summed over classes, 0–2; expected calibration
error over equal bins (Naeini et al. 2015); Spearman rank correlation with average ranks; Newey–West
(1987) variance with Bartlett weights; break-even rate p* = (1 + c/m)/2. ``None`` is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import msgspec
import numpy as np

BIN_COUNT: Final = 15
LEVEL: Final = 0.95
_NORMAL: Final = NormalDist()
Z: Final = _NORMAL.inv_cdf(0.5 + LEVEL / 2)


def wilson(hits: float, count: float, z: float = Z) -> tuple[float, float] | None:
    """Interval of a share; ``None`` without observations."""
    if count <= 0:
        return None
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    low = 0.0 if hits <= 0 else max(0.0, middle - half)
    return low, 1.0 if hits >= count else min(1.0, middle + half)


def score_test(share: float, base: float, count: float) -> float:
    """Two-sided p-value that a share differs from ``base``: the test the Wilson interval inverts."""
    deviation = abs(share - base)
    error = math.sqrt(max(base * (1 - base), 0.0) / count) if count > 0 else math.inf
    if error == 0.0:
        return 1.0 if deviation == 0.0 else 0.0
    return 2.0 * _NORMAL.cdf(-deviation / error)


def holm(p_values: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several tests stay significant together (Holm 1979, step-down)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    kept = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        kept[index] = True
    return kept


def brier(probabilities: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """float64[n]: Σ over classes of (p − 1{class = outcome})².

    Args:
        probabilities: float[n, classes].
        outcome: int[n], index of what happened.
    """
    happened = np.arange(probabilities.shape[1]) == outcome[:, None]
    loss: np.ndarray = ((probabilities.astype(np.float64) - happened) ** 2).sum(axis=1)
    return loss


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """One bin of a reliability curve: what was said, and how often it came true."""

    low: float
    high: float
    count: int
    mean_confidence: float
    observed: float
    observed_low: float
    observed_high: float


def reliability(confidence: np.ndarray, happened: np.ndarray) -> list[Bin]:
    """The bins that hold anything, of ``BIN_COUNT`` equal ones over 0–1; NaN is in none."""
    known = ~np.isnan(confidence)
    confidence, happened = confidence[known], happened[known]
    position = np.clip((confidence * BIN_COUNT).astype(np.int64), 0, BIN_COUNT - 1)
    counts = np.bincount(position, minlength=BIN_COUNT)
    said = np.bincount(position, weights=confidence, minlength=BIN_COUNT)
    true = np.bincount(position, weights=happened, minlength=BIN_COUNT)
    found = []
    for k in np.flatnonzero(counts).tolist():
        count, hits = int(counts[k]), float(true[k])
        low, high = wilson(hits, count) or (0.0, 1.0)
        found.append(
            Bin(
                low=k / BIN_COUNT,
                high=(k + 1) / BIN_COUNT,
                count=count,
                mean_confidence=float(said[k]) / count,
                observed=hits / count,
                observed_low=low,
                observed_high=high,
            )
        )
    return found


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: mean of |observed − said| over the bins, weighted by count."""
    total = sum(b.count for b in bins)
    if not total:
        return None
    return sum(b.count * abs(b.observed - b.mean_confidence) for b in bins) / total


def average_ranks(values: np.ndarray) -> np.ndarray:
    """float64[n]: ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2.0)[inverse]
    return ranks


def standardised(values: np.ndarray) -> np.ndarray | None:
    """Mean 0 and variance 1 (over n); ``None`` where all are equal."""
    if len(values) < 2 or bool((values == values[0]).all()):
        return None
    centred = values - values.mean()
    return centred / math.sqrt(float((centred**2).mean()))


def newey_west_t(values: np.ndarray, time_ms: np.ndarray, lag_ms: int) -> float | None:
    """Student's t of a mean whose terms correlate over up to ``lag_ms``, and with those of the same time.

    Terms are summed over slots of time first (Driscoll–Kraay 1998), slots of 1/50 of the lag at most
    so that the work does not grow with the square of it; on one regular series this is Newey–West.
    """
    if len(values) < 3:
        return None
    order = np.argsort(time_ms, kind="stable")
    gaps = np.diff(time_ms[order])
    finest = int(gaps[gaps > 0].min()) if (gaps > 0).any() else max(1, lag_ms)
    span_ms = int(time_ms[order[-1]] - time_ms[order[0]])
    slot_ms = max(finest, -(-lag_ms // 50), -(-span_ms // 2_000_000), 1)
    slot = (time_ms - time_ms[order[0]]) // slot_ms
    sums = np.bincount(slot, weights=values - values.mean())
    variance = float(sums @ sums)
    lags = min(-(-lag_ms // slot_ms), len(sums) - 1)
    for lag in range(1, lags + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * float(sums[lag:] @ sums[:-lag])
    return float(values.sum()) / math.sqrt(variance) if variance > 0.0 else None


def break_even_rate(cost_bps: float, move_bps: float) -> float | None:
    """Share of right calls at which a symmetric move pays the costs; above 1 none would."""
    return 0.5 * (1.0 + cost_bps / move_bps) if move_bps > 0.0 else None


def break_even_move_bps(cost_bps: float, hit_rate: float) -> float | None:
    """Move at which this hit rate pays the costs; ``None`` where no move would."""
    edge = 2.0 * hit_rate - 1.0
    return cost_bps / edge if edge > 0.0 else None


def probabilistic_sharpe(
    sharpe: float, benchmark: float, count: int, skew: float, kurtosis: float
) -> float | None:
    """Probability that the true Sharpe ratio exceeds ``benchmark`` (Bailey, López de Prado 2012).

    Args:
        sharpe: Per period, not annualised; so is ``benchmark``.
        benchmark: What it is compared with.
        count: Periods.
        skew: Of the periods' returns.
        kurtosis: Of them, non-excess (3 for a normal).
    """
    spread = 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    if count < 2 or spread <= 0.0:
        return None
    return _NORMAL.cdf((sharpe - benchmark) * math.sqrt(count - 1) / math.sqrt(spread))


def expected_best_sharpe(variance: float, trials: int) -> float:
    """Sharpe ratio the best of so many worthless trials shows (Bailey, López de Prado 2014)."""
    if trials < 2:
        return 0.0
    high = _NORMAL.inv_cdf(1.0 - 1.0 / trials)
    higher = _NORMAL.inv_cdf(1.0 - 1.0 / (trials * math.e))
    euler = 0.5772156649015329
    return math.sqrt(variance) * ((1.0 - euler) * high + euler * higher)
