"""Images of the order book before a decision: the same code live and offline. Pure.

``BookTape``, trades → float16[n, T, C, H, W] with ``H`` price bins around the mid at decision time and
``T * W`` slots of time. Channels, each ``sign(x) * log1p(|x| / scale)``:

0 resting size at the end of the slot (bids positive, asks negative);
1 size added (positive) or removed (negative) per price level within the slot;
2 traded size within the slot (purchases positive, sales negative).

A bin is ``max(tick, sigma / 4)`` wide, sigma that of the mid's changes in a second over the last minute.
The scale is the median over that minute of the mean size of a level. Nothing is later than the decision.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.model_card import ImageGeometry
from microstructure.book_tape import BookTape, Floats
from microstructure.image_grid import (
    BLOCK_ROWS,
    Grid,
    Places,
    check_geometry,
    median,
    root_mean_square,
    signed_log,
)
from microstructure.quote_path import STALE_MS, snapshots_before
from microstructure.trade_rows import prices_and_quantities

CHANNELS: Final = ("resting size", "added − removed", "traded size")
LONGEST_SPAN_MS: Final = 60_000
IMAGE_LOOK_BACK_MS: Final = LONGEST_SPAN_MS + STALE_MS
"""What an image needs of the past: snapshots and trades with ``T >= decision - this``."""
SAMPLES: Final = 60  # seconds
LEAST_SAMPLES: Final = 30
SIGMA_SHARE: Final = 0.25
_STEP_MS: Final = 1_000
_PRICE_DECIMALS: Final = 8  # no exchange price has more
_GAP_DECIMALS: Final = 10

type Images = tuple[npt.NDArray[np.float16], npt.NDArray[np.float32], npt.NDArray[np.bool_]]


class _Frame(msgspec.Struct, frozen=True, eq=False):
    """What decides the grid and scale of n images; NaN where undefined."""

    middle: Floats
    width: Floats
    scale: Floats


class _Changes(msgspec.Struct, frozen=True, eq=False):
    """Changes of resting size, in order of time."""

    time_ms: npt.NDArray[np.int64]
    price: Floats
    size: Floats


def book_images(
    tape: BookTape,
    trades: np.ndarray,
    decision_ms: npt.NDArray[np.int64],
    geometry: ImageGeometry,
    *,
    tick: float | None = None,
) -> Images:
    """One image per decision.

    Args:
        tape: Snapshots from ``IMAGE_LOOK_BACK_MS`` before the first decision on.
        trades: ``TRADE_DTYPE`` rows of the symbol, the same span.
        decision_ms: int64[n].
        geometry: Of the images.
        tick: Least width of a bin; ``None``: the least distance of neighbouring levels that the last
            minute's books show, the same live and offline.

    Returns:
        float16[n, T, C, H, W]; float32[n, C], what sizes were divided by; bool[n], which are defined:
        a fresh book at every slot of an unbroken chain, and half a minute of samples. Others are 0.

    Raises:
        ValueError: The geometry is not possible.
    """
    check_geometry(geometry, LONGEST_SPAN_MS)
    decision_ms = np.asarray(decision_ms, np.int64)
    images = np.zeros((len(decision_ms), *geometry.shape), np.float16)
    frame = _frame(tape, decision_ms, tick)
    slots = geometry.frames * geometry.width
    slot_ends = decision_ms[:, None] - geometry.slot_ms * np.arange(slots - 1, -1, -1)
    books = snapshots_before(tape, slot_ends)
    chain = np.cumsum(tape.is_break)
    is_defined = np.isfinite(frame.middle + frame.width + frame.scale) & (books >= 0).all(axis=1)
    if len(tape):
        is_defined &= chain[books[:, 0]] == chain[books[:, -1]]
    defined = np.flatnonzero(is_defined)
    levels = _signed_levels(tape)
    changes = _changes(tape)
    for first in range(0, len(defined), BLOCK_ROWS):
        rows = defined[first : first + BLOCK_ROWS]
        grid = Grid(geometry, decision_ms[rows], frame.middle[rows], frame.width[rows])
        for channel, sizes in enumerate(_channels(grid, levels, books[rows], changes, trades)):
            pixels = signed_log(sizes, frame.scale[rows])
            images[rows, :, channel] = grid.frames(pixels)
    scale = np.repeat(frame.scale[:, None], geometry.channels, axis=1).astype(np.float32)
    return images, scale, is_defined


def bin_widths(
    tape: BookTape, decision_ms: npt.NDArray[np.int64], tick: float | None = None
) -> Floats:
    """Width of the price bins of each image, quote units: float64[n], NaN where undefined."""
    return _frame(tape, np.asarray(decision_ms, np.int64), tick).width


def _channels(
    grid: Grid, levels: tuple[Floats, Floats], books: Places, changes: _Changes, trades: np.ndarray
) -> tuple[Floats, Floats, Floats]:
    prices, sizes = levels
    resting = grid.level_sums(prices[books], sizes[books])
    event, row, slot = grid.within(changes.time_ms)
    changed = grid.sums(row, slot, changes.price[event], changes.size[event])
    return resting, changed, traded_sizes(grid, trades)


def traded_sizes(grid: Grid, trades: np.ndarray) -> Floats:
    """Signed sizes of trades on a grid: float64[b, slots, height]."""
    times = np.maximum.accumulate(trades["transact_time_ms"])
    event, row, slot = grid.within(times)
    price, quantity = prices_and_quantities(trades[event])
    signed = np.where(trades["is_buyer_maker"][event], -quantity, quantity)
    return grid.sums(row, slot, price, signed)


def _frame(tape: BookTape, decision_ms: npt.NDArray[np.int64], tick: float | None) -> _Frame:
    """Samples once a second over the last minute, the decision's own included."""
    times = decision_ms[:, None] - _STEP_MS * np.arange(SAMPLES, -1, -1)
    place = snapshots_before(tape, times)
    if not len(tape):
        nothing = np.full(len(decision_ms), np.nan)
        return _Frame(nothing, nothing, nothing)
    is_known = place >= 0
    mids = np.where(is_known, tape.mid_price[place], np.nan)
    chain = np.cumsum(tape.is_break)[place]
    moves = np.where(chain[:, 1:] == chain[:, :-1], mids[:, 1:] - mids[:, :-1], np.nan)
    sigma = root_mean_square(moves, LEAST_SAMPLES)
    level_size = np.where(is_known, _mean_level_size(tape)[place], np.nan)
    if tick is None:
        gaps = np.where(is_known, _least_gap(tape)[place], np.inf).min(axis=1)
        least = np.where(np.isfinite(gaps), np.round(gaps, _GAP_DECIMALS), np.nan)
    else:
        least = np.full(len(decision_ms), tick)
    width = np.maximum(least, SIGMA_SHARE * sigma)
    return _Frame(mids[:, -1], width, median(level_size, LEAST_SAMPLES))


def _mean_level_size(tape: BookTape) -> Floats:
    """float64[n]: mean size of the levels there are; NaN without any."""
    total, count = np.zeros(len(tape)), np.zeros(len(tape))
    for side in (tape.bid_size, tape.ask_size):
        for level in range(tape.levels):
            is_there = side[:, level] > 0.0
            total += np.where(is_there, side[:, level], 0.0)
            count += is_there
    mean: Floats = np.divide(total, count, out=np.full(len(tape), np.nan), where=count > 0)
    return mean


def _least_gap(tape: BookTape) -> Floats:
    """float64[n]: least distance of neighbouring levels; infinite where there are none."""
    least = np.full(len(tape), np.inf)
    for side in (tape.bid_price, tape.ask_price):
        for level in range(1, tape.levels):
            least = np.fmin(least, np.abs(side[:, level] - side[:, level - 1]))
    return least


def _signed_levels(tape: BookTape) -> tuple[Floats, Floats]:
    """Prices and sizes of both sides, float64[n, 2 L]; asks negative, 0 where a level is absent."""
    prices = np.concatenate([tape.bid_price, tape.ask_price], axis=1)
    sizes = np.concatenate([tape.bid_size, -tape.ask_size], axis=1)
    return prices, np.where(np.isfinite(sizes), sizes, 0.0)


def _changes(tape: BookTape) -> _Changes:
    """Size changes per price between neighbouring snapshots, where both show the price's place.

    A price outside the levels of either snapshot is unknown there: nothing is counted. Nor is
    anything across a break or more than ``STALE_MS``.
    """
    is_next = np.zeros(len(tape), np.bool_)
    is_next[1:] = ~tape.is_break[1:] & (np.diff(tape.time_ms) <= STALE_MS)
    sides = [
        _side_changes(tape.bid_price, tape.bid_size, is_next, -1.0),
        _side_changes(tape.ask_price, tape.ask_size, is_next, 1.0),
    ]
    place, price, size = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    order = np.argsort(place, kind="stable")
    return _Changes(tape.time_ms[place[order]], price[order], size[order])


def _side_changes(
    prices: Floats, sizes: Floats, is_next: npt.NDArray[np.bool_], outward: float
) -> tuple[Places, Floats, Floats]:
    """(snapshot, price, change) of one side; ``outward``: the sign of prices going away."""
    count, depth = prices.shape
    far = np.where(np.isfinite(prices[:, -1]), outward * prices[:, -1], np.inf)
    reach = np.full(count, -np.inf)
    reach[1:] = np.where(is_next[1:], np.minimum(far[1:], far[:-1]), -np.inf)
    row = np.repeat(np.arange(count), depth)
    flat_price, flat_size = prices.ravel(), sizes.ravel()
    there = np.isfinite(flat_price) & (flat_size > 0.0)
    row, flat_price, flat_size = row[there], flat_price[there], flat_size[there]
    old_row = row + 1
    has_next = old_row < count
    old_row, old_price, old_size = old_row[has_next], flat_price[has_next], flat_size[has_next]
    steps = np.rint(outward * flat_price * 10.0**_PRICE_DECIMALS).astype(np.int64)
    steps -= int(steps.min()) if len(steps) else 0
    span = int(steps.max(initial=0)) + 1
    key, old_key = row * span + steps, old_row * span + steps[has_next]
    place = np.minimum(np.searchsorted(old_key, key), max(len(old_key) - 1, 0))
    is_same = old_key[place] == key if len(old_key) else np.zeros(len(key), np.bool_)
    before = np.where(is_same, old_size[place], 0.0) if len(old_key) else np.zeros(len(key))
    is_gone = np.ones(len(old_key), np.bool_)
    is_gone[place[is_same]] = False
    is_gone &= outward * old_price <= reach[old_row]
    change = flat_size - before
    is_change = (outward * flat_price <= reach[row]) & (change != 0.0)
    return (
        np.concatenate([row[is_change], old_row[is_gone]]),
        np.concatenate([flat_price[is_change], old_price[is_gone]]),
        np.concatenate([change[is_change], -old_size[is_gone]]),
    )
