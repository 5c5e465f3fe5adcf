"""The connections that carry one set of streams, and what passes to the sink from them.

Consumes batches of its feeds, produces ``FrameBatch`` calls to the sink: trades of every feed
(merged by id downstream), depth of the primary alone. Invariant: no depth frame of a new primary
passes before the switch was reported.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection

import structlog

from binance_api.endpoints import Route
from domain.events import ConnectionEvent, ConnectionState
from market_orchestrator.connection.clock import Clock
from market_orchestrator.connection.contract import (
    ConnectionListener,
    ConnectionSettings,
    FrameBatch,
    FrameSink,
)
from market_orchestrator.connection.feed import Feed
from market_orchestrator.connection.loss import Loss, LossKind
from market_orchestrator.connection.primary import PrimarySelector

log = structlog.get_logger()

DEPTH_PRIMARY_SWITCHED = "depth primary switched"
_PEER_AHEAD_S = 0.5  # another socket's data this much newer than ours proves a stall


class Shard:
    """One route's streams on one set of connections.

    Args:
        fail: Told of an exception of the sink or listener: a programming error that ends the run.
        market_moves: Whether trades flow, for depth shards.
    """

    def __init__(
        self,
        route: Route,
        streams: list[str],
        *,
        settings: ConnectionSettings,
        clock: Clock,
        sink: FrameSink,
        listener: ConnectionListener,
        fail: Callable[[BaseException], None],
        market_moves: Callable[[float], bool | None],
    ) -> None:
        self.route = route
        self.streams = streams
        self.feeds: dict[int, Feed] = {}
        self.losses: Counter[str] = Counter()
        self.withheld_count = 0
        self.last_data: float | None = None
        self._ended_frames = 0
        self._ended_bytes = 0
        self._settings = settings
        self._clock = clock
        self._sink = sink
        self._listener = listener
        self._fail = fail
        self._failed = False
        self._market_moves = market_moves
        self._first_data: dict[int, Callable[[], None]] = {}
        self.rotation_lock = asyncio.Lock()  # one socket of the shard at a time
        self.selector: PrimarySelector | None = None
        if route is Route.DEPTH:
            self.selector = PrimarySelector(stale_after_s=settings.depth_stale_after_s)

    # --- who is in ---

    def add(self, feed: Feed, on_first_data: Callable[[], None]) -> None:
        """Register an opened feed; ``on_first_data`` is called once."""
        self.feeds[feed.socket_id] = feed
        self._first_data[feed.socket_id] = on_first_data

    def drop(self, feed: Feed) -> None:
        """Forget a feed that never opened."""
        self.feeds.pop(feed.socket_id, None)
        self._first_data.pop(feed.socket_id, None)

    def on_first_data(self, feed: Feed) -> None:
        self._first_data.pop(feed.socket_id)()

    def on_gone(self, feed: Feed, loss: Loss) -> None:
        """Forget a feed that ended (already reported); its standby takes over at once."""
        self.feeds.pop(feed.socket_id, None)
        self._first_data.pop(feed.socket_id, None)
        self.losses[loss.kind.value] += 1
        self._ended_frames += feed.frame_count
        self._ended_bytes += feed.byte_count
        if self.selector is None or loss.kind is LossKind.STOPPED:
            return
        now = self._clock.monotonic()
        frames = self.selector.remove(feed.socket_id, now)
        successor = self.feeds.get(self.selector.primary or 0)
        if frames is not None and successor is not None:
            self._switched(successor, frames.payloads, frames.receive_time_ns, now)

    def promote(self, feed: Feed) -> None:
        """Planned hand-over of depth to ``feed``; trades need none."""
        if self.selector is None or self.selector.primary == feed.socket_id:
            return
        for other in self.feeds.values():
            other.flush()
        now = self._clock.monotonic()
        frames = self.selector.promote(feed.socket_id, now)
        self._switched(feed, frames.payloads, frames.receive_time_ns, now)

    def is_standby(self, feed: Feed) -> bool:
        selector = self.selector
        return selector is not None and selector.primary not in (None, feed.socket_id)

    def is_healthy(self) -> bool:
        """Whether data flow on a socket whose frames go to the sink."""
        return any(f.is_up() for f in self.feeds.values() if not self.is_standby(f))

    def total_frames(self) -> int:
        """Frames received since the start, by all feeds, forwarded or not."""
        return self._ended_frames + sum(feed.frame_count for feed in self.feeds.values())

    def total_bytes(self) -> int:
        """Payload bytes received since the start."""
        return self._ended_bytes + sum(feed.byte_count for feed in self.feeds.values())

    # --- evidence for liveness ---

    def has_newer_data(self, feed: Feed, stream: str) -> bool:
        """Whether another socket got data of a trade stream clearly after ``feed`` did."""
        if self.selector is not None or len(self.feeds) < 2:
            return False
        ours = feed.liveness.last_data(stream) or feed.connected_at or 0.0
        others = (f.liveness.last_data(stream) for f in self.feeds.values() if f is not feed)
        return any(at is not None and at > ours + _PEER_AHEAD_S for at in others)

    def market_moves(self, now: float) -> bool | None:
        return self._market_moves(now) if self.selector is not None else None

    # --- frames and events ---

    def deliver(
        self, feed: Feed, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> Collection[str] | None:
        """Forward frames; ``None`` if ``feed`` stands by."""
        selector = self.selector
        if selector is None:
            return self._forward(feed.socket_id, payloads, receive_time_ns, now)
        before = selector.primary
        frames = selector.offer(feed.socket_id, payloads, receive_time_ns, now)
        if frames is None:
            self.withheld_count += len(payloads)
            return None
        if before not in (None, selector.primary):
            self._switched(feed, frames.payloads, frames.receive_time_ns, now)
            return ()  # _switched noted the data
        return self._forward(feed.socket_id, frames.payloads, frames.receive_time_ns, now)

    def _switched(
        self, feed: Feed, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> None:
        """Report the new primary, then pass on what it received since the old one's last frame."""
        feed.liveness.restart(now)
        self._emit(feed.socket_id, feed.state, DEPTH_PRIMARY_SWITCHED)
        streams = self._forward(feed.socket_id, payloads, receive_time_ns, now)
        if streams:
            feed.on_data(streams, now)

    def _forward(
        self, socket_id: int, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> Collection[str]:
        limit = self._settings.max_batch
        if not payloads:
            return ()
        if len(payloads) <= limit:
            return self._sink_batch(socket_id, payloads, receive_time_ns, now)
        streams: set[str] = set()
        for start in range(0, len(payloads), limit):
            part = slice(start, start + limit)
            streams.update(self._sink_batch(socket_id, payloads[part], receive_time_ns[part], now))
        return streams

    def _sink_batch(
        self, socket_id: int, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> Collection[str]:
        if self._failed:
            return ()
        try:
            streams = self._sink(FrameBatch(self.route, socket_id, payloads, receive_time_ns))
        except Exception as error:  # noqa: BLE001 - a callback: it must end run(), not the loop
            self._stop(error)
            return ()
        if streams:
            self.last_data = now
        return streams

    def on_state(
        self, feed: Feed, reason: str, *, attempt: int = 0, close_code: int | None = None
    ) -> None:
        """Report a feed's new state."""
        self._emit(feed.socket_id, feed.state, reason, attempt=attempt, close_code=close_code)

    def report_given_up(self, socket_id: int, reason: str, *, attempt: int) -> None:
        """Report that no further attempt is made."""
        self._emit(socket_id, ConnectionState.GAVE_UP, reason, attempt=attempt)

    def _emit(
        self,
        socket_id: int,
        state: ConnectionState,
        reason: str,
        *,
        attempt: int = 0,
        close_code: int | None = None,
    ) -> None:
        event = ConnectionEvent(
            route=self.route.value,
            socket_id=socket_id,
            state=state,
            reason=reason,
            attempt=attempt,
            close_code=close_code,
            at_ns=self._clock.time_ns(),
        )
        degraded = state in (ConnectionState.DISCONNECTED, ConnectionState.SUSPECT)
        write = log.warning if degraded else log.info
        write("connection.state", route=event.route, socket=socket_id, state=state, reason=reason)
        try:
            self._listener.on_connection(event)
        except Exception as error:  # noqa: BLE001 - as for the sink
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        self._failed = True
        self._fail(error)
