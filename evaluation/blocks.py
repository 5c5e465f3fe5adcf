"""Block bootstrap: intervals for statistics of signals whose horizons overlap.

Consumes times and per-signal terms, produces ``Estimate``s. Signals fall into calendar blocks at least
two horizons long, shared by all symbols (they move together); whole blocks are drawn with replacement.
A statistic is a function of the blocks' sums, so that a draw is one row of a matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from evaluation.scores import Z

DRAW_COUNT: Final = 2_000
MOST_BLOCKS: Final = 500
_SEED: Final = 20_240_718  # any: the same data always give the same interval


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its 95 % interval; ``low`` and ``high`` are None where it cannot be told."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Blocks(msgspec.Struct, frozen=True):
    """Which block each signal belongs to: int64[n] in ``range(count)``; blocks without any are none."""

    index: np.ndarray
    count: int
    length_ms: int

    @classmethod
    def of(cls, time_ms: np.ndarray, horizon_ms: np.ndarray) -> Blocks:
        """Blocks of two of the longest horizons, longer ones where there would be too many."""
        if not len(time_ms):
            return cls(np.zeros(0, dtype=np.int64), 0, 0)
        first_ms, last_ms = int(time_ms.min()), int(time_ms.max())
        length_ms = max(2 * int(horizon_ms.max()), -(-(last_ms - first_ms + 1) // MOST_BLOCKS))
        slot = (time_ms - first_ms) // length_ms
        used = np.bincount(slot) > 0
        return cls((np.cumsum(used) - 1)[slot], int(used.sum()), length_ms)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64[count]: sum of the values of each block."""
        return np.bincount(self.index, weights=values, minlength=self.count)

    def estimate(self, statistic: Callable[..., np.ndarray], *terms: np.ndarray) -> Estimate | None:
        """A statistic of the terms' sums, with its interval.

        Args:
            statistic: Takes one array per term (its sums over all signals, one per draw), gives
                one value per draw; NaN where it is undefined.
            terms: float64[n] each.

        Returns:
            ``None`` where the statistic is undefined.
        """
        sums = np.stack([self.sums(term) for term in terms], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(*sums.sum(axis=0, keepdims=True).T)[0])
            if not math.isfinite(value):
                return None
            if self.count < 2:
                return Estimate(value=value)
            draws = statistic(*(_weights(self.count) @ sums).T)
        draws = draws[np.isfinite(draws)]
        if not len(draws):
            return Estimate(value=value)
        low, high = np.quantile(draws, _tails(self.count))
        return Estimate(value=value, low=float(low), high=float(high))

    def mean(self, values: np.ndarray) -> Estimate | None:
        """The mean of the values of all signals."""
        return self.estimate(np.divide, values, np.ones(len(values)))

    def effective_count(self, values: np.ndarray) -> float:
        """How many independent signals the mean of ``values`` is worth; at most ``len(values)``.

        From the blocks' sums: the variance of the mean if blocks are independent, against that if
        signals were. Equal values tell nothing of it: then each block counts once.
        """
        count = len(values)
        if self.count < 2:
            return float(self.count)
        centred = values - values.mean()
        alone = float(centred @ centred)
        if alone <= 1e-12 * max(1.0, float(values @ values)):
            return float(self.count)
        sums = self.sums(centred)
        together = float(sums @ sums) * self.count / (self.count - 1)
        return min(float(count), count * alone / together) if together > 0.0 else float(count)


@functools.lru_cache(maxsize=4)
def _weights(count: int) -> np.ndarray:
    """float64[DRAW_COUNT, count]: how often each block is in each draw."""
    random = np.random.default_rng(_SEED)
    drawn = random.integers(count, size=(DRAW_COUNT, count))
    drawn += count * np.arange(DRAW_COUNT)[:, None]
    hits = np.bincount(drawn.ravel(), minlength=DRAW_COUNT * count)
    return hits.reshape(DRAW_COUNT, count).astype(np.float64)


def _tails(count: int) -> tuple[float, float]:
    """Quantiles of the draws that bound the interval.

    Wider than 2.5 % and 97.5 % where blocks are few, since percentile intervals are too narrow
    there (Hesterberg 2015, "expanded percentile": Student's t for the normal, n for n − 1).
    """
    degrees = count - 1
    t = Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    tail = 0.5 * math.erfc(t * math.sqrt(count / degrees) / math.sqrt(2.0))
    return tail, 1.0 - tail
