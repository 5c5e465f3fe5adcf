"""Rolling memories of fixed length over windows or bars: a missing entry ages them like any other.

Numbers in, order or moments out. A look-back is time-true: a hole of k windows pushes k missing
entries, so a hole as long as the look-back empties it and its warm-up starts again.
"""

from __future__ import annotations

from array import array
from math import sqrt

import numpy as np
import numpy.typing as npt

MISSING = float("nan")
_FEW = 8  # up to here single pushes are cheaper than rebuilding
_REBASE_RATIO = 1e8  # a leaving square this much larger than what stays ruins the running sums
_CANCELLED_RATIO = 1e-7  # a variance this far below the squared offset has lost its digits
_RELATIVE_FLOOR = 1e-9  # a spread below this share of the mean is rounding, not variation


class RollingMoments:
    """Mean and standard deviation of the last ``size`` entries, in O(1) per entry.

    Running sums around a shift near the mean; they are recomputed from the entries every ``size``
    pushes and whenever an outlier or a stale shift has cost digits, so rounding errors do not stay.
    """

    __slots__ = ("_count", "_entries", "_next", "_shift", "_square_sum", "_sum", "size")

    def __init__(self, size: int, phase: int = 0) -> None:
        """Start empty.

        Args:
            size: Entries remembered.
            phase: Spreads the recomputations of many instances over different pushes.
        """
        self.size = size
        self._entries = array("d", [MISSING]) * size
        self._next = phase % size
        self._count = 0
        self._shift = 0.0
        self._sum = 0.0
        self._square_sum = 0.0

    def push(self, value: float) -> None:
        """Append one entry (``MISSING`` for none) and drop the oldest."""
        position = self._next
        entries = self._entries
        leaving = entries[position]
        entries[position] = value
        self._next = position = position + 1 if position + 1 < self.size else 0
        if leaving == leaving:  # noqa: PLR0124 - False for NaN alone
            leaving -= self._shift
            self._count -= 1
            self._sum -= leaving
            self._square_sum -= leaving * leaving
        if value == value:  # noqa: PLR0124
            if self._count == 0:
                self._shift, self._sum, self._square_sum = value, 0.0, 0.0
            value -= self._shift
            self._count += 1
            self._sum += value
            self._square_sum += value * value
        if position == 0 or leaving * leaving > _REBASE_RATIO * self._square_sum:
            self._rebase()

    def skip(self, count: int) -> None:
        """Append ``count`` missing entries."""
        if count <= _FEW:
            for _ in range(count):
                self.push(MISSING)
            return
        lost = min(count, self.size)
        ordered = array("d", self.values()[lost:]) + array("d", [MISSING]) * lost
        turn = self.size - self._next
        self._entries = ordered[turn:] + ordered[:turn]
        self._rebase()

    def z_score(self, value: float | None, minimum: int) -> float | None:
        """Distance of ``value`` from the mean of the entries in standard deviations.

        Args:
            value: Not (yet) among the entries.
            minimum: Entries needed (missing ones do not count); ``None`` below.

        Returns:
            ``None`` while warming up, without a value, or when the entries do not vary.
        """
        count = self._count
        if value is None or count < minimum or count < 2:
            return None
        offset, variance = self._moments()
        if variance < _CANCELLED_RATIO * offset * offset:
            self._rebase()
            offset, variance = self._moments()
        mean = self._shift + offset
        if variance <= 0.0:
            return None
        deviation = sqrt(variance)
        if deviation <= _RELATIVE_FLOOR * abs(mean):
            return None
        return (value - mean) / deviation

    def values(self) -> list[float]:
        """The entries, oldest first, missing ones as NaN."""
        return [*self._entries[self._next :], *self._entries[: self._next]]

    def _moments(self) -> tuple[float, float]:
        offset = self._sum / self._count
        return offset, (self._square_sum - self._sum * offset) / (self._count - 1)

    def _rebase(self) -> None:
        entries = np.frombuffer(self._entries)
        present = entries[entries == entries]  # noqa: PLR0124
        self._count = len(present)
        if not self._count:
            self._shift = self._sum = self._square_sum = 0.0
            return
        low, high = float(present.min()), float(present.max())
        self._shift = low if low == high else float(present.mean())
        present = present - self._shift
        self._sum = float(present.sum())
        self._square_sum = float(present @ present)


class Ring:
    """The last ``size`` numbers in order, as one contiguous array at any time."""

    __slots__ = ("_doubled", "_missing", "_next", "size")

    def __init__(self, size: int, missing: float = MISSING) -> None:
        self.size = size
        self._missing = missing
        self._doubled = np.full(2 * size, missing)  # written twice: any last n are one slice
        self._next = 0

    def push(self, value: float) -> None:
        """Append one number and drop the oldest."""
        position = self._next
        self._doubled[position] = value
        self._doubled[position + self.size] = value
        self._next = position + 1 if position + 1 < self.size else 0

    def skip(self, count: int) -> None:
        """Append ``count`` missing entries."""
        if count <= _FEW:
            for _ in range(count):
                self.push(self._missing)
            return
        lost = min(count, self.size)
        kept = self.last(self.size)[lost:].copy()
        self._set(np.concatenate((kept, np.full(lost, self._missing))))

    def last(self, count: int) -> npt.NDArray[np.float64]:
        """The newest ``count`` entries, oldest first: float64 (count), a view of the memory."""
        end = self._next + self.size
        return self._doubled[end - count : end]

    def at(self, age: int) -> float | None:
        """The entry ``age`` pushes before the newest; ``None`` if missing or older than the ring."""
        if age >= self.size:
            return None
        value = float(self._doubled[self._next + self.size - 1 - age])
        return value if value == value else None  # noqa: PLR0124

    def fill_missing(self, values: list[float]) -> None:
        """Replace missing entries by ``values`` (as ``last(size)``, missing ones stay so)."""
        own = self.last(self.size)
        self._set(np.where(np.isnan(own), np.array(values), own))

    def _set(self, ordered: npt.NDArray[np.float64]) -> None:
        self._doubled[: self.size] = ordered
        self._doubled[self.size :] = ordered
        self._next = 0
