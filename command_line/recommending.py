"""Puts the AI analyst and the event bus beside the daily recommendation, where models are configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Settings
    from domain.events import Signal
    from event_bus import EventBus
    from ingestion.recommendation import Analyst, Reading
    from market_orchestrator.analyst import DailyAnalyst

RECOMMENDING = (
    *("recommendation_update_time", "ai", "ai_providers", "ai_groq_models"),
    *("ai_dashscope_models", "ai_openai_models", "ai_deadline_seconds"),
    *("ai_attempt_deadline_seconds", "ai_daily_token_budget", "ai_daily_usd_budget", "ai_prices"),
)
"""Flags of what recommends."""


def daily_analyst(settings: Settings, bus: EventBus) -> DailyAnalyst | None:
    """The analyst; ``None`` where no model may be asked."""
    if settings.ai.value != "live":
        return None
    from market_orchestrator.analyst import DailyAnalyst

    return DailyAnalyst(settings, bus)


def asking(analyst: DailyAnalyst | None) -> Analyst | None:
    """How the recommendation asks the analyst."""
    if analyst is None:
        return None

    async def ask(_reading: Reading, rules: Signal) -> Signal | None:
        return await analyst.ask(rules)

    return ask


def tell(bus: EventBus, signal: Signal) -> None:
    """Publish a recommendation like any other signal."""
    from domain.events import Topic

    bus.publish(Topic.SIGNAL, signal)
