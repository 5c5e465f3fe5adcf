"""Following one series as it grows: what a stream's frames mean, and what REST must complete.

Consumes frames of one stream and asks ``History`` → produces the series from a starting point on,
in order, each row once. A frame is only believed where it continues what was delivered; whatever
lies between is asked for, so a lost frame or connection shows as a gap only if REST lacks it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import structlog

from binance_api.connector_frames import tick_columns
from binance_api.connector_history import History, first_open_ms
from binance_api.decode import decode_any, decode_trades
from binance_api.endpoints import StreamKind, kline_stream_name, stream_name
from binance_api.errors import ExchangeError
from binance_api.kline_columns import KLINE_COLUMNS
from binance_api.wire import KlineBody, KlineMessage
from domain.intervals import next_open_ms, open_time_ms

log = structlog.get_logger()

type Columns = dict[str, np.ndarray]

_OVERDUE_MS: Final = 2_000  # after a candle's end, before REST is asked for it
_LATE_MS: Final = 1_000  # a trade reaches its candle at most this late
_SETTLE_S: Final = 0.3  # a missing trade may be on its way over another socket
_SOCKETS: Final = 4  # remembered


class Batch(Protocol):
    """Frames of one socket, as the connection manager hands them over."""

    @property
    def socket_id(self) -> int: ...
    @property
    def payloads(self) -> Sequence[bytes]: ...
    @property
    def receive_time_ns(self) -> Sequence[int]: ...


class ClosedBar(msgspec.Struct, frozen=True):
    """A candle the stream closed; ``is_whole``: its socket was there when it opened."""

    open_ms: int
    columns: Columns
    is_whole: bool


class BarFollower:
    """Closed candles of one symbol and interval.

    Args:
        history: Asks the exchange.
        symbol: In upper case.
        interval: Such as ``1m``.
    """

    def __init__(self, history: History, symbol: str, interval: str) -> None:
        self.stream = kline_stream_name(symbol, interval)
        self.next_key: int | None = None  # open time of the first candle not delivered
        self._history = history
        self._symbol = symbol
        self._interval = interval
        self._whole_from: dict[int, int] = {}  # socket → first candle it saw from the beginning
        self._seen = (0, 0)  # open time and trade count of the newest frame

    async def begin(self, start_ms: int | None) -> None:
        """Start at a time; ``None``: with the candle that is open now.

        Raises:
            ExchangeError: The exchange does not answer, or does not know the symbol.
        """
        await self._history.newest_bar(self._symbol, self._interval)
        now_ms = await self._history.now_ms()
        if start_ms is None:
            self.next_key = open_time_ms(now_ms, self._interval)
            return
        first_ms = await self._history.first_bar_ms(self._symbol, self._interval)
        self.next_key = max(first_open_ms(start_ms, self._interval), first_ms or 0)

    def on_frames(self, batch: Batch) -> tuple[list[ClosedBar], Collection[str]]:
        """Candles that closed, and the streams that carried data."""
        closed, streams = [], set()
        for payload in batch.payloads:
            message = decode_any(payload)
            if not isinstance(message, KlineMessage) or message.symbol != self._symbol:
                continue
            bar = message.kline
            streams.add(self.stream)
            self._seen = max(self._seen, (bar.open_time_ms, bar.trade_count))
            if batch.socket_id not in self._whole_from:
                inside_ms = open_time_ms(message.event_time_ms, self._interval)
                self._whole_from[batch.socket_id] = next_open_ms(inside_ms, self._interval)
                while len(self._whole_from) > _SOCKETS:
                    del self._whole_from[next(iter(self._whole_from))]
            if bar.is_closed:
                is_whole = bar.open_time_ms >= self._whole_from[batch.socket_id]
                closed.append(ClosedBar(bar.open_time_ms, _bar_columns(bar), is_whole))
        return closed, streams

    async def take(self, bars: Sequence[ClosedBar]) -> list[Columns]:
        """What these candles add to the series, with what lies before them."""
        pieces: list[Columns] = []
        for bar in bars:
            if bar.open_ms < (self.next_key or 0):
                continue
            if bar.open_ms > (self.next_key or 0) or not bar.is_whole:
                after_ms = next_open_ms(bar.open_ms, self._interval)
                try:
                    pieces += await self.catch_up(bar.open_ms if bar.is_whole else after_ms)
                except ExchangeError as error:
                    log.warning("connector.not_completed", stream=self.stream, error=str(error))
            if bar.is_whole:
                pieces.append(bar.columns)
                self.next_key = next_open_ms(bar.open_ms, self._interval)
        return pieces

    async def catch_up(self, stop_ms: int | None = None) -> list[Columns]:
        """Closed candles that REST has from where we stand, of those that open before a time."""
        now_ms = await self._history.now_ms()
        if stop_ms is None:  # nobody said that the newest has closed: its last trades may be late
            now_ms -= _LATE_MS
        start_ms, end_ms = self.next_key or 0, now_ms if stop_ms is None else stop_ms
        columns = await self._history.bars_between(
            self._symbol, self._interval, start_ms, end_ms, now_ms
        )
        opens = columns["open_time_ms"]
        if not len(opens):
            return []
        self.next_key = next_open_ms(int(opens[-1]), self._interval)
        return [columns]

    def is_overdue(self, exchange_ms: int) -> bool:
        """Whether a candle has ended and no frame said so."""
        end_ms = next_open_ms(self.next_key or 0, self._interval)
        return exchange_ms > end_ms + _OVERDUE_MS

    async def probe(self, stream: str) -> bool | None:
        """Whether the exchange has news that did not arrive; ``None``: unknown."""
        try:
            newest = await self._history.newest_bar(self._symbol, self._interval)
        except ExchangeError as error:
            log.info("connector.probe_failed", stream=stream, error=str(error))
            return None
        if not len(newest["open_time_ms"]):
            return False
        return (int(newest["open_time_ms"][-1]), int(newest["trade_count"][-1])) > self._seen


class TickFollower:
    """Aggregate trades of one symbol.

    Args:
        history: Asks the exchange.
        symbol: In upper case.
    """

    def __init__(self, history: History, symbol: str) -> None:
        self.stream = stream_name(StreamKind.AGG_TRADE, symbol)
        self.next_key: int | None = None  # first id not delivered; ``None`` before any trade
        self._history = history
        self._symbol = symbol
        self._seen = -1

    async def begin(self, start_ms: int | None) -> None:
        """Start at a time; ``None``: with the next trade. As in ``BarFollower``."""
        newest = await self._history.newest_trades(self._symbol, None, 1)
        if start_ms is not None:
            now_ms = await self._history.now_ms()
            begin_ms = max(start_ms, self._history.reach_ms(now_ms))
            rows = await self._history.trades_between(self._symbol, begin_ms, now_ms, 1)
            newest = rows if len(rows) else newest
            is_first = len(rows) > 0
        else:
            is_first = False
        if len(newest):
            self.next_key = int(newest["agg_trade_id"][-1]) + (not is_first)

    def on_frames(self, batch: Batch) -> tuple[list[np.ndarray], Collection[str]]:
        """Trades, and the streams that carried data."""
        decoded = decode_trades(batch.payloads, batch.receive_time_ns, {self._symbol: 0})
        rows = decoded.rows
        if len(rows):
            self._seen = max(self._seen, int(rows["agg_trade_id"].max()))
        return ([rows] if len(rows) else []), decoded.streams

    async def take(self, batches: Sequence[np.ndarray]) -> list[Columns]:
        """What these trades add to the series, with what lies before them."""
        rows = np.concatenate(batches)
        ids, first = np.unique(rows["agg_trade_id"], return_index=True)
        rows = rows[first]
        if self.next_key is None:
            self.next_key = int(ids[0])
        rows = rows[ids >= self.next_key]
        pieces: list[Columns] = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows["agg_trade_id"]) > 1) + 1):
            if not len(run):
                continue
            first_id = int(run["agg_trade_id"][0])
            if first_id > self.next_key:
                pieces += await self._hole(first_id)
            pieces.append(tick_columns(run))
            self.next_key = int(run["agg_trade_id"][-1]) + 1
        return pieces

    async def _hole(self, stop_id: int) -> list[Columns]:
        await asyncio.sleep(_SETTLE_S)
        try:
            pieces = await self.catch_up(stop_id)
            if (self.next_key or 0) < stop_id:  # REST may lag behind the stream
                await asyncio.sleep(_SETTLE_S)
                pieces += await self.catch_up(stop_id)
        except ExchangeError as error:
            log.warning("connector.not_completed", stream=self.stream, error=str(error))
            return []
        return pieces

    async def catch_up(self, stop_id: int | None = None) -> list[Columns]:
        """Trades that REST has from where we stand, of those below an id."""
        if self.next_key is None:
            newest = await self._history.newest_trades(self._symbol, None, 1)
            if not len(newest):
                return []
            self.next_key = int(newest["agg_trade_id"][-1])
        pieces: list[Columns] = []
        while stop_id is None or self.next_key < stop_id:
            rows = await self._history.trades_from(self._symbol, self.next_key, stop_id)
            if not len(rows):
                break
            pieces.append(tick_columns(rows))
            self.next_key = int(rows["agg_trade_id"][-1]) + 1
        return pieces

    def is_overdue(self, exchange_ms: int) -> bool:  # noqa: ARG002 - trades have no schedule
        """Never: silence is judged by the connection manager."""
        return False

    async def probe(self, stream: str) -> bool | None:
        """As in ``BarFollower``."""
        try:
            newest = await self._history.newest_trades(self._symbol, None, 1)
        except ExchangeError as error:
            log.info("connector.probe_failed", stream=stream, error=str(error))
            return None
        return len(newest) > 0 and int(newest["agg_trade_id"][-1]) > self._seen


def _bar_columns(bar: KlineBody) -> Columns:
    values: dict[str, Any] = {name: getattr(bar, name) for name in KLINE_COLUMNS}
    return {
        name: np.array([value], np.int64)
        if isinstance(value, int)
        else np.array([float(value)], np.float64)
        for name, value in values.items()
    }
