"""One month of the archive: what is there already, what the archive has, and how the two become one.

Consumes a ``Month`` → brings its file up to what the archive has: the monthly archive first, the daily
ones for days it lacks or while it is not published. Every step ends with a whole file that says what
it is made of, so that a run that was interrupted anywhere goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec
import structlog

from binance_api.vision import Archive, ArchiveRef, ChecksumMismatch, NotPublished, VisionClient
from collectors.worker_thread import WorkerThread
from domain.errors import OrderFlowError
from domain.intervals import DAY_MS
from domain.market import Market
from lake.archive_csv import UnreadableArchive
from lake.atomic import StepHook, no_hook
from lake.historical_files import (
    AboutMonth,
    about_month,
    check_month,
    days_of,
    month_bounds_ms,
    month_path,
)
from lake.month_build import ArchiveSource, Month, build_month
from lake.part_files import DamagedFile, date_of, date_start_ms, set_aside
from lake.paths import LakePaths

log = structlog.get_logger()

NEVER_AFTER_MS: Final = 14 * DAY_MS
"""A day that is not published so long after its end never will be."""
_DAYS_AT_A_TIME: Final = 4


class MonthState(enum.StrEnum):
    """How a month stands after a run."""

    PRESENT = "present"  # was whole before
    WHOLE = "whole"  # all the archive has
    PARTIAL = "partial"  # the archive may still give more
    NOT_PUBLISHED = "not published"
    FAILED = "failed"
    NOT_TRIED = "not tried"


class MonthOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one month. ``note`` is for people; ``error`` is there if it failed."""

    month: Month
    state: MonthState
    about: AboutMonth | None = None
    downloaded_bytes: int = 0
    note: str = ""
    error: OrderFlowError | None = None


class Bar(Protocol):
    """Shows how far one month is."""

    def show(self, stage: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes; ``None``: the end is not known."""


class Stopped(Exception):
    """The work in the thread was asked to end."""


class MonthCollector:
    """Brings months up to date; months are built one at a time, in a thread of its own.

    Args:
        paths: The tree; ``raw/historical/.work`` holds downloads under way.
        market: Whose archive.
        client: Asks the archive.
        verify: Look into files that are there, and ask whether their archives were replaced.
        now_ms: Wall clock, ms.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        paths: LakePaths,
        market: Market,
        client: VisionClient,
        *,
        verify: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        hook: StepHook = no_hook,
    ) -> None:
        self._paths = paths
        self._market = market
        self._client = client
        self._verify = verify
        self._now_ms = now_ms
        self._hook = hook
        self.work = paths.raw / "historical" / ".work"
        self._thread = WorkerThread("history")
        self._stopping = threading.Event()
        self._received: dict[Month, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.close()

    async def collect(self, month: Month, bar: Bar) -> MonthOutcome:
        """Bring one month up to what the archive has.

        Raises:
            ExchangeError: The archive could not be asked; what came so far is kept.
            StorageError: The disk refused.
        """
        try:
            outcome = await self._brought_up(month, bar)
        except DamagedFile as error:  # a file that was to be built on
            self._set_aside(error)
            outcome = await self._brought_up(month, bar)
        await asyncio.to_thread(self._clear, month)
        return outcome

    async def _brought_up(self, month: Month, bar: Bar) -> MonthOutcome:
        about = await self._present(month, bar)
        if about is not None and about.is_complete:
            return MonthOutcome(month=month, state=MonthState.PRESENT, about=about)
        before = about
        if about is None or about.part(month.month) is None:
            about = await self._from_monthly(month, bar) or about
        if about is None or not about.is_complete:
            about = await self._from_dailies(month, about, bar)
        return self._outcome(month, about, is_new=about is not before)

    async def is_known(self, symbol: str) -> bool:
        """Whether the archive has klines of a symbol of any of the last few days."""
        today = self._now_ms() // DAY_MS
        for day in range(today - 2, today - 9, -1):
            with contextlib.suppress(NotPublished):
                period = date_of(day * DAY_MS)
                await self._client.checksum(
                    ArchiveRef(market=self._market, kind="klines", symbol=symbol, period=period)
                )
                return True
        return False

    # --- what is there ------------------------------------------------------------------------

    async def _present(self, month: Month, bar: Bar) -> AboutMonth | None:
        """What is there and can be built on; a damaged file is set aside."""
        path = self._path(month)
        try:
            about = await asyncio.to_thread(about_month, path)
            if about is None or not self._verify:
                return about
            bar.show("verifying", 0, None)
            await self._in_thread(lambda: check_month(path, self._check))
        except DamagedFile as error:
            self._set_aside(error)
            return None
        for part in about.parts:
            with contextlib.suppress(NotPublished):  # withdrawn: ours is all there is
                if await self._client.checksum(self._ref(month, part.period)) != part.sha256:
                    log.warning("history.archive_replaced", month=month.name, period=part.period)
                    return None
        return about

    # --- the monthly archive ------------------------------------------------------------------

    async def _from_monthly(self, month: Month, bar: Bar) -> AboutMonth | None:
        """The month from its monthly archive alone; ``None`` if that cannot be used."""
        try:
            archive = await self._download(month, month.month, bar)
            return await self._build(month, [archive], bar)
        except NotPublished:
            return None
        except (ChecksumMismatch, UnreadableArchive) as error:
            log.warning("history.archive_unusable", month=month.name, reason=str(error))
            return None

    # --- the daily archives -------------------------------------------------------------------

    async def _from_dailies(
        self, month: Month, about: AboutMonth | None, bar: Bar
    ) -> AboutMonth | None:
        """The month with the daily archives of the days it lacks."""
        days = [day for day in self._lacking(month, about) if self._has_ended(day)]
        if about is None and len(days) > 2 and not await self._is_listed(month, days):
            return None
        slots = asyncio.Semaphore(_DAYS_AT_A_TIME)

        async def fetch(day: str) -> Archive | None:
            async with slots:
                with contextlib.suppress(NotPublished):
                    return await self._download(month, day, bar)
                return None

        async with asyncio.TaskGroup() as group:
            tasks = {day: group.create_task(fetch(day)) for day in days}
        found = [archive for task in tasks.values() if (archive := task.result()) is not None]
        absent = [day for day in days if tasks[day].result() is None and self._is_old(day)]
        if not found and (about is None or not absent):
            return about
        return await self._with_readable(month, found, about, absent, bar)

    async def _with_readable(
        self,
        month: Month,
        found: list[Archive],
        about: AboutMonth | None,
        absent: list[str],
        bar: Bar,
    ) -> AboutMonth | None:
        """Build; a daily archive that cannot be read is left out, and asked for again next time."""
        while found or (about is not None and absent):
            try:
                return await self._build(month, found, bar, base=about, absent_days=absent)
            except UnreadableArchive as error:
                log.warning("history.archive_unusable", month=month.name, reason=str(error))
                found = [archive for archive in found if archive.path != error.path]
        return about

    def _lacking(self, month: Month, about: AboutMonth | None) -> Sequence[str]:
        return days_of(month.month) if about is None else about.doubtful_days

    async def _is_listed(self, month: Month, days: Sequence[str]) -> bool:
        """Whether an old month exists at all: if so, its first or its last day does."""
        if not self._is_old(days[-1]):
            return True
        for day in (days[-1], days[0]):
            with contextlib.suppress(NotPublished):
                await self._client.checksum(self._ref(month, day))
                return True
        return False

    def _has_ended(self, day: str) -> bool:
        return date_start_ms(day) + DAY_MS <= self._now_ms()

    def _is_old(self, day: str) -> bool:
        return date_start_ms(day) + DAY_MS + NEVER_AFTER_MS <= self._now_ms()

    # --- shared steps -------------------------------------------------------------------------

    async def _download(self, month: Month, period: str, bar: Bar) -> Archive:
        ref = self._ref(month, period)
        archive = await self._client.download(
            ref, self.work / ref.name, lambda done, total: bar.show(period, done, total)
        )
        self._received[month] = self._received.get(month, 0) + archive.size_bytes
        return archive

    async def _build(
        self,
        month: Month,
        archives: Sequence[Archive],
        bar: Bar,
        *,
        base: AboutMonth | None = None,
        absent_days: Iterable[str] = (),
    ) -> AboutMonth:
        """Write the month's file; the archives are removed once it is there, or if unreadable."""
        absent = [*(base.absent_days if base else ()), *absent_days]
        try:
            about = await self._in_thread(
                lambda: build_month(
                    self._paths,
                    month,
                    [_source(archive) for archive in archives],
                    work=self.work,
                    base=base,
                    absent_days=absent,
                    on_read=lambda done, total: bar.show("writing", done, total),
                    check=self._check,
                    hook=self._hook,
                )
            )
        except UnreadableArchive as error:
            await asyncio.to_thread(error.path.unlink, missing_ok=True)
            raise
        for archive in archives:
            await asyncio.to_thread(archive.path.unlink, missing_ok=True)
        return about

    async def _in_thread[T](self, work: Callable[[], T]) -> T:
        """Run in the collector's thread; when cancelled, the work ends at its next step."""
        running = asyncio.ensure_future(self._thread.run(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stopping.set()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # the file is as it was
            raise

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _outcome(self, month: Month, about: AboutMonth | None, *, is_new: bool) -> MonthOutcome:
        received = self._received.pop(month, 0)
        if about is None:
            _, end_ms = month_bounds_ms(month.month)
            is_late = end_ms + NEVER_AFTER_MS > self._now_ms()
            note = "not yet, it seems" if is_late else "before the market existed, it seems"
            log.warning("history.not_published", month=month.name, reason=note)
            return MonthOutcome(month=month, state=MonthState.NOT_PUBLISHED, note=note)
        log.info(
            "history.month",
            month=month.name,
            is_complete=about.is_complete,
            is_new=is_new,
            row_count=about.row_count,
            missing_count=about.missing_count,
            duplicate_count=about.duplicate_count,
            conflict_count=about.conflict_count,
            disordered_count=about.disordered_count,
        )
        return MonthOutcome(
            month=month,
            state=MonthState.WHOLE if about.is_complete else MonthState.PARTIAL,
            about=about,
            downloaded_bytes=received,
            note=_note(month, about),
        )

    def _set_aside(self, damaged: DamagedFile) -> None:
        set_aside(self._paths.raw / "historical", damaged)

    def _clear(self, month: Month) -> None:
        """Remove what superseded or interrupted downloads left: nothing of it is needed any more."""
        stem = self._ref(month, month.month).name.removesuffix(".zip")
        for pattern in (f"{stem}*", f".{stem}*"):
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)

    def _ref(self, month: Month, period: str) -> ArchiveRef:
        return ArchiveRef(market=self._market, kind=month.kind, symbol=month.symbol, period=period)

    def _path(self, month: Month) -> Path:
        return month_path(self._paths, month.symbol, month.kind, month.month)


def _source(archive: Archive) -> ArchiveSource:
    return ArchiveSource(
        path=archive.path, period=archive.ref.period, url=archive.url, sha256=archive.sha256
    )


def _note(month: Month, about: AboutMonth) -> str:
    days = [part.period for part in about.parts if part.period != month.month]
    notes = [
        f"{len(days)} daily files" if days else "",
        f"no file of {len(about.absent_days)} days" if about.absent_days else "",
        f"{len(about.doubtful_days)} days to come" if about.doubtful_days else "",
        f"{about.conflict_count} contradictions" if about.conflict_count else "",
    ]
    return ", ".join(note for note in notes if note)
