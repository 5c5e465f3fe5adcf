"""Book snapshots of one symbol in time order, as columns.

Depth frames or stored depth rows → ``BookTape``, what the array kernels read. Levels are best first;
a level that a snapshot lacks is NaN in all its columns. Nothing is counted across a break.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

_CHUNK_ROWS: Final = 2048  # of 20 levels: what stays in a processor's cache


class BookTape(msgspec.Struct, frozen=True, eq=False):
    """``n`` snapshots of ``L`` levels.

    Attributes:
        time_ms: int64[n], the exchange's time ``T``, never falling.
        bid_price: float64[n, L], quote units, best first.
        bid_size: float64[n, L], base units.
        ask_price: as the bids'.
        ask_size: as the bids'.
        is_break: bool[n]; True: the update chain was broken before this snapshot.
    """

    time_ms: npt.NDArray[np.int64]
    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats
    is_break: npt.NDArray[np.bool_]

    @classmethod
    def of_arrays(
        cls,
        time_ms: npt.ArrayLike,
        bid_price: npt.ArrayLike,
        bid_size: npt.ArrayLike,
        ask_price: npt.ArrayLike,
        ask_size: npt.ArrayLike,
        is_break: npt.ArrayLike | None = None,
    ) -> BookTape:
        """Check columns and make a tape of them; arrays of the right type are not copied.

        Raises:
            ValueError: Shapes differ, or times fall.
        """
        times = np.asarray(time_ms, dtype=np.int64)
        count = len(times)
        breaks = np.zeros(count, np.bool_) if is_break is None else np.asarray(is_break, np.bool_)
        sides = [
            np.asarray(column, dtype=np.float64)
            for column in (bid_price, bid_size, ask_price, ask_size)
        ]
        shapes = {side.shape for side in sides}
        if times.ndim != 1 or breaks.shape != (count,) or len(shapes) != 1:
            raise ValueError("columns of a book tape must have equal lengths and levels")
        if sides[0].ndim != 2 or len(sides[0]) != count:
            raise ValueError(f"prices and sizes must be ({count}, levels), not {sides[0].shape}")
        if np.any(times[1:] < times[:-1]):
            raise ValueError("snapshots must be in time order")
        bid_prices, bid_sizes, ask_prices, ask_sizes = sides
        return cls(times, bid_prices, bid_sizes, ask_prices, ask_sizes, breaks)

    @classmethod
    def empty(cls, levels: int = 20) -> BookTape:
        """A tape without snapshots."""
        nothing = np.empty((0, levels))
        return cls.of_arrays(np.empty(0, np.int64), nothing, nothing, nothing, nothing)

    @classmethod
    def joined(cls, tapes: Sequence[BookTape]) -> BookTape:
        """Tapes of one symbol one after the other; the first snapshot of each keeps its flag.

        Raises:
            ValueError: Levels differ, or a tape starts before the one before ends.
        """
        if not tapes:
            return cls.empty()
        if len({tape.levels for tape in tapes}) > 1:
            raise ValueError("tapes of different depths cannot be joined")
        return cls.of_arrays(
            np.concatenate([tape.time_ms for tape in tapes]),
            np.concatenate([tape.bid_price for tape in tapes]),
            np.concatenate([tape.bid_size for tape in tapes]),
            np.concatenate([tape.ask_price for tape in tapes]),
            np.concatenate([tape.ask_size for tape in tapes]),
            np.concatenate([tape.is_break for tape in tapes]),
        )

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def levels(self) -> int:
        """Levels per side that a snapshot can have."""
        return int(self.bid_price.shape[1])

    @property
    def is_two_sided(self) -> npt.NDArray[np.bool_]:
        """Where both best levels are there, with positive sizes, and not crossed: bool[n]."""
        bid, ask = self.bid_price[:, 0], self.ask_price[:, 0]
        sized = (self.bid_size[:, 0] > 0.0) & (self.ask_size[:, 0] > 0.0)
        quoted: npt.NDArray[np.bool_] = sized & (bid > 0.0) & (ask >= bid) & np.isfinite(ask)
        return quoted

    @property
    def mid_price(self) -> Floats:
        """Middle of the best quotes, float64[n]; NaN where the book is not two-sided."""
        mid = (self.bid_price[:, 0] + self.ask_price[:, 0]) / 2.0
        return np.where(self.is_two_sided, mid, np.nan)

    @property
    def quotes(self) -> Floats:
        """Best quotes as ``ofi.Quote`` rows, float64[n, 4]; NaN where not two-sided."""
        columns = (self.bid_price, self.bid_size, self.ask_price, self.ask_size)
        quotes = np.stack([column[:, 0] for column in columns], axis=1)
        quotes[~self.is_two_sided] = np.nan
        return quotes

    def slice(self, first: int, stop: int) -> BookTape:
        """Snapshots ``first`` to before ``stop``, as views."""
        return BookTape(
            self.time_ms[first:stop],
            self.bid_price[first:stop],
            self.bid_size[first:stop],
            self.ask_price[first:stop],
            self.ask_size[first:stop],
            self.is_break[first:stop],
        )

    def between(self, start_ms: int, end_ms: int) -> BookTape:
        """Snapshots with ``start_ms <= T < end_ms``, as views."""
        first, stop = np.searchsorted(self.time_ms, [start_ms, end_ms]).tolist()
        return self.slice(first, stop)


def level_major(
    columns: Sequence[Floats], levels: int, *, overlap: int = 0
) -> Iterator[tuple[int, list[Floats]]]:
    """Level columns turned round, chunk by chunk: several times faster to compute with.

    Columns in Fortran order are only looked at, others copied.

    Args:
        columns: Arrays float64[n, L] of one length.
        levels: Best levels to take.
        overlap: Rows before a chunk that come with it, except at the very start.

    Yields:
        The chunk's first new row, and float64[levels, rows] of each column.
    """
    count = len(columns[0])
    for first in range(overlap, count, _CHUNK_ROWS):
        rows = slice(first - overlap, first + _CHUNK_ROWS)
        turned = [column[rows, :levels].T for column in columns]
        yield first, [_contiguous(column) for column in turned]


def _contiguous(column: Floats) -> Floats:
    is_packed = column.strides[-1] == column.itemsize
    return column if is_packed else np.ascontiguousarray(column)
