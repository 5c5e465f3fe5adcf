"""Is the chain of stored windows whole: no window missing, ``cvd[k] = cvd[k-1] + delta[k]``.

Pure: columns of one symbol, sorted by window → a ``ChainReport``. The sum starts again at each
midnight UTC, and once at the first window of a store (``cvd_anchor_ms``). Values are compared as the
decimals their doubles stand for, which is exact up to 15 digits and within half an ulp beyond.
"""

from __future__ import annotations

import math
from decimal import Decimal

import msgspec
import numpy as np

from lake.paths import DAY_MS


class WindowSpan(msgspec.Struct, frozen=True):
    """Windows missing in a row: ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one symbol's stored windows. All times are window starts, ms UTC.

    ``first_ms`` and ``last_ms`` bound the windows found (``None``: none). Windows before the first
    or after the last are not reported as missing.
    """

    symbol: str
    first_ms: int | None
    last_ms: int | None
    missing: tuple[WindowSpan, ...]
    incomplete: tuple[int, ...]  # complete = false
    broken: tuple[int, ...]  # cvd does not follow from the window before
    cvd_incomplete: tuple[int, ...]  # cvd_complete = false

    @property
    def is_whole(self) -> bool:
        """Nothing to repair."""
        return not (self.missing or self.incomplete or self.broken or self.cvd_incomplete)


class ChainColumns(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of one symbol, one entry per window, sorted: int64[n], float64[n], bool[n]."""

    window_start_ms: np.ndarray
    delta: np.ndarray
    cvd: np.ndarray
    cvd_anchor_ms: np.ndarray
    complete: np.ndarray
    cvd_complete: np.ndarray


def check_chain(symbol: str, columns: ChainColumns, window_ms: int) -> ChainReport:
    """Find missing, incomplete and broken windows.

    Args:
        symbol: Only named in the report.
        columns: The highest revisions.
        window_ms: Length of a window.
    """
    starts = columns.window_start_ms
    holes = np.flatnonzero(np.diff(starts) != window_ms)
    return ChainReport(
        symbol=symbol,
        first_ms=int(starts[0]) if len(starts) else None,
        last_ms=int(starts[-1]) if len(starts) else None,
        missing=tuple(WindowSpan(int(starts[i]) + window_ms, int(starts[i + 1])) for i in holes),
        incomplete=_where(starts, ~columns.complete),
        broken=_where(starts, _broken(columns, window_ms)),
        cvd_incomplete=_where(starts, ~columns.cvd_complete),
    )


def _where(starts: np.ndarray, mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(start) for start in starts[mask])


def _broken(columns: ChainColumns, window_ms: int) -> np.ndarray:
    """bool[n]: the window's cvd or anchor contradicts the window before it."""
    starts, anchors = columns.window_start_ms, columns.cvd_anchor_ms
    count = len(starts)
    has_previous = np.zeros(count, dtype=np.bool_)
    has_previous[1:] = np.diff(starts) == window_ms
    is_midnight = starts % DAY_MS == 0
    follows = has_previous & ~is_midnight
    begins = ~follows & (anchors == starts)
    previous = np.zeros(count, dtype=np.float64)
    previous[1:] = columns.cvd[:-1]
    previous[~follows] = 0.0
    broken = np.zeros(count, dtype=np.bool_)
    for index in np.flatnonzero((follows | begins) & (previous + columns.delta != columns.cvd)):
        broken[index] = not _adds_up(
            float(previous[index]), float(columns.delta[index]), float(columns.cvd[index])
        )
    same_anchor = np.ones(count, dtype=np.bool_)
    same_anchor[1:] = anchors[1:] == anchors[:-1]
    broken |= follows & ~same_anchor
    broken |= is_midnight & (anchors != starts)
    broken |= (anchors > starts) | (anchors < starts - starts % DAY_MS)
    return broken


def _adds_up(before: float, delta: float, after: float) -> bool:
    """``before + delta == after`` in decimals, each within half an ulp of its double."""
    if not all(map(math.isfinite, (before, delta, after))):
        return False
    difference = Decimal(repr(before)) + Decimal(repr(delta)) - Decimal(repr(after))
    # Up to 15 digits the difference is exact and this slack is less than one step of the last digit.
    slack = (math.ulp(before) + math.ulp(delta) + math.ulp(after)) / 2
    return abs(difference) <= Decimal(slack)
