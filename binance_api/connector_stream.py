"""One series delivered as it happens: over the product's own sockets, by polling where they fail.

Consumes a follower's stream through ``RobustConnectionManager`` → produces pieces of the series for
``Delivery``. Both ways feed one queue and one cursor, so changing between them loses and repeats
nothing. Every queue is bounded: frames that cannot wait are asked from REST later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import structlog

from binance_api.connector_followers import BarFollower, Columns, TickFollower
from binance_api.connector_session import BinanceConnection
from binance_api.endpoints import Route
from binance_api.errors import ExchangeError, RateLimited
from domain.errors import ConnectionLost
from domain.events import ConnectionEvent
from market_orchestrator.connection.clock import SystemClock
from market_orchestrator.connection.contract import ConnectionSettings, FrameBatch
from market_orchestrator.connection.robust_connection import RobustConnectionManager
from market_orchestrator.connection.transport import default_transport

log = structlog.get_logger()

_QUEUE_BATCHES: Final = 2_000  # frames waiting to be worked in
_PIECES: Final = 64  # delivered, and not yet taken by the callbacks
_BACKOFF_CAP_S: Final = 10.0  # a market that is polled meanwhile need not wait longer


class Subscription:
    """One series being followed; ``run`` on the connection's loop.

    Args:
        connection: Whose REST client and settings are used.
        follower: Knows the series.
        deliver: Takes a piece, and what to call when it is done with it (from any thread).
        poll_s: Seconds between two polls while the socket does not deliver.
    """

    def __init__(
        self,
        connection: BinanceConnection,
        follower: BarFollower | TickFollower,
        deliver: Callable[[Columns, Callable[[], None]], None],
        poll_s: float,
    ) -> None:
        self._connection = connection
        self._follower: Any = follower  # each takes what it made itself of the frames
        self._deliver = deliver
        self._poll_s = poll_s
        self._queue: asyncio.Queue[list[Any] | None] = asyncio.Queue(_QUEUE_BATCHES)
        self._slots = asyncio.Semaphore(_PIECES)
        self._loop = asyncio.get_running_loop()
        self._is_polling = False
        self._counts = {"frame_batches": 0, "dropped_batches": 0, "polls": 0, "pieces": 0}
        settings = connection.settings
        self._manager = RobustConnectionManager(
            ConnectionSettings(
                market=settings.rest.market,
                ws_base=settings.ws_url,
                max_reconnect_attempts=0,
                backoff_cap_s=_BACKOFF_CAP_S,
                connect_timeout_s=settings.rest.request_timeout_s,
            ),
            [follower.stream],
            self._on_frames,
            self,
            follower,
            transport=default_transport(),
            clock=SystemClock(),
            random=random.Random(),
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stream())
            group.create_task(self._watch())
            group.create_task(self._work())

    def on_connection(self, event: ConnectionEvent) -> None:
        """A socket changed its state; the manager has logged it (``ConnectionListener``)."""

    def statistics(self) -> dict[str, int | float | str | None]:
        """Batches, polls and pieces, and the state of the sockets."""
        return {**self._counts, "is_polling": int(self._is_polling), **self._manager.statistics()}

    async def _stream(self) -> None:
        try:
            await self._manager.run()
        except ConnectionLost as error:  # such as a location that is refused: polling goes on
            log.error("connector.sockets_given_up", error=str(error))

    def _on_frames(self, batch: FrameBatch) -> Collection[str]:
        items, streams = self._follower.on_frames(batch)
        if items:
            self._counts["frame_batches"] += 1
            if self._queue.full():
                self._queue.get_nowait()
                self._counts["dropped_batches"] += 1
            self._queue.put_nowait(items)
        return streams  # type: ignore[no-any-return]

    async def _watch(self) -> None:
        """Ask for a poll while the socket does not deliver, and where a candle is overdue."""
        while True:
            await asyncio.sleep(self._poll_s)
            is_healthy = self._manager.is_healthy(Route.TRADES)
            if is_healthy is self._is_polling:
                self._is_polling = not is_healthy
                event = "connector.streaming" if is_healthy else "connector.polling"
                log.warning(event, stream=self._follower.stream, every_s=self._poll_s)
            exchange_ms = time.time_ns() // 1_000_000 + self._connection.rest.clock_offset_ms
            is_due = self._is_polling or self._follower.is_overdue(exchange_ms)
            if is_due and self._queue.empty():
                self._queue.put_nowait(None)

    async def _work(self) -> None:
        """Work in frames and polls, in order."""
        while True:
            items = await self._queue.get()
            is_poll = items is None
            gathered = list(items or ())
            while not self._queue.empty():
                more = self._queue.get_nowait()
                is_poll |= more is None
                gathered += more or ()
            if gathered:
                await self._pass_on(await self._follower.take(gathered))
            if is_poll:
                await self._pass_on(await self._poll())

    async def _poll(self) -> list[Columns]:
        self._counts["polls"] += 1
        try:
            pieces: list[Columns] = await self._follower.catch_up()
        except RateLimited:  # waited out below already; the deadline was shorter than the wait
            return []
        except ExchangeError as error:
            log.warning("connector.poll_failed", stream=self._follower.stream, error=str(error))
            return []
        return pieces

    async def _pass_on(self, pieces: list[Columns]) -> None:
        for piece in pieces:
            await self._slots.acquire()
            self._counts["pieces"] += 1
            self._deliver(piece, self._release)

    def _release(self) -> None:
        """Called by the delivering thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._slots.release)
