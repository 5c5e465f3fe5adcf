"""A WebSocket server on loopback that does exactly what a test scripts, byte by byte.

Hand-made, because the tests need what server libraries refuse to do: fragments, missing pongs,
resets in mid-stream, odd close codes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


class Peer:
    """One accepted connection, seen from the server."""

    def __init__(self, index: int, path: str, reader, writer) -> None:
        self.index = index
        self.path = path
        self.streams = parse_qs(urlsplit(path).query)["streams"][0].split("/")
        self.is_trades = "aggTrade" in self.streams[0]
        self.answers_pings = True
        self.answers_close = True
        self.received: list[tuple[int, bytes]] = []
        self.gone = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._close_sent = False

    def frame(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        head = bytes([(0x80 if fin else 0) | opcode])
        size = len(payload)
        if size < 126:
            head += bytes([size])
        elif size < 65536:
            head += bytes([126]) + struct.pack(">H", size)
        else:
            head += bytes([127]) + struct.pack(">Q", size)
        if not self._writer.is_closing():
            self._writer.write(head + payload)

    def data(self, stream: str, **fields: object) -> None:
        """Send a combined frame, as long as real ones are."""
        message = {"stream": stream, "data": {**fields, "pad": "x" * 160}}
        self.frame(TEXT, json.dumps(message).encode())

    def close(self, code: int | None, reason: str = "") -> None:
        self._close_sent = True
        payload = b"" if code is None else struct.pack(">H", code) + reason.encode()
        self.frame(CLOSE, payload)

    def reset(self) -> None:
        """End the TCP connection with RST, without a close frame."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def drop(self) -> None:
        """End the TCP connection with FIN, without a close frame."""
        self._writer.close()

    async def read(self) -> None:
        """Take frames until the client is gone; answer pings and close frames."""
        try:
            while True:
                opcode, payload = await self._read_frame()
                self.received.append((opcode, payload))
                if opcode == PING and self.answers_pings:
                    self.frame(PONG, payload)
                if opcode == CLOSE and self.answers_close:
                    if not self._close_sent:
                        self.frame(CLOSE, payload)
                    self._writer.close()
                    return
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            self.gone.set()

    async def _read_frame(self) -> tuple[int, bytes]:
        first, second = await self._reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self._reader.readexactly(8))
        mask = await self._reader.readexactly(4)
        body = await self._reader.readexactly(size)
        return first & 0xF, bytes(b ^ mask[i % 4] for i, b in enumerate(body))


Script = Callable[[Peer], Coroutine[Any, Any, None]]


class LocalExchange:
    """Serves every connection with ``script``; ``refuse`` and ``hang`` change the handshake."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.refuse: Callable[[int], int | None] = lambda _index: None
        self.hang = False
        self.peers: list[Peer] = []
        self.attempts = 0
        self.open_count = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.ws_base = f"ws://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in self.peers:
            peer.drop()
        await wait_until(lambda: self.open_count == 0)

    def of(self, *, trades: bool) -> list[Peer]:
        return [peer for peer in self.peers if peer.is_trades == trades]

    async def _serve(self, reader, writer) -> None:
        self.open_count += 1
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.open_count -= 1
            writer.close()

    async def _talk(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        index, self.attempts = self.attempts, self.attempts + 1
        status = self.refuse(index)
        if self.hang:
            await reader.read()
            return
        if status is not None:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        key = next(v for k, v in lines.items() if k.lower() == "sec-websocket-key")
        salted = key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = hashlib.sha1(salted, usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        peer = Peer(index, head.split(" ")[1], reader, writer)
        self.peers.append(peer)
        async with asyncio.TaskGroup() as tasks:
            script = tasks.create_task(self._script(peer))
            await peer.read()
            script.cancel()


async def quiet(_peer: Peer) -> None:
    """A script that sends nothing."""
    await asyncio.Event().wait()


def steady(interval_s: float = 0.002) -> Script:
    """A script that numbers its frames: ``n`` counts up over all connections of the route."""
    started = asyncio.get_running_loop().time()

    async def script(peer: Peer) -> None:
        while True:
            await asyncio.sleep(interval_s)
            now = int((asyncio.get_running_loop().time() - started) * 1000)
            for stream in peer.streams:
                peer.data(stream, n=now)

    return script


async def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return when ``condition`` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(awaitable):
    """Run it beside the test; cancel it at the end, and show its error if it had one."""
    task = asyncio.ensure_future(awaitable)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
