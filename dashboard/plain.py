"""A plain live view of a run: connections, last windows, signals, gaps, health.

Consumes the event bus, produces a full-screen text at most four times a second, or one summary line
a minute in the log. Drawing and writing happen on a thread of their own that keeps only the newest
state, so a stalled terminal cannot stop the feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TextIO

import structlog
from rich.console import Console

from dashboard.picture import render, to_text
from dashboard.view_state import ViewState, reduce, summary
from domain.events import Topic
from event_bus import DropOldest, EventBus, Subscription

log = structlog.get_logger()

FRAME_INTERVAL_S = 0.25
CLOCK_INTERVAL_S = 1.0
SUMMARY_INTERVAL_S = 60.0
CLOSE_TIMEOUT_S = 1.0
QUEUE_EVENTS = 65_536  # one repair can revise a day of windows (17,280 of 5 s) at once
_ENTER, _LEAVE, _HOME, _CLEAR_LINE, _CLEAR_BELOW = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)


class Screen:
    """Draws the newest state on a terminal from a thread of its own; ``show`` never waits."""

    def __init__(self, stream: TextIO, problems: Callable[[], Sequence[str]]) -> None:
        self._problems = problems
        self._raw = open(stream.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
        self._encoding = stream.encoding or "utf-8"
        self._changed = threading.Condition()
        self._newest: ViewState | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._draw_all, name="view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def show(self, state: ViewState) -> None:
        """Make ``state`` the next one drawn; one not drawn yet is replaced."""
        with self._changed:
            self._newest = state
            self._changed.notify()

    def _draw_all(self) -> None:
        try:
            self._write(_ENTER)
            while (state := self._next()) is not None:
                self._write(self._frame(state))
            self._write(_LEAVE)
        except OSError as error:  # the terminal is gone; the run goes on without it
            log.warning("view.terminal_lost", reason=str(error))

    def _next(self) -> ViewState | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._newest is not None)
            state, self._newest = self._newest, None
            return None if self._closing else state

    def _frame(self, state: ViewState) -> str:
        size = shutil.get_terminal_size()
        text = to_text(
            render(
                state,
                now_ms=time.time_ns() // 1_000_000,
                rows=size.lines,
                columns=size.columns,
                problems=self._problems(),
            ),
            width=size.columns,
        )
        lines = text.rstrip("\n").split("\n")[: size.lines - 1]
        return _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + _CLEAR_BELOW

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            data = data[self._raw.write(data) or 0 :]


async def watch(
    bus: EventBus,
    *,
    with_view: bool,
    stream: TextIO,
    problems: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Show the bus's events until it closes: on the terminal, or a summary a minute in the log.

    Nothing that goes wrong here reaches the caller: a view must not end a run.

    Args:
        bus: where events come from; nothing else is read.
        with_view: draw on ``stream``, which must be a terminal.
        stream: standard output.
        problems: gives the log's last warnings and errors.
    """
    with bus.subscribe(Topic, policy=DropOldest(QUEUE_EVENTS), name="view") as subscription:
        try:
            if with_view:
                await _draw(subscription, stream, problems)
            else:
                await _summarise(subscription)
        except Exception:
            log.exception("view.failed")


async def _draw(
    subscription: Subscription, stream: TextIO, problems: Callable[[], Sequence[str]]
) -> None:
    state = ViewState()
    with Screen(stream, problems) as screen:
        while True:
            screen.show(state)
            await asyncio.sleep(FRAME_INTERVAL_S)  # at most four frames a second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_INTERVAL_S):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    state = reduce(state, batch)


async def _summarise(subscription: Subscription) -> None:
    state = ViewState()
    due = time.monotonic() + SUMMARY_INTERVAL_S
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    state = reduce(state, batch)
            if time.monotonic() >= due:
                due += SUMMARY_INTERVAL_S
                log.info("run.summary", **summary(state))
    finally:
        log.info("run.summary", **summary(state))


def supports_view(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands escape sequences."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return not Console(file=stream).legacy_windows
