"""Conditions: thresholds with hysteresis, own distributions, changes, rises, crossings."""

from typing import Any

import msgspec
import pytest

from alerts.conditions import Memory, Verdict, judge, judge_all
from alerts.readings import AnalystBudget, Reader, spread_out
from alerts.rules import Condition
from domain.events import Alert, FeaturesEvent, HealthEvent
from domain.flow import Origin
from tests.alert_samples import T0, feature_row, health


def condition(**given: Any) -> Condition:
    return msgspec.convert({"field": "x", **given}, Condition)


def verdicts(given: Condition, values: list[Any], **others: Any) -> list[str]:
    memory: Memory = {}
    return [judge(given, {"x": value, **others}, memory, "k").name for value in values]


@pytest.mark.parametrize(
    ("given", "values", "expected"),
    [
        ({"above": 3}, [2.9, 3, 4], ["OVER", "HOLDS", "HOLDS"]),
        ({"above": 3, "release": 1}, [3, 2, 1, 0], ["HOLDS", "BETWEEN", "OVER", "OVER"]),
        ({"below": 3, "release": 5}, [3, 4, 5], ["HOLDS", "BETWEEN", "OVER"]),
        ({"outside": 3, "release": 1}, [-3, -2, 2, 3, 0], "HOLDS BETWEEN BETWEEN HOLDS OVER"),
        ({"above": 2, "of": "typical"}, [19, 20], ["OVER", "HOLDS"]),
        ({"equals": "high"}, ["high", "low"], ["HOLDS", "OVER"]),
        ({"equals": True}, [True, False], ["HOLDS", "OVER"]),
        ({"is_in": ["a", "b"]}, ["b", "c"], ["HOLDS", "OVER"]),
        ({"not_in": ["a"]}, ["b", "a"], ["HOLDS", "OVER"]),
        ({"changed": True}, ["BUY", "BUY", "SELL"], ["OVER", "OVER", "HOLDS"]),
        ({"rises": 2}, [5, 6, 8, 3, 5], ["OVER", "OVER", "HOLDS", "OVER", "HOLDS"]),
        ({"above": 1}, [None, "text"], ["UNKNOWN", "UNKNOWN"]),
        ({"above": 1, "of": "unknown"}, [5], ["UNKNOWN"]),
    ],
)
def test_operators(given: dict[str, Any], values: list[Any], expected: Any) -> None:
    expected = expected.split() if isinstance(expected, str) else expected
    assert verdicts(condition(**given), values, typical=10.0) == expected


def test_a_level_is_crossed_once_however_often_the_price_flickers_around_it() -> None:
    crossing = condition(crosses=100.0, band_bps=10)
    prices = [99.0, 99.95, 100.05, 99.95, 100.2, 100.05, 100.2, 99.0]
    found = verdicts(crossing, prices)
    assert [p for p, v in zip(prices, found, strict=True) if v == "HOLDS"] == [100.2, 99.0]


def test_a_level_that_moves_is_not_crossed() -> None:
    crossing = condition(crosses_field="high")
    memory: Memory = {}
    at = [(100.0, 110.0), (100.0, 90.0), (95.0, 90.0), (85.0, 90.0), (85.0, None)]
    found = [judge(crossing, {"x": p, "high": high}, memory, "k").name for p, high in at]
    assert found == ["OVER", "OVER", "OVER", "HOLDS", "UNKNOWN"]


def test_all_conditions_have_to_hold_and_each_remembers() -> None:
    both = [condition(above=3, release=1), msgspec.convert({"field": "y", "rises": 1}, Condition)]
    memory: Memory = {}

    def together(x: float | None, y: float) -> Verdict:
        return judge_all(both, {"x": x, "y": y}, memory, "k")

    assert together(5, 1) is Verdict.OVER  # y has no value before
    assert together(5, 2) is Verdict.HOLDS
    assert together(2, 3) is Verdict.BETWEEN
    assert together(None, 4) is Verdict.UNKNOWN
    assert together(5, 4) is Verdict.OVER


def test_a_wall_is_pulled_only_where_it_was_not_traded_through_hidden_or_out_of_sight() -> None:
    stood = {"bid_wall_price": 99.0, "bid_wall_size": 10.0, "bid_wall_age_s": 20.0}
    seen = {"mid_price": 100.0, "bid_price": 99.9, "depth_bid_reach_bps": 200.0}

    def pulled(before: dict[str, Any], now: dict[str, Any]) -> Any:
        reader = Reader()
        reader.read(FeaturesEvent(feature_row(T0, **before), Origin.LIVE))
        reading = reader.read(FeaturesEvent(feature_row(T0 + 5_000, **seen | now), Origin.LIVE))
        assert reading is not None
        return reading.values["bid_wall_pulled_quote"]

    assert pulled(stood, {}) == 990.0
    assert pulled(stood, {"bid_wall_price": 98.5, "bid_wall_size": 1.0}) == 990.0
    assert pulled(stood, {"bid_wall_price": 99.0, "bid_wall_size": 10.0}) == 0.0  # still there
    assert pulled(stood, {"bid_wall_price": 99.5, "bid_wall_size": 1.0}) == 0.0  # hidden by it
    assert pulled(stood, {"bid_price": 98.9, "mid_price": 98.95}) == 0.0  # traded through
    assert pulled(stood, {"depth_bid_reach_bps": 50.0}) == 0.0  # out of sight
    assert pulled({**stood, "bid_wall_age_s": 5.0}, {}) == 0.0  # it flickered
    assert pulled(stood, {"bid_price": None, "mid_price": None}) == 0.0  # no book


def test_only_live_windows_and_alerts_of_others_are_read() -> None:
    reader = Reader()
    assert reader.read(FeaturesEvent(feature_row(), Origin.RECOVERED)) is None
    assert reader.read(FeaturesEvent(feature_row(), Origin.LIVE)) is not None
    alert = Alert(name="n", severity="info", symbol=None, message="m", at_ns=1)
    assert reader.read(alert) is not None
    assert reader.read(msgspec.structs.replace(alert, alert_id="ours")) is None


def test_health_values_gain_the_share_of_the_budget() -> None:
    reader = Reader(AnalystBudget(tokens=1_000, usd=2.0))
    values: dict[str, Any] = {
        "ai.groq.tokens_today": 500,
        "ai.groq.usd_today": 1.5,
        "disk.free_bytes": 3 << 20,
    }
    reading = reader.read(HealthEvent(at_ns=1, values=values))
    assert reading is not None
    assert reading.values["ai.groq.budget_ratio"] == 0.75


def test_a_star_in_a_key_gives_one_reading_per_match() -> None:
    reading = health(ai__groq__state="open", ai__openai__state="closed", ai__mode="live")
    found = spread_out(reading, "ai.*.state")
    assert {r.labels["part"]: r.values["ai.*.state"] for r in found} == {
        "groq": "open",
        "openai": "closed",
    }
