"""What every long-running verb has beside it: metrics, health, events, the event broker, systemd.

Consumes functions that read the parts and, where there is one, the event bus; ``serve_monitoring`` runs
until cancelled and then sends on what is still queued. Nothing in here can stop the work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from domain.events import Topic
from event_bus import DropOldest, Envelope, EventBus, Subscription
from monitoring.event_journal import REMEMBERED, EventJournal
from monitoring.event_stream import EventStream
from monitoring.events_socket import EventsSocket
from monitoring.health import HealthChecks, HealthSettings, Readings, Report
from monitoring.http_server import HttpServer, HttpSettings, Pages
from monitoring.metrics import Metrics
from monitoring.systemd import Systemd

log = structlog.get_logger()

QUEUE_EVENTS = 65_536  # one repair can revise a day of windows (17,280 of 5 s) at once
_SLICE = 500  # events numbered before the loop is given back
_LOOK_S = 1.0
_LAG_TICK_S = 0.1
_END_TIMEOUT_S = 1.5
_CLOSE_TICKS = 30


class Part(Protocol):
    """Something that counts."""

    def statistics(self) -> dict[str, int | float | str | None]: ...


class Publisher(Part, Protocol):
    """An event broker; ``run`` ends when the stream has ended and everything is out."""

    async def run(self) -> None: ...


class MonitoringSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is served.

    Attributes:
        http: None: no server.
        health: Limits of the checks.
        events_folder: Of the journal; None: nothing survives a restart.
        events_keep: Events of each topic that can be resumed from.
        version: Of the program.
        labels: What kind of process it is.
    """

    http: HttpSettings | None
    health: HealthSettings = HealthSettings()
    events_folder: Path | None = None
    events_keep: int = 2_000
    version: str = "unknown"
    labels: Mapping[str, str] = {}


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched.

    Attributes:
        read: Statistics of all parts, flat (``part.key``); empty while starting.
        progress: Grows while the work gets on; fed to systemd's watchdog.
        bus: Its events; None: there are none.
        others: Parts beside, by name, such as the log writer.
        broker: Builds the publisher of a stream; needs ``bus``.
    """

    read: Callable[[], Readings]
    progress: Callable[[Readings], int]
    bus: EventBus | None = None
    others: Mapping[str, Part] = {}
    broker: Callable[[EventStream], Publisher] | None = None


def frames_received(values: Readings) -> int:
    """``Sources.progress`` of a verb with sockets: frames of all routes."""
    counts = (values.get(f"connection.{route}.frames") for route in ("trades", "depth"))
    return sum(int(count) for count in counts if isinstance(count, int | float))


async def serve_monitoring(settings: MonitoringSettings, sources: Sources) -> None:
    """Serve until cancelled, then give followers what is still on its way."""
    await Monitoring(settings, sources).run()


class Monitoring:
    """The parts of ``serve_monitoring`` and their tasks."""

    def __init__(self, settings: MonitoringSettings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._checks = HealthChecks(settings.health)
        self._parts: dict[str, Part] = dict(sources.others)
        self._systemd = Systemd(os.environ)
        self.metrics = Metrics(self.read, version=settings.version, labels=settings.labels)
        # Subscribed before the first event: nothing of a run's begin is missed.
        self._subscription = (
            None
            if sources.bus is None
            else sources.bus.subscribe(Topic, policy=DropOldest(QUEUE_EVENTS), name="event_stream")
        )
        self.server: HttpServer | None = None

    def read(self) -> Readings:
        """All statistics: the work's and our own."""
        values = dict(self._sources.read())
        for name, part in self._parts.items():
            values |= {f"{name}.{key}": value for key, value in part.statistics().items()}
        return values

    def health(self) -> Report:
        """The checks now."""
        return self._checks.report(self._sources.read())

    async def run(self) -> None:
        """Serve until cancelled."""
        stream, journal = await self._open_stream()
        socket = None if stream is None else EventsSocket(stream)
        if socket is not None:
            self._parts["socket"] = socket
        if self._settings.http is not None:
            pages = Pages(
                metrics=lambda: self.metrics.exposition(self.health()),
                health=self.health,
                events=socket,
            )
            self.server = HttpServer(self._settings.http, pages)
        async with asyncio.TaskGroup() as group:
            followers = []
            if stream is not None and journal is not None:
                followers.append(
                    group.create_task(
                        _guarded(journal.run(stream.reader(REMEMBERED)), "event-journal")
                    )
                )
            if stream is not None and self._sources.broker is not None:
                publisher = self._sources.broker(stream)
                self._parts["broker"] = publisher
                followers.append(group.create_task(_guarded(publisher.run(), "event-broker")))
            serving = []
            if self.server is not None:
                serving.append(group.create_task(_guarded(self.server.run(), "http")))
            try:
                await self._watch(stream)
            finally:
                await asyncio.shield(self._end(stream, followers))
                for task in [*followers, *serving]:
                    task.cancel()

    async def _watch(self, stream: EventStream | None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_guarded(self._measure_lag(), "loop-lag"))
            group.create_task(_guarded(self._look(), "monitoring-look"))
            if stream is not None and self._subscription is not None:
                group.create_task(_guarded(self._pump(stream, self._subscription), "event-pump"))

    async def _end(
        self, stream: EventStream | None, followers: Sequence[asyncio.Task[None]]
    ) -> None:
        """Number what is queued, end the stream, and let its followers finish for a moment."""
        self._systemd.stopping()
        if stream is None or self._subscription is None:
            return
        self._subscription.close()
        self._take(stream, self._subscription.drain_nowait())
        stream.close()
        if followers:
            await asyncio.wait(followers, timeout=_END_TIMEOUT_S)
        for _ in range(_CLOSE_TICKS):  # clients of /events get their last events and a goodbye
            if not self._parts["socket"].statistics()["clients"]:
                break
            await asyncio.sleep(_END_TIMEOUT_S / _CLOSE_TICKS)

    async def _pump(self, stream: EventStream, subscription: Subscription) -> None:
        """Number events as they come, a slice at a time so that the loop stays free."""
        while batch := await subscription.next_batch():
            done = 0
            try:
                while done < len(batch):
                    self._take(stream, batch[done : done + _SLICE])
                    done += _SLICE
                    await asyncio.sleep(0)
            finally:
                self._take(stream, batch[done:])

    def _take(self, stream: EventStream, batch: Sequence[Envelope]) -> None:
        for envelope in batch:
            self.metrics.on_event(envelope)
        stream.append(batch)

    async def _measure_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LAG_TICK_S)
            self.metrics.on_lag(max(time.monotonic() - before - _LAG_TICK_S, 0.0))

    async def _look(self) -> None:
        """Judge the parts every second: writers are remembered, systemd hears of progress."""
        while True:
            values = self._sources.read()
            report = self._checks.report(values)
            offset_ms = values.get("validator.clock_offset_ms")
            self.metrics.clock_offset_ms = None if isinstance(offset_ms, str) else offset_ms
            progress = self._sources.progress(values)
            self._systemd.on_progress(progress, f"{report.status}, {progress} steps done")
            await asyncio.sleep(_LOOK_S)

    async def _open_stream(self) -> tuple[EventStream | None, EventJournal | None]:
        if self._subscription is None:
            return None, None
        keep, folder = self._settings.events_keep, self._settings.events_folder
        if folder is None:
            return EventStream(keep, wall_ns=time.time_ns), None
        journal = EventJournal(folder, keep)
        try:
            earlier = await asyncio.to_thread(journal.read)
        except OSError as error:
            log.warning("events.journal_failed", path=str(folder), error=str(error))
            return EventStream(keep, wall_ns=time.time_ns), None
        self._parts["event_journal"] = journal
        stream = EventStream(keep, wall_ns=time.time_ns, earlier=earlier, remembered=REMEMBERED)
        return stream, journal


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    """A defect in what only watches is logged, and costs nothing but the watching."""
    try:
        await work
    except Exception as error:
        log.error("monitoring.part_failed", part=name, exc_info=error)
