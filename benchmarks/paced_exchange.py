"""A paced exchange in a process of its own: trades and depth of many symbols, market time = wall time.

``python -m benchmarks.paced_exchange --symbols N --trades-per-s R --depth-per-s R`` prints its port.
Prices, sizes and books are those of some seconds of the synthetic market, over and over; ids and
times are new in every frame. Sends every few milliseconds, trades and depth to their routes; REST
answers exchangeInfo, time, klines (none) and the aggTrades sent in the last seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import cast

import msgspec
import numpy as np
from aiohttp import WSMsgType, web

from benchmarks.report import process
from domain.market import Market
from simulator.exchange_info import exchange_info
from simulator.frames import FrameKind, text_frame
from simulator.synthetic import SyntheticMarket

_TICK_S = 0.005
_POOL_S = 6  # seconds of the synthetic market that are used over and over
_POOL_START_MS = 1_786_171_800_000
_SCHEDULE = 65_536
_HISTORY = 2_000  # trades per symbol that REST still knows
_LONGEST_URL_BYTES = 131_072


def symbol_names(count: int) -> tuple[str, ...]:
    """BTC, ETH and as many others."""
    others = (f"ALT{number:03d}USDT" for number in range(count))
    return tuple(itertools.islice(itertools.chain(("BTCUSDT", "ETHUSDT"), others), count))


class Tape:
    """One symbol's frames: what changes is filled in, the rest is taken from a pool."""

    def __init__(self, symbol: str, trades: list[bytes], books: list[bytes]) -> None:
        self._symbol = symbol
        self._trades = itertools.cycle([_trade_piece(frame) for frame in trades])
        self._books = itertools.cycle([frame[frame.index(b'"b":') :].decode() for frame in books])
        self._next_id, self._next_fill, self._update_id = 1_000_000, 2_000_000, 5_000_000_000_000
        self.sent: deque[tuple[int, int, str]] = deque(maxlen=_HISTORY)

    def trade(self, now_ms: int) -> bytes:
        """The next trade, made now."""
        priced, ex_rpi, fills, maker = next(self._trades)
        number, first = self._next_id, self._next_fill
        self._next_id += 1
        self._next_fill += fills
        ids = f'"f":{first},"l":{first + fills - 1},"T":{now_ms},"m":{maker}'
        self.sent.append((number, now_ms, f'{{"a":{number},{priced},{ids}}}'))
        return text_frame(
            f'{{"stream":"{self._symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{now_ms},'
            f'"a":{number},"s":"{self._symbol}",{priced},{ex_rpi},{ids},"st":1}}}}'.encode()
        )

    def depth(self, now_ms: int) -> bytes:
        """The next snapshot, taken now."""
        before, self._update_id = self._update_id, self._update_id + 137
        return text_frame(
            f'{{"stream":"{self._symbol.lower()}@depth20@100ms","data":{{"e":"depthUpdate",'
            f'"E":{now_ms},"T":{now_ms},"s":"{self._symbol}","U":{before + 1},'
            f'"u":{self._update_id},"pu":{before},{next(self._books)}'.encode()
        )


def _trade_piece(frame: bytes) -> tuple[str, str, int, str]:
    data = msgspec.json.decode(frame)["data"]
    priced = f'"p":"{data["p"]}","q":"{data["q"]}"'
    fills = data["l"] - data["f"] + 1
    return priced, f'"nq":"{data["nq"]}"', fills, "true" if data["m"] else "false"


class PacedExchange:
    """Sends while somebody listens; one per process."""

    def __init__(
        self, symbols: tuple[str, ...], trades_per_s: float, depth_per_s: float, seed: int = 7
    ) -> None:
        self._rates = {"market": trades_per_s, "public": depth_per_s}
        self._market = SyntheticMarket(seed, symbols, start_ms=_POOL_START_MS, rate_multiplier=20.0)
        self.symbols = symbols
        self.tapes = self._make_tapes()
        self._clients: dict[str, list[asyncio.WriteTransport]] = {"market": [], "public": []}
        # trades: some symbols are busier than others; depth: all alike, one after the other
        weights = 1 / (np.arange(len(symbols)) + 10.0) ** 0.7
        drawn = np.random.default_rng(seed).choice(
            len(symbols), _SCHEDULE, p=weights / weights.sum()
        )
        self._schedules = {
            "market": itertools.cycle(drawn.tolist()),
            "public": itertools.cycle(range(len(symbols))),
        }

    def _make_tapes(self) -> list[Tape]:
        frames: dict[tuple[str, FrameKind], list[bytes]] = {}
        for chunk in itertools.islice(self._market.chunks(), _POOL_S):
            for frame in chunk:
                frames.setdefault((frame.symbol, frame.kind), []).append(frame.combined)
        return [
            Tape(name, frames[name, FrameKind.TRADE], frames[name, FrameKind.DEPTH])
            for name in self.symbols
        ]

    def application(self) -> web.Application:
        """Sockets on both routes, and the few endpoints a bot needs."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/market/stream", self._socket),
                web.get("/public/stream", self._socket),
                web.get("/fapi/v1/ping", self._ping),
                web.get("/fapi/v1/time", self._time),
                web.get("/fapi/v1/exchangeInfo", self._info),
                web.get("/fapi/v1/klines", self._klines),
                web.get("/fapi/v1/aggTrades", self._agg_trades),
            ]
        )
        return app

    async def run(self, route: str) -> None:
        """Send one route's frames at its rate to its first client's clock, for ever."""
        loop = asyncio.get_running_loop()
        clients, schedule = self._clients[route], self._schedules[route]
        make = Tape.trade if route == "market" else Tape.depth
        sent, began = 0, loop.time()
        while True:
            # on the wall clock's grid, as windows are: every run gets its proofs equally late
            await asyncio.sleep(_TICK_S - time.time() % _TICK_S)
            if not clients:
                sent, began = 0, loop.time()
                continue
            due = int((loop.time() - began) * self._rates[route])
            now_ms = time.time_ns() // 1_000_000
            frames = b"".join(
                make(self.tapes[index], now_ms) for index in itertools.islice(schedule, due - sent)
            )
            sent = due
            for client in clients:  # past aiohttp: the frames are framed already
                client.write(frames)

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        clients = self._clients[request.path.split("/")[1]]
        client = cast("asyncio.WriteTransport | None", request.transport)
        if client is None:
            raise ConnectionError("the client left during the handshake")
        clients.append(client)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    number = msgspec.json.decode(message.data)["id"]
                    await socket.send_str(f'{{"result":null,"id":{number}}}')
        finally:
            clients.remove(client)
        return socket

    async def _ping(self, _request: web.Request) -> web.Response:
        return _json("{}")

    async def _time(self, _request: web.Request) -> web.Response:
        return _json(f'{{"serverTime":{time.time_ns() // 1_000_000}}}')

    async def _info(self, _request: web.Request) -> web.Response:
        specs = [self._market.spec(symbol) for symbol in self.symbols]
        now_ms = time.time_ns() // 1_000_000
        return _json(exchange_info(specs, now_ms, Market.UM, 1_000_000))

    async def _klines(self, _request: web.Request) -> web.Response:
        return _json("[]")

    async def _agg_trades(self, request: web.Request) -> web.Response:
        query = request.query
        sent = self.tapes[self.symbols.index(query["symbol"])].sent
        limit = int(query.get("limit", "500"))
        if "fromId" in query:
            chosen = [text for number, _, text in sent if number >= int(query["fromId"])][:limit]
        elif "startTime" in query:
            chosen = [text for _, at, text in sent if at >= int(query["startTime"])][:limit]
        else:
            chosen = [text for _, _, text in sent][-limit:]
        return _json(f"[{','.join(chosen)}]")


def _json(text: str) -> web.Response:
    return web.Response(
        text=text, content_type="application/json", headers={"X-MBX-USED-WEIGHT-1M": "1"}
    )


async def serve(exchange: PacedExchange) -> None:
    """Serve on a free port until cancelled."""
    runner = web.AppRunner(
        exchange.application(), access_log=None, max_line_size=_LONGEST_URL_BYTES
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        async with asyncio.TaskGroup() as group:
            for route in ("market", "public"):
                group.create_task(exchange.run(route), name=route)
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def running_exchange(
    symbols: int, trades_per_s: float, depth_per_s: float, core: int | None
) -> Iterator[int]:
    """The exchange in a process of its own for the duration of a ``with``; gives its port."""
    command = [sys.executable, "-m", "benchmarks.paced_exchange", "--symbols", str(symbols)]
    command += ["--trades-per-s", str(trades_per_s), "--depth-per-s", str(depth_per_s)]
    with process(command, core) as running:
        assert running.stdout is not None
        yield json.loads(running.stdout.readline())["port"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--symbols", type=int, required=True)
    parser.add_argument("--trades-per-s", type=float, required=True)
    parser.add_argument("--depth-per-s", type=float, required=True)
    given = parser.parse_args()
    exchange = PacedExchange(symbol_names(given.symbols), given.trades_per_s, given.depth_per_s)
    if sys.platform == "win32":
        asyncio.run(serve(exchange))
    else:
        import uvloop  # noqa: PLC0415

        uvloop.run(serve(exchange))


if __name__ == "__main__":
    main()
