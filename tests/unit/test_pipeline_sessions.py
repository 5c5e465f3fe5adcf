from __future__ import annotations

import pytest

from data_pipeline.sessions import SessionSettings, SessionTracker
from domain.market import Kline
from tests.pipeline_samples import DAY, DAY_MS, MINUTE_MS, kline

SETTINGS = SessionSettings()


def _day(start_ms: int, minutes: int = 1440, price: str = "100") -> list[Kline]:
    return [kline(start_ms + k * MINUTE_MS, price) for k in range(minutes)]


def test_vwap_weights_by_volume_since_midnight() -> None:
    tracker = SessionTracker(SETTINGS)
    tracker.observe(DAY, DAY + 5000, (101.0, 99.0, 100.0), 2.0, 200.0)
    tracker.observe(DAY + 5000, DAY + 10_000, (110.0, 110.0, 110.0), 1.0, 110.0)
    tracker.observe(DAY + 10_000, DAY + 15_000, None, 0.0, 0.0)
    assert tracker.vwap == pytest.approx(310.0 / 3.0)
    assert (tracker.today.high, tracker.today.low, tracker.today.close) == (110.0, 99.0, 110.0)
    assert tracker.coverage_ratio(DAY + 15_000) == 1.0
    assert tracker.coverage_ratio(DAY + 30_000) == 0.5


def test_overlapping_stretches_count_once() -> None:
    tracker = SessionTracker(SETTINGS)
    tracker.observe_klines([kline(DAY)])
    tracker.observe(DAY + 55_000, DAY + 60_000, (100.0, 100.0, 100.0), 5.0, 500.0)
    assert tracker.today.volume == 10.0
    tracker.observe(DAY + 60_000, DAY + 65_000, (100.0, 100.0, 100.0), 5.0, 500.0)
    assert tracker.today.volume == 15.0


def test_a_completed_day_becomes_key_levels_at_midnight() -> None:
    tracker = SessionTracker(SETTINGS)
    bars = _day(DAY - DAY_MS)
    bars[5] = kline(DAY - DAY_MS + 5 * MINUTE_MS, "110")
    bars[6] = kline(DAY - DAY_MS + 6 * MINUTE_MS, "90")
    tracker.observe_klines(bars)
    assert tracker.levels is None
    tracker.observe(DAY, DAY + 5000, None, 0.0, 0.0)
    assert tracker.levels is not None
    assert (tracker.levels.high, tracker.levels.low, tracker.levels.close) == (110.0, 90.0, 100.0)
    assert tracker.levels.pivot == 100.0
    assert tracker.levels.poc == pytest.approx(100.0, rel=5e-4)
    assert tracker.levels.day_start_ms == DAY - DAY_MS
    assert tracker.vwap is None


def test_a_day_seen_in_part_leaves_no_levels() -> None:
    tracker = SessionTracker(SETTINGS)
    tracker.observe_klines(_day(DAY - DAY_MS, minutes=1300))
    tracker.observe(DAY, DAY + 5000, None, 0.0, 0.0)
    assert tracker.levels is None


def test_levels_do_not_outlive_a_missing_day() -> None:
    tracker = SessionTracker(SETTINGS)
    tracker.observe_klines(_day(DAY - 2 * DAY_MS))
    tracker.observe(DAY, DAY + 5000, None, 0.0, 0.0)
    assert tracker.levels is None


def test_missing_levels_are_learned_from_klines_later() -> None:
    tracker = SessionTracker(SETTINGS)
    tracker.observe(DAY, DAY + 5000, None, 0.0, 0.0)
    tracker.learn_levels(_day(DAY - DAY_MS, price="120"))
    assert tracker.levels is not None
    assert tracker.levels.close == 120.0


def test_an_earlier_part_of_the_day_is_put_in_front() -> None:
    tracker, earlier = SessionTracker(SETTINGS), SessionTracker(SETTINGS)
    tracker.observe(DAY + MINUTE_MS, DAY + 2 * MINUTE_MS, (105.0, 101.0, 103.0), 10.0, 1030.0)
    earlier.observe_klines([kline(DAY)])
    tracker.adopt_earlier(earlier)
    assert tracker.vwap == pytest.approx(2030.0 / 20.0)
    assert (tracker.today.high, tracker.today.low, tracker.today.close) == (105.0, 100.0, 103.0)
    assert tracker.begins_ms == DAY
    assert tracker.coverage_ratio(DAY + 2 * MINUTE_MS) == 1.0
