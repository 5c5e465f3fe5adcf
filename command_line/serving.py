"""Puts metrics, health, events and the event broker beside the work of a long-running verb."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings
    from event_bus import EventBus
    from monitoring.event_stream import EventStream
    from monitoring.health import Readings
    from monitoring.http_server import HttpSettings
    from monitoring.logging import LogWriter
    from monitoring.serving import MonitoringSettings, Part, Publisher

SERVING = ("http_host", "http_port")
"""Flags of every verb that serves."""


def monitoring(
    settings: Settings,
    verb: str,
    read: Callable[[], Readings],
    *,
    writer: LogWriter,
    bus: EventBus | None = None,
    progress: Callable[[Readings], int] | None = None,
    others: Mapping[str, Part] | None = None,
) -> Coroutine[Any, Any, None]:
    """What runs beside the work, to be given to ``beside``.

    Args:
        settings: HTTP_*, EVENTS_KEEP, EVENT_BROKER*.
        verb: The verb's name, a label of its metrics.
        read: Statistics of all parts, flat; empty while starting.
        writer: Of the log.
        bus: The verb's events, if it has any.
        progress: Grows while the work gets on; default: frames received.
        others: Parts beside the work that are measured as well, by name.

    Raises:
        ConfigError: An address beyond this machine without a token, or a broker without its package.
    """
    from monitoring.serving import Sources, frames_received, serve_monitoring

    sources = Sources(
        read=read,
        progress=frames_received if progress is None else progress,
        bus=bus,
        others={"log": writer, **(others or {})},
        broker=None if bus is None else _broker(settings, verb),
    )
    return serve_monitoring(_settings(settings, verb), sources)


async def beside(
    work: Coroutine[Any, Any, int],
    *companions: Coroutine[Any, Any, None],
    after: asyncio.Event | None = None,
) -> int:
    """Run the work, and its companions for as long as it runs; they begin ``after``, if given."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_begun(companion, after)) for companion in companions]
            try:
                return await work
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        for companion in companions:  # of those that never began; the others have ended
            companion.close()


async def _begun(companion: Coroutine[Any, Any, None], after: asyncio.Event | None) -> None:
    if after is not None:
        await after.wait()
    await companion


def _settings(settings: Settings, verb: str) -> MonitoringSettings:
    from monitoring.health import HealthSettings
    from monitoring.serving import MonitoringSettings

    labels: Mapping[str, str] = {
        "verb": verb,
        "market": settings.market.value,
        "source": settings.source.partition(":")[0],
        "shard": settings.shard or "1/1",
    }
    return MonitoringSettings(
        http=_http(settings),
        health=HealthSettings(
            disk_warn_mib=settings.disk_warn_mib, disk_stop_mib=settings.disk_stop_mib
        ),
        events_folder=_events_folder(settings, verb),
        events_keep=settings.events_keep,
        version=version(),
        labels=labels,
    )


def _http(settings: Settings) -> HttpSettings | None:
    from monitoring.http_server import HttpSettings, check_address

    if settings.http_port is None:
        return None
    token = settings.http_token
    http = HttpSettings(
        host=settings.http_host,
        port=settings.http_port,
        token=None if token is None else token.get_secret_value() or None,
    )
    check_address(http)
    return http


def _events_folder(settings: Settings, verb: str) -> Path:
    """Events that survive a restart; other verbs than the bot keep theirs apart from its own."""
    folder = settings.paths.root / "events"
    return folder if verb == "run" else folder / verb


def _broker(settings: Settings, verb: str) -> Callable[[EventStream], Publisher] | None:
    url = settings.event_broker
    if url is None:
        return None
    try:
        from event_broker import BrokerSettings, EventBroker
    except ModuleNotFoundError as error:
        if error.name != "nats":
            raise
        raise ConfigError("EVENT_BROKER: needs the package nats-py; run make setup") from None
    token = settings.event_broker_token
    chosen = BrokerSettings(
        url=url,
        market=settings.market.value,
        token=None if token is None else token.get_secret_value(),
    )
    position = _events_folder(settings, verb) / "broker.json"
    return lambda stream: EventBroker(chosen, stream, position)


def version() -> str:
    """The program's version, from its project file."""
    try:
        content = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_bytes()
    except OSError:
        return "unknown"
    return str(tomllib.loads(content.decode())["project"]["version"])
