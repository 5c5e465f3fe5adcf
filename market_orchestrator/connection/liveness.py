"""Is a silent stream dead or only quiet? Pure logic on monotonic seconds, one object per socket.

Consumes the names of streams that carried data and the verdicts of probes, produces the streams to
probe next and, at last, the reason to reconnect. Rules (DESIGN: "quiet is not dead"):

* Each stream has its own limit: ``gap_factor`` x its mean gap, within [``floor_s``, ``cap_s``];
  with fewer than ``min_gaps`` gaps known: ``floor_s`` for depth (it comes every 100 ms),
  ``cap_s`` for trades. Before its first frame: ``first_frame_depth_s``/``first_frame_trades_s``.
* Past its limit a stream is only probed. "Newer data exist" + ``confirm_s`` of further silence is a
  proven stall. "Nothing newer" doubles the time to the next probe. "Unknown" likewise, and counts.
* Every stream silent and ``unknown_limit`` unknown verdicts in a row: reconnect.
* Depth, which no REST call can prove: one stream silent for ``patience_factor`` x its limit (or
  past its first-frame deadline) while others of the socket deliver, or all silent for twice their
  limits while trades flow: reconnect.
* A reconnect that did not bring a stream back doubles what that stream must wait for the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

_GAP_MEMORY = 32  # gaps; the mean forgets older ones exponentially


class LivenessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of liveness; seconds unless the name says otherwise."""

    gap_factor: float = 20.0
    floor_s: float = 5.0
    cap_s: float = 120.0
    min_gaps: int = 8
    first_frame_depth_s: float = 30.0
    first_frame_trades_s: float = 10.0
    confirm_s: float = 1.0
    retry_s: float = 5.0  # until the second probe of a silent stream; doubles from there
    retry_cap_s: float = 600.0
    unknown_limit: int = 3
    patience_factor: float = 4.0
    patience_cap_s: float = 3600.0


class _Stream:
    """What is known about one stream."""

    __slots__ = (
        "asked",
        "fruitless",
        "gaps",
        "last",
        "mean_gap",
        "name",
        "newer",
        "probe_at",
        "probe_wait",
        "since",
        "stalled_at",
    )

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.since = now  # silence counts from here until the first frame
        self.last: float | None = None
        self.mean_gap = 0.0
        self.gaps = 0
        self.fruitless = 0  # reconnects for this stream's sake since it last delivered
        self.newer: bool | None = None  # last verdict of this silence
        self.stalled_at: float | None = None
        self.asked = False  # a probe is under way or has answered in this silence
        self.probe_at = 0.0
        self.probe_wait = 0.0

    def seen(self) -> float:
        return self.since if self.last is None else self.last

    def forget_probes(self) -> None:
        self.newer = None
        self.stalled_at = None
        self.asked = False
        self.probe_at = 0.0
        self.probe_wait = 0.0


class SocketLiveness:
    """Liveness of the streams of one socket.

    Args:
        settings: Thresholds.
        streams: Stream names of this socket.
        now: Monotonic seconds.
        is_depth: Whether these are depth streams (steady cadence, not provable by REST).
        predecessor: The liveness of the connection this one replaces; rates and the memory of
            fruitless reconnects are taken over.
    """

    def __init__(
        self,
        settings: LivenessSettings,
        streams: Sequence[str],
        now: float,
        *,
        is_depth: bool,
        predecessor: SocketLiveness | None = None,
    ) -> None:
        self._settings = settings
        self._is_depth = is_depth
        self._streams = {name: _Stream(name, now) for name in streams}
        self._silent: list[_Stream] = []
        self._unknown_run = 0
        self._quiet_count = 0
        self._fruitless = 0
        if predecessor is not None:
            self._inherit(predecessor)

    def _inherit(self, predecessor: SocketLiveness) -> None:
        self._fruitless = predecessor._fruitless
        for name, old in predecessor._streams.items():
            new = self._streams.get(name)
            if new is not None:
                new.mean_gap, new.gaps, new.fruitless = old.mean_gap, old.gaps, old.fruitless

    def restart(self, now: float) -> None:
        """Count silence from ``now`` (the machine slept, or this socket became primary)."""
        self._unknown_run = self._quiet_count = 0
        self._silent = []
        for stream in self._streams.values():
            stream.since = now
            stream.last = None
            stream.forget_probes()

    def on_data(self, streams: Collection[str], now: float) -> None:
        """Note that ``streams`` carried data at ``now``."""
        known = self._streams
        for name in streams:
            stream = known.get(name)
            if stream is None:
                continue
            if stream.last is not None:
                if stream.gaps < _GAP_MEMORY:
                    stream.gaps += 1
                stream.mean_gap += (now - stream.last - stream.mean_gap) / stream.gaps
            stream.last = now
            if stream.asked or stream.fruitless:
                stream.fruitless = 0
                stream.forget_probes()
        if streams:
            self._unknown_run = self._quiet_count = self._fruitless = 0

    def last_data(self, stream: str) -> float | None:
        """Monotonic seconds of the stream's last data on this socket."""
        return self._streams[stream].last

    def limit_s(self, stream: str) -> float:
        """Seconds of silence after which ``stream`` is suspect."""
        return self._limit(self._streams[stream])

    def _limit(self, stream: _Stream) -> float:
        settings = self._settings
        first = settings.first_frame_depth_s if self._is_depth else settings.first_frame_trades_s
        if stream.gaps >= settings.min_gaps:
            scaled = settings.gap_factor * stream.mean_gap
            limit = min(max(scaled, settings.floor_s), settings.cap_s)
            return limit if stream.last is not None else min(limit, first)
        if stream.last is None:
            return first
        return settings.floor_s if self._is_depth else settings.cap_s

    def is_all_silent(self) -> bool:
        """Whether the last ``review`` found every stream past its limit."""
        return len(self._silent) == len(self._streams)

    def is_proven_quiet(self) -> bool:
        """Whether probes of this silence found nothing newer (and none found the contrary)."""
        contradicted = any(stream.stalled_at is not None for stream in self._silent)
        return self._quiet_count >= min(3, len(self._streams)) and not contradicted

    def review(self, now: float, *, market_moves: bool | None = None) -> str | None:
        """Look at all streams; return the reason to reconnect, or ``None``.

        Args:
            now: Monotonic seconds.
            market_moves: Whether trades flow elsewhere (``None``: not known). Used for depth.
        """
        streams = self._streams.values()
        self._silent = [s for s in streams if now - s.seen() > self._limit(s)]
        if not self._silent:
            return None
        reason = self._proven_stall(now)
        if reason is None and self._is_depth:
            reason = self._depth_stall(now, market_moves=market_moves)
        if reason is None and market_moves is not False:
            reason = self._unknown_stall()
        return reason

    def _proven_stall(self, now: float) -> str | None:
        for stream in self._silent:
            if stream.stalled_at is None or now - stream.stalled_at < self._settings.confirm_s:
                continue
            silence = now - stream.seen()
            if silence < self._with_patience(stream, self._limit(stream)):
                continue
            stream.fruitless += 1
            return f"{stream.name} silent for {silence:.1f} s while the exchange has newer data"
        return None

    def _depth_stall(self, now: float, *, market_moves: bool | None) -> str | None:
        if self.is_all_silent():
            if not market_moves:
                return None
            waits = [self._with_patience(s, 2 * self._limit(s)) for s in self._silent]
            if any(now - s.seen() < wait for s, wait in zip(self._silent, waits, strict=True)):
                return None
            for stream in self._silent:
                stream.fruitless += 1
            return "all depth streams silent while trades flow"
        for stream in self._silent:
            if stream.newer is False and now < stream.probe_at:
                continue
            factor = 1.0 if stream.last is None else self._settings.patience_factor
            silence = now - stream.seen()
            if silence >= self._with_patience(stream, factor * self._limit(stream)):
                stream.fruitless += 1
                return f"{stream.name} silent for {silence:.1f} s while other depth streams deliver"
        return None

    def _unknown_stall(self) -> str | None:
        needed = self._settings.unknown_limit * 2 ** min(self._fruitless, 10)
        if not self.is_all_silent() or self._unknown_run < needed:
            return None
        self._fruitless += 1
        return f"all streams silent and {self._unknown_run} probes without an answer"

    def _with_patience(self, stream: _Stream, wait_s: float) -> float:
        cap = max(self._settings.patience_cap_s, wait_s)
        return min(wait_s * 2.0 ** min(stream.fruitless, 20), cap)

    def due_probes(self, now: float) -> list[str]:
        """Silent streams whose probe is due, fastest streams first (their answer proves most)."""
        due = [s for s in self._silent if s.stalled_at is None and now >= s.probe_at]
        due.sort(key=self._limit)
        return [stream.name for stream in due]

    def on_probe_started(self, name: str, now: float) -> None:
        """Note that ``name`` is being probed; the next probe waits, each time twice as long."""
        stream, settings = self._streams[name], self._settings
        stream.asked = True
        wait = min(max(2 * stream.probe_wait, settings.retry_s), settings.retry_cap_s)
        stream.probe_wait = wait
        stream.probe_at = now + wait

    def on_verdict(self, name: str, asked_at: float, now: float, *, newer: bool | None) -> None:
        """Take a probe's answer: does the exchange have ``newer`` data than we received?"""
        stream = self._streams[name]
        if stream.seen() >= asked_at:  # answered by data (or a restart) in the meantime
            return
        stream.asked = True
        stream.newer = newer
        if newer:
            stream.stalled_at = now
        elif newer is None:
            self._unknown_run += 1
        else:
            self._unknown_run = 0
            self._quiet_count += 1
