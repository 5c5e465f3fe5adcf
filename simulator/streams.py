"""The WebSocket side: sockets, routes, subscriptions, control messages, and delivery.

Consumes due frames from the feed → produces pre-encoded bytes on every socket that subscribed, in
one write per socket and batch. An acknowledgement promises nothing, exactly as at the venue.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import structlog
from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from domain.market import Market
from simulator.clock import MarketClock
from simulator.fault_frames import Outbox
from simulator.frames import Frame, text_frame
from simulator.settings import SimulatorSettings

log = structlog.get_logger()

_DRAIN_TIMEOUT_S = 10.0
_METHODS = "SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS, SET_PROPERTY, GET_PROPERTY"
_PUBLIC_EVENTS = ("depth", "bookTicker")


class Request(msgspec.Struct):
    """A control message of a client."""

    method: str
    id: int | str | None = None
    params: list[str | bool | int] = msgspec.field(default_factory=list)


_decode_request = msgspec.json.Decoder(Request).decode


def delivers(market: Market, path_route: str | None, stream: str) -> bool:
    """Whether a stream sends data on a path.

    USDⓈ-M serves depth and bookTicker under ``/public``, everything else under ``/market``, and
    only the former on the old unrouted paths:
    https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
    """
    if market is Market.SPOT:
        return path_route is None
    is_public = stream.partition("@")[2].startswith(_PUBLIC_EVENTS)
    return path_route == ("public" if is_public else "market") or (path_route is None and is_public)


class Client:
    """One accepted socket."""

    def __init__(
        self,
        number: int,
        path_route: str | None,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
        *,
        combined: bool,
    ) -> None:
        self.number = number
        self.path_route = path_route
        self.combined = combined
        self.subscriptions: dict[str, None] = {}
        self.outbox = Outbox(number)
        self.opened_s = time.monotonic()
        self.last_pong_s = self.opened_s
        self.close_reason: str | None = None
        self._transport = transport
        self._writer = writer
        self._inbound: deque[float] = deque()

    @property
    def is_open(self) -> bool:
        """False once we or the peer ended it."""
        return self.close_reason is None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """Bytes the peer has not read yet."""
        return self._transport.get_write_buffer_size()

    def carries(self, route: str | None) -> bool:
        """Whether this socket belongs to the trades or the depth route."""
        if route is None:
            return True
        if self.path_route is not None:
            return self.path_route == ("market" if route == "trades" else "public")
        has_trades = any(name.endswith("@aggTrade") for name in self.subscriptions)
        return has_trades if route == "trades" else not has_trades

    def write(self, parts: list[bytes]) -> None:
        """Queue wire bytes; a closed socket takes nothing."""
        if parts and self.is_open:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent."""
        async with asyncio.timeout(_DRAIN_TIMEOUT_S):
            await self._writer.drain()

    def close(self, mode: str, reason: str) -> None:
        """End the socket: a close code, ``abort`` (no close frame) or ``reset`` (TCP RST)."""
        if not self.is_open:
            return
        self.close_reason = reason
        if mode == "reset":
            raw = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if mode in ("abort", "reset"):
            self._transport.abort()
            return
        text = reason.encode()[:120]
        self._transport.write(struct.pack("!BBH", 0x88, 2 + len(text), int(mode)) + text)
        self._transport.close()

    def is_flooding(self, limit_per_s: int) -> bool:
        """Count one inbound message; True when there were too many within a second."""
        now = time.monotonic()
        self._inbound.append(now)
        while now - self._inbound[0] > 1.0:
            self._inbound.popleft()
        return len(self._inbound) > limit_per_s


class StreamHub:
    """All sockets and what they subscribed to.

    Args:
        settings: Limits and timers.
        clock: Started by the first subscription.
        on_start: Called once, when that happens.
    """

    def __init__(
        self, settings: SimulatorSettings, clock: MarketClock, on_start: Callable[[], None]
    ) -> None:
        spot = settings.market is Market.SPOT
        scale = settings.wall_per_market
        self._settings = settings
        self._clock = clock
        self._on_start = on_start
        self._ping_s = (settings.ping_interval_s or (20.0 if spot else 180.0)) * scale
        self._pong_timeout_s = (settings.pong_timeout_s or (60.0 if spot else 600.0)) * scale
        self._lifetime_s = settings.lifetime_s * scale
        self._max_inbound_per_s = settings.max_inbound_per_s or (5 if spot else 10)
        self._clients: dict[int, Client] = {}
        self._subscribers: dict[str, dict[int, Client]] = {}
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self.is_refused: Callable[[str | None], str | None] = lambda _route: None

    @property
    def clients(self) -> list[Client]:
        """Open sockets, oldest first."""
        return [client for client in self._clients.values() if client.is_open]

    @property
    def has_listeners(self) -> bool:
        """True when some socket subscribed to something that delivers."""
        return bool(self._subscribers)

    def is_wanted(self, stream: str) -> bool:
        """True when a socket would get this stream."""
        return stream in self._subscribers

    @property
    def wanted(self) -> Iterable[str]:
        """Streams that some socket would get."""
        return self._subscribers.keys()

    def deliver(self, frames: list[Frame], now_ns: int) -> None:
        """Send frames that are due, and whatever faults held back until now."""
        batches: dict[int, list[Frame]] = {}
        for frame in frames:
            for number in self._subscribers.get(frame.stream, ()):
                batches.setdefault(number, []).append(frame)
        for number, batch in batches.items():
            client = self._clients[number]
            wires = client.outbox.pass_on(batch, combined=client.combined)
            self._counts["frames_sent"] += len(wires)
            client.write(wires)
        self.release(now_ns)
        self._drop_slow()

    def release(self, now_ns: int) -> None:
        """Send what faults held back until now."""
        for client in self._clients.values():
            if client.outbox.next_release_ns is not None:
                client.write(client.outbox.release(now_ns))

    def next_release_ns(self) -> int | None:
        """Market time at which held frames are due, if there are any."""
        times = [client.outbox.next_release_ns for client in self._clients.values()]
        return min((time_ns for time_ns in times if time_ns is not None), default=None)

    async def drain(self) -> None:
        """Wait for slow readers (an unpaced market); one that does not read at all is closed."""
        for client in self.clients:
            if client.unsent_bytes > 65_536:
                try:
                    await client.drain()
                except (TimeoutError, ConnectionError):
                    self._close_slow(client)

    def broadcast(self, message: bytes) -> None:
        """Send one text message to every socket, subscribed or not."""
        for client in self.clients:
            client.write([text_frame(message)])

    def close_all(self, mode: str, reason: str) -> None:
        """End every socket."""
        for client in self.clients:
            client.close(mode, reason)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Sockets open now and counts since the start."""
        return {"open_sockets": len(self.clients), **self._counts}

    async def handle(
        self, request: web.Request, path_route: str | None, streams: list[str], *, combined: bool
    ) -> web.StreamResponse:
        """Serve one socket from the handshake to its end."""
        transport = request.transport
        refusal = self.is_refused(path_route)
        if refusal is not None or transport is None:
            self._counts["refused"] += 1
            if refusal == "reset" and transport is not None:
                transport.abort()
            return web.Response(status=503, text="Service Unavailable")
        response = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=1 << 20)
        writer = await response.prepare(request)
        if writer is None:
            return response
        number = self._counts["accepted"]
        client = Client(number, path_route, transport, writer, combined=combined)
        self._clients[number] = client
        self._counts["accepted"] += 1
        try:
            self._subscribe(client, streams)
            with contextlib.suppress(ConnectionError):  # it went away while we wrote to it
                await self._converse(client, response)
        finally:
            self._forget(client)
        return response

    async def _converse(self, client: Client, response: web.WebSocketResponse) -> None:
        next_ping_s = client.opened_s + self._ping_s
        while client.is_open:
            now = time.monotonic()
            if self._is_expired(client, now):
                return
            if now >= next_ping_s:
                next_ping_s = now + self._ping_s
                await response.ping(str(self._clock.now_ms()).encode())
            wait_s = min(next_ping_s, client.opened_s + self._lifetime_s) - now
            wait_s = min(wait_s, client.last_pong_s + self._pong_timeout_s - now)
            try:
                message = await response.receive(timeout=max(wait_s, 0.001))
            except TimeoutError:
                continue
            if not await self._answer(client, response, message.type, message.data):
                return

    def _is_expired(self, client: Client, now_s: float) -> bool:
        if now_s - client.opened_s >= self._lifetime_s:
            self._counts["lifetime_cuts"] += 1
            client.close("1001", "lifetime reached")
        elif now_s - client.last_pong_s >= self._pong_timeout_s:
            self._counts["pong_timeouts"] += 1
            client.close("abort", "no pong")
        return not client.is_open

    async def _answer(
        self, client: Client, response: web.WebSocketResponse, kind: WSMsgType, data: object
    ) -> bool:
        """React to one inbound message; False ends the conversation."""
        if kind in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return False
        if client.is_flooding(self._max_inbound_per_s):
            self._counts["flood_cuts"] += 1
            client.close("1008", "Too many requests")
            return False
        if kind is WSMsgType.PING:
            await response.pong(bytes(data) if isinstance(data, bytes | bytearray) else b"")
        elif kind is WSMsgType.PONG:
            client.last_pong_s = time.monotonic()
        elif kind is WSMsgType.TEXT:
            reply = self._control(client, data if isinstance(data, str) else "")
            client.write([text_frame(reply)])
        return True

    def _control(self, client: Client, text: str) -> bytes:
        try:
            request = _decode_request(text)
        except (msgspec.DecodeError, ValueError) as error:
            return msgspec.json.encode({"code": 3, "msg": f"Invalid JSON: {error}"})
        names = [name for name in request.params if isinstance(name, str)]
        result: object = None
        match request.method:
            case "SUBSCRIBE":
                self._subscribe(client, names)
            case "UNSUBSCRIBE":
                self._unsubscribe(client, names)
            case "LIST_SUBSCRIPTIONS":
                result = list(client.subscriptions)
            case "SET_PROPERTY":
                client.combined = request.params[1:] == [True]
            case "GET_PROPERTY":
                result = client.combined
            case _:
                message = f"Invalid request: unknown variant `{request.method}`, expected one of"
                refusal = {"code": 2, "msg": f"{message} {_METHODS}", "id": request.id}
                return msgspec.json.encode(refusal)
        return msgspec.json.encode({"result": result, "id": request.id})

    def _subscribe(self, client: Client, streams: list[str]) -> None:
        for stream in streams:
            client.subscriptions.setdefault(stream)
            if delivers(self._settings.market, client.path_route, stream):
                self._subscribers.setdefault(stream, {})[client.number] = client
        if len(client.subscriptions) > self._settings.max_streams:
            self._counts["stream_limit_cuts"] += 1
            client.close("1008", "Too many streams")
            return
        if streams and not self._clock.is_started:
            self._on_start()

    def _unsubscribe(self, client: Client, streams: list[str]) -> None:
        for stream in streams:
            client.subscriptions.pop(stream, None)
            listeners = self._subscribers.get(stream, {})
            listeners.pop(client.number, None)
            if not listeners:
                self._subscribers.pop(stream, None)

    def _forget(self, client: Client) -> None:
        self._unsubscribe(client, list(client.subscriptions))
        self._clients.pop(client.number, None)

    def _drop_slow(self) -> None:
        for client in self.clients:
            if client.unsent_bytes > self._settings.client_buffer_bytes:
                self._close_slow(client)

    def _close_slow(self, client: Client) -> None:
        self._counts["slow_cuts"] += 1
        log.warning("simulator.slow_client", socket=client.number, unsent=client.unsent_bytes)
        client.close("abort", "too slow")


_COUNTERS = (
    "accepted",
    "refused",
    "frames_sent",
    "slow_cuts",
    "flood_cuts",
    "lifetime_cuts",
    "pong_timeouts",
    "stream_limit_cuts",
)
