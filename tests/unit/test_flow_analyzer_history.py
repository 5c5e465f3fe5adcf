"""Rolling measures against plain recomputation from all that came before."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from domain.features import FeatureRow
from flow_analyzer import BurstSettings, TradeFlowAnalyzer
from microstructure.flow_history import ArrivalBurst, NetFlow, cusum
from tests.flow_windows import Trade, market, run, window_batch, worked_examples


@pytest.fixture(scope="module")
def vectors(recordings_dir: Path) -> dict[str, dict]:
    return worked_examples(recordings_dir)


# --- bursts -------------------------------------------------------------------------------


def test_vector_cusum_burst(vectors):
    vector = vectors["cusum_burst"]
    params, expected = vector["params"], vector["expected"]
    score, scores, alarms = 0.0, [], []
    for k, count in enumerate(vector["inputs"]["counts"]):
        z = (count - params["mean"]) / params["sd"]
        score, is_alarm = cusum(score, z, params["k"], params["h"])
        scores.append(score)
        if is_alarm:
            alarms.append(k)
            score = 0.0
    assert scores == pytest.approx(expected["S"])
    assert alarms == expected["alarms"]


def _burst(**options) -> ArrivalBurst:
    return ArrivalBurst(BurstSettings(warmup_s=0, **options), mean=5.0, deviation=1.0)


def test_an_alarm_is_followed_by_a_cooldown():
    burst = _burst(cooldown_s=5)
    assert burst.observe([30], is_complete=True)[0] == 1
    assert burst.observe([30] * 5, is_complete=True)[0] == 0
    assert burst.observe([30], is_complete=True)[0] == 1


def test_alarm_and_cooldown_do_not_move_the_mean():
    burst = _burst(cooldown_s=5)
    before = burst.observe([5], is_complete=False)[1]
    burst.observe([5, 500, 500, 500, 500, 500, 500], is_complete=True)
    assert before == 0.0
    assert burst.observe([5], is_complete=False)[1] == pytest.approx(0.0, abs=1e-9)


def test_a_new_usual_rate_is_learnt_in_the_end():
    burst = ArrivalBurst(BurstSettings(half_life_s=60))
    burst.observe([5] * 300, is_complete=True)
    assert burst.observe([80] * 120, is_complete=True)[0] > 5
    burst.observe([80] * 900, is_complete=True)
    assert burst.observe([80] * 120, is_complete=True) == (0, pytest.approx(0.0, abs=0.5))


def test_bursts_need_a_warm_up():
    burst = ArrivalBurst(BurstSettings(warmup_s=60))
    assert burst.observe([1] * 59 + [1000], is_complete=True) == (0, None)


def test_mean_and_deviation_are_the_plain_ones_while_few_seconds_are_known():
    counts = [3, 9, 4, 4, 12, 7, 0, 5]
    burst = ArrivalBurst(BurstSettings(warmup_s=len(counts)))
    burst.observe(counts, is_complete=True)
    z = burst.observe([11], is_complete=True)[1]
    assert z == pytest.approx((11 - np.mean(counts)) / np.std(counts))


def test_a_rush_of_trades_counts_as_a_burst():
    analyzer = TradeFlowAnalyzer(["A"])
    calm = [[_plain(k, 5000 * k + 100)] for k in range(30)]
    rush = [_plain(100 + k, 150_000 + 2000 + k) for k in range(200)]
    found = run(analyzer, [*calm, rush])
    assert [m.burst_count for m in found] == [0] * 30 + [1]
    assert found[-1].arrival_z > 10
    assert found[5].arrival_z is None


def _plain(number: int, time_ms: int) -> Trade:
    return Trade(number, Decimal(100), Decimal(1), False, time_ms)


# --- net flow and holes -------------------------------------------------------------------


def test_net_flow_over_minutes_sums_the_last_windows_exactly():
    windows = market(seed=9, windows=200, per_window=6)
    found = run(TradeFlowAnalyzer(["A"]), windows)
    for name, count in (("1m", 12), ("5m", 60), ("15m", 180)):
        values = [getattr(m, f"net_flow_quote_{name}") for m in found]
        assert values[: count - 1] == [None] * (count - 1)
        for k in range(count - 1, 200):
            assert values[k] == sum(m.net_flow_quote for m in found[k - count + 1 : k + 1])


def test_net_flow_needs_windows_that_divide_its_horizon():
    analyzer = TradeFlowAnalyzer(["A"])
    found = [
        analyzer.analyze(window_batch([[]], start_ms=k * 120_000, duration_ms=120_000))[0]
        for k in range(20)
    ]
    assert all(m.net_flow_quote_1m is m.net_flow_quote_5m is None for m in found)
    assert all(m.net_flow_quote_15m is None for m in found)  # 7.5 windows


def test_a_hole_or_an_incomplete_window_restarts_net_flow():
    analyzer = TradeFlowAnalyzer(["A"])
    known = []
    for k in range(60):
        if k != 20:
            batch = window_batch([[]], start_ms=5000 * k, complete=[k != 40])
            if analyzer.analyze(batch)[0].net_flow_quote_1m is not None:
                known.append(k)
    assert known == [*range(11, 20), *range(32, 40), *range(52, 60)]


def test_a_hole_restarts_what_is_measured_in_seconds():
    windows = market(seed=8, windows=80, per_window=25)
    analyzer = TradeFlowAnalyzer(["A"])
    before = run(analyzer, windows)[-1]
    assert before.arrival_z is not None
    later = [t._replace(time_ms=t.time_ms - 79 * 5000 + 900_000) for t in windows[79]]
    (after,) = analyzer.analyze(window_batch([later], start_ms=900_000))
    assert after.arrival_z is None
    assert after.trade_notional_q50 is not None


def test_an_incomplete_window_has_no_arrival_score():
    windows = market(seed=8, windows=81, per_window=25)
    analyzer = TradeFlowAnalyzer(["A"])
    run(analyzer, windows[:79])
    odd = [Trade(9000, Decimal(20_000), Decimal(900), True, 79 * 5000)]
    (scored,) = analyzer.analyze(window_batch([odd], start_ms=79 * 5000, complete=[False]))
    assert scored.arrival_z is None
    (after,) = analyzer.analyze(window_batch([windows[80]], start_ms=80 * 5000))
    assert after.arrival_z is not None


def test_windows_that_are_not_whole_seconds_have_no_second_measures():
    analyzer = TradeFlowAnalyzer(["A"])
    for k in range(600):
        trades = [_plain(k, 250 * k)]
        (found,) = analyzer.analyze(window_batch([trades], start_ms=250 * k, duration_ms=250))
    assert (found.burst_count, found.arrival_z) == (0, None)
    assert found.net_flow_quote_1m == 240 * 100


def _row(start_ms: int, net_flow: float, *, complete: bool = True) -> FeatureRow:
    return FeatureRow(
        symbol="A",
        window_start_ms=start_ms,
        window_end_ms=start_ms + 5000,
        revision=0,
        complete=complete,
        missing_trades=0,
        trade_count=0,
        fill_count=0,
        first_agg_id=None,
        last_agg_id=None,
        open=None,
        high=None,
        low=None,
        close=None,
        vwap=None,
        volume=0.0,
        quote_volume=0.0,
        buy_volume=0.0,
        sell_volume=0.0,
        delta=0.0,
        cvd=0.0,
        net_flow_quote=net_flow,
        flow_imbalance=0.0,
        whale_buy_volume=0.0,
        whale_sell_volume=0.0,
        whale_delta=0.0,
        whale_count=0,
        burst_count=0,
        suspect_count=0,
        cvd_anchor_ms=0,
        cvd_complete=True,
        realized_vol=None,
        spread_bps=None,
        microprice=None,
        book_imbalance=None,
        ofi=None,
        depth_frames=0,
        origin="live",
    )


@pytest.mark.parametrize("live_first", [False, True])
def test_stored_windows_warm_net_flow_before_and_after_live_ones(live_first: bool):
    analyzer = TradeFlowAnalyzer(["A"])
    rows = [_row(5000 * k, 0.1 * (k + 1)) for k in range(10)]
    live = [[_plain(k, 5000 * k)] for k in range(10, 14)]
    if live_first:
        _analyze_from(analyzer, live[:1], 10)
        assert analyzer.warm("A", rows) == 10
        found = _analyze_from(analyzer, live[1:], 11)
    else:
        assert analyzer.warm("A", rows) == 10
        found = _analyze_from(analyzer, live, 10)[1:]
    stored = [Decimal(repr(0.1 * (k + 1))) for k in range(10)]
    assert [m.net_flow_quote_1m for m in found] == [
        sum(stored[first:]) + 100 * count for first, count in ((0, 2), (1, 3), (2, 4))
    ]


def _analyze_from(analyzer: TradeFlowAnalyzer, windows: list[list[Trade]], first: int):
    return [
        analyzer.analyze(window_batch([window], start_ms=5000 * k))[0]
        for k, window in enumerate(windows, first)
    ]


def test_a_restored_cvd_does_not_keep_net_flow_from_warming():
    analyzer = TradeFlowAnalyzer(["A"])
    analyzer.restore_cvd(
        "A", cvd=Decimal(1), anchor_ms=0, complete=True, last_window_start_ms=45_000
    )
    assert analyzer.warm("A", [_row(5000 * k, 1.0) for k in range(10)]) == 10


def test_only_complete_consecutive_windows_warm():
    rows = [_row(5000 * k, 1.0, complete=k != 3) for k in range(8) if k != 5]
    assert TradeFlowAnalyzer(["A"]).warm("A", rows) == 2
    analyzer = TradeFlowAnalyzer(["A"])
    analyzer.analyze(window_batch([[]], start_ms=50_000))
    assert analyzer.warm("A", rows) == 0  # they end before the history begins
    assert analyzer.warm("A", []) == 0


def test_net_flow_of_no_window_is_unknown():
    assert NetFlow(12).over(0) is None
    assert NetFlow(12).over(1) is None
