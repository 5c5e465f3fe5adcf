"""The recorder: frames of sockets to the journal at once, to Parquet soon, what is missing to the ledger.

Consumes ``FrameBatch`` and ``ConnectionEvent`` calls on the event loop, produces stream files. A frame
is noted for the journal, then checked and held; a flush seals the journal's segment, writes its rows in
a worker thread and only then lets the segment go. So a process that dies at any point leaves each frame
in a segment, in Parquet, or in both, which the next start tells apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from binance_api.endpoints import Route
from collectors.recorder_files import Batch, StreamWriter
from collectors.recorder_holes import HoleBook
from collectors.recorder_journal import JournalKeeper
from collectors.recorder_recovery import JournalState, Outage, recover
from collectors.recorder_rows import OFF, Position, StreamRows
from collectors.trade_claims import TradeClaims
from collectors.worker_thread import WorkerThread
from domain.errors import StorageError
from domain.events import ConnectionEvent, ConnectionState
from domain.market import Market
from lake.atomic import StepHook, no_hook
from lake.frame_journal import FrameJournal, JournalRecord
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.quarantine import Quarantine
from market_orchestrator.connection.contract import FrameBatch

log = structlog.get_logger()

_UP = (ConnectionState.SUBSCRIBED, ConnectionState.HEALTHY)
_LOST = (ConnectionState.DISCONNECTED, ConnectionState.GAVE_UP)


class RecorderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder does when.

    Attributes:
        symbols: Upper case.
        market: Whose frames.
        flush_interval_s: Frames become Parquet at least this often.
        flush_max_items: ... or at so many frames,
        flush_max_bytes: ... or at so many bytes of them, whichever comes first.
        journal_sync_s: The journal is written and fsynced this often.
        max_pending_bytes: Frames kept in memory while the disk refuses them; then the run ends.
        hole_age_s: Missing trades are given so long to arrive out of order.
        side_s: Holes and rejected input reach the disk this often.
        retry_s: Wait after the disk refused.
        report_s: One line about the recorder's health this often.
    """

    symbols: tuple[str, ...]
    market: Market = Market.UM
    flush_interval_s: float = 60.0
    flush_max_items: int = 20_000
    flush_max_bytes: int = 52_428_800
    journal_sync_s: float = 0.2
    max_pending_bytes: int = 268_435_456
    hole_age_s: float = 1.0
    side_s: float = 1.0
    retry_s: float = 5.0
    report_s: float = 60.0


class Recorder:
    """Records one run: give it every frame (``on_frames``) and every connection event.

    ``await open()`` before the first frame, ``run`` until cancelled, ``await finish()`` at the end.

    Args:
        settings: See ``RecorderSettings``.
        paths: The tree; its "recorder" lock is held by the caller.
        ledger: Of role "recorder".
        quarantine: Gets rejected input.
        monotonic: Seconds that never run back.
        wall_ns: Wall clock, ns since the epoch.
        hook: See ``lake.atomic.StepHook``.

    Attributes:
        rows: What was received.
        holes: What is missing of it.
        claims: For the one who repairs beside.
    """

    def __init__(
        self,
        settings: RecorderSettings,
        paths: LakePaths,
        ledger: GapLedger,
        quarantine: Quarantine,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        hook: StepHook = no_hook,
    ) -> None:
        self.settings = settings
        self.rows = StreamRows(
            settings.symbols,
            settings.market,
            monotonic_ns=lambda: int(monotonic() * 1e9),
            wall_ns=wall_ns,
        )
        self.holes = HoleBook(self.rows, ledger, quarantine, wall_ns=wall_ns)
        self.claims = TradeClaims(ledger, wall_ns)
        self.rows.keep_late = self.claims.take_late
        self._paths = paths
        self._ledger = ledger
        self._quarantine = quarantine
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._hook = hook
        self._files = StreamWriter(paths, settings.symbols, settings.market, hook=hook)
        self._frame_journal = FrameJournal(paths.stream_journal, hook=hook)
        self._journal = JournalKeeper(self._frame_journal, 0)
        self._thread = WorkerThread("recorder-files")
        self._writing = asyncio.Lock()
        self._others: dict[str, Position] = {}  # of symbols that only earlier runs recorded
        self._batches: list[Batch] = []  # sealed, not in Parquet yet
        self._flush_now = asyncio.Event()
        self._up: dict[str, set[int]] = {route.value: set() for route in Route}
        self._counts: dict[str, int] = dict.fromkeys(
            ("flushes", "failed_flushes", "journal_failures", "recovered_frames", "cut_bytes"), 0
        )

    # --- in -------------------------------------------------------------------------------

    def on_frames(self, batch: FrameBatch) -> set[str]:
        """Take frames (``FrameSink``); never blocks, keeps references only."""
        route, payloads, stamps = batch.route, batch.payloads, batch.receive_time_ns
        self._journal.note(JournalRecord(route.value, batch.socket_id, payloads, stamps))
        streams = self.rows.on_frames(route, payloads, stamps)
        if (
            self.rows.frame_count >= self.settings.flush_max_items
            or self.rows.payload_bytes >= self.settings.flush_max_bytes
        ):
            self._flush_now.set()
        return streams

    def on_connection(self, event: ConnectionEvent) -> None:
        """A socket changed its state (``ConnectionListener``): the last one down cuts its route."""
        up = self._up[event.route]
        if event.state in _UP:
            up.add(event.socket_id)
        elif event.state in (*_LOST, ConnectionState.CLOSED) and event.socket_id in up:
            up.discard(event.socket_id)
            if not up and event.state in _LOST:  # not where this run closes it
                self._note_outage(Route(event.route), f"disconnected: {event.reason}")

    def _note_outage(self, route: Route, cause: str) -> None:
        self._journal.note(JournalRecord.note(Outage(route, cause)))
        self.rows.note_outage(route, cause)

    # --- start ----------------------------------------------------------------------------

    async def open(self) -> None:
        """Turn what a dead process left into Parquet, and begin a segment.

        Raises:
            StorageError: The disk refused.
        """
        settings, journal = self.settings, self._frame_journal
        found = await self._thread.run(
            lambda: recover(
                journal.folder,
                self._paths,
                settings.market,
                self._ledger,
                self._quarantine,
                wall_ns=self._wall_ns,
                hook=self._hook,
            )
        )
        self._counts.update(recovered_frames=found.frame_count, cut_bytes=found.cut_bytes)
        self.rows.resume(found.positions)
        self._others = {
            symbol: position
            for symbol, position in found.positions.items()
            if symbol not in self.rows.index
        }
        begun = found.segments[-1] + 1 if found.segments else 1
        # The new segment says where the old ones ended before these are gone.
        await self._thread.run(lambda: journal.begin(begun, self._state()))
        for number in found.segments:
            await self._thread.run(partial(journal.remove, number))
        self._journal = JournalKeeper(journal, begun)
        for route in Route:
            self._note_outage(route, OFF)

    # --- running --------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the journal, flush and report until cancelled.

        Raises:
            StorageError: The disk has refused for so long that too much waits.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_journal(), name="recorder-journal")
            tasks.create_task(self._keep_flushing(), name="recorder-flush")
            tasks.create_task(self._keep_sides(), name="recorder-sides")
            tasks.create_task(self._keep_reporting(), name="recorder-report")

    async def finish(self) -> None:
        """Write everything that is left.

        Raises:
            StorageError: The disk refused; what is in the journal is recovered at the next start.
        """
        try:
            await self.flush()
            await self.sync()  # removes the segments that are done
        finally:
            await self._journal.close()
            self._thread.close()
            log.info("recorder.stopped", **self.statistics())

    async def _keep_journal(self) -> None:
        wait_s = self.settings.journal_sync_s
        while True:
            await asyncio.sleep(wait_s)
            began = self._monotonic()
            if await self._sync_journal():
                wait_s = max(0.0, self.settings.journal_sync_s - (self._monotonic() - began))
            else:
                wait_s = max(self.settings.journal_sync_s, self.settings.retry_s / 5)

    async def _sync_journal(self) -> bool:
        """False where the disk refused: what waits is kept, as long as it is not too much."""
        try:
            await self.sync()
        except StorageError as error:
            self._counts["journal_failures"] += 1
            log.error("recorder.journal_failed", error=str(error), **self._held())
            self._check_bound(error)
            return False
        return True

    async def _keep_flushing(self) -> None:
        wait_s = self.settings.flush_interval_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._flush_now.wait()
            except TimeoutError:
                pass
            self._flush_now.clear()
            try:
                await self.flush()
                wait_s = self.settings.flush_interval_s
            except StorageError as error:
                self._counts["failed_flushes"] += 1
                log.error("recorder.flush_failed", error=str(error), **self._held())
                self._check_bound(error)
                wait_s = min(self.settings.retry_s, self.settings.flush_interval_s)

    async def _keep_sides(self) -> None:
        while True:
            await asyncio.sleep(self.settings.side_s)
            self.holes.enter(self.settings.hole_age_s)
            try:
                await asyncio.to_thread(self.holes.flush)
            except StorageError as error:  # kept; a flush fails as well where it lasts
                log.error("recorder.ledger_failed", error=str(error))

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(self.settings.report_s)
            log.info("recorder.health", **self.statistics())

    # --- flushing -------------------------------------------------------------------------

    async def flush(self) -> None:
        """Seal what is held and write all that is sealed.

        Raises:
            StorageError: The disk refused; what is not written is kept for the next call.
        """
        if self.rows.frame_count or self.rows.row_count:
            self.holes.enter(0.0)
            self.rows.forget()
            segment = self._journal.seal(self._state())
            self._batches.append(Batch.of(segment, self.rows.take()))
        async with self._writing:
            await self._sync_journal()
            while self._batches:
                batch = self._batches[0]
                await self._thread.run(partial(self._write, batch))
                await self._name_faulty(batch)
                self._journal.finished(batch.segment)
                del self._batches[0]
                self._counts["flushes"] += 1

    def _state(self) -> JournalState:
        """How far this run and (for symbols it does not record) earlier ones came."""
        return JournalState(self.rows.symbols, {**self._others, **self.rows.positions()})

    def _write(self, batch: Batch) -> None:
        """Blocks. The ledger names what is missing before the frames around it leave the journal."""
        self._files.write(batch)
        self.holes.flush()

    async def _name_faulty(self, batch: Batch) -> None:
        """Frames with a faulty level leave holes, known only now that their levels were read."""
        if not batch.faulty:
            return
        for top in batch.faulty:
            self.rows.depth_fault(top)
        batch.faulty = []
        self.holes.enter(0.0)
        await self._thread.run(self.holes.flush)

    async def sync(self) -> None:
        """Make all frames taken so far durable in the journal.

        Raises:
            StorageError: The disk refused; what is not durable is kept for the next call.
        """
        await self._journal.sync()

    def _held(self) -> dict[str, int]:
        """What a dead process would lose or have to recover."""
        sealed = sum(batch.payload_bytes for batch in self._batches)
        return {
            "waiting_bytes": self.rows.payload_bytes + sealed,
            "unjournalled_bytes": self._journal.payload_bytes,
        }

    def _check_bound(self, error: StorageError) -> None:
        held = self._held()
        if max(held.values()) > self.settings.max_pending_bytes:
            raise StorageError(f"too many frames wait for the disk: {error}")

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start and what is held now."""
        return {
            **self._counts,
            **self._held(),
            **self.rows.statistics(),
            **{f"files_{k}": v for k, v in self._files.statistics().items()},
        }
