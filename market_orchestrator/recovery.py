"""What the store lacks, rebuilt from the exchange's history beside the live run.

At start: the windows since the last stored one, and older ones that are missing, incomplete or off
the CVD chain. While running: old windows that a late trade or repair changed. Live analysis never
waits for any of it. Reach: 48 h of trade history; what is older stays in the ledger for the archive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from binance_api.errors import ExchangeError
from data_validator import MissingRange
from domain.errors import StorageError
from domain.events import GapEvent, GapState
from domain.features import FeatureRow
from lake.atomic import write_atomic
from market_orchestrator.market_flow import MarketFlow, WindowAnalysis
from market_orchestrator.outputs import Outputs
from market_orchestrator.rebuild import Span, TradeHistory, rebuild
from market_orchestrator.settled_holes import settled
from market_orchestrator.storage import Storage

log = structlog.get_logger()

_ASK_DEADLINE_S = 5.0
BOOKMARK_FILE = "started.json"  # beside source.json: the dataset folder holds Parquet alone


class RecoverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    chunk_windows: windows rebuilt before they are written.
    retry_s: first wait after a failed request; doubles up to ``retry_cap_s``.
    retry_cap_s: longest wait.
    progress_s: a progress line this often.
    tick_s: how often new work is looked for.
    concurrency: symbols rebuilt at once; they share the request budget page by page.
    wait_for_trade_ms: how long a symbol's first live trade is awaited before its hole is begun.
    """

    chunk_windows: int = 1_000
    retry_s: float = 0.5
    retry_cap_s: float = 60.0
    progress_s: float = 10.0
    tick_s: float = 0.2
    concurrency: int = 8
    wait_for_trade_ms: int = 10_000


class Bookmark(msgspec.Struct, frozen=True):
    """Where a store began for one symbol: lets a crash before the first flush be recovered."""

    window_start_ms: int
    first_agg_id: int


class Plan(msgspec.Struct, frozen=True):
    """What one symbol's store lacks, as found at start."""

    symbol: str
    last: FeatureRow | None
    resume_ms: int | None  # the first window after the store's end
    resume_id: int | None  # the first trade id after what the store knows
    resume_known: bool  # the trade before that id is known
    spans: tuple[Span, ...]  # older holes and incomplete windows
    broken_from_ms: int | None  # the CVD chain has to be carried on from here


class Recovery:
    """Finds and rebuilds; owned and run by the orchestrator."""

    def __init__(
        self,
        flow: MarketFlow,
        outputs: Outputs,
        storage: Storage,
        history: TradeHistory,
        publish: Callable[[GapEvent], None],
        settings: RecoverySettings,
        *,
        monotonic: Callable[[], float],
        wall_ns: Callable[[], int],
    ) -> None:
        self._flow = flow
        self._outputs = outputs
        self._storage = storage
        self._history = history
        self._publish = publish
        self._settings = settings
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._waiting: dict[str, Plan] = {}
        self._jobs: dict[str, list[Span]] = {}
        self._busy: set[str] = set()
        self._bookmarked: set[str] = set()
        self._early: set[tuple[str, int]] = set()
        self._windows_done = 0
        self._windows_wanted = 0
        self._started = monotonic()
        self._next_progress = 0.0

    # --- at start -------------------------------------------------------------------------

    def examine(self) -> list[Plan]:
        """Read the store's end and its faults. Blocks on the disk; call before the live run."""
        store = self._outputs.features
        duration_ms = self._flow.settings.windows.duration_ms
        symbols = self._flow.symbols
        lasts = store.last_rows(symbols)
        ids = store.last_known_ids(symbols)
        marks = read_bookmarks(store.folder.parent)
        plans = []
        for symbol in symbols:
            last = lasts.get(symbol)
            if last is None:
                plans.append(_plan_of_bookmark(symbol, marks.get(symbol)))
                continue
            since_ms = last.window_start_ms - AGG_TRADES_REACH_MS
            report = store.find_breaks(symbol, since_ms, duration_ms)
            wanted = [(hole.start_ms, hole.end_ms) for hole in report.missing]
            wanted += [(start, start + duration_ms) for start in report.incomplete]
            spans = [
                span
                for start_ms, end_ms in _joined(wanted)
                if (span := self._span(symbol, start_ms, end_ms)) is not None
            ]
            beginning = self._beginning(symbol, marks.get(symbol), since_ms)
            spans = spans if beginning is None else [beginning, *spans]
            known = ids.get(symbol)
            plans.append(
                Plan(
                    symbol,
                    last,
                    last.window_end_ms,
                    None if known is None else known + 1,
                    known is not None,
                    tuple(spans),
                    min(report.broken, default=None),
                )
            )
        return plans

    def adopt(self, plans: Iterable[Plan]) -> None:
        """Continue from the store: CVD, what need not be written again, and the work found."""
        for plan in plans:
            self._bookmarked.add(plan.symbol)
            if plan.resume_ms is None:
                self._bookmarked.discard(plan.symbol)
                continue
            self._waiting[plan.symbol] = plan
            if plan.last is not None:
                self._outputs.adopt(self._flow, plan.last)
            for span in plan.spans:
                self._add(span)

    # --- while running --------------------------------------------------------------------

    async def run(self) -> None:
        """Rebuild what is known to be lacking, until cancelled."""
        gate = asyncio.Semaphore(self._settings.concurrency)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._begin_holes()
                await self._bookmark()
                await self._take_stale()
                for symbol in [s for s in self._jobs if s not in self._busy]:
                    self._busy.add(symbol)
                    group.create_task(self._work(symbol, gate), name=f"recover-{symbol}")
                await asyncio.sleep(self._settings.tick_s)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Windows rebuilt and wanted, symbols at work, and the estimated seconds left."""
        done, wanted = self._windows_done, self._windows_wanted
        elapsed_s = self._monotonic() - self._started
        left_s = elapsed_s * (wanted - done) / done if 0 < done < wanted else None
        return {
            "windows_done": done,
            "windows_wanted": wanted,
            "symbols_busy": len(self._busy),
            "eta_s": left_s,
        }

    async def _begin_holes(self) -> None:
        """Once a symbol's live run has begun, the hole before it has an end."""
        builder = self._flow.builder
        if builder.first_start_ms is None:
            return
        for symbol, plan in list(self._waiting.items()):
            sequence = self._flow.validator.sequences[self._flow.index[symbol]]
            is_late = builder.route_ms > builder.first_start_ms + self._settings.wait_for_trade_ms
            if sequence.first_id is None and not is_late:
                continue  # its first live trade says where the history must reach
            if not await self._begin_hole(plan, builder.first_start_ms, sequence.first_id):
                continue
            del self._waiting[symbol]
            if plan.broken_from_ms is not None:
                self._storage.submit_chain(symbol, plan.broken_from_ms)

    async def _begin_hole(self, plan: Plan, end_ms: int, until_id: int | None) -> bool:
        """Set the work between the store's end and the live run; False: try again later."""
        start_ms, from_id, known = plan.resume_ms or end_ms, plan.resume_id, plan.resume_known
        reach_ms = self._flow.builder.route_ms - AGG_TRADES_REACH_MS
        if start_ms >= end_ms:
            return True
        if start_ms < reach_ms:
            duration_ms = self._flow.settings.windows.duration_ms
            oldest_ms = reach_ms - reach_ms % duration_ms + 2 * duration_ms
            from_id, known = await self._first_id_at(plan.symbol, oldest_ms), True
            if from_id is None:
                return False
            self._out_of_reach(plan, start_ms, oldest_ms, from_id)
            start_ms = oldest_ms
        if from_id is not None:
            self._add(Span(plan.symbol, start_ms, end_ms, from_id, known, until_id))
        return True

    async def _first_id_at(self, symbol: str, start_ms: int) -> int | None:
        """Id of the first trade at or after a time; None while the exchange does not answer."""
        try:
            reply = await self._history.agg_trades(
                symbol, start_ms=start_ms, limit=1, deadline_s=_ASK_DEADLINE_S
            )
        except ExchangeError as error:
            log.warning("recovery.waiting", symbol=symbol, error=str(error))
            return None
        return int(reply.value["agg_trade_id"][0]) if len(reply.value) else None

    def _out_of_reach(self, plan: Plan, from_ms: int, reach_ms: int, next_id: int) -> None:
        log.error("recovery.out_of_reach", symbol=plan.symbol, from_ms=from_ms, until_ms=reach_ms)
        has_ids = plan.resume_id is not None and plan.resume_id < next_id
        self._publish(
            GapEvent(
                kind="trades",
                symbol=plan.symbol,
                first_id=plan.resume_id if has_ids else None,
                last_id=next_id - 1 if has_ids else None,
                state=GapState.EXPIRED,
                cause="not running",
                from_ms=from_ms,
                until_ms=reach_ms,
                repairable_until_ms=from_ms + AGG_TRADES_REACH_MS,
                at_ns=self._wall_ns(),
            )
        )

    async def _take_stale(self) -> None:
        """Old windows to rebuild; those of a symbol at work gather until it is done."""
        if self._flow.live or self._flow.revised:
            return  # what the windows were before goes to the store first
        at_work = {self._flow.index[symbol] for symbol in {*self._busy, *self._jobs}}
        stale = {window for window in self._flow.stale if window[0] not in at_work}
        if not stale:
            return
        self._flow.stale -= stale
        duration_ms = self._flow.settings.windows.duration_ms
        by_symbol: dict[str, list[tuple[int, int]]] = {}
        for index, start_ms in stale:
            symbol = self._flow.symbols[index]
            by_symbol.setdefault(symbol, []).append((start_ms, start_ms + duration_ms))
        for symbol, wanted in by_symbol.items():
            for start_ms, end_ms in _joined(wanted):
                span = await asyncio.to_thread(self._span, symbol, start_ms, end_ms)
                if span is not None:
                    self._add(span)

    async def _bookmark(self) -> None:
        """Remember durably where a fresh store began."""
        start_ms = self._flow.builder.first_start_ms
        if start_ms is None or len(self._bookmarked) == len(self._flow.symbols):
            return
        fresh = {
            symbol: Bookmark(start_ms, sequence.first_id)
            for symbol, sequence in zip(
                self._flow.symbols, self._flow.validator.sequences, strict=True
            )
            if symbol not in self._bookmarked and sequence.first_id is not None
        }
        if fresh:
            self._bookmarked.update(fresh)
            await asyncio.to_thread(write_bookmarks, self._outputs.features.folder.parent, fresh)

    # --- rebuilding -----------------------------------------------------------------------

    def _add(self, span: Span) -> None:
        self._jobs.setdefault(span.symbol, []).append(span)
        duration_ms = self._flow.settings.windows.duration_ms
        self._windows_wanted += (span.end_ms - span.first_start_ms) // duration_ms

    async def _work(self, symbol: str, gate: asyncio.Semaphore) -> None:
        try:
            async with gate:
                for span in self._jobs.pop(symbol, []):
                    await self._rebuild(span)
        finally:
            self._busy.discard(symbol)

    async def _rebuild(self, span: Span) -> None:
        """Rebuild a span, through failures, from where it stands."""
        wait_s = self._settings.retry_s
        while span.first_start_ms < span.end_ms:
            try:
                async for done in self._rebuild_once(span):
                    span = done
                    wait_s = self._settings.retry_s
                break
            except (ExchangeError, StorageError) as error:
                log.warning(
                    "recovery.waiting", symbol=span.symbol, error=str(error), retry_s=wait_s
                )
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._settings.retry_cap_s)

    async def _rebuild_once(self, span: Span) -> AsyncIterator[Span]:
        """Yields what is left of the span after each part that was written."""
        settings = self._flow.settings
        analysis = WindowAnalysis(span.symbol, settings)
        await self._warm(analysis, span)
        part: dict[int, FeatureRow] = {}
        lost: list[MissingRange] = []
        early: set[int] = set()
        next_id = span.from_id
        async for batches in rebuild(
            self._history, span, settings.windows, settings.validator, lost.append, early.add
        ):
            for batch in batches:
                for closed in analysis.analyse(batch):
                    part[closed.row.window_start_ms] = closed.row
                    next_id = (closed.row.last_agg_id or next_id - 1) + 1
            end_ms = batches[-1].end_ms
            is_last = end_ms >= span.end_ms
            if len(part) >= self._settings.chunk_windows or is_last:
                await self._storage.write_recovered(span.symbol, part, last=is_last)
                gaps = self._storage.trade_gaps(span.symbol)
                for event in settled(gaps, part.values(), lost, at_ns=self._wall_ns()):
                    self._publish(event)
                self._windows_done += len(part)
                part = {}
                lost.clear()
                yield msgspec.structs.replace(
                    span, first_start_ms=end_ms, from_id=next_id, from_known=True
                )
            self._report(span.symbol, end_ms)
        await self._rebuild_early(span.symbol, early)

    async def _rebuild_early(self, symbol: str, starts: set[int]) -> None:
        """Stored windows that turned out to lack a trade; each is looked at once in a run."""
        duration_ms = self._flow.settings.windows.duration_ms
        for start_ms in sorted(starts):
            if (symbol, start_ms) in self._early:
                continue
            self._early.add((symbol, start_ms))
            span = await asyncio.to_thread(self._span, symbol, start_ms, start_ms + duration_ms)
            if span is not None:
                self._add(span)

    async def _warm(self, analysis: WindowAnalysis, span: Span) -> None:
        """Give the analysis its past; where all windows are stored, what depends on it stays theirs."""
        duration_ms = self._flow.settings.windows.duration_ms
        stored = await asyncio.to_thread(
            self._outputs.features.read,
            span.symbol,
            span.first_start_ms,
            span.end_ms,
            ["window_start_ms"],
        )
        if stored.num_rows * duration_ms >= span.end_ms - span.first_start_ms:
            return
        look_back_ms = 3_600_000
        rows = await asyncio.to_thread(
            self._outputs.features.read_rows,
            span.symbol,
            span.first_start_ms - look_back_ms,
            span.first_start_ms,
        )
        if rows:
            analysis.pipeline.warm(span.symbol, [], rows)
            analysis.analyzer.warm(span.symbol, rows)

    def _beginning(self, symbol: str, mark: Bookmark | None, since_ms: int) -> Span | None:
        """What is missing between the store's beginning and its first window. Blocks on the disk."""
        if mark is None or mark.window_start_ms < since_ms:
            return None
        stored = self._outputs.features.read(
            symbol, mark.window_start_ms, None, ["window_start_ms", "first_agg_id"]
        )
        starts, ids = (column.to_pylist() for column in stored.columns)
        if starts[0] == mark.window_start_ms:
            return None
        until_id = next((int(value) for value in ids if value is not None), None)
        first_ms = int(starts[0] or 0)
        return Span(symbol, mark.window_start_ms, first_ms, mark.first_agg_id, False, until_id)

    def _span(self, symbol: str, start_ms: int, end_ms: int) -> Span | None:
        """A span to rebuild, beginning after the last trade known before it. Blocks on the disk."""
        store = self._outputs.features
        before = store.read(symbol, start_ms - AGG_TRADES_REACH_MS, start_ms, ["last_agg_id"])
        after = store.read(symbol, end_ms, None, ["first_agg_id"])
        earlier = [value for value in before.column(0).to_pylist() if value is not None]
        later = [value for value in after.column(0).to_pylist() if value is not None]
        until_id = int(later[0]) if later else None
        if earlier:
            return Span(symbol, start_ms, end_ms, int(earlier[-1]) + 1, True, until_id)
        inside = store.read(symbol, start_ms, end_ms, ["first_agg_id"])
        first = [value for value in inside.column(0).to_pylist() if value is not None]
        if not first and until_id is None:
            return None
        return Span(symbol, start_ms, end_ms, int((first or later)[0]), False, until_id)

    def _report(self, symbol: str, until_ms: int) -> None:
        now = self._monotonic()
        if now < self._next_progress:
            return
        self._next_progress = now + self._settings.progress_s
        log.info("recovery.progress", symbol=symbol, until_ms=until_ms, **self.statistics())


def read_bookmarks(folder: Path) -> dict[str, Bookmark]:
    """Where the store began per symbol; empty if there is no (readable) file."""
    try:
        return msgspec.json.decode((folder / BOOKMARK_FILE).read_bytes(), type=dict[str, Bookmark])
    except (OSError, msgspec.DecodeError):
        return {}


def write_bookmarks(folder: Path, fresh: Mapping[str, Bookmark]) -> None:
    """Add symbols to the file."""
    content = msgspec.json.encode({**read_bookmarks(folder), **fresh})
    write_atomic(folder / BOOKMARK_FILE, content, overwrite=True)


def _plan_of_bookmark(symbol: str, mark: Bookmark | None) -> Plan:
    if mark is None:
        return Plan(symbol, None, None, None, False, (), None)
    return Plan(symbol, None, mark.window_start_ms, mark.first_agg_id, False, (), None)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjacent and overlapping spans made one."""
    joined: list[tuple[int, int]] = []
    for start_ms, end_ms in sorted(spans):
        if joined and start_ms <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_ms))
        else:
            joined.append((start_ms, end_ms))
    return joined
