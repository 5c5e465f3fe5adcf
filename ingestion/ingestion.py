"""``DataIngestion``: closed klines of many symbols and intervals, from REST into daily files.

Consumes a stretch of time → produces ``raw/<interval>/<SYMBOL>_<interval>_<YYYYMMDD>.parquet`` with
every closed candle of it. Only what is not stored is asked for, so an interrupted call goes on where
it stood; what the exchange does not have is written down as absent, neither taken for a gap nor
asked for again. One process at a time ingests into a data folder.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from binance_api.rest import RestClient
from domain.errors import OrderFlowError
from domain.intervals import DAY_MS, INTERVAL_MS
from domain.market import Market
from domain.times import When, time_ms
from ingestion.day_files import DayFiles
from ingestion.ingest_run import IngestionSettings, IngestRun, IntervalReport, Timing
from ingestion.kline_gaps import KlineGap, closed_before_ms
from lake.lock import FolderLock
from lake.paths import LakePaths

if TYPE_CHECKING:
    from config import Settings

DEFAULT_INTERVALS: Final = ("15m", "30m", "1h", "4h", "1d", "1w")
DEFAULT_DAYS: Final = 7.0

type Progress = Callable[[int, int], None]
"""Told how many of how many batches are done."""


def _no_progress(_done: int, _of: int) -> None: ...


class DataIngestion:
    """Fills a data folder with closed klines.

    Args:
        settings: Where from and where to; ``None``: as the environment and ``.env`` say.
        rest: A REST client that is open already; ``None``: one is opened for each call.
        ingestion: Pages and concurrency; ``None``: as many requests at once as the settings allow.
        timing: Clocks; the system's.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        rest: RestClient | None = None,
        ingestion: IngestionSettings | None = None,
        timing: Timing | None = None,
    ) -> None:
        if settings is None:
            from config import Settings  # noqa: PLC0415 - a script's default, not a part's way in

            settings = Settings()
        self._symbols: tuple[str, ...] = settings.symbols
        self._market: Market = settings.market
        self._paths: LakePaths = settings.paths
        self._rest_settings = settings.rest_settings
        at_once = self._rest_settings.concurrency - self._rest_settings.urgent_slots
        self._settings = ingestion or IngestionSettings(concurrency=at_once)
        self._rest = rest
        self._timing = timing or Timing()
        self._lock = FolderLock(self._paths.root, "ingestion")
        self._calls = 0  # under way: they share the lock
        self._clock_offset_ms = 0
        self._counts = {"rows": 0, "requests": 0, "calls": 0}

    @property
    def clock_offset_ms(self) -> int:
        """The exchange's clock minus ours, as of the last call."""
        return self._clock_offset_ms

    def statistics(self) -> dict[str, int | float | str | None]:
        """Calls finished, candles written, pages asked for."""
        return {**self._counts, "clock_offset_ms": self._clock_offset_ms}

    async def ingest_timeframe(
        self,
        interval: str,
        start: When = None,
        end: When = None,
        *,
        days: float | None = None,
        symbols: Sequence[str] | None = None,
        on_progress: Progress = _no_progress,
    ) -> IntervalReport:
        """Store every closed candle that opens in ``[start, end)``.

        Args:
            interval: Such as ``1h``; any the exchange has.
            start: UTC ms, ISO text or a datetime, without a zone UTC; ``None``: a week before the
                end.
            end: The same, exclusive; ``None`` or later than now means now, by the exchange's clock.
            days: Instead of ``start``: so many days before the end.
            symbols: In any case; ``None``: the settings'.
            on_progress: Told batches done and batches in all.

        Raises:
            ValueError: An unknown interval, or an end that is not after the start.
            ExchangeError: A request failed for good; what was written stands.
            FolderInUse: Another process ingests into this data folder.
            StorageError: The disk refused.
        """
        reports = await self.ingest(
            [interval], start, end, days=days, symbols=symbols, on_progress=on_progress
        )
        return reports[0]

    async def ingest(
        self,
        intervals: Sequence[str] = DEFAULT_INTERVALS,
        start: When = None,
        end: When = None,
        *,
        days: float | None = None,
        symbols: Sequence[str] | None = None,
        ask_again: bool = False,
        on_progress: Progress = _no_progress,
    ) -> list[IntervalReport]:
        """Like ``ingest_timeframe`` for several intervals at once, a queue for each of them.

        Args:
            intervals: Such as ``15m``.
            start, end, days, symbols: As in ``ingest_timeframe``.
            ask_again: Also for candles the exchange did not have the last time.
            on_progress: As in ``ingest_timeframe``.
        """
        for interval in intervals:
            _check_interval(interval)
        names = _names(symbols, self._symbols)
        asked_ms = _checked_range(start, end, days)
        async with self._run(on_progress) as run:
            now_ms = await self._exchange_time_ms(run)
            start_ms, end_ms = _complete_range(asked_ms, days, now_ms)
            return self._counted(
                await run.ingest(intervals, names, start_ms, end_ms, now_ms, ask_again=ask_again)
            )

    async def learn_clock(self) -> None:
        """Ask the exchange what time it is; every ingestion does so as well.

        Raises:
            ExchangeError: It does not answer.
        """
        async with self._run(_no_progress) as run:
            await self._exchange_time_ms(run)

    def check_gaps(
        self,
        interval: str,
        start: When,
        end: When = None,
        *,
        symbols: Sequence[str] | None = None,
    ) -> list[KlineGap]:
        """Closed candles that are missing in ``[start, end)``, as far as the files tell.

        Candles before the listing's first one are none; those the exchange does not have either are
        told with ``at_exchange``. Asks nobody; blocks on the disk.

        Raises:
            ValueError: An unknown interval, or an end that is not after the start.
        """
        _check_interval(interval)
        now_ms = int(self._timing.wall_s() * 1_000) + self._clock_offset_ms
        start_ms, end_ms = _complete_range(_checked_range(start, end, None), None, now_ms)
        closed_ms = closed_before_ms(interval, end_ms, now_ms)
        found: list[KlineGap] = []
        for symbol in _names(symbols, self._symbols):
            files = DayFiles(self._paths, symbol, interval, self._market)
            found += files.gaps(start_ms, closed_ms)
        return found

    async def backfill(
        self, interval: str, gaps: Iterable[KlineGap], *, ask_again: bool = False
    ) -> list[IntervalReport]:
        """Ask for what ``check_gaps`` found; one report per gap asked for.

        Args:
            interval: Of the gaps.
            gaps: What to ask for.
            ask_again: Also for candles the exchange did not have the last time.
        """
        _check_interval(interval)
        wanted = [
            gap for gap in gaps if gap.interval == interval and (ask_again or not gap.at_exchange)
        ]
        reports: list[IntervalReport] = []
        async with self._run(_no_progress) as run:
            now_ms = await self._exchange_time_ms(run)
            for gap in wanted:
                reports += await run.ingest(
                    [interval], [gap.symbol], gap.start_ms, gap.end_ms, now_ms, ask_again=ask_again
                )
        return self._counted(reports)

    @asynccontextmanager
    async def _run(self, on_progress: Progress) -> AsyncIterator[IngestRun]:
        """The lock, a client and a run; of several errors at once the first of ours is raised."""
        if not self._calls:
            self._lock.acquire()
        self._calls += 1
        try:
            async with self._client() as rest:
                yield IngestRun(
                    rest, self._paths, self._market, self._settings, on_progress, self._timing
                )
        except BaseExceptionGroup as group:
            first = _first_of_ours(group)
            if first is None:
                raise
            raise first from group
        finally:
            self._calls -= 1
            if not self._calls:
                self._lock.release()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[RestClient]:
        if self._rest is not None:
            yield self._rest
            return
        async with RestClient(self._rest_settings) as rest:
            yield rest

    async def _exchange_time_ms(self, run: IngestRun) -> int:
        now_ms = await run.now_ms()
        self._clock_offset_ms = now_ms - int(self._timing.wall_s() * 1_000)
        return now_ms

    def _counted(self, reports: list[IntervalReport]) -> list[IntervalReport]:
        self._counts["calls"] += 1
        self._counts["rows"] += sum(report.rows for report in reports)
        self._counts["requests"] += sum(report.requests for report in reports)
        return reports


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> OrderFlowError | None:
    """The first of our errors; ``None`` if there is another one, which must not be hidden."""
    ours, others = group.split(OrderFlowError)
    if ours is None or others is not None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, OrderFlowError) else None


def _check_interval(interval: str) -> None:
    if interval not in INTERVAL_MS:
        raise ValueError(f"unknown interval {interval!r}; there are {', '.join(INTERVAL_MS)}")


def _checked_range(start: When, end: When, days: float | None) -> tuple[int | None, int | None]:
    start_ms, end_ms = time_ms(start), time_ms(end)
    if start_ms is not None and days is not None:
        raise ValueError("a start and a number of days exclude each other")
    if days is not None and not 0 < days <= 100_000:
        raise ValueError("the number of days must be more than 0, and at most 100000")
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise ValueError("the end must lie after the start")
    return start_ms, end_ms


def _complete_range(
    asked_ms: tuple[int | None, int | None], days: float | None, now_ms: int
) -> tuple[int, int]:
    """Start and end, with what was left open."""
    start_ms, end_ms = asked_ms
    if end_ms is None:
        end_ms = now_ms
    if start_ms is None:
        start_ms = end_ms - int((DEFAULT_DAYS if days is None else days) * DAY_MS)
    if end_ms <= start_ms:
        at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_ms / 1_000))
        raise ValueError(f"the start lies in the future: the exchange's clock says {at}")
    return max(start_ms, 0), end_ms


def _names(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(symbol.strip().upper() for symbol in (given or default)))
    if not all(names):
        raise ValueError("a symbol must not be empty")
    return names
