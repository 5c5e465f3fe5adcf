"""The local clock against the exchange's, learned from messages; either may be wrong.

(receipt, event time) of messages → their median difference over the last minute and how steady it is.
"""

from __future__ import annotations

import statistics as stats
from collections import deque

_FEW = 16  # messages that are enough to judge by, and that age does not remove
_SAMPLES = 960  # at most: a busy feed is sampled evenly over the window
_MEDIAN_EVERY = 16  # samples between two medians


class ClockOffset:
    """Learns receipt minus event time (milliseconds) as a rolling median; wall clocks may be wrong.

    The median is that of the messages received within ``window_s`` before the newest, and of the
    last few where fewer came. A recording of another year, or a machine whose clock is 1.5 s behind,
    is normal data.
    """

    def __init__(self, window_s: float) -> None:
        self._window_ns = int(window_s * 1e9)
        self._spacing_ns = self._window_ns // _SAMPLES
        self._samples: deque[tuple[int, float]] = deque()
        self._latest_ms: float | None = None
        self._median_ms: float | None = None
        self._drift_ms = float("inf")
        self._since_median = 0

    def add(self, receive_time_ns: int, event_time_ms: int) -> None:
        """Note one message: when it was received and when the exchange says it was sent."""
        samples = self._samples
        self._latest_ms = receive_time_ns / 1e6 - event_time_ms
        # Distances, not order: a clock that is set back must not stop the learning.
        if len(samples) >= _FEW and abs(receive_time_ns - samples[-1][0]) < self._spacing_ns:
            return
        samples.append((receive_time_ns, self._latest_ms))
        while len(samples) > _FEW and abs(receive_time_ns - samples[0][0]) > self._window_ns:
            samples.popleft()
        self._since_median += 1
        if self._since_median >= _MEDIAN_EVERY or len(samples) <= _FEW:
            offsets = [offset for _, offset in samples]
            self._median_ms = stats.median(offsets)
            self._drift_ms = _drift(offsets)
            self._since_median = 0

    @property
    def median_ms(self) -> float | None:
        """Receipt minus event time, None before the first message."""
        return self._median_ms

    @property
    def drift_ms(self) -> float:
        """How far the newest offsets moved from the oldest: large when the clocks run at unlike speed."""
        return self._drift_ms

    def steady_ms(self, tolerance_ms: float) -> float | None:
        """The offset, or None while it moves by more than this (clocks at unlike speed)."""
        return self._median_ms if self._drift_ms <= tolerance_ms or self.is_young else None

    @property
    def is_young(self) -> bool:
        """Whether too few messages came to judge the drift."""
        return len(self._samples) < _FEW

    @property
    def latest_ms(self) -> float | None:
        """Receipt minus event time of the newest message, None before the first."""
        return self._latest_ms

    def exchange_ms(self, local_ns: int) -> float | None:
        """The exchange's time at a local wall-clock instant, as far as learned."""
        return None if self._median_ms is None else local_ns / 1e6 - self._median_ms


def _drift(offsets: list[float]) -> float:
    """How far the later half lies from the earlier one, ms."""
    if len(offsets) < 2:
        return float("inf")
    half = len(offsets) // 2
    return abs(stats.median(offsets[:half]) - stats.median(offsets[half:]))
