"""The quote path: what was known at the end of each slot."""

from __future__ import annotations

import numpy as np

from domain.market import TRADE_DTYPE
from microstructure.book_tape import BookTape
from microstructure.quote_path import quote_path, trade_quote_path


def tape_of(times, bids, breaks=()) -> BookTape:
    bid = np.array(bids, float)[:, None]
    is_break = np.isin(np.arange(len(times)), breaks)
    size = np.ones_like(bid)
    return BookTape.of_arrays(np.array(times), bid, size, bid + 1, size, is_break)


def test_a_slot_has_the_last_snapshot_before_its_end():
    path = quote_path(tape_of([0, 50, 99, 100, 250], [1, 2, 3, 4, 5]), 0, 400)
    assert path.time_ms.tolist() == [100, 200, 300, 400]
    assert path.bid_price.tolist() == [3, 4, 5, 5]
    assert (path.ask_price - path.bid_price).tolist() == [1, 1, 1, 1]


def test_quotes_are_unknown_after_a_second_of_silence():
    path = quote_path(tape_of([0, 3_000], [1, 2]), 0, 3_200)
    assert np.isfinite(path.bid_price).tolist() == [True] * 10 + [False] * 20 + [True] * 2


def test_quotes_are_unknown_between_the_ends_of_a_broken_chain():
    path = quote_path(tape_of([0, 450], [1, 2], breaks=[1]), 0, 600)
    assert path.bid_price.tolist()[:1] == [1]
    assert np.isnan(path.bid_price[1:4]).all()
    assert path.bid_price.tolist()[4:] == [2, 2]


def test_one_sided_books_have_no_quotes():
    path = quote_path(tape_of([0, 100], [1, np.nan]), 0, 300)
    assert path.bid_price[0] == 1
    assert np.isnan(path.bid_price[1:]).all()
    assert np.isnan(quote_path(BookTape.empty(), 0, 300).ask_price).all()


def test_trades_tell_the_touch_of_either_side():
    trades = np.zeros(4, TRADE_DTYPE)
    trades["transact_time_ms"] = [10, 110, 210, 310]
    trades["price"] = [100, 102, 104, 103]
    trades["is_buyer_maker"] = [True, False, False, True]
    path = trade_quote_path(trades, 0, 400)
    assert path.bid_price.tolist() == [100, 100, 100, 103]
    assert path.ask_price.tolist() == [100, 102, 104, 104]
    late = trade_quote_path(trades, 10_200, 10_500)
    assert np.isfinite(late.bid_price).tolist() == [True, False, False]
