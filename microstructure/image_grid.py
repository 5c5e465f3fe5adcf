"""Sizes at prices and times → pixels of images around a price at decision time. Pure.

A grid has ``height`` price bins, half of them on either side of a middle, and one column per slot of
time. Every image is computed row by row in a fixed order: one alone has the bits it has among many.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.model_card import ImageGeometry
from microstructure.book_tape import Floats

BLOCK_ROWS: Final = 16
"""Images computed at a time: their pixels stay in the cache."""
_ON_EDGE: Final = 1e-6
"""Prices so close to an edge lie on it: on the inner side of it."""
_LARGEST: Final = float(np.finfo(np.float16).max)

type Places = npt.NDArray[np.intp]


class Grid(msgspec.Struct, frozen=True, eq=False):
    """Grids of a block of b images.

    Attributes:
        geometry: Of each.
        end_ms: int64[b], where the slots end.
        middle: float64[b], the price between the halves.
        width: float64[b], of a price bin.
    """

    geometry: ImageGeometry
    end_ms: npt.NDArray[np.int64]
    middle: Floats
    width: Floats

    @property
    def slots(self) -> int:
        """Columns in time."""
        return self.geometry.frames * self.geometry.width

    def sums(self, row: Places, slot: Places, price: Floats, size: Floats) -> Floats:
        """float64[b, slots, height]: sizes summed where they belong, in their order.

        Args:
            row: int[k], which image.
            slot: int[k], which column.
            price: float64[k]; outside the grid or NaN: left out.
            size: float64[k].
        """
        height = self.geometry.height
        cell = (row * self.slots + slot) * (height + 1)
        cell += self._bin(price, self.middle[row], self.width[row])
        count = len(self.middle) * self.slots * (height + 1)
        found = np.bincount(cell, weights=size, minlength=count)
        return found.reshape(-1, self.slots, height + 1)[:, :, :height]

    def level_sums(self, price: Floats, size: Floats) -> Floats:
        """The same of float64[b, slots, L] levels of whole books."""
        height = self.geometry.height
        cell = np.arange(len(price) * self.slots).reshape(-1, self.slots, 1) * (height + 1)
        cell = cell + self._bin(price, self.middle[:, None, None], self.width[:, None, None])
        count = len(price) * self.slots * (height + 1)
        found = np.bincount(cell.ravel(), weights=size.ravel(), minlength=count)
        return found.reshape(-1, self.slots, height + 1)[:, :, :height]

    def _bin(self, price: Floats, middle: Floats, width: Floats) -> Places:
        """0 for the lowest bin, ``height`` for what lies outside."""
        half = self.geometry.height // 2
        distance = (price - middle) / width
        steps = np.maximum(np.ceil(np.abs(distance) - _ON_EDGE), 1.0)
        steps[~(steps <= half)] = half + 1
        places = steps.astype(np.intp)
        bins = np.where(distance >= 0.0, half - 1 + places, half - places)
        bins[places > half] = self.geometry.height
        return bins

    def within(self, times_ms: npt.NDArray[np.int64]) -> tuple[Places, Places, Places]:
        """The events of each image's span: (event, row, slot), event by event, image by image.

        Args:
            times_ms: int64[k], never falling.
        """
        start_ms = self.end_ms - self.geometry.span_ms
        event, row = ranges(times_ms, start_ms, self.end_ms)
        slot = (times_ms[event] - start_ms[row]) // self.geometry.slot_ms
        return event, row, slot.astype(np.intp)

    def frames(self, pixels: Floats) -> Floats:
        """float64[b, slots, height] → [b, T, H, W]."""
        shape = (len(pixels), self.geometry.frames, self.geometry.width, self.geometry.height)
        return pixels.reshape(shape).swapaxes(2, 3)


def ranges(
    times_ms: npt.NDArray[np.int64], start_ms: npt.NDArray[np.int64], end_ms: npt.NDArray[np.int64]
) -> tuple[Places, Places]:
    """Of rising times, those within each ``[start, end)``: (place, row), row by row."""
    first = np.searchsorted(times_ms, start_ms)
    count = np.searchsorted(times_ms, end_ms) - first
    row = np.repeat(np.arange(len(first)), count)
    before = np.cumsum(count) - count
    place = np.arange(len(row)) - np.repeat(before - first, count)
    return place, row


def signed_log(sizes: Floats, scale: Floats) -> Floats:
    """``sign(x) * log1p(|x| / scale)`` of float64[b, …] with a scale per row; 0 stays 0."""
    pixels = np.zeros(sizes.shape)
    where = np.nonzero(sizes)
    found = sizes[where]
    logs = np.copysign(np.log1p(np.abs(found) / scale[where[0]]), found)
    pixels[where] = np.clip(logs, -_LARGEST, _LARGEST)
    return pixels


def root_mean_square(moves: Floats, least: int) -> Floats:
    """Per row of float64[n, k], over what is defined; NaN with fewer than ``least`` values."""
    total, known = np.zeros(len(moves)), np.zeros(len(moves))
    for column in range(moves.shape[1]):
        is_known = np.isfinite(moves[:, column])
        total += np.where(is_known, moves[:, column], 0.0) ** 2
        known += is_known
    mean = np.divide(total, known, out=np.full(len(moves), np.nan), where=known >= least)
    root: Floats = np.sqrt(mean)
    return root


def median(values: Floats, least: int) -> Floats:
    """Per row of float64[n, k], over what is defined; NaN with fewer than ``least`` values."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(values))
    lower, upper = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)
    middle = (ordered[rows, lower] + ordered[rows, upper]) / 2.0
    return np.where(count >= least, middle, np.nan)


def check_geometry(geometry: ImageGeometry, longest_ms: int) -> None:
    """Refuse what no image can be made of.

    Raises:
        ValueError: A size is not positive, the height is odd, there are not three channels, or the
            image looks back longer than ``longest_ms``.
    """
    sizes = (geometry.frames, geometry.height, geometry.width, geometry.slot_ms)
    if min(sizes) < 1 or geometry.height % 2:
        raise ValueError("frames, width and slot_ms of images must be positive, height even")
    if geometry.channels != 3:
        raise ValueError("images have 3 channels: resting, changed and traded size")
    if geometry.span_ms > longest_ms:
        raise ValueError(f"images may span {longest_ms} ms at most, not {geometry.span_ms}")
