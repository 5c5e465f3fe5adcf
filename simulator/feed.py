"""The pump: frames and faults, each when it is due.

Consumes a market source and a fault plan → produces deliveries on the stream hub, and
``served_ns``, the market time up to which REST may show trades.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import structlog

from domain.market import Market
from simulator.clock import MarketClock
from simulator.derived import DerivedStreams
from simulator.fault_frames import FaultDesk
from simulator.faults import FRAME_KINDS, AppliedFault, Fault, FaultKind, FaultPlan
from simulator.frames import Frame, FrameKind, MarketSource
from simulator.streams import Client, StreamHub

log = structlog.get_logger()

_BATCH_FRAMES = 512
_SHORTEST_SLEEP_S = 0.001
_LONELY_STEP_NS = 500_000_000  # an unpaced market without clients runs at about 100 times real
_LONELY_SLEEP_S = 0.005
_FOREVER_NS = 2**62


class Feed:
    """Plays one source once.

    Args:
        source: Where frames come from.
        clock: Says what is due; an unpaced one is set by the frames sent.
        hub: Takes the frames.
        plan: What goes wrong, in market ms since the start.
        market: Decides what a shutdown notice looks like.
    """

    def __init__(
        self,
        source: MarketSource,
        clock: MarketClock,
        hub: StreamHub,
        plan: FaultPlan,
        market: Market,
    ) -> None:
        self._source = source
        self._clock = clock
        self._hub = hub
        self._market = market
        self._derived = DerivedStreams(hub.is_wanted, lambda: hub.wanted, market)
        self._pending: deque[tuple[int, int, Fault]] = deque(
            (source.start_ns + fault.at_ms * 1_000_000, number, fault)
            for number, fault in enumerate(plan.faults)
        )
        self._windows: list[tuple[int, Fault]] = []
        self._buffer: deque[Frame] = deque()
        self._chunks: asyncio.Queue[list[Frame]] = asyncio.Queue(maxsize=2)
        self._has_ended = False
        self._frame_count = 0
        self._started = asyncio.Event()
        self._told_ns = source.start_ns
        self.desk = FaultDesk()
        self.log: list[AppliedFault] = []
        self.books: dict[str, Frame] = {}
        self.served_ns = source.start_ns - 1

    def start(self) -> None:
        """Start the clock and the playing."""
        self._clock.start()
        self._started.set()

    def now_ms(self) -> int:
        """Market time as REST tells it, ms: while a busy machine plays late, it is held back.

        A client may take a candle for final that this time has passed.
        """
        now_ns = self._clock.now_ns()
        is_late = self._clock.is_started and self._is_behind(now_ns)
        self._told_ns = max(self._told_ns, min(self.served_ns, now_ns) if is_late else now_ns)
        return self._told_ns // 1_000_000

    def active(self, kind: FaultKind) -> list[tuple[int, Fault]]:
        """Timed faults of a kind that act now, each with the market time of its end."""
        now_ns = self._clock.now_ns()
        return [(end, fault) for end, fault in self._windows if end > now_ns and fault.kind is kind]

    def statistics(self) -> dict[str, int | float | str | None]:
        """How far the feed has come."""
        return {
            "frames_played": self._frame_count,
            "faults_applied": len(self.log),
            "market_ms": self._clock.now_ms(),
            "has_ended": int(self._has_ended and not self._buffer),
        }

    async def load(self) -> None:
        """Read ahead in a thread, so that decoding never holds up the loop."""
        chunks: Iterator[list[Frame]] = iter(self._source.chunks())
        while True:
            chunk = await asyncio.to_thread(next, chunks, None)
            await self._chunks.put(chunk or [])
            if chunk is None:
                return

    async def run(self) -> None:
        """Play from the start to the last frame and fault."""
        await self._started.wait()
        while True:
            await self._refill()
            next_ns = self._next_event_ns()
            if next_ns == _FOREVER_NS:
                break
            await self._play_until(await self._wait_for(next_ns))
        self.served_ns = _FOREVER_NS
        self._clock.pace(1.0)
        log.info("simulator.feed_ended", frame_count=self._frame_count)

    async def _refill(self) -> None:
        if not self._buffer and not self._has_ended:
            chunk = await self._chunks.get()
            self._has_ended = not chunk
            self._buffer.extend(chunk)

    def _is_behind(self, now_ns: int) -> bool:
        is_being_read = not self._buffer and not self._has_ended
        return is_being_read or self._next_event_ns() <= now_ns

    def _next_event_ns(self) -> int:
        times = [_FOREVER_NS]
        if self._buffer:
            times.append(self._buffer[0].due_ns)
        if self._pending:
            times.append(self._pending[0][0])
        held_ns = self._hub.next_release_ns()
        if held_ns is not None:
            times.append(held_ns)
        return min(times)

    async def _wait_for(self, next_ns: int) -> int:
        """Sleep until the next event is due; returns the market time to play up to."""
        if self._clock.is_unpaced:
            if self._hub.has_listeners:
                await self._hub.drain()
                await asyncio.sleep(0)
                return next_ns + _LONELY_STEP_NS
            await asyncio.sleep(_LONELY_SLEEP_S)
            return max(next_ns, self._clock.now_ns() + _LONELY_STEP_NS)
        wall_s = self._clock.wall_s_until(next_ns)
        await asyncio.sleep(max(wall_s, _SHORTEST_SLEEP_S) if wall_s > 0 else 0)
        return self._clock.now_ns()

    async def _play_until(self, now_ns: int) -> None:
        """Frames and faults due by ``now_ns``, in order, a fault before frames of its instant."""
        fault_ns = self._pending[0][0] if self._pending else _FOREVER_NS
        batch: list[Frame] = []
        limit_ns = min(now_ns, fault_ns - 1)
        while self._buffer and len(batch) < _BATCH_FRAMES and self._buffer[0].due_ns <= limit_ns:
            batch.append(self._buffer.popleft())
        if batch:
            self._play(batch, now_ns)
        elif fault_ns <= now_ns and (self._buffer or self._has_ended):
            _, number, fault = self._pending.popleft()
            self._clock.advance_to(fault_ns)
            self._begin(fault, number, fault_ns)
        else:
            self._hub.release(now_ns)
            self._clock.advance_to(now_ns)

    def _play(self, batch: list[Frame], now_ns: int) -> None:
        self.desk.claim(batch)
        frames = self._derived.extend(batch)
        for frame in batch:
            if frame.kind is FrameKind.DEPTH:
                self.books[frame.symbol] = frame
        last_ns = batch[-1].due_ns
        self._clock.advance_to(last_ns)
        self.served_ns = max(self.served_ns, last_ns)
        self._frame_count += len(batch)
        self._hub.deliver(frames, last_ns if self._clock.is_unpaced else min(now_ns, last_ns))

    def _begin(self, fault: Fault, number: int, at_ns: int) -> None:
        matching = [client for client in self._hub.clients if client.carries(fault.route)]
        targets = matching
        if fault.connection_index is not None:
            targets = matching[fault.connection_index : fault.connection_index + 1]
        at_ms = (at_ns - self._source.start_ns) // 1_000_000
        record = AppliedFault(fault=fault, at_ms=at_ms, detail=fault.variant)
        self.log.append(record)
        if fault.kind in FRAME_KINDS:
            self._begin_frame_fault(fault, number, at_ns, targets, record)
        elif fault.kind in (FaultKind.REFUSED, FaultKind.REST_FAILURE):
            self._windows.append((at_ns + fault.duration_ms * 1_000_000, fault))
        elif fault.kind is FaultKind.SERVER_SHUTDOWN:
            self._announce_shutdown(fault, at_ns)
        else:
            everyone = fault.kind is FaultKind.LIFETIME
            cut = self._hub.clients if everyone else targets
            record.detail = f"{fault.variant}: {len(cut)} sockets"
            for client in cut:
                client.close(fault.variant, fault.kind.value)
        log.info("simulator.fault", kind=fault.kind.value, at_ms=at_ms, detail=record.detail)

    def _begin_frame_fault(
        self, fault: Fault, number: int, at_ns: int, targets: list[Client], record: AppliedFault
    ) -> None:
        if fault.connection_index is None:
            self.desk.begin(fault, number, None, at_ns, record)
        elif targets:
            self.desk.begin(fault, number, targets[0].number, at_ns, record)
        else:
            record.detail = "no such socket"

    def _announce_shutdown(self, fault: Fault, at_ns: int) -> None:
        """Spot announces a shutdown, then cuts; futures only cut.

        https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
        """
        if self._market is Market.SPOT:
            time_ms = at_ns // 1_000_000
            self._hub.broadcast(b'{"e":"serverShutdown","E":%d}' % time_ms)
        cut = Fault(at_ms=0, kind=FaultKind.LIFETIME, mode=fault.mode)
        cut_ns = at_ns + fault.duration_ms * 1_000_000
        self._pending.append((cut_ns, -1, cut))
        self._pending = deque(sorted(self._pending, key=lambda item: item[0]))
