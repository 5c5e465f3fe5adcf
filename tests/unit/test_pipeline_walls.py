"""Candidates of the last snapshots become walls once they stand and are large for the symbol."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_pipeline.enrich import BookShape, EnrichSettings, book_shape
from data_pipeline.walls import NO_WALLS, LevelSizes, WallSettings, WallTracker
from tests.pipeline_samples import DAY, snapshot


def shape(walls: dict[int, float], usual: float = 20.0) -> BookShape:
    """A book of which the bids at these levels have these sizes."""
    bids = [(1000.0 - 0.1 * k, walls.get(k, usual)) for k in range(20)]
    asks = [(1000.1 + 0.1 * k, usual) for k in range(20)]
    found = book_shape(snapshot(bids, asks), EnrichSettings())
    assert found is not None
    return found


def test_a_nearer_wall_that_is_new_hides_no_standing_one() -> None:
    tracker = WallTracker(WallSettings())
    assert tracker.observe(shape({9: 500.0}), DAY) == NO_WALLS
    found = tracker.observe(shape({9: 500.0, 3: 600.0}), DAY + 5_000)
    assert found.bid is not None
    assert (found.bid.price, found.bid_age_s) == (1000.0 - 0.1 * 9, 5.0)
    found = tracker.observe(shape({9: 500.0, 3: 600.0}), DAY + 10_000)
    assert found.bid is not None
    assert (found.bid.price, found.bid_age_s) == (1000.0 - 0.1 * 3, 5.0)


@pytest.mark.parametrize(("after_ms", "stands"), [(2_000, False), (3_000, True)])
def test_a_wall_stands_from_three_seconds_on(after_ms: int, stands: bool) -> None:
    tracker = WallTracker(WallSettings())
    tracker.observe(shape({5: 500.0}), DAY)
    assert (tracker.observe(shape({5: 500.0}), DAY + after_ms).bid is not None) == stands


def test_without_a_book_nothing_stands() -> None:
    tracker = WallTracker(WallSettings())
    tracker.observe(shape({5: 500.0}), DAY)
    assert tracker.observe(None, DAY + 5_000) == NO_WALLS
    assert tracker.observe(shape({5: 500.0}), DAY + 10_000) == NO_WALLS


def test_what_is_usual_for_the_symbol_is_no_wall() -> None:
    tracker = WallTracker(WallSettings())
    for minute in range(30):  # 5 of 38 levels are large in every minute
        book, end_ms = shape(dict.fromkeys(range(3, 8), 500.0)), DAY + 60_000 * minute
        tracker.observe(book, end_ms)
        tracker.learn(book, end_ms)
    at_ms = DAY + 1_800_000
    tracker.observe(shape({10: 300.0}), at_ms)
    assert tracker.observe(shape({10: 300.0}), at_ms + 5_000) == NO_WALLS
    tracker.observe(shape({10: 700.0}), at_ms + 10_000)
    assert tracker.observe(shape({10: 700.0}), at_ms + 15_000).bid is not None


def test_the_bound_lies_at_most_a_bin_below_the_quantile() -> None:
    source, sizes, settings = random.Random(3), LevelSizes(), WallSettings()
    seen: list[float] = []
    for _ in range(30):
        levels = [source.lognormvariate(9.0, 1.5) for _ in range(38)]
        seen += levels
        sizes.add(levels, settings)
        if len(seen) < settings.quantile_levels:
            assert sizes.bound == 0.0
    exact = float(np.quantile(seen, 0.995, method="inverted_cdf"))
    assert exact / 1.25 <= sizes.bound <= exact


def test_the_distant_past_fades() -> None:
    sizes, settings = LevelSizes(), WallSettings()
    for size in [1_000_000.0] * 300 + [1_000.0] * 12_000:
        sizes.add([size] * 38, settings)
    assert sizes.bound == pytest.approx(1_000.0, rel=0.25)
