"""One call of the ingestion: a queue per interval, batches of whole days, refusals waited out.

Consumes intervals, symbols and a stretch of time → asks the REST client for what the daily files
lack and writes it. A candle that a reply lacks is asked for again after a pause; what two replies
lack is absent at the exchange. Written days stay whatever happens later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import structlog

from binance_api.errors import Banned, ExchangeError, InvalidSymbol, RateLimited
from binance_api.kline_columns import KlineColumns, empty_columns, joined
from binance_api.rest import Reply, RestClient
from domain.intervals import INTERVAL_MS, next_open_ms
from domain.market import Market
from ingestion.day_files import DayFiles, Fetched
from ingestion.kline_gaps import KlineGap, batches, closed_before_ms, pages
from lake.kline_files import TIME_COLUMN
from lake.paths import DAY_MS, LakePaths

log = structlog.get_logger()

TRADING: Final = "TRADING"  # the status of a symbol whose market is open
_EPOCH_MS: Final = 0
_SETTLED_MS: Final = DAY_MS  # a younger candle that REST lacks may still come: it stays missing


class IngestionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How candles are asked for.

    Attributes:
        concurrency: Batches under way at once, of all intervals.
        page_bars: Candles per request; 500 weigh 2, the most per weight the exchange offers.
        attempts: Replies that must lack a candle before it is absent at the exchange.
        again_after_s: Pause before a lacking candle is asked for again.
    """

    concurrency: int = 6
    page_bars: int = 500
    attempts: int = 2
    again_after_s: float = 0.5


class IntervalReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one call did for one interval.

    Attributes:
        interval: Of the candles.
        symbols: Whose.
        rows: New candles written.
        requests: Pages asked for.
        gaps: What lacks in the stretch asked for; ``at_exchange`` where the exchange has it neither.
        elapsed_s: Wall time.
    """

    interval: str
    symbols: tuple[str, ...]
    rows: int
    requests: int
    gaps: tuple[KlineGap, ...]
    elapsed_s: float

    @property
    def missing(self) -> int:
        """Candles that the exchange may still give."""
        return sum(gap.bar_count for gap in self.gaps if not gap.at_exchange)

    @property
    def absent(self) -> int:
        """Candles that the exchange does not have."""
        return sum(gap.bar_count for gap in self.gaps if gap.at_exchange)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Clocks of a run: replaced where time is simulated."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    wall_s: Callable[[], float] = time.time


class _Batch(msgspec.Struct, frozen=True):
    """Candles to ask for and write together."""

    symbol: str
    opens: np.ndarray
    is_listed: bool  # the listing's first candle is known: what lacks after it is no early date


class IngestRun:
    """Asks and writes; one object per call.

    Args:
        rest: An open client.
        paths: Where files lie.
        market: Named in the files.
        settings: See ``IngestionSettings``.
        on_progress: Told batches done and batches in all.
        timing: See ``Timing``.
    """

    def __init__(
        self,
        rest: RestClient,
        paths: LakePaths,
        market: Market,
        settings: IngestionSettings,
        on_progress: Callable[[int, int], None],
        timing: Timing,
    ) -> None:
        self._rest = rest
        self._paths = paths
        self._market = market
        self._settings = settings
        self._on_progress = on_progress
        self._timing = timing
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._planned = 0
        self._done = 0
        self._waiting_until_s = 0.0
        self._statuses: dict[str, str] | None = None

    async def now_ms(self) -> int:
        """The exchange's time."""
        return (await self._patiently(self._rest.time)).value

    async def ingest(
        self,
        intervals: Sequence[str],
        symbols: Sequence[str],
        start_ms: int,
        end_ms: int,
        now_ms: int,
        *,
        ask_again: bool = False,
    ) -> list[IntervalReport]:
        """Bring the daily files up to date for candles that open in ``[start_ms, end_ms)``.

        Args:
            intervals: Each gets a queue of its own.
            symbols: Whose.
            start_ms, end_ms: The stretch.
            now_ms: The exchange's time: candles still open then are left out.
            ask_again: Also for what the exchange did not have the last time.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._interval(
                        interval, symbols, start_ms, end_ms, now_ms, ask_again=ask_again
                    ),
                    name=f"ingest-{interval}",
                )
                for interval in dict.fromkeys(intervals)
            ]
        return [task.result() for task in tasks]

    async def _interval(
        self,
        interval: str,
        symbols: Sequence[str],
        start_ms: int,
        end_ms: int,
        now_ms: int,
        *,
        ask_again: bool,
    ) -> IntervalReport:
        begun = time.monotonic()
        counts = {"rows": 0, "requests": 0}
        closed_ms = closed_before_ms(interval, end_ms, now_ms)
        files = {s: DayFiles(self._paths, s, interval, self._market) for s in symbols}
        queue: asyncio.Queue[_Batch] = asyncio.Queue()
        for symbol in symbols:
            await self._plan(files[symbol], symbol, interval, start_ms, closed_ms, ask_again, queue)
        self._planned += queue.qsize()

        async def work() -> None:
            while not queue.empty():
                batch = queue.get_nowait()
                async with self._slots:
                    await self._batch(batch, interval, files[batch.symbol], now_ms, counts)
                self._done += 1
                self._on_progress(self._done, self._planned)

        async with asyncio.TaskGroup() as group:
            for number in range(min(self._settings.concurrency, queue.qsize())):
                group.create_task(work(), name=f"ingest-{interval}-{number}")
        gaps = await self._gaps(files, start_ms, closed_ms)
        report = IntervalReport(
            interval=interval,
            symbols=tuple(symbols),
            gaps=tuple(gaps),
            elapsed_s=round(time.monotonic() - begun, 3),
            **counts,
        )
        log.info(
            "ingestion.interval",
            interval=interval,
            symbols=len(symbols),
            rows=report.rows,
            requests=report.requests,
            missing=report.missing,
            absent=report.absent,
            elapsed_s=report.elapsed_s,
        )
        return report

    # --- planning -----------------------------------------------------------------------------

    async def _plan(
        self,
        files: DayFiles,
        symbol: str,
        interval: str,
        start_ms: int,
        closed_ms: int,
        ask_again: bool,  # noqa: FBT001 - one caller
        queue: asyncio.Queue[_Batch],
    ) -> None:
        """Queue the batches of what is not stored, oldest first."""
        if closed_ms <= start_ms:
            return
        first_ms = await asyncio.to_thread(files.first_bar_ms)
        if first_ms is None:
            first_ms = await self._first_bar_ms(symbol, interval)
            if first_ms is not None:
                await _in_thread(lambda: files.remember_first_bar(first_ms))
        begin_ms = start_ms if first_ms is None else max(start_ms, first_ms)
        missing, absent = await asyncio.to_thread(files.lacking, begin_ms, closed_ms)
        if ask_again:
            missing = np.union1d(missing, absent)
        for opens in batches(missing, interval, self._settings.page_bars):
            queue.put_nowait(_Batch(symbol, opens, first_ms is not None))

    async def _first_bar_ms(self, symbol: str, interval: str) -> int | None:
        """Open time of the listing's first candle; ``None`` if the exchange shows none."""
        for attempt in range(self._settings.attempts):
            if attempt:
                await self._timing.sleep(self._settings.again_after_s)
            reply = await self._asked(symbol, interval, _EPOCH_MS, None, 1)
            if len(reply.value[TIME_COLUMN]):
                return int(reply.value[TIME_COLUMN][0])
        log.warning("ingestion.no_first_bar", symbol=symbol, interval=interval)
        return None

    # --- one batch ----------------------------------------------------------------------------

    async def _batch(
        self, batch: _Batch, interval: str, files: DayFiles, now_ms: int, counts: dict[str, int]
    ) -> None:
        """Ask for a batch page by page, again for what it lacks, and write it."""
        replies: list[Reply[KlineColumns]] = []
        found, lacking = empty_columns(), batch.opens
        for attempt in range(self._settings.attempts):
            if attempt:
                await self._timing.sleep(self._settings.again_after_s)
            for start_ms, last_ms, limit in pages(lacking, interval, self._settings.page_bars):
                replies.append(await self._asked(batch.symbol, interval, start_ms, last_ms, limit))
            found = _wanted(joined([reply.value for reply in replies]), batch.opens)
            lacking = np.setdiff1d(batch.opens, found[TIME_COLUMN])
            if not len(lacking):
                break
        settled_ms = now_ms - INTERVAL_MS[interval] - _SETTLED_MS
        absent = lacking[lacking < settled_ms] if batch.is_listed else lacking[:0]
        fetched = Fetched(
            columns=found,
            absent=absent,
            latency_ms=max(reply.latency_ms for reply in replies),
            fetched_at_ms=replies[-1].fetched_at_ms,
            endpoint=replies[-1].endpoint,
        )
        added = await _in_thread(lambda: files.add(fetched))
        counts["rows"] += added
        counts["requests"] += len(replies)
        log.info(
            "ingestion.batch",
            interval=interval,
            symbol=batch.symbol,
            from_ms=int(batch.opens[0]),
            until_ms=next_open_ms(int(batch.opens[-1]), interval),
            rows=len(found[TIME_COLUMN]),
            lacking=len(lacking),
            requests=len(replies),
            latency_ms=round(fetched.latency_ms, 1),
            status="incomplete" if len(lacking) else "ok",
        )

    async def _gaps(
        self, files: dict[str, DayFiles], start_ms: int, closed_ms: int
    ) -> list[KlineGap]:
        """What still lacks; candles that a halted market cannot have are the exchange's."""
        found: list[KlineGap] = []
        for of_symbol in files.values():
            found += await asyncio.to_thread(of_symbol.gaps, start_ms, closed_ms)
        if all(gap.at_exchange for gap in found):
            return found
        if self._statuses is None:
            self._statuses = await self._market_statuses()
        halted = {s for s, status in self._statuses.items() if status != TRADING} & set(files)
        for symbol in sorted(halted):
            log.warning("ingestion.halted", symbol=symbol, status=self._statuses[symbol])
        return [
            msgspec.structs.replace(gap, at_exchange=gap.at_exchange or gap.symbol in halted)
            for gap in found
        ]

    async def _market_statuses(self) -> dict[str, str]:
        """Symbol → status; nothing where the exchange does not say."""
        try:
            reply = await self._patiently(self._rest.exchange_info)
        except ExchangeError as error:
            log.warning("ingestion.no_exchange_info", reason=str(error))
            return {}
        return {symbol: info.status for symbol, info in reply.value.items()}

    # --- asking -------------------------------------------------------------------------------

    async def _asked(
        self, symbol: str, interval: str, start_ms: int, end_ms: int | None, limit: int
    ) -> Reply[KlineColumns]:
        try:
            return await self._patiently(
                lambda: self._rest.kline_columns(symbol, interval, start_ms, end_ms, limit)
            )
        except InvalidSymbol as error:
            raise InvalidSymbol(
                f"{symbol} is not known to the exchange ({self._market.value} market)",
                endpoint=error.endpoint,
                status=error.status,
                code=error.code,
            ) from error
        except ExchangeError as error:
            log.error(
                "ingestion.batch",
                interval=interval,
                symbol=symbol,
                from_ms=start_ms,
                until_ms=end_ms,
                rows=0,
                status=str(error),
            )
            raise

    async def _patiently[T](self, ask: Callable[[], Awaitable[Reply[T]]]) -> Reply[T]:
        """Ask; a refusal is waited out for as long as the exchange says, however long that is."""
        while True:
            try:
                return await ask()
            except RateLimited as error:
                await self._wait(error)

    async def _wait(self, error: RateLimited) -> None:
        """Wait as told; the first of all waiting requests says until when."""
        until_s = self._timing.wall_s() + error.retry_after_s
        if until_s > self._waiting_until_s + 1.0:
            self._waiting_until_s = until_s
            log.warning(
                "ingestion.waiting",
                reason="banned" if isinstance(error, Banned) else "request weight spent",
                seconds=round(error.retry_after_s, 1),
                until=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(until_s)),
                text=str(error),
            )
        await self._timing.sleep(error.retry_after_s)


def _wanted(columns: KlineColumns, opens: np.ndarray) -> KlineColumns:
    """The candles that open at these times, each once, oldest first."""
    times, first = np.unique(columns[TIME_COLUMN], return_index=True)
    rows = first[np.isin(times, opens)]
    return {name: values[rows] for name, values in columns.items()}


async def _in_thread[T](work: Callable[[], T]) -> T:
    """Run ``work`` to its end in a thread, even when cancelled: half a batch helps nobody."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # told by whoever tries again
        raise
