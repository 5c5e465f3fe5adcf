"""When something happened that is worth a question: events with hysteresis, and a least interval.

Closed windows in, names of events out; pure. An event stays up from the moment its condition holds
until it has been asked about or the condition is over; it comes up again only after it was clearly
over. So nothing is asked twice, flickering asks once, and what happened within the minimum interval
is still asked about if it lasts.
"""

from __future__ import annotations

import enum

import msgspec

from domain.context import MarketContext
from domain.features import FeatureRow


class Event(enum.StrEnum):
    """What can have happened."""

    WHALE_BURST = "whale_burst"
    CVD_DIVERGENCE = "cvd_divergence"
    ABSORPTION = "absorption"
    REGIME_CHANGE = "regime_change"
    LEVEL_REACHED = "level_reached"


class TriggerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of the events; each has one to come up and one to be over.

    Attributes:
        whale_count: whale trades in one window, mostly on one side, that are a burst; 1 will do in a window with a CUSUM burst alarm.
        whale_one_sided_ratio: least share of the whales' net volume in their volume.
        absorption_on: deviations of absorption from which it is an event.
        absorption_off: deviations below which it is over.
        divergence_off_windows: windows without divergence after which it is over.
        regime_windows: windows a new regime has to last before it counts.
        level_on_bps: distance to a level at which it is reached.
        level_off_bps: distance to every level at which it is left again.
    """

    whale_count: int = 3
    whale_one_sided_ratio: float = 0.5
    absorption_on: float = 2.0
    absorption_off: float = 1.0
    divergence_off_windows: int = 6
    regime_windows: int = 3
    level_on_bps: float = 3.0
    level_off_bps: float = 8.0


class _Latch:
    """Down → up (when the condition holds) → asked about → down (when it is clearly over)."""

    __slots__ = ("_is_held", "_is_new", "_quiet", "_release_after")

    def __init__(self, release_after: int = 1) -> None:
        self._is_held = self._is_new = False
        self._quiet = 0
        self._release_after = release_after

    @property
    def is_up(self) -> bool:
        return self._is_held and self._is_new

    def update(self, *, is_on: bool, is_off: bool) -> None:
        if is_on:
            self._quiet = 0
            if not self._is_held:
                self._is_held = self._is_new = True
        elif is_off:
            self._quiet += 1
            if self._quiet >= self._release_after:
                self._is_held = self._is_new = False

    def acknowledge(self) -> None:
        self._is_new = False


class _Regime:
    """The regimes last settled, and whether they differ from those last asked about."""

    __slots__ = ("_asked", "_candidate", "_lasted", "_needed", "_settled")

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._asked: tuple[str, ...] | None = None
        self._settled: tuple[str, ...] | None = None
        self._candidate: tuple[str, ...] | None = None
        self._lasted = 0

    @property
    def is_up(self) -> bool:
        return self._settled is not None and self._settled != self._asked

    def update(self, context: MarketContext) -> None:
        volatility, trend = context.volatility_regime, context.trend_regime
        if volatility is None or trend is None:
            return  # warming up
        now = (volatility.value, trend.value)
        self._lasted = self._lasted + 1 if now == self._candidate else 1
        self._candidate = now
        if self._lasted >= self._needed:
            if self._settled is None:
                self._asked = now  # the first known regime is no change
            self._settled = now

    def acknowledge(self) -> None:
        self._asked = self._settled


class Triggers:
    """The events of one symbol."""

    def __init__(self, settings: TriggerSettings) -> None:
        self._settings = settings
        self._whales = _Latch()
        self._bullish = _Latch(settings.divergence_off_windows)
        self._bearish = _Latch(settings.divergence_off_windows)
        self._absorption = _Latch()
        self._regime = _Regime(settings.regime_windows)
        self._level = _Latch()

    def observe(self, row: FeatureRow, context: MarketContext) -> tuple[Event, ...]:
        """Take one complete live window; the events not yet asked about, in a fixed order."""
        settings = self._settings
        self._whales.update(is_on=self._is_whale_burst(row), is_off=row.whale_count == 0)
        divergence = context.cvd_divergence
        if divergence is not None:
            self._bullish.update(is_on=divergence > 0, is_off=divergence <= 0)
            self._bearish.update(is_on=divergence < 0, is_off=divergence >= 0)
        if row.absorption is not None:
            self._absorption.update(
                is_on=row.absorption >= settings.absorption_on,
                is_off=row.absorption < settings.absorption_off,
            )
        distance = _nearest(context)
        if distance is not None:
            self._level.update(
                is_on=distance <= settings.level_on_bps, is_off=distance > settings.level_off_bps
            )
        self._regime.update(context)
        return self._up()

    def acknowledge(self) -> None:
        """All events that are up have been asked about."""
        for event in (self._whales, self._bullish, self._bearish, self._absorption, self._level):
            event.acknowledge()
        self._regime.acknowledge()

    def _up(self) -> tuple[Event, ...]:
        found = (
            (Event.WHALE_BURST, self._whales.is_up),
            (Event.CVD_DIVERGENCE, self._bullish.is_up or self._bearish.is_up),
            (Event.ABSORPTION, self._absorption.is_up),
            (Event.REGIME_CHANGE, self._regime.is_up),
            (Event.LEVEL_REACHED, self._level.is_up),
        )
        return tuple([event for event, is_up in found if is_up])

    def _is_whale_burst(self, row: FeatureRow) -> bool:
        needed = 1 if row.burst_count > 0 else self._settings.whale_count
        volume = row.whale_buy_volume + row.whale_sell_volume
        is_one_sided = abs(row.whale_delta) >= self._settings.whale_one_sided_ratio * volume
        return row.whale_count >= max(1, needed) and is_one_sided


def _nearest(context: MarketContext) -> float | None:
    known = (context.resistance_distance_bps, context.support_distance_bps)
    return min([distance for distance in known if distance is not None], default=None)
