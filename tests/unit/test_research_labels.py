"""Labels: what the quote path did after each decision."""

from __future__ import annotations

import json

import numpy as np
import pytest

from research.dataset import DayData
from research.labels import (
    fit_alpha,
    smooth_labels,
    smooth_moves,
    trailing_sigma,
    triple_barrier_labels,
)


def day_of(bid, ask=None, *, every: int = 1, slot_ms: int = 100) -> DayData:
    """A decision at the end of every so many slots."""
    bid = np.asarray(bid, np.float64)
    ask = bid if ask is None else np.asarray(ask, np.float64)
    slots = slot_ms * np.arange(1, len(bid) + 1)
    at = slice(every - 1, None, every)
    return DayData(
        symbol="BTCUSDT",
        date="2024-07-18",
        decision_ms=slots[at],
        features=np.zeros((len(slots[at]), 0), np.float32),
        feature_names=(),
        mid_price=(bid + ask)[at] / 2,
        bid_price=bid[at],
        ask_price=ask[at],
        is_valid=np.ones(len(slots[at]), np.bool_),
        quote_slot_ms=slots,
        quote_bid=bid,
        quote_ask=ask,
    )


@pytest.fixture
def vectors(recordings_dir):
    found = json.loads((recordings_dir.parent / "vectors.json").read_text())["vectors"]
    return {vector["id"]: vector for vector in found}


def test_smooth_moves_and_labels_are_those_of_the_worked_example(vectors):
    vector = vectors["smooth_label"]
    k = vector["params"]["k"]
    moves = smooth_moves(day_of(vector["inputs"]["mid"]), 0.1 * k, 0.1 * k)
    labels = smooth_labels(moves, vector["params"]["alpha"])
    expected = vector["expected"]["rows"]
    assert np.flatnonzero(labels >= 0).tolist() == [row[0] for row in expected]
    assert moves[labels >= 0] == pytest.approx([row[1] for row in expected], abs=1e-9)
    assert (labels[labels >= 0] - 1).tolist() == [row[2] for row in expected]


def test_smoothing_and_horizon_are_independent():
    mids = np.arange(100.0, 200.0)
    moves = smooth_moves(day_of(mids), 2.0, 0.3)
    assert moves[10] == pytest.approx(mids[29] / mids[9] - 1)
    assert np.isnan(moves[:2]).all()
    assert np.isnan(moves[80:]).all()


def test_an_undefined_quote_within_an_average_leaves_the_label_undefined():
    mids = np.arange(100.0, 130.0)
    mids[20] = np.nan
    moves = smooth_moves(day_of(mids), 0.5, 0.2)
    undefined = set(np.flatnonzero(np.isnan(moves)).tolist())
    assert undefined == {0, 15, 16, 20, 21, *range(25, 30)}


def test_a_horizon_that_is_no_whole_number_of_slots_is_refused():
    with pytest.raises(ValueError, match=r"0\.25 s is no whole number of slots"):
        smooth_moves(day_of(np.ones(10)), 0.25, 0.1)


def test_alpha_is_half_the_mean_absolute_move():
    days = [np.array([0.02, -0.04, np.nan]), np.array([0.0])]
    assert fit_alpha(days) == pytest.approx(0.01)
    assert fit_alpha(days[1]) == 0.0
    with pytest.raises(ValueError, match="no move"):
        fit_alpha([np.array([np.nan])])


def test_a_long_pays_when_the_bid_reaches_the_target_not_when_the_mid_does():
    bid = np.array([100.0, 100.5, 101.5, 102.5])
    labels = triple_barrier_labels(day_of(bid, bid + 1.0), 0.2, 1.0, np.full(4, 0.01))
    assert labels.tolist() == [
        1,
        1,
        -1,
        -1,
    ]  # the bid gains 1.5 % of the mid, but 0.5 % of the entry
    assert triple_barrier_labels(day_of(bid, bid + 1.0), 0.3, 1.0, np.full(4, 0.01))[0] == 2


def test_a_short_pays_when_the_ask_falls():
    ask = np.array([100.0, 99.5, 98.0, 98.0])
    labels = triple_barrier_labels(day_of(ask - 0.5, ask), 0.3, 1.0, np.full(4, 0.01))
    assert labels[0] == 0


def test_the_stop_counts_first():
    down_then_up = np.array([100.0, 98.0, 103.0, 103.0])
    assert triple_barrier_labels(day_of(down_then_up), 0.3, 1.0, np.full(4, 0.01))[0] == 0
    at_once = triple_barrier_labels(day_of(np.full(4, 100.0)), 0.3, 1.0, np.zeros(4))
    assert at_once[0] == 1  # target and stop in one quote


def test_an_undefined_quote_counts_only_before_the_outcome():
    path = np.array([100.0, 102.0, np.nan, 100.0])
    assert triple_barrier_labels(day_of(path), 0.3, 1.0, np.full(4, 0.01))[0] == 2
    path = np.array([100.0, np.nan, 102.0, 100.0])
    assert triple_barrier_labels(day_of(path), 0.3, 1.0, np.full(4, 0.01))[0] == -1


def test_sigma_is_of_past_seconds_and_grows_with_the_root_of_the_horizon():
    mids = 100.0 * np.exp(0.001 * (np.arange(2_000) // 10 % 2))
    day = day_of(mids, every=50)
    sigma = trailing_sigma(day, 4.0, look_back_s=60)
    assert np.isnan(sigma[:6]).all()
    assert sigma[20:] == pytest.approx(0.002)
    later = mids.copy()
    later[1_500:] *= 2
    changed = trailing_sigma(day_of(later, every=50), 4.0, look_back_s=60)
    assert np.array_equal(changed[:30], sigma[:30], equal_nan=True)
