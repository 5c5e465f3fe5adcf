"""Everything that touches the disk, in one task: flushes, revisions, merges, quarantine and ledger.

Consumes what the synchronous flow left (pending rows, rebuilt windows, rejected input) and writes it
in worker threads, one write at a time, so that a revision never races a flush.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping

import msgspec
import structlog

from domain.errors import StorageError
from domain.events import GapEvent, GapState
from domain.features import FeatureRow
from lake.gap_ledger import Gap, GapLedger
from lake.quarantine import Quarantine
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.outputs import Outputs, Revision

log = structlog.get_logger()

_CLOSES_SOON_MS = 300  # windows that close within this time wait for no write
_LOOK_AGAIN_S = 0.02
_MOST_LOOKS = 50


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between flushes, between merges of small files, and the pause that gathers repairs.

    Attributes:
        flush_s: feature rows and signals reach the disk this often.
        flush_rows: feature rows that wait for less than this long if they are so many: they and their
            conversion are most of the memory that comes and goes (about 3 KiB a row).
        first_flush_s: the first time already after this; the wait then doubles up to ``flush_s``,
            so that a new run soon has something to show.
        side_flush_s: so do quarantine and gap ledger.
        merge_s: small files of the open day are merged this often.
        first_merge_s: the first time after the start.
        gather_s: repairs arriving within this time are written as one batch.
        retry_s: wait after the disk refused a revision.
    """

    flush_s: float = 60.0
    flush_rows: int = 2_000
    first_flush_s: float = 5.0
    side_flush_s: float = 1.0
    merge_s: float = 3_600.0
    first_merge_s: float = 30.0
    gather_s: float = 0.3
    retry_s: float = 5.0


class Storage:
    """Owner of the disk for one run."""

    def __init__(
        self,
        flow: MarketFlow,
        outputs: Outputs,
        quarantine: Quarantine,
        ledger: GapLedger,
        settings: StorageSettings,
        *,
        monotonic: Callable[[], float],
        wall_ns: Callable[[], int],
    ) -> None:
        self._flow = flow
        self._outputs = outputs
        self._quarantine = quarantine
        self._ledger = ledger
        self._settings = settings
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._rebuilt: dict[str, dict[int, FeatureRow]] = {}
        self._chains: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._disk = asyncio.Lock()
        self._failed_flushes = 0

    def submit(self, symbol: str, rebuilt: Mapping[int, FeatureRow]) -> None:
        """Windows rebuilt from trades, to be worked into the store."""
        self._rebuilt.setdefault(symbol, {}).update(rebuilt)
        self._wake.set()

    def submit_chain(self, symbol: str, from_ms: int) -> None:
        """The stored CVD does not add up from this window on: carry it on again."""
        self._chains[symbol] = min(from_ms, self._chains.get(symbol, from_ms))
        self._wake.set()

    def reject(self) -> None:
        """Take rejected input from the flow into the quarantine."""
        for rejection in self._flow.take_rejections():
            at_ns = rejection.receive_time_ns if rejection.receive_time_ns > 0 else self._wall_ns()
            self._quarantine.add(
                rejection.reason, rejection.payload, at_ns=at_ns, symbol=rejection.symbol
            )

    def record_gap(self, event: GapEvent) -> None:
        """Enter a hole, or what became of it, into the ledger."""
        if event.state is not GapState.REPAIRED:
            self._ledger.enter(event)
        if event.state is not GapState.OPEN and event.first_id is not None:
            self._ledger.resolve(
                event.kind,
                event.symbol,
                event.first_id,
                event.last_id,
                event.state,
                at_ns=event.at_ns,
                by="rest" if event.state is GapState.REPAIRED else None,
            )

    def trade_gaps(self, symbol: str) -> list[Gap]:
        """What the ledger says is missing of a symbol's trades, whatever became of it."""
        return [gap for gap in self._ledger.all() if (gap.kind, gap.symbol) == ("trades", symbol)]

    async def run(self) -> None:
        """Write what is due until cancelled; ``finish`` writes the rest."""
        flush_wait_s = min(self._settings.first_flush_s, self._settings.flush_s)
        next_flush = self._monotonic() + flush_wait_s
        rows_due = self._settings.flush_rows
        next_side = self._monotonic() + self._settings.side_flush_s
        next_merge = self._monotonic() + self._settings.first_merge_s
        while True:
            wait_s = max(0.0, min(next_flush, next_side, next_merge) - self._monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self._wake.is_set():
                await asyncio.sleep(self._settings.gather_s)
                await self._try_to_revise()
            now = self._monotonic()
            if now >= next_side:
                next_side = now + self._settings.side_flush_s
                await self._in_thread(self._flush_side)
            if now >= next_flush or self._outputs.features.pending_count >= rows_due:
                flush_wait_s = min(2 * flush_wait_s, self._settings.flush_s)
                next_flush = now + flush_wait_s
                await self.between_boundaries()
                await self._in_thread(self._flush_rows)
                # what a failed flush left does not count: it is retried in its time
                rows_due = self._outputs.features.pending_count + self._settings.flush_rows
            if now >= next_merge:
                next_merge = now + self._settings.merge_s
                await self.between_boundaries()
                await self._in_thread(self._merge)

    async def revise(self) -> None:
        """Work the submitted windows into the store, carry CVD on, write, publish.

        Raises:
            StorageError: the disk refused; the windows stay submitted.
        """
        async with self._disk:
            self._wake.clear()
            submitted, self._rebuilt = self._rebuilt, {}
            chains, self._chains = self._chains, {}
            try:
                revisions = [
                    await self._revise_symbol(symbol, submitted.get(symbol, {}), chains.get(symbol))
                    for symbol in sorted({*submitted, *chains})
                ]
                await asyncio.to_thread(self._outputs.write, revisions)
            except BaseException:
                for symbol, rebuilt in submitted.items():
                    self._rebuilt[symbol] = {**rebuilt, **self._rebuilt.get(symbol, {})}
                self._chains = {**self._chains, **chains}
                raise
            self._outputs.announce(revisions)
            await asyncio.to_thread(self._outputs.features.release_memory)

    async def write_recovered(
        self, symbol: str, rebuilt: Mapping[int, FeatureRow], *, last: bool
    ) -> None:
        """Write a part of a recovered span; with ``last`` the CVD is carried on to now.

        What was submitted for these windows and waits is older, and must not come after.
        """
        if not rebuilt:
            return
        async with self._disk:
            left = _without(self._rebuilt.pop(symbol, {}), rebuilt)
            if left:
                self._rebuilt[symbol] = left
            until_ms = None if last else max(rebuilt) + 1
            revision = await self._revise_symbol(symbol, rebuilt, None, until_ms)
            await asyncio.to_thread(self._outputs.write, [revision])
            self._outputs.announce([revision])

    async def finish(self) -> None:
        """Write everything that is left.

        Raises:
            StorageError: the disk refused.
        """
        if self._rebuilt or self._chains:
            await self.revise()
        async with self._disk:
            self.reject()
            await asyncio.to_thread(self._flush_side)
            await asyncio.to_thread(self._outputs.features.flush)
            await asyncio.to_thread(self._outputs.signals.flush)

    async def between_boundaries(self) -> None:
        """Wait while windows are analysed or about to close, a second at most.

        What can wait would take turns with them: a thread that writes, a question to a provider.
        """
        for _ in range(_MOST_LOOKS):
            if not self._is_at_boundary():
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Failed flushes, repairs waiting to be written, rejected input, holes by state."""
        sides = {"quarantine": self._quarantine.statistics(), "ledger": self._ledger.statistics()}
        return {
            **{f"{side}_{k}": v for side, read in sides.items() for k, v in read.items()},
            "failed_flushes": self._failed_flushes,
            "waiting_repairs": sum(map(len, self._rebuilt.values())),
        }

    async def _try_to_revise(self) -> None:
        try:
            await self.revise()
        except StorageError as error:
            self._failed_flushes += 1
            log.error("storage.revision_failed", error=str(error), failures=self._failed_flushes)
            await asyncio.sleep(self._settings.retry_s)
            self._wake.set()

    async def _revise_symbol(
        self,
        symbol: str,
        rebuilt: Mapping[int, FeatureRow],
        from_ms: int | None,
        until_ms: int | None = None,
    ) -> Revision:
        revision = await asyncio.to_thread(
            self._outputs.revise, symbol, rebuilt, from_ms=from_ms, until_ms=until_ms
        )
        if until_ms is None:
            async with self._outputs.emitting:
                revision = self._outputs.carry_on(revision)
                self._flow.restore_cvd(symbol, revision.state)
        return revision

    def _is_at_boundary(self) -> bool:
        flow, builder = self._flow, self._flow.builder
        if flow.live or builder.has_more or self._outputs.unjudged_end_ms is not None:
            return True
        end_ms = builder.next_end_ms()
        if end_ms is None:
            return False
        closes_ms = end_ms + builder.settings.lateness_ms
        return closes_ms - self._outputs.exchange_now_ms() < _CLOSES_SOON_MS

    async def _in_thread(self, work: Callable[[], None]) -> None:
        async with self._disk:
            await asyncio.to_thread(work)

    def _flush_side(self) -> None:
        self._quarantine.flush()
        try:
            self._ledger.flush()
        except StorageError as error:
            log.error("storage.ledger_failed", error=str(error))

    def _flush_rows(self) -> None:
        """A failed flush keeps its rows for the next one; the store refuses when too many wait."""
        try:
            self._outputs.features.flush()
            self._outputs.signals.flush()
        except StorageError as error:
            self._failed_flushes += 1
            log.error("storage.flush_failed", error=str(error), failures=self._failed_flushes)

    def _merge(self) -> None:
        try:
            self._outputs.features.compact_due(self._flow.builder.route_ms)
            self._outputs.signals.partitioned.compact_due(self._flow.builder.route_ms)
            self._ledger.expire(self._flow.builder.route_ms, at_ns=self._wall_ns())
            self._outputs.features.release_memory()
        except StorageError as error:
            log.error("storage.merge_failed", error=str(error))


def _without(rows: Mapping[int, FeatureRow], starts: Container[int]) -> dict[int, FeatureRow]:
    return {start_ms: row for start_ms, row in rows.items() if start_ms not in starts}
