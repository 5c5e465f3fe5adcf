"""The data pipeline: Validation → Enrich → Context → Features, one window of one symbol at a time.

``FlowMetrics`` + ``BookWindow`` → ``FeatureRow`` and ``MarketContext``. Synchronous and pure but for
its bounded memory per symbol; windows of a symbol come in time order, holes are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from data_pipeline.absorption import Absorption, AbsorptionSettings
from data_pipeline.context import (
    ContextSettings,
    SymbolHistory,
    WindowSample,
    sample_of_row,
    sample_of_window,
)
from data_pipeline.enrich import (
    EnrichedWindow,
    EnrichSettings,
    MeasuredBook,
    enrich,
    measure_book,
)
from data_pipeline.features import FeatureSettings, ZScoreHistory, build_row
from data_pipeline.sessions import SessionTracker
from data_pipeline.validation import Rejected, validate
from data_pipeline.window_flags import WindowFlagSettings, window_flags
from domain.context import MarketContext
from domain.features import FeatureRow
from domain.flow import BookWindow, FlowMetrics
from domain.market import DepthSnapshot, Kline

log = structlog.get_logger()


class PipelineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the pipeline and its layers.

    Attributes:
        window_ms: length of a window.
        rewarm_windows: live windows behind which history loaded at the start can still be put.
        enrich: of the book's walls.
        absorption: of the price impact behind it.
        flags: of doubtful windows.
        context: of volatility, trend and key levels.
        features: of the z-scores.
    """

    window_ms: int = 5000
    rewarm_windows: int = 120
    enrich: EnrichSettings = EnrichSettings()
    absorption: AbsorptionSettings = AbsorptionSettings()
    flags: WindowFlagSettings = WindowFlagSettings()
    context: ContextSettings = ContextSettings()
    features: FeatureSettings = FeatureSettings()


class PipelineResult(msgspec.Struct, frozen=True, gc=False):
    """What became of one window. ``row`` is ``None`` exactly when ``rejected`` names a reason."""

    row: FeatureRow | None
    context: MarketContext
    rejected: str | None


class LayerCounts(msgspec.Struct):
    """What went through one layer."""

    taken: int = 0
    passed: int = 0
    rejected: int = 0


class _Memory:
    """Everything remembered of one symbol."""

    __slots__ = ("absorption", "book", "history", "scores", "unlearnt", "unwarmed")

    def __init__(self, symbol: str, settings: PipelineSettings) -> None:
        self.history = SymbolHistory(settings.window_ms, settings.context)
        self.scores = ZScoreHistory(symbol, settings.window_ms, settings.features)
        self.absorption = Absorption(symbol, settings.window_ms, settings.absorption)
        self.book: MeasuredBook | None = None  # measured ahead of its window
        # Windows seen before ``warm``, replayed behind what it brings; None: no longer possible.
        self.unwarmed: list[WindowSample] | None = []
        # The last window, while what judges later ones has still to learn of it.
        self.unlearnt: tuple[EnrichedWindow, WindowSample] | None = None

    def remember(self, sample: WindowSample) -> None:
        self.history.observe(sample)
        self.scores.remember(sample)

    def learn(self) -> None:
        """Take the last window into what later ones are compared with."""
        if self.unlearnt is not None:
            (window, sample), self.unlearnt = self.unlearnt, None
            self.scores.remember(sample)
            self.absorption.learn(window)
            self.history.walls.learn(window.shape, sample.end_ms)
            self.history.bars.prepare()


class DataPipeline:
    """Turns closed windows into feature rows and context."""

    def __init__(self, settings: PipelineSettings, *, learns_later: bool = False) -> None:
        """``learns_later``: somebody calls ``learn_more`` after the windows that end together."""
        self._settings = settings
        self._learns_later = learns_later
        self._memories: dict[str, _Memory] = {}
        self.unlearnt: dict[str, _Memory] = {}  # by symbol
        self._validation = LayerCounts()
        self._enrich = LayerCounts()
        self._context = LayerCounts()
        self._features = LayerCounts()
        self._corrected = 0
        self._suspect = 0

    def process(
        self, metrics: FlowMetrics, book: BookWindow | None, revision: int = 0
    ) -> PipelineResult:
        """Take one closed window.

        Windows of a symbol come in time order. Missing ones age the look-backs. One at or before
        the last (a revision, or a recovery beside the live run: both should have a pipeline of
        their own) gets a row without look-backs and leaves the memory untouched.

        Args:
            metrics: The window's flow.
            book: The window's book; ``None`` where none was recorded.
            revision: Of the row; 0 is the first emission.
        """
        memory = self._memory(metrics.symbol)
        self._validation.taken += 1
        validated = validate(metrics, self._settings.window_ms)
        if isinstance(validated, Rejected):
            return self._reject(metrics, memory, validated.reason)
        self._validation.passed += 1
        self._corrected += bool(validated.corrected)
        return self._measure(validated.metrics, book, memory, revision)

    def measure_ahead(self, book: DepthSnapshot) -> None:
        """Measure a window's last book before the window closes: all symbols' do at one moment."""
        self._memory(book.symbol).book = measure_book(book, self._settings.enrich)

    def learn_more(self) -> None:
        """Let one of ``unlearnt`` learn; a symbol's next window has it done otherwise."""
        self.unlearnt.pop(next(iter(self.unlearnt))).learn()

    def warm(self, symbol: str, klines: Sequence[Kline], rows: Sequence[FeatureRow]) -> None:
        """Fill a symbol's memory with what happened before its first window here.

        May come before the first window or up to ``rewarm_windows`` after it: windows already seen
        are put behind. Later (or a second time) only the day's totals before the first window and
        the key levels are taken. What overlaps is used once.

        Args:
            symbol: Whose memory.
            klines: Closed one-minute klines of the previous and the current UTC day, any order.
            rows: Recent feature rows, any order; of several revisions the highest counts.
        """
        bars = sorted({k.open_time_ms: k for k in klines}.values(), key=lambda k: k.open_time_ms)
        samples = [sample_of_row(row) for row in _latest(rows)]
        known = self._memories.get(symbol)
        if known is not None and known.unwarmed is None:
            self._complete_day(known.history.session, bars, samples)
            return
        if known is not None:
            known.learn()
        seen = known.unwarmed if known is not None and known.unwarmed else []
        before_ms = seen[0].start_ms if seen else None
        memory = self._memories[symbol] = _Memory(symbol, self._settings)
        memory.unwarmed = None
        if known is not None:
            memory.absorption = known.absorption  # stored rows hold nothing for it
        samples = [s for s in samples if before_ms is None or s.end_ms <= before_ms]
        memory.history.warm(
            [k for k in bars if before_ms is None or k.close_time_ms < before_ms], samples
        )
        for sample in samples:
            memory.scores.remember(sample)
        for sample in seen:
            memory.remember(sample)
        memory.history.session.learn_levels(bars)
        say = log.info if bars else log.debug  # without any: a slice of a recovery, one of many
        say("pipeline.warmed", symbol=symbol, kline_count=len(bars), window_count=len(samples))

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts in, out and rejected per layer.

        ``enrich_rejected`` counts books (one-sided or crossed), ``context_rejected``
        windows out of sequence, ``features_rejected`` rows that lost a value that was not finite;
        their rows go on without them.
        """
        layers = {
            "validation": self._validation,
            "enrich": self._enrich,
            "context": self._context,
            "features": self._features,
        }
        counts: dict[str, int | float | str | None] = {}
        for name, layer in layers.items():
            counts[f"{name}_in"] = layer.taken
            counts[f"{name}_out"] = layer.passed
            counts[f"{name}_rejected"] = layer.rejected
        counts["validation_corrected"] = self._corrected
        counts["windows_suspect"] = self._suspect
        counts["symbols"] = len(self._memories)
        return counts

    def _memory(self, symbol: str) -> _Memory:
        memory = self._memories.get(symbol)
        if memory is None:
            memory = self._memories[symbol] = _Memory(symbol, self._settings)
        return memory

    def _measure(
        self, metrics: FlowMetrics, book: BookWindow | None, memory: _Memory, revision: int
    ) -> PipelineResult:
        self._enrich.taken += 1
        measured, memory.book = memory.book, None  # not kept: forty levels of every symbol
        window = enrich(metrics, book, self._settings.enrich, measured)
        self._enrich.rejected += book is not None and book.last is not None and window.shape is None
        self._enrich.passed += 1

        self._context.taken += 1
        memory.learn()
        sample = sample_of_window(window)
        if sample.start_ms < memory.history.last_end_ms:
            self._context.rejected += 1
            memory = _Memory(metrics.symbol, self._settings)
        memory.history.age_to(sample.start_ms)
        suspect = window_flags(window, memory.history.prices, self._settings.flags)
        self._suspect += bool(suspect)
        memory.history.observe(sample)
        walls = memory.history.walls.observe(window.shape, metrics.window_end_ms)
        context = memory.history.context(
            metrics.symbol,
            metrics.window_start_ms,
            complete=metrics.complete,
            cvd=float(metrics.cvd),
        )
        self._context.passed += 1

        self._features.taken += 1
        scores = memory.scores.score(sample)
        absorption = memory.absorption.score(window)
        memory.unlearnt = window, sample
        if self._learns_later:
            self.unlearnt[metrics.symbol] = memory
        else:
            memory.learn()
        self._keep_for_warming(memory, sample)
        row, fault_count = build_row(window, context, scores, walls, absorption, suspect, revision)
        if fault_count:
            self._features.rejected += 1
            log.error("pipeline.not_finite", symbol=row.symbol, value_count=fault_count)
        self._features.passed += 1
        return PipelineResult(row, context, None)

    def _reject(self, metrics: FlowMetrics, memory: _Memory, reason: str) -> PipelineResult:
        self._validation.rejected += 1
        log.error(
            "pipeline.rejected",
            symbol=metrics.symbol,
            window_start_ms=metrics.window_start_ms,
            reason=reason,
        )
        context = memory.history.context(
            metrics.symbol, metrics.window_start_ms, complete=False, cvd=None
        )
        return PipelineResult(None, context, reason)

    def _keep_for_warming(self, memory: _Memory, sample: WindowSample) -> None:
        if memory.unwarmed is None:
            return
        if len(memory.unwarmed) >= self._settings.rewarm_windows:
            memory.unwarmed = None
        else:
            memory.unwarmed.append(sample)

    def _complete_day(
        self, session: SessionTracker, klines: Sequence[Kline], samples: Sequence[WindowSample]
    ) -> None:
        earlier = SessionTracker(self._settings.context.session)
        day_ms, before_ms = session.day_start_ms, session.begins_ms
        earlier.observe_klines(
            [k for k in klines if day_ms <= k.open_time_ms and k.close_time_ms < before_ms]
        )
        for s in samples:
            if day_ms <= s.start_ms and s.end_ms <= before_ms:
                earlier.observe(s.start_ms, s.end_ms, s.prices, s.volume, s.quote_volume)
        session.adopt_earlier(earlier)
        session.learn_levels(klines)


def _latest(rows: Sequence[FeatureRow]) -> list[FeatureRow]:
    """The highest revision of each window, in time order."""
    latest: dict[int, FeatureRow] = {}
    for row in rows:
        known = latest.get(row.window_start_ms)
        if known is None or row.revision > known.revision:
            latest[row.window_start_ms] = row
    return [latest[start_ms] for start_ms in sorted(latest)]
