"""A server of 1m klines in a process of its own: the pages are cut from rows made beforehand.

``python -m benchmarks.kline_exchange ROWS`` prints its port; it answers ``/fapi/v1/klines`` (with
``startTime``, ``endTime`` and ``limit``) as the exchange does, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from urllib.parse import parse_qsl

START_MS = 1_704_067_200_000
STEP_MS = 60_000


def kline_rows(count: int, seed: int = 1) -> list[bytes]:
    """Rows with numbers as long as those of a busy BTC market."""
    source = random.Random(seed)
    rows, price = [], 640_000
    for i in range(count):
        opened, price = price, price + source.randint(-200, 200)
        high, low = max(opened, price) + source.randint(0, 99), min(opened, price) - 5
        volume, taker = source.randint(10_000, 900_000), source.randint(5_000, 9_999)
        at = START_MS + STEP_MS * i
        prices = ",".join(f'"{value / 10:.1f}"' for value in (opened, high, low, price))
        quotes = [f"{amount * price / 10_000:.5f}" for amount in (volume, taker)]
        rows.append(
            f'[{at},{prices},"{volume / 1000:.3f}",{at + STEP_MS - 1},"{quotes[0]}",'
            f'{source.randint(100, 9_000)},"{taker / 1000:.3f}","{quotes[1]}","0"]'.encode()
        )
    return rows


class Pages(asyncio.Protocol):
    """One HTTP/1.1 connection."""

    def __init__(self, joined: bytes, begins: list[int]) -> None:
        self._joined = joined
        self._begins = begins  # of each row in ``joined``, and where one more would begin
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while b"\r\n\r\n" in self._pending:
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            body = self._page(dict(parse_qsl(target.partition("?")[2])))
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )

    def _page(self, query: dict[str, str]) -> bytes:
        count = len(self._begins) - 1
        start, end = int(query.get("startTime", 0)), int(query.get("endTime", 2**62))
        first = min(max(0, -(-(start - START_MS) // STEP_MS)), count)
        last = min((end - START_MS) // STEP_MS + 1, first + int(query.get("limit", 500)), count)
        return b"[" + self._joined[self._begins[first] : self._begins[last] - 1] + b"]"


async def serve(count: int) -> None:
    rows = kline_rows(count)
    joined = b",".join(rows)
    begins = [0, *itertools.accumulate(len(row) + 1 for row in rows)]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Pages(joined, begins), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
