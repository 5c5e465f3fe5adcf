"""What a model is shown of a symbol's past, when it is not asked, and when its inputs have drifted."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from domain.events import Action
from domain.market import DepthSnapshot
from domain.model_card import ImageGeometry, InputHistogram
from inference.drift import DriftWatch, stability
from inference.model import Prediction
from inference.model_signal import EVIDENCE, model_signal
from inference.symbol_input import (
    BROKEN,
    INCOMPLETE,
    NO_BOOK,
    NO_IMAGE,
    WARMING,
    ModelInput,
    SymbolInput,
)
from microstructure.book_image import book_images
from microstructure.measures import FEATURE_NAMES, LOOK_BACK_WINDOWS, day_bins, features_of
from research.lake_day import books_of
from tests.book_days import START_MS, Walk
from tests.model_cards import card_of

WINDOW_MS = 5_000
GEOMETRY = ImageGeometry(frames=2, height=8, width=4)
WINDOWS = LOOK_BACK_WINDOWS + 30
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def walk() -> Walk:
    return Walk(START_MS, START_MS + WINDOWS * WINDOW_MS, trades_per_s=6.0)


@pytest.fixture(scope="module")
def tape(walk):
    return books_of(walk.depth()).tape


def snapshot(tape, row: int) -> DepthSnapshot:
    time_ms = int(tape.time_ms[row])
    bids = list(zip(tape.bid_price[row].tolist(), tape.bid_size[row].tolist(), strict=True))
    asks = list(zip(tape.ask_price[row].tolist(), tape.ask_size[row].tolist(), strict=True))
    return DepthSnapshot("BTCUSDT", time_ms, time_ms, 0, 1, 1, None, bids, asks)


class Feed:
    """The walk, window by window; a few books come before the window is closed."""

    def __init__(self, walk: Walk, tape, geometry: ImageGeometry | None = GEOMETRY) -> None:
        self.given = SymbolInput(WINDOW_MS, geometry)
        self.trades = walk.trade_rows()
        self.tape = tape
        self.row = 0
        self.window = 0

    def start_of(self, window: int) -> int:
        return START_MS + window * WINDOW_MS

    def trades_of(self, window: int) -> np.ndarray:
        times = self.trades["transact_time_ms"]
        start = self.start_of(window)
        return self.trades[(times >= start) & (times < start + WINDOW_MS)]

    def until(
        self, windows: int, *, late_books: int = 3, breaks: tuple[int, ...] = (), **changes: Any
    ) -> None:
        while self.window < windows:
            end_ms = self.start_of(self.window + 1) + 100 * late_books
            while self.row < len(self.tape) and self.tape.time_ms[self.row] < end_ms:
                book = snapshot(self.tape, self.row)
                self.given.add_book(book, chain_broken=self.row in breaks)
                self.row += 1
            self.close(self.window, **changes)
            self.window += 1

    def close(self, window: int, *, is_complete: bool = True, lost: int = 0) -> None:
        trades = self.trades_of(window)[lost:]
        self.given.add_window(trades, self.start_of(window), is_complete=is_complete)


def test_the_inputs_are_those_of_the_day_bit_by_bit(walk, tape):
    feed = Feed(walk, tape)
    feed.until(LOOK_BACK_WINDOWS - 1)
    assert feed.given.at_end_of(feed.start_of(LOOK_BACK_WINDOWS - 2)) == WARMING
    starts = START_MS + WINDOW_MS * np.arange(WINDOWS, dtype=np.int64)
    features = features_of(day_bins(feed.trades, tape, starts, WINDOW_MS), WINDOW_MS)
    images, _, _ = book_images(tape, feed.trades, starts + WINDOW_MS, GEOMETRY)
    for window in range(LOOK_BACK_WINDOWS - 1, WINDOWS):
        feed.until(window + 1)
        found = feed.given.at_end_of(feed.start_of(window))
        assert isinstance(found, ModelInput)
        assert found.features.tobytes() == features[window].tobytes()
        assert found.images.tobytes() == images[window].tobytes()


def test_missing_trades_keep_it_quiet_until_they_are_repaired(walk, tape):
    sound, feed = Feed(walk, tape), Feed(walk, tape)
    sound.until(LOOK_BACK_WINDOWS + 2)
    feed.until(30)
    feed.until(31, is_complete=False, lost=4)
    feed.until(LOOK_BACK_WINDOWS + 2)
    last = feed.start_of(LOOK_BACK_WINDOWS + 1)
    assert feed.given.at_end_of(last) == INCOMPLETE
    feed.close(30)
    found, wanted = feed.given.at_end_of(last), sound.given.at_end_of(last)
    assert isinstance(found, ModelInput)
    assert isinstance(wanted, ModelInput)
    assert found.features.tobytes() == wanted.features.tobytes()


def test_a_broken_chain_keeps_it_quiet_for_the_look_back(walk, tape):
    feed = Feed(walk, tape, None)
    feed.until(LOOK_BACK_WINDOWS + 15, breaks=(400,))  # 40 s after the start, in window 8
    assert feed.given.at_end_of(feed.start_of(LOOK_BACK_WINDOWS + 7)) == BROKEN
    assert isinstance(feed.given.at_end_of(feed.start_of(LOOK_BACK_WINDOWS + 8)), ModelInput)


def test_without_a_fresh_book_there_is_nothing_to_ask(walk, tape):
    feed = Feed(walk, tape.slice(0, 20 * 50))  # books end after 100 s
    feed.until(LOOK_BACK_WINDOWS)
    assert feed.given.at_end_of(feed.start_of(LOOK_BACK_WINDOWS - 1)) == NO_BOOK
    few = Feed(walk, tape.slice(59 * 50, len(tape)))  # ten seconds of books before the decision
    few.until(LOOK_BACK_WINDOWS)
    assert few.given.at_end_of(few.start_of(LOOK_BACK_WINDOWS - 1)) == NO_IMAGE


def test_a_window_that_closes_after_its_books_were_forgotten_is_not_whole(walk, tape):
    feed = Feed(walk, tape, None)
    feed.until(1, late_books=100_000)  # every book comes first, more than are kept
    feed.until(WINDOWS)
    assert feed.given.at_end_of(feed.start_of(LOOK_BACK_WINDOWS - 1)) == INCOMPLETE


def histogram(name: str = "ofi_1", **changes: Any) -> InputHistogram:
    given = InputHistogram(name=name, edges=(0.0, 1.0), shares=(0.2, 0.5, 0.3), undefined_share=0.1)
    return msgspec.structs.replace(given, **changes)


def test_stability_is_the_sum_over_bins_with_undefined_as_one_of_them():
    same = np.array([100, 180, 450, 270])
    assert stability(histogram(), same) == pytest.approx(0.0, abs=1e-12)
    expected, actual = np.array([0.1, 0.18, 0.45, 0.27]), np.array([0.1, 0.4, 0.3, 0.2])
    by_hand = ((actual - expected) * np.log(actual / expected)).sum()
    assert stability(histogram(), (1_000 * actual).astype(np.int64)) == pytest.approx(by_hand)
    assert np.isfinite(stability(histogram(), np.array([0, 0, 0, 9])))


def watch_hours(watch: DriftWatch, first: int, hours: int, values: np.ndarray) -> None:
    for hour in range(first, first + hours):
        for place, value in enumerate(np.resize(values, 60)):
            watch.add(hour * HOUR_MS + place * 60_000, np.array([value], np.float32))


def test_drift_is_judged_once_a_day_of_it_is_known_and_forgets_what_is_older():
    usual = np.array([np.nan] + [-1.0] * 2 + [0.0] * 4 + [0.5] + [1.0] * 2 + [3.0])
    watch = DriftWatch([histogram()], ("ofi_1",))
    watch_hours(watch, 0, 24, usual)
    assert watch.psi == {}
    watch_hours(watch, 24, 1, usual)
    assert 0.0 <= watch.psi["ofi_1"] < 0.1
    watch_hours(watch, 25, 26, np.array([5.0]))
    assert watch.psi["ofi_1"] > 1.0
    watch_hours(watch, 51, 26, usual)
    assert watch.psi["ofi_1"] < 0.1
    watch_hours(watch, 90, 2, usual)  # after a pause there is no day of it
    assert watch.psi == {}


def test_a_value_on_an_edge_lies_in_the_bin_above_it():
    watch = DriftWatch([histogram(undefined_share=0.0, shares=(0.0, 1.0, 0.0))], ("ofi_1",))
    watch_hours(watch, 0, 30, np.array([0.0]))
    assert watch.psi["ofi_1"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("shares", "action", "invalidation"),
    [
        ((0.2, 0.3, 0.5), Action.BUY, 99.9),
        ((0.6, 0.3, 0.1), Action.SELL, 100.1),
        ((0.2, 0.5, 0.3), Action.HOLD, None),
    ],
)
def test_the_likeliest_class_is_the_action(shares, action, invalidation):
    down, flat, up = shares
    features = dict.fromkeys(FEATURE_NAMES, 1.5) | {"ofi_12": float("nan")}
    found = Prediction(
        symbol="BTCUSDT",
        decision_ms=START_MS,
        p_down=down,
        p_flat=flat,
        p_up=up,
        features=features,
        input_hash="h",
    )
    signal = model_signal(
        card_of(), found, price=100.0, decided_at_ms=START_MS + 20, latency_ms=3.0
    )
    assert (signal.action, signal.confidence) == (action, max(shares))
    assert (signal.p_down, signal.p_flat, signal.p_up) == shares
    assert signal.invalidation == (None if invalidation is None else pytest.approx(invalidation))
    assert (signal.source, signal.horizon_s, signal.context_hash) == ("model:m", 60, "h")
    assert signal.evidence["ofi_12"] is None
    assert set(signal.evidence) == {"price", *EVIDENCE}
    barrier = model_signal(
        card_of(label="triple_barrier"), found, price=100.0, decided_at_ms=START_MS, latency_ms=0.0
    )
    assert barrier.invalidation is None
