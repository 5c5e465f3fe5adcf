"""What goes out: notifications of a group's alerts, and their text for people.

Plain values, made by the engine and the router, kept in the outbox, sent by the channels.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime

import msgspec

from alerts.rules import SEVERITIES

SCHEMA_VERSION = 1


class AlertState(enum.StrEnum):
    """Why an alert is told of."""

    FIRING = "firing"
    REPEATED = "repeated"  # still firing
    RESOLVED = "resolved"


class AlertItem(msgspec.Struct, frozen=True, kw_only=True):
    """One alert in a notification. ``alert_id`` stays the same from its firing to its end."""

    alert_id: str
    name: str
    severity: str
    labels: dict[str, str]
    message: str
    state: AlertState
    started_ms: int  # wall clock, as at_ms
    at_ms: int


class NotificationKind(enum.StrEnum):
    """What a notification holds."""

    ALERTS = "alerts"
    DIGEST = "digest"  # counts of what a channel's rate limit held back
    TEST = "test"


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """One message. ``key`` is its idempotency key: the same in every attempt to deliver it."""

    key: str
    kind: NotificationKind
    group: str
    symbol: str | None
    items: tuple[AlertItem, ...]
    created_ms: int
    omitted_count: int = 0  # alerts of the group beyond those listed
    held_back: dict[str, int] = {}  # of a digest: what → how often
    held_since_ms: int | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def severity(self) -> str:
        """The worst of its alerts'."""
        return max((item.severity for item in self.items), key=rank, default="info")


def rank(severity: str) -> int:
    """0 for info, up to 2 for error; anything unknown counts as a warning."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else 1


def title_of(notification: Notification) -> str:
    """One line: the symbol or group, and what is in it."""
    if notification.kind is NotificationKind.TEST:
        return "Test of alerts"
    if notification.kind is NotificationKind.DIGEST:
        return f"{sum(notification.held_back.values())} alerts held back"
    names = list(dict.fromkeys(item.name for item in notification.items))
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"[{notification.severity.upper()}] {notification.symbol or notification.group}: {shown}"


def text_of(notification: Notification) -> str:
    """A few lines for people; times are UTC."""
    if notification.kind is NotificationKind.DIGEST:
        since = _clock(notification.held_since_ms or notification.created_ms)
        counts = sorted(notification.held_back.items(), key=lambda pair: -pair[1])
        lines = [f"Since {since} UTC, beyond this channel's rate:"]
        return "\n".join([*lines, *(f"{count} × {what}" for what, count in counts)])
    lines = [f"{_clock(i.at_ms)} {_MARKS[i.state]}{i.message}" for i in notification.items]
    if notification.omitted_count:
        lines.append(f"and {notification.omitted_count} more")
    return "\n".join(lines)


_MARKS = {
    AlertState.FIRING: "",
    AlertState.REPEATED: "(still) ",
    AlertState.RESOLVED: "(over) ",
}


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%H:%M:%S")
