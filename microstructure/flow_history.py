"""Rolling measures of trade flow over time: bursts, price impact, net flow. Pure.

Consumes windows of a symbol in time order → produces scores and sums over past seconds and minutes,
None while warming up. They restart after a hole. Statistics are floats; ``NetFlow`` is exact.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

import msgspec
import numpy as np

from microstructure.scaled_trades import EXACT, Floats, Ints
from microstructure.trade_flow import SECOND_MS, ZERO, Seconds


class BurstSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``ArrivalBurst``; times in seconds, ``slack`` (k) and ``limit`` (h) in deviations."""

    half_life_s: float = 300.0
    warmup_s: int = 60  # seconds seen before the first score
    slack: float = 0.5
    limit: float = 5.0
    cooldown_s: int = 5
    longest_freeze_s: int = 60


class ArrivalBurst:
    """Arrival z-score and CUSUM alarms (Page 1954) of one symbol on its 1-second trade counts.

    z = (N - μ) / max(σ, 1) with μ, σ the exponentially weighted mean and deviation of past seconds
    (plain ones until the weights have settled); S = max(0, S + z - slack), an alarm where S passes
    the limit, then S = 0 and a cool-down. Alarm and cool-down seconds do not feed μ and σ, unless
    the freeze has lasted so long that the new rate is the usual one.
    """

    __slots__ = (
        "_cooldown",
        "_frozen",
        "_mean",
        "_score",
        "_seen",
        "_settings",
        "_variance",
        "_weight",
    )

    def __init__(
        self, settings: BurstSettings, *, mean: float = 0.0, deviation: float = 0.0
    ) -> None:
        self._settings = settings
        self._weight = 1.0 - 2.0 ** (-1.0 / settings.half_life_s)
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
                self._learn(count, max(self._weight, 1.0 / self._seen))
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
    squares with intercept over the bars of the last ``lookback_s`` before the current window. The
    first bar after a hole has no Δprice and does not count.
    """

    def __init__(self, symbols: int, duration_ms: int, *, lookback_s: int, minimum: int) -> None:
        self._minimum = minimum
        self._lookback_s = lookback_s
        self._duration_ms = duration_ms
        slots = max(lookback_s * SECOND_MS // duration_ms, 1)
        self._moments = np.zeros((slots, 6, symbols))  # per window: n, Σx, Σy, Σxx, Σxy, Σyy
        self._last_price = np.full(symbols, np.nan)

    def forget(self, symbol: int) -> None:
        """Restarts a symbol after a hole."""
        self._moments[:, :, symbol] = 0.0
        self._last_price[symbol] = np.nan

    def residuals(self, owners: Ints, delta: Floats, close: Floats) -> list[float | None]:
        """Absorption of windows: sign(Δ)·(λ̂Δ - Δprice) / (σ_e·√seconds), from past bars only.

        Args:
            owners: Symbols of the windows.
            delta: Signed volume Δ of each window, base units.
            close: Last price of each window; Δprice is counted from the window before.

        Returns:
            Positive where the price moved less than the flow, 0 where Δ is 0; None while fewer than
            ``minimum`` bars are known or λ̂ <= 0.
        """
        n, x, y, xx, xy, yy = self._sums(owners)
        move = np.where(delta == 0.0, 0.0, close - self._last_price[owners])
        scale = math.sqrt(self._duration_ms / SECOND_MS)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = xx - x * x / n
            shared = xy - x * y / n
            slope = shared / spread
            error = np.sqrt((yy - y * y / n - slope * shared) / (n - 2.0))
            residual = np.sign(delta) * (slope * delta - move) / (error * scale)
            known = (n >= self._minimum) & (spread > 0.0) & (slope > 0.0) & (error > 0.0)
            known &= np.isfinite(residual)
        values = zip(residual.tolist(), known.tolist(), strict=True)
        return [value if is_known else None for value, is_known in values]

    def begin(self, start_ms: int, owners: Ints, *, incomplete: Sequence[int]) -> None:
        """Makes room for the windows at ``start_ms``, one per symbol, before any ``update``."""
        self._moments[self._slot(start_ms), :, owners] = 0.0
        for symbol in incomplete:
            self._last_price[symbol] = np.nan

    def update(self, start_ms: int, owners: Ints, seconds: Seconds) -> None:
        """Takes the seconds of complete windows at ``start_ms`` in, one row per symbol."""
        width = seconds.count.shape[1]
        traded = np.flatnonzero(seconds.count)
        row, second = np.divmod(traded, width)
        price = seconds.close.reshape(-1)[traded]
        previous = np.concatenate(([np.nan], price[:-1]))
        heads = np.flatnonzero(np.diff(row, prepend=-1))
        previous[heads] = self._last_price[owners[row[heads]]]
        self._last_price[owners[row]] = price  # the last of equal symbols stays
        used = ~np.isnan(previous) & (second >= width - self._lookback_s)
        row, x, y = row[used], seconds.delta.reshape(-1)[traded[used]], (price - previous)[used]
        slot = self._moments[self._slot(start_ms)]
        for moment, values in enumerate((np.ones_like(x), x, y, x * x, x * y, y * y)):
            slot[moment, owners] = np.bincount(row, weights=values, minlength=owners.size)

    def _slot(self, start_ms: int) -> int:
        return start_ms // self._duration_ms % self._moments.shape[0]

    def _sums(self, owners: Ints) -> Floats:
        if owners.size == self._moments.shape[2] and (np.diff(owners) == 1).all():
            return np.asarray(self._moments.sum(axis=0))
        return np.asarray(self._moments[:, :, owners].sum(axis=0))


class NetFlow:
    """Exact net flow of one symbol over the last minutes, from consecutive complete windows."""

    __slots__ = ("_end_ms", "_start_ms", "_totals")

    def __init__(self, longest: int) -> None:
        self._totals: collections.deque[Decimal] = collections.deque([ZERO], maxlen=longest + 1)
        self._start_ms = self._end_ms = -1  # of the unbroken history, empty at first

    @property
    def is_empty(self) -> bool:
        """Whether no window was added since the last restart."""
        return len(self._totals) == 1

    def restart(self, at_ms: int) -> None:
        """Forgets everything before ``at_ms``."""
        self._totals.clear()
        self._totals.append(ZERO)
        self._start_ms = self._end_ms = at_ms

    def append(self, start_ms: int, end_ms: int, flow: Decimal) -> None:
        """Adds a complete window; one that does not follow the history restarts it."""
        if start_ms != self._end_ms:
            self.restart(start_ms)
        self._end_ms = end_ms
        self._totals.append(EXACT.add(self._totals[-1], flow))

    def prepend(self, start_ms: int, end_ms: int, flows: Sequence[Decimal]) -> bool:
        """Puts consecutive complete windows before the history; False where they do not touch it."""
        if end_ms != self._start_ms or len(self._totals) == self._totals.maxlen:
            return False
        totals = [ZERO]
        for flow in flows:
            totals.append(EXACT.add(totals[-1], flow))
        before = totals.pop()
        totals.extend(EXACT.add(before, total) for total in self._totals)
        self._totals = collections.deque(totals, maxlen=self._totals.maxlen)
        self._start_ms = start_ms
        return True

    def over(self, windows: int) -> Decimal | None:
        """Sum of the last ``windows`` windows; None without that many."""
        if not 0 < windows < len(self._totals):
            return None
        return EXACT.subtract(self._totals[-1], self._totals[-1 - windows])
