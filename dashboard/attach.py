"""Follows a running bot from another process: its ``/events`` WebSocket → a local event bus.

One text frame is one envelope as ``event_bus.to_json``; a frame with ``notice`` instead of a topic
speaks about the connection. After a break it goes on behind the last event it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import msgspec
import structlog

from domain.events import (
    Alert,
    AnalysisUnavailable,
    ConnectionEvent,
    FeaturesEvent,
    GapEvent,
    HealthEvent,
    Signal,
    Topic,
    WindowEvent,
)
from event_bus import EventBus

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
HEARTBEAT_S = 10.0
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
LARGEST_FRAME_BYTES = 8 * 1_024 * 1_024
_PAYLOADS: Mapping[Topic, type[msgspec.Struct]] = {
    Topic.CONNECTION: ConnectionEvent,
    Topic.GAP: GapEvent,
    Topic.WINDOW: WindowEvent,
    Topic.FEATURES: FeaturesEvent,
    Topic.SIGNAL: Signal,
    Topic.ANALYSIS_UNAVAILABLE: AnalysisUnavailable,
    Topic.ALERT: Alert,
    Topic.HEALTH: HealthEvent,
}
_DECODERS = {topic: msgspec.json.Decoder(kind) for topic, kind in _PAYLOADS.items()}
_NO_PAYLOAD = msgspec.Raw(b"null")


class _Frame(msgspec.Struct, frozen=True):
    """Any frame: an event, or a notice about the connection."""

    topic: str = ""
    sequence: int = 0
    payload: msgspec.Raw = _NO_PAYLOAD
    notice: str = ""


_FRAME = msgspec.json.Decoder(_Frame)


class Attachment:
    """One running bot, followed until cancelled.

    Args:
        bus: gets the bot's events.
        url: ``http://host:port`` of the bot; ``ws://`` and a path are understood too.
        token: the bot's HTTP_TOKEN, None where it has none.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        bus: EventBus,
        url: str,
        token: str | None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bus = bus
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._sleep = sleep
        self._after = 0
        self._counts = dict.fromkeys(("events", "unreadable", "connects", "missed_notices"), 0)
        self.trouble = "connecting"

    async def run(self) -> None:
        """Connect, follow, and connect again for ever."""
        wait_s = FIRST_WAIT_S
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while True:
                before = self._counts["events"]
                try:
                    await self._follow(session)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self._say(_reason(error))
                if self._counts["events"] > before:
                    wait_s = FIRST_WAIT_S
                await self._sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        topics = ",".join(Topic)
        params = {"topics": topics, "after": str(self._after)}
        opening = aiohttp.ClientWSTimeout(ws_close=1.0)
        async with session.ws_connect(
            f"{self._url.rstrip('/')}/events",
            params=params,
            heartbeat=HEARTBEAT_S,
            max_msg_size=LARGEST_FRAME_BYTES,
            timeout=opening,
        ) as socket:
            self._counts["connects"] += 1
            self._say("")
            async for message in socket:
                if message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                    self._take(message.data)
            error = socket.exception()
            self._say(_reason(error) if error else "the bot closed the connection")

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.info("attach.state", trouble=trouble or "none")

    def _take(self, data: str | bytes) -> None:
        """Publish one event; what a newer bot may send and this one does not know is counted."""
        try:
            frame = _FRAME.decode(data)
            if frame.notice:
                self._counts["missed_notices"] += frame.notice == "missed"
                return
            topic = Topic(frame.topic)
            payload = _DECODERS[topic].decode(frame.payload)
        except (msgspec.DecodeError, ValueError):
            self._counts["unreadable"] += 1
            return
        self._after = max(self._after, frame.sequence)
        self._counts["events"] += 1
        self._bus.publish(topic, payload)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Events taken, frames not understood, connections, notices that events were missed."""
        return {**self._counts, "trouble": self.trouble}


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.WSServerHandshakeError):
        told = {401: "HTTP_TOKEN is wrong or missing", 403: "HTTP_TOKEN is wrong or missing"}
        return told.get(error.status, f"no event stream there (HTTP {error.status})")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no bot answers there"
    return f"connection lost ({type(error).__name__})"
