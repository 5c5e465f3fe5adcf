"""Absorption against a plain regression over all bars in reach."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from data_pipeline.absorption import AbsorptionSettings
from data_pipeline.pipeline import DataPipeline, PipelineSettings
from domain.features import FeatureRow
from domain.flow import BookWindow
from flow_analyzer import TradeFlowAnalyzer
from microstructure.price_impact import PriceImpact
from tests.flow_windows import Trade, buy, sell, window_batch
from tests.pipeline_samples import DAY, WINDOW_MS, book_window, metrics, snapshot, vector

HALF_SPREAD = 0.05
SETTINGS = AbsorptionSettings(lookback_s=200, minimum_bars=60)


class Second(NamedTuple):
    """One second of a window; no price: no trade."""

    flow: float
    price: float | None
    side: int


def pipeline(settings: AbsorptionSettings = SETTINGS) -> DataPipeline:
    return DataPipeline(PipelineSettings(absorption=settings))


def book(start_ms: int, mid: float) -> BookWindow:
    bids, asks = [(mid - HALF_SPREAD, 1.0)], [(mid + HALF_SPREAD, 1.0)]
    return book_window(start_ms, snapshot(bids, asks, start_ms + WINDOW_MS - 100))


def row(
    runner: DataPipeline, k: int, seconds: list[Second], mid: float | None, **changes: Any
) -> FeatureRow:
    start_ms = DAY + k * WINDOW_MS
    flow, price, side = zip(*seconds, strict=True)
    window = metrics(start_ms, second_flows=flow, second_closes=price, second_sides=side, **changes)
    found = runner.process(window, None if mid is None else book(start_ms, mid)).row
    assert found is not None
    return found


def market(seed: int, windows: int) -> list[tuple[list[Second], float]]:
    """Windows whose mid follows the flow, and the book's mid at the end of each."""
    rng, mid, result = random.Random(seed), 10_000.0, []
    for _ in range(windows):
        seconds = []
        for _ in range(5):
            flow = rng.gauss(0, 10)
            mid += 0.02 * flow + rng.gauss(0, 0.1)
            side = rng.choice([-1, 1])
            is_silent = rng.random() < 0.2
            price = None if is_silent else mid + side * HALF_SPREAD
            seconds.append(Second(0.0 if is_silent else flow, price, 0 if is_silent else side))
        mid += rng.gauss(0, 0.05)
        result.append((seconds, mid))
    return result


def plain(past: list[tuple[list[Second], float]], window: tuple[list[Second], float]) -> Any:
    """The definition, from all that came before."""
    seconds = [second for seconds, _ in past for second in seconds]
    mids = [(i, s.flow, s.price - s.side * HALF_SPREAD) for i, s in enumerate(seconds) if s.price]
    first = len(seconds) - SETTINGS.lookback_s
    bars = [(flow, mid - mids[j][2]) for j, (i, flow, mid) in enumerate(mids[1:]) if i >= first]
    if len(bars) < SETTINGS.minimum_bars:
        return None
    x, y = np.array(bars).T
    slope, intercept = np.polyfit(x, y, 1)
    error = math.sqrt(np.sum((y - slope * x - intercept) ** 2) / (len(bars) - 2))
    delta = sum(second.flow for second in window[0])
    if slope <= 0:
        return None
    if delta == 0:
        return 0.0
    move = window[1] - past[-1][1]
    return math.copysign(1, delta) * (slope * delta - move) / (error * math.sqrt(5))


def test_absorption_is_the_residual_of_past_impact_on_the_mid() -> None:
    windows, runner = market(8, 400), pipeline()
    windows[100] = ([Second(0.0, None, 0)] * 5, windows[99][1])
    known = 0
    for k, (seconds, mid) in enumerate(windows):
        found, expected = row(runner, k, seconds, mid).absorption, plain(windows[:k], windows[k])
        assert (found is None) == (expected is None)
        if expected is not None:
            known += 1
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert known > 350


def test_buying_into_a_wall_is_absorbed() -> None:
    windows, runner = market(9, 60), pipeline()
    for k, (seconds, mid) in enumerate(windows):
        row(runner, k, seconds, mid)
    price = windows[-1][1] + HALF_SPREAD
    absorbed = row(runner, 60, [Second(20.0, price, 1)] * 5, windows[-1][1]).absorption
    assert absorbed is not None
    assert absorbed > 5.0


def test_the_bounce_between_bid_and_ask_is_no_impact() -> None:
    """A market that does not move, in which each buy prints at the ask and each sell at the bid."""
    runner, rng = pipeline(), random.Random(3)
    for k in range(60):
        sides = [rng.choice([-1, 1]) for _ in range(5)]
        seconds = [Second(s * (1 + rng.random()), 100.0 + s * HALF_SPREAD, s) for s in sides]
        assert row(runner, k, seconds, 100.0).absorption is None


@pytest.mark.parametrize("break_at", ["no book", "incomplete", "hole"])
def test_no_move_is_counted_across_a_break_and_nothing_learnt_from_it(break_at: str) -> None:
    windows = market(8, 104)
    runner, other = pipeline(), pipeline()
    for k, (seconds, mid) in enumerate(windows[:100]):
        row(runner, k, seconds, mid)
        row(other, k, seconds, mid)
    odd = [Second(-900.0, 20_000.0, 1)] * 5
    if break_at == "no book":
        assert row(runner, 100, odd, None).absorption is None
    elif break_at == "incomplete":
        assert row(runner, 100, odd, 20_000.0, complete=False).absorption is None
    first, second, third = (row(runner, k, *windows[k]).absorption for k in (101, 102, 103))
    assert first is None  # no mid to count its move from
    undisturbed = [row(other, k, *windows[k]).absorption for k in range(100, 104)]
    assert second == pytest.approx(undisturbed[2], abs=0.1)
    assert third == pytest.approx(undisturbed[3], abs=0.1)


def test_the_impact_is_that_of_the_reference_bars(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "kyle_lambda")
    impact = PriceImpact(minimum=4)
    bars = zip(example["inputs"]["signed_vol"], example["inputs"]["d_mid"], strict=True)
    for k, (x, y) in enumerate(bars):
        impact.push(k, (1.0, x, y, x * x, x * y, y * y))
    still, moved = impact.residual(1.0, 0.0, 1), impact.residual(1.0, 1.0, 1)  # λ/σ, (λ - 1)/σ
    assert still is not None
    assert moved is not None
    assert still / (still - moved) == pytest.approx(example["expected"]["lam"], abs=1e-9)


def test_an_outlier_that_leaves_takes_no_digits_along() -> None:
    rng = random.Random(1)
    bars = [
        (1.0, x := rng.gauss(0, 1), y := x + rng.gauss(0, 1), x * x, x * y, y * y)
        for _ in range(300)
    ]
    rolling, fresh = PriceImpact(10), PriceImpact(10)
    rolling.push(0, (1.0, 1e12, 1e12, 1e24, 1e24, 1e24))
    for k, bar in enumerate(bars):
        rolling.push(k + 1, bar)
        fresh.push(k + 1, bar)
    rolling.expire(0)
    assert rolling.residual(2.0, 1.0, 5) == pytest.approx(fresh.residual(2.0, 1.0, 5), rel=1e-9)


def test_windows_longer_than_the_look_back_learn_from_their_last_seconds() -> None:
    window_ms = 600_000
    settings = AbsorptionSettings(lookback_s=100, minimum_bars=60)
    runner = DataPipeline(PipelineSettings(window_ms=window_ms, absorption=settings))
    found = []
    for k in range(3):
        parts = market(k, 120)
        flow, price, side = zip(*[s for seconds, _ in parts for s in seconds], strict=True)
        start_ms = DAY + k * window_ms
        window = metrics(
            start_ms,
            window_end_ms=start_ms + window_ms,
            second_flows=flow,
            second_closes=price,
            second_sides=side,
        )
        result = runner.process(window, book(start_ms, parts[-1][1])).row
        assert result is not None
        found.append(result.absorption)
    assert found[0] is None
    assert None not in found[1:]


def test_flow_against_rpi_orders_is_no_flow_against_the_book() -> None:
    trades = [
        buy(1, "100", "3.0", 100)._replace(ex_rpi=Decimal("1.0")),
        sell(2, "100", "2.0", 200),  # from before RPI quantities were told
        buy(3, "101", "5.0", 1100)._replace(ex_rpi=Decimal("5.0")),
        Trade(4, Decimal(99), Decimal("4.0"), True, 1200, ex_rpi=Decimal("0.0")),
    ]
    (found,) = TradeFlowAnalyzer(["A"]).analyze(window_batch([trades]))
    assert found.second_flows == (-1.0, 5.0, 0.0, 0.0, 0.0)
    assert found.second_sides == (-1, -1, 0, 0, 0)
    assert found.second_closes == (100.0, 99.0, None, None, None)
    assert found.delta == 2  # guaranteed sums count every quantity
