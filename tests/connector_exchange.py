"""Exchanges for the connector's tests, which are synchronous: each runs in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

import aiohttp
from aiohttp import web

from simulator.server import SimulatedExchange, SimulatorSettings

MINUTE_MS = 60_000
START_MS = 1_721_347_200_000  # 2024-07-19 00:00 UTC, a Friday
KEYS = {"api_key": "simulated-key", "api_secret": "simulated-secret"}


@contextlib.contextmanager
def in_thread(opened: Callable[[], contextlib.AbstractAsyncContextManager]) -> Iterator:
    """What ``opened()`` yields, alive in a thread until the end of the ``with``."""
    ready: Future = Future()

    async def main() -> None:
        stop = asyncio.Event()
        try:
            async with opened() as exchange:
                ready.set_result((exchange, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    exchange, loop, stop = ready.result(60)
    try:
        yield exchange
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)


@contextlib.contextmanager
def simulated(*, started: bool = True, **settings) -> Iterator[SimulatedExchange]:
    """The simulator; ``started``: a socket of ours has set its clock going."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[SimulatedExchange]:
        async with SimulatedExchange(SimulatorSettings(**settings)) as exchange:
            if not started:
                yield exchange
                return
            async with aiohttp.ClientSession() as session:
                url = f"{exchange.ws_url}/market/stream?streams=ethusdt@markPrice"
                async with session.ws_connect(url):
                    yield exchange

    with in_thread(opened) as exchange:
        yield exchange


def config_of(exchange, **more) -> dict:
    return {"rest_url": exchange.rest_url, "ws_url": exchange.ws_url, **more}


def bar(open_ms: int, *, step_ms: int = MINUTE_MS, price: str = "100.1", volume: str = "2") -> list:
    """A candle as REST sends it."""
    return [
        *(open_ms, price, price, price, price, volume, open_ms + step_ms - 1, "200.2", 3, "1"),
        *("100.1", "0"),
    ]


class ScriptedExchange:
    """Serves given candles and trades; ``lose`` decides which replies come back empty.

    Args:
        bars: Open time → row of the reply.
        trades: Rows of aggTrades, by id.
        now_ms: The exchange's time.
    """

    def __init__(
        self, bars: dict[int, list], trades: list[dict] | None = None, *, now_ms: int
    ) -> None:
        self.bars = bars
        self.trades = trades or []
        self.now_ms = now_ms
        self.requests: list[dict[str, str]] = []
        self.lose: Callable[[dict[str, str]], bool] = lambda query: False
        self.refuse: Callable[[dict[str, str]], web.Response | None] = lambda query: None
        self.rest_url = self.ws_url = ""

    async def klines(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        rows = [
            self.bars[at]
            for at in sorted(self.bars)
            if int(query.get("startTime", 0)) <= at <= int(query.get("endTime", 2**62))
        ]
        limit = int(query["limit"])
        return self._reply(query, rows[:limit] if "startTime" in query else rows[-limit:])

    async def agg_trades(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        limit = int(query["limit"])
        rows = [
            row
            for row in self.trades
            if row["a"] >= int(query.get("fromId", 0))
            and int(query.get("startTime", 0)) <= row["T"] <= int(query.get("endTime", 2**62))
        ]
        is_newest = not {"fromId", "startTime"} & set(query)
        return self._reply(query, rows[-limit:] if is_newest else rows[:limit])

    async def time(self, _request: web.Request) -> web.Response:
        return web.json_response({"serverTime": self.now_ms})

    def _reply(self, query: dict[str, str], rows: list) -> web.Response:
        self.requests.append(query)
        refusal = self.refuse(query)
        if refusal is not None:
            return refusal
        return web.json_response([] if self.lose(query) else rows)

    @contextlib.contextmanager
    def serving(self, prefix: str = "/fapi/v1") -> Iterator[ScriptedExchange]:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[None]:
            app = web.Application()
            app.router.add_get(f"{prefix}/klines", self.klines)
            app.router.add_get(f"{prefix}/aggTrades", self.agg_trades)
            app.router.add_get(f"{prefix}/time", self.time)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host = f"127.0.0.1:{runner.addresses[0][1]}"
                self.rest_url, self.ws_url = f"http://{host}", f"ws://{host}"
                yield
            finally:
                await runner.cleanup()

        with in_thread(opened):
            yield self


def minute_bars(first_ms: int, count: int, **changes) -> dict[int, list]:
    return {
        at: bar(at, **changes) for at in range(first_ms, first_ms + count * MINUTE_MS, MINUTE_MS)
    }
