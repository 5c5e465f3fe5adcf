"""Frames of one socket, gathered for a few milliseconds and handed on together.

Consumes messages from a transport's callbacks, produces ``deliver(payloads, receive_time_ns)`` on
the loop's thread. Invariants: arrival order, a few milliseconds of delay at most, bounded (a full
buffer is handed on at once), nothing after ``close``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_LASTING = 8  # full batches in a row that are a rate, not a burst
_BUSY_PER_S = 400  # below this rate gathering longer only costs time
Deliver = Callable[[list[bytes], list[int]], None]


class FrameBuffer:
    """Batches frames; ``deliver`` must not raise.

    A frame after a quiet moment is handed on with whatever came in the same read; others wait until
    ``interval_s`` after the last batch. While batch after batch holds ``busy_frames`` or more (a
    lasting rate, not one burst) they are gathered for ``busy_interval_s``, until they come slower
    than 400 per second: a batch costs much the same whatever it holds. Not while ``is_awaited`` says
    that somebody waits for the next frame.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        interval_s: float,
        max_batch: int,
        busy_interval_s: float | None = None,
        busy_frames: int = 4,
        is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._deliver = deliver
        self._interval_s = interval_s
        self._busy_interval_s = interval_s if busy_interval_s is None else busy_interval_s
        self._busy_frames = busy_frames
        self._is_awaited = is_awaited
        self._lasting_frames = max(busy_frames, int(self._busy_interval_s * _BUSY_PER_S))
        self._full_in_a_row = 0
        self._is_hurried = False  # the next batch is not gathered, though it could be
        self._max_batch = max_batch
        self._loop = asyncio.get_running_loop()
        self._payloads: list[bytes] = []
        self._stamps: list[int] = []
        self._timer: asyncio.Handle | None = None
        self._flushed_at = float("-inf")
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
        self._is_hurried = self._is_busy and self._is_awaited()
        gathers = self._is_busy and not self._is_hurried
        interval_s = self._busy_interval_s if gathers else self._interval_s
        wait_s = self._flushed_at + interval_s - self._loop.time()
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self.flush)
        else:
            self._timer = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand on what is there, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._payloads:
            return
        self._flushed_at = self._loop.time()
        payloads, stamps = self._payloads, self._stamps
        self._payloads, self._stamps = [], []
        if not self._is_hurried:  # what was not gathered says nothing about the rate
            least = self._lasting_frames if self._is_busy else self._busy_frames
            is_full = len(payloads) >= least
            self._full_in_a_row = self._full_in_a_row + 1 if is_full else 0
        if self._closed:
            return
        limit = self._max_batch
        if len(payloads) <= limit:
            self._deliver(payloads, stamps)
            return
        for start in range(0, len(payloads), limit):
            self._deliver(payloads[start : start + limit], stamps[start : start + limit])

    @property
    def _is_busy(self) -> bool:
        return self._full_in_a_row >= _LASTING

    def close(self) -> None:
        """Hand on what is there and take nothing more."""
        self.flush()
        self._closed = True
