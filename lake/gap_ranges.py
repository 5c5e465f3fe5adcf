"""Half-open ranges with an end that may be unknown, and what is left of one beside others. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec


class Range(msgspec.Struct, frozen=True, order=True):
    """``[start, end)``; ``end`` is infinite while unknown."""

    start: int
    end: float

    def overlap(self, other: Range) -> Range | None:
        """What both hold; ``None`` if nothing."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Range(start, end) if start < end else None

    def without(self, others: Iterable[Range]) -> list[Range]:
        """The parts of this range that no other holds, in order."""
        parts = []
        start = self.start
        for other in sorted(others):
            if other.start >= self.end:
                break
            if other.start > start:
                parts.append(Range(start, other.start))
            if other.end == math.inf:
                return parts
            start = max(start, int(other.end))
        if start < self.end:
            parts.append(Range(start, self.end))
        return parts


def range_of(start: int, end: int | None) -> Range:
    """``end`` is ``None`` while unknown."""
    return Range(start, math.inf if end is None else end)


def end_of(found: Range) -> int | None:
    """The inverse of ``range_of``."""
    return None if found.end == math.inf else int(found.end)
