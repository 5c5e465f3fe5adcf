"""Puts alerts beside the work of a bot: settings to rules, channels and the service; a clean end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from alerts.channels import Channel
    from alerts.service import AlertService
    from config import Settings
    from event_bus import EventBus

log = structlog.get_logger()

STOP_TIMEOUT_S = 5.0  # after the bot has stopped, of the ten seconds a stop may take


def alert_folder(settings: Settings) -> Path:
    """Where alert state, silences and the file channel's files lie."""
    return settings.paths.root / "alerts"


def alert_channels(settings: Settings) -> list[Channel]:
    """The channels that are set up.

    Raises:
        ConfigError: one cannot work as it is set; names the setting.
    """
    from alerts.channels import ChannelSettings, make_channels

    url, secret = settings.alert_webhook_url, settings.alert_webhook_secret
    urls = "" if settings.alert_urls is None else settings.alert_urls.get_secret_value()
    return make_channels(
        ChannelSettings(
            names=settings.alert_channels,
            folder=alert_folder(settings),
            webhook_url=None if url is None else url.get_secret_value(),
            webhook_secret=None if secret is None else secret.get_secret_value() or None,
            urls=[part for part in re.split(r"\s+", urls) if part],
        )
    )


def alerting(settings: Settings, bus: EventBus) -> AlertService:
    """The service of a run; it listens from now on.

    Raises:
        ConfigError: the rules or a channel cannot be used.
    """
    from alerts.readings import AnalystBudget
    from alerts.rules import load_rules
    from alerts.service import AlertService, AlertSettings

    chosen = AlertSettings(
        folder=alert_folder(settings),
        symbols=settings.symbols,
        window_s=settings.window_duration,
        budget=AnalystBudget(
            tokens=settings.ai_daily_token_budget or None,
            usd=settings.ai_daily_usd_budget or None,
        ),
    )
    return AlertService(bus, load_rules(settings.alert_rules), chosen, alert_channels(settings))


async def alerted(work: Coroutine[Any, Any, int], service: AlertService) -> int:
    """Run the work; when it has ended, alerts have a moment to reach their channels."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_guarded(service), name="alerts")
        try:
            return await work
        finally:
            await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
            task.cancel()


async def _guarded(service: AlertService) -> None:
    """Whatever goes wrong with alerts must not end the run."""
    try:
        await service.run()
    except Exception:
        log.exception("alerts.failed")
