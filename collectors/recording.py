"""A recorder and what keeps its lake whole: self-repair, merging of small files.

Consumes frames and connection events like ``Recorder``; owns the tasks around it. ``main.py record``
runs it on sockets of its own, ``run --record`` beside the analysis on the bot's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import structlog

from collectors.recorder import Recorder, RecorderSettings
from collectors.repair import RecorderRepair, RepairSettings
from collectors.repair_archive import PublicArchive
from collectors.repair_rest import TradeHistory
from collectors.stored_holes import Recorded, enter_stored_holes, recorded_before
from domain.errors import StorageError
from domain.events import ConnectionEvent
from lake.gap_ledger import GapLedger
from lake.lock import FolderLock
from lake.paths import LakePaths
from lake.quarantine import Quarantine
from lake.source import Description, claim_source
from lake.stream_compaction import StreamCompaction, StreamCompactionSettings
from market_orchestrator.connection.contract import FrameBatch

log = structlog.get_logger()

ROLE = "recorder"
_LOOK_BACK_DATES = 3  # as far as REST reaches back


class RecordingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the parts.

    Attributes:
        recorder: See ``RecorderSettings``.
        repair: See ``RepairSettings``.
        compaction: See ``StreamCompactionSettings``.
        compact_s: Seconds between two merges of small files.
        first_compact_s: From the start to the first merge.
    """

    recorder: RecorderSettings
    repair: RepairSettings = RepairSettings()
    compaction: StreamCompactionSettings = StreamCompactionSettings()
    compact_s: float = 3_600.0
    first_compact_s: float = 300.0


@contextmanager
def open_folder(paths: LakePaths, source: Description) -> Iterator[None]:
    """The right to record below ``paths``, for the time of a ``with``.

    Raises:
        DataFolderError: Another recorder has the folder, it cannot be written, or it holds data of
            another source.
    """
    # RAW_DATA_DIR may give two data folders one place for recordings: that has a lock as well.
    with FolderLock(paths.root, ROLE), FolderLock(paths.raw / "stream", ROLE):
        claim_source(paths.root, source)
        yield


class Recording:
    """``await open()`` before the first frame, ``run`` until cancelled, ``await finish()`` at the end.

    Args:
        settings: See ``RecordingSettings``.
        paths: The tree, opened (``open_folder``).
        history: The REST client.
        archive: The public archive.
    """

    def __init__(
        self,
        settings: RecordingSettings,
        paths: LakePaths,
        history: TradeHistory,
        archive: PublicArchive,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self.ledger = GapLedger(paths.gaps, ROLE)
        self.recorder = Recorder(
            settings.recorder, paths, self.ledger, Quarantine(paths.quarantine)
        )
        self.repair = RecorderRepair(
            paths,
            self.ledger,
            history,
            archive,
            settings.repair,
            market=settings.recorder.market,
            market_ms=self.recorder.rows.market_ms,
            wall_ns=time.time_ns,
            monotonic=time.monotonic,
            claims=self.recorder.claims,
            recorded=settings.recorder.symbols,
        )
        self.compaction = StreamCompaction(paths, settings.compaction)
        self.recorder.holes.on_hole = lambda _: self.repair.wake()
        self._recorded = Recorded({}, ())  # before this run

    def on_frames(self, batch: FrameBatch) -> set[str]:
        """See ``Recorder.on_frames``."""
        return self.recorder.on_frames(batch)

    def on_connection(self, event: ConnectionEvent) -> None:
        """See ``Recorder.on_connection``."""
        self.recorder.on_connection(event)

    async def open(self) -> None:
        """Finish what a dead process left, and be ready for frames.

        Raises:
            StorageError: The disk refused.
        """
        await asyncio.to_thread(self.compaction.recover)
        await self.recorder.open()
        self._recorded = await asyncio.to_thread(
            recorded_before, self._paths, self.ledger, self._settings.recorder.symbols
        )

    async def run(self) -> None:
        """Record, repair and merge until cancelled.

        Raises:
            StorageError: The disk has refused for too long.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.recorder.run(), name="recorder")
            tasks.create_task(self.repair.run(), name="recorder-repair")
            tasks.create_task(self._keep_compact(), name="recorder-compaction")
            tasks.create_task(self._find_damage(), name="recorder-damage")

    async def finish(self) -> None:
        """Write everything that is left.

        Raises:
            StorageError: The disk refused.
        """
        await self.recorder.finish()

    async def _find_damage(self) -> None:
        """Name what files lack that were damaged or removed; older ones are the verb repair's."""
        try:
            found = await asyncio.to_thread(
                enter_stored_holes,
                self._paths,
                self.ledger,
                self._recorded,
                at_ns=time.time_ns(),
                dates=_LOOK_BACK_DATES,
            )
        except StorageError as error:
            log.error("recorder.files_not_checked", error=str(error))
            return
        if found:
            self.repair.doubt(found)

    async def _keep_compact(self) -> None:
        wait_s = self._settings.first_compact_s
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._settings.compact_s
            try:
                await asyncio.to_thread(self.compaction.compact_due, self.recorder.rows.market_ms())
            except StorageError as error:
                log.error("recorder.merge_failed", error=str(error))

    def statistics(self) -> dict[str, int | float | str | None]:
        """Those of the parts, by name."""
        parts = {
            "recorder": self.recorder.statistics(),
            "ledger": self.ledger.statistics(),
            "repair": self.repair.statistics(),
            "compaction": self.compaction.statistics(),
        }
        return {f"{part}.{k}": v for part, read in parts.items() for k, v in read.items()}
