"""The array kernels against the worked examples, plain arithmetic and, where installed, libraries."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from microstructure.book import depth_profile, find_walls, wall_threshold
from microstructure.book_shape import (
    asymmetry,
    book_elasticities,
    book_slopes,
    depth_within,
    distances_bps,
    queue_imbalances,
    wall_age_ms,
    wall_levels,
    weighted_mids,
)
from microstructure.book_tape import BookTape
from microstructure.impact_regression import impact_fit
from microstructure.liquidity import amihud, roll_spread
from microstructure.microprice import adjustments, estimate
from microstructure.noise import (
    noise_ratio,
    noise_variance,
    pre_averaged_variance,
    scale_of,
    two_scales,
)
from microstructure.ofi import integrated_ofi, level_events, principal_weights, scaled_ofi
from microstructure.trade_cost import (
    median_of,
    spread_parts,
    sweep_costs,
    sweeps_of,
    weighted_mean,
)
from microstructure.volatility import (
    annualised_volatility,
    jump_test,
    realized_variance,
    signature,
)
from microstructure.vpin import bulk_bought, volume_buckets, vpin
from tests.book_tapes import TICK, tape_of, trades_of
from tests.pipeline_samples import vector

LONG = pytest.mark.long


def floats(values: list) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_flow_of_levels_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "mlofi_integrated")
    levels = np.stack([floats(example["inputs"][f"level{n}"]) for n in (1, 2)], axis=1)
    tape = BookTape.of_arrays([0, 1], *(levels[:, :, column] for column in range(4)))
    events = level_events(tape, 2)
    assert np.isnan(events[0]).all()
    expected = example["expected"]
    assert events[1].tolist() == pytest.approx(expected["mlofi"], abs=1e-9)
    scaled = scaled_ofi(events[1], tape.bid_size, tape.ask_size)
    assert scaled.tolist() == pytest.approx(expected["scaled"], abs=1e-9)
    found = integrated_ofi(scaled[None], floats(example["inputs"]["pc1"]))
    assert found[0] == pytest.approx(expected["integrated"], abs=1e-9)


def test_first_level_flow_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "ofi_l1")
    quotes = floats(example["inputs"]["quotes"])
    tape = BookTape.of_arrays(range(5), *(quotes[:, n : n + 1] for n in range(4)))
    events = level_events(tape, 1)[1:, 0]
    assert events.tolist() == pytest.approx(example["expected"]["e"], abs=1e-9)
    scaled = scaled_ofi(events.sum(keepdims=True), tape.bid_size, tape.ask_size)
    assert scaled[0] == pytest.approx(example["expected"]["ofi_scaled"], abs=1e-9)


def test_flow_is_unknown_across_breaks_and_absent_levels() -> None:
    tape = tape_of(1, 6, levels=3)
    bid, size = tape.bid_price.copy(), tape.bid_size.copy()
    bid[4, 2] = size[4, 2] = np.nan
    holed = BookTape.of_arrays(
        tape.time_ms, bid, size, tape.ask_price, tape.ask_size, [0, 0, 1, 0, 0, 0]
    )
    unknown = np.isnan(level_events(holed, 3))
    assert unknown[:, 0].tolist() == [True, False, True, False, False, False]
    assert unknown[:, 2].tolist() == [True, False, True, False, True, True]


def test_weights_fall_back_to_the_touch_without_a_component() -> None:
    rank_one = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    weights = principal_weights(np.stack([np.zeros((3, 3)), rank_one, np.full((3, 3), np.nan)]))
    assert weights[:2].tolist() == [[1.0, 0.0, 0.0]] * 2
    assert np.isnan(weights[2]).all()


@LONG
def test_weights_are_the_first_component_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(5)
    flow = rng.normal(size=(200, 10)) @ rng.normal(size=(10, 10)) + rng.normal(size=(200, 1))
    first = decomposition.PCA(1).fit(flow).components_[0]
    expected = first * np.sign(first.sum()) / np.abs(first).sum()
    assert principal_weights(np.cov(flow.T)[None])[0] == pytest.approx(expected, abs=1e-9)


def test_imbalance_and_weighted_mid_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "imbalance_microprice")
    bid, bid_size, ask, ask_size = (
        floats([[example["inputs"][k]]]) for k in ("pb", "qb", "pa", "qa")
    )
    expected = example["expected"]
    assert queue_imbalances(bid_size, ask_size, 1)[0] == pytest.approx(expected["rho"], abs=1e-9)
    mids = weighted_mids(bid[:, 0], bid_size[:, 0], ask[:, 0], ask_size[:, 0])
    assert mids[0] == pytest.approx(expected["weighted_mid"], abs=1e-9)
    nothing = np.zeros((1, 1))
    assert np.isnan(queue_imbalances(nothing, nothing, 1)[0])
    assert np.isnan(queue_imbalances(nothing + np.nan, ask_size, 1)[0])


def test_slopes_are_least_squares_through_the_origin() -> None:
    tape = tape_of(2, 5)
    distances = distances_bps(tape.ask_price, tape.mid_price)
    depth = np.cumsum(tape.ask_size, axis=1)
    for is_log, heights in ((False, depth), (True, np.log1p(depth))):
        found = book_slopes(tape.ask_price, tape.ask_size, tape.mid_price, is_log=is_log)
        expected = [
            np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
            for x, y in zip(distances, heights, strict=True)
        ]
        assert found == pytest.approx(expected)
    two = book_slopes(tape.ask_price[:, :2], tape.ask_size[:, :2], tape.mid_price)
    assert np.isnan(two).all()


def test_elasticity_is_the_mean_growth_of_log_depth_per_relative_price() -> None:
    prices, sizes = floats([[101.0, 102.0, 104.0]]), floats([[2.0, 1.0, 3.0]])
    volume = [math.log(2), math.log(3), math.log(6)]
    steps = [
        volume[0] / 0.01,
        (volume[1] / volume[0] - 1) / (102 / 101 - 1),
        (volume[2] / volume[1] - 1) / (104 / 102 - 1),
    ]
    found = book_elasticities(prices, sizes, floats([100.0]))
    assert found[0] == pytest.approx(sum(steps) / 3)
    assert np.isnan(book_elasticities(prices[:, :2], sizes[:, :2], floats([100.0]))[0])


def test_bands_and_walls_equal_those_of_single_snapshots() -> None:
    tape = tape_of(6, 40)
    mid = tape.mid_price
    bid_distance = distances_bps(tape.bid_price, mid)
    ask_distance = distances_bps(tape.ask_price, mid)
    within = depth_within(tape.bid_price, tape.bid_size, bid_distance, 0.2)
    notionals = np.concatenate(
        [tape.bid_price * tape.bid_size, tape.ask_price * tape.ask_size], axis=1
    )
    distances = np.concatenate([bid_distance, ask_distance], axis=1)
    walls = wall_levels(notionals, distances, within_bps=0.25, multiple=3.0, floor=1000.0)
    assert walls.any()
    for row in range(40):
        sides = []
        for prices, sizes in ((tape.bid_price, tape.bid_size), (tape.ask_price, tape.ask_size)):
            profile = depth_profile(
                prices[row].tolist(), sizes[row].tolist(), float(mid[row]), [0.2]
            )
            sides.append((prices[row].tolist(), sizes[row].tolist(), profile))
        assert within[row] == pytest.approx(sides[0][2].within[0])
        threshold = wall_threshold(
            sides[0][2], sides[1][2], within_bps=0.25, multiple=3.0, floor=1000.0
        )
        for place, (prices, sizes, profile) in enumerate(sides):
            found = find_walls(prices, sizes, profile, threshold, 0.25)
            of_side = np.flatnonzero(walls[row, 20 * place : 20 * place + 20])
            assert [wall.price for wall in found] == [prices[level] for level in of_side]


def test_a_wall_is_as_old_as_its_unbroken_run() -> None:
    times = np.array([0, 100, 200, 300])
    assert wall_age_ms(np.array([True, False, True, True]), times) == 100
    assert wall_age_ms(np.array([True, True, True, True]), times) == 300
    assert wall_age_ms(np.array([True, True, True, False]), times) is None
    assert asymmetry(floats([3.0, 0.0]), floats([1.0, 0.0])).tolist()[0] == 0.5


def test_the_microprice_series_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "stoikov_microprice")
    matrices = [floats(example["inputs"][name]) for name in ("Q", "R1", "R2", "K")]
    assert adjustments(*matrices) == pytest.approx(example["expected"]["Gstar"], abs=1e-9)


def test_states_that_no_move_can_follow_have_no_adjustment() -> None:
    stay = floats([[1.0, 0.0], [0.0, 0.5]])
    move, arrive = floats([[0.0, 0.0], [0.1, 0.4]]), floats([[0.0, 0.0], [0.25, 0.25]])
    found = adjustments(stay, move, arrive, floats([-0.5, 0.5]))
    assert found[0] == 0.0
    assert found[1] > 0.0


def test_the_microprice_leans_to_where_the_queue_announces_a_move() -> None:
    rng = np.random.default_rng(3)
    count = 20_000
    share = rng.random(count)
    moves = np.where(rng.random(count) < 0.3, np.where(rng.random(count) < share, 1, -1), 0)
    best = 1000 + np.concatenate([[0], np.cumsum(moves)[:-1]])
    bid = (best * TICK)[:, None]
    tape = BookTape.of_arrays(
        np.arange(count), bid, 10 * share[:, None], bid + TICK, 10 * (1 - share[:, None])
    )
    table = estimate(tape, TICK)
    one_tick = table.adjustments_ticks[0]
    assert (np.diff(one_tick) > 0).all()
    assert one_tick == pytest.approx(-one_tick[::-1], abs=1e-12)
    assert (table.adjustments_ticks[1] == 0.0).all()
    micro = table.microprices(tape)
    future = np.sign(moves[:-1])
    assert np.corrcoef(micro[:-1] - tape.mid_price[:-1], future)[0, 1] > 0.2


def test_vpin_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "vpin_signed")
    trades = floats(example["inputs"]["trades_qty_side"])
    volume, count = example["params"]["bucket_volume"], example["params"]["n"]
    buckets, filled_by = volume_buckets(trades[:, 0], trades[:, 1] > 0, volume)
    assert buckets == pytest.approx(floats(example["expected"]["buckets"]), abs=1e-9)
    assert filled_by.tolist() == [2, 4, 5]
    assert vpin(buckets, count) == pytest.approx(example["expected"]["vpin"], abs=1e-9)
    assert vpin(buckets, 4).size == 0


def test_bulk_classification_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "bvc")
    volume, change, deviation = (example["inputs"][name] for name in ("V", "dP", "sigma"))
    assert bulk_bought(volume, change, deviation) == pytest.approx(example["expected"]["buy"])
    assert bulk_bought(10.0, 0.3, 0.0) == bulk_bought(10.0, 0.0, 0.2) == 5.0


def test_kyles_lambda_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "kyle_lambda")
    fit = impact_fit(floats(example["inputs"]["d_mid"]), floats(example["inputs"]["signed_vol"]))
    assert fit is not None
    assert fit.slope == pytest.approx(example["expected"]["lam"], abs=1e-9)
    assert fit.intercept == pytest.approx(example["expected"]["intercept"], abs=1e-9)


def test_the_t_statistic_is_newey_and_wests() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=60)
    noise = rng.normal(size=61)
    y = 0.5 * x + noise[1:] + 0.6 * noise[:-1]
    fit = impact_fit(y, x, lags=3)
    design = np.stack([np.ones(60), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    beta = bread @ design.T @ y
    scores = design * (y - design @ beta)[:, None]
    meat = scores.T @ scores
    for lag in range(1, 4):
        cross = scores[lag:].T @ scores[:-lag]
        meat += (1 - lag / 4) * (cross + cross.T)
    errors = np.sqrt(np.diag(bread @ meat @ bread))
    assert fit is not None
    assert fit.slope == pytest.approx(beta[1])
    assert fit.t == pytest.approx(beta[1] / errors[1])
    assert fit.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_impact_is_undefined_without_variation() -> None:
    ones = np.ones(10)
    assert impact_fit(np.arange(10.0), ones) is None
    assert impact_fit(ones[:2], np.arange(2.0)) is None
    still = impact_fit(ones, np.arange(10.0))
    assert still is not None
    assert (still.slope, still.t, still.r2) == (0.0, None, None)


@LONG
def test_impact_is_the_regression_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    x = rng.normal(size=500)
    y = 0.2 * x + rng.normal(size=500)
    expected, fit = stats.linregress(x, y), impact_fit(y, x)
    assert fit is not None
    assert fit.slope == pytest.approx(expected.slope)
    assert fit.r2 == pytest.approx(expected.rvalue**2)


def test_amihud_and_roll_equal_the_worked_examples(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "amihud")
    found = amihud(floats(example["inputs"]["ret"]), floats(example["inputs"]["quote_volume"]))
    assert found == pytest.approx(example["expected"]["illiq_1e6"], abs=1e-12)
    assert amihud(floats([0.1]), floats([0.0])) is None
    example = vector(recordings_dir, "roll")
    prices = floats(example["inputs"]["prices"])
    assert roll_spread(prices) == pytest.approx(example["expected"]["spread_zero_mean"])
    sample = roll_spread(prices, is_zero_mean=False)
    assert sample == pytest.approx(example["expected"]["spread_sample"])
    assert roll_spread(np.arange(10.0)) is None


def test_spreads_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "eff_real_spread")
    names = ("D", "P", "M", "M_h")
    parts = spread_parts(*(floats([example["inputs"][name]]) for name in names))
    expected = [example["expected"][name] for name in ("ES", "RS", "impact")]
    assert [part[0] for part in parts] == pytest.approx(expected, abs=1e-8)
    in_bps = 1e4 * parts[0][0] / example["inputs"]["M"]
    assert in_bps == pytest.approx(example["expected"]["ES_bps"], abs=1e-8)


def quoted(times: list[int], bids: list[float], breaks: list[bool] | None = None) -> BookTape:
    bid = floats(bids)[:, None]
    one = np.ones_like(bid)
    return BookTape.of_arrays(times, bid, one, bid + 1.0, one, breaks)


def fills(*fills: tuple[int, float, float, bool]) -> np.ndarray:
    rows = trades_of(1, len(fills), 1)
    rows["price_decimals"] = rows["quantity_decimals"] = 1
    for row, (at_ms, price, quantity, sells) in zip(rows, fills, strict=True):
        row["transact_time_ms"], row["is_buyer_maker"] = at_ms, sells
        row["price"], row["quantity"] = round(10 * price), round(10 * quantity)
    return rows


def test_a_sweep_costs_what_it_paid_over_the_quote_strictly_before_it() -> None:
    tape = quoted([0, 20, 1020, 1100], [100.0, 110.0, 104.0, 104.0])
    trades = fills((20, 101.0, 1.0, False), (20, 102.0, 3.0, False), (20, 100.0, 2.0, True))
    sweeps = sweeps_of(trades)
    assert sweeps.price.tolist() == [101.75, 100.0]
    assert sweeps.quantity.tolist() == [4.0, 2.0]
    costs = sweep_costs(sweeps, tape, 1001)
    effective = [2 * (101.75 - 100.5), -2 * (100.0 - 100.5)]
    assert costs.effective_bps == pytest.approx([1e4 * cost / 100.5 for cost in effective])
    assert costs.realized_bps == pytest.approx(
        [1e4 * 2 * (101.75 - 104.5) / 100.5, -1e4 * 2 * (100.0 - 104.5) / 100.5]
    )
    assert costs.realized_bps + costs.impact_bps == pytest.approx(costs.effective_bps)
    assert not costs.is_stale.any()


def test_an_old_quote_gives_way_to_the_first_fill() -> None:
    tape = quoted([0, 5000], [100.0, 100.0])
    trades = fills((60, 103.0, 1.0, False), (60, 104.0, 1.0, False), (3000, 100.0, 1.0, False))
    costs = sweep_costs(sweeps_of(trades), tape, 100)
    assert costs.is_stale[0]
    assert costs.effective_bps[0] == pytest.approx(1e4 * 2 * (103.5 - 102.5) / 102.5)
    assert np.isnan(costs.effective_bps[1])  # three seconds old


def test_later_mids_are_not_read_across_a_break_or_behind_the_end() -> None:
    trades = fills((10, 101.0, 1.0, False), (510, 101.0, 1.0, False))
    tape = quoted([0, 100, 500, 600], [100.0] * 4, [False, True, False, False])
    costs = sweep_costs(sweeps_of(trades), tape, 95)
    assert np.isnan(costs.realized_bps).tolist() == [True, True]
    assert not np.isnan(costs.effective_bps).any()
    whole = quoted([0, 100, 500, 600], [100.0] * 4)
    assert not np.isnan(sweep_costs(sweeps_of(trades), whole, 90).realized_bps).any()
    assert np.isnan(sweep_costs(sweeps_of(trades), BookTape.empty(), 90).effective_bps).all()


def test_means_of_costs_leave_out_the_unknown() -> None:
    costs, quantity = floats([1.0, np.nan, 4.0]), floats([3.0, 5.0, 1.0])
    assert median_of(costs) == 2.5
    assert weighted_mean(costs, quantity) == 7.0 / 4.0
    assert median_of(costs[1:2]) is None
    assert weighted_mean(costs[1:2], quantity[1:2]) is None


def test_two_scales_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "rv_tsrv")
    expected, logs = example["expected"], floats(example["inputs"]["log_prices"])
    scales = two_scales(logs, example["params"]["K"])
    assert scales is not None
    assert realized_variance(logs) == pytest.approx(expected["RV_all"], abs=1e-15)
    found = (scales.slow, scales.variance, scales.adjusted)
    wanted = (expected["RV_avg"], expected["tsrv"], expected["tsrv_adj"])
    assert found == pytest.approx(wanted, abs=1e-15)
    noise = noise_variance(scales)
    assert noise.raw == pytest.approx(expected["noise_var"], abs=1e-15)
    assert noise.corrected == pytest.approx(expected["noise_var_bc"], abs=1e-15)
    negative = two_scales(floats([0.0, 0.002, 0.001, 0.003, 0.002, 0.005, 0.004]), 2)
    assert negative is not None
    assert negative.variance == pytest.approx(expected["negative_case_K2"], abs=1e-15)
    assert two_scales(logs, 4) is None


def test_trending_prices_reject_independent_noise() -> None:
    scales = two_scales(np.cumsum(np.full(200, 1e-4)), 10)
    assert scales is not None
    noise = noise_variance(scales)
    assert noise.is_rejected
    assert noise.corrected == 0.0
    assert noise_ratio(1e-8, 0.0, 10) is None
    assert noise_ratio(1e-8, 2e-7, 10) == pytest.approx(0.5)
    assert scale_of(1000) == 100


def test_noise_estimators_see_through_added_noise() -> None:
    rng = np.random.default_rng(1)
    count, variance, noise = 23_400, 1e-4, 5e-9
    true = np.cumsum(rng.normal(0.0, math.sqrt(variance / count), count + 1))
    logs = true + rng.normal(0.0, math.sqrt(noise), count + 1)
    scales = two_scales(logs)
    assert scales is not None
    assert scales.fast > 3 * variance
    assert scales.adjusted == pytest.approx(variance, rel=0.2)
    assert pre_averaged_variance(logs) == pytest.approx(variance, rel=0.2)
    assert noise_variance(scales).corrected == pytest.approx(noise, rel=0.1)


def test_pre_averaging_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "preavg")
    logs = floats(example["inputs"]["log_prices"])
    found = pre_averaged_variance(logs, example["params"]["kn"])
    assert found == pytest.approx(example["expected"]["prv"], abs=1e-12)
    assert pre_averaged_variance(logs, 1) is None
    assert pre_averaged_variance(logs[:3], 3) is None


def test_jumps_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "bipower_jump")
    found = jump_test(floats(example["inputs"]["log_prices"]))
    assert found is not None
    values = (found.variance, found.bipower, found.tripower, found.jump, found.z)
    names = ("RV", "BV", "TQ", "jump", "z")
    assert values == pytest.approx([example["expected"][name] for name in names], abs=1e-12)
    assert jump_test(np.zeros(10)) is None


def test_a_jump_is_told_from_diffusion() -> None:
    rng = np.random.default_rng(2)
    returns = rng.normal(0.0, 1e-3, 1440)
    calm = jump_test(np.cumsum(returns))
    returns[700] += 0.02
    jumped = jump_test(np.cumsum(returns))
    assert calm is not None and calm.z is not None and calm.z < 3.09
    assert jumped is not None and jumped.z is not None and jumped.z > 3.09
    assert jumped.jump == pytest.approx(0.02**2, rel=0.3)


def test_volatility_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "realized_vol")
    logs = np.log(floats(example["inputs"]["close_1m"]))
    variance = realized_variance(logs)
    assert variance == pytest.approx(example["expected"]["rv"], abs=1e-9)
    found = annualised_volatility(variance or 0.0, 3, example["params"]["bar_seconds"])
    assert found == pytest.approx(example["expected"]["sigma_ann"], abs=1e-9)
    assert realized_variance(logs[:2]) is None


def test_the_signature_rises_with_bid_ask_bounce() -> None:
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.normal(0.0, 1e-4, 20_000))
    flat = signature(walk, [1, 5, 20])
    assert flat == pytest.approx([realized_variance(walk)] * 3, rel=0.1)
    bounced = signature(walk + rng.choice([-2e-4, 2e-4], 20_000), [1, 5, 20])
    assert all(value is not None for value in bounced)
    assert bounced == sorted(bounced, key=lambda value: -(value or 0.0))
    assert signature(walk[:10], [5, 0]) == [None, None]
