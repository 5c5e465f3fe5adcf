"""Analysed windows → feature store, rules analyst, signal store and event bus; and their revisions.

Everything here is synchronous and cheap; what touches the disk (``flush``, ``revise``) is called by
its owner in a worker thread. Only live windows reach the analysts, after the windows of their boundary
are out: no window waits for a judgement about another.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from domain.errors import DataFolderError
from domain.events import FeaturesEvent, Signal, Topic, WindowEvent
from domain.features import FeatureRow
from domain.flow import Origin
from event_bus import EventBus
from feature_store import FeatureStore
from lake.buffered import BufferedStore
from market_orchestrator.market_flow import ClosedWindow, MarketFlow
from market_orchestrator.revisions import CvdState, cascade, state_after
from rules_analyst import RulesAnalyst


class Revision(msgspec.Struct, frozen=True):
    """What a repair changed: rows to write, and the CVD after the last window they reach."""

    symbol: str
    rows: list[FeatureRow]
    state: CvdState | None


class Outputs:
    """The end of the synchronous flow; one per run."""

    def __init__(
        self,
        bus: EventBus,
        features: FeatureStore,
        signals: BufferedStore[Signal],
        analyst: RulesAnalyst | None,
        wall_ns: Callable[[], int],
        exchange_ms: Callable[[int], float | None] = lambda _: None,
    ) -> None:
        """``exchange_ms`` gives the exchange's time at a wall-clock instant, None while unknown."""
        self._bus = bus
        self.features = features
        self.signals = signals
        self._analyst = analyst
        self._wall_ns = wall_ns
        self._exchange_ms = exchange_ms
        self._asked: list[Callable[[ClosedWindow], None]] = []
        self._unjudged: deque[ClosedWindow] = deque()
        self._stored_until: dict[str, int] = {}
        self._stored: set[tuple[str, int]] = set()
        self._has_complete: set[str] = set()
        self._lock = threading.Lock()  # revisions of one store, one after the other
        # Held while one batch is analysed and emitted: CVD moves on for the whole batch at once.
        self.emitting = asyncio.Lock()
        self._counts = dict.fromkeys(("rows", "revised_rows", "signals", "skipped_rows"), 0)

    def ask_also(self, ask: Callable[[ClosedWindow], None]) -> None:
        """Show each live window to another analyst, who must not wait and answers by ``take_signal``."""
        self._asked.append(ask)

    def take_signal(self, signal: Signal) -> None:
        """Store and publish a signal."""
        self.signals.append(signal)
        self._bus.publish(Topic.SIGNAL, signal)
        self._counts["signals"] += 1

    def exchange_now_ms(self) -> int:
        """The exchange's time; the machine's while the offset is unknown."""
        now_ns = self._wall_ns()
        now_ms = self._exchange_ms(now_ns)
        return now_ns // 1_000_000 if now_ms is None else int(now_ms)

    def check_duration(self, symbols: Sequence[str], duration_ms: int) -> None:
        """Refuse a store whose windows have another length.

        Raises:
            DataFolderError: naming the folder and both lengths.
        """
        for row in self.features.last_rows(symbols).values():
            stored_ms = row.window_end_ms - row.window_start_ms
            if stored_ms != duration_ms:
                raise DataFolderError(
                    f"WINDOW_DURATION (--window-duration): {self.features.folder} holds windows of "
                    f"{stored_ms / 1_000:g} s, this run's are {duration_ms / 1_000:g} s; "
                    "choose another --data-dir"
                )

    def adopt(self, flow: MarketFlow, last: FeatureRow) -> None:
        """Continue one symbol after its last stored window."""
        self._stored_until[last.symbol] = last.window_start_ms
        flow.restore_cvd(last.symbol, state_after(last))

    def skip_stored(self, symbols: Sequence[str]) -> None:
        """Windows that the store holds are not written again (a replay run twice)."""
        table = self.features.read(list(symbols), columns=["symbol", "window_start_ms"])
        names, starts = table.column(0).to_pylist(), table.column(1).to_pylist()
        self._stored = {(str(name), int(at or 0)) for name, at in zip(names, starts, strict=True)}

    def emit(self, closed: ClosedWindow) -> None:
        """Store and publish one window; a live one is kept for ``judge``."""
        row = closed.row
        is_stored = row.window_start_ms <= self._stored_until.get(row.symbol, -1)
        if is_stored or (row.symbol, row.window_start_ms) in self._stored:
            self._counts["skipped_rows"] += 1
            return
        self.features.append(row)
        self._counts["rows"] += 1
        origin = Origin(row.origin)
        self._bus.publish(
            Topic.WINDOW,
            WindowEvent(closed.metrics, origin, row.revision, self._wall_ns(), closed.whale_prints),
        )
        self._bus.publish(Topic.FEATURES, FeaturesEvent(row, origin))
        if origin is Origin.LIVE:
            self._unjudged.append(closed)

    @property
    def unjudged_end_ms(self) -> int | None:
        """The end of the oldest window that ``judge`` has not seen; None where there is none."""
        return self._unjudged[0].row.window_end_ms if self._unjudged else None

    def judge(self) -> None:
        """Ask the rules analyst and the others about the oldest window they have not seen."""
        closed = self._unjudged.popleft()
        row = closed.row
        if row.complete:
            self._has_complete.add(row.symbol)
        if self._analyst is not None and row.symbol in self._has_complete:
            decided_ms = max(self.exchange_now_ms(), row.window_end_ms)  # never before what it knew
            self.take_signal(self._analyst.analyze(row, closed.context, decided_ms))
        for ask in self._asked:
            ask(closed)

    def revise(
        self,
        symbol: str,
        rebuilt: Mapping[int, FeatureRow],
        *,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Revision:
        """Work rebuilt windows into the stored ones; reads, writes nothing. Blocks on the disk.

        Args:
            symbol: whose windows.
            rebuilt: window start → row rebuilt from trades.
            from_ms: carry the CVD on from here at the latest; None: from the first rebuilt window.
            until_ms: carry the CVD on only through windows that start before this.
        """
        first_ms = min([*rebuilt, *([] if from_ms is None else [from_ms])])
        before = self.features.as_of(symbol, first_ms)
        stored = self.features.read_rows(symbol, start_ms=first_ms, end_ms=until_ms)
        rows, state = cascade(stored, rebuilt, state_after(before) if before else None)
        return Revision(symbol, rows, state)

    def carry_on(self, revision: Revision) -> Revision:
        """Add the windows that were emitted while ``revise`` was reading; call on the loop's thread."""
        if revision.state is None:
            return revision
        since_ms = revision.state.window_start_ms
        later = [
            row for row in self.features.pending(revision.symbol) if row.window_start_ms > since_ms
        ]
        rows, state = cascade(later, {}, revision.state)
        return Revision(revision.symbol, revision.rows + rows, state)

    def write(self, revisions: Sequence[Revision]) -> None:
        """Write revisions: one part file per date and one rename. Blocks."""
        rows = [row for revision in revisions for row in revision.rows]
        with self._lock:
            self.features.flush()
            self.features.write_batch(rows)

    def announce(self, revisions: Sequence[Revision]) -> None:
        """Publish revised and recovered windows."""
        for revision in revisions:
            self._counts["revised_rows"] += len(revision.rows)
            for row in revision.rows:
                self._bus.publish(Topic.FEATURES, FeaturesEvent(row, Origin(row.origin)))

    def statistics(self) -> dict[str, int | float | str | None]:
        """Rows and signals since the start."""
        return dict(self._counts)
