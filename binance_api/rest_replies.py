"""Bodies of REST replies (bytes) → exact values of the domain. Pure; raises ``ValueError`` only.

Numbers go from the wire's decimal text to ``Decimal`` without a float between; unknown keys and
further array elements are ignored. Shapes:
https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api and
https://developers.binance.com/docs/binance-spot-api-docs/rest-api/market-data-endpoints
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from binance_api.wire import Levels
from domain.market import DepthSnapshot, Kline

_LARGEST_EXPONENT = 40  # of a number; arithmetic on 1E+999999 would never end


class SymbolInfo(msgspec.Struct, frozen=True):
    """One instrument of ``exchangeInfo``; ``None`` where the exchange does not say."""

    symbol: str
    status: str
    tick_size: Decimal | None = None
    step_size: Decimal | None = None
    price_precision: int | None = None
    quantity_precision: int | None = None


class ExchangeInfo(msgspec.Struct, frozen=True):
    """What ``exchangeInfo`` says; ``weight_limit`` is the request weight per minute."""

    symbols: dict[str, SymbolInfo]
    weight_limit: int | None


class AccountStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What the exchange lets the owner of an API key do; no balance is read."""

    can_trade: bool | None = None


class DayTicker(msgspec.Struct, frozen=True, rename="camel"):
    """Rolling 24 hours of one symbol, of ``ticker/24hr``."""

    symbol: str
    price_change_percent: Decimal
    last_price: Decimal
    open_price: Decimal
    high_price: Decimal
    low_price: Decimal
    volume: Decimal
    quote_volume: Decimal
    open_time_ms: int = msgspec.field(name="openTime")
    close_time_ms: int = msgspec.field(name="closeTime")
    trade_count: int = msgspec.field(name="count")


class _KlineRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    open_time_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    close_time_ms: int
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal


class _ServerTime(msgspec.Struct, frozen=True):
    time_ms: int = msgspec.field(name="serverTime")


class _Price(msgspec.Struct, frozen=True):
    symbol: str
    price: Decimal


class _Book(msgspec.Struct, frozen=True):
    bids: Levels
    asks: Levels
    last_update_id: int = msgspec.field(name="lastUpdateId")
    event_time_ms: int | None = msgspec.field(name="E", default=None)
    transact_time_ms: int | None = msgspec.field(name="T", default=None)


class _Filter(msgspec.Struct, frozen=True, rename="camel"):
    filter_type: str = ""
    tick_size: Decimal | None = None
    step_size: Decimal | None = None


class _Symbol(msgspec.Struct, frozen=True, rename="camel"):
    symbol: str
    status: str = ""
    price_precision: int | None = None
    quantity_precision: int | None = None
    filters: list[_Filter] = []


class _RateLimit(msgspec.Struct, frozen=True, rename="camel"):
    rate_limit_type: str = ""
    interval: str = ""
    interval_num: int = 0
    limit: int = 0


class _ExchangeInfo(msgspec.Struct, frozen=True, rename="camel"):
    symbols: list[_Symbol] = []
    rate_limits: list[_RateLimit] = []


_klines = msgspec.json.Decoder(list[_KlineRow])
_server_time = msgspec.json.Decoder(_ServerTime)
_price = msgspec.json.Decoder(_Price)
_book = msgspec.json.Decoder(_Book, strict=False)
_day_ticker = msgspec.json.Decoder(DayTicker)
_account = msgspec.json.Decoder(AccountStatus)
_exchange_info = msgspec.json.Decoder(_ExchangeInfo)
_object = msgspec.json.Decoder(dict[str, Any])


def decode_ping(body: bytes) -> None:
    """``{}``."""
    _object.decode(body)


def decode_server_time(body: bytes) -> int:
    """Exchange time, ms since the epoch."""
    return _server_time.decode(body).time_ms


def decode_account(body: bytes) -> AccountStatus:
    """Whether the key may trade."""
    return _account.decode(body)


def decode_klines(body: bytes, symbol: str, interval: str) -> list[Kline]:
    """Candles in the order sent, the open one included if it was sent."""
    return [_kline(row, symbol, interval) for row in _klines.decode(body)]


def decode_exchange_info(body: bytes) -> ExchangeInfo:
    """Instruments by symbol, and the request weight per minute."""
    info = _exchange_info.decode(body)
    limits = [
        rate.limit
        for rate in info.rate_limits
        if (rate.rate_limit_type, rate.interval, rate.interval_num)
        == ("REQUEST_WEIGHT", "MINUTE", 1)
        and rate.limit > 0
    ]
    symbols = {entry.symbol: _symbol_info(entry) for entry in info.symbols}
    return ExchangeInfo(symbols=symbols, weight_limit=min(limits, default=None))


def decode_depth(body: bytes, symbol: str, received_ns: int) -> DepthSnapshot:
    """The book; the receive time stands in for the times spot does not send.

    Args:
        body: The reply.
        symbol: Whose book was asked for.
        received_ns: Local receive time, ns since the epoch.
    """
    book = _book.decode(body)
    if not all(math.isfinite(number) for level in (*book.bids, *book.asks) for number in level):
        raise ValueError("a level of the book is not finite")
    received_ms = received_ns // 1_000_000
    event_ms = received_ms if book.event_time_ms is None else book.event_time_ms
    return DepthSnapshot(
        symbol=symbol,
        event_time_ms=event_ms,
        transact_time_ms=event_ms if book.transact_time_ms is None else book.transact_time_ms,
        receive_time_ns=received_ns,
        first_update_id=book.last_update_id,
        final_update_id=book.last_update_id,
        prev_final_update_id=None,
        bids=book.bids,
        asks=book.asks,
    )


def decode_price(body: bytes) -> Decimal:
    """The last price of one symbol."""
    price = _price.decode(body).price
    _require_sane((price,))
    return price


def decode_day_ticker(body: bytes) -> DayTicker:
    """Rolling 24-hour statistics of one symbol."""
    ticker = _day_ticker.decode(body)
    _require_sane([v for v in msgspec.structs.astuple(ticker) if isinstance(v, Decimal)])
    return ticker


def _kline(row: _KlineRow, symbol: str, interval: str) -> Kline:
    _require_sane([v for v in msgspec.structs.astuple(row) if isinstance(v, Decimal)])
    return Kline(symbol=symbol, interval=interval, **msgspec.structs.asdict(row))


def _symbol_info(entry: _Symbol) -> SymbolInfo:
    ticks = [f.tick_size for f in entry.filters if f.filter_type == "PRICE_FILTER"]
    steps = [f.step_size for f in entry.filters if f.filter_type == "LOT_SIZE"]
    return SymbolInfo(
        symbol=entry.symbol,
        status=entry.status,
        tick_size=_positive(ticks),
        step_size=_positive(steps),
        price_precision=entry.price_precision,
        quantity_precision=entry.quantity_precision,
    )


def _positive(values: Sequence[Decimal | None]) -> Decimal | None:
    """The first value if it is a size; spot writes 0 for "no such rule"."""
    value = values[0] if values else None
    return value if value is not None and _is_sane(value) and value > 0 else None


def _require_sane(values: Sequence[Decimal]) -> None:
    if not all(map(_is_sane, values)):
        raise ValueError("a number of the reply is not finite or absurdly large")


def _is_sane(value: Decimal) -> bool:
    return value.is_finite() and abs(value.adjusted()) < _LARGEST_EXPONENT
