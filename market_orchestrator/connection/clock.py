"""The time sources of the connection layer, behind one seam so that tests need not wait.

Produces monotonic seconds (liveness, timeouts, backoff), wall nanoseconds (stamps of events) and a
cancellable sleep. Invariant: nothing in this package reads time in any other way, but for the
receive stamp of a frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Protocol


class Clock(Protocol):
    """Time as the connection layer sees it."""

    def monotonic(self) -> float: ...  # seconds, never runs back
    def time_ns(self) -> int: ...  # wall clock, nanoseconds since the epoch
    async def sleep(self, seconds: float) -> None: ...


class Random(Protocol):
    """Where jitter comes from; ``random.Random`` fits."""

    def uniform(self, a: float, b: float, /) -> float: ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def wait_for_first(
    clock: Clock, waiters: Iterable[asyncio.Future[Any]], timeout_s: float
) -> None:
    """Return when any of ``waiters`` is done or ``timeout_s`` seconds have passed; cancel none."""
    async with asyncio.TaskGroup() as group:
        timer = group.create_task(clock.sleep(timeout_s))
        await asyncio.wait({timer, *waiters}, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()


def leaves(error: BaseException) -> list[BaseException]:
    """The single exceptions in ``error``, which may be a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]
