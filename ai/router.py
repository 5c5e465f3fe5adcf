"""One question through the providers in order, until one gives a reply that holds.

``Question`` → ``Answer`` or ``Unanswered``; a ``CallRecord`` for every attempt. Every attempt and the
whole analysis have deadlines of our own; a provider that is closed, spent or disabled is skipped at
once. A reply that does not hold is sent back once, with our reason; then the next provider is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import structlog

from ai.bounded_reply import Progress, progress_of_call
from ai.breaker import Breaker, BreakerSettings, Permit
from ai.budget import Budget, Reservation
from ai.classify import classify, redact
from ai.contract import (
    MAY_BE_CHARGED,
    NO_ANSWER,
    REPAIRABLE,
    Completion,
    Message,
    Outcome,
    Price,
    Provider,
    capability_of,
)
from ai.cost import budgeted_cost, known_cost, usage_of
from ai.journal import CallRecord
from ai.prompt import (
    Prompt,
    estimate_tokens,
    messages_hash,
    repair_messages,
)
from ai.reply import REPLY_SCHEMA, Reading, Rejected, check_text, read_reply

log = structlog.get_logger()

LEAST_ATTEMPT_S = 0.2  # with less time left nobody is asked
MODEL_HOLD_S = 600.0  # a model that refuses our request as such is left alone for so long
_GRACE_S = 1.0  # a disk that stalls may hold an analysis up for this long beyond its deadline


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines in seconds; prices replace the known ones, by model."""

    deadline_s: float = 12.0
    attempt_deadline_s: float = 6.0
    breaker: BreakerSettings = BreakerSettings()
    prices: Mapping[str, Price] = {}
    secrets: tuple[str, ...] = ()


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, when (UTC, the exchange's clock) and because of which events."""

    prompt: Prompt
    decided_at_ms: int
    events: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A reading, and the record of the attempt that gave it."""

    reading: Reading
    record: CallRecord


class Unanswered(msgspec.Struct, frozen=True):
    """Nobody answered: ``attempts`` says of each provider and model why."""

    reason: str
    attempts: tuple[str, ...]


class RoutedProvider:
    """One provider with its models and what is known about them."""

    def __init__(self, provider: Provider, models: Sequence[str], breaker: Breaker) -> None:
        self.provider = provider
        self.models = tuple(models)
        self.breaker = breaker
        self.disabled: Outcome | None = None
        self.disabled_models: set[str] = set()
        self.held_models: dict[str, float] = {}

    def refusal(self, now: float) -> Outcome | None:
        """Why it cannot be asked now."""
        if self.disabled is not None:
            return self.disabled
        if self.disabled_models.issuperset(self.models):
            return Outcome.DISABLED
        if not self.usable_models(now):
            return Outcome.WAITING
        return self.breaker.refusal()

    def usable_models(self, now: float) -> list[str]:
        """Models in order, without those that are disabled or held."""
        return [
            model
            for model in self.models
            if model not in self.disabled_models and now >= self.held_models.get(model, now)
        ]


class _Analysis(msgspec.Struct):
    """The course of one analysis."""

    question: Question
    began: float
    ends: float
    attempts: list[str]
    outcomes: list[Outcome]


async def at_any_moment() -> None:
    """No moment is better than another."""


class Router:
    """The providers in order. ``prepare`` first; ``ask`` may run several times at once."""

    def __init__(
        self,
        providers: Sequence[tuple[Provider, Sequence[str]]],
        settings: RouterSettings,
        budget: Budget,
        *,
        record: Callable[[CallRecord], None],
        alert: Callable[[str, str], None],
        quiet_moment: Callable[[], Awaitable[None]] = at_any_moment,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._routed = [
            RoutedProvider(provider, models, Breaker(settings.breaker, monotonic))
            for provider, models in providers
        ]
        self._settings = settings
        self._budget = budget
        self._record = record
        self._alert = alert
        self._quiet_moment = quiet_moment
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._counts: Counter[str] = Counter()
        self._prices = settings.prices

    async def prepare(self) -> None:
        """Import the SDKs, one after the other, in threads."""
        for routed in self._routed:
            name = routed.provider.name
            try:
                await asyncio.to_thread(routed.provider.prepare)
            except ImportError as error:
                self._disable(routed, Outcome.SDK_MISSING, "ai.sdk_missing", f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 - whatever an SDK makes of our settings
                text = redact(f"{name}: {error}", self._settings.secrets)
                self._disable(routed, Outcome.DISABLED, "ai.provider_unusable", text)

    async def close(self) -> None:
        """Close the providers' connections."""
        for routed in self._routed:
            await routed.provider.close()

    async def ask(self, question: Question) -> Answer | Unanswered:
        """Ask until a reply holds, everyone has failed, or the deadline has come."""
        began = self._monotonic()
        ends = began + self._settings.deadline_s
        analysis = _Analysis(question, began, ends, [], [])
        try:
            async with asyncio.timeout(self._settings.deadline_s + _GRACE_S):
                for number, routed in enumerate(self._routed):
                    answer = await self._ask_provider(analysis, routed, self._routed[number + 1 :])
                    if answer is not None:
                        return answer
        except TimeoutError:
            self._note(analysis, "analysis", Outcome.NO_TIME)
        return Unanswered(_reason(analysis.outcomes), tuple(analysis.attempts))

    def statistics(self) -> dict[str, int | float | str | None]:
        """Attempts by provider and outcome, breakers, and what was spent today."""
        found: dict[str, int | float | str | None] = dict(self._counts)
        for routed in self._routed:
            name = routed.provider.name
            state = "disabled" if routed.disabled is not None else routed.breaker.state
            spent = self._budget.spent_today(name)
            found[f"{name}.state"] = state
            found[f"{name}.tokens_today"] = spent.tokens
            found[f"{name}.usd_today"] = round(spent.usd, 6)
        return found

    async def _ask_provider(
        self, analysis: _Analysis, routed: RoutedProvider, others: Sequence[RoutedProvider]
    ) -> Answer | None:
        refused = routed.refusal(self._monotonic())
        if refused is not None:
            self._note(analysis, routed.provider.name, refused)
            return None
        for model in routed.usable_models(self._monotonic()):
            messages, repairs = analysis.question.prompt.messages, 0
            while True:
                sharing = 1 + sum(o.refusal(self._monotonic()) is None for o in others)
                result = await self._attempt(
                    analysis, routed, model, messages, sharing, is_repair=repairs > 0
                )
                if isinstance(result, Answer):
                    return result
                outcome, reason = result
                if outcome not in REPAIRABLE or repairs:
                    break
                messages, repairs = repair_messages(analysis.question.prompt, reason), 1
            if outcome not in {Outcome.UNKNOWN_MODEL, Outcome.BAD_REQUEST, Outcome.SERVER_ERROR}:
                return None
        return None

    async def _attempt(
        self,
        analysis: _Analysis,
        routed: RoutedProvider,
        model: str,
        messages: tuple[Message, ...],
        sharing: int,
        *,
        is_repair: bool,
    ) -> Answer | tuple[Outcome, str]:
        """One call; ``sharing`` providers, this one included, have to make do with the time left."""
        name = f"{routed.provider.name}/{model}"
        await self._quiet_moment()  # an SDK's call costs the loop 2 ms
        left_s = analysis.ends - self._monotonic()
        if left_s < LEAST_ATTEMPT_S:
            return self._note(analysis, name, Outcome.NO_TIME), ""
        permit = routed.breaker.enter()
        if not isinstance(permit, Permit):
            return self._note(analysis, name, permit), ""
        try:
            reserved = await self._reserve(routed.provider.name, model, messages)
            if reserved is None:
                return self._note(analysis, name, Outcome.BUDGET_SPENT), ""
            call = _Call(routed.provider, model, messages, is_repair, permit, reserved)
            return await self._call(
                analysis, routed, call, min(self._settings.attempt_deadline_s, left_s / sharing)
            )
        finally:
            permit.cancelled()  # unless it was settled

    async def _call(
        self, analysis: _Analysis, routed: RoutedProvider, call: _Call, allowed_s: float
    ) -> Answer | tuple[Outcome, str]:
        progress = Progress()
        progress_of_call.set(progress)
        began = self._monotonic()
        result = _Result(outcome=Outcome.CANCELLED)
        try:
            async with asyncio.timeout(allowed_s):
                completion = await call.provider.complete(call.model, call.messages, REPLY_SCHEMA)
            result = _judged(completion, analysis.question.prompt)
        except Exception as error:  # noqa: BLE001 - classified, counted and journalled
            result = self._failed(error, progress, analysis.question.prompt)
        finally:
            record = self._written(analysis, call, result, began)
            self._note(analysis, f"{call.provider.name}/{call.model}", result.outcome)
            self._settle_permit(call.permit, result)
        self._settle_budget(call, result)
        self._learn(routed, call.model, result)
        if result.reading is not None:
            return Answer(reading=result.reading, record=record)
        return result.outcome, result.reason

    def _failed(self, error: Exception, progress: Progress, prompt: Prompt) -> _Result:
        failure = classify(error, self._settings.secrets, self._wall_ns() / 1e9)
        outcome = failure.outcome
        if outcome is Outcome.TIMEOUT and progress.has_headers:
            outcome = Outcome.SLOW_REPLY
        reading = None
        if failure.generation is not None:
            checked = check_text(failure.generation, prompt)
            if isinstance(checked, Reading):
                outcome, reading = Outcome.ANSWERED, checked
        return _Result(
            outcome=outcome,
            reading=reading,
            reason="it did not keep to the shape",
            text=failure.generation,
            error=failure.error,
            status=failure.status,
            retry_after_s=failure.retry_after_s,
        )

    def _written(
        self, analysis: _Analysis, call: _Call, result: _Result, began: float
    ) -> CallRecord:
        now, question, prompt = self._monotonic(), analysis.question, analysis.question.prompt
        usage = result.completion
        record = CallRecord(
            at_ns=self._wall_ns(),
            symbol=prompt.symbol,
            window_end_ms=prompt.window_end_ms,
            outcome=result.outcome,
            context_hash=prompt.context_hash,
            decided_at_ms=question.decided_at_ms,
            events=question.events,
            attempt=len(analysis.attempts) + 1,
            is_repair=call.is_repair,
            provider=call.provider.name,
            model=call.model,
            template_version=prompt.template.version,
            template_hash=prompt.template.hash,
            prompt_hash=messages_hash(call.messages),
            prompt=call.messages,
            reply=result.text,
            error=result.error,
            status=result.status,
            retry_after_s=result.retry_after_s,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            cost_usd=known_cost(capability_of(call.model, self._prices).price, usage),
            latency_ms=round((now - began) * 1_000, 3),
            analysis_ms=round((now - analysis.began) * 1_000, 3),
        )
        self._record(record)
        return record

    def _note(self, analysis: _Analysis, name: str, outcome: Outcome) -> Outcome:
        analysis.attempts.append(f"{name}: {outcome.value}")
        analysis.outcomes.append(outcome)
        self._counts[f"{name.partition('/')[0]}.{outcome.value}"] += 1
        return outcome

    async def _reserve(
        self, provider: str, model: str, messages: tuple[Message, ...]
    ) -> Reservation | None:
        capability = capability_of(model, self._prices)
        prompt, output = estimate_tokens(messages), capability.max_output_tokens
        usd = budgeted_cost(capability.price, prompt, 0, output)
        reserved = await self._budget.reserve(provider, prompt + output, usd)
        if reserved is None:
            self._alert(
                "ai.budget_spent", f"{provider}: the budget of {self._budget.day()} is spent"
            )
        return reserved

    def _settle_budget(self, call: _Call, result: _Result) -> None:
        completion = result.completion
        if completion is not None and completion.prompt_tokens is not None:
            new, cached, output = usage_of(completion)
            price = capability_of(call.model, self._prices).price
            usd = budgeted_cost(price, new, cached, output)
            self._budget.settle(call.reserved, new + output, usd)
        elif completion is None and result.outcome not in MAY_BE_CHARGED | {Outcome.ANSWERED}:
            self._budget.settle(call.reserved, 0, 0.0)

    def _settle_permit(self, permit: Permit, result: _Result) -> None:
        outcome = result.outcome
        if outcome in NO_ANSWER:
            permit.failed()
        elif outcome is Outcome.RATE_LIMITED:
            permit.told_to_wait(result.retry_after_s)
        elif outcome not in {Outcome.CANCELLED, Outcome.UNAUTHORIZED}:
            permit.succeeded()

    def _learn(self, routed: RoutedProvider, model: str, result: _Result) -> None:
        """Never ask again what was refused for good."""
        name = routed.provider.name
        if result.outcome is Outcome.UNAUTHORIZED:
            text = f"{name} refuses the key ({result.error}); not asked again until a restart"
            self._disable(routed, Outcome.DISABLED, "ai.key_refused", text)
        elif result.outcome is Outcome.UNKNOWN_MODEL and model not in routed.disabled_models:
            routed.disabled_models.add(model)
            text = f"{name} does not know {model} ({result.error}); not asked again until a restart"
            self._alert("ai.model_unknown", text)
        elif result.outcome is Outcome.BAD_REQUEST:
            routed.held_models[model] = self._monotonic() + MODEL_HOLD_S
            log.warning("ai.request_refused", provider=name, model=model, error=result.error)

    def _disable(self, routed: RoutedProvider, outcome: Outcome, alert: str, text: str) -> None:
        if routed.disabled is None:
            routed.disabled = outcome
            self._alert(alert, text)


class _Call(msgspec.Struct, frozen=True):
    """One attempt as it is sent."""

    provider: Provider
    model: str
    messages: tuple[Message, ...]
    is_repair: bool
    permit: Permit
    reserved: Reservation


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended."""

    outcome: Outcome
    reading: Reading | None = None
    reason: str = ""
    completion: Completion | None = None
    text: str | None = None
    error: str | None = None
    status: int | None = None
    retry_after_s: float | None = None


def _judged(completion: Completion, prompt: Prompt) -> _Result:
    checked = read_reply(completion, prompt)
    if isinstance(checked, Rejected):
        return _Result(
            outcome=checked.outcome,
            reason=checked.reason,
            completion=completion,
            text=completion.text,
            error=checked.reason,
        )
    return _Result(
        outcome=Outcome.ANSWERED, reading=checked, completion=completion, text=completion.text
    )


def _reason(outcomes: Sequence[Outcome]) -> str:
    """One word for why nobody answered: the one outcome all have in common, or that all failed."""
    if Outcome.NO_TIME in outcomes:
        return "deadline"
    return outcomes[0].value if len(set(outcomes)) == 1 else "all_failed"
