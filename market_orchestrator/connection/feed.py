"""One connection from its opening to its end.

Consumes a transport's callbacks, produces frames for its shard and a ``Loss`` at the end.
Invariants: pending frames go to the sink before DISCONNECTED or CLOSED is reported, nothing is
delivered after it; SUBSCRIBED is reported before the first frame; ``run`` leaves no socket open.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from binance_api.endpoints import Route, stream_url
from domain.events import ConnectionState
from market_orchestrator.connection.clock import Clock
from market_orchestrator.connection.contract import ConnectionSettings, SocketStatus
from market_orchestrator.connection.control import CONTROL_MAX_BYTES, ControlKind, control_kind
from market_orchestrator.connection.frame_buffer import FrameBuffer
from market_orchestrator.connection.heartbeat import Heartbeat, PauseDetector
from market_orchestrator.connection.liveness import SocketLiveness
from market_orchestrator.connection.loss import PLANNED, Loss, LossKind, LostError, first_loss
from market_orchestrator.connection.probes import ProbeDesk
from market_orchestrator.connection.transport import (
    NO_CLOSE_FRAME,
    Closed,
    Transport,
    TransportConnection,
)

log = structlog.get_logger()

_GAP_MEMORY = 64
_MIN_SILENCE_LIMIT_S = 0.5
_UNKNOWN_SILENCE_LIMIT_S = 5.0  # also the most it can be


class FeedOwner(Protocol):
    """The shard, as its feeds see it."""

    route: Route
    streams: list[str]

    def deliver(
        self, feed: Feed, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> Collection[str] | None:
        """Forward frames; returns the streams with data, or ``None`` if this feed stands by."""
        ...

    def is_standby(self, feed: Feed) -> bool: ...
    def has_newer_data(self, feed: Feed, stream: str) -> bool: ...
    def market_moves(self, now: float) -> bool | None: ...
    def on_state(
        self, feed: Feed, reason: str, *, attempt: int = 0, close_code: int | None = None
    ) -> None: ...
    def on_gone(self, feed: Feed, loss: Loss) -> None: ...
    def on_first_data(self, feed: Feed) -> None: ...


class Feed:
    """One connection of one slot.

    Args:
        socket_id: Its number; never used again once established.
        owner: The shard it belongs to.
        rotation_age_s: Age at which it asks to be replaced, given its wall time of connection.
        is_awaited: Whether somebody waits for its next frame.
        predecessor: Liveness of the connection before it, whose rates it takes over.
    """

    def __init__(
        self,
        socket_id: int,
        owner: FeedOwner,
        *,
        settings: ConnectionSettings,
        clock: Clock,
        transport: Transport,
        probes: ProbeDesk,
        rotation_age_s: Callable[[float], float],
        is_awaited: Callable[[], bool],
        predecessor: SocketLiveness | None = None,
    ) -> None:
        loop, now = asyncio.get_running_loop(), clock.monotonic()
        self.socket_id = socket_id
        self.state = ConnectionState.CONNECTING
        self._before_rotation = ConnectionState.CONNECTING
        self.attempt = 0
        self.connected_at: float | None = None
        self.last_data: float | None = None
        self.frame_count = 0
        self.byte_count = 0
        self.first_data: asyncio.Future[None] = loop.create_future()
        self.rotation: asyncio.Future[str] = loop.create_future()
        self._retirement: asyncio.Future[str] = loop.create_future()
        self._owner = owner
        self._settings = settings
        self._clock = clock
        self._transport = transport
        self._probes = probes
        self._rotation_age_s = rotation_age_s
        self._rotate_at = float("inf")
        self._connection: TransportConnection | None = None
        self._gaps: deque[float] = deque(maxlen=_GAP_MEMORY)
        self._resumed = False
        self._heartbeat = Heartbeat(settings.ping_interval_s, now)
        self.liveness = SocketLiveness(
            settings.liveness,
            owner.streams,
            now,
            is_depth=owner.route is Route.DEPTH,
            predecessor=predecessor,
        )
        self._buffer = FrameBuffer(
            self._on_batch,
            interval_s=settings.batch_interval_s,
            busy_interval_s=settings.busy_interval_s,
            max_batch=settings.max_batch,
            is_awaited=is_awaited,
        )
        self.flush = self._buffer.flush
        self.on_frame = self._buffer.add
        self.on_frames = self._buffer.extend

    # --- opening ---

    async def open(self, reason: str) -> None:
        """Connect and shake hands; raises one of ``transport.CONNECT_ERRORS``."""
        self._set_state(ConnectionState.CONNECTING, reason)
        owner, settings = self._owner, self._settings
        in_url = owner.streams[: settings.max_streams_in_url]
        url = stream_url(settings.market, settings.ws_base, owner.route, in_url)
        async with asyncio.timeout(settings.connect_timeout_s):
            self._connection = await self._transport.connect(url, self)

    def on_open(self) -> None:
        """Called by the transport when the handshake is done."""
        now = self._clock.monotonic()
        self.connected_at = now
        self._heartbeat = Heartbeat(self._settings.ping_interval_s, now)
        self.liveness.restart(now)
        self._rotate_at = now + self._rotation_age_s(self._clock.time_ns() / 1e9)
        self._set_state(ConnectionState.SUBSCRIBED, "handshake done, waiting for data")

    def on_pong(self) -> None:
        """Called by the transport for every pong."""
        self._resumed = False
        self._heartbeat.on_pong(self._clock.monotonic())

    # --- life ---

    async def run(self) -> Loss:
        """Serve the connection until it ends, close it, report it, and say why it ended."""
        loss = Loss(LossKind.STOPPED, "stopped")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive())
                tasks.create_task(self._subscribe_rest())
                tasks.create_task(self._await_retirement())
                tasks.create_task(self._supervise(tasks))
        except* LostError as group:
            loss = first_loss(group)
        finally:
            self._end(loss)
            await self._close(graceful=loss.kind in PLANNED)
        return loss

    def retire(self, reason: str) -> None:
        """Ask for an orderly end; ``run`` returns soon after."""
        if not self._retirement.done():
            self._retirement.set_result(reason)

    def abandon(self, reason: str, *, attempt: int) -> None:
        """Report that opening failed."""
        self.attempt = attempt
        self._buffer.close()
        self._set_state(ConnectionState.DISCONNECTED, reason)

    async def _receive(self) -> None:
        connection = self._opened()
        closed: Closed = await connection.receive()
        dropped = closed.code == NO_CLOSE_FRAME
        kind = LossKind.DROPPED if dropped else LossKind.CLOSED_BY_PEER
        reason = f"closed with code {closed.code}" + (f": {closed.reason}" if closed.reason else "")
        raise LostError(Loss(kind, reason, closed.code))

    async def _await_retirement(self) -> None:
        raise LostError(Loss(LossKind.RETIRED, await self._retirement))

    async def _subscribe_rest(self) -> None:
        """Subscribe what the URL did not carry, slowly enough for the exchange's limit."""
        chunk = self._settings.max_streams_in_url
        rest = self._owner.streams[chunk:]
        for number, start in enumerate(range(0, len(rest), chunk), start=1):
            params = rest[start : start + chunk]
            message = {"method": "SUBSCRIBE", "params": params, "id": number}
            await self._send(self._opened().send_text(json.dumps(message)))
            await self._clock.sleep(self._settings.subscribe_interval_s)

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await sending
        except OSError as error:
            raise LostError(Loss(LossKind.SEND_FAILED, f"sending failed: {error}")) from error

    def _opened(self) -> TransportConnection:
        if self._connection is None:
            raise RuntimeError("the feed was not opened")
        return self._connection

    # --- supervision ---

    async def _supervise(self, tasks: asyncio.TaskGroup) -> None:
        clock, tick_s = self._clock, self._settings.check_interval_s
        pause = PauseDetector(clock.monotonic(), clock.time_ns(), tick_s=tick_s)
        while True:
            await clock.sleep(tick_s)
            now = clock.monotonic()
            if pause.paused(now, clock.time_ns()):
                self._resumed = True
                self._heartbeat.restart(now)
                self.liveness.restart(now)
            self._judge(now)
            if self._heartbeat.is_due(now):
                self._heartbeat.on_ping(now)
                await self._send(self._opened().ping())
            self._probe_silent(tasks, now)
            if now >= self._rotate_at:
                self.ask_rotation("planned, ahead of the 24 h cut")

    def _judge(self, now: float) -> None:
        """Raise ``LostError`` if the connection must be replaced; show suspicion as a state."""
        heartbeat = self._heartbeat
        if heartbeat.is_lost(now):
            raise LostError(Loss(LossKind.NO_PONG, "no pong within one ping interval"))
        if self._owner.is_standby(self):
            reason = self._judge_standby(now)
        else:
            reason = self.liveness.review(now, market_moves=self._owner.market_moves(now))
            if self.liveness.is_all_silent():
                heartbeat.urge(now)
                self._show_silence()
        if reason is not None:
            raise LostError(Loss(LossKind.STALLED, reason))
        if heartbeat.is_overdue(now) and (self._resumed or self.liveness.is_all_silent()):
            raise LostError(Loss(LossKind.NO_PONG, "silent, and no pong to an urgent ping"))

    def _judge_standby(self, now: float) -> str | None:
        """A standby is not decoded: any frame counts for the whole socket."""
        settings = self._settings
        if self.last_data is None:
            since, limit_s = self.connected_at or now, settings.liveness.first_frame_depth_s
        else:
            since, limit_s = self.last_data, settings.standby_silence_s
        if now - since <= limit_s or not self._owner.market_moves(now):
            return None
        return f"standby silent for {now - since:.1f} s while trades flow"

    def _show_silence(self) -> None:
        if self.liveness.is_proven_quiet():
            if self.state in (ConnectionState.SUBSCRIBED, ConnectionState.SUSPECT):
                reason = "quiet: the exchange has nothing newer"
                self._set_state(ConnectionState.HEALTHY, reason)
        elif self.state is ConnectionState.HEALTHY:
            self._set_state(ConnectionState.SUSPECT, "all streams silent past their limits")

    def _probe_silent(self, tasks: asyncio.TaskGroup, now: float) -> None:
        if self._owner.is_standby(self):
            return
        for stream in self.liveness.due_probes(now):
            if self._owner.has_newer_data(self, stream):
                self.liveness.on_verdict(stream, now, now, newer=True)
                continue
            if not self._probes.admit(now):
                return
            self.liveness.on_probe_started(stream, now)
            probe = tasks.create_task(self._probe(stream, now))
            probe.add_done_callback(lambda _: self._probes.release())

    async def _probe(self, stream: str, asked_at: float) -> None:
        newer = await self._probes.run(stream)
        self.liveness.on_verdict(stream, asked_at, self._clock.monotonic(), newer=newer)

    # --- rotation, as the slot drives it ---

    def ask_rotation(self, reason: str) -> None:
        """Ask the slot to replace this connection by a new one."""
        if not self.rotation.done():
            self.rotation.set_result(reason)

    def is_up(self) -> bool:
        """Whether data flow (or the stream is proven quiet), also while a successor is opened."""
        state = self._before_rotation if self.state is ConnectionState.ROTATING else self.state
        return state is ConnectionState.HEALTHY

    def mark_rotating(self, reason: str) -> None:
        self._before_rotation = self.state
        self._set_state(ConnectionState.ROTATING, reason)

    def keep(self, reason: str, *, retry_in_s: float) -> None:
        """The replacement failed: stay, and ask again later."""
        self.rotation = asyncio.get_running_loop().create_future()
        self._rotate_at = self._clock.monotonic() + retry_in_s
        if self.state is ConnectionState.ROTATING:
            self._set_state(self._before_rotation, f"kept, rotation failed: {reason}")

    def has_pong(self) -> bool:
        return self._heartbeat.last_pong is not None

    # --- frames ---

    def _on_batch(self, payloads: list[bytes], receive_time_ns: list[int]) -> None:
        self.frame_count += len(payloads)
        self.byte_count += sum(map(len, payloads))
        if min(map(len, payloads)) <= CONTROL_MAX_BYTES:
            payloads, receive_time_ns = self._take_control(payloads, receive_time_ns)
            if not payloads:
                return
        now = self._clock.monotonic()
        streams = self._owner.deliver(self, payloads, receive_time_ns, now)
        if streams is None:
            self.on_data((), now)
        elif streams:
            self.on_data(streams, now)

    def _take_control(
        self, payloads: list[bytes], receive_time_ns: list[int]
    ) -> tuple[list[bytes], list[int]]:
        """Take out replies to SUBSCRIBE and the shutdown notice; everything else is data."""
        kept_payloads, kept_times = [], []
        for payload, time_ns in zip(payloads, receive_time_ns, strict=True):
            kind = control_kind(payload)
            if kind is None:
                kept_payloads.append(payload)
                kept_times.append(time_ns)
            elif kind is ControlKind.SHUTDOWN:
                self.ask_rotation("the exchange announced serverShutdown")
            elif kind is ControlKind.REFUSED:
                reply = payload.decode("utf-8", "replace")
                log.warning("connection.subscribe_refused", reply=reply)
        return kept_payloads, kept_times

    def on_data(self, streams: Collection[str], now: float) -> None:
        """Real data came (``streams`` empty: not decoded, this feed stands by)."""
        if self.last_data is not None:
            self._gaps.append(now - self.last_data)
        self.last_data = now
        self.liveness.on_data(streams, now)
        if not self.first_data.done():
            self.first_data.set_result(None)
            self._owner.on_first_data(self)
        self._before_rotation = ConnectionState.HEALTHY
        if self.state in (ConnectionState.SUBSCRIBED, ConnectionState.SUSPECT):
            self._set_state(ConnectionState.HEALTHY, "data flows")

    # --- the end ---

    def _end(self, loss: Loss) -> None:
        if self.state in (ConnectionState.CLOSED, ConnectionState.DISCONNECTED):
            return
        self._buffer.close()
        planned = loss.kind in PLANNED
        state = ConnectionState.CLOSED if planned else ConnectionState.DISCONNECTED
        self._set_state(state, loss.reason, close_code=loss.close_code)
        self._owner.on_gone(self, loss)

    async def _close(self, *, graceful: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(timeout_s=self._settings.close_timeout_s if graceful else 0.0)

    async def dispose(self) -> None:
        """End and close what ``run`` did not get to end; does nothing twice."""
        self._end(Loss(LossKind.STOPPED, "stopped"))
        await self._close(graceful=False)

    def _set_state(
        self, state: ConnectionState, reason: str, *, close_code: int | None = None
    ) -> None:
        self.state = state
        self._owner.on_state(self, reason, attempt=self.attempt, close_code=close_code)

    def status(self) -> SocketStatus:
        """What ``RobustConnectionManager.sockets`` shows."""
        pong = self._heartbeat.last_pong
        return SocketStatus(
            route=self._owner.route,
            socket_id=self.socket_id,
            state=self.state,
            is_primary=not self._owner.is_standby(self),
            stream_count=len(self._owner.streams),
            connected_at=self.connected_at,
            last_data_monotonic=self.last_data,
            silence_limit_s=self.silence_limit_s(),
            pong_age_s=None if pong is None else self._clock.monotonic() - pong,
            frame_count=self.frame_count,
        )

    def silence_limit_s(self) -> float:
        """Silence after which the whole socket must not be taken for healthy."""
        if len(self._gaps) < self._settings.liveness.min_gaps:
            return _UNKNOWN_SILENCE_LIMIT_S
        scaled = self._settings.liveness.gap_factor * statistics.median(self._gaps)
        return min(max(scaled, _MIN_SILENCE_LIMIT_S), _UNKNOWN_SILENCE_LIMIT_S)
