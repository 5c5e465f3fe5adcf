"""How many requests may be under way at once, with the urgent ones first.

Consumes "may I?" of tasks, produces slots. Invariants: never more than ``slots`` requests, never
more than ``slots - reserved`` that are not urgent; within each kind first come, first served.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class RequestGate:
    """A semaphore with two queues. Its queues hold one entry per waiting caller.

    Args:
        slots: Requests at once.
        reserved: Slots that only urgent requests may take; less than ``slots``.
    """

    def __init__(self, slots: int, reserved: int) -> None:
        if not 0 <= reserved < slots:
            raise ValueError(f"reserved must be 0 to {slots - 1}, not {reserved}")
        self._slots = slots
        self._bulk_slots = slots - reserved
        self._used = 0
        self._bulk_used = 0
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}

    @property
    def waiting_count(self) -> int:
        """Callers waiting for a slot."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def slot(self, *, urgent: bool) -> AsyncIterator[None]:
        """Hold a slot; wait for one if need be. The caller bounds the wait."""
        await self._acquire(urgent=urgent)
        try:
            yield
        finally:
            self._release(urgent=urgent)

    async def _acquire(self, *, urgent: bool) -> None:
        if not self._waiting[urgent] and self._is_free(urgent=urgent):
            self._take(urgent=urgent)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[urgent].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(urgent=urgent)  # the slot was ours before the cancellation came
            else:
                with contextlib.suppress(ValueError):  # a release may have dropped it already
                    self._waiting[urgent].remove(turn)
            raise

    def _release(self, *, urgent: bool) -> None:
        self._used -= 1
        self._bulk_used -= not urgent
        for kind in (True, False):
            while self._waiting[kind] and self._is_free(urgent=kind):
                turn = self._waiting[kind].popleft()
                if not turn.done():
                    self._take(urgent=kind)
                    turn.set_result(None)

    def _is_free(self, *, urgent: bool) -> bool:
        if self._used >= self._slots:
            return False
        return urgent or self._bulk_used < self._bulk_slots

    def _take(self, *, urgent: bool) -> None:
        self._used += 1
        self._bulk_used += not urgent
