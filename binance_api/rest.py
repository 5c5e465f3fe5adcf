"""The one REST client: the market data of one exchange host, a method per endpoint.

Consumes calls, produces ``Reply`` values with exact numbers or a typed ``ExchangeError``. How a
request is bounded, retried and paid for is ``request_runner``'s, HTTP is ``http_session``'s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from binance_api import rest_replies
from binance_api.decode import decode_rest_agg_trades
from binance_api.endpoints import (
    DEFAULT_REST_BASE,
    UM_DEPTH_LIMITS,
    Endpoint,
    request_weight,
    rest_path,
)
from binance_api.errors import ClockSkew
from binance_api.http_session import HttpSession
from binance_api.kline_columns import KlineColumns, decode_kline_columns
from binance_api.request_runner import (
    Answer,
    Query,
    Random,
    Reply,
    Request,
    RequestRunner,
    RestSettings,
)
from binance_api.rest_replies import AccountStatus, DayTicker, SymbolInfo
from domain.market import DepthSnapshot, Kline, Market

__all__ = ["AccountStatus", "DayTicker", "Reply", "RestClient", "RestSettings", "SymbolInfo"]


class RestClient:
    """Async context manager; one per exchange host and process.

    All calls take ``urgent`` (go ahead of calls that are not, in the concurrency limit and in the
    weight budget) and ``deadline_s`` (seconds for the whole call, waits and retries included;
    ``None``: as the settings say). All raise ``ExchangeError``; arguments that cannot be sent raise
    ``ValueError``. Symbols may be in any case.

    Args:
        settings: See ``RestSettings``.
        monotonic: Seconds that never run back.
        wall_ns: Wall clock, ns since the epoch.
        sleep: Waits that many seconds.
        jitter: Random source of the backoff.
    """

    def __init__(
        self,
        settings: RestSettings | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Random | None = None,
    ) -> None:
        self._settings = settings or RestSettings()
        self._market = self._settings.market
        base_url = self._settings.base_url or DEFAULT_REST_BASE[self._market]
        self._http = HttpSession(self._settings, base_url)
        self._runner = RequestRunner(
            self._settings,
            self._http.base_url,
            self._http,
            monotonic=monotonic,
            wall_ns=wall_ns,
            sleep=sleep,
            jitter=jitter or random.Random(),
        )
        self._rejected_trades = 0
        self._wall_ns = wall_ns
        self._clock_offset_ms: int | None = None  # the exchange's clock minus ours

    async def __aenter__(self) -> Self:
        self._http.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.close()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests, retries, refusals, bytes, invalid trades, and the weight budget."""
        return {**self._runner.statistics(), "rejected_trades": self._rejected_trades}

    @property
    def clock_offset_ms(self) -> int:
        """The exchange's clock minus ours, as learnt from ``time``; 0 before that."""
        return self._clock_offset_ms or 0

    async def ping(self, *, urgent: bool = False, deadline_s: float | None = None) -> Reply[None]:
        """Whether the exchange answers."""
        request = self._request(Endpoint.PING, urgent=urgent, deadline_s=deadline_s)
        return await self._runner.call(
            request, lambda answer: rest_replies.decode_ping(answer.body)
        )

    async def time(self, *, urgent: bool = False, deadline_s: float | None = None) -> Reply[int]:
        """The exchange's time, ms since the epoch."""
        request = self._request(Endpoint.TIME, urgent=urgent, deadline_s=deadline_s)
        reply = await self._runner.call(
            request, lambda answer: rest_replies.decode_server_time(answer.body)
        )
        self._clock_offset_ms = reply.value - (reply.fetched_at_ms - int(reply.latency_ms / 2))
        return reply

    async def account_status(
        self, *, urgent: bool = False, deadline_s: float | None = None
    ) -> Reply[AccountStatus]:
        """Whether the exchange accepts the API key (a signed call).

        The clock offset is learnt from ``time``, once more where the exchange finds us too far off.

        Raises:
            ValueError: The settings have no key.
            InvalidKey: The key or the signature was refused.
            ClockSkew: Refused for the time again with an offset just learnt.
        """
        if self._settings.api_key is None:
            raise ValueError("a signed call needs an API key")
        request = self._request(Endpoint.ACCOUNT, urgent=urgent, deadline_s=deadline_s)
        signed = msgspec.structs.replace(request, sign=self._sign)
        if self._clock_offset_ms is None:
            await self.time(urgent=urgent, deadline_s=deadline_s)
        try:
            return await self._runner.call(signed, _decode_account)
        except ClockSkew:
            await self.time(urgent=urgent, deadline_s=deadline_s)
            return await self._runner.call(signed, _decode_account)

    async def exchange_info(
        self, *, urgent: bool = False, deadline_s: float | None = None
    ) -> Reply[dict[str, SymbolInfo]]:
        """All instruments by symbol; a lower weight limit stated there is kept from then on."""
        request = self._request(Endpoint.EXCHANGE_INFO, urgent=urgent, deadline_s=deadline_s)
        reply = await self._runner.call(
            request, lambda answer: rest_replies.decode_exchange_info(answer.body)
        )
        if reply.value.weight_limit is not None:
            self._runner.lower_weight_limit(reply.value.weight_limit)
        return Reply(
            value=reply.value.symbols,
            latency_ms=reply.latency_ms,
            fetched_at_ms=reply.fetched_at_ms,
            endpoint=reply.endpoint,
        )

    async def klines(
        self,
        symbol: str,
        interval: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
        *,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> Reply[list[Kline]]:
        """Candles, oldest first; the last may still be open: compare ``close_time_ms``.

        Args:
            symbol: In any case.
            interval: Such as ``1m``.
            start_ms: First open time, ms since the epoch; ``None``: the newest candles.
            end_ms: Last open time, inclusive.
            limit: Rows; 1 to 1,500 (spot 1,000).
            urgent: See the class.
            deadline_s: See the class.
        """
        name = _checked_symbol(symbol)
        params = {"symbol": name, "interval": interval, "startTime": start_ms, "endTime": end_ms}
        request = self._request(
            Endpoint.KLINES, params, limit=limit, urgent=urgent, deadline_s=deadline_s
        )
        return await self._runner.call(
            request, lambda answer: rest_replies.decode_klines(answer.body, name, interval)
        )

    async def kline_columns(
        self,
        symbol: str,
        interval: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
        *,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> Reply[KlineColumns]:
        """``klines`` as numpy columns of nearest doubles, many times as fast; see ``klines``."""
        params = {
            "symbol": _checked_symbol(symbol),
            "interval": interval,
            "startTime": start_ms,
            "endTime": end_ms,
        }
        request = self._request(
            Endpoint.KLINES, params, limit=limit, urgent=urgent, deadline_s=deadline_s
        )
        return await self._runner.call(request, lambda answer: decode_kline_columns(answer.body))

    async def agg_trades(
        self,
        symbol: str,
        from_id: int | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 1_000,
        *,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> Reply[np.ndarray]:
        """Aggregate trades, oldest first; the newest ones without ``from_id`` and ``start_ms``.

        Args:
            symbol: In any case.
            from_id: First id wanted.
            start_ms: Earliest time, inclusive; futures reach back 48 h.
            end_ms: Latest time, inclusive; at most 1 h after ``start_ms``.
            limit: Rows; 1 to 1,000.
            urgent: See the class.
            deadline_s: See the class.

        Returns:
            ``TRADE_DTYPE`` rows: ``symbol_index`` 0, no event and receive time. What is no valid
            trade is left out and counted.

        Raises:
            ValueError: Both an id and a time (the exchange's error -4166).
        """
        if from_id is not None and (start_ms is not None or end_ms is not None):
            raise ValueError("from_id cannot be combined with start_ms or end_ms")
        if from_id is not None and from_id < 0:
            raise ValueError(f"from_id must not be negative, not {from_id}")
        request = self._request(
            Endpoint.AGG_TRADES,
            {
                "symbol": _checked_symbol(symbol),
                "fromId": from_id,
                "startTime": start_ms,
                "endTime": end_ms,
            },
            limit=limit,
            urgent=urgent,
            deadline_s=deadline_s,
        )
        reply = await self._runner.call(request, lambda answer: decode_rest_agg_trades(answer.body))
        rows, rejected_count = reply.value
        self._rejected_trades += rejected_count
        return Reply(
            value=rows,
            latency_ms=reply.latency_ms,
            fetched_at_ms=reply.fetched_at_ms,
            endpoint=reply.endpoint,
            rejected_count=rejected_count,
        )

    async def depth(
        self,
        symbol: str,
        limit: int = 100,
        *,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> Reply[DepthSnapshot]:
        """The book, best levels first.

        Args:
            symbol: In any case.
            limit: Levels per side; futures: one of ``UM_DEPTH_LIMITS``, spot: 1 to 5,000.
            urgent: See the class.
            deadline_s: See the class.
        """
        if self._market is Market.UM and limit not in UM_DEPTH_LIMITS:
            raise ValueError(f"limit of depth must be one of {UM_DEPTH_LIMITS}, not {limit}")
        name = _checked_symbol(symbol)
        request = self._request(
            Endpoint.DEPTH, {"symbol": name}, limit=limit, urgent=urgent, deadline_s=deadline_s
        )
        return await self._runner.call(
            request,
            lambda answer: rest_replies.decode_depth(answer.body, name, answer.received_ns),
        )

    async def ticker_price(
        self, symbol: str, *, urgent: bool = False, deadline_s: float | None = None
    ) -> Reply[Decimal]:
        """The last price."""
        request = self._request(
            Endpoint.TICKER_PRICE,
            {"symbol": _checked_symbol(symbol)},
            urgent=urgent,
            deadline_s=deadline_s,
        )
        return await self._runner.call(
            request, lambda answer: rest_replies.decode_price(answer.body)
        )

    async def ticker_24hr(
        self, symbol: str, *, urgent: bool = False, deadline_s: float | None = None
    ) -> Reply[DayTicker]:
        """Statistics of the rolling 24 hours."""
        request = self._request(
            Endpoint.TICKER_24HR,
            {"symbol": _checked_symbol(symbol)},
            urgent=urgent,
            deadline_s=deadline_s,
        )
        return await self._runner.call(
            request, lambda answer: rest_replies.decode_day_ticker(answer.body)
        )

    def _sign(self, params: Query) -> tuple[Query, Mapping[str, str]]:
        key = self._settings.api_key
        if key is None:
            raise ValueError("a signed call needs an API key")
        now_ms = self._wall_ns() // 1_000_000 + self.clock_offset_ms
        return key.signed(params, now_ms), key.headers()

    def _request(
        self,
        endpoint: Endpoint,
        params: Mapping[str, str | int | None] | None = None,
        *,
        limit: int | None = None,
        urgent: bool,
        deadline_s: float | None,
    ) -> Request:
        weight = request_weight(self._market, endpoint, limit)
        named = {**(params or {}), "limit": limit}
        settings = self._settings
        bound_s = settings.urgent_deadline_s if urgent else settings.deadline_s
        return Request(
            path=rest_path(self._market, endpoint),
            params={name: value for name, value in named.items() if value is not None},
            weight=weight,
            is_urgent=urgent,
            bound_s=bound_s if deadline_s is None else deadline_s,
        )


def _decode_account(answer: Answer) -> AccountStatus:
    return rest_replies.decode_account(answer.body)


def _checked_symbol(symbol: str) -> str:
    name = symbol.strip().upper()
    if not name:
        raise ValueError("symbol must not be empty")
    return name
