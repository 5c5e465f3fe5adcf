from __future__ import annotations

from pathlib import Path

import pytest

from microstructure.book import (
    depth_profile,
    find_walls,
    queue_imbalance,
    spread_bps,
    two_sides,
    wall_threshold,
    weighted_mid,
)
from tests.pipeline_samples import snapshot, vector


def test_quote_measures_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "imbalance_microprice")
    given, expected = example["inputs"], example["expected"]
    bid, bid_size, ask, ask_size = given["pb"], given["qb"], given["pa"], given["qa"]
    assert queue_imbalance([bid_size], [ask_size], 1) == pytest.approx(expected["rho"], abs=1e-9)
    assert weighted_mid(bid, bid_size, ask, ask_size) == pytest.approx(
        expected["weighted_mid"], abs=1e-9
    )
    assert spread_bps(bid, ask) == pytest.approx(expected["spread_bps"], abs=1e-9)


def test_imbalance_sums_only_the_levels_asked_for() -> None:
    assert queue_imbalance([1.0, 3.0, 90.0], [2.0, 2.0, 5.0], 2) == 0.0
    assert queue_imbalance([1.0, 3.0, 96.0], [2.0, 2.0, 96.0], 20) == 0.0


def test_imbalance_is_undefined_without_a_side_or_any_size() -> None:
    assert queue_imbalance([], [1.0], 5) is None
    assert queue_imbalance([1.0], [], 5) is None
    assert queue_imbalance([0.0], [0.0], 5) is None


def test_weighted_mid_leans_to_the_thin_side() -> None:
    assert weighted_mid(100.0, 9.0, 101.0, 1.0) == pytest.approx(100.9)
    assert weighted_mid(100.0, 0.0, 101.0, 0.0) == 100.5


def test_depth_counts_levels_up_to_and_on_the_band() -> None:
    bids = depth_profile([999.0, 995.0, 990.0], [1.0, 2.0, 3.0], 1000.0, (1.0, 10.0, 50.0, 200.0))
    assert bids.within == [0.0, 999.0, 999.0 + 1990.0, 999.0 + 1990.0 + 2970.0]
    assert bids.total == 5959.0
    assert bids.reach_bps == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("bids", "asks"),
    [
        ([], [(101.0, 1.0)]),
        ([(100.0, 1.0)], []),
        ([(102.0, 1.0)], [(101.0, 1.0)]),
        ([(100.0, 0.0)], [(101.0, 1.0)]),
        ([(100.0, 1.0), (-1.0, 1.0)], [(101.0, 1.0)]),
        ([(100.0, float("inf"))], [(101.0, 1.0)]),
        ([(100.0, 1.0)], [(101.0, float("nan"))]),
    ],
)
def test_a_book_without_two_sound_sides_has_no_shape(
    bids: list[tuple[float, float]], asks: list[tuple[float, float]]
) -> None:
    assert two_sides(snapshot(bids, asks)) is None


def test_a_locked_book_is_measured() -> None:
    sides = two_sides(snapshot([(100.0, 1.0)], [(100.0, 3.0)]))
    assert sides is not None
    assert sides.mid_price == 100.0
    assert spread_bps(100.0, 100.0) == 0.0


def test_the_nearest_large_level_behind_the_touch_is_the_wall() -> None:
    bid_prices, bid_sizes = [99.99, 99.98, 99.97, 99.96], [500.0, 1.0, 90.0, 900.0]
    ask_prices, ask_sizes = [100.01, 100.02, 100.03, 100.04], [1.0, 1.0, 1.0, 1.0]
    bids = depth_profile(bid_prices, bid_sizes, 100.0, (1.0,))
    asks = depth_profile(ask_prices, ask_sizes, 100.0, (1.0,))
    threshold = wall_threshold(bids, asks, within_bps=25.0, multiple=8.0, floor=0.0)
    assert threshold == pytest.approx(8.0 * 100.015, rel=1e-3)
    wall = find_walls(bid_prices, bid_sizes, bids, threshold, 25.0)[0]
    assert (wall.price, wall.size) == (99.97, 90.0)
    assert wall.distance_bps == pytest.approx(3.0)
    assert find_walls(ask_prices, ask_sizes, asks, threshold, 25.0) == ()


def test_no_wall_lies_beyond_the_distance_looked_at() -> None:
    prices, sizes = [99.99, 99.0], [1.0, 1000.0]
    profile = depth_profile(prices, sizes, 100.0, (1.0,))
    assert find_walls(prices, sizes, profile, 500.0, 25.0) == ()
    assert find_walls(prices, sizes, profile, 500.0, 200.0)


def test_the_wall_threshold_never_falls_below_its_floor() -> None:
    profile = depth_profile([99.0], [1.0], 100.0, (1.0,))
    assert wall_threshold(profile, profile, within_bps=1.0, multiple=8.0, floor=5000.0) == 5000.0
