"""Book images: sizes land where they belong, and one image alone has the bits it has among many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.market import TRADE_DTYPE
from domain.model_card import ImageGeometry
from microstructure.book_image import IMAGE_LOOK_BACK_MS, bin_widths, book_images
from microstructure.book_tape import BookTape
from microstructure.erosion_image import EROSION_LOOK_BACK_MS, erosion_images
from research.lake_day import books_of
from tests.book_days import START_MS, Walk

SMALL = ImageGeometry(frames=2, height=8, width=3)
END_MS = START_MS + 70_000
NO_TRADES = np.empty(0, TRADE_DTYPE)


def still_book(levels: int = 4, *, size: float = 2.0) -> BookTape:
    """Bids 99, 98 … and asks 101, 102 … that nobody touches, every 100 ms; the mid is 100."""
    times = np.arange(START_MS + 50, END_MS, 100)
    shape = (len(times), levels)
    bid = np.broadcast_to(99.0 - np.arange(levels), shape).copy()
    ask = np.broadcast_to(101.0 + np.arange(levels), shape).copy()
    sizes = np.full(shape, size)
    return BookTape.of_arrays(times, bid, sizes, ask, sizes.copy())


def image_of(tape: BookTape, trades=NO_TRADES, geometry: ImageGeometry = SMALL) -> np.ndarray:
    """float16[C, H, slots] of the decision at ``END_MS``."""
    images, scale, is_defined = book_images(tape, trades, np.array([END_MS]), geometry)
    assert is_defined.all()
    assert scale.shape == (1, 3)
    channels, height = geometry.channels, geometry.height
    return images[0].transpose(1, 2, 0, 3).reshape(channels, height, -1)


def test_resting_sizes_are_positive_below_the_mid_and_negative_above():
    image = image_of(still_book())
    log2 = np.float16(np.log(2))  # every level has the usual size
    assert image[0, :, 0].tolist() == [log2] * 4 + [-log2] * 4
    assert not image[1:].any()


def test_levels_of_one_bin_are_summed():
    tape = still_book(8)
    half = BookTape.of_arrays(
        tape.time_ms,
        100.0 - (100.0 - tape.bid_price) / 2,
        tape.bid_size,
        100.0 + (tape.ask_price - 100.0) / 2,
        tape.ask_size,
    )
    images, _, _ = book_images(half, NO_TRADES, np.array([END_MS]), SMALL, tick=1.0)
    assert images[0, 0, 0, :, 0] == pytest.approx(np.log([3.0] * 4 + [1 / 3] * 4), abs=1e-3)


def test_changes_are_added_or_removed_where_they_happened():
    tape = still_book()
    tape.bid_size[-2:, 1] += 3.0  # second best bid, last but one slot
    tape.ask_size[-1:, 2] = 0.5
    changed = image_of(tape)[1]
    assert changed[2].tolist() == pytest.approx([0, 0, 0, 0, np.log(2.5), 0], abs=1e-3)
    assert changed[6].tolist() == pytest.approx([0, 0, 0, 0, 0, -np.log(1.75)], abs=1e-3)
    assert np.count_nonzero(changed) == 2


def test_levels_that_enter_or_leave_the_view_are_no_changes():
    tape = still_book()
    tape.bid_price[-1] += 1.0  # the best bid rises: the lowest one shown leaves the view
    tape.bid_size[-1] = [5.0, 2.0, 2.0, 2.0]
    images, _, _ = book_images(tape, NO_TRADES, np.array([END_MS]), SMALL, tick=1.0)
    changed = images[0, -1, 1, :, -1]
    assert changed[changed != 0] == pytest.approx([np.log(3.5)], abs=1e-3)


def test_nothing_is_counted_across_a_break_and_no_image_spans_one():
    tape = still_book()
    tape.bid_size[-3:, 0] += 1.0
    tape.is_break[-3] = True
    _, _, is_defined = book_images(tape, NO_TRADES, np.array([END_MS]), SMALL)
    assert not is_defined[0]
    tape.is_break[-3] = False
    tape.is_break[-20] = True  # before the image
    assert image_of(tape)[1].any()


def test_trades_are_signed_by_their_aggressor_and_later_ones_unknown():
    trades = np.zeros(3, TRADE_DTYPE)
    trades["transact_time_ms"] = [END_MS - 550, END_MS - 1, END_MS]
    trades["price"], trades["quantity"] = [101, 99, 101], [2, 6, 50]
    trades["is_buyer_maker"] = [False, True, False]
    traded = image_of(still_book(), trades)[2]
    assert traded[4, 0] == np.float16(np.log(2))
    assert traded[3, -1] == -np.float16(np.log(4))
    assert np.count_nonzero(traded) == 2


def test_an_image_needs_a_fresh_book_at_every_slot_and_half_a_minute_of_samples():
    tape = still_book()
    at = np.array([END_MS, START_MS + 20_000, END_MS + 2_000])
    images, _, is_defined = book_images(tape, NO_TRADES, at, SMALL)
    assert is_defined.tolist() == [True, False, False]
    assert not images[1:].any()
    assert not book_images(BookTape.empty(), NO_TRADES, at, SMALL)[2].any()


def test_bins_are_as_wide_as_a_quarter_of_sigma_or_one_tick():
    tape = still_book()
    assert bin_widths(tape, np.array([END_MS])).tolist() == [1.0]
    swing = 40.0 * (tape.time_ms // 1_000 % 2)[:, None]
    moved = BookTape.of_arrays(
        tape.time_ms, tape.bid_price + swing, tape.bid_size, tape.ask_price + swing, tape.ask_size
    )
    assert bin_widths(moved, np.array([END_MS])).tolist() == [10.0]


@pytest.mark.parametrize(
    "geometry",
    [
        ImageGeometry(height=31),
        ImageGeometry(channels=2),
        ImageGeometry(frames=0),
        ImageGeometry(frames=100),
    ],
)
def test_impossible_images_are_refused(geometry):
    with pytest.raises(ValueError, match="images"):
        book_images(still_book(), NO_TRADES, np.array([END_MS]), geometry)


@pytest.fixture(scope="module")
def market():
    walk = Walk(START_MS, START_MS + 240_000, seed=11, trades_per_s=20.0)
    keep = np.random.default_rng(1).random(len(walk.time_ms)) > 0.003
    return books_of(walk.depth(keep)).tape, walk.trade_rows()


@given(st.lists(st.integers(0, 240_000), min_size=1, max_size=20, unique=True), st.data())
def test_one_image_alone_equals_that_of_the_batch(market, offsets, data):
    tape, trades = market
    decisions = START_MS + np.array(sorted(offsets))
    batch = book_images(tape, trades, decisions, SMALL)
    row = data.draw(st.integers(0, len(decisions) - 1))
    at = int(decisions[row])
    past = tape.between(at - IMAGE_LOOK_BACK_MS, at)
    recent = trades[trades["transact_time_ms"] >= at - IMAGE_LOOK_BACK_MS]
    recent = recent[recent["transact_time_ms"] < at]
    alone = book_images(past, recent, decisions[row : row + 1], SMALL)
    for one, many in zip(alone, batch, strict=True):
        assert one.tobytes() == many[row : row + 1].tobytes()


@given(st.lists(st.integers(0, 240_000), min_size=1, max_size=20, unique=True), st.data())
def test_one_reconstructed_image_alone_equals_that_of_the_batch(market, offsets, data):
    _, trades = market
    decisions = START_MS + np.array(sorted(offsets))
    batch = erosion_images(trades, decisions, SMALL)
    row = data.draw(st.integers(0, len(decisions) - 1))
    at = int(decisions[row])
    times = trades["transact_time_ms"]
    recent = trades[(times >= at - EROSION_LOOK_BACK_MS) & (times < at)]
    alone = erosion_images(recent, decisions[row : row + 1], SMALL)
    for one, many in zip(alone, batch, strict=True):
        assert one.tobytes() == many[row : row + 1].tobytes()


def test_executions_wear_the_terrain_down():
    trades = np.zeros(200, TRADE_DTYPE)
    trades["transact_time_ms"] = START_MS + 1_000 * np.arange(200)
    trades["price"] = 100 + np.arange(200) % 2
    trades["quantity"] = 10
    trades["is_buyer_maker"] = np.arange(200) % 2 == 0
    trades["quantity"][199] = 200
    at = np.array([START_MS + 199_500])
    images, scale, is_defined = erosion_images(trades, at, SMALL)
    assert is_defined.all()
    assert scale[0, 0] == pytest.approx(120 * 10 / SMALL.height)
    flat = images[0].transpose(1, 2, 0, 3).reshape(3, SMALL.height, -1)
    assert flat[0, 4, 0] < 0 < flat[0, 3, 0]  # asks above, bids below
    hit = np.flatnonzero(flat[1].any(axis=0))
    assert len(hit) == 1
    assert (flat[1] <= 0).all()
    side = flat[2][:, hit[0]]
    assert (side > 0).sum() == 1
    assert abs(flat[0, :, hit[0]].astype(float)).sum() < abs(flat[0, :, 0].astype(float)).sum()
