"""Hawkes arrivals, resilience and the spoof-like indicator on scenes made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domain.market import TRADE_DTYPE
from microstructure import hawkes
from microstructure.book_tape import BookTape
from microstructure.hawkes import HawkesIntensity, HawkesParameters
from microstructure.resilience import Recovery, recoveries
from microstructure.spoof_indicator import (
    BID,
    SpoofLike,
    SpoofSettings,
    SpoofSummary,
    spoof_like,
    summary_of,
)
from tests.pipeline_samples import vector

SETTINGS = SpoofSettings(tick=0.5, wall_size=50.0, opposing_volume=2.0)


def arrivals(parameters: HawkesParameters, span_s: float, seed: int) -> np.ndarray:
    """Events by thinning (Ogata 1981)."""
    rng = np.random.default_rng(seed)
    times: list[float] = []
    now = excited = 0.0
    while True:
        bound = parameters.mu + excited
        wait = rng.exponential(1.0 / bound)
        now += wait
        if now >= span_s:
            return np.array(times)
        excited *= np.exp(-parameters.beta * wait)
        if rng.random() < (parameters.mu + excited) / bound:
            times.append(now)
            excited += parameters.alpha


def test_intensity_and_likelihood_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "hawkes_exp")
    parameters = HawkesParameters(**example["params"])
    times, end = np.array(example["inputs"]["times_s"]), example["inputs"]["T"]
    expected = example["expected"]
    stream = HawkesIntensity(parameters)
    assert [stream.push(t) for t in times] == pytest.approx(expected["lambda_at_events"], abs=1e-9)
    assert stream.at(end) == pytest.approx(expected["lambda_T"], abs=1e-9)
    found = hawkes.intensities(times, parameters)
    assert found == pytest.approx(expected["lambda_at_events"], abs=1e-9)
    likelihood = hawkes.log_likelihood(times, end, parameters)
    assert likelihood == pytest.approx(expected["loglik"], abs=1e-9)
    assert parameters.branching_ratio == expected["branching_ratio"]
    assert parameters.stationary_rate == pytest.approx(expected["stationary_rate"])


def test_a_fit_finds_what_made_the_arrivals() -> None:
    true = HawkesParameters(8.2, 18.8, 40.3)
    times = arrivals(true, 300.0, 1)
    found = hawkes.fit(times, 300.0)
    assert found is not None
    assert found.branching_ratio == pytest.approx(true.branching_ratio, abs=0.06)
    assert found.mu == pytest.approx(true.mu, rel=0.1)
    assert found.beta == pytest.approx(true.beta, rel=0.2)
    best = hawkes.log_likelihood(times, 300.0, found)
    assert best >= hawkes.log_likelihood(times, 300.0, true)
    for change in (0.98, 1.02):
        near = HawkesParameters(found.mu * change, found.alpha, found.beta * change)
        assert hawkes.log_likelihood(times, 300.0, near) <= best


@pytest.mark.long
def test_a_fit_is_no_worse_than_that_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    times = arrivals(HawkesParameters(5.0, 6.0, 20.0), 400.0, 2)
    found = hawkes.fit(times, 400.0)
    result = optimize.minimize(
        lambda logs: -hawkes.log_likelihood(times, 400.0, HawkesParameters(*np.exp(logs))),
        np.log([4.0, 4.0, 10.0]),
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-8, "maxiter": 2000},
    )
    assert found is not None
    assert hawkes.log_likelihood(times, 400.0, found) >= -result.fun - 1e-4


def test_no_fit_without_enough_events_or_for_a_trend() -> None:
    times = np.sort(np.random.default_rng(1).random(500))
    assert hawkes.fit(times, 1.0) is None
    trend = np.sqrt(np.linspace(0.001, 1.0, 2000)) ** 0.1 * 10.0
    found = hawkes.fit(trend, 10.0)
    assert found is None or found.branching_ratio < hawkes.MOST_BRANCHING


def test_a_burst_is_an_intensity_far_above_the_long_run_rate() -> None:
    stream = HawkesIntensity(HawkesParameters(1.0, 5.0, 10.0))
    assert not stream.is_burst(0.0)
    for time_s in (0.0, 0.01, 0.02):
        stream.push(time_s)
    assert stream.is_burst(0.03)
    assert not stream.is_burst(5.0)


def recovered(depths: list[float], step_ms: int = 100) -> list[Recovery]:
    count = len(depths)
    return recoveries(step_ms * np.arange(count), np.array(depths), np.zeros(count, np.bool_))


def test_a_recovery_lasts_until_half_of_the_loss_is_back() -> None:
    assert recovered([10, 4, 3, 5, 6, 7, 7]) == [Recovery(100, 10.0, 3.0, 400)]


def test_a_slow_fall_is_no_shock_and_an_open_one_is_no_recovery() -> None:
    assert recovered([10, 8, 6.5, 5, 4, 3.5, 9]) == []
    assert recovered([10, 2, 2, 2]) == []


def test_depth_that_stays_away_is_censored() -> None:
    found = recovered([10, 2, *[2] * 61, 10], step_ms=1000)
    assert found == []  # a second between snapshots is too far apart for a shock
    times = np.concatenate([[0, 100], 100 + 1000 * np.arange(1, 63)])
    depth = np.array([10.0, 2.0] + [2.0] * 62)
    found = recoveries(times, depth, np.zeros(64, np.bool_))
    assert found == [Recovery(100, 10.0, 2.0, None)]


def test_shocks_do_not_outlive_a_break() -> None:
    depth = np.array([10.0, 2.0, 2.0, 9.0])
    is_break = np.array([False, False, True, False])
    assert recoveries(100 * np.arange(4), depth, is_break) == []


def scene(wall: list[float], best_bid: int = 200) -> BookTape:
    """Five levels a side, tick 0.5; the third bid holds what ``wall`` says, snapshot by snapshot."""
    count = len(wall)
    bids = np.tile((best_bid - np.arange(5)) * 0.5, (count, 1))
    asks = np.tile((best_bid + 1 + np.arange(5)) * 0.5, (count, 1))
    sizes = np.ones((count, 5))
    sizes[:, 2] = wall
    return BookTape.of_arrays(1000 * np.arange(count), bids, sizes, asks, np.ones((count, 5)))


def sold(*fills: tuple[int, float, float]) -> np.ndarray:
    rows = np.zeros(len(fills), TRADE_DTYPE)
    rows["price_decimals"], rows["is_buyer_maker"] = 1, True
    for row, (at_ms, price, quantity) in zip(rows, fills, strict=True):
        row["transact_time_ms"], row["price"], row["quantity"] = at_ms, round(10 * price), quantity
    return rows


def test_a_wall_that_vanishes_untraded_while_others_sell_is_spoof_like() -> None:
    found = spoof_like(scene([1, 80, 80, 2]), sold((1500, 100.0, 3.0)), SETTINGS)
    assert found == [SpoofLike(BID, 198, 1000, 3000, 79.0, 2, 3.0)]
    assert summary_of(found, 30_000) == SpoofSummary(2.0, 2000.0, 2.0)
    assert summary_of([], 60_000) == SpoofSummary(0.0, None, None)


@pytest.mark.parametrize(
    ("wall", "trades"),
    [
        ([1, 80, 80, 2], [(1500, 99.0, 3.0)]),  # traded at its price
        ([1, 80, 80, 2], [(1500, 100.0, 2.0)]),  # too little sold meanwhile
        ([1, 80, 80, 40], [(1500, 100.0, 3.0)]),  # half of it stays
        ([1, 40, 40, 2], [(1500, 100.0, 3.0)]),  # no wall
        ([1, *[80] * 7, 2], [(1500, 100.0, 3.0)]),  # it stood for seven seconds
        ([80, 80, 80, 2], [(1500, 100.0, 3.0)]),  # nobody saw it come
    ],
)
def test_other_walls_are_not(wall: list[float], trades: list[tuple[int, float, float]]) -> None:
    assert spoof_like(scene(wall), sold(*trades), SETTINGS) == []


def test_a_wall_that_the_price_moved_through_or_a_break_ended_is_none() -> None:
    tape = scene([1, 80, 80, 2])
    trades = sold((1500, 100.0, 3.0))
    fallen = [tape.bid_price.copy(), tape.ask_price.copy()]
    for prices in fallen:
        prices[3] -= 2.0
    gone = BookTape.of_arrays(tape.time_ms, fallen[0], tape.bid_size, fallen[1], tape.ask_size)
    assert spoof_like(gone, trades, SETTINGS) == []
    columns = (tape.bid_price, tape.bid_size, tape.ask_price, tape.ask_size)
    broken = BookTape.of_arrays(tape.time_ms, *columns, [False, False, True, False])
    assert spoof_like(broken, trades, SETTINGS) == []
