"""Rolling measures of trade flow: finite look-backs over past windows, fed in time order. Pure.

Consumes measured columns of windows → produces thresholds, scores and distributions, None while
warming up. Look-backs in events (sweeps, trades) survive a hole in time; those in seconds restart
after one. Statistics are floats; ``NetFlow`` is exact.
"""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

import msgspec
import numpy as np

from microstructure.scaled_trades import EXACT, Floats, Ints
from microstructure.trade_flow import SECOND_MS, ZERO, Seconds

type Distribution = tuple[float | None, float | None, float | None, float | None]
"""Median, 90 % and 99 % quantile, Hill's tail exponent."""

_UNKNOWN: Distribution = (None, None, None, None)


class Threshold(msgspec.Struct, frozen=True):
    """A rolling-quantile threshold, and whether it separates large values from usual ones."""

    value: float
    is_above_median: bool


class RecentValues:
    """The last ``size`` values of each symbol in one array; a batch is appended in one pass."""

    def __init__(self, symbols: int, size: int) -> None:
        self.size = size
        self.seen = np.zeros(symbols, dtype=np.int64)  # values ever appended
        self.values = np.full((symbols, size), np.inf)

    def append(self, owners: Ints, counts: Ints, values: Floats) -> None:
        """Appends ``counts[i]`` values to symbol ``owners[i]``, oldest first."""
        begins = np.cumsum(counts) - counts
        rank = np.arange(values.size) + np.repeat(self.seen[owners] - begins, counts)
        slots = rank % self.size
        slots += np.repeat(owners * self.size, counts)
        self.seen[owners] += counts
        if counts.max(initial=0) > self.size:  # only the newest of each symbol have a place
            kept = rank >= np.repeat(self.seen[owners] - self.size, counts)
            slots, values = slots[kept], values[kept]
        self.values.reshape(-1)[slots] = values

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
        self._tail: list[list[float]] = [[] for _ in range(symbols)]
        self._arrivals: list[collections.deque[tuple[int, float]]] = [
            collections.deque() for _ in range(symbols)
        ]

    def of(self, symbol: int) -> Threshold | None:
        """The threshold from the values appended so far; None below the minimum count."""
        held = self._recent.held(symbol)
        if held < self._minimum:
            return None
        rank = self._quantile * (held - 1)
        needed = held - math.floor(rank)
        tail = self._tail[symbol]
        if not needed <= len(tail) <= 8 * needed + 64:
            self._rebuild(symbol, held, 3 * needed + 16)
            tail = self._tail[symbol]
        value = tail[-needed]
        if needed > 1:
            value += (tail[1 - needed] - value) * (rank - math.floor(rank))
        value = max(value, self._floor)
        return Threshold(value, self._is_above_median(symbol, held, value))

    def append(self, owners: Ints, counts: Ints, values: Floats) -> None:
        """Appends ``counts[i]`` values to symbol ``owners[i]``, oldest first."""
        before = self._recent.seen[owners] - (np.cumsum(counts) - counts)
        self._recent.append(owners, counts, values)
        rows = np.flatnonzero(values >= np.repeat(self._guard[owners], counts))
        group = np.searchsorted(np.cumsum(counts), rows, side="right")
        for owner, number, value in zip(
            owners[group].tolist(),
            (before[group] + rows).tolist(),
            values[rows].tolist(),
            strict=True,
        ):
            bisect.insort(self._tail[owner], value)
            self._arrivals[owner].append((number, value))
        for owner, seen in zip(owners.tolist(), self._recent.seen[owners].tolist(), strict=True):
            self._expire(owner, seen - self._recent.size)

    def _expire(self, symbol: int, first_held: int) -> None:
        arrivals, tail = self._arrivals[symbol], self._tail[symbol]
        while arrivals and arrivals[0][0] < first_held:
            _, value = arrivals.popleft()
            del tail[bisect.bisect_left(tail, value)]

    def _rebuild(self, symbol: int, held: int, count: int) -> None:
        """Keeps about ``count`` largest values from now on."""
        values = self._recent.values[symbol, :held]
        place = max(held - count, 0)
        guard = np.partition(values, place)[place]
        slots = np.flatnonzero(values >= guard)
        newest = int(self._recent.seen[symbol]) - 1
        numbers = newest - (newest - slots) % self._recent.size
        order = np.argsort(numbers)
        kept = values[slots[order]].tolist()
        self._guard[symbol] = guard
        self._arrivals[symbol] = collections.deque(zip(numbers[order].tolist(), kept, strict=True))
        self._tail[symbol] = sorted(kept)

    def _is_above_median(self, symbol: int, held: int, value: float) -> bool:
        below_guard = held - len(self._tail[symbol])
        if below_guard > held // 2:  # so the median lies below the guard, and the guard at or below
            return True
        return value > float(np.median(self._recent.values[symbol, :held]))


class SizeDistribution:
    """Quantiles and Hill exponent of trade notionals: a window's own, or the last ``size`` if fewer.

    Hill (1975): k / Σ ln(x_i / x_(k+1)) over the k = ⌊√n⌋ largest; None below ``minimum`` trades.
    """

    def __init__(self, symbols: int, *, size: int, minimum: int) -> None:
        self._minimum = minimum
        self._recent = RecentValues(symbols, size)
        self._latest: list[Distribution] = [_UNKNOWN] * symbols

    def update(self, owners: Ints, counts: Ints, notional: Floats) -> None:
        """Takes the windows' trades in; ``owners`` are distinct."""
        self._recent.append(owners, counts, notional)
        size, seen = self._recent.size, self._recent.seen[owners]
        usual = owners[(counts <= size) & (seen >= size)]
        if usual.size:
            ordered = np.sort(self._recent.values[usual], axis=1)
            self._note(usual, ordered)
        begins = np.cumsum(counts) - counts
        for k in np.flatnonzero((counts > size) | ((seen >= self._minimum) & (seen < size))):
            owner = owners[k : k + 1]
            if counts[k] > size:
                sample = notional[begins[k] : begins[k] + counts[k]]
            else:
                sample = self._recent.values[owner[0], : seen[k]]
            self._note(owner, np.sort(sample)[np.newaxis, :])

    def of(self, symbol: int) -> Distribution:
        """The distribution after the last update."""
        return self._latest[symbol]

    def _note(self, owners: Ints, ordered: Floats) -> None:
        for owner, found in zip(owners.tolist(), size_distributions(ordered), strict=True):
            self._latest[owner] = found


def size_distributions(ordered: Floats) -> list[Distribution]:
    """Median, q90, q99 (type 7) and Hill exponent of each row of ascending positive values.

    Args:
        ordered: Shape (samples, n), each row sorted.

    Returns:
        One tuple per row; the exponent is None where the k + 1 largest values are equal.
    """
    n = ordered.shape[1]
    columns: list[list[float]] = []
    for quantile in (0.5, 0.9, 0.99):
        rank = quantile * (n - 1)
        low = math.floor(rank)
        below, above = ordered[:, low], ordered[:, min(low + 1, n - 1)]
        columns.append((below + (above - below) * (rank - low)).tolist())
    k = math.isqrt(n)
    excess = np.log(ordered[:, n - k :] / ordered[:, n - k - 1 : n - k]).sum(axis=1).tolist()
    hill = [k / total if total > 0 else None for total in excess]
    return list(zip(*columns, hill, strict=True))


class BurstSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``ArrivalBurst``; see ``FlowSettings`` for meanings and units."""

    half_life_s: float
    warmup_s: int
    slack: float
    limit: float
    cooldown_s: int
    longest_freeze_s: int


class ArrivalBurst:
    """Arrival z-score and CUSUM alarms (Page 1954) of one symbol on its 1-second trade counts.

    z = (N - μ) / max(σ, 1) with μ, σ the exponentially weighted mean and deviation of past seconds
    (plain ones until the weights have settled); S = max(0, S + z - slack), an alarm where S passes
    the limit, then S = 0 and a cool-down. Alarm and cool-down seconds do not feed μ and σ, unless
    the freeze has lasted so long that the new rate is the usual one.
    """

    __slots__ = ("_cooldown", "_frozen", "_mean", "_score", "_seen", "_settings", "_variance")

    def __init__(self, settings: BurstSettings, *, mean: float = 0.0, deviation: float = 0.0) -> None:
        self._settings = settings
        self._mean = mean
        self._variance = deviation * deviation
        self._seen = 0
        self._score = 0.0
        self._cooldown = 0
        self._frozen = 0

    def observe(self, counts: Iterable[int], *, is_complete: bool) -> tuple[int, float | None]:
        """Takes whole seconds in, in order.

        Args:
            counts: Trades in each second.
            is_complete: Whether no trade is known to be missing; if some are, the counts may still
                raise an alarm but teach nothing.

        Returns:
            Number of alarms, and the mean z of the seconds (None while warming up).
        """
        settings = self._settings
        weight = 1.0 - 2.0 ** (-1.0 / settings.half_life_s)
        alarms, total, scored = 0, 0.0, 0
        for count in counts:
            is_frozen = self._cooldown > 0
            if self._seen >= settings.warmup_s:
                z = (count - self._mean) / max(math.sqrt(self._variance), 1.0)
                total, scored = total + z, scored + 1
                if is_frozen:
                    self._cooldown -= 1
                else:
                    self._score, is_frozen = cusum(self._score, z, settings.slack, settings.limit)
                    if is_frozen:
                        alarms += 1
                        self._score = 0.0
                        self._cooldown = settings.cooldown_s
            self._frozen = self._frozen + 1 if is_frozen else 0
            if is_complete and (not is_frozen or self._frozen > settings.longest_freeze_s):
                self._seen += 1
                self._learn(count, max(weight, 1.0 / self._seen))
        return alarms, total / scored if scored else None

    def _learn(self, count: int, weight: float) -> None:
        difference = count - self._mean
        self._mean += weight * difference
        self._variance = (1.0 - weight) * (self._variance + weight * difference * difference)


def cusum(score: float, z: float, slack: float, limit: float) -> tuple[float, bool]:
    """One step of the upper CUSUM: the new score, and whether it passes the limit."""
    score = max(0.0, score + z - slack)
    return score, score > limit


class PriceImpact:
    """Rolling Kyle λ̂ of each symbol: Δprice per base unit of signed volume, on 1-second bars.

    Bars are the seconds with trades, Δprice from the last price of one to that of the next; least
    squares with intercept over the bars of the last ``lookback_s`` before the current window. Bars
    after a hole begin without a Δprice and do not count.
    """

    _MOMENTS = 6  # n, x, y, xx, xy, yy

    def __init__(self, symbols: int, duration_ms: int, *, lookback_s: int, minimum: int) -> None:
        self._minimum = minimum
        self._slot_ms = max(duration_ms, SECOND_MS)
        self._slots = max(lookback_s * SECOND_MS // self._slot_ms, 1)
        self._bars = max(min(lookback_s, duration_ms // SECOND_MS), 1)
        self._moments = np.zeros((self._slots, self._MOMENTS, symbols))
        self.last_price = np.full(symbols, np.nan)

    def forget(self, symbol: int) -> None:
        """Restarts a symbol after a hole."""
        self._moments[:, :, symbol] = 0.0
        self.last_price[symbol] = np.nan

    def residuals(self, owners: Ints, delta: Floats, close: Floats, seconds: float) -> Floats:
        """Absorption of windows: sign(Δ)·(λ̂Δ - Δprice) / (σ_e·√seconds), from past bars only.

        Args:
            owners: Symbols of the windows.
            delta: Signed volume of each window, base units.
            close: Last price of each window, NaN without trades.
            seconds: Length of the windows.

        Returns:
            Positive where the price moved less than the flow, 0 where Δ is 0, NaN while fewer than
            ``minimum`` bars are known or λ̂ <= 0.
        """
        n, x, y, xx, xy, yy = self._sums(owners)
        move = np.where(delta == 0.0, 0.0, close - self.last_price[owners])
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = xx - x * x / n
            shared = xy - x * y / n
            slope = shared / spread
            error = np.sqrt((yy - y * y / n - slope * shared) / (n - 2.0))
            residual = np.sign(delta) * (slope * delta - move) / (error * math.sqrt(seconds))
            known = (n >= self._minimum) & (spread > 0.0) & (slope > 0.0) & (error > 0.0)
        result: Floats = np.where(known, residual, np.nan)
        return result

    def update(self, owners: Ints, start_ms: int, seconds: Seconds) -> None:
        """Takes the whole seconds of one window per symbol in, each window exactly once."""
        count, delta, close = (
            column[:, -self._bars :] for column in (seconds.count, seconds.delta, seconds.close)
        )
        traded = np.flatnonzero(count)
        row = traded // count.shape[1] if count.shape[1] else traded
        price = close.reshape(-1)[traded]
        previous = np.concatenate(([np.nan], price[:-1]))
        heads = np.flatnonzero(np.diff(row, prepend=-1))
        previous[heads] = self.last_price[owners[row[heads]]]
        y, x = price - previous, delta.reshape(-1)[traded]
        known = ~np.isnan(y)
        row, x, y = row[known], x[known], y[known]
        slot = self._moments[start_ms // self._slot_ms % self._slots]
        for moment, values in enumerate((np.ones_like(x), x, y, x * x, x * y, y * y)):
            slot[moment, owners] = np.bincount(row, weights=values, minlength=owners.size)
        tails = np.flatnonzero(np.diff(traded // count.shape[1], append=-1)) if traded.size else heads
        self.last_price[owners[(traded // count.shape[1])[tails]]] = price[tails]

    def _sums(self, owners: Ints) -> Floats:
        if owners.size == self._moments.shape[2] and (np.diff(owners) == 1).all():
            return np.asarray(self._moments.sum(axis=0))
        return np.asarray(self._moments[:, :, owners].sum(axis=0))


class NetFlow:
    """Exact net flow of one symbol over the last minutes, from consecutive complete windows."""

    __slots__ = ("_totals", "end_ms", "start_ms")

    def __init__(self, longest: int) -> None:
        self._totals: collections.deque[Decimal] = collections.deque([ZERO], maxlen=longest + 1)
        self.start_ms: int | None = None  # of the unbroken history
        self.end_ms: int | None = None

    def append(self, start_ms: int, end_ms: int, net_flow: Decimal) -> None:
        """Adds the window that follows the history (the first one begins it)."""
        if self.start_ms is None:
            self.start_ms = start_ms
        self.end_ms = end_ms
        self._totals.append(EXACT.add(self._totals[-1], net_flow))

    def prepend(self, start_ms: int, flows: Sequence[Decimal]) -> None:
        """Puts the windows right before the history in front of it."""
        totals, known = [ZERO], list(self._totals)
        for flow in flows:
            totals.append(EXACT.add(totals[-1], flow))
        if self.start_ms is None or len(known) < (self._totals.maxlen or 0):
            shift = EXACT.subtract(totals[-1], known[0])
            self._totals = collections.deque(
                totals[:-1] + [EXACT.add(total, shift) for total in known],
                maxlen=self._totals.maxlen,
            )
            self.start_ms = start_ms

    def over(self, windows: int) -> Decimal | None:
        """Sum of the last ``windows`` windows; None without that many."""
        if not 0 < windows < len(self._totals):
            return None
        return EXACT.subtract(self._totals[-1], self._totals[-1 - windows])
