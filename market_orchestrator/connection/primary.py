"""Which of several depth sockets is forwarded: one at a time, never interleaved. Pure.

Consumes the frames of all sockets of a shard, produces those to forward. The standby's frames since
the primary's last one are retained (bounded), so that a switch loses next to nothing; what the old
primary had delivered already is left out, so that no book goes back in time.
Depth of two sockets must not be merged: each batches its updates differently.
"""

from __future__ import annotations

from collections import deque

import msgspec

from market_orchestrator.connection.depth_order import is_newer, newest

_RECENT_FRAMES = 4096  # of the primary, kept to know at a switch what it delivered


class Frames(msgspec.Struct):
    """Messages and their receive times, in arrival order."""

    payloads: list[bytes]
    receive_time_ns: list[int]


class _Standby:
    """A socket that is not forwarded, and what it received since the primary's last frame."""

    __slots__ = ("last", "retained", "since")

    def __init__(self) -> None:
        self.retained = Frames([], [])
        self.since: float | None = None
        self.last: float | None = None


class PrimarySelector:
    """Chooses the socket whose depth is forwarded.

    Args:
        stale_after_s: Silence of the primary after which a delivering standby takes over.
        lead_s: How long the standby must have been delivering alone by then; keeps two sockets of
            a quiet market, a millisecond apart, from taking turns.
        overlap_s: For how long after a switch frames are compared with the old primary's.
        retained_limit: Frames kept per standby; beyond it the older half is dropped.
    """

    def __init__(
        self,
        *,
        stale_after_s: float,
        lead_s: float = 0.25,
        overlap_s: float = 2.0,
        retained_limit: int = 8192,
    ) -> None:
        self._stale_after_s = stale_after_s
        self._lead_s = lead_s
        self._overlap_s = overlap_s
        self._retained_limit = retained_limit
        self._last = 0.0
        self._standby: dict[int, _Standby] = {}
        self._recent: deque[list[bytes]] = deque()
        self._recent_count = 0
        self._floor: dict[bytes, int] = {}
        self._floor_until = 0.0
        self.primary: int | None = None
        self.switch_count = 0

    def offer(
        self, socket_id: int, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> Frames | None:
        """Take a socket's frames; return what to forward, all of it from ``self.primary``."""
        if self.primary is None:
            self._become_primary(socket_id, now)
        if socket_id == self.primary:
            self._last = now
            self._note_delivered(payloads)
            return self._above_floor(Frames(payloads, receive_time_ns), now)
        standby = self._standby.setdefault(socket_id, _Standby())
        self._retain(standby, payloads, receive_time_ns, now)
        stale = now - self._last > self._stale_after_s
        if stale and standby.since is not None and now - standby.since >= self._lead_s:
            return self.promote(socket_id, now)
        return None

    def promote(self, socket_id: int, now: float) -> Frames:
        """Make ``socket_id`` primary; return what it received since the old one's last frame."""
        if socket_id == self.primary:
            return Frames([], [])
        if self.primary is not None:
            self.switch_count += 1
            self._standby[self.primary] = _Standby()
        return self._become_primary(socket_id, now)

    def remove(self, socket_id: int, now: float) -> Frames | None:
        """Forget a socket that is gone; if it was primary, promote the freshest standby if any."""
        self._standby.pop(socket_id, None)
        if socket_id != self.primary:
            return None
        heard = [(s.last, key) for key, s in self._standby.items() if s.last is not None]
        if not heard:
            self.primary = None
            return None
        _, successor = max(heard)
        frames = self.promote(successor, now)
        self._standby.pop(socket_id, None)
        return frames

    def _become_primary(self, socket_id: int, now: float) -> Frames:
        self.primary = socket_id
        self._last = now
        delivered = newest(payload for batch in self._recent for payload in batch)
        for stream, update_id in delivered.items():
            self._floor[stream] = max(update_id, self._floor.get(stream, -1))
        self._floor_until = now + self._overlap_s
        self._recent.clear()
        self._recent_count = 0
        standby = self._standby.pop(socket_id, None)
        if standby is None or not standby.retained.payloads:
            return Frames([], [])
        frames = self._above_floor(standby.retained, now)
        self._note_delivered(frames.payloads)
        return frames

    def _note_delivered(self, payloads: list[bytes]) -> None:
        for standby in self._standby.values():
            if standby.since is not None:
                standby.since = None
                standby.retained = Frames([], [])
        self._recent.append(payloads)
        self._recent_count += len(payloads)
        while self._recent_count - len(self._recent[0]) >= _RECENT_FRAMES:
            self._recent_count -= len(self._recent.popleft())

    def _above_floor(self, frames: Frames, now: float) -> Frames:
        """Leave out what the old primary delivered already."""
        floor = self._floor
        if not floor:
            return frames
        if now > self._floor_until:
            self._floor = {}
            return frames
        pairs = zip(frames.payloads, frames.receive_time_ns, strict=True)
        kept = [(payload, at) for payload, at in pairs if is_newer(payload, floor)]
        return Frames([payload for payload, _ in kept], [at for _, at in kept])

    def _retain(
        self, standby: _Standby, payloads: list[bytes], receive_time_ns: list[int], now: float
    ) -> None:
        standby.last = now
        if standby.since is None:
            standby.since = now
        kept = standby.retained
        kept.payloads.extend(payloads)
        kept.receive_time_ns.extend(receive_time_ns)
        if len(kept.payloads) > self._retained_limit:
            excess = len(kept.payloads) - self._retained_limit // 2
            del kept.payloads[:excess], kept.receive_time_ns[:excess]
