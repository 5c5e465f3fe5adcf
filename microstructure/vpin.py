"""Volume-synchronised toxicity: equal-volume buckets of signed trades, one by one and all at once.

Quantities with aggressor sides → buckets → VPIN (Easley, López de Prado & O'Hara 2012). The venue names
the aggressor, so buckets are signed; bulk classification is here as a diagnostic and never mixed in:
Andersen & Bondarenko (2014) show that the two behave oppositely.
"""

from __future__ import annotations

import collections
from math import erf, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

BUCKETS: Final = 50


class Vpin:
    """VPIN of a stream of trades; a trade is split over the buckets that it fills."""

    __slots__ = ("_bought", "_bucket_volume", "_filled", "_imbalances")

    def __init__(self, bucket_volume: float, buckets: int = BUCKETS) -> None:
        """Start with an empty bucket.

        Args:
            bucket_volume: Base units per bucket, from past data only (a day's volume over 50).
            buckets: Full buckets that the measure spans.
        """
        if bucket_volume <= 0.0 or buckets <= 0:
            raise ValueError("bucket_volume and buckets must be positive")
        self._bucket_volume = bucket_volume
        self._filled = 0.0
        self._bought = 0.0
        self._imbalances: collections.deque[float] = collections.deque(maxlen=buckets)

    def push(self, quantity: float, *, is_buy: bool) -> list[tuple[float, float]]:
        """Take in a trade; returns ``(bought, sold)`` of the buckets that it fills."""
        full = []
        while quantity >= (room := self._bucket_volume - self._filled):
            bought = self._bought + room if is_buy else self._bought
            sold = self._bucket_volume - bought
            full.append((bought, sold))
            self._imbalances.append(abs(bought - sold))
            quantity -= room
            self._filled = self._bought = 0.0
        self._filled += quantity
        self._bought += quantity if is_buy else 0.0
        return full

    @property
    def value(self) -> float | None:
        """VPIN over the last full buckets, 0 to 1; None while there are too few."""
        imbalances = self._imbalances
        if len(imbalances) < (imbalances.maxlen or 0):
            return None
        return sum(imbalances) / (len(imbalances) * self._bucket_volume)


def volume_buckets(
    quantity: Floats, is_buy: npt.NDArray[np.bool_], bucket_volume: float
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """All full buckets of a sequence of trades.

    Args:
        quantity: float64[n], base units.
        is_buy: bool[n], whether the aggressor bought.
        bucket_volume: Base units per bucket.

    Returns:
        float64[k, 2], bought and sold, and intp[k], the trade that filled each. What is left in the
        unfinished bucket is left out.
    """
    if not len(quantity):
        return np.empty((0, 2)), np.empty(0, np.intp)
    volume = np.concatenate([[0.0], np.cumsum(quantity)])
    bought = np.concatenate([[0.0], np.cumsum(np.where(is_buy, quantity, 0.0))])
    edges = bucket_volume * np.arange(int(volume[-1] // bucket_volume) + 1)
    of_buyers = np.diff(np.interp(edges, volume, bought))  # inside a trade both rise in proportion
    filled_by = np.searchsorted(volume, edges[1:], side="left") - 1
    return np.stack([of_buyers, bucket_volume - of_buyers], axis=1), filled_by


def vpin(buckets: Floats, count: int = BUCKETS) -> Floats:
    """VPIN after each bucket from the ``count``-th on: float64[max(0, k − count + 1)]."""
    if len(buckets) < count:
        return np.empty(0)
    imbalances = np.abs(buckets[:, 0] - buckets[:, 1])
    sums = np.lib.stride_tricks.sliding_window_view(imbalances, count).sum(axis=1)
    volumes: Floats = sums / (count * buckets[0].sum())
    return volumes


def bulk_bought(volume: float, price_change: float, deviation: float) -> float:
    """Bulk volume classification of one bar: ``V·Φ(ΔP / σ)``; half where σ or ΔP is 0.

    A diagnostic for data without aggressors; the first bar of a sequence has no ΔP and is dropped.
    """
    if deviation <= 0.0:
        return volume / 2.0
    return volume * (1.0 + erf(price_change / deviation / sqrt(2.0))) / 2.0
