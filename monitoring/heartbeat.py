"""A health event every so often: statistics of all parts → the event bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from domain.events import HealthEvent, Topic
from event_bus import EventBus

_LAG_TICK_S = 0.1
_FIRST_S = 1.0


class Heartbeat:
    """Every ``interval_s`` a health event; measures the loop's lag in between.

    Args:
        bus: Where the events go.
        interval_s: From one to the next; the first one comes sooner.
        read: Statistics, ``part.name`` to value; empty while starting, which is no event.
    """

    def __init__(
        self,
        bus: EventBus,
        interval_s: float,
        read: Callable[[], Mapping[str, float | int | str | None]],
    ) -> None:
        self._bus = bus
        self._interval_s = interval_s
        self._read = read

    async def run(self) -> None:
        """Beat until cancelled."""
        worst_s = 0.0
        due = time.monotonic() + min(_FIRST_S, self._interval_s)
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LAG_TICK_S)
            now = time.monotonic()
            worst_s = max(worst_s, now - before - _LAG_TICK_S)
            if now < due or not (values := self._read()):
                continue
            due = now + self._interval_s
            lag = {"loop.worst_lag_ms": round(worst_s * 1_000, 3)}
            self._bus.publish(
                Topic.HEALTH, HealthEvent(at_ns=time.time_ns(), values={**values, **lag})
            )
            worst_s = 0.0
