"""Self-exciting arrivals: intensity event by event, likelihood and fit of an exponential kernel. Pure.

Event times in seconds → ``λ(t) = μ + α·Σ exp(−β(t − t_i))`` over earlier events (Hawkes 1971), by Ozaki's
(1979) recursion ``R_k = exp(−β(t_k − t_{k−1}))·(1 + R_{k−1})``. Collapse equal times first: ties of a
millisecond clock drive β to infinity.
"""

from __future__ import annotations

from math import exp, log
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

LEAST_EVENTS: Final = 1000
MOST_BRANCHING: Final = 0.99
BURST_RATIO: Final = 3.0
_BLOCK: Final = 500.0  # exponents up to this stay finite and precise
_GRID: Final = 14
_GOLDEN: Final = 0.6180339887498949
_STEPS: Final = 22
_BISECTIONS: Final = 40


class HawkesParameters(msgspec.Struct, frozen=True, gc=False):
    """``mu`` and ``alpha`` in events per second, ``beta`` per second."""

    mu: float
    alpha: float
    beta: float

    @property
    def branching_ratio(self) -> float:
        """Events that one event causes, ``α/β``; stationary below 1."""
        return self.alpha / self.beta

    @property
    def stationary_rate(self) -> float | None:
        """Long-run events per second, ``μ / (1 − n)``; None where the process is not stationary."""
        ratio = self.branching_ratio
        return self.mu / (1.0 - ratio) if ratio < 1.0 else None


class HawkesIntensity:
    """Intensity of a stream of events."""

    __slots__ = ("_excitation", "_last_s", "_parameters")

    def __init__(self, parameters: HawkesParameters) -> None:
        self._parameters = parameters
        self._excitation = 0.0  # Σ exp(−β(last − t_i)) with the last event itself
        self._last_s: float | None = None

    def push(self, time_s: float) -> float:
        """Take in an event, not before the last one; returns the intensity just before it."""
        before = self.at(time_s)
        if time_s != self._last_s:
            if self._last_s is not None:
                self._excitation *= exp(-self._parameters.beta * (time_s - self._last_s))
            self._excitation += 1.0
            self._last_s = time_s
        return before

    def at(self, time_s: float) -> float:
        """Intensity at a time not before the last event, from what came before it."""
        mu, alpha, beta = self._parameters.mu, self._parameters.alpha, self._parameters.beta
        if self._last_s is None:
            return mu
        if time_s == self._last_s:
            return mu + alpha * (self._excitation - 1.0)
        return mu + alpha * self._excitation * exp(-beta * (time_s - self._last_s))

    def is_burst(self, time_s: float) -> bool:
        """Whether the intensity is more than three times the long-run rate."""
        rate = self._parameters.stationary_rate
        return rate is not None and self.at(time_s) > BURST_RATIO * rate


def excitations(times_s: Floats, beta: float) -> Floats:
    """``R_k = Σ_{j<k} exp(−β(t_k − t_j))`` of each event: float64[n].

    Args:
        times_s: float64[n], strictly ascending.
        beta: Decay, per second.
    """
    result = np.zeros(len(times_s))
    if not len(times_s):
        return result
    block = ((times_s - times_s[0]) * (beta / _BLOCK)).astype(np.int64)
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    stops = np.append(starts[1:], len(times_s))
    carried = 0.0  # the sum at the block's first event, of all events before it
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        age = beta * (times_s[start:stop] - times_s[start])
        growth = np.exp(age)
        sums = np.cumsum(growth) - growth + carried
        result[start:stop] = sums / growth
        if stop < len(times_s):
            gap = beta * float(times_s[stop] - times_s[stop - 1])
            carried = (float(result[stop - 1]) + 1.0) * exp(-gap)
    return result


def intensities(times_s: Floats, parameters: HawkesParameters) -> Floats:
    """Intensity just before each event: float64[n], events per second."""
    return parameters.mu + parameters.alpha * excitations(times_s, parameters.beta)


def log_likelihood(times_s: Floats, end_s: float, parameters: HawkesParameters) -> float:
    """Log likelihood of the events in ``[0, end_s]``.

    ``Σ ln λ(t_i) − μT − (α/β)·Σ (1 − exp(−β(T − t_i)))``.
    """
    mu, alpha, beta = parameters.mu, parameters.alpha, parameters.beta
    caused = float((1.0 - np.exp(-beta * (end_s - times_s))).sum())
    logs = float(np.log(intensities(times_s, parameters)).sum())
    return logs - mu * end_s - alpha / beta * caused


def fit(
    times_s: Floats, end_s: float, *, least_events: int = LEAST_EVENTS
) -> HawkesParameters | None:
    """Maximum likelihood over all three parameters.

    For a given decay the likelihood is concave in the share of events that are caused by others, which
    bisection finds; the decay is found by a grid and golden sections of its logarithm.

    Args:
        times_s: float64[n] from the start of the span, strictly ascending.
        end_s: Length of the span.
        least_events: Fewer events than this give no fit.

    Returns:
        None with too few events and where the branching ratio reaches 0.99: such a fit describes a
        trend of the rate, not excitement.
    """
    if len(times_s) < least_events or end_s <= 0.0:
        return None
    typical = log(len(times_s) / end_s)
    grid = np.linspace(typical - 5.0, typical + 4.0, _GRID)
    scores = [_best_share(times_s, end_s, exp(place))[0] for place in grid]
    best = int(np.argmax(scores))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    beta = exp(_golden(times_s, end_s, low, high))
    _, mu, alpha = _best_share(times_s, end_s, beta)
    found = HawkesParameters(mu, alpha, beta)
    return found if found.branching_ratio < MOST_BRANCHING else None


def _golden(times_s: Floats, end_s: float, low: float, high: float) -> float:
    """Where between two logarithms of the decay the likelihood is largest."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = _best_share(times_s, end_s, exp(left))[0]
    at_right = _best_share(times_s, end_s, exp(right))[0]
    for _ in range(_STEPS):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = _best_share(times_s, end_s, exp(left))[0]
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = _best_share(times_s, end_s, exp(right))[0]
    return (low + high) / 2.0


def _best_share(times_s: Floats, end_s: float, beta: float) -> tuple[float, float, float]:
    """Largest likelihood for a decay, and its μ and α.

    At the optimum as many events are expected as there are, so that one share of them, caused by
    others, is all that is left to find.
    """
    count = len(times_s)
    base = count / end_s
    compensator = float((1.0 - np.exp(-beta * (end_s - times_s))).sum()) / beta
    excess = excitations(times_s, beta) * (count / compensator) - base
    low, high = 0.0, 1.0 - 1e-9
    share = 0.5
    for _ in range(_BISECTIONS):
        ratio = excess / (base + share * excess)
        slope, curve = float(ratio.sum()), float(ratio @ ratio)
        low, high = (share, high) if slope > 0.0 else (low, share)
        step = slope / curve if curve > 0.0 else 0.0
        share = share + step if low < share + step < high else (low + high) / 2.0
        if abs(step) < 1e-10 or high - low < 1e-10:
            break
    likelihood = float(np.log(base + share * excess).sum()) - count
    return likelihood, (1.0 - share) * base, share * count / compensator
