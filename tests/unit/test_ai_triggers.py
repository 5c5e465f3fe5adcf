from __future__ import annotations

from typing import Any

from ai.triggers import Event, Triggers, TriggerSettings
from domain.context import TrendRegime, VolatilityRegime
from tests.ai_samples import window

QUIET: dict[str, Any] = {
    "whale_count": 0,
    "whale_delta": 0.0,
    "whale_buy_volume": 0.0,
    "whale_sell_volume": 0.0,
    "absorption": 0.0,
    "cvd_divergence": 0,
    "resistance_distance_bps": 40.0,
    "support_distance_bps": 40.0,
}


class Symbol:
    """One symbol's windows, one after the other."""

    def __init__(self) -> None:
        self.triggers = Triggers(TriggerSettings())
        self._number = 0

    def sees(self, **changes: Any) -> tuple[Event, ...]:
        self._number += 1
        return self.triggers.observe(*window(self._number, **(QUIET | changes)))


WHALES: dict[str, Any] = {"whale_count": 3, "whale_delta": 5.0, "whale_buy_volume": 5.0}


def test_nothing_happens_in_quiet_windows() -> None:
    symbol = Symbol()
    assert [symbol.sees() for _ in range(20)] == [()] * 20


def test_an_event_is_up_until_it_is_asked_about_or_over() -> None:
    symbol = Symbol()
    assert symbol.sees(**WHALES) == (Event.WHALE_BURST,)
    assert symbol.sees(**WHALES) == (Event.WHALE_BURST,)  # not asked about yet
    symbol.triggers.acknowledge()
    assert symbol.sees(**WHALES) == ()
    assert symbol.sees() == ()
    assert symbol.sees(**WHALES) == (Event.WHALE_BURST,)
    assert symbol.sees() == ()  # over before anybody asked


def test_whales_on_both_sides_are_no_burst_and_one_in_a_rush_is() -> None:
    symbol = Symbol()
    both = {"whale_count": 4, "whale_delta": 0.1, "whale_buy_volume": 5.0, "whale_sell_volume": 4.9}
    one = {"whale_count": 1, "whale_delta": -2.0, "whale_sell_volume": 2.0}
    assert symbol.sees(**both) == ()
    assert symbol.sees(**one) == ()
    assert symbol.sees(**one, burst_count=1) == (Event.WHALE_BURST,)


def test_absorption_flickering_about_its_threshold_asks_once() -> None:
    symbol = Symbol()
    assert symbol.sees(absorption=2.0) == (Event.ABSORPTION,)
    symbol.triggers.acknowledge()
    for value in (1.9, 2.1, 1.5, 2.5, None, 1.0, 3.0):
        assert symbol.sees(absorption=value) == ()
    symbol.sees(absorption=0.9)
    assert symbol.sees(absorption=2.0) == (Event.ABSORPTION,)


def test_a_level_is_reached_once_until_the_price_has_left_it() -> None:
    symbol = Symbol()
    assert symbol.sees(resistance_distance_bps=3.5) == ()
    assert symbol.sees(resistance_distance_bps=2.9) == (Event.LEVEL_REACHED,)
    symbol.triggers.acknowledge()
    for above, below in ((5.0, 40.0), (1.0, 40.0), (40.0, 0.5), (None, 7.9), (2.0, None)):
        assert symbol.sees(resistance_distance_bps=above, support_distance_bps=below) == ()
    symbol.sees(resistance_distance_bps=8.1, support_distance_bps=9.0)
    assert symbol.sees(support_distance_bps=3.0) == (Event.LEVEL_REACHED,)


def test_a_divergence_comes_up_again_only_after_half_a_minute_without_one() -> None:
    symbol = Symbol()
    assert symbol.sees(cvd_divergence=1) == (Event.CVD_DIVERGENCE,)
    symbol.triggers.acknowledge()
    for value in (0, 0, 0, 0, 0, 1, 0, None, 0, 1):
        assert symbol.sees(cvd_divergence=value) == ()
    for _ in range(6):
        symbol.sees(cvd_divergence=0)
    assert symbol.sees(cvd_divergence=1) == (Event.CVD_DIVERGENCE,)


def test_a_divergence_to_the_other_side_is_another_one() -> None:
    symbol = Symbol()
    symbol.sees(cvd_divergence=1)
    symbol.triggers.acknowledge()
    assert symbol.sees(cvd_divergence=-1) == (Event.CVD_DIVERGENCE,)


def test_a_regime_counts_when_it_lasts_and_the_first_one_is_no_change() -> None:
    symbol = Symbol()
    high = {"volatility_regime": VolatilityRegime.HIGH}
    assert [symbol.sees() for _ in range(5)] == [()] * 5
    assert symbol.sees(**high) == symbol.sees(**high) == ()
    assert symbol.sees() == ()  # it flickered
    assert [symbol.sees(**high) for _ in range(3)] == [(), (), (Event.REGIME_CHANGE,)]
    symbol.triggers.acknowledge()
    assert symbol.sees(**high) == ()
    down = {**high, "trend_regime": TrendRegime.DOWN}
    assert [symbol.sees(**down) for _ in range(3)][-1] == (Event.REGIME_CHANGE,)
    assert symbol.sees(trend_regime=None) == (Event.REGIME_CHANGE,)  # unknown changes nothing


def test_a_regime_that_came_back_before_anybody_asked_is_no_change() -> None:
    symbol = Symbol()
    for _ in range(3):
        symbol.sees()
    for _ in range(3):
        symbol.sees(trend_regime=TrendRegime.DOWN)
    assert [symbol.sees() for _ in range(3)][-1] == ()


def test_events_come_in_a_fixed_order() -> None:
    symbol = Symbol()
    seen = symbol.sees(**WHALES, absorption=4.0, cvd_divergence=-1, support_distance_bps=0.0)
    assert seen == (
        Event.WHALE_BURST,
        Event.CVD_DIVERGENCE,
        Event.ABSORPTION,
        Event.LEVEL_REACHED,
    )
