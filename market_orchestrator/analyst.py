"""The AI analyst of a run: made from the settings, shown each live window, its answers to the outputs.

Settings → ``AIAnalyzer`` or nobody. The rules analyst is asked in every mode: it is the baseline. The
analyst of the daily recommendation is made here as well; its journal and budget are its own, as a bot
may be at work in the same data folder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from ai.contract import Price
from ai.router import at_any_moment
from ai.settings import AIMode, AISettings
from ai_analyzer_qwen import AIAnalyzer
from config import Settings
from domain.events import Signal, Topic
from event_bus import EventBus
from market_orchestrator.outputs import Outputs


def ai_analyst(
    settings: Settings,
    outputs: Outputs,
    bus: EventBus,
    *,
    is_healthy: Callable[[str], bool] = lambda _: True,
    quiet_moment: Callable[[], Awaitable[None]] = at_any_moment,
) -> AIAnalyzer | None:
    """Build and connect the analyst; ``None`` where nobody but the rules is asked."""
    if settings.ai in {AIMode.OFF, AIMode.RULES}:
        return None
    analyst = AIAnalyzer(
        ai_settings(settings),
        settings.paths.analyst_calls,
        now_ms=outputs.exchange_now_ms,
        publish_signal=outputs.take_signal,
        publish_unavailable=lambda event: _publish(bus, Topic.ANALYSIS_UNAVAILABLE, event),
        publish_alert=lambda event: _publish(bus, Topic.ALERT, event),
        is_healthy=is_healthy,
        quiet_moment=quiet_moment,
    )
    outputs.ask_also(lambda closed: analyst.on_window(closed.row, closed.context))
    return analyst


@asynccontextmanager
async def analyst_at_work(
    analyst: AIAnalyzer | None,
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run the analyst beside a replay; gives what waits until it has answered everything so far."""
    if analyst is None:
        yield _at_once
        return
    async with asyncio.TaskGroup() as group:
        task = group.create_task(analyst.run(), name="ai-analyst")
        try:
            yield analyst.settle
        finally:
            task.cancel()


class DailyAnalyst:
    """The AI analyst of the daily recommendation; ``ask`` while ``at_work``."""

    def __init__(self, settings: Settings, bus: EventBus) -> None:
        self._analyst = AIAnalyzer(
            ai_settings(settings),
            settings.paths.analyst_calls / "daily",
            now_ms=lambda: time.time_ns() // 1_000_000,
            publish_signal=lambda signal: _publish(bus, Topic.SIGNAL, signal),
            publish_unavailable=lambda event: _publish(bus, Topic.ANALYSIS_UNAVAILABLE, event),
            publish_alert=lambda event: _publish(bus, Topic.ALERT, event),
        )

    async def ask(self, rules: Signal) -> Signal | None:
        """``None`` where no model is configured or none answered."""
        return await self._analyst.recommend(rules)

    def statistics(self) -> dict[str, int | float | str | None]:
        """The analyst's."""
        return self._analyst.statistics()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Answers questions inside the context."""
        async with analyst_at_work(self._analyst):
            yield


async def _at_once() -> None:
    """Nobody was asked."""


def ai_settings(settings: Settings) -> AISettings:
    """The analyst's own settings."""
    keys = {
        "groq": settings.groq_api_key,
        "dashscope": settings.dashscope_api_key,
        "openai": settings.openai_api_key,
    }
    return AISettings(
        mode=settings.ai,
        providers=settings.ai_providers,
        keys={name: key for name, key in keys.items() if key is not None},
        models={
            "groq": settings.ai_groq_models,
            "dashscope": settings.ai_dashscope_models,
            "openai": settings.ai_openai_models,
        },
        min_interval_s=settings.ai_min_interval_seconds,
        deadline_s=settings.ai_deadline_seconds,
        attempt_deadline_s=settings.ai_attempt_deadline_seconds,
        prices=dict(map(_price_of, settings.ai_prices)),
        daily_tokens=settings.ai_daily_token_budget or None,
        daily_usd=settings.ai_daily_usd_budget or None,
        replay_folder=settings.ai_journal_dir,
    )


def _price_of(text: str) -> tuple[str, Price]:
    """``MODEL=IN/OUT``, as the settings checked it."""
    model, _, prices = text.rpartition("=")
    paid_in, _, paid_out = prices.partition("/")
    return model, Price(input=float(paid_in), output=float(paid_out))


def _publish(bus: EventBus, topic: Topic, event: msgspec.Struct) -> None:
    bus.publish(topic, event)
