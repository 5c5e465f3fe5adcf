"""``DataIngestion``: closed klines of many symbols and intervals, from REST into daily files.

Consumes a stretch of time → produces ``raw/<interval>/<SYMBOL>_<interval>_<YYYYMMDD>.parquet`` with
every closed candle of it. Only what is not stored is asked for, in pages, so an interrupted run goes
on where it stood; a candle that a page lacks is asked for again, and what the exchange does not have
either is written down as absent, so that it is neither taken for a gap nor asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from binance_api.errors import ExchangeError, RateLimited
from binance_api.rest import RestClient, RestSettings
from domain.intervals import INTERVAL_MS, next_open_ms
from domain.market import Kline, Market
from domain.times import When, time_ms
from ingestion.day_files import DayFiles, Fetched
from ingestion.kline_gaps import KlineGap, expected_opens, runs
from lake.paths import LakePaths

if TYPE_CHECKING:
    from config import Settings

log = structlog.get_logger()

PAGE_BARS: Final = 500  # weight 2: the most candles per weight the exchange offers
_TRIES = 2  # replies that must lack a candle before it counts as absent at the exchange
_EPOCH_MS: Final = 0
_SETTLED_MS: Final = 3_600_000  # a younger candle that REST lacks may still come: it stays missing


class KlineReply(Protocol):
    """What the REST client answers with."""

    @property
    def value(self) -> list[Kline]: ...
    @property
    def latency_ms(self) -> float: ...
    @property
    def fetched_at_ms(self) -> int: ...
    @property
    def endpoint(self) -> str: ...


class IngestionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    concurrency: requests under way at once, of all intervals.
    page_bars: candles per request.
    """

    concurrency: int = 6
    page_bars: int = PAGE_BARS


class IntervalReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one call did for one interval.

    Attributes:
        interval: Of the candles.
        symbols: Whose.
        rows: New candles written.
        requests: Pages asked for.
        absent: Candles the exchange does not have (a halt, or before the listing's first candle: not counted).
        gaps: What is still missing.
        elapsed_s: Wall time.
    """

    interval: str
    symbols: tuple[str, ...]
    rows: int
    requests: int
    absent: int
    gaps: tuple[KlineGap, ...]
    elapsed_s: float


class _Job(msgspec.Struct, frozen=True):
    """One page to ask for."""

    symbol: str
    interval: str
    start_ms: int
    end_ms: int
    opens: tuple[int, ...]


class DataIngestion:
    """Fills a data folder with closed klines.

    Args:
        settings: Where from and where to; ``None``: as the environment and ``.env`` say.
        rest: A REST client that is open already; ``None``: one is opened for each call.
        ingestion: Pages and concurrency.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        rest: RestClient | None = None,
        ingestion: IngestionSettings | None = None,
    ) -> None:
        if settings is None:
            from config import Settings  # noqa: PLC0415 - a script's default, not a part's way in

            settings = Settings()
        self._symbols: tuple[str, ...] = settings.symbols
        self._market: Market = settings.market
        self._paths: LakePaths = settings.paths
        self._settings = ingestion or IngestionSettings()
        self._rest_settings = RestSettings(
            market=settings.market,
            base_url=settings.rest_url,
            weight_limit=settings.binance_rate_limit_weight,
            concurrency=self._settings.concurrency + 2,
        )
        self._rest = rest
        self._first_bars: dict[str, int] = {}

    async def ingest_timeframe(
        self,
        interval: str,
        start: When,
        end: When,
        *,
        symbols: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> IntervalReport:
        """Store every closed candle that opens in ``[start, end)``.

        Args:
            interval: Such as ``1h``; any the exchange has.
            start: UTC ms, ISO text or a datetime; without a zone it is UTC.
            end: The same, exclusive; later than now means now.
            symbols: In any case; ``None``: the settings'.
            on_progress: Told pages done and pages in all.

        Raises:
            ValueError: An unknown interval, or an end that is not after the start.
            ExchangeError: A request failed for good; what was written stands.
            StorageError: The disk refused.
        """
        return (
            await self.ingest([interval], start, end, symbols=symbols, on_progress=on_progress)
        )[0]

    async def ingest(
        self,
        intervals: Sequence[str],
        start: When,
        end: When,
        *,
        symbols: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> list[IntervalReport]:
        """Like ``ingest_timeframe`` for several intervals at once, a queue for each of them."""
        for interval in intervals:
            _check_interval(interval)
        start_ms, end_ms = _checked_range(start, end)
        names = _names(symbols, self._symbols)
        async with self._client() as rest:
            run = _Run(rest, self._paths, self._market, self._settings, on_progress)
            now_ms = (await rest.time()).value
            return await run.ingest(intervals, names, start_ms, end_ms, now_ms)

    def check_gaps(
        self, interval: str, start: When, end: When, *, symbols: Sequence[str] | None = None
    ) -> list[KlineGap]:
        """What is missing in ``[start, end)``, as far as the files tell. Blocks on the disk.

        Candles before the listing's first one are none; those the exchange does not have either are
        told with ``at_exchange``.
        """
        _check_interval(interval)
        start_ms, end_ms = _checked_range(start, end)
        found: list[KlineGap] = []
        for symbol in _names(symbols, self._symbols):
            files = DayFiles(self._paths, symbol, interval, self._market)
            found += files.gaps(start_ms, end_ms)
        return found

    async def backfill(
        self, interval: str, gaps: Iterable[KlineGap], *, ask_again: bool = False
    ) -> list[IntervalReport]:
        """Ask for what ``check_gaps`` found.

        Args:
            interval: Of the gaps.
            gaps: What to ask for.
            ask_again: Also for candles the exchange did not have the last time.
        """
        reports = []
        for gap in gaps:
            if gap.interval != interval or (gap.at_exchange and not ask_again):
                continue
            if gap.at_exchange:
                files = DayFiles(self._paths, gap.symbol, interval, self._market)
                await asyncio.to_thread(files.forget_absent, gap.start_ms, gap.end_ms)
            reports += await self.ingest([interval], gap.start_ms, gap.end_ms, symbols=[gap.symbol])
        return reports

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[RestClient]:
        async with AsyncExitStack() as stack:
            rest = self._rest
            if rest is None:
                rest = await stack.enter_async_context(RestClient(self._rest_settings))
            yield rest


class _Run:
    """One call: its queues, and what it counted."""

    def __init__(
        self,
        rest: RestClient,
        paths: LakePaths,
        market: Market,
        settings: IngestionSettings,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._rest = rest
        self._paths = paths
        self._market = market
        self._settings = settings
        self._on_progress = on_progress
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._pages = 0
        self._pages_done = 0

    async def ingest(
        self,
        intervals: Sequence[str],
        symbols: Sequence[str],
        start_ms: int,
        end_ms: int,
        now_ms: int,
    ) -> list[IntervalReport]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._interval(interval, symbols, start_ms, min(end_ms, now_ms), now_ms),
                    name=f"ingest-{interval}",
                )
                for interval in dict.fromkeys(intervals)
            ]
        return [task.result() for task in tasks]

    async def _interval(
        self, interval: str, symbols: Sequence[str], start_ms: int, end_ms: int, now_ms: int
    ) -> IntervalReport:
        """One interval's queue: pages in time order, as many at once as slots are free."""
        begun = time.monotonic()
        counts = {"rows": 0, "requests": 0, "absent": 0}
        closed_ms = _closed_before(interval, end_ms, now_ms)
        files = {s: DayFiles(self._paths, s, interval, self._market) for s in symbols}
        queue: asyncio.Queue[_Job] = asyncio.Queue()
        for symbol in symbols:
            for job in await self._plan(files[symbol], symbol, interval, start_ms, closed_ms):
                queue.put_nowait(job)
        self._pages += queue.qsize()

        async def work() -> None:
            while not queue.empty():
                job = queue.get_nowait()
                async with self._slots:
                    await self._page(job, files[job.symbol], now_ms, counts)
                self._pages_done += 1
                self._on_progress(self._pages_done, self._pages)

        async with asyncio.TaskGroup() as group:
            for number in range(min(self._settings.concurrency, queue.qsize())):
                group.create_task(work(), name=f"ingest-{interval}-{number}")
        gaps: list[KlineGap] = []
        for symbol in symbols:
            gaps += await asyncio.to_thread(files[symbol].gaps, start_ms, closed_ms)
        return IntervalReport(
            interval=interval,
            symbols=tuple(symbols),
            gaps=tuple(gap for gap in gaps if not gap.at_exchange),
            elapsed_s=round(time.monotonic() - begun, 3),
            **counts,
        )

    async def _plan(
        self, files: DayFiles, symbol: str, interval: str, start_ms: int, closed_ms: int
    ) -> list[_Job]:
        """The pages that hold what is neither stored nor absent."""
        if closed_ms <= start_ms:
            return []
        first_ms = await asyncio.to_thread(files.first_bar_ms)
        if first_ms is None:
            first_ms = await self._first_bar(symbol, interval)
            await asyncio.to_thread(files.remember_first_bar, first_ms)
        begin_ms = max(start_ms, first_ms)
        missing = await asyncio.to_thread(files.missing, begin_ms, closed_ms)
        jobs = []
        for run_start, run_end, _ in runs(missing, interval):
            inside = missing[(missing >= run_start) & (missing < run_end)]
            for at in range(0, len(inside), self._settings.page_bars):
                opens = inside[at : at + self._settings.page_bars].tolist()
                jobs.append(
                    _Job(
                        symbol, interval, opens[0], next_open_ms(opens[-1], interval), tuple(opens)
                    )
                )
        return jobs

    async def _first_bar(self, symbol: str, interval: str) -> int:
        """Open time of the listing's first candle."""
        reply = await self._asked(symbol, interval, _EPOCH_MS, None, 1)
        return reply.value[0].open_time_ms if reply.value else _EPOCH_MS

    async def _page(self, job: _Job, files: DayFiles, now_ms: int, counts: dict[str, int]) -> None:
        """Ask for one page, again for what it lacks, and write it."""
        wanted = set(job.opens)
        bars: dict[int, Kline] = {}
        reply: KlineReply | None = None
        for _ in range(_TRIES):
            lacking = sorted(wanted - bars.keys())
            if not lacking:
                break
            last_ms = next_open_ms(lacking[-1], job.interval) - 1
            limit = max(1, (last_ms - lacking[0]) // INTERVAL_MS[job.interval] + 1)
            limit = min(limit, self._settings.page_bars)
            reply = await self._asked(job.symbol, job.interval, lacking[0], last_ms, limit)
            counts["requests"] += 1
            bars |= {k.open_time_ms: k for k in reply.value if k.open_time_ms in wanted}
        if reply is None:
            return
        lacking = sorted(wanted - bars.keys())
        absent = [at for at in lacking if at < now_ms - INTERVAL_MS[job.interval] - _SETTLED_MS]
        fetched = Fetched(
            bars=tuple(bars[at] for at in sorted(bars)),
            absent=tuple(absent),
            latency_ms=reply.latency_ms,
            fetched_at_ms=reply.fetched_at_ms,
            endpoint=reply.endpoint,
        )
        counts["rows"] += await asyncio.to_thread(files.add, fetched)
        counts["absent"] += len(absent)
        log.info(
            "ingestion.batch",
            interval=job.interval,
            symbol=job.symbol,
            from_ms=job.start_ms,
            until_ms=job.end_ms,
            rows=len(bars),
            absent=len(lacking),
            latency_ms=round(reply.latency_ms, 1),
            status="ok" if not lacking else "incomplete at the exchange",
        )

    async def _asked(
        self, symbol: str, interval: str, start_ms: int, end_ms: int | None, limit: int
    ) -> KlineReply:
        """Ask for candles; a refusal is waited out, for as long as the exchange says."""
        while True:
            try:
                return await self._rest.klines(symbol, interval, start_ms, end_ms, limit)
            except RateLimited as error:
                wait_s = error.retry_after_s if error.retry_after_s is not None else 60.0
                log.warning(
                    "ingestion.waiting",
                    interval=interval,
                    symbol=symbol,
                    reason=str(error),
                    seconds=round(wait_s, 1),
                    until=time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + wait_s)),
                )
                await asyncio.sleep(wait_s)
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


def _closed_before(interval: str, end_ms: int, now_ms: int) -> int:
    """Candles that open before this are closed by the exchange's clock (and open before the end)."""
    opens = expected_opens(interval, max(0, now_ms - 2 * INTERVAL_MS[interval]), now_ms + 1)
    still_open = [int(at) for at in opens if next_open_ms(int(at), interval) > now_ms]
    return min(end_ms, min(still_open, default=end_ms))


def _check_interval(interval: str) -> None:
    if interval not in INTERVAL_MS:
        raise ValueError(f"unknown interval {interval!r}; there are {', '.join(INTERVAL_MS)}")


def _checked_range(start: When, end: When) -> tuple[int, int]:
    start_ms, end_ms = time_ms(start), time_ms(end)
    if start_ms is None or end_ms is None:
        raise ValueError("start and end are both needed")
    if end_ms <= start_ms:
        raise ValueError("the end must lie after the start")
    return start_ms, end_ms


def _names(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(symbol.strip().upper() for symbol in (given or default)))
    if not all(names):
        raise ValueError("a symbol must not be empty")
    return names
