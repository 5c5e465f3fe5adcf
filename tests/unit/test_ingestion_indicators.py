"""Expected numbers are worked examples made by an independent script, and TA-Lib's."""

import math

import numpy as np
import pytest
import talib

from data_pipeline.levels import classic_pivots, value_area
from domain.intervals import INTERVAL_MS
from ingestion import indicators
from ingestion.price_levels import DayBars, day_levels, support_and_resistance, swings
from tests.kline_samples import MONDAY_MS, bars

MINUTE = 60_000


def test_vwap_is_the_quote_volume_by_the_volume_and_unknown_without_one():
    prices = np.array([100.0, 100.1, 100.0, 100.0, 99.9])
    sizes = np.array([2.0, 1.0, 3.0, 0.5, 1.5])
    found = indicators.vwap(np.array([(prices * sizes).sum(), 0.0]), np.array([sizes.sum(), 0.0]))
    assert found[0] == pytest.approx(99.99375, abs=1e-9)
    assert math.isnan(found[1])


def test_atr_of_the_worked_example():
    high = np.array([10, 11, 12, 11.5, 13])
    low = np.array([9, 10, 10.5, 10, 11.0])
    close = np.array([9.5, 10.5, 11.5, 10.5, 12.5])
    ranges = indicators.true_range(high, low, close)
    assert ranges.tolist() == [1, 1.5, 1.5, 1.5, 2.5]
    found = indicators.atr(ranges, 3)
    assert np.isnan(found[:3]).all()
    assert found[3:].tolist() == pytest.approx([1.5, 1.8333333333333333], abs=1e-9)


def test_atr_equals_talib_on_any_series():
    for seed in range(5):
        series = bars(800, "15m", seed=seed)
        ranges = indicators.true_range(series["high"], series["low"], series["close"])
        expected = talib.ATR(series["high"], series["low"], series["close"], timeperiod=14)
        np.testing.assert_allclose(indicators.atr(ranges, 14), expected, rtol=1e-12)


def test_atr_goes_on_from_its_last_value_to_the_last_bit():
    series = bars(300, "1h")
    ranges = indicators.true_range(series["high"], series["low"], series["close"])
    whole = indicators.atr(ranges)
    later = indicators.atr(ranges[200:], before=float(whole[199]))
    assert later.tolist() == whole[200:].tolist()


def test_returns_and_volatility_of_the_worked_example():
    close = np.array([100.0, 101.0, 100.5, 102.0])
    index = np.arange(4) + MONDAY_MS // MINUTE
    simple, logarithmic = indicators.returns(close, index)
    assert simple[1:].tolist() == pytest.approx(
        [0.010000000000000009, -0.004950495049504955, 0.014925373134328401], abs=1e-9
    )
    assert logarithmic[1:].tolist() == pytest.approx(
        [0.009950330853168092, -0.004962789342129014, 0.014815085785140682], abs=1e-9
    )
    found = indicators.realized_volatility(logarithmic, index, MINUTE, 3)
    assert found[3] == pytest.approx(7.753420057903888, abs=1e-9)


def test_a_return_over_a_missing_bar_is_unknown_not_zero():
    simple, logarithmic = indicators.returns(np.array([1.0, 2.0, 3.0]), np.array([5, 7, 8]))
    assert np.isnan(simple[:2]).all()
    assert np.isnan(logarithmic[:2]).all()
    assert simple[2] == 0.5


def test_months_and_weeks_are_neighbours_on_their_grid():
    months = np.array(["2024-01-01", "2024-02-01", "2024-03-01"], "datetime64[ms]").astype(np.int64)
    assert np.diff(indicators.places(months, "1M")).tolist() == [1, 1]
    weeks = MONDAY_MS + np.arange(3) * INTERVAL_MS["1w"]
    assert np.diff(indicators.places(weeks, "1w")).tolist() == [1, 1]


def test_volatility_counts_only_known_returns_and_needs_twenty():
    close = 100.0 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.001, 100)))
    index = np.arange(100)
    _, logarithmic = indicators.returns(close, index)
    found = indicators.realized_volatility(logarithmic, index, 3_600_000, 50)
    assert np.isnan(found[:20]).all()
    assert found[20] == pytest.approx(math.sqrt(np.mean(logarithmic[1:21] ** 2) * 8_760))
    assert found[99] == pytest.approx(math.sqrt(np.mean(logarithmic[50:100] ** 2) * 8_760))


def test_sums_of_a_window_do_not_depend_on_where_the_series_begins():
    values = np.random.default_rng(4).random(400)
    index = np.arange(400) + 12_345
    whole = indicators.windowed_sum(values, index, 60)
    for begin in (1, 37, 60, 119):
        later = indicators.windowed_sum(values[begin:], index[begin:], 60)
        assert later[60:].tolist() == whole[begin + 60 :].tolist()


def test_pivots_of_the_worked_example():
    found = classic_pivots(110.0, 100.0, 108.0)
    assert (found.pivot, found.r1, found.s1, found.r2, found.s2, found.r3, found.s3) == (
        *(106.0, 112.0, 102.0, 116.0, 96.0),
        *(122.0, 92.0),
    )


def test_the_value_area_of_the_worked_example():
    prices = [100, 101, 102, 103, 104, 105]
    area = value_area([5, 10, 30, 25, 20, 10])
    assert area is not None
    assert (prices[area.poc], prices[area.high], prices[area.low]) == (102, 104, 102)
    assert area.covered_ratio == pytest.approx(0.75)


def test_a_days_profile_puts_each_bars_volume_at_its_vwap():
    vwap = np.array([100.5, 101.5, 102.5, 103.5, 104.5, 105.5])
    volume = np.array([5.0, 10, 30, 25, 20, 10])
    day = DayBars(vwap + 0.5, vwap - 0.5, vwap, vwap, volume)
    levels = day_levels(day, atr=50.0, tick=0.01)  # bins one unit wide
    assert (levels["poc"], levels["vah"], levels["val"]) == (102.5, 104.5, 102.5)
    assert levels["pivot"] == pytest.approx((106.0 + 100.0 + 105.5) / 3)


def test_a_swing_towers_over_five_bars_on_both_sides_and_a_plateau_counts_once():
    prices = np.array([1.0, 2, 3, 4, 5, 9, 9, 4, 3, 2, 1, 0.5, 0.2])
    assert swings(prices).tolist() == [5]
    assert swings(prices[:10]).tolist() == []  # not confirmed yet


def test_levels_know_nothing_of_later_bars():
    series = bars(96 * 8, "15m")
    days = indicators.day_starts(series["open_time_ms"])
    ranges = indicators.true_range(series["high"], series["low"], series["close"])
    parts = (series["high"], series["low"], series["close"], indicators.atr(ranges), days)
    whole = support_and_resistance(*parts, lookback=300)
    cut = 96 * 6 + 11
    early = support_and_resistance(*(part[:cut] for part in parts), lookback=300)
    for known, later in zip(early, whole, strict=True):
        np.testing.assert_array_equal(known, later[:cut])
    support, resistance = whole
    close = series["close"]
    assert np.nanmin(close - support) > 0
    assert np.nanmin(resistance - close) > 0
