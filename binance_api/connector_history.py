"""Past candles and trades in pages, however long the range: order, completeness and refusals.

Consumes ranges → produces columns of closed candles, or trade rows, ascending and unique. A page that
lacks rows is asked for once more; a refusal is waited out for as long as the exchange says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import numpy as np
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from binance_api.errors import RateLimited
from binance_api.kline_columns import KlineColumns, empty_columns, joined
from binance_api.rest import Reply, RestClient
from domain.intervals import INTERVAL_MS, next_open_ms, open_time_ms, open_times_ms
from domain.market import TRADE_DTYPE, Market

log = structlog.get_logger()

PAGE_BARS: Final = 500  # futures: the most candles per weight; spot weighs all pages alike
SPOT_PAGE_BARS: Final = 1_000
PAGE_TRADES: Final = 1_000
_HOUR_MS: Final = 3_600_000


class History:
    """Asks one exchange for its past.

    Args:
        rest: The client.
        market: Its market.
        concurrency: Pages under way at once.
        on_page: Told of every page: what, and its reply.
    """

    def __init__(
        self,
        rest: RestClient,
        market: Market,
        concurrency: int,
        on_page: Callable[[str, Reply[int]], None] = lambda _what, _rows: None,
    ) -> None:
        self.rest = rest
        self._market = market
        self._concurrency = concurrency
        self._on_page = on_page
        self._told_until_s = 0.0
        self.page_bars = SPOT_PAGE_BARS if market is Market.SPOT else PAGE_BARS

    async def now_ms(self) -> int:
        """The exchange's time."""
        return (await self._patient(self.rest.time)).value

    # --- candles ---

    async def bars_between(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int
    ) -> KlineColumns:
        """Every candle closed by ``now_ms`` that opens in ``[start_ms, end_ms)``."""
        end_ms = min(end_ms, now_ms)
        if end_ms <= start_ms:
            return empty_columns()
        first = await self._page(symbol, interval, start_ms, end_ms, now_ms)
        pieces = [first]
        if len(first["open_time_ms"]):
            begin_ms = next_open_ms(int(first["open_time_ms"][-1]), interval)
            spans = list(self._spans(interval, begin_ms, end_ms))
            pieces += await self._all(
                lambda span: self._page(symbol, interval, span[0], span[1], now_ms), spans
            )
        return _in_order(pieces)

    async def bars_from(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int, count: int
    ) -> KlineColumns:
        """The first ``count`` candles of ``bars_between``, without asking for more pages."""
        pieces: list[KlineColumns] = []
        found, end_ms = 0, min(end_ms, now_ms)
        while start_ms < end_ms and found < count:
            page = await self._page(symbol, interval, start_ms, end_ms, now_ms)
            if not len(page["open_time_ms"]):
                break
            pieces.append(page)
            found += len(page["open_time_ms"])
            start_ms = next_open_ms(int(page["open_time_ms"][-1]), interval)
        joint = _in_order(pieces)
        return {name: values[:count] for name, values in joint.items()}

    async def newest_bars(
        self, symbol: str, interval: str, end_ms: int, now_ms: int, count: int
    ) -> KlineColumns:
        """The last ``count`` candles closed by ``now_ms`` that open before ``end_ms``."""
        pieces: list[KlineColumns] = []
        found = 0
        end_ms = min(end_ms, now_ms)
        while found < count:
            limit = min(self.page_bars, count - found + 1)  # the newest may still be open
            page = _closed(await self._ask_bars(symbol, interval, None, end_ms, limit), now_ms)
            if not len(page["open_time_ms"]):
                break
            pieces.append(page)
            found += len(page["open_time_ms"])
            end_ms = int(page["open_time_ms"][0])
        joint = _in_order(pieces[::-1])
        return {name: values[-count:] for name, values in joint.items()}

    async def first_bar_ms(self, symbol: str, interval: str) -> int | None:
        """Open time of the listing's first candle; ``None`` if it has none."""
        opens = (await self._ask_bars(symbol, interval, 0, None, 1))["open_time_ms"]
        return int(opens[0]) if len(opens) else None

    async def newest_bar(self, symbol: str, interval: str) -> KlineColumns:
        """The candle that is still open."""
        return await self._ask_bars(symbol, interval, None, None, 1)

    def _spans(self, interval: str, begin_ms: int, end_ms: int) -> Iterable[tuple[int, int]]:
        """Ranges of one page each."""
        if interval == "1M":  # one page holds more months than there are
            step_ms = max(end_ms - begin_ms, 1)
        else:
            step_ms = self.page_bars * INTERVAL_MS[interval]
        for start_ms in range(begin_ms, end_ms, step_ms):
            yield start_ms, min(start_ms + step_ms, end_ms)

    async def _page(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int
    ) -> KlineColumns:
        """One page from ``start_ms`` on; asked for again where a candle is missing in it."""
        page = _closed(
            await self._ask_bars(symbol, interval, start_ms, end_ms, self.page_bars), now_ms
        )
        if self._is_whole(page, interval, start_ms, end_ms, now_ms):
            return page
        again = await self._ask_bars(symbol, interval, start_ms, end_ms, self.page_bars)
        return _in_order([page, _closed(again, now_ms)])

    def _is_whole(
        self, page: KlineColumns, interval: str, start_ms: int, end_ms: int, now_ms: int
    ) -> bool:
        opens = page["open_time_ms"]
        if interval == "1M":
            return bool(len(opens))
        first = next_open_ms(open_time_ms(start_ms - 1, interval), interval)
        last_ms = min(end_ms, open_time_ms(now_ms, interval))  # the open one opens there
        count = min(max(0, -(-(last_ms - first) // INTERVAL_MS[interval])), self.page_bars)
        return len(opens) == count

    async def _ask_bars(
        self, symbol: str, interval: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> KlineColumns:
        last_ms = None if end_ms is None else end_ms - 1
        reply = await self._patient(
            lambda: self.rest.kline_columns(symbol, interval, start_ms, last_ms, limit)
        )
        self._tell(f"{symbol} {interval}", reply, len(reply.value["open_time_ms"]))
        return reply.value

    # --- trades ---

    async def trades_between(
        self, symbol: str, start_ms: int, end_ms: int, count: int | None = None
    ) -> np.ndarray:
        """Trades with ``start_ms <= T < end_ms``, at most the first ``count``; ``TRADE_DTYPE``."""
        rows = await self._first_trades(symbol, start_ms, end_ms)
        pieces = [rows]
        found = len(rows)
        while len(rows) and (count is None or found < count):
            next_id = int(rows["agg_trade_id"][-1]) + 1
            rows = await self.trades_from(symbol, next_id)
            if not len(rows):  # the end of the history, or a page lost
                rows = await self.trades_from(symbol, next_id)
            inside = rows[rows["transact_time_ms"] < end_ms]
            pieces.append(inside)
            found += len(inside)
            if len(inside) < len(rows):
                break
        joint = np.concatenate(pieces)
        return joint if count is None else joint[:count]

    async def newest_trades(self, symbol: str, end_ms: int | None, count: int) -> np.ndarray:
        """The last ``count`` trades before ``end_ms`` (``None``: now)."""
        last_ms = None if end_ms is None else end_ms - 1
        newest = await self._ask_trades(symbol, end_ms=last_ms, limit=min(count, PAGE_TRADES))
        pieces = [newest]
        if len(newest):
            stop_id = int(newest["agg_trade_id"][0])
            next_id = max(0, int(newest["agg_trade_id"][-1]) - count + 1)
            earlier: list[np.ndarray] = []
            while next_id < stop_id:
                rows = await self.trades_from(symbol, next_id, stop_id)
                if not len(rows):
                    break
                earlier.append(rows)
                next_id = int(rows["agg_trade_id"][-1]) + 1
            pieces = [*earlier, newest]
        return np.concatenate(pieces)[-count:]

    async def trades_from(
        self, symbol: str, first_id: int, stop_id: int | None = None
    ) -> np.ndarray:
        """One page from an id on, below ``stop_id``; asked for again where ids are missing in it."""
        rows = await self._ask_trades(symbol, from_id=first_id)
        if not _is_unbroken(rows, first_id):
            again = await self._ask_trades(symbol, from_id=first_id)
            both = np.concatenate([rows, again])
            _, unique = np.unique(both["agg_trade_id"], return_index=True)
            rows = both[unique]
        return rows if stop_id is None else rows[rows["agg_trade_id"] < stop_id]

    async def _first_trades(self, symbol: str, start_ms: int, end_ms: int) -> np.ndarray:
        """The first page of trades at or after ``start_ms``; asked hour by hour."""
        while start_ms < end_ms:
            last_ms = min(start_ms + _HOUR_MS, end_ms) - 1
            rows = await self._ask_trades(symbol, start_ms=start_ms, end_ms=last_ms)
            if len(rows):
                return rows
            start_ms = last_ms + 1
        return np.empty(0, TRADE_DTYPE)

    async def _ask_trades(
        self,
        symbol: str,
        *,
        from_id: int | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = PAGE_TRADES,
    ) -> np.ndarray:
        reply = await self._patient(
            lambda: self.rest.agg_trades(symbol, from_id, start_ms, end_ms, limit)
        )
        self._tell(f"{symbol} trades", reply, len(reply.value))
        return reply.value

    def reach_ms(self, now_ms: int) -> int:
        """Earliest trade time that can be asked for."""
        return now_ms - AGG_TRADES_REACH_MS if self._market is Market.UM else 0

    # --- asking ---

    async def _patient[T](self, call: Callable[[], Awaitable[Reply[T]]]) -> Reply[T]:
        """Call; a refusal (429, 418, the spent budget) is waited out, however long it lasts."""
        while True:
            try:
                return await call()
            except RateLimited as error:
                self._tell_waiting(error)
                await asyncio.sleep(error.retry_after_s)

    def _tell_waiting(self, error: RateLimited) -> None:
        """Once per block, however many pages wait for its end."""
        until_s = time.time() + error.retry_after_s
        if until_s > self._told_until_s + 1.0:
            self._told_until_s = until_s
            log.warning(
                "connector.waiting",
                reason=error.msg,
                seconds=round(error.retry_after_s, 1),
                until=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(until_s)),
            )

    def _tell[T](self, what: str, reply: Reply[T], rows: int) -> None:
        self._on_page(what, Reply(rows, reply.latency_ms, reply.fetched_at_ms, reply.endpoint))

    async def _all[A, T](self, call: Callable[[A], Awaitable[T]], items: list[A]) -> list[T]:
        """All results in order, so many at once; the first failure ends the others."""
        results: dict[int, T] = {}
        waiting = iter(enumerate(items))

        async def work() -> None:
            for number, item in waiting:
                results[number] = await call(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(items))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [results[number] for number in range(len(items))]


def _closed(page: KlineColumns, now_ms: int) -> KlineColumns:
    keep = page["close_time_ms"] < now_ms
    return page if keep.all() else {name: values[keep] for name, values in page.items()}


def _in_order(pieces: list[KlineColumns]) -> KlineColumns:
    """Ascending, each open time once."""
    joint = joined(pieces)
    opens = joint["open_time_ms"]
    if (np.diff(opens) > 0).all():
        return joint
    _, unique = np.unique(opens, return_index=True)
    return {name: values[unique] for name, values in joint.items()}


def _is_unbroken(rows: np.ndarray, first_id: int) -> bool:
    ids = rows["agg_trade_id"]
    return not len(ids) or (int(ids[0]) == first_id and int(ids[-1]) == first_id + len(ids) - 1)


def first_open_ms(time_ms: int, interval: str) -> int:
    """Open time of the first candle that opens at or after a time."""
    opened = int(open_times_ms(np.array([time_ms]), interval)[0])
    return opened if opened == time_ms else next_open_ms(opened, interval)
