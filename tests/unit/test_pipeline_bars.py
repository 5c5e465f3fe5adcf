from __future__ import annotations

import random
from math import exp, log, sqrt

import pytest

from data_pipeline.bars import BarHistory, BarReading, BarSettings
from domain.context import TrendRegime, VolatilityRegime
from tests.pipeline_samples import DAY, MINUTE_MS

SMALL = BarSettings(
    volatility_bars=3,
    volatility_minimum=2,
    reference_bars=10,
    reference_minimum=4,
    trend_bars=5,
    trend_minimum=3,
)


def _walk(history: BarHistory, returns: list[float], start: int = 0) -> None:
    price = 100.0
    history.observe(DAY + start * MINUTE_MS, price)
    for k, change in enumerate(returns, start + 1):
        price *= exp(change)
        history.observe(DAY + k * MINUTE_MS, price)


def test_volatility_is_the_root_mean_square_of_the_last_returns() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01, 0.01, 0.02, -0.03, 0.01])
    expected = sqrt((0.02**2 + 0.03**2 + 0.01**2) / 3)
    assert history.reading.volatility_1m == pytest.approx(expected)
    assert history.reading.volatility_ratio is None  # two returns before them, four needed


def test_the_ratio_compares_with_the_returns_before_the_current_ones() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01] * 10 + [0.04] * 3)
    assert history.reading.volatility_ratio == pytest.approx(4.0)
    assert history.reading.volatility_regime is VolatilityRegime.EXTREME


@pytest.mark.parametrize(
    ("last", "regime"),
    [
        (0.005, VolatilityRegime.LOW),
        (0.01, VolatilityRegime.NORMAL),
        (0.02, VolatilityRegime.HIGH),
        (0.05, VolatilityRegime.EXTREME),
    ],
)
def test_regimes_follow_the_ratio(last: float, regime: VolatilityRegime) -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01, -0.01] * 5 + [last] * 3)
    assert history.reading.volatility_regime is regime


def test_the_trend_score_is_the_sum_over_its_own_noise() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01, 0.02, 0.01, 0.02, 0.01])
    assert history.reading.trend_score == pytest.approx(0.07 / sqrt(3 * 0.01**2 + 2 * 0.02**2))
    assert history.reading.trend_regime is TrendRegime.UP


def test_a_steady_fall_is_a_downward_trend() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [-0.01, -0.01, -0.02, -0.01, -0.01])
    assert history.reading.trend_regime is TrendRegime.DOWN


def test_prices_standing_still_are_a_range_without_a_volatility_ratio() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.0] * 20)
    assert history.reading.trend_score == 0.0
    assert history.reading.trend_regime is TrendRegime.RANGE
    assert history.reading.volatility_1m == 0.0
    assert history.reading.volatility_ratio is None


def test_a_missing_bar_costs_its_own_return_and_the_next() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01, 0.01, 0.01])
    history.observe(DAY + 5 * MINUTE_MS, 500.0)  # minute 4 never came
    assert history.reading.volatility_1m is None  # one return left among the last three
    history.observe(DAY + 6 * MINUTE_MS, 500.0 * exp(0.01))
    history.observe(DAY + 7 * MINUTE_MS, 500.0)
    assert history.reading.volatility_1m == pytest.approx(0.01)


def test_a_hole_as_long_as_the_memory_empties_it() -> None:
    history = BarHistory(5000, SMALL)
    _walk(history, [0.01] * 15)
    history.observe(DAY + 1000 * MINUTE_MS, 100.0)
    assert history.reading == BarReading()


def test_times_off_the_bar_grid_are_ignored() -> None:
    history = BarHistory(5000, SMALL)
    history.observe(DAY, 100.0)
    history.observe(DAY + 5000, 200.0)
    history.observe(DAY + MINUTE_MS, 101.0)
    history.observe(DAY + 2 * MINUTE_MS, 101.0)
    assert history.reading.volatility_1m == pytest.approx(log(1.01) / sqrt(2))


def test_bars_are_multiples_of_windows_that_do_not_divide_a_minute() -> None:
    history = BarHistory(16_000, SMALL)
    assert not history.takes_klines
    assert BarHistory(5000, SMALL).takes_klines
    for k in range(1, 13):
        history.observe(k * 16_000, 100.0 + k)
    # bars end every 64 s: 4, 8 and 12 windows
    expected = sqrt((log(108 / 104) ** 2 + log(112 / 108) ** 2) / 2)
    assert history.reading.volatility_1m == pytest.approx(expected)


def test_readings_look_back_no_further_than_their_length() -> None:
    source = random.Random(3)
    tail = [source.gauss(0, 0.01) for _ in range(SMALL.reference_bars + 3)]
    short, long = BarHistory(5000, SMALL), BarHistory(5000, SMALL)
    _walk(short, tail, start=50)
    _walk(long, [source.gauss(0, 0.3) for _ in range(49)])
    _walk(long, tail, start=50)
    assert long.reading.volatility_ratio == pytest.approx(short.reading.volatility_ratio)
    assert long.reading.trend_score == pytest.approx(short.reading.trend_score)


def test_a_reading_prepared_ahead_is_the_same() -> None:
    at_once, ahead = BarHistory(5000, SMALL), BarHistory(5000, SMALL)
    price, minute, draw, ratios = 100.0, 0, random.Random(3), 0
    for _ in range(200):
        minute += draw.choice([1] * 20 + [2, 5, 40])
        price *= exp(draw.gauss(0.0, 0.01))
        for history in (at_once, ahead):
            history.observe(DAY + minute * MINUTE_MS, price)
        assert ahead.reading == at_once.reading
        ratios += ahead.reading.volatility_ratio is not None
        if draw.random() < 0.7:
            ahead.prepare()
    assert ratios > 50
