"""The market's clock: starts at the first subscription and runs on, whoever listens.

Consumes a monotonic clock and a speed → produces market time in ns since the epoch (UTC).
Before the start it shows the source's start time.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class MarketClock:
    """Market time as a linear function of a monotonic clock.

    Args:
        start_ns: Market time before and at the start, ns since the epoch.
        speed: Market seconds per wall second; None for an unpaced market, whose clock is set by
            the frames that went out (``advance_to``).
        monotonic_ns: Source of wall durations.
    """

    def __init__(
        self,
        start_ns: int,
        speed: float | None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.start_ns = start_ns
        self._speed = speed
        self._monotonic_ns = monotonic_ns
        self._origin_ns: int | None = None
        self._base_ns = start_ns

    @property
    def is_started(self) -> bool:
        """True from the first subscription on."""
        return self._origin_ns is not None

    @property
    def is_unpaced(self) -> bool:
        """True when the frames set the clock."""
        return self._speed is None

    def start(self) -> None:
        """Start running; further calls do nothing."""
        if self._origin_ns is None:
            self._origin_ns = self._monotonic_ns()

    def now_ns(self) -> int:
        """Market time now, ns since the epoch."""
        if self._origin_ns is None or self._speed is None:
            return self._base_ns
        return self._base_ns + int((self._monotonic_ns() - self._origin_ns) * self._speed)

    def now_ms(self) -> int:
        """Market time now, ms since the epoch."""
        return self.now_ns() // 1_000_000

    def elapsed_ms(self) -> float:
        """Market ms since the start."""
        return (self.now_ns() - self.start_ns) / 1e6

    def wall_s_until(self, market_ns: int) -> float:
        """Wall seconds until a market time (0 when past or unpaced)."""
        if self._speed is None:
            return 0.0
        return max(0.0, (market_ns - self.now_ns()) / 1e9 / self._speed)

    def advance_to(self, market_ns: int) -> None:
        """Set an unpaced clock forward; never back."""
        if self._speed is None and market_ns > self._base_ns:
            self._base_ns = market_ns

    def pace(self, speed: float) -> None:
        """Let an unpaced clock run by itself from here on (after the last frame)."""
        if self._speed is None:
            self._origin_ns = self._monotonic_ns()
            self._speed = speed
