"""Rolling measures of trade flow over time: bursts and net flow. Pure.

Consumes windows of a symbol in time order → produces scores and sums over past seconds and minutes,
None while warming up. They restart after a hole. Statistics are floats; ``NetFlow`` is exact.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

import msgspec

from microstructure.scaled_trades import EXACT
from microstructure.trade_flow import ZERO


class BurstSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``ArrivalBurst``, whose docstring has the formulas.

    Attributes:
        half_life_s: after which a second counts half in the usual arrival rate, s.
        warmup_s: seconds seen before the first score, s.
        slack: what a second's z must exceed to add to the CUSUM, σ.
        limit: CUSUM beyond which there is an alarm, σ.
        cooldown_s: seconds after an alarm without another one, s.
        longest_freeze_s: alarms and cool-downs in a row after which the new rate is learnt, s.
    """

    half_life_s: float = 300.0
    warmup_s: int = 60
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
        settings, weight = self._settings, self._weight
        mean, variance, seen = self._mean, self._variance, self._seen
        alarms, total, scored = 0, 0.0, 0
        for count in counts:
            is_frozen = self._cooldown > 0
            difference = count - mean
            if seen >= settings.warmup_s:
                z = difference / math.sqrt(variance) if variance > 1.0 else difference
                total += z
                scored += 1
                if is_frozen:
                    self._cooldown -= 1
                else:
                    self._score, is_frozen = cusum(self._score, z, settings.slack, settings.limit)
                    if is_frozen:
                        alarms += 1
                        self._score, self._cooldown = 0.0, settings.cooldown_s
            self._frozen = self._frozen + 1 if is_frozen else 0
            if is_complete and (not is_frozen or self._frozen > settings.longest_freeze_s):
                seen += 1
                share = weight if seen * weight > 1.0 else 1.0 / seen
                mean += share * difference
                variance = (1.0 - share) * (variance + share * difference * difference)
        self._mean, self._variance, self._seen = mean, variance, seen
        return alarms, total / scored if scored else None


def cusum(score: float, z: float, slack: float, limit: float) -> tuple[float, bool]:
    """One step of the upper CUSUM: the new score, and whether it passes the limit."""
    score += z - slack
    return (score, score > limit) if score > 0.0 else (0.0, False)


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
