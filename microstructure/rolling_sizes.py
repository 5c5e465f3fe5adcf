"""Rolling sizes of sweeps and trades: a quantile threshold, a distribution, round lots. Pure.

Consumes notionals of each symbol in order → produces thresholds and quantiles, None while warming
up. Look-backs are counted in events, so they survive a hole in time. Floats, exact order statistics.
"""

from __future__ import annotations

import bisect
import math
from array import array

import msgspec
import numpy as np

from microstructure.scaled_trades import Floats, Ints, ScaledTrades

type Distribution = tuple[float | None, float | None, float | None, float | None, float | None]
"""Median, 90 % and 99 % quantile, Hill's tail exponent, Gini coefficient."""

_QUANTILES = (0.5, 0.9, 0.99)
_LARGEST = 2**63 - 1
_LEAST_TAIL = 10  # values that a tail exponent is estimated from
_UNKNOWN: Distribution = (None, None, None, None, None)
_NO_GINI = 1e-12  # what rounding makes of equal values
_FINEST_DECIMALS = 18  # of quantities; steps are compared as multiples of 1e-18


class Threshold(msgspec.Struct, frozen=True, gc=False):
    """A rolling-quantile threshold, and whether it separates large values from usual ones."""

    value: float
    is_above_median: bool


class RecentValues:
    """The last ``size`` values of each symbol in one array; a batch is appended in one pass."""

    def __init__(self, symbols: int, size: int) -> None:
        self.size = size
        self.seen = np.zeros(symbols, dtype=np.int64)  # values ever appended
        self.values = np.full((symbols, size), np.inf)

    def append(self, owners: Ints, counts: Ints, values: Floats) -> tuple[Ints, Floats, Floats]:
        """Appends ``counts[i]`` values to symbol ``owners[i]``, oldest first.

        Returns:
            Symbol, value and the one that had to leave for it (``inf``: none) of each that stays.
        """
        if owners.size == 1:
            return self._append_one(int(owners[0]), values)
        begins = np.cumsum(counts) - counts
        rank = np.arange(values.size) + np.repeat(self.seen[owners] - begins, counts)
        slots = rank % self.size
        slots += np.repeat(owners * self.size, counts)
        self.seen[owners] += counts
        if counts.max(initial=0) > self.size:  # only the newest of each symbol have a place
            kept = rank >= np.repeat(self.seen[owners] - self.size, counts)
            slots, values = slots[kept], values[kept]
        places = self.values.reshape(-1)
        leaving = places[slots]
        places[slots] = values
        return slots // self.size, values, leaving

    def _append_one(self, owner: int, values: Floats) -> tuple[Ints, Floats, Floats]:
        seen = int(self.seen[owner]) + values.size
        self.seen[owner] = seen
        values = values[-self.size :]
        places = np.arange(seen - values.size, seen) % self.size
        row = self.values[owner]
        leaving = row[places]
        row[places] = values
        return np.full(values.size, owner), values, leaving

    def held(self, symbol: int) -> int:
        """How many values the symbol has in reach."""
        return min(int(self.seen[symbol]), self.size)


class RollingThreshold:
    """Type-7 quantile of each symbol's last ``size`` values, exact, cheap between appends.

    Only the values above a guard, somewhat below the quantile, are kept sorted; the guard is set
    anew from all values when too few or too many of them are left.
    """

    def __init__(
        self, symbols: int, *, quantile: float, size: int, minimum: int, floor: float = 0.0
    ) -> None:
        self._quantile = quantile
        self._minimum = minimum
        self._floor = floor
        self._recent = RecentValues(symbols, size)
        self._guard = np.full(symbols, np.inf)
        self._tail = [array("d") for _ in range(symbols)]

    def of(self, symbol: int) -> Threshold | None:
        """The threshold from the values appended so far; None below the minimum count."""
        held = self._recent.held(symbol)
        if held < self._minimum:
            return None
        rank = self._quantile * (held - 1)
        low = math.floor(rank)
        below, above = self._around(symbol, held, low)
        value = max(below + (above - below) * (rank - low), self._floor)
        return Threshold(value, self._is_above_median(symbol, held, value))

    def append(self, owners: Ints, counts: Ints, values: Floats) -> None:
        """Appends ``counts[i]`` values to symbol ``owners[i]``, oldest first."""
        owners, values, leaving = self._recent.append(owners, counts, values)
        guards = self._guard[owners]
        gone = ((leaving >= guards) & (leaving < np.inf)).nonzero()[0]
        for owner, value in zip(owners[gone].tolist(), leaving[gone].tolist(), strict=True):
            tail = self._tail[owner]
            del tail[bisect.bisect_left(tail, value)]
        new = (values >= guards).nonzero()[0]
        for owner, value in zip(owners[new].tolist(), values[new].tolist(), strict=True):
            bisect.insort(self._tail[owner], value)

    def _around(self, symbol: int, held: int, low: int) -> tuple[float, float]:
        """The order statistics ``low`` and ``low + 1`` (from 0, ascending) of the values held."""
        needed = held - low
        most = 8 * needed + 64
        if not needed <= len(self._tail[symbol]) <= most:
            self._rebuild(symbol, held, 2 * needed + 16, most)
        tail = self._tail[symbol]
        if needed <= len(tail):
            return tail[-needed], tail[-max(needed - 1, 1)]
        high = min(low + 1, held - 1)
        values = np.partition(self._recent.values[symbol, :held], (low, high))
        return float(values[low]), float(values[high])

    def _rebuild(self, symbol: int, held: int, count: int, most: int) -> None:
        """Keeps about ``count`` largest values from now on; none where ties make it over ``most``."""
        values = self._recent.values[symbol, :held]
        place = max(held - count, 0)
        guard = np.partition(values, place)[place]
        kept = values[values >= guard]
        if kept.size > most:
            guard, kept = np.inf, kept[:0]
        self._guard[symbol] = guard
        self._tail[symbol] = array("d", np.sort(kept).tobytes())

    def _is_above_median(self, symbol: int, held: int, value: float) -> bool:
        below_guard = held - len(self._tail[symbol])
        if value >= self._guard[symbol] and below_guard > held // 2:
            return True  # the median is one of the values below the guard
        return value > float(np.median(self._recent.values[symbol, :held]))


class SizeDistribution:
    """How trade notionals are distributed: a window's own, or the last ``size`` if fewer.

    Quantiles, Hill's exponent and the Gini coefficient; None below ``minimum`` trades.
    """

    def __init__(self, symbols: int, *, size: int, minimum: int) -> None:
        self._minimum = minimum
        self._recent = RecentValues(symbols, size)
        self._latest: list[Distribution] = [_UNKNOWN] * symbols

    def update(self, owners: Ints, counts: Ints, notional: Floats) -> None:
        """Takes the windows' trades in; ``owners`` are distinct."""
        self._recent.append(owners, counts, notional)
        size = self._recent.size
        held = np.minimum(self._recent.seen[owners], size)
        recent = ((held >= self._minimum) & (counts <= size)).nonzero()[0]
        if recent.size:
            kept = owners[recent]
            self._note(kept.tolist(), self._recent.values[kept], held[recent])
        for place in (counts > size).nonzero()[0].tolist():
            count, end = int(counts[place]), int(counts[: place + 1].sum())
            own = notional[np.newaxis, end - count : end].copy()
            self._note([int(owners[place])], own, counts[place : place + 1])

    def of(self, symbol: int) -> Distribution:
        """The distribution after the last update."""
        return self._latest[symbol]

    def _note(self, owners: list[int], samples: Floats, counts: Ints) -> None:
        """Note the distributions of samples of one's own: they are sorted in place."""
        samples.sort(axis=1)
        if counts.min() < samples.shape[1]:
            samples[samples == np.inf] = 0.0
        found = size_distributions(samples, counts)
        for owner, distribution in zip(owners, found, strict=True):
            self._latest[owner] = distribution


def size_distributions(ordered: Floats, counts: Ints) -> list[Distribution]:
    """Median, q90, q99 (type 7), Hill exponent and Gini of each row of ascending positive values.

    Hill (1975): k / Σ ln(x_i / x_(k+1)) over the k = ⌊√n⌋ largest. Gini (1912): Σ (2i - n - 1)·x_i
    / (n·Σ x_i), i from 1; 0 within rounding is 0.

    Args:
        ordered: Shape (samples, width), each row sorted, 0 behind its values.
        counts: Values of each row, n ≥ 1.

    Returns:
        One tuple per row; the exponent is None where the k + 1 largest values are equal, or k < 10.
    """
    width = ordered.shape[1]
    n = counts[:, np.newaxis]
    rank = np.array(_QUANTILES) * (n - 1)
    low = rank.astype(np.int64)
    below = np.take_along_axis(ordered, low, axis=1)
    above = np.take_along_axis(ordered, np.minimum(low + 1, n - 1), axis=1)
    quantiles = below + (above - below) * (rank - low)
    total = counts * ordered.sum(axis=1)
    gini = (ordered * np.arange(1.0, 2 * width, 2.0)).sum(axis=1) / total - 1.0
    gini[gini < _NO_GINI] = 0.0
    return [
        (q50, q90, q99, tail, concentration)
        for (q50, q90, q99), tail, concentration in zip(
            quantiles.tolist(), _tail_exponents(ordered, counts), gini.tolist(), strict=True
        )
    ]


def _tail_exponents(ordered: Floats, counts: Ints) -> list[float | None]:
    """Hill's exponent of each row, of the values before ``counts``."""
    sizes = [math.isqrt(count) for count in counts.tolist()]
    if max(sizes) < _LEAST_TAIL:
        return [None] * len(sizes)
    longest = math.isqrt(ordered.shape[1])  # of the table, so that rows do not depend on others
    n, k = counts[:, np.newaxis], np.array(sizes)[:, np.newaxis]
    back = np.arange(longest, 0, -1)  # places from the end, ascending values
    largest = np.take_along_axis(ordered, np.maximum(n - back, 0), axis=1)
    threshold = np.take_along_axis(ordered, np.maximum(n - k - 1, 0), axis=1)
    excess = np.log(np.where(back <= k, largest / threshold, 1.0)).sum(axis=1)
    return [
        size / total if size >= _LEAST_TAIL and total > 0.0 else None
        for size, total in zip(sizes, excess.tolist(), strict=True)
    ]


class RoundLots:
    """Share of trades of whole round lots: of a window's own, or of the last ``size`` if fewer.

    A round lot is ``steps`` times the symbol's quantity step, and that is the greatest common
    divisor of all its quantities so far: the wire does not tell it (spot pads to eight decimals).
    """

    def __init__(self, symbols: int, *, size: int, minimum: int, steps: int) -> None:
        self._minimum = minimum
        self._steps = steps
        self._step = [0] * symbols  # multiples of 1e-18; 0: no trade yet
        self._recent = RecentValues(symbols, size)
        self._latest: list[float | None] = [None] * symbols

    def update(self, owners: Ints, trades: ScaledTrades) -> None:
        """Takes the windows' trades in; ``owners`` are distinct."""
        lots = np.array(self._lots(owners.tolist(), trades), dtype=trades.quantity.dtype)
        if lots.size > 1:
            lots = np.repeat(lots, trades.counts)
        is_round = (trades.quantity % lots == 0).astype(np.float64)
        self._recent.append(owners, trades.counts, is_round)
        own = np.add.reduceat(is_round, trades.starts) / trades.counts
        size = self._recent.size
        held = np.minimum(self._recent.seen[owners], size)
        recent = np.count_nonzero(self._recent.values[owners] == 1.0, axis=1) / held
        shares = np.where(trades.counts > size, own, recent)
        for owner, count, share in zip(
            owners.tolist(), held.tolist(), shares.tolist(), strict=True
        ):
            if count >= self._minimum:
                self._latest[owner] = share

    def of(self, symbol: int) -> float | None:
        """The share after the last update; None below the minimum count."""
        return self._latest[symbol]

    def _lots(self, owners: list[int], trades: ScaledTrades) -> list[int]:
        """Per window, the mantissas that are whole lots are multiples of this."""
        divisors = np.gcd.reduceat(trades.quantity, trades.starts).tolist()
        places = zip(trades.quantity_decimals, trades.quantity_zeros, strict=True)
        lots = []
        for owner, divisor, (decimals, zeros) in zip(owners, divisors, places, strict=True):
            unit = 10 ** (_FINEST_DECIMALS - decimals + zeros)
            step = self._step[owner] = math.gcd(self._step[owner], divisor * unit)
            lot = self._steps * step
            lots.append(min(lot // math.gcd(lot, unit), _LARGEST))
        return lots
