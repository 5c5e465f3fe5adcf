"""Which channel gets which notification: severities, a rate each, and digests of what is beyond it.

Notifications and the clock in, (channel, notification) out; pure, its state a plain value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from alerts.notification import Notification, NotificationKind, rank
from alerts.rules import ChannelRule, RuleBook

MAX_HELD = 200  # kinds of alerts counted in one digest; the others count as "other alerts"


class ChannelState(msgspec.Struct, kw_only=True):
    """A channel's allowance, and what it has not been told since when."""

    tokens: float
    at_ms: int
    held_back: dict[str, int] = {}
    held_since_ms: int | None = None


class Router:
    """Says where a notification goes.

    Args:
        book: what each channel takes.
        channels: their names.
        new_id: keys of digests.
        state: what an earlier run left, by channel.
    """

    def __init__(
        self,
        book: RuleBook,
        channels: Iterable[str],
        *,
        new_id: Callable[[], str],
        state: dict[str, ChannelState] | None = None,
    ) -> None:
        self._rules = {name: book.channel_rule(name) for name in channels}
        self._new_id = new_id
        self.state = {n: s for n, s in (state or {}).items() if n in self._rules}
        self.held_count = 0

    def route(self, notification: Notification, now_ms: int) -> list[tuple[str, Notification]]:
        """The channels that get it now; the others do not take it or count it for their digest."""
        found = []
        for name, rule in self._rules.items():
            least = rank(rule.least_severity)
            items = tuple(i for i in notification.items if rank(i.severity) >= least)
            if not items:
                continue
            own = msgspec.structs.replace(notification, items=items)
            if own.severity == "error" or self._has_token(name, rule, now_ms):
                found.append((name, own))
            else:
                self._hold_back(name, own, now_ms)
        return found

    def digests(self, now_ms: int) -> list[tuple[str, Notification]]:
        """The digests that channels have room for again; call before routing anything new."""
        found = []
        for name, rule in self._rules.items():
            channel = self.state.get(name)
            if channel is not None and channel.held_back and self._has_token(name, rule, now_ms):
                digest = Notification(
                    key=self._new_id(),
                    kind=NotificationKind.DIGEST,
                    group="digest",
                    symbol=None,
                    items=(),
                    created_ms=now_ms,
                    held_back=channel.held_back,
                    held_since_ms=channel.held_since_ms,
                )
                channel.held_back, channel.held_since_ms = {}, None
                found.append((name, digest))
        return found

    def _has_token(self, name: str, rule: ChannelRule, now_ms: int) -> bool:
        """Take one from the bucket, which fills at ``per_hour`` up to ``burst``."""
        if rule.per_hour <= 0:
            return True
        most = float(max(1, rule.burst))
        channel = self.state.setdefault(name, ChannelState(tokens=most, at_ms=now_ms))
        gained = max(0, now_ms - channel.at_ms) * rule.per_hour / 3_600_000
        channel.tokens, channel.at_ms = min(most, channel.tokens + gained), now_ms
        if channel.tokens < 1.0:
            return False
        channel.tokens -= 1.0
        return True

    def _hold_back(self, name: str, notification: Notification, now_ms: int) -> None:
        channel = self.state[name]
        if channel.held_since_ms is None:
            channel.held_since_ms = now_ms
        held = channel.held_back
        for item in notification.items:
            self.held_count += 1
            what = " ".join(filter(None, (item.name, item.labels.get("symbol"))))
            what = what if what in held or len(held) < MAX_HELD else "other alerts"
            held[what] = held.get(what, 0) + 1
        if notification.omitted_count:
            self.held_count += notification.omitted_count
            held["other alerts"] = held.get("other alerts", 0) + notification.omitted_count
