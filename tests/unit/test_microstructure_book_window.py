from __future__ import annotations

import random

import numpy as np
import pytest

from domain.market import DepthSnapshot, DepthTop
from microstructure.book_window import BookAccumulator
from microstructure.ofi import ofi_events
from tests.pipeline_samples import DAY, WINDOW_MS, quote, read_book, snapshot, top_of


def _random_quotes(count: int, step_ms: int) -> list[tuple[float, float, float, float, int]]:
    source = random.Random(5)
    quotes = []
    for k in range(count):
        bid = 100.0 + source.randrange(3) / 10
        ask = bid + 0.1 * source.randrange(1, 3)
        quotes.append((bid, source.random(), ask, source.random(), DAY + k * step_ms))
    return quotes


def test_order_flow_per_window_equals_the_batch_over_its_frames_and_the_quote_before() -> None:
    quotes = _random_quotes(150, 100)  # three windows of fifty
    books = BookAccumulator(WINDOW_MS, read_book)
    for values in quotes:
        books.add(quote(*values), chain_broken=False)
    array = np.array([values[:4] for values in quotes])
    for k, first in enumerate((0, 49, 99)):
        window = books.close("BTCUSDT", DAY + k * WINDOW_MS)
        expected = ofi_events(array[first : 50 * (k + 1)]).sum()
        assert window.ofi == pytest.approx(expected, abs=1e-12)
        assert window.depth_frames == 50
        assert window.last is not None
        assert window.last.transact_time_ms == quotes[50 * (k + 1) - 1][4]


def test_nothing_is_counted_across_a_broken_chain() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    books.add(quote(100.0, 1.0, 101.0, 1.0, DAY), chain_broken=False)
    books.add(quote(100.0, 3.0, 101.0, 1.0, DAY + 100), chain_broken=False)
    books.add(quote(100.0, 90.0, 101.0, 1.0, DAY + 200), chain_broken=True)
    books.add(quote(100.0, 91.0, 101.0, 1.0, DAY + 300), chain_broken=False)
    window = books.close("BTCUSDT", DAY)
    assert window.ofi == 2.0 + 1.0
    assert window.ofi_restarts == 1
    assert window.depth_frames == 4


def test_a_single_frame_without_a_predecessor_has_no_order_flow() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    books.add(quote(100.0, 1.0, 101.0, 1.0), chain_broken=False)
    assert books.close("BTCUSDT", DAY).ofi is None


def test_a_window_without_frames_is_empty() -> None:
    window = BookAccumulator(WINDOW_MS, read_book).close("BTCUSDT", DAY)
    assert (window.depth_frames, window.ofi, window.last) == (0, None, None)
    assert window.window_end_ms == DAY + WINDOW_MS


def test_a_late_frame_is_dropped_but_still_precedes_the_next() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    books.add(quote(100.0, 1.0, 101.0, 1.0, DAY), chain_broken=False)
    books.close("BTCUSDT", DAY)
    books.add(quote(100.0, 5.0, 101.0, 1.0, DAY + 4999), chain_broken=False)
    books.add(quote(100.0, 6.0, 101.0, 1.0, DAY + 5000), chain_broken=False)
    window = books.close("BTCUSDT", DAY + WINDOW_MS)
    assert window.depth_frames == 1
    assert window.ofi == 1.0
    assert books.statistics()["late_frames"] == 1


def test_frames_of_two_open_windows_may_interleave() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    for offset in (4900, 5000, 4950, 5050):
        books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + offset), chain_broken=False)
    assert books.close("BTCUSDT", DAY).depth_frames == 2
    assert books.close("BTCUSDT", DAY + WINDOW_MS).depth_frames == 2


def test_a_one_sided_frame_restarts_order_flow() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    books.add(quote(100.0, 1.0, 101.0, 1.0, DAY), chain_broken=False)
    books.add(top_of(snapshot([], [(101.0, 7.0)], DAY + 100)), chain_broken=False)
    books.add(quote(100.0, 9.0, 101.0, 1.0, DAY + 200), chain_broken=False)
    books.add(quote(100.0, 9.5, 101.0, 1.0, DAY + 300), chain_broken=False)
    window = books.close("BTCUSDT", DAY)
    assert window.ofi == 0.5
    assert window.depth_frames == 4


def test_windows_held_back_for_long_are_given_up_oldest_first() -> None:
    books = BookAccumulator(WINDOW_MS, read_book, max_pending_windows=3)
    for k in range(5):
        books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + k * WINDOW_MS), chain_broken=False)
    statistics = books.statistics()
    assert statistics["pending_windows"] == 3
    assert statistics["evicted_windows"] == 2
    counts = [books.close("BTCUSDT", DAY + k * WINDOW_MS).depth_frames for k in range(5)]
    assert counts == [0, 0, 1, 1, 1]


def test_closing_a_window_forgets_the_ones_before_it() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    for k in range(3):
        books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + k * WINDOW_MS), chain_broken=False)
    books.close("BTCUSDT", DAY + 2 * WINDOW_MS)
    assert books.statistics()["pending_windows"] == 0


def test_symbols_do_not_share_a_predecessor() -> None:
    books = BookAccumulator(WINDOW_MS, read_book)
    books.add(quote(100.0, 1.0, 101.0, 1.0), chain_broken=False)
    books.add(top_of(snapshot([(5.0, 1.0)], [(6.0, 1.0)], symbol="ETHUSDT")), chain_broken=False)
    assert books.close("ETHUSDT", DAY).ofi is None


def test_lengths_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        BookAccumulator(0, read_book)


def test_the_frame_before_stands_in_for_a_last_one_with_a_faulty_level() -> None:
    faulty = {DAY + 300, DAY + WINDOW_MS + 100, DAY + WINDOW_MS + 200}
    books = BookAccumulator(
        WINDOW_MS, lambda top: None if top.transact_time_ms in faulty else read_book(top)
    )
    times = [DAY + 100, DAY + 200, DAY + 300, DAY + WINDOW_MS + 100, DAY + WINDOW_MS + 200]
    for at_ms in times:
        books.add(quote(100.0, 1.0, 101.0, 1.0, at_ms), chain_broken=False)
    first, second = (books.close("BTCUSDT", DAY + k * WINDOW_MS) for k in range(2))
    assert first.last is not None
    assert first.last.transact_time_ms == DAY + 200
    assert (first.depth_frames, first.ofi) == (3, 0.0)
    assert (second.depth_frames, second.last) == (2, None)


def test_windows_that_nobody_reads_ahead_are_not_kept_beyond_their_close_or_end() -> None:
    books = BookAccumulator(WINDOW_MS, read_book, max_pending_windows=3, keeps_unread=True)
    most = 0
    for number in range(100):
        books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + number * WINDOW_MS + 100), chain_broken=False)
        if number % 2 and number > 1:
            books.close("BTCUSDT", DAY + (number - 1) * WINDOW_MS)
        most = max(most, len(books.unread))
    assert 1 <= most <= 3


def test_a_book_is_read_ahead_once_a_later_window_began_and_again_after_a_late_frame() -> None:
    read: list[int] = []

    def reading(top: DepthTop) -> DepthSnapshot | None:
        read.append(top.transact_time_ms - DAY)
        return read_book(top)

    books = BookAccumulator(WINDOW_MS, reading, keeps_unread=True)
    for at_ms in (4_800, 4_900, 5_000, 5_100):
        books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + at_ms), chain_broken=False)
    assert read == []
    while books.unread:
        books.read_ahead()
    assert read == [4_900]
    last = books.close("BTCUSDT", DAY).last
    assert read == [4_900]
    assert last is not None
    assert last.transact_time_ms == DAY + 4_900
    books.add(quote(100.0, 1.0, 101.0, 1.0, DAY + 10_000), chain_broken=False)
    books.read_ahead()
    books.add(quote(100.0, 2.0, 101.0, 1.0, DAY + 9_990), chain_broken=False)
    last = books.close("BTCUSDT", DAY + WINDOW_MS).last
    assert read == [4_900, 5_100, 9_990]
    assert last is not None
    assert last.transact_time_ms == DAY + 9_990
