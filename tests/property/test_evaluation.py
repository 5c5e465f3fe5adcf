"""Properties of the evaluation: no look into the future, and nothing undefined for any input."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.forward_returns import Status
from evaluation.prices import SymbolPrices
from evaluation.scores import wilson
from evaluation.signal_columns import SignalColumns
from evaluation.slices import SliceReport
from tests.signal_market import T0, WINDOW_MS, columns, judged, prices, scored_against

COUNT = 40
holes = st.sets(st.integers(0, COUNT - 1), max_size=6)
chance = st.one_of(st.just(float("nan")), st.floats(0.0, 1.0))


@st.composite
def markets(draw: st.DrawFn) -> SymbolPrices:
    """Wild prices of any size with unknown ones among them, holes, spreads of zero and unknown."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    known = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))

    def path() -> np.ndarray:
        moves = random.choice([0.0, 1e-6, 1e-3, 0.3], COUNT) * random.normal(size=COUNT)
        values = draw(st.sampled_from([1e-8, 1.0, 65_000.0])) * np.exp(np.cumsum(moves))
        return np.where(random.random(COUNT) < known, values, np.nan)

    return prices(
        path(),
        close=path(),
        holes=draw(holes),
        spread_bps=random.choice([0.0, 0.5, np.nan], COUNT),
        delta=random.choice([0.0, 1e-8, 1e6], COUNT) * random.normal(size=COUNT),
    )


@st.composite
def signals(draw: st.DrawFn) -> SignalColumns:
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, COUNT - 1),
                st.sampled_from([-1, 0, 1]),
                st.integers(-20_000, 40_000),  # decided after the window's end, ms
                st.floats(0.0, 30_000.0),  # latency
                st.integers(-1, 120),  # horizon
                *(chance for _ in range(4)),
            ),
            min_size=1,
            max_size=15,
        )
    )
    window, direction, lag, latency, horizon, confidence, *chances = map(
        np.array, zip(*sorted(rows), strict=True)
    )
    up, flat, down = chances
    return columns(
        window,
        direction=direction,
        decided_at_ms=T0 + (window + 1) * WINDOW_MS + lag,
        latency_ms=latency,
        horizon_s=horizon,
        confidence=confidence,
        p_up=up,
        p_flat=flat,
        p_down=down,
    )


@given(markets(), signals())
def test_nothing_is_entered_before_decision_and_latency(
    market: SymbolPrices, given_signals: SignalColumns
) -> None:
    outcomes = scored_against(market, given_signals)
    scored = outcomes.status == Status.SCORED
    ready_ms = given_signals.decided_at_ms + given_signals.latency_ms
    assert (outcomes.entry_ms[scored] >= ready_ms[scored]).all()
    assert (outcomes.entry_ms[scored] >= given_signals.window_end_ms[scored]).all()
    assert np.isfinite(outcomes.return_bps[scored]).all()
    assert (outcomes.cost_bps[scored] >= 10.0).all()
    assert np.isnan(outcomes.return_bps[~scored]).all()


@given(markets(), signals(), st.integers(0, COUNT - 1))
def test_prices_before_the_entry_do_not_change_the_gain(
    market: SymbolPrices, given_signals: SignalColumns, row: int
) -> None:
    row %= len(given_signals)
    outcomes = scored_against(market, given_signals)
    if outcomes.status[row] != Status.SCORED:
        return
    entry = (outcomes.entry_ms[row] - T0) // WINDOW_MS
    past = np.arange(COUNT) < entry
    other = msgspec.structs.replace(
        market,
        mid_price=np.where(past, 7.0, market.mid_price),
        close=np.where(past, 9.0, market.close),
    )
    again = scored_against(other, given_signals)
    assert again.return_bps[row] == outcomes.return_bps[row]


@given(markets(), signals(), st.integers(0, COUNT - 1))
def test_what_follows_a_window_does_not_change_its_baselines(
    market: SymbolPrices, given_signals: SignalColumns, row: int
) -> None:
    row %= len(given_signals)
    known = (given_signals.window_end_ms[row] - T0) // WINDOW_MS - 1
    future = np.arange(COUNT) > known
    other = msgspec.structs.replace(
        market,
        mid_price=np.where(future, 7.0, market.mid_price),
        close=np.where(future, 9.0, market.close),
        delta=np.where(future, -1e5, market.delta),
    )
    before, after = scored_against(market, given_signals), scored_against(other, given_signals)
    assert before.momentum[row] == after.momentum[row]
    assert before.cvd[row] == after.cvd[row]


def _numbers(value: object) -> list[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [n for item in value for n in _numbers(item)] if isinstance(value, list) else []


def _assert_sound(report: SliceReport) -> None:
    plain = msgspec.to_builtins(report)
    assert all(math.isfinite(number) for number in _numbers(plain))
    if report.hit_rate is not None:
        assert 0.0 <= report.hit_rate.low <= report.hit_rate.value + 1e-12
        assert report.hit_rate.value - 1e-12 <= report.hit_rate.high <= 1.0
        assert report.hit_rate.effective_count <= report.hit_rate.count
        assert 0.0 <= report.hit_rate.p_value <= 1.0
    if report.rank_correlation is not None:
        assert abs(report.rank_correlation.value) <= 1.0


@given(markets(), signals())
def test_every_number_of_a_report_is_finite(
    market: SymbolPrices, given_signals: SignalColumns
) -> None:
    _assert_sound(judged(market, given_signals))


@pytest.mark.parametrize("spread", [0.0, float("nan")])
@pytest.mark.parametrize("fee_bps", [0.0, 5.0])
def test_prices_that_never_move_give_no_hits_no_ranking_and_the_costs(
    spread: float, fee_bps: float
) -> None:
    count = 3_000
    market = prices(np.full(count, 100.0), spread_bps=np.full(count, spread))
    report = judged(market, columns(np.arange(2_900)), fee_bps)
    _assert_sound(report)
    assert report.hit_rate is not None
    assert (report.hit_rate.value, report.hit_rate.base_rate) == (0.0, 0.0)
    assert report.verdict == "no better than chance"
    assert report.rank_correlation is None
    assert report.break_even_hit_rate is None
    assert report.net_bps is not None
    assert report.net_bps.value == -2 * fee_bps


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_wilson_interval_contains_its_share(hits: int, count: int) -> None:
    hits = min(hits, count)
    found = wilson(hits, count)
    assert found is not None
    low, high = found
    assert 0.0 <= low <= hits / count <= high <= 1.0


@given(st.permutations(range(30)))
def test_the_order_of_signals_does_not_matter(order: list[int]) -> None:
    market = prices(100.0 + np.sin(np.arange(COUNT)))
    window, direction = np.arange(30), np.where(np.arange(30) % 3 == 0, -1, 1)
    one = judged(market, columns(window, direction=direction))
    other = judged(market, columns(window[order], direction=direction[order]))
    assert other.hit_rate == one.hit_rate or math.isclose(
        other.hit_rate.effective_count, one.hit_rate.effective_count
    )
    assert other.net_total_bps == pytest.approx(one.net_total_bps)
