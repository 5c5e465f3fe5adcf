"""Probes within bounds: few at a time, not too often, each with a timeout.

Consumes stream names, produces the prober's verdicts. The exchange's REST weight is shared with
gap repair, so a thousand quiet streams must not spend it.
"""

from __future__ import annotations

import asyncio

import structlog

from domain.errors import OrderFlowError
from market_orchestrator.connection.contract import ConnectionSettings, Prober

log = structlog.get_logger()


class ProbeDesk:
    """Admits and runs probes for all sockets of a manager."""

    def __init__(self, prober: Prober, settings: ConnectionSettings) -> None:
        self._prober = prober
        self._settings = settings
        self._running = 0
        self._next_at = 0.0
        self.count = 0
        self.stall_count = 0
        self.quiet_count = 0
        self.unknown_count = 0

    def admit(self, now: float) -> bool:
        """Reserve a probe if one may start at ``now``; every admitted one must be run."""
        if self._running >= self._settings.probe_concurrency or now < self._next_at:
            return False
        self._running += 1
        self._next_at = now + self._settings.probe_min_interval_s
        return True

    def release(self) -> None:
        """Give a reservation back."""
        self._running -= 1

    async def run(self, stream: str) -> bool | None:
        """Ask; a timeout or a failed request is ``None``."""
        self.count += 1
        verdict: bool | None = None
        try:
            async with asyncio.timeout(self._settings.probe_timeout_s):
                verdict = await self._prober.probe(stream)
        except (OrderFlowError, OSError) as error:
            log.info("connection.probe_failed", stream=stream, error=str(error))
        if verdict:
            self.stall_count += 1
        elif verdict is None:
            self.unknown_count += 1
        else:
            self.quiet_count += 1
        return verdict
