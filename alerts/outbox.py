"""What is still to be delivered, per channel and in order, until a channel has taken it.

Plain state beside the engine's: both are written in one file at once, so that an alert is either
not fired yet or waits here. Entries keep their idempotency key over every attempt and restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from alerts.notification import Notification

MAX_WAITING: Final = 2_000
"""Per channel: at 30 notifications an hour almost three days."""
GIVE_UP_MS: Final = 3 * 86_400_000
LONGEST_RETRY_S: Final = 300.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One notification for one channel."""

    channel: str
    notification: Notification


class Outbox:
    """Queues by channel.

    Args:
        entries: what an earlier run left, oldest first.
        on_lost: called with an entry that is given up (too old, too many, refused) and why.
    """

    def __init__(self, entries: Iterable[Entry], on_lost: Callable[[Entry, str], None]) -> None:
        self._on_lost = on_lost
        self._waiting: dict[str, list[Entry]] = {}
        self.counts: Counter[str] = Counter()
        for entry in entries:
            self._waiting.setdefault(entry.channel, []).append(entry)

    def add(self, channel: str, notification: Notification) -> None:
        """Queue it; the oldest is given up where too many wait."""
        queue = self._waiting.setdefault(channel, [])
        queue.append(Entry(channel=channel, notification=notification))
        if len(queue) > MAX_WAITING:
            self._lose(queue[0], f"more than {MAX_WAITING} wait")

    def head(self, channel: str) -> Entry | None:
        """The next one to deliver."""
        queue = self._waiting.get(channel)
        return queue[0] if queue else None

    def done(self, entry: Entry) -> None:
        """The channel has it."""
        self._remove(entry)
        self.counts[f"{entry.channel}.delivered"] += 1

    def refused(self, entry: Entry, reason: str) -> None:
        """The channel will never take this one."""
        self._lose(entry, reason)

    def expire(self, now_ms: int) -> None:
        """Give up what waited for days, also for channels that are no longer there."""
        for entry in self.entries():
            if now_ms - entry.notification.created_ms > GIVE_UP_MS:
                self._lose(entry, "not delivered for days")

    def entries(self) -> tuple[Entry, ...]:
        """Everything that waits."""
        return tuple(entry for queue in self._waiting.values() for entry in queue)

    def _lose(self, entry: Entry, reason: str) -> None:
        self._remove(entry)
        self.counts[f"{entry.channel}.lost"] += 1
        self._on_lost(entry, reason)

    def _remove(self, entry: Entry) -> None:
        queue = self._waiting.get(entry.channel, [])
        key = entry.notification.key
        self._waiting[entry.channel] = [e for e in queue if e.notification.key != key]

    def statistics(self) -> dict[str, int | float | str | None]:
        """Waiting now, delivered and lost, by channel."""
        waiting = {f"{name}.waiting": len(queue) for name, queue in self._waiting.items()}
        return {**waiting, **self.counts}


def retry_s(failures: int, first_s: float, random: Callable[[], float]) -> float:
    """How long to wait after so many failures in a row: doubling, capped, half of it jitter."""
    longest = min(LONGEST_RETRY_S, first_s * 2.0 ** min(failures - 1, 32))
    return longest * (0.5 + 0.5 * random())
