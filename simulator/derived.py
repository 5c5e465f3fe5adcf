"""Streams computed from the recorded ones: depth5/10 and slower depths, bookTicker, klines.

Consumes the batch of frames that are due → produces the same batch with the derived frames that
some socket subscribed to placed after their cause. Nothing is computed that nobody wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import msgspec

from domain.intervals import INTERVAL_MS, next_open_ms, open_time_ms
from domain.market import Market
from simulator.frames import Frame, FrameKind, combine

Level = tuple[str, str]


class _Depth(msgspec.Struct):
    event: str = msgspec.field(name="e", default="depthUpdate")
    event_time_ms: int = msgspec.field(name="E", default=0)
    transact_time_ms: int = msgspec.field(name="T", default=0)
    symbol: str = msgspec.field(name="s", default="")
    first_update_id: int = msgspec.field(name="U", default=0)
    final_update_id: int = msgspec.field(name="u", default=0)
    prev_final_update_id: int = msgspec.field(name="pu", default=0)
    bids: list[Level] = msgspec.field(name="b", default_factory=list)
    asks: list[Level] = msgspec.field(name="a", default_factory=list)


class _SpotDepth(msgspec.Struct):
    last_update_id: int = msgspec.field(name="lastUpdateId", default=0)
    bids: list[Level] = msgspec.field(default_factory=list)
    asks: list[Level] = msgspec.field(default_factory=list)


class _Trade(msgspec.Struct):
    price: Decimal = msgspec.field(name="p")
    quantity: Decimal = msgspec.field(name="q")
    first_trade_id: int = msgspec.field(name="f")
    last_trade_id: int = msgspec.field(name="l")
    transact_time_ms: int = msgspec.field(name="T")
    event_time_ms: int = msgspec.field(name="E")
    is_buyer_maker: bool = msgspec.field(name="m")


class _Candle(msgspec.Struct):
    open_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    first_trade_id: int
    last_trade_id: int
    volume: Decimal = Decimal(0)
    quote_volume: Decimal = Decimal(0)
    taker_volume: Decimal = Decimal(0)
    taker_quote: Decimal = Decimal(0)
    fills: int = 0
    sent_ms: int = 0


_SLOWER_MS = {"": 250, "@500ms": 500}
_KLINE_EVERY_MS = 250
_decode_depth = msgspec.json.Decoder(_Depth).decode
_decode_spot_depth = msgspec.json.Decoder(_SpotDepth).decode
_decode_trade = msgspec.json.Decoder(_Trade).decode


class DerivedStreams:
    """Computes what was asked for.

    Args:
        is_wanted: Whether a stream has a listener.
        wanted: All streams with a listener.
        market: Decides the layout of depth.
    """

    def __init__(
        self,
        is_wanted: Callable[[str], bool],
        wanted: Callable[[], Iterable[str]],
        market: Market,
    ) -> None:
        self._is_wanted = is_wanted
        self._wanted = wanted
        self._spot = market is Market.SPOT
        self._candles: dict[tuple[str, str], _Candle] = {}
        self._sent_ms: dict[str, int] = {}
        self._previous_update_id: dict[str, int] = {}

    def extend(self, batch: list[Frame]) -> list[Frame]:
        """The batch with the wanted derived frames after their causes."""
        names = {name for name in self._wanted() if _is_derived(name)}
        if not names:
            return batch
        out: list[Frame] = []
        for frame in batch:
            out.append(frame)
            symbol = frame.symbol.lower()
            if frame.kind is FrameKind.DEPTH:
                self._from_depth(out, frame, symbol)
            elif frame.kind is FrameKind.TRADE:
                self._from_trade(out, frame, symbol, names)
        return out

    def _from_depth(self, out: list[Frame], frame: Frame, symbol: str) -> None:
        wanted = [name for name in _depth_names(symbol) if self._is_wanted(name)]
        ticker = f"{symbol}@bookTicker"
        if not wanted and not self._is_wanted(ticker):
            return
        try:
            depth = self._depth(frame)
        except (msgspec.DecodeError, ValueError):
            return
        now_ms = frame.due_ns // 1_000_000
        for name in wanted:
            levels, _, speed = name.partition("@")[2].removeprefix("depth").partition("@")
            every_ms = _SLOWER_MS.get(f"@{speed}" if speed else "", 0)
            if name == frame.stream or now_ms - self._sent_ms.get(name, 0) < every_ms:
                continue
            self._sent_ms[name] = now_ms
            out.append(self._made(frame, name, self._slice(depth, int(levels), name)))
        if self._is_wanted(ticker) and depth.bids and depth.asks:
            out.append(self._made(frame, ticker, self._ticker(depth, frame.symbol)))

    def _depth(self, frame: Frame) -> _Depth:
        if not self._spot:
            return _decode_depth(frame.data)
        spot = _decode_spot_depth(frame.data)
        return _Depth(final_update_id=spot.last_update_id, bids=spot.bids, asks=spot.asks)

    def _slice(self, depth: _Depth, levels: int, name: str) -> bytes:
        bids, asks = depth.bids[:levels], depth.asks[:levels]
        if self._spot:
            return msgspec.json.encode(_SpotDepth(depth.final_update_id, bids, asks))
        previous = self._previous_update_id.get(name, depth.prev_final_update_id)
        self._previous_update_id[name] = depth.final_update_id
        cut = msgspec.structs.replace(depth, bids=bids, asks=asks, prev_final_update_id=previous)
        return msgspec.json.encode(cut)

    def _ticker(self, depth: _Depth, symbol: str) -> bytes:
        (bid, bid_size), (ask, ask_size) = depth.bids[0], depth.asks[0]
        best = {"s": symbol, "b": bid, "B": bid_size, "a": ask, "A": ask_size}
        if self._spot:
            return msgspec.json.encode({"u": depth.final_update_id, **best})
        head = {"e": "bookTicker", "u": depth.final_update_id}
        times = {"T": depth.transact_time_ms, "E": depth.event_time_ms}
        return msgspec.json.encode({**head, **best, **times})

    def _from_trade(self, out: list[Frame], frame: Frame, symbol: str, names: set[str]) -> None:
        prefix = f"{symbol}@kline_"
        for name in names:
            interval = name.removeprefix(prefix)
            if name == interval or interval not in INTERVAL_MS:
                continue
            try:
                trade = _decode_trade(frame.data)
            except (msgspec.DecodeError, ValueError):
                return
            self._update_candle(out, frame, name, interval, trade)

    def _update_candle(
        self, out: list[Frame], frame: Frame, name: str, interval: str, trade: _Trade
    ) -> None:
        opened = open_time_ms(trade.transact_time_ms, interval)
        key = (frame.symbol, interval)
        candle = self._candles.get(key)
        if candle is None or candle.open_ms != opened:
            if candle is not None:
                closed = _kline(candle, frame.symbol, interval, trade.event_time_ms, closed=True)
                out.append(self._made(frame, name, closed))
            price, first = trade.price, trade.first_trade_id
            candle = _Candle(opened, price, price, price, price, first, trade.last_trade_id)
            self._candles[key] = candle
        _add(candle, trade)
        if trade.event_time_ms - candle.sent_ms >= _KLINE_EVERY_MS:
            candle.sent_ms = trade.event_time_ms
            update = _kline(candle, frame.symbol, interval, trade.event_time_ms, closed=False)
            out.append(self._made(frame, name, update))

    @staticmethod
    def _made(cause: Frame, name: str, data: bytes) -> Frame:
        kind = FrameKind.DEPTH if "@depth" in name else FrameKind.OTHER
        mark = cause.mark if kind is FrameKind.DEPTH else None
        made = Frame(cause.due_ns, name, cause.symbol, kind, data, combine(name, data))
        made.mark = mark
        return made


def _is_derived(name: str) -> bool:
    event = name.partition("@")[2]
    return not event.startswith("aggTrade") and event != "depth20@100ms"


def _depth_names(symbol: str) -> list[str]:
    speeds = ("", "@100ms", "@500ms")
    return [f"{symbol}@depth{levels}{speed}" for levels in (5, 10, 20) for speed in speeds]


def _add(candle: _Candle, trade: _Trade) -> None:
    quote = trade.price * trade.quantity
    candle.high, candle.low = max(candle.high, trade.price), min(candle.low, trade.price)
    candle.close, candle.last_trade_id = trade.price, trade.last_trade_id
    candle.volume += trade.quantity
    candle.quote_volume += quote
    candle.fills += trade.last_trade_id - trade.first_trade_id + 1
    if not trade.is_buyer_maker:
        candle.taker_volume += trade.quantity
        candle.taker_quote += quote


def _kline(candle: _Candle, symbol: str, interval: str, event_ms: int, *, closed: bool) -> bytes:
    """https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams/Kline-Candlestick-Streams"""
    values = {
        "t": candle.open_ms,
        "T": next_open_ms(candle.open_ms, interval) - 1,
        "s": symbol,
        "i": interval,
        "f": candle.first_trade_id,
        "L": candle.last_trade_id,
        "o": str(candle.open),
        "c": str(candle.close),
        "h": str(candle.high),
        "l": str(candle.low),
        "v": str(candle.volume),
        "n": candle.fills,
        "x": closed,
        "q": str(candle.quote_volume),
        "V": str(candle.taker_volume),
        "Q": str(candle.taker_quote),
        "B": "0",
    }
    return msgspec.json.encode({"e": "kline", "E": event_ms, "s": symbol, "k": values})
