"""A served program without a market: a bus to publish on, and clients of its HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from domain.events import Action, HealthEvent, Signal, Topic
from event_bus import EventBus
from monitoring.event_stream import EventStream
from monitoring.http_server import HttpSettings
from monitoring.serving import Monitoring, MonitoringSettings, Publisher, Sources, frames_received

PATIENCE_S = 60.0


def signal_of(number: int, symbol: str = "BTCUSDT") -> Signal:
    return Signal(
        signal_id=f"rules:{symbol}:{number}",
        symbol=symbol,
        window_end_ms=number * 5_000,
        decided_at_ms=number * 5_000,
        price=1.0,
        action=Action.HOLD,
        confidence=0.5,
        horizon_s=60,
        rationale="x",
        evidence={},
        invalidation=None,
        source="rules",
    )


class Served:
    """One run of the program; ``publish`` makes its events."""

    def __init__(
        self, monitoring: Monitoring, bus: EventBus, session: aiohttp.ClientSession
    ) -> None:
        self.monitoring = monitoring
        self.bus = bus
        self.session = session

    @property
    def url(self) -> str:
        assert self.monitoring.server is not None
        assert self.monitoring.server.url is not None
        return self.monitoring.server.url

    def publish(self, *numbers: int, symbol: str = "BTCUSDT") -> None:
        for number in numbers:
            self.bus.publish(Topic.SIGNAL, signal_of(number, symbol))

    def publish_health(self, *numbers: int, size: int = 0) -> None:
        for number in numbers:
            event = HealthEvent(at_ns=number, values={"filler": "x" * size})
            self.bus.publish(Topic.HEALTH, event)

    def events(self, query: str = "", **options: Any) -> Any:
        return self.session.ws_connect(f"{self.url}/events{query}", **options)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, not for a time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def frames(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    """The next frames."""
    async with asyncio.timeout(PATIENCE_S):
        return [json.loads(await socket.receive_str()) for _ in range(count)]


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    read: Callable[[], dict[str, Any]] = dict,
    token: str | None = None,
    port: int = 0,
    keep: int = 100,
    broker: Callable[[EventStream], Publisher] | None = None,
    listens: bool = True,
) -> AsyncIterator[Served]:
    """Serve for the time of a ``with``; ends as a run does: the bus first."""
    bus = EventBus()
    settings = MonitoringSettings(
        http=HttpSettings(port=port, token=token, retry_s=0.05),
        events_folder=folder,
        events_keep=keep,
    )
    monitoring = Monitoring(
        settings, Sources(read=read, progress=frames_received, bus=bus, broker=broker)
    )
    task = asyncio.ensure_future(monitoring.run())
    async with aiohttp.ClientSession() as session:
        try:
            if listens:
                await until(lambda: monitoring.server is not None and monitoring.server.url)
            yield Served(monitoring, bus, session)
        finally:
            bus.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
