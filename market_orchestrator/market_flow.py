"""The synchronous heart: frames → decoded → validated → windows → metrics → feature rows.

Used alike by the live bot, by replay and by recovery; owns no task and no socket. What it produces is
taken from it: closed windows, revised windows, rejected input, and windows to rebuild from REST.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
import structlog

from binance_api.decode import decode_trades
from binance_api.decode_depth import decode_depth, read_levels
from binance_api.endpoints import Route
from binance_api.frames import FinerTime, Rejection, contradictions
from data_pipeline.pipeline import DataPipeline, PipelineSettings
from data_validator import DUPLICATE, DataValidator, Rejected
from domain.context import MarketContext
from domain.events import MOST_WHALE_PRINTS, GapEvent, GapState
from domain.features import FeatureRow
from domain.flow import FlowMetrics, Origin, WhalePrint, WindowBatch
from domain.market import DepthSnapshot, DepthTop, Market
from flow_analyzer import FlowSettings, TradeFlowAnalyzer
from market_orchestrator.revisions import CvdState
from market_orchestrator.windows import Closed, WindowBuilder, WindowSettings
from microstructure.book_window import BookAccumulator
from microstructure.trade_flags import ValidatorSettings
from microstructure.whale_prints import whale_prints

log = structlog.get_logger()

_PAST_MS = 30_000  # a window closed later than this after its end is recovered, not live
_NEAR_MS = 30  # a batch of a lasting rate spans less
_MAX_REJECTIONS = 10_000  # kept until taken; more are counted only


class MarketFlowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the parts, and the symbols they all share."""

    symbols: tuple[str, ...]
    market: Market = Market.UM
    validator: ValidatorSettings = ValidatorSettings()
    windows: WindowSettings = WindowSettings()
    flow: FlowSettings = FlowSettings()
    pipeline: PipelineSettings = PipelineSettings()


class ClosedWindow(msgspec.Struct, frozen=True, gc=False):
    """One analysed window: exact metrics, the row to store, and what an analyst may know."""

    metrics: FlowMetrics
    row: FeatureRow
    context: MarketContext
    whale_prints: tuple[WhalePrint, ...] = ()  # of live windows


class ModelFeed(Protocol):
    """Shown what a model's inputs are made of, as it comes."""

    def on_book(self, top: DepthTop, *, chain_broken: bool) -> None:
        """An accepted depth frame, in the order of its chain."""

    def on_batch(self, batch: WindowBatch) -> None:
        """Windows that closed, for the first time or again."""


class WindowAnalysis:
    """Analysis of one symbol's windows beside the live one: rebuilt windows, recovered spans."""

    def __init__(self, symbol: str, settings: MarketFlowSettings) -> None:
        self.analyzer = TradeFlowAnalyzer([symbol], settings.flow)
        self.pipeline = DataPipeline(settings.pipeline)

    def analyse(self, batch: WindowBatch) -> Iterator[ClosedWindow]:
        """Metrics and rows of windows in time order; ``batch`` holds this symbol alone."""
        for metrics in self.analyzer.analyze(batch):
            result = self.pipeline.process(metrics, None)
            if result.row is not None:
                yield ClosedWindow(metrics, result.row, result.context)


class MarketFlow:
    """Everything between a frame and a feature row, for a fixed list of symbols."""

    def __init__(
        self,
        settings: MarketFlowSettings,
        *,
        monotonic_ns: Callable[[], int],
        repairable: bool,
        wall_ns: Callable[[], int] | None = None,
    ) -> None:
        """``wall_ns`` is None where there is no "now" to be late for (replay)."""
        self.settings = settings
        self.symbols = list(settings.symbols)
        self.index = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.validator = DataValidator(self.symbols, settings.validator)
        self.builder = WindowBuilder(
            self.validator.sequences, settings.windows, repairable=repairable
        )
        self.analyzer = TradeFlowAnalyzer(self.symbols, settings.flow)
        self._whale_unit = settings.flow.whale_unit
        is_live = wall_ns is not None
        self.pipeline = DataPipeline(settings.pipeline, learns_later=is_live)
        self.books = BookAccumulator(
            settings.windows.duration_ms, self._read_levels, keeps_unread=is_live
        )
        self.live: deque[WindowBatch] = deque()
        self.revised: deque[WindowBatch] = deque()
        self.stale: set[tuple[int, int]] = set()
        self.on_work: Callable[[], None] = lambda: None  # called when something waits to be taken
        self.model_feed: ModelFeed | None = None
        self._rejections: list[Rejection] = []
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._depth_gaps: list[GapEvent] = []
        self._depth_ms: dict[str, int] = {}  # time of each symbol's latest snapshot
        self._depth_socket: int | None = None
        self._finer_streams: set[str] = set()  # whose times came finer than milliseconds
        self._counts = dict.fromkeys(
            ("frames", "trades", "depth_frames", "rejected", "finer_times"), 0
        )

    # --- in -------------------------------------------------------------------------------

    def on_frames(
        self, route: Route, socket_id: int, payloads: Sequence[bytes], stamps: Sequence[int]
    ) -> set[str]:
        """Take frames of one socket in arrival order; returns the streams that carried data."""
        self._counts["frames"] += len(payloads)
        if route is Route.DEPTH:
            return self._on_depth(socket_id, payloads, stamps)
        decoded = decode_trades(payloads, stamps, self.index)
        self.reject(decoded.rejections)
        if decoded.finer:
            self._note_finer(decoded.finer)
        if len(decoded.rows):
            self.on_trades(decoded.rows, authoritative=False)
        return decoded.streams

    def on_trades(self, rows: np.ndarray, *, authoritative: bool) -> None:
        """Take trade rows (``authoritative``: from REST) and close what is then proven."""
        now_ns = self._monotonic_ns()
        self._counts["trades"] += len(rows)
        checked = self.validator.check_trades(rows, now_ns, authoritative=authoritative)
        if len(checked.rejected_rows):
            self.reject(contradictions(checked.rejected_rows, self.symbols))
        self.stale.update(self.builder.ingest(checked, live=not authoritative))
        self.close(now_ns)

    def close(self, now_ns: int | None = None) -> None:
        """Let the builder emit what is proven or out of patience; live, one batch a call."""
        at_most = None if self._wall_ns is None else self.settings.windows.batch_symbols
        now_ns = self._monotonic_ns() if now_ns is None else now_ns
        self.take(self.builder.close(now_ns, at_most))

    def close_more(self) -> None:
        """Emit the next batch of what the last ``close`` left."""
        if self.builder.has_more:
            self.close()

    def awaits_trades(self) -> bool:
        """Whether the next trades may well prove that the windows of a boundary are over."""
        end_ms = self.builder.next_end_ms()
        if end_ms is None:
            return False
        return 0 < end_ms + self.settings.windows.lateness_ms - self.builder.route_ms <= _NEAR_MS

    def take(self, closed: Closed) -> None:
        """Sort what the builder emitted into live and revised windows."""
        for batch in closed.batches:
            if self.model_feed is not None:
                self.model_feed.on_batch(batch)
            if batch.origin is Origin.REVISED:
                self.revised.append(batch)
            elif self._is_past(batch.end_ms):
                self.live.append(msgspec.structs.replace(batch, origin=Origin.RECOVERED))
            else:
                self.live.append(batch)
        if closed.batches:
            self.on_work()
        self.stale.update(closed.stale)

    # --- out ------------------------------------------------------------------------------

    def analyse(self, batch: WindowBatch) -> Iterator[ClosedWindow]:
        """Metrics and feature rows of windows that closed together, in time order per symbol."""
        offsets = batch.offsets.tolist()
        for place, metrics in enumerate(self.analyzer.analyze(batch)):
            book = self.books.close(metrics.symbol, metrics.window_start_ms)
            result = self.pipeline.process(metrics, book)
            if result.row is not None:
                rows = batch.rows[offsets[place] : offsets[place + 1]]
                count = min(metrics.whale_count, MOST_WHALE_PRINTS)
                prints = whale_prints(rows, count, self._whale_unit)
                yield ClosedWindow(metrics, result.row, result.context, prints)

    def rows_of(self, batch: WindowBatch) -> list[FeatureRow]:
        """Rows of rebuilt windows, from their own trades alone: no history, no book, no CVD."""
        rows = []
        for position in range(len(batch.symbol_index)):
            rebuilder = WindowAnalysis(self.symbols[batch.symbol_index[position]], self.settings)
            rows += [closed.row for closed in rebuilder.analyse(_only(batch, position))]
        return rows

    def restore_cvd(self, symbol: str, state: CvdState | None) -> None:
        """Let live analysis continue from this state."""
        if state is not None:
            self.analyzer.restore_cvd(
                symbol,
                cvd=state.cvd,
                anchor_ms=state.anchor_ms,
                complete=state.complete,
                last_window_start_ms=state.window_start_ms,
            )

    def take_depth_gaps(self) -> list[GapEvent]:
        """Breaks of the depth chain since the last call: what was missed is gone."""
        taken, self._depth_gaps = self._depth_gaps, []
        return taken

    def take_rejections(self) -> list[Rejection]:
        """Rejected input since the last call, for the quarantine."""
        taken, self._rejections = self._rejections, []
        return taken

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts of this part; the parts it owns have their own."""
        return {**self._counts, "waiting_batches": len(self.live)}

    # --- inside ---------------------------------------------------------------------------

    def _on_depth(
        self, socket_id: int, payloads: Sequence[bytes], stamps: Sequence[int]
    ) -> set[str]:
        if socket_id != self._depth_socket:
            if self._depth_socket is not None:
                self.validator.reset_depth()
            self._depth_socket = socket_id
        market = self.settings.market
        decoded = decode_depth(payloads, stamps, self.index, market)
        self.reject(decoded.rejections)
        if decoded.finer:
            self._note_finer(decoded.finer)
        self._counts["depth_frames"] += len(decoded.tops)
        check_depth, add, depth_ms = self.validator.check_depth, self.books.add, self._depth_ms
        for top in map(self._timed, decoded.tops) if market is Market.SPOT else decoded.tops:
            checked = check_depth(top)
            if isinstance(checked, Rejected):
                if checked.reason != DUPLICATE:
                    self._reject_depth(checked.reason, top)
            else:
                add(top, chain_broken=checked.chain_broken)
                if self.model_feed is not None:
                    self.model_feed.on_book(top, chain_broken=checked.chain_broken)
                if checked.chain_broken:
                    self._note_depth_gap(top)
                depth_ms[top.symbol] = top.transact_time_ms
        if self.books.unread:
            self.on_work()
        return decoded.streams

    def _read_levels(self, top: DepthTop) -> DepthSnapshot | None:
        """The whole book of a frame of which only the best levels were checked so far."""
        book = read_levels(top, self.settings.market)
        reason = "malformed level" if book is None else self.validator.check_levels(book)
        if reason is not None:
            self._reject_depth(reason, top)
            return None
        if book is not None:
            self.pipeline.measure_ahead(book)
        return book

    def _reject_depth(self, reason: str, top: DepthTop) -> None:
        self.reject([Rejection(reason, top.payload, top.receive_time_ns, top.symbol)])

    def _note_finer(self, times: list[FinerTime]) -> None:
        """Count times that were made milliseconds; the first of each stream is logged."""
        self._counts["finer_times"] += len(times)
        for time in times:
            if time.stream not in self._finer_streams:
                self._finer_streams.add(time.stream)
                log.warning(
                    "flow.finer_time", stream=time.stream, sent=time.sent, used_ms=time.used_ms
                )

    def _is_past(self, end_ms: int) -> bool:
        """Whether a window closes so late (after a sleep, a long outage) that nobody should act."""
        if self._wall_ns is None:
            return False
        now_ms = self.validator.clock.exchange_ms(self._wall_ns())
        return now_ms is not None and now_ms - end_ms > _PAST_MS

    def _timed(self, top: DepthTop) -> DepthTop:
        """Spot depth says no time: give it the exchange's, as learned from the trades."""
        offset_ms = self.validator.clock.latest_ms
        if offset_ms is None:
            return top
        time_ms = int(top.receive_time_ns / 1e6 - offset_ms)
        return msgspec.structs.replace(top, event_time_ms=time_ms, transact_time_ms=time_ms)

    def reject(self, rejections: list[Rejection]) -> None:
        """Keep rejected input for the quarantine; beyond a bound only the count."""
        self._counts["rejected"] += len(rejections)
        room = _MAX_REJECTIONS - len(self._rejections)
        self._rejections.extend(rejections[:room])
        if rejections:
            self.on_work()

    def _note_depth_gap(self, top: DepthTop) -> None:
        if len(self._depth_gaps) >= _MAX_REJECTIONS:
            return
        self.on_work()
        self._depth_gaps.append(
            GapEvent(
                kind="depth",
                symbol=top.symbol,
                first_id=None,
                last_id=None,
                state=GapState.LOST,
                cause="update chain broken",
                from_ms=self._depth_ms.get(top.symbol),
                until_ms=top.transact_time_ms,
                repairable_until_ms=None,
                at_ns=top.receive_time_ns,
            )
        )


def _only(batch: WindowBatch, position: int) -> WindowBatch:
    """One symbol's window out of a batch, as that of symbol 0."""
    first, stop = int(batch.offsets[position]), int(batch.offsets[position + 1])
    rows = batch.rows[first:stop].copy()
    rows["symbol_index"] = 0
    return msgspec.structs.replace(
        batch,
        symbol_index=[0],
        offsets=np.array([0, stop - first], dtype=np.int64),
        rows=rows,
        complete=[batch.complete[position]],
        missing_trades=[batch.missing_trades[position]],
    )
