"""When which intervals are ingested, and when the daily recommendation is due. Pure: no clock inside.

Consumes the exchange's time and what was done last → produces what is due now and when to look
again. Runs are aligned to UTC; of several missed ones only the latest is due, so one run catches up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from domain.intervals import DAY_MS, INTERVAL_MS, next_open_ms, open_time_ms

RECOMMENDATION: Final = "recommendation"
SETTLE_MS: Final = 3_000  # a candle is asked for this long after its close
_QUARTER: Final = "15m"
_HOUR: Final = "1h"


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What runs when.

    Attributes:
        intervals: Below an hour every quarter of an hour, ``1h`` every hour, longer ones at their
            close.
        long_every_quarter: Intervals above an hour every quarter of an hour instead.
        recommendation_minute: Minute of the UTC day of the daily recommendation; ``None``: never.
    """

    intervals: tuple[str, ...]
    long_every_quarter: bool = False
    recommendation_minute: int | None = None

    def due(self, now_ms: int, done: Mapping[str, int]) -> dict[str, int]:
        """Jobs whose latest run was not done yet: job → when it was due.

        Args:
            now_ms: The exchange's time.
            done: Job → due time of the last run that was done.
        """
        slots = {job: self.latest_ms(job, now_ms) for job in self._jobs()}
        return {job: slot for job, slot in slots.items() if slot > done.get(job, -1)}

    def latest_ms(self, job: str, now_ms: int) -> int:
        """When the job was last due."""
        at_ms = now_ms - SETTLE_MS
        if job == RECOMMENDATION:
            minute_ms = (self.recommendation_minute or 0) * 60_000
            return (at_ms - minute_ms) // DAY_MS * DAY_MS + minute_ms
        return open_time_ms(at_ms, self._cadence(job))

    def next_ms(self, now_ms: int) -> int:
        """When something is due next."""
        return (
            min(self._after(job, self.latest_ms(job, now_ms)) for job in self._jobs()) + SETTLE_MS
        )

    def _after(self, job: str, slot_ms: int) -> int:
        if job == RECOMMENDATION:
            return slot_ms + DAY_MS
        return next_open_ms(slot_ms, self._cadence(job))

    def _cadence(self, interval: str) -> str:
        """The interval on whose closes a job runs."""
        if INTERVAL_MS[interval] < INTERVAL_MS[_HOUR]:
            return _QUARTER
        is_long = INTERVAL_MS[interval] > INTERVAL_MS[_HOUR]
        return _QUARTER if is_long and self.long_every_quarter else interval

    def _jobs(self) -> Sequence[str]:
        if self.recommendation_minute is None:
            return self.intervals
        return (*self.intervals, RECOMMENDATION)


def minute_of_day(text: str) -> int:
    """``12:00`` → 720."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
