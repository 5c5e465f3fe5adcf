"""The REST side: the venue's endpoints, weights and error bodies over a market source.

Consumes the source, the clock and what the feed has served → produces JSON shaped as the venue's.
Shows every trade the feed has played and nothing later; faults may answer in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import msgspec
import numpy as np
from aiohttp import web

from domain.intervals import INTERVAL_MS, next_open_ms, open_time_ms
from domain.market import Market
from simulator import candles
from simulator.api_error import ApiError
from simulator.clock import MarketClock
from simulator.endpoints import ACCOUNT, ENDPOINTS, Endpoint
from simulator.exchange_info import day_ticker, exchange_info
from simulator.faults import Fault, FaultKind
from simulator.feed import Feed
from simulator.frames import EMPTY_TAPE, MarketSource, Tape, decimal_text
from simulator.rest_faults import ReplyScript, RestFault
from simulator.settings import SimulatorSettings
from simulator.signed import check_signed
from simulator.weights import Verdict, WeightMeter

_HOUR_MS = 3_600_000
AGG_TRADES_REACH_MS = 48 * _HOUR_MS
_FAULT_HANG_LIMIT_S = 60.0
_HTML = "<html><head><title>Service unavailable</title></head><body>sorry</body></html>"
_ILLEGAL = "Illegal characters found in parameter '{}'; legal range is '{}'."
_MISSING = "Mandatory parameter '{}' was not sent, was empty/null, or malformed."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[[dict[str, str]], Awaitable[str]]


class RestApi:
    """Answers the venue's market-data requests.

    Args:
        settings: Market and limits.
        source: Past trades.
        clock: Market time.
        feed: What has been played, and which faults act.
        meter: The weight budget.
        script: What is wrong with single replies.
    """

    def __init__(
        self,
        settings: SimulatorSettings,
        source: MarketSource,
        clock: MarketClock,
        feed: Feed,
        meter: WeightMeter,
        script: ReplyScript,
    ) -> None:
        self._is_spot = settings.market is Market.SPOT
        self._settings = settings
        self._source = source
        self._clock = clock
        self._feed = feed
        self._meter = meter
        self._script = script
        self._counts: dict[str, int] = {}
        self._answers: dict[str, Answer] = {
            "ping": self._ping,
            "time": self._time,
            "exchangeInfo": self._exchange_info,
            "aggTrades": self._agg_trades,
            "klines": self._klines,
            "depth": self._depth,
            "ticker/price": self._ticker_price,
            "ticker/24hr": self._ticker_24hr,
        }

    def routes(self) -> list[web.RouteDef]:
        """Routes of the venue this exchange imitates."""
        prefix = "/api/v3" if self._is_spot else "/fapi/v1"
        account = "/api/v3/account" if self._is_spot else "/fapi/v2/account"
        public = [web.get(f"{prefix}/{end.name}", self._handler(end)) for end in ENDPOINTS]
        return [*public, web.get(account, self._handler(ACCOUNT))]

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests answered, per status."""
        return dict(self._counts)

    def _handler(self, endpoint: Endpoint) -> Handler:
        weight_of = endpoint.spot_weight if self._is_spot else endpoint.um_weight

        async def handle(request: web.Request) -> web.StreamResponse:
            query = dict(request.query)
            verdict = self._meter.spend(weight_of(query))
            headers = {
                "X-MBX-USED-WEIGHT-1M": str(verdict.used_weight),
                "Date": formatdate(self._meter.now_ms() / 1_000, usegmt=True),
            }
            failing = self._failing(endpoint.name)
            scripted = self._script.next(endpoint.name) if verdict.status == 200 else None
            if failing is not None:
                response = await self._fail(request, *failing, headers)
            elif scripted is not None and scripted.mode in ("429", "418"):
                refused = self._meter.ban if scripted.mode == "418" else self._meter.refuse
                response = self._refusal(refused(scripted.wait_s), request.remote or "", headers)
            elif verdict.status != 200:
                response = self._refusal(verdict, request.remote or "", headers)
            else:
                answer = self._answers.get(endpoint.name) or self._account_of(request)
                response = await self._reply(answer, query, headers)
                if scripted is not None and response.status == 200:
                    response = _damaged(response, scripted)
            key = f"status_{response.status}"
            self._counts[key] = self._counts.get(key, 0) + 1
            return response

        return handle

    async def _reply(
        self, answer: Answer, query: dict[str, str], headers: dict[str, str]
    ) -> web.Response:
        try:
            text = await answer(query)
        except ApiError as error:
            return _error(error.status, error.code, error.message, headers)
        return web.Response(text=text, content_type="application/json", headers=headers)

    def _refusal(self, verdict: Verdict, remote: str, headers: dict[str, str]) -> web.Response:
        headers = {**headers, "Retry-After": str(verdict.retry_after_s)}
        if verdict.status == 418:
            message = (
                f"Way too many requests; IP({remote}) banned until {verdict.banned_until_ms}. "
                "Please use the websocket for live updates to avoid bans."
            )
        else:
            message = (
                f"Too many requests; current limit of IP({remote}) is "
                f"{self._meter.limit} requests per minute."
            )
        return _error(verdict.status, -1003, message, headers)

    def _failing(self, name: str) -> tuple[int, Fault] | None:
        for end_ns, fault in self._feed.active(FaultKind.REST_FAILURE):
            if fault.endpoint is None or fault.endpoint in (name, name.rpartition("/")[2]):
                return end_ns, fault
        return None

    async def _fail(
        self, request: web.Request, end_ns: int, fault: Fault, headers: dict[str, str]
    ) -> web.StreamResponse:
        remaining_s = max(self._clock.wall_s_until(end_ns), 0.0)
        match fault.variant:
            case "429" | "418" as status:
                verdict = Verdict(
                    status=int(status),
                    used_weight=self._meter.limit,
                    retry_after_s=max(1, int(remaining_s)),
                    banned_until_ms=end_ns // 1_000_000,
                )
                return self._refusal(verdict, request.remote or "", headers)
            case "html":
                return web.Response(text=_HTML, content_type="text/html", headers=headers)
            case "timeout":
                await asyncio.sleep(min(remaining_s, _FAULT_HANG_LIMIT_S))
            case "reset":
                pass
            case status:
                message = "An unknown error occured while processing the request."
                return _error(int(status), -1000, message, headers)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    def _account_of(self, request: web.Request) -> Answer:
        async def account(_query: dict[str, str]) -> str:
            keys, now_ms = self._settings.api_keys, self._feed.now_ms()
            check_signed(request.rel_url.raw_query_string, request.headers, keys, now_ms)
            return '{"canTrade":false,"canDeposit":false,"canWithdraw":false}'

        return account

    async def _ping(self, _query: dict[str, str]) -> str:
        return "{}"

    async def _time(self, _query: dict[str, str]) -> str:
        return f'{{"serverTime":{self._feed.now_ms()}}}'

    async def _exchange_info(self, query: dict[str, str]) -> str:
        listed = [self._symbol(query)] if "symbol" in query else self._source.symbols
        specs = [self._source.spec(symbol) for symbol in listed]
        market = self._settings.market
        halted = self._settings.halted
        return exchange_info(specs, self._clock.now_ms(), market, self._meter.limit, halted)

    async def _agg_trades(self, query: dict[str, str]) -> str:
        symbol = self._symbol(query)
        limit = self._limit(query, default=500, highest=1000)
        from_id = _number(query, "fromId")
        start_ms, end_ms = _number(query, "startTime"), _number(query, "endTime")
        if from_id is not None and (start_ms is not None or end_ms is not None):
            if self._is_spot:
                raise ApiError(-1128, "Combination of optional parameters invalid.")
            raise ApiError(-4166, "Cannot send startTime or endTime together with fromId.")
        _check_times(start_ms, end_ms, _HOUR_MS)
        tape = await asyncio.to_thread(self._select, symbol, from_id, start_ms, end_ms, limit)
        return self._trade_rows(tape)

    def _select(
        self,
        symbol: str,
        from_id: int | None,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> Tape:
        """The page asked for, without what is not due, out of reach or lost."""
        oldest_ms = self._oldest_ms()
        lost_count = sum(name == symbol for name, _ in self._feed.desk.lost)
        if from_id is not None:
            first_id = max(from_id, self._oldest_id(symbol, oldest_ms))
            found = self._source.from_id(symbol, first_id, limit + lost_count)
            return self._visible(symbol, found, oldest_ms).part(0, limit)
        if start_ms is None and end_ms is None:
            recent = self._source.before(symbol, self._feed.served_ns, limit + lost_count)
            found = self._visible(symbol, recent, oldest_ms)
            return found.part(max(0, len(found) - limit), len(found))
        return self._page(symbol, start_ms, end_ms, limit, oldest_ms)

    def _page(
        self, symbol: str, start_ms: int | None, end_ms: int | None, limit: int, oldest_ms: int
    ) -> Tape:
        """By time: from ``start_ms`` on, or the last ones up to ``end_ms``."""
        until_ms = self._clock.now_ms() + 1 if end_ms is None else end_ms + 1
        if start_ms is None:
            begin_ms = max(oldest_ms, until_ms - _HOUR_MS)
        else:
            begin_ms = max(oldest_ms, start_ms)
        step_ms = _HOUR_MS
        while begin_ms < until_ms:
            part = self._source.between(symbol, begin_ms, min(begin_ms + step_ms, until_ms))
            found = self._visible(symbol, part, oldest_ms)
            if len(found):
                first = 0 if start_ms is not None else max(0, len(found) - limit)
                return found.part(first, first + limit)
            begin_ms += step_ms
        return EMPTY_TAPE

    def _visible(self, symbol: str, tape: Tape, oldest_ms: int) -> Tape:
        if not len(tape):
            return tape
        keep = (tape.due_ns <= self._feed.served_ns) & (tape.rows["transact_time_ms"] >= oldest_ms)
        lost = [number for name, number in self._feed.desk.lost if name == symbol]
        if lost:
            keep &= ~np.isin(tape.rows["agg_trade_id"], lost)
        return tape.where(keep)

    def _oldest_ms(self) -> int:
        return max(self._source.first_ms, self._clock.now_ms() - AGG_TRADES_REACH_MS)

    def _oldest_id(self, symbol: str, oldest_ms: int) -> int:
        if oldest_ms <= self._source.first_ms:
            return 0
        for step in range(48):
            begin_ms = oldest_ms + step * _HOUR_MS
            part = self._source.between(symbol, begin_ms, begin_ms + _HOUR_MS)
            if len(part):
                return int(part.rows["agg_trade_id"][0])
        return 0

    def _trade_rows(self, tape: Tape) -> str:
        names = ("price", "price_decimals", "quantity", "quantity_decimals", "is_buyer_maker")
        ids = ("agg_trade_id", "first_trade_id", "last_trade_id", "transact_time_ms")
        columns = [tape.rows[name].tolist() for name in (*ids, *names)]
        best = ',"M":true' if self._is_spot else ""
        rows = [
            f'{{"a":{a},"p":"{decimal_text(p, pd)}","q":"{decimal_text(q, qd)}","f":{f},"l":{last},'
            f'"T":{at},"m":{"true" if maker else "false"}{best}}}'
            for a, f, last, at, p, pd, q, qd, maker in zip(*columns, strict=True)
        ]
        return f"[{','.join(rows)}]"

    async def _klines(self, query: dict[str, str]) -> str:
        symbol = self._symbol(query)
        interval = query.get("interval", "")
        if not interval:
            raise ApiError(-1102, _MISSING.format("interval"))
        if interval not in INTERVAL_MS:
            raise ApiError(-1120, "Invalid interval.")
        limit = self._limit(query, default=500, highest=1000 if self._is_spot else 1500)
        start_ms, end_ms = _number(query, "startTime"), _number(query, "endTime")
        _check_times(start_ms, end_ms, None)
        rows = await asyncio.to_thread(self._kline_rows, symbol, interval, limit, start_ms, end_ms)
        return f"[{','.join(rows)}]"

    def _kline_rows(
        self, symbol: str, interval: str, limit: int, start_ms: int | None, end_ms: int | None
    ) -> list[str]:
        now_ms = self._clock.now_ms()
        table = self._settings.candles
        if table is not None and symbol in table.symbols:
            return table.rest_rows(symbol, interval, limit, start_ms, end_ms, now_ms)
        last_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        span_ms = INTERVAL_MS[interval] * limit
        day_ms = 86_400_000
        oldest_ms = now_ms - self._settings.kline_history_days * day_ms
        first_ms = max(self._source.first_ms, oldest_ms)
        if start_ms is None:
            begin_ms = open_time_ms(last_ms, interval) - span_ms
        else:
            begin_ms = open_time_ms(start_ms - 1, interval)
            begin_ms = next_open_ms(begin_ms, interval)
        begin_ms = max(begin_ms, open_time_ms(first_ms, interval))
        if start_ms is not None:
            last_ms = min(last_ms, begin_ms + span_ms)
        until_ms = next_open_ms(open_time_ms(last_ms, interval), interval)
        if until_ms <= begin_ms:
            return []
        minutes = self._source.minute_rows(symbol, begin_ms, until_ms, self._feed.served_ns)
        rows = candles.kline_rows(minutes, self._source.spec(symbol), interval)
        return rows[:limit] if start_ms is not None else rows[-limit:]

    async def _depth(self, query: dict[str, str]) -> str:
        symbol = self._symbol(query)
        limit = self._limit(query, default=100 if self._is_spot else 500, highest=1000)
        if not self._is_spot and limit not in (5, 10, 20, 50, 100, 500, 1000):
            raise ApiError(-4021, f"{limit} is not valid depth limit.")
        frame = self._feed.books.get(symbol)
        data = frame.data if frame else self._source.book(symbol, self._feed.served_ns)
        book = msgspec.json.decode(data) if data else {}
        bids = book.get("bids", book.get("b", []))[:limit]
        asks = book.get("asks", book.get("a", []))[:limit]
        update_id = book.get("lastUpdateId", book.get("u", 0))
        reply: dict[str, object] = {"lastUpdateId": update_id}
        if not self._is_spot:
            reply |= {"E": book.get("E", 0), "T": book.get("T", 0)}
        return msgspec.json.encode({**reply, "bids": bids, "asks": asks}).decode()

    async def _ticker_price(self, query: dict[str, str]) -> str:
        return await self._for_symbols(query, self._price)

    async def _ticker_24hr(self, query: dict[str, str]) -> str:
        return await self._for_symbols(query, self._day)

    async def _for_symbols(self, query: dict[str, str], one: Callable[[str], str | None]) -> str:
        if "symbol" in query:
            found = await asyncio.to_thread(one, self._symbol(query))
            if found is None:
                raise ApiError(-1000, "An unknown error occured while processing the request.")
            return found
        rows = [await asyncio.to_thread(one, symbol) for symbol in self._source.symbols]
        return f"[{','.join(row for row in rows if row is not None)}]"

    def _price(self, symbol: str) -> str | None:
        last = self._source.before(symbol, self._feed.served_ns, 1)
        if not len(last):
            return None
        row = last.rows[0]
        price = decimal_text(int(row["price"]), int(row["price_decimals"]))
        at = "" if self._is_spot else f',"time":{int(row["transact_time_ms"])}'
        return f'{{"symbol":"{symbol}","price":"{price}"{at}}}'

    def _day(self, symbol: str) -> str | None:
        now_ms = self._clock.now_ms()
        minutes_ms = 60_000
        begin_ms = (now_ms - 24 * _HOUR_MS) // minutes_ms * minutes_ms
        source = self._source
        minutes = source.minute_rows(symbol, begin_ms, now_ms + minutes_ms, self._feed.served_ns)
        last = source.before(symbol, self._feed.served_ns, 1)
        if not len(minutes) or not len(last):
            return None
        return day_ticker(symbol, minutes, last.rows[0], source.spec(symbol), now_ms)

    def _symbol(self, query: dict[str, str]) -> str:
        symbol = query.get("symbol", "")
        if not symbol:
            raise ApiError(-1102, _MISSING.format("symbol"))
        if not symbol.replace("_", "").isascii() or not symbol.replace("_", "").isalnum():
            raise ApiError(-1100, _ILLEGAL.format("symbol", "^[A-Z0-9-_.]{1,20}$"))
        if symbol not in self._source.symbols:
            raise ApiError(-1121, "Invalid symbol.")
        return symbol

    def _limit(self, query: dict[str, str], *, default: int, highest: int) -> int:
        limit = _number(query, "limit")
        if limit is None:
            return default
        if limit < 1 or (limit > highest and not self._is_spot):
            raise ApiError(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(limit, highest)


def _damaged(response: web.Response, fault: RestFault) -> web.Response:
    """A reply as a scripted fault has it."""
    match fault.mode:
        case "html":
            return web.Response(text=_HTML, content_type="text/html", headers=response.headers)
        case "empty" | "short":
            rows = msgspec.json.decode(response.text or "[]", type=list[msgspec.Raw])
            kept = rows[: len(rows) // 2] if fault.mode == "short" else []
            response.body = msgspec.json.encode(kept)
            return response
    message = "An unknown error occured while processing the request."
    return _error(int(fault.mode), -1000, message, {})


def _number(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ApiError(-1100, _ILLEGAL.format(name, "^[0-9]{1,20}$"))
    return min(int(text), 2**62)


def _check_times(start_ms: int | None, end_ms: int | None, longest_ms: int | None) -> None:
    if start_ms is None or end_ms is None:
        return
    if start_ms > end_ms:
        raise ApiError(-1023, "Start time is greater than end time.")
    if longest_ms is not None and end_ms - start_ms > longest_ms:
        raise ApiError(-1127, "More than 1 hours between startTime and endTime.")


def _error(status: int, code: int, message: str, headers: dict[str, str]) -> web.Response:
    body = msgspec.json.encode({"code": code, "msg": message}).decode()
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)
