"""``/events``: the event stream over a WebSocket, for programs of this machine or with the token.

Consumes a request (``topics``, ``symbols``, ``after``, ``policy``), produces text frames of JSON: events
(``sequence, topic, payload``) and notices (``notice``). A slow client keeps its place until that falls
off what is kept; it is then told how many events it missed. One that takes nothing is cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from domain.events import Topic
from monitoring.event_stream import EventStream, Reader

log = structlog.get_logger()

MAX_CLIENTS = 200
SEND_TIMEOUT_S = 30.0
_PING_S = 20.0
_CLOSE_TIMEOUT_S = 1.0
_BATCH = 256
_SLICE_S = 0.003  # of one pass of the event loop, for all clients together
_TURN_FRAMES = 16
_POLICIES = ("drop", "conflate")
_QUERY = frozenset({"topics", "symbols", "after", "policy"})


class Wanted(msgspec.Struct, frozen=True):
    """What a client asked for."""

    topics: tuple[Topic, ...]
    symbols: tuple[str, ...]
    after: int | None
    conflate: bool


def wanted(query: dict[str, str]) -> Wanted:
    """Read a query.

    Raises:
        ValueError: It names what there is not; the text says what there is.
    """
    if unknown := set(query) - _QUERY:
        raise ValueError(f"{min(unknown)}: unknown; there are {', '.join(sorted(_QUERY))}")
    names = [name for name in query.get("topics", "").split(",") if name]
    if bad := [name for name in names if name not in tuple(Topic)]:
        raise ValueError(f"topics: no topic {bad[0]!r}; there are {', '.join(Topic)}")
    after = query.get("after", "")
    if after and not (after.isascii() and after.isdecimal() and len(after) < 19):
        raise ValueError("after: must be a sequence number, or 0 for all that is kept")
    policy = query.get("policy", "drop")
    if policy not in _POLICIES:
        raise ValueError(f"policy: must be {' or '.join(_POLICIES)}")
    return Wanted(
        topics=tuple(Topic(name) for name in names) or tuple(Topic),
        symbols=tuple(s.upper() for s in query.get("symbols", "").split(",") if s),
        after=int(after) if after else None,
        conflate=policy == "conflate",
    )


class EventsSocket:
    """Serves the clients of one stream.

    Args:
        stream: What they follow.
        send_timeout_s: A client that takes nothing for so long is cut off.
    """

    def __init__(self, stream: EventStream, *, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._stream = stream
        self._send_timeout_s = send_timeout_s
        self._clients = 0
        self._slice_ends: float | None = None
        self._counts = dict.fromkeys(
            ("sent", "missed", "conflated", "refused_clients", "stalled_clients"), 0
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client, from its request to its end."""
        try:
            asked = wanted(dict(request.query))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        if self._clients >= MAX_CLIENTS:
            self._counts["refused_clients"] += 1
            return web.json_response({"error": f"{MAX_CLIENTS} clients already"}, status=503)
        socket = web.WebSocketResponse(
            heartbeat=_PING_S, timeout=_CLOSE_TIMEOUT_S, max_msg_size=4_096, compress=False
        )
        await socket.prepare(request)
        self._clients += 1
        try:
            await self._serve(request, socket, asked)
        finally:
            self._clients -= 1
        return socket

    async def _serve(
        self, request: web.Request, socket: web.WebSocketResponse, asked: Wanted
    ) -> None:
        """Write until the client leaves, stalls, or the stream ends."""
        writing = asyncio.ensure_future(self._write(socket, asked))
        reading = asyncio.ensure_future(_until_closed(socket))
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not writing.cancelled():
                await self._end(request, socket, writing.exception())
        finally:
            for task in (writing, reading):
                task.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)

    async def _end(
        self, request: web.Request, socket: web.WebSocketResponse, error: BaseException | None
    ) -> None:
        if error is None:
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the program ends")
        elif isinstance(error, TimeoutError):
            self._counts["stalled_clients"] += 1
            log.info("events.client_stalled", seconds=self._send_timeout_s)
            if request.transport is not None:  # it takes nothing: not a closing handshake either
                request.transport.abort()
        elif not isinstance(error, ConnectionError):
            raise error

    async def _write(self, socket: web.WebSocketResponse, asked: Wanted) -> None:
        reader = self._stream.reader(
            asked.topics, asked.symbols, after=asked.after, conflate=asked.conflate
        )
        await self._send(
            socket,
            {"notice": "hello", "sequence": self._stream.last_sequence, "topics": asked.topics},
        )
        if reader.uncounted:
            missed = dict.fromkeys(reader.uncounted)
            await self._send(socket, {"notice": "missed", "events": missed, "reason": "not_kept"})
        while entries := await reader.next(_BATCH):
            await self._tell(socket, reader)
            for number, entry in enumerate(entries):
                if number % _TURN_FRAMES == 0:
                    await self._turn()
                await self._send_text(socket, entry.json)
            self._counts["sent"] += len(entries)
        await self._tell(socket, reader)
        await self._send(socket, {"notice": "closing", "sequence": reader.sequence})

    async def _turn(self) -> None:
        """Wait until the clients' share of a pass of the loop is not used up: all wake at once."""
        while True:
            now = time.perf_counter()
            if self._slice_ends is None:
                self._slice_ends = now + _SLICE_S
                asyncio.get_running_loop().call_soon(self._next_slice)
            if now <= self._slice_ends:
                return
            await asyncio.sleep(0)

    def _next_slice(self) -> None:
        self._slice_ends = None

    async def _tell(self, socket: web.WebSocketResponse, reader: Reader) -> None:
        """Tell a client what it was too slow for."""
        if reader.missed:
            self._counts["missed"] += reader.missed.total()
            missed = dict(reader.missed)
            reader.missed.clear()
            await self._send(socket, {"notice": "missed", "events": missed, "reason": "too_slow"})
        if reader.conflated:
            self._counts["conflated"] += reader.conflated
            conflated, reader.conflated = reader.conflated, 0
            await self._send(socket, {"notice": "conflated", "events": conflated})

    async def _send(self, socket: web.WebSocketResponse, notice: Mapping[str, object]) -> None:
        await self._send_text(socket, msgspec.json.encode(notice))

    async def _send_text(self, socket: web.WebSocketResponse, frame: bytes) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await socket.send_frame(frame, WSMsgType.TEXT)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Clients now; events sent, missed and conflated; clients refused and cut off."""
        return {"clients": self._clients, **self._counts}


async def _until_closed(socket: web.WebSocketResponse) -> None:
    """What a client sends means nothing; only its leaving does."""
    async for _ in socket:
        pass
