"""Rolling price impact of one symbol: how far signed volume usually moves the mid. Pure.

Consumes sums over bars of (signed volume, Δmid) → produces the residual of later moves against the
regression through the bars still in reach (Kyle 1985), None while there are too few.
"""

from __future__ import annotations

import collections
import struct
from math import copysign, sqrt

type Moments = tuple[float, float, float, float, float, float]
"""Of bars with signed volume x and Δmid y: n, Σx, Σy, Σxx, Σxy, Σyy."""

_ENTRY = struct.Struct("q6d")  # end_ms, moments: a quarter of what they take as objects
_NOTHING: Moments = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_REBASE_EVERY = 128  # entries after which the running sums are made anew
_REBASE_RATIO = 1e8  # a leaving square this much larger than what stays ruins the running sums
_EXACT_FIT = 1e-12  # share of the squared Δmid that is rounding and no residual


class PriceImpact:
    """Kyle's λ̂: least squares with intercept of Δmid on signed volume, over the bars in reach."""

    __slots__ = ("_entries", "_minimum", "_sums", "_until_rebase")

    def __init__(self, minimum: int, phase: int = 0) -> None:
        """Start empty.

        Args:
            minimum: Bars needed for a residual.
            phase: Spreads the recomputations of many instances over different entries.
        """
        self._minimum = max(minimum, 3)
        self._entries: collections.deque[bytes] = collections.deque()
        self._sums = _NOTHING
        self._until_rebase = 1 + phase % _REBASE_EVERY

    def push(self, end_ms: int, bars: Moments) -> None:
        """Takes in bars that end at ``end_ms``, later than all before."""
        if not bars[0]:
            return
        self._entries.append(_ENTRY.pack(end_ms, *bars))
        self._until_rebase -= 1
        if self._until_rebase:
            n, sx, sy, sxx, sxy, syy = self._sums
            m, tx, ty, txx, txy, tyy = bars
            self._sums = (n + m, sx + tx, sy + ty, sxx + txx, sxy + txy, syy + tyy)
        else:
            self._rebase()

    def expire(self, until_ms: int) -> None:
        """Forgets bars that ended at or before ``until_ms``."""
        entries = self._entries
        while entries:
            end_ms, m, tx, ty, txx, txy, tyy = _ENTRY.unpack(entries[0])
            if end_ms > until_ms:
                return
            entries.popleft()
            n, sx, sy, sxx, sxy, syy = self._sums
            self._sums = (n - m, sx - tx, sy - ty, sxx - txx, sxy - txy, syy - tyy)
            if txx > _REBASE_RATIO * self._sums[3] or tyy > _REBASE_RATIO * self._sums[5]:
                self._rebase()

    def residual(self, flow: float, move: float | None, bars: int) -> float | None:
        """How much less a move was than the flow implied: sign(Δ)·(λ̂Δ - Δmid) / (σ_e·√bars).

        Args:
            flow: Signed volume Δ, base units.
            move: Δmid while it traded, quote units; None if unknown.
            bars: How many bars long that was.

        Returns:
            0 where Δ is 0; None while fewer than the minimum bars are in reach, where λ̂ <= 0 or the
            fit leaves no residual, and for an unknown move.
        """
        n, sx, sy, sxx, sxy, syy = self._sums
        if n < self._minimum:
            return None
        spread, shared = sxx - sx * sx / n, sxy - sx * sy / n
        if spread <= 0.0 or shared <= 0.0:
            return None
        slope = shared / spread
        variance = (syy - sy * sy / n - slope * shared) / (n - 2.0)
        if variance <= _EXACT_FIT * syy / n:
            return None
        if flow == 0.0:
            return 0.0
        if move is None:
            return None
        return copysign(1.0, flow) * (slope * flow - move) / sqrt(variance * bars)

    def _rebase(self) -> None:
        self._until_rebase = _REBASE_EVERY
        self._sums = _NOTHING
        if self._entries:
            _, n, sx, sy, sxx, sxy, syy = map(
                sum, zip(*map(_ENTRY.unpack, self._entries), strict=True)
            )
            self._sums = (n, sx, sy, sxx, sxy, syy)
