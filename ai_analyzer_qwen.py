"""The AI analyst: asks a model about a window when something happened, and publishes its signal.

(``FeatureRow``, ``MarketContext``) of closed windows → ``Signal``, ``AnalysisUnavailable``, ``Alert``.
``on_window`` costs microseconds and never waits; a question waits in one slot per symbol, where the
newest context replaces the older; answers are fetched by tasks of its own. Groq first, then DashScope
(Qwen), then OpenAI: see ``ai/router.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from ai.budget import Budget, BudgetSettings
from ai.contract import Outcome, Provider
from ai.daily import build_daily_prompt
from ai.journal import CallJournal, CallRecord
from ai.prompt import Prompt, build_prompt
from ai.providers import BUILDERS, build_provider, is_sendable
from ai.recorded import RecordedAnswers, signal_of
from ai.reply import Reading, check_text
from ai.router import Answer, Question, Router, RouterSettings, Unanswered, at_any_moment
from ai.settings import AIMode, AISettings
from ai.triggers import Event, Triggers
from domain.context import MarketContext
from domain.errors import StorageError
from domain.events import Alert, AnalysisUnavailable, Signal
from domain.features import FeatureRow
from domain.flow import Origin

log = structlog.get_logger()

STOP_TIMEOUT_S = 3.0
PREPARE_TIMEOUT_S = 30.0  # for importing the SDKs, before a day's question is given up
CLOCK_JUMP_S = 2.0


class _Waiting(msgspec.Struct, frozen=True):
    """The newest context of a symbol that is to be asked about."""

    row: FeatureRow
    context: MarketContext
    events: tuple[Event, ...]


class AIAnalyzer:
    """One per run. ``on_window`` from the flow; ``run`` as a task of the owner's group.

    Args:
        settings: See ``AISettings``.
        folder: Of the journal and the ledger (``LakePaths.analyst_calls``).
        now_ms: The exchange's time, UTC ms; a replay's own.
        publish_signal: Takes each signal.
        publish_unavailable: Takes each question nobody answered.
        publish_alert: Takes what its owner should know.
        is_healthy: False while the data of a symbol are not to be trusted.
        quiet_moment: Awaited before each call of a provider.
        monotonic: Seconds, for deadlines and breakers.
        wall_ns: The machine's clock, for records and the budget's days.

    Raises:
        ValueError: A provider is named that there is none of.
    """

    def __init__(
        self,
        settings: AISettings,
        folder: Path,
        *,
        now_ms: Callable[[], int],
        publish_signal: Callable[[Signal], None],
        publish_unavailable: Callable[[AnalysisUnavailable], None],
        publish_alert: Callable[[Alert], None],
        is_healthy: Callable[[str], bool] = lambda _: True,
        quiet_moment: Callable[[], Awaitable[None]] = at_any_moment,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        unknown = [name for name in settings.providers if name not in BUILDERS]
        if unknown:
            raise ValueError(f"unknown AI provider {unknown[0]!r}; there are {', '.join(BUILDERS)}")
        self._settings = settings
        self._now_ms = now_ms
        self._publish_signal = publish_signal
        self._publish_unavailable = publish_unavailable
        self._publish_alert = publish_alert
        self._is_healthy = is_healthy
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._counts: Counter[str] = Counter()
        self._triggers: dict[str, Triggers] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._asked_ms: dict[str, int] = {}  # window end last asked about
        self._in_flight: set[str] = set()
        self._wake = asyncio.Event()
        self._prepared = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._alerted: set[str] = set()
        self._without_key: set[str] = set()  # symbols that were told so
        self._clock_offset_s: float | None = None
        self._last_latency_ms: float | None = None
        self._logged_reason: str | None = None
        self._answers = RecordedAnswers(settings.replay_folder or folder)
        secrets = settings.secrets
        self._journal = CallJournal(folder, secrets=secrets, on_failure=self._on_journal_failure)
        self._budget = Budget(
            folder,
            BudgetSettings(daily_tokens=settings.daily_tokens, daily_usd=settings.daily_usd),
            wall_ns=wall_ns,
            on_failure=self._on_ledger_failure,
        )
        self._router = Router(
            self._providers(),
            RouterSettings(
                deadline_s=settings.deadline_s,
                attempt_deadline_s=settings.attempt_deadline_s,
                breaker=settings.breaker,
                prices=settings.prices,
                secrets=secrets,
            ),
            self._budget,
            record=self._journal.add,
            alert=self._alert,
            quiet_moment=quiet_moment,
            monotonic=monotonic,
            wall_ns=wall_ns,
        )
        self._has_providers = bool(self._configured)

    def on_window(self, row: FeatureRow, context: MarketContext) -> None:
        """Take one closed window; decides whether it is asked about. Microseconds, never waits."""
        mode = self._settings.mode
        if mode is AIMode.REPLAY:
            self._replay(row, context)
        elif mode is AIMode.LIVE:
            self._consider(row, context)

    async def run(self) -> None:
        """Import the SDKs, then answer questions until cancelled; writes what is left at the end."""
        if self._settings.mode is not AIMode.LIVE:
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._journal.run(), name="ai-journal")
                await self._load_ledger()
                await self._router.prepare()
                self._prepared.set()
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while (waiting := self._take()) is not None:
                        symbol = waiting.row.symbol
                        group.create_task(self._analyse(waiting), name=f"ai-{symbol}")
        finally:
            self._settled.set()  # nobody will answer any more
            await asyncio.shield(self._close())

    async def settle(self) -> None:
        """Wait until every question so far is answered; for replays, which have no time of their own."""
        if self._settings.mode is AIMode.LIVE and self._has_providers:
            await self._settled.wait()

    async def recommend(self, rules: Signal) -> Signal | None:
        """Ask about a day, once ``run`` is at work.

        Args:
            rules: What the daily rules made of it, with their readings as evidence.

        Returns:
            The signal, which nobody has published yet; ``None``: nobody is configured, or nobody
            answered, which is published.
        """
        if not self._has_providers:
            return None
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await self._prepared.wait()
            return await self._ask_about_day(rules)
        except Exception:
            log.exception("ai.analysis_failed", symbol=rules.symbol)
            self._counts["defects"] += 1
            self._unavailable(rules, Outcome.FAILED.value, ())
            return None

    def statistics(self) -> dict[str, int | float | str | None]:
        """Windows, questions, answers, outcomes by provider, spending of the day, the journal."""
        return {
            "mode": self._settings.mode.value,
            **self._counts,
            "waiting": len(self._waiting),
            "in_flight": len(self._in_flight),
            "last_latency_ms": self._last_latency_ms,
            **self._router.statistics(),
            **self._journal.statistics(),
        }

    # --- deciding whether to ask ---

    def _consider(self, row: FeatureRow, context: MarketContext) -> None:
        self._watch_clock(row)
        symbol = row.symbol
        if not self._has_providers:
            self._say_no_key(row)
            return
        stale = self._why_stale(row, context)
        if stale is not None:
            self._counts[f"not_asked_{stale}"] += 1
            if self._waiting.pop(symbol, None) is not None:
                self._update_settled()
            return
        triggers = self._triggers.get(symbol)
        if triggers is None:
            triggers = self._triggers[symbol] = Triggers(self._settings.triggers)
        events = triggers.observe(row, context)
        held = self._waiting.get(symbol)
        if held is not None:
            events = events or held.events
            self._counts["replaced_by_newer"] += 1
        elif not self._is_due(row, events):
            return
        self._waiting[symbol] = _Waiting(row, context, events)
        self._settled.clear()
        self._wake.set()

    def _why_stale(self, row: FeatureRow, context: MarketContext) -> str | None:
        if row.origin != Origin.LIVE:
            return "not_live"
        if not row.complete:
            return "incomplete"
        if context.price is None:
            return "without_price"
        if row.depth_frames == 0 or row.spread_bps is None:
            return "without_depth"
        return None if self._is_healthy(row.symbol) else "unhealthy"

    def _is_due(self, row: FeatureRow, events: tuple[Event, ...]) -> bool:
        interval_ms = self._settings.min_interval_s * 1_000
        if interval_ms <= 0.0:
            return True
        if not events:
            return False
        asked_ms = self._asked_ms.get(row.symbol)
        if asked_ms is None or row.window_end_ms - asked_ms >= interval_ms:
            return True
        self._counts["not_asked_interval"] += 1
        return False

    def _take(self) -> _Waiting | None:
        """The next question that may be put now; contexts grown old are dropped."""
        if len(self._in_flight) >= self._settings.parallel:
            return None
        for symbol in list(self._waiting):
            if symbol in self._in_flight:
                continue
            waiting = self._waiting.pop(symbol)
            age_ms = self._now_ms() - waiting.row.window_end_ms
            if age_ms > self._settings.max_context_age_s * 1_000:
                self._counts["not_asked_too_old"] += 1
                continue
            self._in_flight.add(symbol)
            self._asked_ms[symbol] = waiting.row.window_end_ms
            self._triggers[symbol].acknowledge()
            return waiting
        self._update_settled()
        return None

    def _update_settled(self) -> None:
        if not self._waiting and not self._in_flight:
            self._settled.set()

    # --- asking ---

    async def _analyse(self, waiting: _Waiting) -> None:
        row = waiting.row
        try:
            await self._ask(waiting)
            await self._budget.flush()
        except Exception:
            # The analyst is an extra: a defect of it is logged whole, and the market data go on.
            log.exception("ai.analysis_failed", symbol=row.symbol)
            self._counts["defects"] += 1
            self._unavailable(row, Outcome.FAILED.value, ())
        finally:
            self._in_flight.discard(row.symbol)
            self._wake.set()
            self._update_settled()

    async def _ask(self, waiting: _Waiting) -> None:
        row = waiting.row
        prompt = build_prompt(row, waiting.context)
        decided_at_ms = max(self._now_ms(), row.window_end_ms)  # never before what it was told
        events = tuple([event.value for event in waiting.events])
        self._counts["asked"] += 1
        began = self._monotonic()
        result = await self._router.ask(
            Question(prompt=prompt, decided_at_ms=decided_at_ms, events=events)
        )
        if isinstance(result, Unanswered):
            self._unavailable(row, result.reason, result.attempts)
            return
        self._last_latency_ms = round((self._monotonic() - began) * 1_000, 3)
        self._answered(result, prompt)

    async def _ask_about_day(self, rules: Signal) -> Signal | None:
        prompt = build_daily_prompt(rules)
        self._counts["asked"] += 1
        question = Question(prompt=prompt, decided_at_ms=rules.decided_at_ms, events=("day",))
        result = await self._router.ask(question)
        await self._budget.flush()
        if isinstance(result, Unanswered):
            self._unavailable(rules, result.reason, result.attempts)
            return None
        self._counts["answered"] += 1
        signal = signal_of(result.reading, result.record, prompt)
        source = f"{signal.source}:daily"  # beside ``rules:daily``, apart from those of windows
        return msgspec.structs.replace(signal, source=source, signal_id=f"daily:{signal.signal_id}")

    def _answered(self, answer: Answer, prompt: Prompt) -> None:
        self._counts["answered"] += 1
        self._logged_reason = None
        self._publish_signal(signal_of(answer.reading, answer.record, prompt))

    def _unavailable(
        self, row: FeatureRow | Signal, reason: str, attempts: tuple[str, ...]
    ) -> None:
        self._counts["unavailable"] += 1
        if reason != self._logged_reason:  # what lasts is said once
            self._logged_reason = reason
            log.warning("ai.unavailable", symbol=row.symbol, reason=reason, attempts=attempts)
        self._publish_unavailable(
            AnalysisUnavailable(
                symbol=row.symbol,
                window_end_ms=row.window_end_ms,
                reason=reason,
                attempts=attempts,
            )
        )

    # --- answering from the journal ---

    def _replay(self, row: FeatureRow, context: MarketContext) -> None:
        """Give the recorded answer to exactly this context, whatever triggers and clocks say now."""
        if not self._answers.has_window(row.symbol, row.window_end_ms) or context.price is None:
            return
        prompt = build_prompt(row, context)
        record = self._answers.find(prompt.context_hash)
        if record is None or record.reply is None:
            self._counts["replay_other_context"] += 1
            self._unavailable(row, "context_changed", ())
            return
        checked = check_text(record.reply, prompt)
        if isinstance(checked, Reading):
            self._counts["replayed"] += 1
            self._publish_signal(signal_of(checked, record, prompt))
        else:
            self._counts["replay_rejected"] += 1
            self._unavailable(row, checked.outcome.value, ())

    # --- providers, and what can be wrong with them ---

    def _providers(self) -> list[tuple[Provider, tuple[str, ...]]]:
        self._configured: list[str] = []
        found: list[tuple[Provider, tuple[str, ...]]] = []
        if self._settings.mode is not AIMode.LIVE:
            return found
        for name in self._settings.providers:
            settings = self._settings.provider_settings(name)
            if settings is None:
                continue
            if not is_sendable(settings.key):
                self._counts[f"{name}.{Outcome.BAD_KEY.value}"] += 1
                self._alert("ai.key_refused", f"{name}: the key holds spaces or odd characters")
                continue
            self._configured.append(name)
            found.append((build_provider(settings), settings.models))
        return found

    def _say_no_key(self, row: FeatureRow) -> None:
        """Once per symbol: there is nobody to ask."""
        if row.symbol in self._without_key:
            return
        self._without_key.add(row.symbol)
        self._journal.add(
            CallRecord(
                at_ns=self._wall_ns(),
                symbol=row.symbol,
                window_end_ms=row.window_end_ms,
                outcome=Outcome.NO_KEY,
            )
        )
        self._unavailable(row, Outcome.NO_KEY.value, ())

    async def _load_ledger(self) -> None:
        try:
            await asyncio.to_thread(self._budget.load)
        except StorageError as error:
            self._on_ledger_failure(error)

    def _on_journal_failure(self, error: StorageError) -> None:
        self._alert("ai.journal_failed", f"AI calls are kept in memory for now: {error}")

    def _on_ledger_failure(self, error: StorageError) -> None:
        self._counts["ledger_failed_writes"] += 1
        self._alert("ai.ledger_failed", f"the AI budget is kept in memory for now: {error}")

    def _alert(self, name: str, message: str) -> None:
        """Tell the owner; the same thing once a run."""
        if (name + message) in self._alerted:
            return
        self._alerted.add(name + message)
        log.warning(name, message=message)
        self._publish_alert(
            Alert(
                name=name,
                severity="warning",
                symbol=None,
                message=message,
                at_ns=self._wall_ns(),
            )
        )

    def _watch_clock(self, row: FeatureRow) -> None:
        """Note when the machine's clock is set; deadlines and breakers run on the monotonic one."""
        offset_s = self._wall_ns() / 1e9 - self._monotonic()
        before, self._clock_offset_s = self._clock_offset_s, offset_s
        if before is None or abs(offset_s - before) < CLOCK_JUMP_S:
            return
        self._counts[Outcome.CLOCK_JUMP.value] += 1
        log.warning("ai.clock_jump", seconds=round(offset_s - before, 3))
        self._journal.add(
            CallRecord(
                at_ns=self._wall_ns(),
                symbol=row.symbol,
                window_end_ms=row.window_end_ms,
                outcome=Outcome.CLOCK_JUMP,
                error=f"the wall clock moved by {offset_s - before:+.3f} s against the monotonic one",
            )
        )

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._journal.flush()
                await self._budget.flush()
                await self._router.close()
        except TimeoutError:
            log.warning("ai.stop_timeout", seconds=STOP_TIMEOUT_S)
