"""The REST client against a local HTTP server that misbehaves as the exchange does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from decimal import Decimal

import aiohttp
import pytest
from aiohttp import web

from binance_api import request_runner
from binance_api.errors import (
    BadReply,
    Banned,
    ExchangeError,
    Forbidden,
    InvalidSymbol,
    RateLimited,
    RequestRefused,
    Unreachable,
)
from binance_api.rest import RestClient, RestSettings
from binance_api.weight_budget import WeightBudgetSettings
from domain.market import TRADE_DTYPE, Market

START_NS = 29_000_000 * 60_000_000_000 + 10_000_000_000  # ten seconds into a minute
TRADE = {"a": 5, "p": "1.50", "q": "0.7", "f": 1, "l": 2, "T": 1_721_347_200_000, "m": True}


class ManualTime:
    """Clocks that only sleeping moves, and the sleeps asked for."""

    def __init__(self):
        self.passed_s = 0.0
        self.sleeps = []

    def monotonic(self):
        return self.passed_s

    def wall_ns(self):
        return START_NS + round(self.passed_s * 1e9)

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.passed_s += seconds
        await asyncio.sleep(0)


class Highest:
    """Jitter that is always the ceiling."""

    def uniform(self, a, b, /):
        return b


class Exchange:
    """Answers with the given handlers in turn, the last one again and again."""

    def __init__(self, *handlers):
        self.handlers = list(handlers)
        self.requests = []

    async def handle(self, request):
        self.requests.append(request)
        handler = self.handlers[0] if len(self.handlers) == 1 else self.handlers.pop(0)
        return await handler(request)

    @property
    def queries(self):
        return [dict(request.query) for request in self.requests]


def says(body="{}", status=200, content_type="application/json", **headers):
    async def handler(_request):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # Without a Date header the client keeps its own idea of the minute.
        text = body if isinstance(body, str) else json.dumps(body)
        response = web.Response(text=text, status=status, content_type=content_type, headers=named)
        response.headers.setdefault("Date", "")
        return response

    return handler


def refuses(status, code, **headers):
    return says({"code": code, "msg": "no"}, status, **headers)


async def hangs(_request):
    await asyncio.sleep(60)
    return web.Response()


async def resets(request):
    request.transport.abort()
    return web.Response()


async def breaks_off(request):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"serverTime":')
    request.transport.abort()
    return response


async def is_endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65_536)
    return response


@contextlib.asynccontextmanager
async def serving(exchange):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", exchange.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def run(tmp_path):
    """Run ``scenario(client, exchange, time)`` against the handlers."""

    def runner(scenario, *handlers, clock=None, **settings):
        async def main():
            exchange, manual = Exchange(*handlers), clock or ManualTime()
            async with asyncio.timeout(60), serving(exchange) as url:
                defaults = {"base_url": url, "budget": WeightBudgetSettings(folder=tmp_path)}
                async with RestClient(
                    RestSettings(**{**defaults, **settings}),
                    monotonic=manual.monotonic,
                    wall_ns=manual.wall_ns,
                    sleep=manual.sleep,
                    jitter=Highest(),
                ) as client:
                    return await scenario(client, exchange, manual)

        return asyncio.run(main())

    return runner


# --- what is asked and what comes back --------------------------------------------------------


def test_a_reply_carries_value_latency_time_and_endpoint(run):
    async def scenario(client, exchange, _time):
        reply = await client.time()
        assert reply.value == 1_700_000_000_123
        assert reply.endpoint == "/fapi/v1/time"
        assert reply.fetched_at_ms == START_NS // 1_000_000
        assert reply.latency_ms >= 0
        assert exchange.requests[0].path == "/fapi/v1/time"
        assert (await client.ping(urgent=True)).value is None

    run(scenario, says({"serverTime": 1_700_000_000_123}))


@pytest.mark.parametrize(
    ("call", "path", "query"),
    [
        (
            lambda c: c.klines("btcusdt", "1m", start_ms=1, end_ms=2, limit=3),
            "/klines",
            {"symbol": "BTCUSDT", "interval": "1m", "startTime": "1", "endTime": "2", "limit": "3"},
        ),
        (
            lambda c: c.klines("btcusdt", "5m"),
            "/klines",
            {"symbol": "BTCUSDT", "interval": "5m", "limit": "500"},
        ),
        (
            lambda c: c.agg_trades("ethusdt", from_id=0),
            "/aggTrades",
            {"symbol": "ETHUSDT", "fromId": "0", "limit": "1000"},
        ),
        (
            lambda c: c.agg_trades("ethusdt", start_ms=7, end_ms=8, limit=9),
            "/aggTrades",
            {"symbol": "ETHUSDT", "startTime": "7", "endTime": "8", "limit": "9"},
        ),
    ],
)
@pytest.mark.parametrize("market", Market)
def test_each_call_asks_its_endpoint_with_an_explicit_limit(run, market, call, path, query):
    async def scenario(client, exchange, _time):
        await call(client)
        prefix = "/fapi/v1" if market is Market.UM else "/api/v3"
        assert exchange.requests[0].path == prefix + path
        assert exchange.queries == [query]

    run(scenario, says([]), market=market)


def test_depth_and_tickers_give_exact_values(run):
    async def scenario(client, exchange, _time):
        book = (await client.depth("btcusdt", 5)).value
        assert (book.symbol, book.bids, book.final_update_id) == ("BTCUSDT", [(1.5, 2.0)], 9)
        assert (await client.ticker_price("btcusdt")).value == Decimal("0.1000")
        assert exchange.queries == [{"symbol": "BTCUSDT", "limit": "5"}, {"symbol": "BTCUSDT"}]

    run(
        scenario,
        says({"lastUpdateId": 9, "E": 3, "T": 2, "bids": [["1.50", "2"]], "asks": []}),
        says({"symbol": "BTCUSDT", "price": "0.1000"}),
    )


def test_invalid_trades_are_left_out_and_counted(run):
    async def scenario(client, _exchange, _time):
        reply = await client.agg_trades("BTCUSDT", from_id=5, limit=3)
        assert reply.value.dtype == TRADE_DTYPE
        assert list(reply.value["agg_trade_id"]) == [5]
        assert reply.rejected_count == 2
        assert client.statistics()["rejected_trades"] == 2

    run(scenario, says([TRADE, {"a": 6}, {**TRADE, "a": 7, "p": "-1"}]))


def test_a_large_reply_is_decoded_whole(run):
    trades = [{**TRADE, "a": i, "p": "123456.789"} for i in range(5_000)]

    async def scenario(client, _exchange, _time):
        assert len((await client.agg_trades("BTCUSDT")).value) == 5_000

    run(scenario, says(trades))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.agg_trades("BTCUSDT", from_id=1, start_ms=1),
        lambda c: c.agg_trades("BTCUSDT", from_id=1, end_ms=1),
        lambda c: c.agg_trades("BTCUSDT", from_id=-1),
        lambda c: c.agg_trades("BTCUSDT", limit=1_001),
        lambda c: c.klines("BTCUSDT", "1m", limit=0),
        lambda c: c.klines(" ", "1m"),
        lambda c: c.depth("BTCUSDT", 6),
    ],
)
def test_what_the_exchange_would_refuse_is_not_sent(run, call):
    async def scenario(client, exchange, _time):
        with pytest.raises(ValueError, match=r"limit|symbol|from_id"):
            await call(client)
        assert exchange.requests == []

    run(scenario, says([]))


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "kind", "code"),
    [
        (refuses(400, -1121), InvalidSymbol, -1121),
        (refuses(200, -1121), InvalidSymbol, -1121),
        (refuses(400, -4166), RequestRefused, -4166),
        (says("<html>", 403, "text/html"), Forbidden, None),
        (says("", 451), Forbidden, None),
        (refuses(418, -1003, Retry_After="120"), Banned, -1003),
        (says("", 404), RequestRefused, None),
    ],
)
def test_a_final_refusal_is_not_asked_again(run, handler, kind, code):
    async def scenario(client, exchange, manual):
        with pytest.raises(kind) as caught:
            await client.agg_trades("BTCUSDT")
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert len(exchange.requests) == 1
        assert manual.sleeps == []

    run(scenario, handler)


def test_after_a_429_the_whole_client_waits_as_long_as_told(run):
    async def scenario(client, exchange, manual):
        assert (await client.time()).value == 1
        assert manual.passed_s >= 7
        assert len(exchange.requests) == 2
        assert client.statistics()["limited"] == 1

    run(scenario, refuses(429, -1003, Retry_After="7"), says({"serverTime": 1}))


def test_a_429_stops_other_calls_and_other_clients_of_the_host(run, tmp_path):
    async def scenario(client, exchange, manual):
        with pytest.raises(RateLimited):
            await client.time(deadline_s=5)
        settings = RestSettings(
            base_url=str(exchange.requests[0].url.origin()),
            budget=WeightBudgetSettings(folder=tmp_path),
        )
        async with RestClient(
            settings, monotonic=manual.monotonic, wall_ns=manual.wall_ns, sleep=manual.sleep
        ) as other:
            for one in (client, other):
                with pytest.raises(RateLimited) as caught:
                    await one.ping(urgent=True, deadline_s=5)
                assert type(caught.value) is RateLimited
                assert caught.value.retry_after_s == 30.0
        assert len(exchange.requests) == 1
        assert manual.sleeps == []  # a wait that cannot help is not waited for

    run(scenario, refuses(429, -1003, Retry_After="30"))


def test_during_a_ban_nothing_is_sent_and_the_error_says_until_when(run):
    async def scenario(client, exchange, _time):
        for deadline_s in (60, 5):
            with pytest.raises(Banned) as caught:
                await client.time(deadline_s=deadline_s)
            assert caught.value.until_ms == START_NS // 1_000_000 + 180_000
        assert len(exchange.requests) == 1
        assert (await client.time(deadline_s=300)).value == 1
        assert len(exchange.requests) == 2

    run(scenario, refuses(418, -1003, Retry_After="180"), says({"serverTime": 1}))


# --- what may be tried again ------------------------------------------------------------------


@pytest.mark.parametrize("handler", [says("", 500), refuses(503, -1008), resets, breaks_off])
def test_a_passing_failure_is_tried_again_with_growing_waits(run, handler):
    async def scenario(client, _exchange, manual):
        assert (await client.time()).value == 1
        assert manual.sleeps == [0.25, 0.5]
        assert client.statistics()["retries"] == 2

    # A GET whose connection was closed without an answer is sent once more by aiohttp itself.
    first = [handler] * (2 if handler is resets else 1)
    run(scenario, *first, says("", 500), says({"serverTime": 1}))


def test_a_failure_that_stays_is_raised_after_the_allowed_attempts(run):
    async def scenario(client, exchange, manual):
        with pytest.raises(Unreachable) as caught:
            await client.time()
        assert caught.value.status == 502
        assert len(exchange.requests) == 4
        assert manual.sleeps == [0.25, 0.5, 0.75]

    run(scenario, says("<html>", 502, "text/html"), max_attempts=4, backoff_cap_s=0.75)


@pytest.mark.parametrize(
    "handler",
    [
        says("<html>maintenance</html>", 200, "text/html"),
        says('{"serverTime":'),
        says("[]"),
        says('{"serverTime":"x"}'),
        says("", 302, Location="http://192.0.2.1/"),
        says("[" * 100_000),
    ],
)
def test_an_answer_that_is_none_is_tried_a_few_times_only(run, handler):
    async def scenario(client, exchange, _time):
        with pytest.raises(BadReply):
            await client.time()
        assert len(exchange.requests) == 3
        assert client.statistics()["bad_replies"] == 3

    run(scenario, handler)


def test_an_html_page_between_good_answers_does_no_harm(run):
    async def scenario(client, _exchange, _time):
        assert (await client.time()).value == 1

    run(scenario, says("<html>", 200, "text/html"), says({"serverTime": 1}))


def test_an_endless_reply_is_cut_off(run):
    async def scenario(client, _exchange, _time):
        with pytest.raises(BadReply, match="too large"):
            await client.time()

    run(scenario, is_endless, max_reply_bytes=300_000, max_bad_replies=1)


def test_a_reply_that_unpacks_to_too_much_is_cut_off(run):
    async def bomb(_request):
        response = web.Response(body=b" " * 3_000_000, content_type="application/json")
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async def scenario(client, _exchange, _time):
        with pytest.raises(BadReply, match="too large"):
            await client.time()

    run(scenario, bomb, max_reply_bytes=300_000, max_bad_replies=1)


def test_a_server_that_does_not_answer_costs_the_request_timeout_only(run):
    async def scenario(client, exchange, _time):
        assert (await client.time()).value == 1
        assert len(exchange.requests) == 2

    run(scenario, hangs, says({"serverTime": 1}), request_timeout_s=0.5)


def test_the_deadline_of_a_call_bounds_everything(run):
    class Real:
        monotonic = staticmethod(time.monotonic)
        wall_ns = staticmethod(time.time_ns)
        sleep = staticmethod(asyncio.sleep)

    async def scenario(client, exchange, _time):
        with pytest.raises(Unreachable, match="deadline"):
            await client.time(deadline_s=0.5)
        assert len(exchange.requests) == 1

    run(scenario, hangs, clock=Real())


def test_a_retry_that_would_pass_the_deadline_is_not_begun(run):
    async def scenario(client, exchange, manual):
        with pytest.raises(Unreachable):
            await client.time(urgent=True, deadline_s=0.6)
        assert manual.sleeps == [0.25]
        assert len(exchange.requests) == 2

    run(scenario, says("", 500))


def test_a_host_where_nothing_listens_is_unreachable(run):
    async def scenario(client, _exchange, manual):
        with pytest.raises(Unreachable, match=r"cannot connect to 127\.0\.0\.1:1") as caught:
            await client.time()
        assert caught.value.status is None
        assert len(manual.sleeps) == 4

    run(scenario, says(), base_url="http://127.0.0.1:1")


# --- weight, order, concurrency ---------------------------------------------------------------


def test_the_weight_of_every_request_is_paid_refused_ones_too(run):
    async def scenario(client, _exchange, _time):
        with pytest.raises(InvalidSymbol):
            await client.agg_trades("NOPE")
        with pytest.raises(InvalidSymbol):
            await client.klines("NOPE", "1m", limit=1_000)
        assert client.statistics()["used_weight"] == 25

    run(scenario, refuses(400, -1121))


def test_the_exchanges_own_count_is_heeded(run):
    async def scenario(client, exchange, manual):
        await client.time()
        assert client.statistics()["used_weight"] == 2_390
        with pytest.raises(RateLimited, match="weight is spent") as caught:
            await client.agg_trades("BTCUSDT", deadline_s=10)
        assert caught.value.retry_after_s == 51.0
        assert (await client.time(urgent=True, deadline_s=1)).value == 1
        await client.time()  # bulk waits for the next minute
        assert manual.passed_s == 51.0
        assert len(exchange.requests) == 3

    run(scenario, says({"serverTime": 1}, X_MBX_USED_WEIGHT_1M="2390"))


def test_a_limit_stated_by_the_exchange_is_kept(run):
    rate = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 50}
    symbol = {"symbol": "BTCUSDT", "status": "TRADING", "filters": []}

    async def scenario(client, _exchange, _time):
        info = (await client.exchange_info()).value
        assert list(info) == ["BTCUSDT"]
        assert client.statistics()["limit"] == 50

    run(scenario, says({"rateLimits": [rate], "symbols": [symbol]}))


def test_the_minute_follows_the_clock_of_the_exchange(run):
    async def scenario(client, _exchange, _time):
        await client.time()
        assert client.statistics()["clock_offset_ms"] > 86_400_000

    run(scenario, says({"serverTime": 1}, Date="Fri, 01 Jan 2077 00:00:00 GMT"))


def test_urgent_calls_overtake_waiting_bulk_calls(run):
    order = []

    async def slow(request):
        order.append(request.path.rpartition("/")[2])
        await asyncio.sleep(0.01)
        return web.Response(text='{"serverTime":1}', content_type="application/json")

    async def scenario(client, _exchange, _time):
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(client.ping())
            await asyncio.sleep(0)
            group.create_task(client.time(urgent=True))
        assert order == ["ping", "time", "ping", "ping", "ping"]

    run(scenario, slow, concurrency=1, urgent_slots=0)


def test_no_more_requests_are_under_way_than_allowed(run):
    now, most = 0, 0

    async def counting(_request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return web.Response(text="{}", content_type="application/json")

    async def scenario(client, exchange, _time):
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(client.ping())
        assert most == 3
        assert len(exchange.requests) == 12

    run(scenario, counting, concurrency=5, urgent_slots=2)


def test_a_cancelled_call_frees_its_slot(run):
    async def scenario(client, exchange, _time):
        task = asyncio.create_task(client.time())
        while not exchange.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.time()).value == 1

    run(scenario, hangs, says({"serverTime": 1}), concurrency=1, urgent_slots=0)


# --- keeping quiet ----------------------------------------------------------------------------


class LogRecorder:
    def __init__(self):
        self.entries = []

    def info(self, event, **values):
        self.entries.append((event, values))

    warning = info


@pytest.mark.parametrize(
    "handler",
    [says("", 500), resets, says("<html>", 200, "text/html"), refuses(429, -1003, Retry_After="1")],
)
def test_neither_logs_nor_errors_repeat_the_query(run, monkeypatch, handler):
    async def scenario(client, _exchange, _time):
        with pytest.raises(ExchangeError) as caught:
            await client.klines("CANARY", "1m")
        assert "CANARY" not in str(caught.value)

    recorder = LogRecorder()
    monkeypatch.setattr(request_runner, "log", recorder)
    run(scenario, handler)
    assert {event for event, _ in recorder.entries} & {"rest.retry", "rest.blocked"}
    assert "CANARY" not in str(recorder.entries)


@pytest.mark.parametrize("base_url", ["fapi.binance.com", "ftp://x", "http://"])
def test_a_base_url_that_is_none_is_refused_at_once(base_url):
    with pytest.raises(ValueError, match="base_url"):
        RestClient(RestSettings(base_url=base_url))


def test_a_call_outside_the_context_is_a_programming_error(tmp_path):
    client = RestClient(RestSettings(budget=WeightBudgetSettings(folder=tmp_path)))
    with pytest.raises(RuntimeError, match="outside its context"):
        asyncio.run(client.ping())


def test_recorded_replies_come_through_whole(run, recordings_dir):
    recorded = json.loads((recordings_dir / "rest" / "replies.json").read_text())
    trades = recorded["/fapi/v1/aggTrades"]["GET"][1]["data"]
    candles = recorded["/fapi/v1/klines"]["GET"][0]["data"]

    async def scenario(client, _exchange, _time):
        rows = (await client.agg_trades("BTCUSDT", limit=5)).value
        assert list(rows["agg_trade_id"]) == [trade["a"] for trade in trades]
        klines = (await client.klines("LTCUSDT", "5m")).value
        assert [str(k.close) for k in klines] == [row[4] for row in candles]

    run(scenario, says(trades), says(candles))


def test_the_session_is_one_and_is_closed(run, monkeypatch):
    made = []
    real = aiohttp.ClientSession

    def counting(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(aiohttp, "ClientSession", counting)

    async def scenario(client, _exchange, _time):
        for _ in range(3):
            await client.ping()

    run(scenario, says("{}"))
    assert len(made) == 1
    assert made[0].closed
