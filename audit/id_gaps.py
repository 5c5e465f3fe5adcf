"""Which ids of one symbol's trades are missing, found while its rows pass by a stretch at a time. Pure.

Consumes ids with their times, stretch after stretch; a few ids may come a stretch late, because an
exchange's times can run back a little. Produces the ranges nothing filled.
"""

from __future__ import annotations

import msgspec
import numpy as np

from lake.gap_ranges import Range


class IdGap(msgspec.Struct, frozen=True, kw_only=True):
    """Ids ``first_id`` to ``last_id`` are missing; ms of the trades before and after them."""

    first_id: int
    last_id: int
    from_ms: int
    until_ms: int

    @property
    def count(self) -> int:
        """How many."""
        return self.last_id - self.first_id + 1


class IdGaps:
    """Collects gaps between the first and the last id given to ``add``."""

    def __init__(self) -> None:
        self._gaps: list[IdGap] = []
        self.first_id: int | None = None
        self.first_ms: int | None = None
        self.last_id: int | None = None
        self.last_ms: int | None = None

    def add(self, ids: np.ndarray, times_ms: np.ndarray) -> None:
        """One stretch, sorted by id, each once.

        Args:
            ids: int64[n].
            times_ms: int64[n].
        """
        if self.last_id is not None and len(ids):
            late = int(np.searchsorted(ids, self.last_id, side="right"))
            self._fill(ids[:late])
            ids, times_ms = ids[late:], times_ms[late:]
        if not len(ids):
            return
        if self.first_id is None:
            self.first_id, self.first_ms = int(ids[0]), int(times_ms[0])
        elif self.last_ms is not None and self.last_id is not None:
            self._note(self.last_id, self.last_ms, int(ids[0]), int(times_ms[0]))
        for place in np.flatnonzero(np.diff(ids) != 1).tolist():
            before, after = slice(place, place + 1), slice(place + 1, place + 2)
            self._note(*(int(part[at][0]) for at in (before, after) for part in (ids, times_ms)))
        self.last_id, self.last_ms = int(ids[-1]), int(times_ms[-1])

    def found(self) -> list[IdGap]:
        """What is missing so far, in order."""
        return list(self._gaps)

    def _note(self, id_before: int, ms_before: int, id_after: int, ms_after: int) -> None:
        if id_after > id_before + 1:
            gap = IdGap(
                first_id=id_before + 1, last_id=id_after - 1, from_ms=ms_before, until_ms=ms_after
            )
            self._gaps.append(gap)

    def _fill(self, ids: np.ndarray) -> None:
        """Take late ids out of the gaps."""
        if not len(ids):
            return
        filled = [Range(number, number + 1) for number in ids.tolist()]
        kept = [g for g in self._gaps if g.last_id < ids[0]]
        for gap in self._gaps[len(kept) :]:
            for part in Range(gap.first_id, gap.last_id + 1).without(filled):
                end = int(part.end) - 1
                kept.append(msgspec.structs.replace(gap, first_id=part.start, last_id=end))
        self._gaps = kept
