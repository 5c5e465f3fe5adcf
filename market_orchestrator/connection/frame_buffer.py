"""Frames of one socket, gathered for a few milliseconds and handed on together.

Consumes messages from a transport's callbacks, produces ``deliver(payloads, receive_time_ns)`` on
the loop's thread. Invariants: arrival order, at most ``interval_s`` of delay, bounded (a full
buffer is handed on at once), nothing after ``close``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

Deliver = Callable[[list[bytes], list[int]], None]


class FrameBuffer:
    """Batches frames; ``deliver`` must not raise."""

    def __init__(self, deliver: Deliver, *, interval_s: float, max_batch: int) -> None:
        self._deliver = deliver
        self._interval_s = interval_s
        self._max_batch = max_batch
        self._loop = asyncio.get_running_loop()
        self._payloads: list[bytes] = []
        self._stamps: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, payload: bytes) -> None:
        """Take one message, received now."""
        self._payloads.append(payload)
        self._stamps.append(time.time_ns())
        if self._timer is None:
            self._schedule()
        elif len(self._payloads) >= self._max_batch:
            self.flush()

    def extend(self, payloads: list[bytes]) -> None:
        """Take the messages of one read, all received now."""
        self._payloads += payloads
        self._stamps += [time.time_ns()] * len(payloads)
        if len(self._payloads) >= self._max_batch:
            self.flush()
        elif self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self.flush)

    def flush(self) -> None:
        """Hand on what is there, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._payloads:
            return
        payloads, stamps = self._payloads, self._stamps
        self._payloads, self._stamps = [], []
        if self._closed:
            return
        limit = self._max_batch
        if len(payloads) <= limit:
            self._deliver(payloads, stamps)
            return
        for start in range(0, len(payloads), limit):
            self._deliver(payloads[start : start + limit], stamps[start : start + limit])

    def close(self) -> None:
        """Hand on what is there and take nothing more."""
        self.flush()
        self._closed = True
