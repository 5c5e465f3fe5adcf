"""``ingest --schedule``: ingests as candles close, curates what came in, recommends once a day.

Consumes a ``Schedule`` and the exchange's clock → runs what is due, one run after the other; what a
run did is kept in ``schedule.json``, so that a restart or a sleep is caught up once. A run that
fails is tried again; only bad configuration and a refusing disk end it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from binance_api.errors import ExchangeError
from binance_api.rest import RestClient
from domain.errors import FolderInUse
from domain.events import Signal
from domain.intervals import DAY_MS
from ingestion.curation import DataCuration
from ingestion.ingestion import DataIngestion
from ingestion.recommendation import Analyst, DailyRecommendation
from ingestion.schedule import RECOMMENDATION, Schedule, minute_of_day
from lake.atomic import write_atomic
from lake.lock import FolderLock

if TYPE_CHECKING:
    from config import Settings

log = structlog.get_logger()

FIRST_DAYS: Final = 60.0  # of a first run: the look-backs of the daily recommendation
_RETRY_S: Final = 60.0
_LONGEST_SLEEP_S: Final = 30.0  # a machine that slept is noticed after this long
_USAGE: Final = 2  # exit code of errors that no later run can mend

type Recommend = Callable[[int, int], Awaitable[object]]
"""Given the due time and the exchange's time, recommends."""


type Read = Callable[[], dict[str, float | int | str | None]]
"""Statistics of all parts, flat."""


class Follower:
    """Runs what is due.

    Args:
        ingestion: Fetches.
        curation: Curates what came in.
        schedule: What is due when.
        recommend: The daily recommendation; ``None``: none.
        state: File that remembers what was done.
        days: Look-back of an interval's first run.
        wall_ms: Our clock; the exchange's is told by ``ingestion``.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        ingestion: DataIngestion,
        curation: DataCuration,
        schedule: Schedule,
        *,
        recommend: Recommend | None,
        state: Path,
        days: float = FIRST_DAYS,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ingestion = ingestion
        self._curation = curation
        self._schedule = schedule
        self._recommend = recommend
        self._state = state
        self._days = days
        self._wall_ms = wall_ms
        self._sleep = sleep
        self._done = _remembered(state)
        self._knows_time = False
        self._is_failing = False
        self._counts = {"runs": 0, "failures": 0, "recommendations": 0, "looks": 0}

    def statistics(self) -> dict[str, int | float | str | None]:
        """Runs, failed ones, recommendations, looks at the clock, and when the last run was due."""
        last_due_ms = max(self._done.values(), default=None)
        return {**self._counts, "is_failing": int(self._is_failing), "last_due_ms": last_due_ms}

    def now_ms(self) -> int:
        """The exchange's time."""
        return self._wall_ms() + self._ingestion.clock_offset_ms

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            is_done = await self.run_due()
            now_ms = self.now_ms()
            until_ms = now_ms + int(_RETRY_S * 1_000)
            if is_done:  # what fell due while the run lasted is done at once
                is_late = self._schedule.due(now_ms, self._done)
                until_ms = now_ms if is_late else self._schedule.next_ms(now_ms)
            log.info("schedule.waiting", seconds=(until_ms - now_ms) // 1_000)
            while (left_s := (until_ms - self.now_ms()) / 1_000) > 0:
                self._counts["looks"] += 1
                await self._sleep(min(left_s, _LONGEST_SLEEP_S))

    async def run_due(self) -> bool:
        """Do what is due now, if anything; False if it has to be tried again.

        Raises:
            ExchangeError: The exchange does not know a symbol or an interval.
            StorageError: The disk refused.
        """
        try:
            if not self._knows_time:
                await self._ingestion.learn_clock()
                self._knows_time = True
            due = self._schedule.due(self.now_ms(), self._done)
            if due:
                await self._work_off(due)
        except (ExchangeError, FolderInUse) as error:
            if isinstance(error, ExchangeError) and error.exit_code == _USAGE:
                raise
            self._counts["failures"] += 1
            self._is_failing = True
            log.error("schedule.failed", reason=str(error), again_in_s=_RETRY_S)
            return False
        self._is_failing = False
        return True

    async def _work_off(self, due: dict[str, int]) -> None:
        self._counts["runs"] += 1
        intervals = [job for job in due if job != RECOMMENDATION]
        log.info("schedule.run", intervals=intervals, recommends=RECOMMENDATION in due)
        await self._ingest(intervals)
        await self._curate(intervals)
        if RECOMMENDATION in due and self._recommend is not None:
            await self._recommend(due[RECOMMENDATION], self.now_ms())
            self._counts["recommendations"] += 1
        self._done |= due
        content = msgspec.json.encode(self._done, order="sorted")
        write_atomic(self._state, content, overwrite=True)

    async def _ingest(self, intervals: Sequence[str]) -> None:
        if not intervals:
            return
        now_ms = self.now_ms()
        first_ms = now_ms - int(self._days * DAY_MS)
        # The last day is looked at again: what lacked there may have come since.
        start_ms = min(now_ms - DAY_MS, *(self._done.get(name, first_ms) for name in intervals))
        await self._ingestion.ingest(intervals, start_ms)

    async def _curate(self, intervals: Sequence[str]) -> None:
        for interval in intervals:
            running = asyncio.ensure_future(
                asyncio.to_thread(self._curation.curate_timeframe, interval)
            )
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                raise


async def follow(
    settings: Settings,
    intervals: Sequence[str],
    rest: RestClient,
    *,
    days: float | None = None,
    analyst: Analyst | None = None,
    publish: Callable[[Signal], None] = lambda _signal: None,
    started: Callable[[Read], None] = lambda _read: None,
) -> int:
    """Keep a data folder up to date until cancelled.

    Args:
        settings: Where from, where to, and when.
        intervals: What to ingest and curate.
        rest: Open; asked for everything.
        days: Look-back of the first run; ``None``: ``FIRST_DAYS``.
        analyst: Asked about the daily recommendation as well.
        publish: Told each recommendation.
        started: Given what reads the parts' statistics, ``part.name`` to value.

    Returns:
        The exit code, should it ever end by itself.

    Raises:
        FolderInUse: Another schedule runs in this data folder.
    """
    recommendation = DailyRecommendation(
        settings.paths, settings.symbols, analyst=analyst, publish=publish
    )
    schedule = Schedule(
        intervals=tuple(intervals),
        long_every_quarter=settings.ingest_long_intervals == "quarter",
        recommendation_minute=minute_of_day(settings.recommendation_update_time),
    )
    with FolderLock(settings.paths.root, "schedule"):
        ingestion = DataIngestion(settings, rest=rest)
        follower = Follower(
            ingestion,
            DataCuration(settings),
            schedule,
            recommend=recommendation.recommend,
            state=settings.paths.root / "schedule.json",
            days=FIRST_DAYS if days is None else days,
        )
        started(
            lambda: {
                **{f"schedule.{name}": value for name, value in follower.statistics().items()},
                **{f"ingestion.{name}": value for name, value in ingestion.statistics().items()},
                **{f"rest.{name}": value for name, value in rest.statistics().items()},
            }
        )
        await follower.run()
    return 0


def _remembered(state: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(state.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}
