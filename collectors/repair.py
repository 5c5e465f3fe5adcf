"""Works off the recorder's gap ledger: REST within its reach, then the archive, then permanent.

Consumes the ledger's open holes, produces rows in the stream files and the ledger's new states. Holes in
depth are permanent at once: nobody keeps old books. Runs as a task beside the recorder, or once
(``python main.py repair``); never both, the ledger has one writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec
import numpy as np
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from binance_api.errors import ExchangeError
from collectors.repair_archive import ArchiveRepair, ArchiveRepairSettings, PublicArchive, expired
from collectors.repair_plan import (
    Turn,
    archive_until_ms,
    has_extent,
    is_beyond_rest,
    retry_s,
    turn_of,
)
from collectors.repair_rest import Page, TradeHistory, id_pages, pieces_of, time_pages
from collectors.repair_writer import RepairWriter, RestBatch, Settlement, found_runs
from collectors.trade_claims import TradeClaims
from domain.errors import StorageError
from domain.events import GapState
from domain.market import TRADE_DTYPE, Market
from lake.atomic import StepHook, no_hook
from lake.gap_ledger import Gap, GapLedger
from lake.paths import LakePaths
from lake.repaired_rows import Missing, StoredTrades, stored_trades

log = structlog.get_logger()

_NO_END = 2**62
_AROUND_MS = 60_000  # trades of a hole may lie so far outside of the times of its neighbours
_LAG_MS = 5_000  # REST knows a trade at the latest so long after it happened


class RepairSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How holes are worked off.

    Attributes:
        grace_s: A hole must be this old: a missing trade may only be late.
        tick_s: New holes are looked for this often.
        retry_s: First wait after a failed request of a symbol; doubles up to ``retry_cap_s``.
        retry_cap_s: Longest wait between attempts.
        concurrency: Holes asked for at once.
        gaps_at_once: Holes taken into one round.
        batch_rows: Rows from REST that are written as one file.
        archive: See ``ArchiveRepairSettings``.
    """

    grace_s: float = 2.0
    tick_s: float = 5.0
    retry_s: float = 2.0
    retry_cap_s: float = 300.0
    concurrency: int = 4
    gaps_at_once: int = 64
    batch_rows: int = 100_000
    archive: ArchiveRepairSettings = ArchiveRepairSettings()


class RecorderRepair:
    """The one that fills the recorder's holes.

    Args:
        paths: The tree.
        ledger: The recorder's (role "recorder"); its process holds the role's lock.
        history: The REST client; asked with bulk priority.
        archive: The public archive.
        settings: See ``RepairSettings``.
        market: Whose trades.
        market_ms: Exchange time, ms: all deadlines are in it, whatever the local clock does.
        wall_ns: Wall clock, ns since the epoch, for the ledger's time stamps.
        monotonic: Seconds that never run back.
        claims: Of the recorder in this process, if there is one.
        recorded: Symbols that a recorder in this process follows: it will find the end of their
            holes of unknown extent; of others the exchange's latest trade is taken as the end.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        paths: LakePaths,
        ledger: GapLedger,
        history: TradeHistory,
        archive: PublicArchive,
        settings: RepairSettings | None = None,
        *,
        market: Market,
        market_ms: Callable[[], int],
        wall_ns: Callable[[], int],
        monotonic: Callable[[], float],
        claims: TradeClaims | None = None,
        recorded: Collection[str] = (),
        hook: StepHook = no_hook,
    ) -> None:
        self._paths = paths
        self._ledger = ledger
        self._history = history
        self._settings = settings or RepairSettings()
        self._market_ms = market_ms
        self._reach_ms = AGG_TRADES_REACH_MS if market is Market.UM else None
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._recorded = frozenset(recorded)
        self._disk = asyncio.Lock()
        self._claims = claims or TradeClaims(ledger, wall_ns)
        self._writer = RepairWriter(paths, ledger, self._claims, wall_ns, hook=hook)
        self.archive = ArchiveRepair(
            paths,
            ledger,
            archive,
            self._writer,
            self._settings.archive,
            market=market,
            market_ms=market_ms,
            monotonic=monotonic,
            disk=self._disk,
        )
        self._batch = RestBatch()
        self._unsure = {gap.gap_id for gap in ledger.unresolved("trades")}
        self._seen_at: dict[int, float] = {}
        self._retry_at: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._problems: list[str] = []  # of this round
        self._counts = dict.fromkeys(("rest_failures", "storage_failures"), 0)
        self.on_progress: Callable[[], None] = lambda: None

    def wake(self) -> None:
        """A hole was entered, or got an end."""
        self._wake.set()

    def doubt(self, gaps: Iterable[Gap]) -> None:
        """Look whether these are stored after all, before anybody is asked for them."""
        self._unsure.update(gap.gap_id for gap in gaps)
        self.wake()

    async def run(self) -> None:
        """Work off what is due, again and again, until cancelled."""
        failures = 0
        while True:
            self._wake.clear()
            wait_s = self._settings.tick_s
            try:
                await self.work_off()
                failures = 0
                if self._has_young():
                    wait_s = self._settings.grace_s
            except StorageError as error:
                failures += 1
                self._counts["storage_failures"] += 1
                wait_s = retry_s(failures, self._settings.tick_s, self._settings.retry_cap_s)
                log.error("repair.storage_failed", error=str(error), retry_s=wait_s)
                await asyncio.sleep(wait_s)  # no new hole is a reason to try a full disk again
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def work_off(self) -> None:
        """Do all that can be done now; what failed or is not there yet is left for another call.

        Raises:
            StorageError: The disk refused; what was written before stays, and is found stored.
        """
        try:
            await self._settle_depth()
            await self._settle_stored()
            while due := self._due():
                await self._ask_rest(due)
            await self.archive.work_off()
        except StorageError:
            self._batch = RestBatch()
            self._unsure.update(gap.gap_id for gap in self._ledger.unresolved("trades"))
            raise

    def statistics(self) -> dict[str, int | float | str | None]:
        """Rows written, ids by what became of them, failed requests and writes, holes waiting."""
        waiting = [g for g in self._ledger.unresolved("trades") if turn_of(g) is not Turn.NOBODY]
        return {
            **self._counts,
            **self._writer.statistics(),
            **self.archive.statistics(),
            "waiting_gaps": len(waiting),
        }

    # --- what needs no asking -----------------------------------------------------------------

    async def _settle_depth(self) -> None:
        """Books cannot be asked for: their holes are permanent, once their end is known."""
        holes = [gap for gap in self._ledger.open_gaps(kind="depth") if has_extent(gap)]
        for gap in holes:
            is_time = gap.first_id is None
            first = (gap.from_ms or 0) if gap.first_id is None else gap.first_id
            last = gap.until_ms if is_time else gap.last_id
            self._ledger.resolve(
                *("depth", gap.symbol, first, last, GapState.LOST),
                at_ns=self._wall_ns(),
                is_time=is_time,
            )
        if holes:
            async with self._disk:
                await asyncio.to_thread(self._ledger.flush)

    async def _settle_stored(self) -> None:
        """Holes whose rows a dead writer had stored already, before it could say so."""
        for gap in self._ledger.unresolved("trades"):
            if gap.gap_id in self._unsure and turn_of(gap) is not Turn.NOBODY:
                async with self._disk:
                    await asyncio.to_thread(self._settle_one, gap)
        self._unsure.clear()
        self._claims.release_all()

    def _settle_one(self, gap: Gap) -> None:
        """Times alone cannot be settled so: some of their trades may be missing still."""
        if gap.first_id is None:
            return
        last_id = _NO_END if gap.last_id is None else gap.last_id
        settled: list[Settlement] = []
        for stored in self._stored(gap, Missing(ids=((gap.first_id, last_id),))):
            settled += found_runs(gap.symbol, stored.ids, stored.times_ms, stored.source)
        if settled:
            log.info("repair.found_stored", symbol=gap.symbol, runs=len(settled))
            self._writer.write(None, settled)

    def _stored(self, gap: Gap, missing: Missing) -> list[StoredTrades]:
        from_ms = gap.until_ms if gap.from_ms is None else gap.from_ms
        start_ms = 0 if from_ms is None else from_ms - _AROUND_MS
        end_ms = None if gap.until_ms is None else gap.until_ms + _AROUND_MS
        return stored_trades(self._paths, gap.symbol, missing, start_ms, end_ms)

    # --- REST ---------------------------------------------------------------------------------

    def _due(self) -> list[Gap]:
        """Open holes to ask REST for now; those first that leave its reach first."""
        now = self._monotonic()
        gaps = [g for g in self._ledger.unresolved("trades") if turn_of(g) is Turn.REST]
        self._seen_at = {gap.gap_id: self._seen_at.get(gap.gap_id, now) for gap in gaps}
        due = [gap for gap in gaps if self._is_due(gap, now)]
        due.sort(key=lambda gap: _NO_END if gap.until_ms is None else gap.until_ms)
        return due[: self._settings.gaps_at_once]

    def _has_young(self) -> bool:
        youngest = max(self._seen_at.values(), default=None)
        return youngest is not None and self._monotonic() < youngest + self._settings.grace_s

    def _is_due(self, gap: Gap, now: float) -> bool:
        if now < self._seen_at[gap.gap_id] + self._settings.grace_s:
            return False
        if now < self._retry_at.get(gap.symbol, 0.0):
            return False
        if gap.first_id is None:
            return gap.until_ms is not None and gap.until_ms + _LAG_MS < self._market_ms()
        return gap.last_id is not None or gap.symbol not in self._recorded

    async def _ask_rest(self, gaps: Iterable[Gap]) -> None:
        gate = asyncio.Semaphore(self._settings.concurrency)
        self._problems = []
        refused: list[StorageError] = []
        try:
            async with asyncio.TaskGroup() as group:
                for gap in gaps:
                    group.create_task(self._serve(gap, gate), name=f"repair-{gap.symbol}")
        except* StorageError as errors:
            refused += [e for e in errors.exceptions if isinstance(e, StorageError)]
        if refused:
            raise refused[0]
        await self._write_batch()
        if self._problems:
            log.warning("repair.rest_failed", holes=len(self._problems), error=self._problems[0])

    async def _serve(self, gap: Gap, gate: asyncio.Semaphore) -> None:
        async with gate:
            now_ms = self._market_ms()
            if is_beyond_rest(gap, now_ms, self._reach_ms):
                self._batch.add(gap.symbol, _no_rows(), [expired(gap, now_ms)])
                return
            try:
                if gap.first_id is None:
                    is_done = await self._serve_times(gap)
                else:
                    is_done = await self._serve_ids(gap, gap.first_id)
            except ExchangeError as error:
                self._counts["rest_failures"] += 1
                self._back_off(gap.symbol, str(error))
                return
            if is_done:
                self._failures.pop(gap.symbol, None)
                self._retry_at.pop(gap.symbol, None)
            else:
                self._back_off(gap.symbol, f"{gap.symbol}: the history ends within the hole")

    async def _serve_ids(self, gap: Gap, first_id: int) -> bool:
        """Whether the end of the hole was reached."""
        async for page in id_pages(self._history, gap.symbol, first_id, gap.last_id):
            self._batch.add(gap.symbol, page.rows, list(self._settlements(page, gap)))
            await self._write_if_full()
            if page.is_end:
                return gap.last_id is not None
        return False

    def _settlements(self, page: Page, gap: Gap) -> Iterator[Settlement]:
        until_ms = self._market_ms() if gap.until_ms is None else gap.until_ms
        for piece in pieces_of(page, gap):
            state = GapState.REPAIRED if piece.is_found else GapState.EXPIRED
            yield Settlement(
                symbol=gap.symbol,
                span=piece.ids,
                state=state,
                by="rest" if piece.is_found else None,
                times_ms=piece.times_ms,
                repairable_until_ms=None if piece.is_found else archive_until_ms(until_ms),
            )

    async def _serve_times(self, gap: Gap) -> bool:
        """Of a hole without ids: all trades of its time that are not stored."""
        until_ms = gap.until_ms or 0
        start_ms = gap.from_ms or 0
        if self._reach_ms is not None:  # what lies before is beyond REST at the next round
            start_ms = max(start_ms, self._market_ms() - self._reach_ms)
        missing = Missing(times_ms=((start_ms, until_ms - 1),))
        stored = await asyncio.to_thread(self._stored, gap, missing)
        known = np.concatenate([_no_rows()["agg_trade_id"], *(found.ids for found in stored)])
        async for page in time_pages(self._history, gap.symbol, start_ms, until_ms):
            rows = page.rows[~np.isin(page.rows["agg_trade_id"], known)]
            done = Settlement(
                symbol=gap.symbol,
                span=(start_ms, until_ms - 1),
                state=GapState.REPAIRED,
                by="rest",
                is_time=True,
            )
            self._batch.add(gap.symbol, rows, [done] if page.is_end else [])
            if page.is_end:  # one batch, so that a time is never settled without all of its rows
                return True
        return False

    def _back_off(self, symbol: str, problem: str) -> None:
        failures = self._failures.get(symbol, 0) + 1
        self._failures[symbol] = failures
        wait_s = retry_s(failures, self._settings.retry_s, self._settings.retry_cap_s)
        self._retry_at[symbol] = self._monotonic() + wait_s
        self._problems.append(problem)

    async def _write_if_full(self) -> None:
        self.on_progress()
        if self._batch.row_count >= self._settings.batch_rows:
            await self._write_batch()

    async def _write_batch(self) -> None:
        batch, self._batch = self._batch, RestBatch()
        if batch:
            async with self._disk:
                await asyncio.to_thread(batch.write, self._writer)
            self.on_progress()


def _no_rows() -> np.ndarray:
    return np.empty(0, dtype=TRADE_DTYPE)
