"""The last minutes of one symbol, and what a model takes of them at a window's end.

Books and closed windows as they come → ``ModelInput``, with the kernels and the bits that the same time
has in a dataset. Where something of it is not known, the reason instead: nothing is made up.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.market import DepthSnapshot
from domain.model_card import ImageGeometry
from microstructure.book_image import IMAGE_LOOK_BACK_MS, book_images
from microstructure.book_tape import BookTape
from microstructure.measures import LOOK_BACK_WINDOWS, features_of, window_bins
from microstructure.quote_path import snapshots_before
from microstructure.window_bins import BINS_DTYPE

LEVELS: Final = 20
_ROWS: Final = 4_096
_KEPT_ROWS: Final = 2_048  # three minutes of books, for windows that close late
_TRADE_COLUMNS: Final = tuple(
    (BINS_DTYPE.names or ())[: (BINS_DTYPE.names or ()).index("snapshots")]
)

WARMING: Final = "warming up"
INCOMPLETE: Final = "trades are missing"
BROKEN: Final = "the book's chain broke"
NO_BOOK: Final = "no fresh book"
NO_IMAGE: Final = "too few books for an image"
REASONS: Final = (WARMING, INCOMPLETE, BROKEN, NO_BOOK, NO_IMAGE)


class ModelInput(msgspec.Struct, frozen=True, eq=False):
    """What a model is asked about: float16[1, T, C, H, W] (empty without images), float32[1, F]."""

    images: npt.NDArray[np.float16]
    features: npt.NDArray[np.float32]


class _Window(msgspec.Struct, frozen=True, eq=False):
    bins: np.void
    trades: np.ndarray
    is_complete: bool


class SymbolInput:
    """Gathers one symbol's past; memory is bounded by the look-back.

    Args:
        window_ms: Length of windows.
        geometry: Of the images; ``None``: none are wanted.
    """

    def __init__(self, window_ms: int, geometry: ImageGeometry | None) -> None:
        self._window_ms = window_ms
        self._geometry = geometry
        self._windows: dict[int, _Window] = {}
        self._breaks: list[int] = []
        self._count = 0
        self._forgotten_until_ms = -1  # books up to here are not kept any more
        self._times = np.empty(_ROWS, np.int64)
        self._is_break = np.empty(_ROWS, np.bool_)
        self._sides = [np.empty((_ROWS, LEVELS)) for _ in range(4)]

    def add_book(self, book: DepthSnapshot, *, chain_broken: bool) -> None:
        """Take the next book of the chain.

        Args:
            book: Its best ``LEVELS`` levels count.
            chain_broken: Whether books are missing before it.
        """
        if self._count == _ROWS:
            self._forget()
        row = self._count
        time_ms = book.transact_time_ms
        if row and time_ms < self._times[row - 1]:
            time_ms = int(self._times[row - 1])
        self._times[row] = time_ms
        self._is_break[row] = chain_broken
        for column, levels in enumerate((book.bids, book.asks)):
            shown = levels[:LEVELS]
            prices, sizes = self._sides[2 * column], self._sides[2 * column + 1]
            prices[row, len(shown) :] = sizes[row, len(shown) :] = np.nan
            if shown:
                prices[row, : len(shown)], sizes[row, : len(shown)] = np.array(shown).T
        self._count += 1
        if chain_broken:
            self._breaks.append(time_ms)

    def add_window(self, trades: np.ndarray, start_ms: int, *, is_complete: bool) -> None:
        """Take a closed window, or one again whose trades were repaired.

        Args:
            trades: Its ``TRADE_DTYPE`` rows, ascending by id.
            start_ms: Of the window.
            is_complete: Whether no trade is known to be missing.
        """
        before = self._windows.get(start_ms)
        tape = self._tape() if before is None else BookTape.empty(LEVELS)
        row = window_bins(trades, tape, start_ms, self._window_ms)
        if before is not None:  # its books were counted when they were all there
            repaired, row = row, before.bins.copy()
            for name in _TRADE_COLUMNS:
                row[name] = repaired[name]
        elif start_ms <= self._forgotten_until_ms:
            is_complete = False
        self._windows[start_ms] = _Window(row, trades.copy(), is_complete)
        oldest_ms = max(self._windows) - 2 * LOOK_BACK_WINDOWS * self._window_ms
        for start in [start for start in self._windows if start < oldest_ms]:
            del self._windows[start]
        self._breaks = [time_ms for time_ms in self._breaks if time_ms >= oldest_ms]

    def at_end_of(self, start_ms: int) -> ModelInput | str:
        """What was known at the end of the window that starts at ``start_ms``, or why too little."""
        decision_ms = start_ms + self._window_ms
        first_ms = decision_ms - LOOK_BACK_WINDOWS * self._window_ms
        windows = [self._windows.get(at) for at in range(first_ms, decision_ms, self._window_ms)]
        known = [window for window in windows if window is not None]
        if len(known) < LOOK_BACK_WINDOWS:
            return WARMING
        if not all(window.is_complete for window in known):
            return INCOMPLETE
        if any(first_ms <= time_ms < decision_ms for time_ms in self._breaks):
            return BROKEN
        tape = self._tape()
        decisions = np.array([decision_ms], np.int64)
        if snapshots_before(tape, decisions)[0] < 0:
            return NO_BOOK
        images = np.empty((1, 0), np.float16)
        if self._geometry is not None:
            trades = self._trades(decision_ms)
            recent = tape.between(decision_ms - IMAGE_LOOK_BACK_MS, decision_ms)
            images, _, is_defined = book_images(recent, trades, decisions, self._geometry)
            if not is_defined[0] or decision_ms - IMAGE_LOOK_BACK_MS <= self._forgotten_until_ms:
                return NO_IMAGE
        bins = np.array([window.bins for window in known], BINS_DTYPE)
        return ModelInput(images, features_of(bins, self._window_ms)[-1:])

    def _trades(self, decision_ms: int) -> np.ndarray:
        """Trades of the windows that an image looks back at."""
        first_ms = decision_ms - IMAGE_LOOK_BACK_MS - self._window_ms
        starts = sorted(at for at in self._windows if first_ms < at < decision_ms)
        return np.concatenate([self._windows[at].trades for at in starts])

    def _tape(self) -> BookTape:
        rows = slice(0, self._count)
        bid_price, bid_size, ask_price, ask_size = (side[rows] for side in self._sides)
        return BookTape(
            self._times[rows], bid_price, bid_size, ask_price, ask_size, self._is_break[rows]
        )

    def _forget(self) -> None:
        """Keep the newest books alone."""
        dropped = self._count - _KEPT_ROWS
        self._forgotten_until_ms = int(self._times[dropped - 1])
        for column in (self._times, self._is_break, *self._sides):
            column[:_KEPT_ROWS] = column[dropped : self._count]
        self._count = _KEPT_ROWS
