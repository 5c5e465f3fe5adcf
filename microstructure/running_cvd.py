"""The running cumulative volume delta of one symbol. Pure, exact.

Consumes each window's delta in time order → produces the CVD since its anchor: 0 at the first window
ever seen and at 00:00 UTC. Incomplete from a hole or an incomplete window until repaired, or midnight.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from domain.market import NO_VALUE
from microstructure.scaled_trades import EXACT

DAY_MS = 86_400_000
ZERO = Decimal(0)


class RunningCvd(msgspec.Struct):
    """CVD in base units, and the start of the last window it holds."""

    value: Decimal = ZERO
    anchor_ms: int = NO_VALUE
    is_complete: bool = True
    last_start_ms: int = NO_VALUE

    def add(self, start_ms: int, duration_ms: int, delta: Decimal, *, is_complete: bool) -> None:
        """Takes the next window in; one that the state already holds changes nothing.

        Args:
            start_ms: Start of the window.
            duration_ms: Its length; the window before it began that much earlier.
            delta: Its delta, base units.
            is_complete: Whether it lacks no trade.
        """
        if start_ms <= self.last_start_ms:
            return
        follows = self.last_start_ms in (NO_VALUE, start_ms - duration_ms)
        midnight_ms = start_ms - start_ms % DAY_MS
        if self.anchor_ms == NO_VALUE:
            self.anchor_ms = start_ms
        elif self.anchor_ms < midnight_ms:
            self.value, self.anchor_ms = ZERO, midnight_ms
            self.is_complete = start_ms == midnight_ms
        elif not follows:
            self.is_complete = False
        self.is_complete = self.is_complete and is_complete
        self.last_start_ms = start_ms
        self.value = EXACT.add(self.value, delta)
