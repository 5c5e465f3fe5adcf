"""One place for a connection: keeps it filled, by reconnecting after a loss and rotating ahead of
the exchange's cut (the new connection proves itself before the old one goes).

Consumes losses and rotation requests of its feed, produces the next feed. Invariant: whatever
happens, also a cancellation at any await, no connection of this slot stays open behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from market_orchestrator.connection.backoff import (
    Decision,
    LossHistory,
    backoff_delay,
    classify,
)
from market_orchestrator.connection.clock import Clock, Random, wait_for_first
from market_orchestrator.connection.contract import ConnectionSettings
from market_orchestrator.connection.feed import Feed
from market_orchestrator.connection.liveness import SocketLiveness
from market_orchestrator.connection.loss import Loss
from market_orchestrator.connection.shard import Shard
from market_orchestrator.connection.transport import CONNECT_ERRORS

log = structlog.get_logger()

MakeFeed = Callable[[int, "Slot", SocketLiveness | None], Feed]


class Slot:
    """Keeps one connection of a shard alive.

    Args:
        index: Position among all slots of the manager; spreads rotations.
        new_id: Gives a socket id never used before.
        make_feed: Builds a feed for (socket id, slot, predecessor's liveness).
        before_start: Awaited once, before the first attempt (trades open before depth).
        on_failure: Told after each failed attempt; may raise ``ConnectionLost``.
    """

    def __init__(
        self,
        shard: Shard,
        index: int,
        *,
        settings: ConnectionSettings,
        clock: Clock,
        random: Random,
        new_id: Callable[[], int],
        make_feed: MakeFeed,
        before_start: Callable[[], Awaitable[None]],
        on_open: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.shard = shard
        self.index = index
        self.attempts = 0  # failures in a row; reset by data alone
        self.connect_count = 0
        self.failure_count = 0
        self.rotation_count = 0
        self.last_failure = ""
        self.socket_id = 0  # of the latest attempt
        self._is_fatal = False
        self._settings = settings
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._make_feed = make_feed
        self._before_start = before_start
        self._on_open = on_open
        self._on_failure = on_failure
        self._history = LossHistory()
        self._liveness: SocketLiveness | None = None
        self._feeds: set[Feed] = set()

    def is_exhausted(self) -> bool:
        """Whether this slot failed as often in a row as allowed."""
        allowed = self._settings.max_reconnect_attempts
        return self._is_fatal or (allowed > 0 and self.attempts >= allowed)

    async def run(self) -> None:
        """Keep a connection open until cancelled."""
        try:
            await self._before_start()
            reason = "start"
            while True:
                feed = await self._open_until_success(reason)
                feed, loss = await self._serve(feed)
                self._liveness = feed.liveness
                self._feeds.clear()
                reason = f"reconnect: {loss.reason}"
                await self._clock.sleep(self._delay_after(feed, loss))
        finally:
            await self._dispose()

    async def _dispose(self) -> None:
        for feed in tuple(self._feeds):
            await feed.dispose()

    # --- opening ---

    async def _open_until_success(self, reason: str) -> Feed:
        self.socket_id = self._new_id()
        while True:
            feed = self._make_feed(self.socket_id, self, self._liveness)
            feed.attempt = self.attempts
            try:
                await self._open(feed, reason)
            except CONNECT_ERRORS as error:
                self._count_failure(error)
                feed.abandon(f"connecting failed: {_text(error)}", attempt=self.attempts)
                self._on_failure()
                await self._clock.sleep(self._backoff(self.attempts))
            else:
                return feed

    async def _open(self, feed: Feed, reason: str) -> None:
        self.connect_count += 1
        self._feeds.add(feed)
        self.shard.add(feed, self._on_first_data)
        try:
            await feed.open(reason)
        except CONNECT_ERRORS:
            self._feeds.discard(feed)
            self.shard.drop(feed)
            raise
        self._on_open()

    def _on_first_data(self) -> None:
        self.attempts = 0
        self._is_fatal = False

    def _count_failure(self, failure: BaseException) -> None:
        self.attempts += 1
        self.failure_count += 1
        self.last_failure = _text(failure)
        self._is_fatal = classify(failure) is Decision.FATAL

    def _backoff(self, attempt: int) -> float:
        settings = self._settings
        return backoff_delay(
            attempt,
            base_s=settings.backoff_base_s,
            cap_s=settings.backoff_cap_s,
            random=self._random,
        )

    def _delay_after(self, feed: Feed, loss: Loss) -> float:
        """Seconds until the next attempt: hardly any after a healthy connection, else backoff."""
        excess = self._history.add(self._clock.monotonic())
        if feed.first_data.done():
            if excess:
                return min(self._backoff(excess), self._settings.flapping_cap_s)
            return self._random.uniform(0.0, self._settings.reconnect_jitter_s)
        self.attempts += 1
        self.failure_count += 1
        self.last_failure = f"{loss.reason} (before any data)"
        self._on_failure()
        return self._backoff(self.attempts)

    # --- serving and rotating ---

    async def _serve(self, feed: Feed) -> tuple[Feed, Loss]:
        """Serve ``feed`` and its replacements; return the last one with how it was lost."""
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(feed.run())
            while True:
                waiters: set[asyncio.Future[Any]] = {running, feed.rotation}
                await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    return feed, running.result()
                feed, running = await self._rotate(tasks, feed, running)

    async def _rotate(
        self, tasks: asyncio.TaskGroup, old: Feed, old_run: asyncio.Task[Loss]
    ) -> tuple[Feed, asyncio.Task[Loss]]:
        reason = old.rotation.result()
        if self.shard.rotation_lock.locked():  # never wait here: the old connection may be lost
            retry_in_s = self._settings.rotation_overlap_s
            old.keep("the other socket is rotating", retry_in_s=retry_in_s)
            return old, old_run
        async with self.shard.rotation_lock:
            old.mark_rotating(reason)
            new = self._make_feed(self._new_id(), self, old.liveness)
            try:
                await self._open(new, f"rotation: {reason}")
            except CONNECT_ERRORS as error:
                new.abandon(f"rotation failed: {_text(error)}", attempt=self.attempts)
                old.keep(_text(error), retry_in_s=self._settings.rotation_retry_s)
                return old, old_run
            new_run = tasks.create_task(new.run())
            await self._prove(new, new_run, old, old_run)
            return await self._settle(new, new_run, old, old_run)

    async def _prove(
        self, new: Feed, new_run: asyncio.Task[Loss], old: Feed, old_run: asyncio.Task[Loss]
    ) -> None:
        """Wait until the new connection delivers, or is as quiet as the old one; then overlap."""
        settings, clock = self._settings, self._clock
        ends: set[asyncio.Future[Loss]] = {new_run, old_run}
        await wait_for_first(clock, {*ends, new.first_data}, settings.rotation_grace_s)
        if not new.first_data.done() and not self._is_as_quiet(new, old):
            rest_s = settings.rotation_first_data_s - settings.rotation_grace_s
            await wait_for_first(clock, {*ends, new.first_data}, max(rest_s, 0.0))
        if not (new_run.done() or old_run.done()):
            await wait_for_first(clock, ends, settings.rotation_overlap_s)

    def _is_as_quiet(self, new: Feed, old: Feed) -> bool:
        opened = new.connected_at or 0.0
        return new.has_pong() and (old.last_data is None or old.last_data <= opened)

    async def _settle(
        self, new: Feed, new_run: asyncio.Task[Loss], old: Feed, old_run: asyncio.Task[Loss]
    ) -> tuple[Feed, asyncio.Task[Loss]]:
        """Keep the connection that works and let the other one go."""
        if old_run.done():
            self._feeds.discard(old)
            return new, new_run
        if new_run.done():
            self._feeds.discard(new)
            reason = f"the new connection was lost: {new_run.result().reason}"
            old.keep(reason, retry_in_s=self._settings.rotation_retry_s)
            return old, old_run
        if new.first_data.done() or self._is_as_quiet(new, old):
            self.rotation_count += 1
            self.shard.promote(new)
            old.retire("rotated")
            await asyncio.wait({old_run})
            self._feeds.discard(old)
            return new, new_run
        new.retire("rotation failed: no data on the new connection")
        await asyncio.wait({new_run})
        self._feeds.discard(new)
        old.keep("no data on the new connection", retry_in_s=self._settings.rotation_retry_s)
        return old, old_run


def gave_up(slot: Slot) -> str:
    """One line for the log and the error: why this slot has no connection."""
    return f"{slot.attempts} failures in a row, last: {slot.last_failure or 'unknown'}"


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
