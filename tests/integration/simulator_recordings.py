"""Small recordings and a client for the simulator's tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_MS = 1_721_347_200_000
CLOCK_BEHIND_MS = 1_500  # the recorder's clock, as in real captures
TRADES = "/market/stream?streams=btcusdt@aggTrade"
DEPTH = "/public/stream?streams=btcusdt@depth20@100ms"


def trade(number: int, at_ms: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    return {
        "e": "aggTrade",
        "E": at_ms + 5,
        "a": number,
        "s": symbol,
        "p": f"{64_000 + number % 7}.10",
        "q": f"0.{number % 900 + 1:03d}",
        "f": 10 * number,
        "l": 10 * number + number % 3,
        "T": at_ms,
        "m": number % 2 == 0,
    }


def depth(number: int, at_ms: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    bids = [[f"{64_000 - level}.10", "1.000"] for level in range(20)]
    asks = [[f"{64_001 + level}.10", "2.000"] for level in range(20)]
    ids = {"U": 10 * number + 1, "u": 10 * number + 9, "pu": 10 * number - 1}
    return {
        "e": "depthUpdate",
        "E": at_ms,
        "T": at_ms - 3,
        "s": symbol,
        **ids,
        "b": bids,
        "a": asks,
    }


def line(at_ms: int, stream: str, data: dict[str, Any]) -> str:
    receive_ns = (at_ms + 20 - CLOCK_BEHIND_MS) * 1_000_000
    body = json.dumps({"stream": stream, "data": data}, separators=(",", ":"))
    return f"{receive_ns} {body}\n"


def write_recording(path: Path, trade_count: int = 100, every_ms: int = 100) -> Path:
    """One trade (ids from 1000) and one depth frame every ``every_ms``."""
    lines = []
    for index in range(trade_count):
        at_ms = START_MS + index * every_ms
        lines.append(line(at_ms, "btcusdt@aggTrade", trade(1000 + index, at_ms)))
        lines.append(line(at_ms + 1, "btcusdt@depth20@100ms", depth(index, at_ms)))
    path.write_text("".join(lines))
    return path


class Reader:
    """Reads one socket to its end; ``until`` waits for a condition."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.texts: list[str] = []
        self.failure: aiohttp.WSMsgType | None = None
        self._changed = asyncio.Event()

    @property
    def messages(self) -> list[Any]:
        return [json.loads(text) for text in self.texts]

    @property
    def ids(self) -> list[int]:
        return [m["data"]["a"] for m in self.messages if "aggTrade" in m.get("stream", "")]

    async def run(self) -> None:
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self.texts.append(message.data)
            else:
                self.failure = message.type
            self._changed.set()
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_closed(self) -> int | None:
        await self.until(lambda: self.socket.closed)
        return self.socket.close_code


@asynccontextmanager
async def reading(session: aiohttp.ClientSession, url: str) -> AsyncIterator[Reader]:
    """A connected socket with its reader running."""
    socket = await session.ws_connect(url)
    reader = Reader(socket)
    task = asyncio.ensure_future(reader.run())
    try:
        yield reader
    finally:
        await socket.close()
        await asyncio.wait_for(task, 60)
