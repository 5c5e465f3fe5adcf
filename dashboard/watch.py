"""Watches a run: the dashboard on a terminal, or one summary line a minute in the log.

Consumes the event bus and keys, produces at most four scenes a second for the screen's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import msgspec
import structlog

from dashboard.keys import reading_keys
from dashboard.scene import Banner, Scene, View, pressed
from dashboard.screen import Screen
from dashboard.state import DashboardState, reduce, summary
from domain.events import Topic
from event_bus import DropOldest, Envelope, EventBus, Subscription

log = structlog.get_logger()

FRAME_INTERVAL_S = 0.25
SUMMARY_INTERVAL_S = 60.0
QUEUE_EVENTS = 65_536  # one repair can revise a day of windows (17,280 of 5 s) at once
_SLICE_EVENTS = 500  # reduced before the loop gets its turn


class Terminal(msgspec.Struct, frozen=True):
    """Where the dashboard is drawn and keys come from.

    Attributes:
        stream: standard output, a terminal.
        keys: standard input; no keys where it is no terminal.
        banner: says about the program what events do not.
        stop: called on the loop when the user asks to stop.
        problems: the log's last warnings and errors.
        symbols: as the user named them: the order they are shown in.
    """

    stream: TextIO
    keys: TextIO
    banner: Callable[[], Banner]
    stop: Callable[[], None]
    problems: Callable[[], Sequence[str]] = tuple
    symbols: tuple[str, ...] = ()


async def watch(bus: EventBus, terminal: Terminal | None) -> None:
    """Show the bus's events until it closes.

    Nothing that goes wrong here reaches the caller: a view must not end a run.

    Args:
        bus: where events come from; nothing else is read.
        terminal: what to draw on; None: a summary a minute in the log.
    """
    with bus.subscribe(Topic, policy=DropOldest(QUEUE_EVENTS), name="view") as subscription:
        try:
            if terminal is None:
                await _summarise(subscription)
            else:
                await _Viewer(terminal).run(subscription)
        except Exception:
            log.exception("view.failed")


class _Viewer:
    """State and view of one terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._state = DashboardState(order=terminal.symbols)
        self._view = View()
        self._screen = Screen(terminal.stream)

    async def run(self, subscription: Subscription) -> None:
        """Until the subscription ends."""
        with self._screen, reading_keys(self._terminal.keys, self._on_key):
            await self._follow(subscription)

    async def _follow(self, subscription: Subscription) -> None:
        while True:
            self._show()
            await asyncio.sleep(FRAME_INTERVAL_S)  # at most four frames a second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRAME_INTERVAL_S):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    self._state = await _reduced(self._state, batch)

    def _on_key(self, key: str) -> None:
        was_stopped = self._view.stopped
        self._view = pressed(self._view, key, list(self._state.symbols))
        self._show()
        if self._view.stopped and not was_stopped:
            self._terminal.stop()

    def _show(self) -> None:
        state, view, terminal = self._state, self._view, self._terminal
        self._screen.show(
            lambda: Scene(
                state=state,
                view=view,
                now_ns=time.time_ns(),
                banner=terminal.banner(),
                problems=terminal.problems(),
            )
        )


async def _reduced(state: DashboardState, batch: Sequence[Envelope]) -> DashboardState:
    """The state after a batch of any size; the loop goes on meanwhile."""
    for first in range(0, len(batch), _SLICE_EVENTS):
        if first:
            await asyncio.sleep(0)
        state = reduce(state, batch[first : first + _SLICE_EVENTS])
    return state


async def _summarise(subscription: Subscription) -> None:
    state = nothing = DashboardState()
    due = time.monotonic() + SUMMARY_INTERVAL_S
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    state = await _reduced(state, batch)
            if time.monotonic() >= due:
                due += SUMMARY_INTERVAL_S
                log.info("run.summary", **summary(state))
    finally:
        if state is not nothing:  # a run refused at its start is told of by its error alone
            log.info("run.summary", **summary(state))
