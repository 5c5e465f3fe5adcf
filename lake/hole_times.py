"""When data are missing, as ranges of time, and which windows they touch. Pure.

Consumes ledger entries, produces ``int64[n, 2]`` of ``(from, until)`` in ms: the exchange times of the
last message before a hole and the first after it, so the hole lies strictly between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from domain.events import GapState
from lake.gap_ledger import Gap

NO_END_MS: Final = np.iinfo(np.int64).max
"""``until`` of a hole that nothing has ended yet."""


def hole_times(gaps: Iterable[Gap], *, longer_than_s: float = 900.0) -> np.ndarray:
    """The times of all unrepaired holes longer than that; overlapping ones count as one.

    Args:
        gaps: Of any kinds; those of one symbol, as ``lake.gaps`` gives them.
        longer_than_s: Shorter holes are left out (default: 15 minutes).

    Returns:
        int64[n, 2], sorted and disjoint. A hole whose beginning is unknown begins where it ends.
    """
    ranges = sorted(
        (gap.from_ms, NO_END_MS if gap.until_ms is None else gap.until_ms)
        for gap in gaps
        if gap.state is not GapState.REPAIRED and gap.from_ms is not None
    )
    merged: list[list[int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    long = [found for found in merged if found[1] - found[0] > longer_than_s * 1_000]
    return np.array(long, dtype=np.int64).reshape(-1, 2)


def touching_holes(start_ms: np.ndarray, end_ms: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Which windows ``[start_ms, end_ms)`` touch a hole and are no good for training.

    Args:
        start_ms: int64[m]; of a row that is a moment, its time.
        end_ms: int64[m]; of a moment, its time plus one.
        holes: As ``hole_times`` gives them.

    Returns:
        bool[m].
    """
    # A window reaches from its first to its last ms, a hole lies strictly between its ends.
    first = np.searchsorted(
        holes[:, 1], start_ms, side="right"
    )  # the first that ends after it began
    padded = np.append(holes[:, 0], NO_END_MS)
    touches: np.ndarray = padded[first] < end_ms - 1
    return touches
