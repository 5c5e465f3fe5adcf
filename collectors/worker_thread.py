"""One thread that a component owns: what was begun in it ends before anything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class WorkerThread:
    """Runs one call at a time, in order."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)

    async def run[T](self, work: Callable[[], T]) -> T:
        """Run ``work`` to its end, even when cancelled meanwhile: half a write helps nobody."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # told by whoever tries again
            raise

    def close(self) -> None:
        """End the thread; what was submitted before ends first."""
        self._executor.shutdown()
