"""Images for times without recorded books: execution is erosion. Pure.

Trades → images of the shape of ``microstructure.book_image``. The terrain is the volume profile of the
two minutes before the image: liquidity that was met at a price is taken to stand there, below the
price as bids, above it as asks. Each execution within the image wears it down. Channels:

0 what is left of the terrain at the end of the slot (below the price positive, above it negative);
1 what was worn off within the slot (negative);
2 traded size within the slot (purchases positive, sales negative).

The scale is the mean terrain of a bin. A reconstruction: what was offered and never met is not in it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from domain.model_card import ImageGeometry
from microstructure.book_image import (
    LEAST_SAMPLES,
    LONGEST_SPAN_MS,
    SAMPLES,
    SIGMA_SHARE,
    Images,
    traded_sizes,
)
from microstructure.book_tape import Floats
from microstructure.image_grid import (
    BLOCK_ROWS,
    Grid,
    Places,
    check_geometry,
    ranges,
    root_mean_square,
    signed_log,
)
from microstructure.quote_path import STALE_TRADES_MS, trade_touch
from microstructure.trade_rows import prices_and_quantities

PROFILE_MS: Final = 120_000
EROSION_LOOK_BACK_MS: Final = LONGEST_SPAN_MS + PROFILE_MS
"""What an image needs of the past: trades with ``T >= decision - this``."""
_STEP_MS: Final = 1_000
_GAP_DECIMALS: Final = 10


def erosion_images(
    trades: np.ndarray,
    decision_ms: npt.NDArray[np.int64],
    geometry: ImageGeometry,
    *,
    tick: float | None = None,
) -> Images:
    """One image per decision; arguments and results as ``book_images``, without books.

    Args:
        trades: ``TRADE_DTYPE`` rows of the symbol from ``EROSION_LOOK_BACK_MS`` before the first
            decision on.
        decision_ms: int64[n].
        geometry: Of the images.
        tick: Least width of a bin; ``None``: the least move between trades of the last minute.

    Raises:
        ValueError: The geometry is not possible.
    """
    check_geometry(geometry, LONGEST_SPAN_MS)
    decision_ms = np.asarray(decision_ms, np.int64)
    images = np.zeros((len(decision_ms), *geometry.shape), np.float16)
    middle, width = _frame(trades, decision_ms, tick)
    scale = np.full(len(decision_ms), np.nan)
    candidates = np.flatnonzero(np.isfinite(middle + width))
    for first in range(0, len(candidates), BLOCK_ROWS):
        rows = candidates[first : first + BLOCK_ROWS]
        grid = Grid(geometry, decision_ms[rows], middle[rows], width[rows])
        terrain = _terrain(grid, trades)
        total = terrain.sum(axis=1)
        scale[rows] = np.where(total > 0.0, total / geometry.height, np.nan)
        for channel, sizes in enumerate(_channels(grid, terrain, trades)):
            images[rows, :, channel] = grid.frames(signed_log(sizes, scale[rows]))
    is_defined = np.isfinite(scale)
    images[~is_defined] = 0.0
    scales = np.repeat(scale[:, None], geometry.channels, axis=1).astype(np.float32)
    return images, scales, is_defined


def erosion_bin_widths(
    trades: np.ndarray, decision_ms: npt.NDArray[np.int64], tick: float | None = None
) -> Floats:
    """Width of the price bins of each image, quote units: float64[n], NaN where undefined."""
    return _frame(trades, np.asarray(decision_ms, np.int64), tick)[1]


def _channels(grid: Grid, terrain: Floats, trades: np.ndarray) -> tuple[Floats, Floats, Floats]:
    half = grid.geometry.height // 2
    side = np.where(np.arange(grid.geometry.height) < half, 1.0, -1.0)
    worn = np.cumsum(_executed(grid, trades), axis=1)
    left = np.maximum(terrain[:, None, :] - worn, 0.0)
    before = np.concatenate([terrain[:, None, :], left[:, :-1]], axis=1)
    return left * side, left - before, traded_sizes(grid, trades)


def _executed(grid: Grid, trades: np.ndarray) -> Floats:
    """Sizes of trades on a grid, without signs: float64[b, slots, height]."""
    event, row, slot = grid.within(np.maximum.accumulate(trades["transact_time_ms"]))
    return grid.sums(row, slot, *prices_and_quantities(trades[event]))


def _terrain(grid: Grid, trades: np.ndarray) -> Floats:
    """Volume profile before each image: float64[b, height]."""
    start_ms = grid.end_ms - grid.geometry.span_ms
    times = np.maximum.accumulate(trades["transact_time_ms"])
    event, row = ranges(times, start_ms - PROFILE_MS, start_ms)
    first_slot: Places = np.zeros(len(event), np.intp)
    profile = grid.sums(row, first_slot, *prices_and_quantities(trades[event]))
    return profile[:, 0]


def _frame(
    trades: np.ndarray, decision_ms: npt.NDArray[np.int64], tick: float | None
) -> tuple[Floats, Floats]:
    """Middle and width of each grid; NaN where undefined."""
    times = decision_ms[:, None] - _STEP_MS * np.arange(SAMPLES, -1, -1)
    bid, ask = trade_touch(trades, times)
    mids = (bid + ask) / 2.0
    sigma = root_mean_square(mids[:, 1:] - mids[:, :-1], LEAST_SAMPLES)
    least = _least_moves(trades, decision_ms) if tick is None else np.full(len(decision_ms), tick)
    return mids[:, -1], np.maximum(least, SIGMA_SHARE * sigma)


def _least_moves(trades: np.ndarray, decision_ms: npt.NDArray[np.int64]) -> Floats:
    """The least move between trades of the last minute; NaN where there was none."""
    if not len(trades):
        return np.full(len(decision_ms), np.nan)
    price, _ = prices_and_quantities(trades)
    moves = np.full(len(price) + 1, np.inf)
    moves[1:-1] = np.abs(price[1:] - price[:-1])
    moves[moves == 0.0] = np.inf
    times = np.maximum.accumulate(trades["transact_time_ms"])
    start_ms = decision_ms - SAMPLES * _STEP_MS + STALE_TRADES_MS
    first, stop = np.searchsorted(times, start_ms) + 1, np.searchsorted(times, decision_ms)
    first, stop = np.minimum(first, len(price)), np.minimum(stop, len(price))
    bounds = np.stack([first, np.maximum(stop, first)], axis=1).ravel()
    least = np.minimum.reduceat(moves, bounds)[::2]
    least = np.where(stop > first, least, np.inf)
    return np.where(np.isfinite(least), np.round(least, _GAP_DECIMALS), np.nan)
