"""The exchange's messages as it sends them, each field renamed once to the field's own term.

Unknown keys are ignored, so a new key in a frame never breaks decoding. Sources:
https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams and
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

from __future__ import annotations

import msgspec

Levels = list[tuple[float, float]]  # sent as strings; decoded with ``strict=False``


class AggTradeMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="aggTrade",
    rename={
        "symbol": "s",
        "agg_trade_id": "a",
        "price": "p",
        "quantity": "q",
        "first_trade_id": "f",
        "last_trade_id": "l",
        "transact_time_ms": "T",
        "event_time_ms": "E",
        "is_buyer_maker": "m",
        "quantity_ex_rpi": "nq",
    },
):
    """``<symbol>@aggTrade``. ``nq`` (quantity without RPI orders) exists since 2025-12-31."""

    symbol: str
    price: str
    quantity: str
    is_buyer_maker: bool
    agg_trade_id: int
    first_trade_id: int
    last_trade_id: int
    transact_time_ms: int
    event_time_ms: int
    quantity_ex_rpi: str | None = None


class DepthMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="depthUpdate",
    rename={
        "event_time_ms": "E",
        "transact_time_ms": "T",
        "symbol": "s",
        "first_update_id": "U",
        "final_update_id": "u",
        "prev_final_update_id": "pu",
        "bids": "b",
        "asks": "a",
    },
):
    """``<symbol>@depth20@100ms`` and the diff stream (futures; spot diffs lack ``T`` and ``pu``)."""

    event_time_ms: int
    symbol: str
    first_update_id: int
    final_update_id: int
    bids: Levels
    asks: Levels
    transact_time_ms: int | None = None
    prev_final_update_id: int | None = None


class SpotPartialDepthMessage(
    msgspec.Struct, frozen=True, gc=False, rename={"final_update_id": "lastUpdateId"}
):
    """Spot ``<symbol>@depth20@100ms``: no symbol and no times; the stream name tells the symbol."""

    final_update_id: int
    bids: Levels
    asks: Levels


class RawDepthMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="depthUpdate",
    rename={
        "event_time_ms": "E",
        "transact_time_ms": "T",
        "symbol": "s",
        "first_update_id": "U",
        "final_update_id": "u",
        "prev_final_update_id": "pu",
        "bids": "b",
        "asks": "a",
    },
):
    """``DepthMessage`` with its levels as text: the hot path's schema."""

    event_time_ms: int
    symbol: str
    first_update_id: int
    final_update_id: int
    bids: msgspec.Raw
    asks: msgspec.Raw
    transact_time_ms: int | None = None
    prev_final_update_id: int | None = None


class RawSpotDepthMessage(
    msgspec.Struct, frozen=True, gc=False, rename={"final_update_id": "lastUpdateId"}
):
    """``SpotPartialDepthMessage`` with its levels as text."""

    final_update_id: int
    bids: msgspec.Raw
    asks: msgspec.Raw


class KlineBody(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "open_time_ms": "t",
        "close_time_ms": "T",
        "interval": "i",
        "open": "o",
        "high": "h",
        "low": "l",
        "close": "c",
        "volume": "v",
        "quote_volume": "q",
        "trade_count": "n",
        "is_closed": "x",
        "taker_buy_volume": "V",
        "taker_buy_quote_volume": "Q",
    },
):
    """The candle inside a kline message."""

    open_time_ms: int
    close_time_ms: int
    interval: str
    open: str
    high: str
    low: str
    close: str
    volume: str
    quote_volume: str
    trade_count: int
    is_closed: bool
    taker_buy_volume: str
    taker_buy_quote_volume: str


class KlineMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="kline",
    rename={"event_time_ms": "E", "symbol": "s", "kline": "k"},
):
    """``<symbol>@kline_<interval>``."""

    event_time_ms: int
    symbol: str
    kline: KlineBody


class BookTickerMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="bookTicker",
    rename={
        "update_id": "u",
        "symbol": "s",
        "bid_price": "b",
        "bid_quantity": "B",
        "ask_price": "a",
        "ask_quantity": "A",
        "transact_time_ms": "T",
        "event_time_ms": "E",
    },
):
    """``<symbol>@bookTicker`` (futures)."""

    update_id: int
    symbol: str
    bid_price: str
    bid_quantity: str
    ask_price: str
    ask_quantity: str
    transact_time_ms: int
    event_time_ms: int


class MarkPriceMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="markPriceUpdate",
    rename={
        "event_time_ms": "E",
        "symbol": "s",
        "mark_price": "p",
        "index_price": "i",
        "funding_rate": "r",
        "next_funding_time_ms": "T",
    },
):
    """``<symbol>@markPrice``."""

    event_time_ms: int
    symbol: str
    mark_price: str
    index_price: str
    funding_rate: str
    next_funding_time_ms: int


class ForceOrderBody(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "symbol": "s",
        "side": "S",
        "quantity": "q",
        "price": "p",
        "average_price": "ap",
        "status": "X",
        "transact_time_ms": "T",
    },
):
    """The order inside a liquidation message."""

    symbol: str
    side: str
    quantity: str
    price: str
    average_price: str
    status: str
    transact_time_ms: int


class ForceOrderMessage(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="forceOrder",
    rename={"event_time_ms": "E", "order": "o"},
):
    """``<symbol>@forceOrder``: a liquidation."""

    event_time_ms: int
    order: ForceOrderBody


Message = (
    AggTradeMessage
    | DepthMessage
    | KlineMessage
    | BookTickerMessage
    | MarkPriceMessage
    | ForceOrderMessage
)


class CombinedFrame(msgspec.Struct, frozen=True, gc=False):
    """``{"stream": …, "data": …}`` of any known message."""

    stream: str
    data: Message


class AggTradeFrame(msgspec.Struct, frozen=True, gc=False):
    """A combined frame known to carry an aggTrade: the hot path's schema."""

    stream: str
    data: AggTradeMessage


class DepthFrame(msgspec.Struct, frozen=True, gc=False):
    """A combined frame known to carry futures depth."""

    stream: str
    data: DepthMessage


class SpotDepthFrame(msgspec.Struct, frozen=True, gc=False):
    """A combined frame known to carry spot partial depth."""

    stream: str
    data: SpotPartialDepthMessage


class RawDepthFrame(msgspec.Struct, frozen=True, gc=False):
    """A combined frame known to carry futures depth, its levels as text."""

    stream: str
    data: RawDepthMessage


class RawSpotDepthFrame(msgspec.Struct, frozen=True, gc=False):
    """A combined frame known to carry spot partial depth, its levels as text."""

    stream: str
    data: RawSpotDepthMessage


class RestAggTrade(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "agg_trade_id": "a",
        "price": "p",
        "quantity": "q",
        "first_trade_id": "f",
        "last_trade_id": "l",
        "transact_time_ms": "T",
        "is_buyer_maker": "m",
    },
):
    """One row of ``/fapi/v1/aggTrades`` or ``/api/v3/aggTrades``."""

    price: str
    quantity: str
    is_buyer_maker: bool
    agg_trade_id: int
    first_trade_id: int
    last_trade_id: int
    transact_time_ms: int
