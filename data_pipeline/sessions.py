"""One UTC day of one symbol: VWAP, extremes and volume by price, and the key levels it leaves.

Klines and windows in time order → running totals; each stretch of time counts once, whoever brings
it first. At midnight a day that was seen nearly whole becomes the next day's key levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from data_pipeline.levels import VolumeProfile, key_levels
from domain.context import KeyLevels
from domain.market import Kline

DAY_MS = 86_400_000


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a day must offer to become key levels, and the grid of its volume profile.

    Attributes:
        minimum_day_coverage_ratio: share of a UTC day that must be seen for it to leave levels (0-1).
        profile_bin_bps: width of a price bin of the volume profile.
    """

    minimum_day_coverage_ratio: float = 0.95
    profile_bin_bps: float = 5.0


class DayTotals:
    """What was traded in one UTC day, as far as it was seen."""

    __slots__ = ("close", "covered_ms", "high", "low", "profile", "quote_volume", "volume")

    def __init__(self, bin_bps: float) -> None:
        self.volume = 0.0
        self.quote_volume = 0.0
        self.high: float | None = None
        self.low: float | None = None
        self.close: float | None = None
        self.covered_ms = 0
        self.profile = VolumeProfile(bin_bps)

    def add(
        self, duration_ms: int, prices: tuple[float, float, float], volume: float, quote: float
    ) -> None:
        """Add a stretch with trades.

        Args:
            duration_ms: Its length.
            prices: ``(high, low, close)``.
            volume: Base units, positive.
            quote: Quote units.
        """
        high, low, close = prices
        self.covered_ms += duration_ms
        self.high = high if self.high is None or high > self.high else self.high
        self.low = low if self.low is None or low < self.low else self.low
        self.close = close
        self.volume += volume
        self.quote_volume += quote
        self.profile.add(min(max(quote / volume, low), high), volume)

    def merge_earlier(self, earlier: DayTotals) -> None:
        """Put a stretch of the same day in front of this one."""
        if earlier.high is not None and earlier.low is not None:
            self.high = earlier.high if self.high is None else max(self.high, earlier.high)
            self.low = earlier.low if self.low is None else min(self.low, earlier.low)
            self.close = earlier.close if self.close is None else self.close
        self.volume += earlier.volume
        self.quote_volume += earlier.quote_volume
        self.covered_ms += earlier.covered_ms
        self.profile.merge(earlier.profile)


class SessionTracker:
    """The running UTC day of one symbol and the levels of the day before it."""

    __slots__ = ("_settings", "begins_ms", "covered_until_ms", "day_start_ms", "levels", "today")

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self.day_start_ms = -1
        self.begins_ms = -1  # where today's totals begin
        self.today = DayTotals(settings.profile_bin_bps)
        self.covered_until_ms = -1
        self.levels: KeyLevels | None = None

    @property
    def vwap(self) -> float | None:
        """Volume-weighted average price since 00:00 UTC, as far as it was seen."""
        return self.today.quote_volume / self.today.volume if self.today.volume > 0.0 else None

    def coverage_ratio(self, at_ms: int) -> float:
        """Share of the time between 00:00 UTC and ``at_ms`` that was seen (0-1)."""
        elapsed_ms = at_ms - self.day_start_ms
        return min(1.0, self.today.covered_ms / elapsed_ms) if elapsed_ms > 0 else 0.0

    def observe(
        self,
        start_ms: int,
        end_ms: int,
        prices: tuple[float, float, float] | None,
        volume: float,
        quote: float,
    ) -> None:
        """Add the stretch ``[start_ms, end_ms)``; one that overlaps an earlier one is left out.

        Args:
            start_ms: Start, in time order between calls.
            end_ms: End, in the same UTC day.
            prices: ``(high, low, close)``; ``None`` if nothing traded.
            volume: Base units.
            quote: Quote units.
        """
        if start_ms < self.covered_until_ms:
            return
        day_start_ms = start_ms - start_ms % DAY_MS
        if day_start_ms != self.day_start_ms:
            self._begin(day_start_ms)
            self.begins_ms = start_ms
        self.covered_until_ms = end_ms
        if prices is not None and volume > 0.0:
            self.today.add(end_ms - start_ms, prices, volume, quote)
        else:
            self.today.covered_ms += end_ms - start_ms

    def observe_klines(self, klines: Sequence[Kline]) -> None:
        """Add closed klines, in time order."""
        for kline in klines:
            prices = (float(kline.high), float(kline.low), float(kline.close))
            self.observe(
                kline.open_time_ms,
                kline.close_time_ms + 1,
                prices,
                float(kline.volume),
                float(kline.quote_volume),
            )

    def adopt_earlier(self, earlier: SessionTracker) -> None:
        """Take over what another tracker saw, which ends before this one begins."""
        if self.day_start_ms < 0:
            self.day_start_ms, self.today = earlier.day_start_ms, earlier.today
            self.begins_ms, self.covered_until_ms = earlier.begins_ms, earlier.covered_until_ms
            self.levels = earlier.levels
        elif earlier.day_start_ms == self.day_start_ms:
            self.today.merge_earlier(earlier.today)
            self.begins_ms = earlier.begins_ms

    def learn_levels(self, klines: Sequence[Kline]) -> None:
        """Take the levels from the klines of the day before, unless they are known."""
        if self.levels is None and self.day_start_ms >= 0:
            before_ms = self.day_start_ms - DAY_MS
            tracker = SessionTracker(self._settings)
            tracker.observe_klines(
                [k for k in klines if before_ms <= k.open_time_ms < self.day_start_ms]
            )
            self.levels = tracker.completed()

    def completed(self) -> KeyLevels | None:
        """The levels today leaves behind; ``None`` if too little of it was seen."""
        today = self.today
        needed_ms = self._settings.minimum_day_coverage_ratio * DAY_MS
        if today.high is None or today.low is None or today.close is None:
            return None
        if today.covered_ms < needed_ms:
            return None
        return key_levels(self.day_start_ms, today.high, today.low, today.close, today.profile)

    def _begin(self, day_start_ms: int) -> None:
        follows = day_start_ms == self.day_start_ms + DAY_MS
        self.levels = self.completed() if follows and self.day_start_ms >= 0 else None
        self.day_start_ms = day_start_ms
        self.today = DayTotals(self._settings.profile_bin_bps)
