"""Missing trades from the public archive: the day's file when it appears, then the month's.

Consumes holes that REST cannot fill any more, produces their rows and settlements. An archive that is
not there yet is asked for again on a schedule; one that was looked through is not fetched again while
its checksum is the same; what the month lacks as well is permanent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import structlog

from binance_api.errors import ExchangeError
from binance_api.vision import ArchiveRef, NotPublished
from collectors.repair_plan import (
    ARCHIVE_PATIENCE_MS,
    Turn,
    Work,
    archive_until_ms,
    archive_work,
    days_of,
    has_extent,
    missing_of,
    period_end_ms,
    published_from_ms,
    retry_s,
    turn_of,
)
from collectors.repair_writer import RepairWriter, Settlement, found_runs
from domain.errors import StorageError
from domain.events import GapState
from domain.market import Market
from lake.archive_csv import UnreadableArchive
from lake.gap_ledger import Gap, GapLedger
from lake.part_files import date_start_ms
from lake.paths import LakePaths
from lake.repaired_rows import Missing, archive_trades, ids_and_times, stored_trades

log = structlog.get_logger()

type Progress = Callable[[int, int | None], None]


class PublicArchive(Protocol):
    """The archive; implemented by ``binance_api.vision.VisionClient``."""

    async def checksum(self, ref: ArchiveRef) -> str: ...
    async def download(
        self,
        ref: ArchiveRef,
        target: Path,
        on_progress: Progress | None = None,
        *,
        sha256: str | None = None,
    ) -> object: ...


class ArchiveRepairSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the archive is asked.

    Attributes:
        retry_s: An archive that is not published yet is looked for this often.
        failure_s: First wait after a failed request; doubles up to ``retry_s``.
        batch_rows: Rows written at a time.
    """

    retry_s: float = 1_800.0
    failure_s: float = 10.0
    batch_rows: int = 500_000


class _Look(msgspec.Struct):
    """What came of looking for one archive."""

    due_at: float = 0.0
    sha256: str | None = None  # of the one that was looked through
    was_absent: bool = False
    is_never: bool = False  # it would be there by now
    failures: int = 0


class ArchiveRepair:
    """Works off what is the archive's turn; owned by ``RecorderRepair``."""

    def __init__(
        self,
        paths: LakePaths,
        ledger: GapLedger,
        archive: PublicArchive,
        writer: RepairWriter,
        settings: ArchiveRepairSettings,
        *,
        market: Market,
        market_ms: Callable[[], int],
        monotonic: Callable[[], float],
        disk: asyncio.Lock,
    ) -> None:
        self._paths = paths
        self._ledger = ledger
        self._archive = archive
        self._writer = writer
        self._settings = settings
        self._market = market
        self._market_ms = market_ms
        self._monotonic = monotonic
        self._disk = disk
        self._looks: dict[tuple[str, str], _Look] = {}
        self._stopping = threading.Event()
        self._counts = dict.fromkeys(("archives_taken", "archives_absent", "archive_failures"), 0)
        self.on_download: Progress | None = None

    def statistics(self) -> dict[str, int | float | str | None]:
        """Archives looked through, not there, and failed."""
        return dict(self._counts)

    async def work_off(self) -> None:
        """Look into every archive that is due; then settle what none can give.

        Raises:
            StorageError: The disk refused.
        """
        gaps = self._waiting()
        if not gaps:
            return
        for work in archive_work(gaps, monthly=False):
            await self._look_into(work)
        gaps = [gap for gap in self._waiting() if self._days_tried(gap)]
        for work in archive_work(gaps, monthly=True):
            await self._look_into(work)
        await self._give_up()
        if not self._waiting():
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _waiting(self) -> list[Gap]:
        return [
            gap
            for gap in self._ledger.unresolved("trades")
            if turn_of(gap) is Turn.ARCHIVE and has_extent(gap)
        ]

    def _look(self, symbol: str, period: str) -> _Look:
        return self._looks.setdefault((symbol, period), _Look())

    def _days_tried(self, gap: Gap) -> bool:
        """Whether the days' archives had their chance: the month's is far larger."""
        looks = [self._look(gap.symbol, day) for day in days_of(gap)]
        return all(look.sha256 is not None or look.was_absent for look in looks)

    async def _look_into(self, work: Work) -> None:
        look = self._look(work.symbol, work.period)
        now = self._monotonic()
        if now < look.due_at or self._market_ms() < published_from_ms(work.period):
            return
        ref = ArchiveRef(
            market=self._market, kind="aggTrades", symbol=work.symbol, period=work.period
        )
        look.due_at = now + self._settings.retry_s
        try:
            sha256 = await self._archive.checksum(ref)
            if sha256 != look.sha256:
                await self._take(ref, sha256, work)
                look.sha256, look.failures = sha256, 0
                self._counts["archives_taken"] += 1
        except NotPublished:
            self._counts["archives_absent"] += 1
            look.was_absent = True
            end_ms = period_end_ms(work.period)
            look.is_never = self._market_ms() > end_ms + ARCHIVE_PATIENCE_MS
            log.info("repair.archive_absent", archive=ref.name, is_never=look.is_never)
        except StorageError:
            look.due_at = now  # when the disk takes rows again
            raise
        except (ExchangeError, UnreadableArchive) as error:
            self._counts["archive_failures"] += 1
            look.failures += 1
            wait_s = retry_s(look.failures, self._settings.failure_s, self._settings.retry_s)
            look.due_at = now + wait_s
            log.warning("repair.archive_failed", archive=ref.name, error=str(error), retry_s=wait_s)

    async def _take(self, ref: ArchiveRef, sha256: str, work: Work) -> None:
        target = self._folder / ref.name
        await self._archive.download(ref, target, self.on_download, sha256=sha256)
        self._stopping.clear()
        try:
            async with self._disk:
                await asyncio.to_thread(self._take_rows, target, work)
        except asyncio.CancelledError:
            self._stopping.set()  # the thread ends soon, and the process with it
            raise
        with contextlib.suppress(OSError):
            target.unlink()

    def _take_rows(self, archive: Path, work: Work) -> None:
        numbers = {gap.gap_id for gap in work.gaps}
        ranges = [gap.range() for gap in work.gaps if gap.first_id is not None]

        def missing() -> Missing:
            """Of these holes and what they were split into."""
            return missing_of(
                gap
                for gap in self._waiting()
                if gap.symbol == work.symbol
                and (gap.gap_id in numbers or any(gap.range().overlap(r) for r in ranges))
            )

        times = Missing(times_ms=missing().times_ms)
        known_ids = self._known_ids(work.symbol, times)
        for table in archive_trades(
            archive,
            work.symbol,
            missing,
            known_ids=known_ids,
            max_rows=self._settings.batch_rows,
            is_stopping=self._stopping.is_set,
        ):
            ids, times_ms = ids_and_times(table)
            self._writer.write(table, found_runs(work.symbol, ids, times_ms, "archive"))
        if not self._stopping.is_set():
            self._writer.write(None, _times_done(work))

    def _known_ids(self, symbol: str, times: Missing) -> np.ndarray:
        """Stored trades of holes known by time only."""
        if not times:
            return np.empty(0, dtype=np.int64)
        start_ms = min(start for start, _ in times.times_ms)
        end_ms = max(end for _, end in times.times_ms) + 1
        stored = stored_trades(self._paths, symbol, times, start_ms, end_ms)
        return np.concatenate([np.empty(0, dtype=np.int64), *(found.ids for found in stored)])

    async def _give_up(self) -> None:
        """Permanent is what the months lack, and what no month came for."""
        lost = []
        for gap in self._waiting():
            months = [self._look(gap.symbol, month) for month in {d[:7] for d in days_of(gap)}]
            looked = all(look.sha256 is not None or look.is_never for look in months)
            until_ms = gap.repairable_until_ms
            if looked or (until_ms is not None and until_ms < self._market_ms()):
                lost.append(_lost(gap))
        if lost:
            async with self._disk:
                await asyncio.to_thread(self._writer.write, None, lost)

    @property
    def _folder(self) -> Path:
        return self._paths.raw / "stream" / ".archives"


def expired(gap: Gap, now_ms: int) -> Settlement:
    """REST does not have these trades (any more): the archive's turn."""
    until_ms = now_ms if gap.until_ms is None else gap.until_ms
    return _settlement(gap, GapState.EXPIRED, archive_until_ms(until_ms))


def _lost(gap: Gap) -> Settlement:
    return _settlement(gap, GapState.LOST, None)


def _settlement(gap: Gap, state: GapState, repairable_until_ms: int | None) -> Settlement:
    is_time = gap.first_id is None
    first = gap.from_ms or 0 if gap.first_id is None else gap.first_id
    end = (gap.until_ms or first + 1) - 1 if is_time else gap.last_id
    return Settlement(
        symbol=gap.symbol,
        span=(first, first if end is None else end),
        state=state,
        is_time=is_time,
        repairable_until_ms=repairable_until_ms,
    )


def _times_done(work: Work) -> list[Settlement]:
    """Of holes known by time: the part that the archive covers is all there was."""
    start_ms, end_ms = _bounds(work.period)
    settled = []
    for gap in work.gaps:
        if gap.first_id is None and gap.until_ms is not None:
            first, last = max(start_ms, gap.from_ms or 0), min(end_ms, gap.until_ms) - 1
            if first <= last:
                settled.append(
                    Settlement(
                        symbol=gap.symbol,
                        span=(first, last),
                        state=GapState.REPAIRED,
                        by="archive",
                        is_time=True,
                    )
                )
    return settled


def _bounds(period: str) -> tuple[int, int]:
    start = period if len(period) > len("YYYY-MM") else f"{period}-01"
    return date_start_ms(start), period_end_ms(period)
