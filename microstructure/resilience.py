"""Resilience: how long depth near the touch takes to come back after it was taken. Pure.

Depth within a few bps, snapshot by snapshot → recoveries: half of what was lost regained, or not within
a minute (censored). Large (2007) found a half-life of about 20 seconds and most shocks not replenished.
"""

from __future__ import annotations

import collections
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

BAND_BPS: Final = 5.0


class ResilienceSettings(msgspec.Struct, frozen=True, gc=False):
    """A shock is a fall by ``loss_share`` within ``within_ms``; it is over when ``regained_share`` of
    the loss is back, and given up after ``cap_ms``.
    """

    loss_share: float = 0.5
    within_ms: int = 100
    regained_share: float = 0.5
    cap_ms: int = 60_000


class Recovery(msgspec.Struct, frozen=True, gc=False):
    """A shock that is over.

    Attributes:
        shock_ms: Time of the snapshot that showed it.
        before: Depth before it.
        low: Least depth while it lasted; shocks during a shock deepen it.
        duration_ms: Until half of the loss was back; None if it was not in time.
    """

    shock_ms: int
    before: float
    low: float
    duration_ms: int | None


class Resilience:
    """Recoveries of one side of one symbol's book, as its snapshots come."""

    __slots__ = ("_before", "_low", "_recent", "_settings", "_shock_ms")

    def __init__(self, settings: ResilienceSettings | None = None) -> None:
        self._settings = settings or ResilienceSettings()
        self._recent: collections.deque[tuple[int, float]] = collections.deque()
        self._shock_ms: int | None = None
        self._before = self._low = 0.0

    def push(self, time_ms: int, depth: float, *, is_break: bool = False) -> Recovery | None:
        """Take in the depth of a snapshot.

        Args:
            time_ms: Not before the last one.
            depth: Base or quote units; NaN where the book is unknown.
            is_break: The update chain was broken before this snapshot: a shock is forgotten.

        Returns:
            The recovery that this snapshot ends.
        """
        if is_break or depth != depth:  # noqa: PLR0124 - NaN
            self._recent.clear()
            self._shock_ms = None
            if depth != depth:  # noqa: PLR0124
                return None
        over = None
        if self._shock_ms is not None:
            over = self._during(self._shock_ms, time_ms, depth)
        else:
            self._watch(time_ms, depth)
        self._remember(time_ms, depth)
        return over

    def _watch(self, time_ms: int, depth: float) -> None:
        since_ms = time_ms - self._settings.within_ms
        while self._recent and self._recent[0][0] < since_ms:
            self._recent.popleft()
        if not self._recent:
            return
        before = self._recent[0][1]
        if before > 0.0 and depth <= (1.0 - self._settings.loss_share) * before:
            self._shock_ms, self._before, self._low = time_ms, before, depth

    def _during(self, shock_ms: int, time_ms: int, depth: float) -> Recovery | None:
        self._low = min(self._low, depth)
        duration_ms = time_ms - shock_ms
        is_late = duration_ms > self._settings.cap_ms
        back_at = self._low + self._settings.regained_share * (self._before - self._low)
        if not is_late and depth < back_at:
            return None
        self._shock_ms = None
        self._recent.clear()
        return Recovery(shock_ms, self._before, self._low, None if is_late else duration_ms)

    def _remember(self, time_ms: int, depth: float) -> None:
        """Keeps depths that are no less than every later one: the first is the largest in reach."""
        while self._recent and self._recent[-1][1] <= depth:
            self._recent.pop()
        self._recent.append((time_ms, depth))


def recoveries(
    time_ms: npt.NDArray[np.int64],
    depth: Floats,
    is_break: npt.NDArray[np.bool_],
    settings: ResilienceSettings | None = None,
) -> list[Recovery]:
    """All recoveries of a sequence of snapshots; a shock still open at its end is left out.

    Args:
        time_ms: int64[n], never falling.
        depth: float64[n] of one side; NaN where the book is unknown.
        is_break: bool[n].
        settings: What a shock is.
    """
    found: list[Recovery] = []
    known = ~np.isnan(depth)
    cut = is_break.copy()
    cut[1:] |= ~known[:-1]
    kept = np.flatnonzero(known)
    bounds = np.append(np.flatnonzero(cut[kept] | (np.arange(len(kept)) == 0)), len(kept))
    for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = kept[first:stop]
        found += _of_chain(time_ms[rows], depth[rows], settings or ResilienceSettings())
    return found


def _of_chain(
    time_ms: npt.NDArray[np.int64], depth: Floats, settings: ResilienceSettings
) -> list[Recovery]:
    oldest = np.searchsorted(time_ms, time_ms - settings.within_ms)
    largest = depth.copy()
    for shift in range(1, int((np.arange(len(depth)) - oldest).max(initial=0)) + 1):
        in_reach = np.flatnonzero(np.arange(len(depth)) - shift >= oldest)
        largest[in_reach] = np.maximum(largest[in_reach], depth[in_reach - shift])
    falls = np.flatnonzero((depth <= (1.0 - settings.loss_share) * largest) & (largest > 0.0))
    found: list[Recovery] = []
    free_from = 0  # the snapshot that ended the last shock: depths before it no longer count
    for at in falls.tolist():
        first = max(int(oldest[at]), free_from)
        if at <= free_from and found:
            continue
        before = float(depth[first:at].max(initial=0.0))
        if before <= 0.0 or depth[at] > (1.0 - settings.loss_share) * before:
            continue
        recovery, end = _recovery(time_ms, depth, at, before, settings)
        if recovery is None:
            break
        found.append(recovery)
        free_from = end
    return found


def _recovery(
    time_ms: npt.NDArray[np.int64],
    depth: Floats,
    at: int,
    before: float,
    settings: ResilienceSettings,
) -> tuple[Recovery | None, int]:
    """The recovery from a shock and the snapshot that ends it; None if none does."""
    shock_ms = int(time_ms[at])
    late = int(np.searchsorted(time_ms, shock_ms + settings.cap_ms, side="right"))
    low = np.minimum.accumulate(depth[at : late + 1])
    back = depth[at : late + 1] >= low + settings.regained_share * (before - low)
    back[0] = False
    if late < len(depth):
        back[late - at] = True
    if not back.any():
        return None, len(depth)
    place = int(np.argmax(back))
    duration_ms = int(time_ms[at + place]) - shock_ms
    is_late = duration_ms > settings.cap_ms
    lowest = float(low[place])
    return Recovery(shock_ms, before, lowest, None if is_late else duration_ms), at + place
