from __future__ import annotations

import numpy as np
import pytest

from microstructure.book_tape import BookTape
from tests.book_tapes import START_MS, tape_of


def test_slices_are_half_open_and_share_memory() -> None:
    tape = tape_of(1, 100)
    part = tape.between(int(tape.time_ms[10]), int(tape.time_ms[20]))
    assert part.time_ms.tolist() == tape.time_ms[10:20].tolist()
    assert np.shares_memory(part.bid_price, tape.bid_price)
    assert len(tape.between(START_MS - 10, START_MS)) == 0


def test_tapes_joined_again_are_the_whole() -> None:
    tape = tape_of(1, 100)
    whole = BookTape.joined([tape.slice(0, 40), tape.slice(40, 41), tape.slice(41, 100)])
    for name in BookTape.__struct_fields__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(tape, name))
    assert len(BookTape.joined([])) == 0


def test_quotes_of_one_sided_and_crossed_books_are_unknown() -> None:
    bid, ask = np.array([[10.0], [10.0], [np.nan]]), np.array([[11.0], [9.0], [11.0]])
    size = np.where(np.isnan(bid), np.nan, 1.0)
    tape = BookTape.of_arrays([1, 2, 3], bid, size, ask, np.ones((3, 1)))
    assert tape.is_two_sided.tolist() == [True, False, False]
    assert tape.mid_price[0] == 10.5
    assert np.isnan(tape.mid_price[1:]).all()
    assert np.isnan(tape.quotes[1:]).all()


def test_columns_that_do_not_fit_are_refused() -> None:
    two = np.ones((2, 3))
    with pytest.raises(ValueError, match="time order"):
        BookTape.of_arrays([2, 1], two, two, two, two)
    with pytest.raises(ValueError, match="equal lengths"):
        BookTape.of_arrays([1, 2], two, two, two, np.ones((2, 2)))
    with pytest.raises(ValueError, match="levels"):
        BookTape.of_arrays([1], two, two, two, two)
    with pytest.raises(ValueError, match="depths"):
        BookTape.joined([BookTape.empty(5), BookTape.empty(20)])
    with pytest.raises(ValueError, match="time order"):
        BookTape.joined([tape_of(1, 5), tape_of(1, 5)])
