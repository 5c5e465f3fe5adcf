"""Alerts of a run: listens on the bus, keeps the state on disk, delivers what the engine decides.

Events in, ``Alert``s on the bus and notifications through the channels out. State and outbox are one
file, written whole before anything of it is sent: a kill at any moment leaves an alert either not
fired yet or waiting in the outbox under the key it will keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from alerts.channels import Channel, NotDelivered, Refused
from alerts.engine import Engine, EngineState
from alerts.outbox import Entry, Outbox, retry_s
from alerts.readings import AnalystBudget, Reader
from alerts.routing import ChannelState, Router
from alerts.rules import RuleBook
from alerts.silences import read_silences
from domain.errors import StorageError
from domain.events import Alert, Topic
from event_bus import Envelope, EventBus, Fail, SubscriberOverflow, Subscription
from lake.atomic import remove_leftovers, storage_error, write_atomic

log = structlog.get_logger()

STATE_FILE: Final = "state.json"
STATE_VERSION: Final = 1
TICK_S: Final = 1.0
MEMORY_SAVE_MS: Final = 60_000
CLOSE_TIMEOUT_S: Final = 3.0  # for what is due when the run ends; the rest waits for the next one
QUEUE_EVENTS: Final = 65_536  # one repair can revise a day of windows (17,280 of 5 s) at once
_SLICE_EVENTS: Final = 20
_TOPICS: Final = frozenset(Topic) - {Topic.WINDOW}


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """The file: everything that must outlive the process."""

    version: int = STATE_VERSION
    engine: EngineState
    channels: dict[str, ChannelState]
    outbox: tuple[Entry, ...]


def read_state(folder: Path) -> SavedState | None:
    """What the last run left; None where there is nothing.

    Raises:
        StorageError: It cannot be read or is none of ours.
    """
    path = folder / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=SavedState)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error("cannot read", path, error) from error
    except msgspec.DecodeError as error:
        raise StorageError(f"{path}: holds no alert state ({error})") from error


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the service.

    Attributes:
        folder: where state, silences and the file channel's files lie.
        symbols: whose silence is noticed.
        window_s: length of a window.
        budget: of each AI provider, per day.
        tick_s: how often time is looked at.
        retry_s: wait after a channel's first failure; doubles with every further one.
    """

    folder: Path
    symbols: Sequence[str]
    window_s: float
    budget: AnalystBudget = AnalystBudget()
    tick_s: float = TICK_S
    retry_s: float = 1.0


class AlertService:
    """Runs beside a bot for as long as its bus is open.

    Nothing is read from or written to the folder before the first event: only then does the bot
    own it.

    Args:
        bus: where events come from and alerts go.
        book: the rules.
        settings: see ``AlertSettings``.
        channels: where notifications go.
        wall_s: the machine's time.
    """

    def __init__(
        self,
        bus: EventBus,
        book: RuleBook,
        settings: AlertSettings,
        channels: Iterable[Channel],
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._book = book
        self._settings = settings
        self._channels = list(channels)
        self._wall_s = wall_s
        self._reader = Reader(settings.budget)
        self._engine: Engine | None = None
        self._router = Router(book, (c.name for c in self._channels), new_id=new_id)
        self._outbox = Outbox((), _lost)
        self._saving = asyncio.Lock()
        self._durable: set[str] = set()  # keys of notifications that are in the file
        self._wake = {channel.name: asyncio.Event() for channel in self._channels}
        self._progress = asyncio.Event()  # a channel took something
        self._is_stale = False  # the file lacks something of the outbox or the router
        self._saved_ms = 0
        self._failed_saves = self._failed_sends = self._overflows = 0
        self._silences_problem = ""
        # From construction on, so that nothing of the start is missed.
        self._subscription = self._subscribe()

    # --- the tasks ---

    async def run(self) -> None:
        """Work until the bus is closed, then deliver what is due for a moment.

        Raises:
            ConfigError: a channel cannot work as it is set.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._leave_bus)
            for channel in self._channels:
                await stack.enter_async_context(channel)
            first = await self._next_batch()
            if not first:
                return
            await self._load()
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._tick_on(), name="alerts-clock")]
                helpers += [
                    group.create_task(self._deliver(channel), name=f"alerts-{channel.name}")
                    for channel in self._channels
                ]
                try:
                    await self._listen(first)
                    await self._finish()
                finally:
                    for helper in helpers:
                        helper.cancel()

    async def _listen(self, batch: list[Envelope]) -> None:
        while batch:
            for number, envelope in enumerate(batch, start=1):
                self._observe(envelope.payload)
                if number % _SLICE_EVENTS == 0:
                    await asyncio.sleep(0)
            await self._save()
            batch = await self._next_batch()

    async def _next_batch(self) -> list[Envelope]:
        while True:
            try:
                return await self._subscription.next_batch()
            except SubscriberOverflow as error:
                self._overflows += 1
                self._subscription = self._subscribe()
                text = f"{error}; alerts about what came then may be missing"
                log.error("alerts.events_lost", reason=str(error))
                lost = Alert(
                    name="alerts.events_lost",
                    severity="error",
                    symbol=None,
                    message=text,
                    at_ns=int(self._wall_s() * 1e9),
                )
                self._bus.publish(Topic.ALERT, lost)  # comes back here, and is told like any other

    def _observe(self, payload: msgspec.Struct) -> None:
        reading = self._reader.read(payload)
        if reading is not None:
            self._loaded().observe(reading, self._now_ms())

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(self._settings.tick_s)
            await self._read_silences()
            self._tick()
            # What conditions remember changes with every reading and is worth a write now and then.
            self._is_stale |= self._now_ms() - self._saved_ms >= MEMORY_SAVE_MS
            await self._save()

    def _tick(self) -> None:
        engine, now_ms = self._loaded(), self._now_ms()
        found = self._router.digests(now_ms)
        for notification in engine.tick(now_ms):
            found += self._router.route(notification, now_ms)
            self._is_stale = True
        for channel, own in found:
            self._outbox.add(channel, own)
            self._is_stale = True
        self._outbox.expire(now_ms)

    async def _deliver(self, channel: Channel) -> None:
        """One at a time and in order; a channel that fails waits longer and longer."""
        failures = 0
        while True:
            entry = self._outbox.head(channel.name)
            if entry is None or entry.notification.key not in self._durable:
                self._wake[channel.name].clear()
                await self._wake[channel.name].wait()
                continue
            try:
                await channel.send(entry.notification)
            except NotDelivered as error:
                failures += 1
                self._failed_sends += 1
                wait_s = error.retry_after_s or retry_s(
                    failures, self._settings.retry_s, random.random
                )
                self._log_failure(channel.name, str(error), failures, wait_s)
                await asyncio.sleep(wait_s)
                continue
            except Refused as error:
                self._outbox.refused(entry, str(error))
            else:
                if failures:
                    log.info("alerts.channel_back", channel=channel.name, failures=failures)
                failures = 0
                self._outbox.done(entry)
            self._is_stale = True
            self._progress.set()
            await self._save()

    async def _finish(self) -> None:
        """The bus is closed: tell what fired last, and give each channel a moment to take it."""
        self._tick()
        self._is_stale = True
        await self._save()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._all_told()
        await self._save()
        if left := len(self._outbox.entries()):
            log.warning("alerts.not_delivered_yet", count=left, advice="the next run goes on")

    async def _all_told(self) -> None:
        """Wait until every channel has taken what waits for it."""
        while any(self._outbox.head(channel.name) for channel in self._channels):
            self._progress.clear()
            await self._progress.wait()

    # --- state ---

    async def _load(self) -> None:
        folder = self._settings.folder
        saved: SavedState | None = None
        await asyncio.to_thread(remove_leftovers, folder)
        try:
            saved = await asyncio.to_thread(read_state, folder)
        except StorageError as error:
            log.error("alerts.state_lost", error=str(error))
            with contextlib.suppress(OSError):
                path = folder / STATE_FILE
                path.replace(path.with_suffix(".damaged"))
        if saved is not None:
            names = [channel.name for channel in self._channels]
            self._router = Router(self._book, names, new_id=new_id, state=saved.channels)
            self._outbox = Outbox(saved.outbox, _lost)
            self._durable = {entry.notification.key for entry in saved.outbox}
        self._engine = Engine(
            self._book,
            symbols=self._settings.symbols,
            window_s=self._settings.window_s,
            new_id=new_id,
            state=None if saved is None else saved.engine,
        )
        await self._read_silences()
        self._tick()

    async def _save(self) -> None:
        """Write what changed; then alerts go on the bus and notifications may be sent."""
        async with self._saving:
            engine = self._loaded()
            if not engine.has_changed and not self._is_stale:
                return
            alerts, entries = engine.take_published(), self._outbox.entries()
            saved = SavedState(engine=engine.state, channels=self._router.state, outbox=entries)
            content = msgspec.json.encode(saved)
            engine.has_changed = self._is_stale = False
            self._saved_ms = self._now_ms()
            try:
                await asyncio.to_thread(
                    write_atomic, self._settings.folder / STATE_FILE, content, overwrite=True
                )
            except StorageError as error:  # telling matters more than not telling twice
                self._is_stale = True
                self._failed_saves += 1
                if self._failed_saves == 1:
                    log.error("alerts.state_not_saved", error=str(error))
            for alert in alerts:
                self._bus.publish(Topic.ALERT, alert)
            self._durable = {entry.notification.key for entry in entries}
            for event in self._wake.values():
                event.set()

    async def _read_silences(self) -> None:
        try:
            silences = await asyncio.to_thread(read_silences, self._settings.folder)
        except StorageError as error:
            if str(error) != self._silences_problem:
                log.warning("alerts.silences_unreadable", error=str(error))
            self._silences_problem = str(error)
        else:
            self._silences_problem = ""
            self._loaded().silences = silences

    # --- small things ---

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the state is not loaded yet")
        return self._engine

    def _now_ms(self) -> int:
        return int(self._wall_s() * 1_000)

    def _subscribe(self) -> Subscription:
        return self._bus.subscribe(_TOPICS, policy=Fail(QUEUE_EVENTS), name="alerts")

    def _leave_bus(self) -> None:
        self._subscription.close()  # whichever it is by then

    def _log_failure(self, channel: str, error: str, failures: int, wait_s: float) -> None:
        if failures in {1, 5} or failures % 100 == 0:
            log.warning(
                "alerts.not_delivered",
                channel=channel,
                error=error,
                failures=failures,
                retry_s=round(wait_s, 1),
            )

    def statistics(self) -> dict[str, int | float | str | None]:
        """The engine's and the outbox's counts; saves, sends and events that failed."""
        engine = {} if self._engine is None else self._engine.statistics()
        return {
            **engine,
            **{f"outbox.{key}": value for key, value in self._outbox.statistics().items()},
            "held_back": self._router.held_count,
            "failed_sends": self._failed_sends,
            "failed_saves": self._failed_saves,
            "overflows": self._overflows,
        }


def new_id() -> str:
    """A key nobody else gives."""
    return secrets.token_hex(12)


def _lost(entry: Entry, reason: str) -> None:
    names = sorted({item.name for item in entry.notification.items})
    log.error(
        "alerts.lost",
        channel=entry.channel,
        reason=reason,
        key=entry.notification.key,
        alerts=names,
    )
