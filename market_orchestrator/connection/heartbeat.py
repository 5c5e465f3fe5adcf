"""Pings and pongs of one socket: pure bookkeeping on monotonic seconds.

A pong proves the socket, never the data. A ping goes out every ``interval_s``; without a pong
within one further interval the connection is lost. An urged ping (all streams silent, the machine
slept) is overdue after ``urgent_s`` already.
"""

from __future__ import annotations


class Heartbeat:
    """When to ping, and what the pongs say."""

    def __init__(self, interval_s: float, now: float, *, urgent_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._urgent_s = min(urgent_s, interval_s)
        self._next_at = now  # the first ping at once: its pong shows that the path works
        self._waiting_since: float | None = None
        self.last_pong: float | None = None

    def is_due(self, now: float) -> bool:
        return now >= self._next_at

    def urge(self, now: float) -> None:
        """Make a ping due now, unless one is on its way or its pong is fresh."""
        fresh = self.last_pong is not None and now - self.last_pong < self._urgent_s
        if self._waiting_since is None and not fresh:
            self._next_at = now

    def restart(self, now: float) -> None:
        """Forget a ping on its way and send a new one (this machine slept)."""
        self._waiting_since = None
        self._next_at = now

    def on_ping(self, now: float) -> None:
        self._next_at = now + self._interval_s
        if self._waiting_since is None:
            self._waiting_since = now

    def on_pong(self, now: float) -> None:
        self._waiting_since = None
        self.last_pong = now

    def is_overdue(self, now: float) -> bool:
        """No pong for ``urgent_s``."""
        return self._waiting_since is not None and now - self._waiting_since >= self._urgent_s

    def is_lost(self, now: float) -> bool:
        """No pong within one further interval."""
        return self._waiting_since is not None and now - self._waiting_since >= self._interval_s


class PauseDetector:
    """Notices that this process did not run for a while (laptop asleep, loop blocked).

    Silence during a pause of our own says nothing about the exchange.
    """

    def __init__(self, now: float, wall_ns: int, *, tick_s: float) -> None:
        self._tolerance_s = 2.0 + tick_s
        self._now = now
        self._wall_ns = wall_ns

    def paused(self, now: float, wall_ns: int) -> bool:
        """Whether more time passed since the last call, on either clock, than a tick explains."""
        elapsed_s = max(now - self._now, (wall_ns - self._wall_ns) / 1e9)
        self._now, self._wall_ns = now, wall_ns
        return elapsed_s > self._tolerance_s
