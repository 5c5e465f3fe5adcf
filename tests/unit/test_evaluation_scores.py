"""Scores against worked examples, hand computation and each other."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.blocks import Blocks
from evaluation.scores import (
    average_ranks,
    break_even_move_bps,
    break_even_rate,
    brier,
    calibration_error,
    expected_best_sharpe,
    holm,
    newey_west_t,
    probabilistic_sharpe,
    reliability,
    score_test,
    standardised,
    wilson,
)
from tests.pipeline_samples import vector


def interval(hits: float, count: float) -> tuple[float, float]:
    found = wilson(hits, count)
    assert found is not None
    return found


def test_the_wilson_interval_equals_the_reference(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "hit_rate_wilson")
    found = wilson(example["inputs"]["hits"], example["inputs"]["n"])
    assert found == pytest.approx(tuple(example["expected"]["ci"]), abs=example["tol"])


def test_the_brier_score_equals_the_reference(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "brier_multiclass")
    said, happened = np.array(example["inputs"]["p"]), np.array(example["inputs"]["y"])
    assert brier(said, happened).mean() == pytest.approx(example["expected"]["brier"])
    uniform = np.full(said.shape, 1 / 3)
    expected = example["expected"]["uniform_reference"]
    assert brier(uniform, happened).mean() == pytest.approx(expected)


def test_the_rank_correlation_equals_the_reference(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "rank_ic")
    signal, moves = np.array(example["inputs"]["signal"]), np.array(example["inputs"]["fwd"])
    x, y = standardised(average_ranks(signal)), standardised(average_ranks(moves))
    assert x is not None
    assert y is not None
    assert (x * y).mean() == pytest.approx(example["expected"]["ic"])


def test_the_break_even_rate_equals_the_reference(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "breakeven")
    given, expected = example["inputs"], example["expected"]
    taker = 2 * given["taker_bps"] + given["spread_bps"]
    assert taker == pytest.approx(expected["taker_taker_cost"])
    assert break_even_rate(taker, given["move_bps"]) == pytest.approx(expected["p_star_tt"])
    maker = expected["maker_taker_cost"]
    assert break_even_rate(maker, given["move_bps"]) == pytest.approx(expected["p_star_mt"])


def test_the_deflated_sharpe_ratio_equals_the_reference(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "deflated_sharpe")
    given, expected = example["inputs"], example["expected"]
    sharpe = given["sr_annual"] / math.sqrt(given["periods"])
    variance = given["var_sr_annual"] / given["periods"]
    for trials, name in ((given["N"], "dsr"), (46, "dsr_N46")):
        best = expected_best_sharpe(variance, trials)
        found = probabilistic_sharpe(sharpe, best, given["T"], given["skew"], given["kurt"])
        assert found == pytest.approx(expected[name], abs=example["tol"])
    assert expected_best_sharpe(variance, given["N"]) == pytest.approx(expected["sr0_daily"])


def test_break_even_rate_and_move_are_each_others_inverse() -> None:
    rate = break_even_rate(10.0, 25.0)
    assert rate is not None
    assert rate == pytest.approx(0.7)
    assert break_even_move_bps(10.0, rate) == pytest.approx(25.0)


def test_no_move_breaks_even_at_or_below_half_and_none_does_without_a_move() -> None:
    assert break_even_move_bps(10.0, 0.5) is None
    assert break_even_move_bps(10.0, 0.4) is None
    assert break_even_rate(10.0, 0.0) is None


def test_wilson_without_observations_is_unknown_and_never_leaves_zero_to_one() -> None:
    assert wilson(0, 0) is None
    low, high = interval(0, 10)
    assert low == 0.0
    assert 0.2 < high < 0.4
    low, high = interval(10, 10)
    assert high == 1.0
    assert 0.6 < low < 0.8


@pytest.mark.parametrize(("hits", "count"), [(55, 100), (62, 100), (41, 100), (9, 10)])
def test_the_score_test_agrees_with_the_wilson_interval(hits: int, count: int) -> None:
    low, high = interval(hits, count)
    for base in np.linspace(0.05, 0.95, 91):
        is_inside = low <= base <= high
        assert (score_test(hits / count, base, count) >= 0.05) == is_inside


def test_a_certain_base_rate_is_matched_or_refuted() -> None:
    assert score_test(0.0, 0.0, 50) == 1.0
    assert score_test(0.1, 0.0, 50) == 0.0


def test_holm_keeps_what_stands_up_to_all_comparisons() -> None:
    assert holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert holm([0.02, 0.001, 0.024]) == [True, True, True]
    assert holm([0.04]) == [True]
    assert holm([]) == []


def test_reliability_bins_hold_what_was_said_and_what_happened() -> None:
    said = np.array([0.61, 0.62, 0.63, 0.05, 1.0, np.nan])
    happened = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    bins = reliability(said, happened)
    assert [(b.count, round(b.observed, 3)) for b in bins] == [(1, 0.0), (3, 0.667), (1, 1.0)]
    assert bins[1].mean_confidence == pytest.approx(0.62)
    assert (bins[1].low, bins[1].high) == (pytest.approx(9 / 15), pytest.approx(10 / 15))
    assert (bins[2].low, bins[2].high) == (pytest.approx(14 / 15), 1.0)
    expected = (3 * abs(2 / 3 - 0.62) + 0.05 + 0.0) / 5
    assert calibration_error(bins) == pytest.approx(expected)


def test_calibration_of_nothing_is_unknown() -> None:
    assert calibration_error(reliability(np.array([]), np.array([]))) is None


def test_equal_values_share_their_mean_rank() -> None:
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_a_constant_has_no_spread_to_be_measured_in() -> None:
    assert standardised(np.ones(5)) is None
    assert standardised(np.array([1.0])) is None


def test_newey_west_of_a_regular_series_is_the_textbook_formula() -> None:
    random = np.random.default_rng(3)
    values = np.convolve(random.normal(size=403), np.ones(4), "valid")
    times = 1_000 * np.arange(len(values))
    centred, lags = values - values.mean(), 4
    variance = float(centred @ centred)
    for lag in range(1, lags + 1):
        weight = 1 - lag / (lags + 1)
        variance += 2 * weight * float(centred[lag:] @ centred[:-lag])
    expected = values.sum() / math.sqrt(variance)
    shuffled = random.permutation(len(values))
    assert newey_west_t(values[shuffled], times[shuffled], 4_000) == pytest.approx(expected)


def test_newey_west_counts_equal_times_once() -> None:
    values = np.random.default_rng(4).normal(0.1, 1.0, 300)
    times = 1_000 * np.arange(300)
    alone = newey_west_t(values, times, 1_000)
    doubled = newey_west_t(np.repeat(values, 2), np.repeat(times, 2), 1_000)
    assert doubled == pytest.approx(alone)


def test_blocks_are_two_of_the_longest_horizons_and_shared_by_symbols() -> None:
    times = np.array([0, 119_999, 120_000, 500_000, 0, 130_000])
    blocks = Blocks.of(times, np.full(6, 60_000))
    assert blocks.index.tolist() == [0, 0, 1, 2, 0, 1]
    assert (blocks.count, blocks.length_ms) == (3, 120_000)


def test_blocks_grow_when_there_would_be_too_many() -> None:
    times = np.arange(0, 10_000_000, 1_000)
    blocks = Blocks.of(times, np.full(len(times), 1_000))
    assert blocks.count <= 500
    assert blocks.length_ms == 19_999


def test_copies_of_a_signal_are_worth_one() -> None:
    random = np.random.default_rng(5)
    hits = (random.random(200) < 0.5).astype(float)
    times = 200_000 * np.arange(200)
    apart = Blocks.of(times, np.full(200, 60_000)).effective_count(hits)
    copied = Blocks.of(np.repeat(times, 7), np.full(1_400, 60_000)).effective_count(
        np.repeat(hits, 7)
    )
    assert apart == pytest.approx(200, rel=0.2)
    assert copied == pytest.approx(200, rel=0.01)


def test_equal_outcomes_count_once_per_block() -> None:
    blocks = Blocks.of(np.arange(0, 1_200_000, 10_000), np.full(120, 60_000))
    assert blocks.effective_count(np.ones(120)) == blocks.count == 10


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    """Moving sums overlap like horizons do; plain intervals would cover 60 % here."""
    covered = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=1_211)
        values = np.convolve(noise, np.ones(12), "valid")
        times = 5_000 * np.arange(len(values))
        found = Blocks.of(times, np.full(len(values), 60_000)).mean(values)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert 180 <= covered <= 198


def test_one_block_gives_a_value_without_an_interval() -> None:
    found = Blocks.of(np.zeros(4, dtype=np.int64), np.full(4, 60_000)).mean(np.arange(4.0))
    assert found is not None
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert not found.excludes_zero


def test_a_statistic_that_is_undefined_is_none() -> None:
    blocks = Blocks.of(np.arange(4) * 1_000_000, np.full(4, 1_000))
    assert blocks.estimate(np.divide, np.ones(4), np.zeros(4)) is None
