"""Worked examples of windows and of the running CVD."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from domain.flow import FlowMetrics
from flow_analyzer import BurstSettings, FlowSettings, TradeFlowAnalyzer, WhaleUnit, measure
from microstructure.running_cvd import DAY_MS
from tests.flow_windows import Trade, buy, sell, window_batch, worked_examples

_DURATION_MS = 5000


@pytest.fixture(scope="module")
def vectors(recordings_dir: Path) -> dict[str, dict]:
    return worked_examples(recordings_dir)


def _trades(entries: list[dict]) -> list[Trade]:
    return [
        Trade(e["a"], Decimal(repr(e["p"])), Decimal(repr(e["q"])), e["m"], e["T"]) for e in entries
    ]


def _one(analyzer: TradeFlowAnalyzer, start_ms: int, *trades: Trade, complete: bool = True):
    batch = window_batch([trades], start_ms=start_ms, complete=[complete])
    (metrics,) = analyzer.analyze(batch)
    return metrics


def test_vector_cvd_basic(vectors):
    vector = vectors["cvd_basic"]
    trades, expected = _trades(vector["inputs"]["trades"]), vector["expected"]
    (found,) = measure(window_batch([trades]))
    assert found.buy_volume == Decimal(repr(expected["buy_vol"]))
    assert found.sell_volume == Decimal(repr(expected["sell_vol"]))
    assert found.delta == Decimal(repr(expected["delta"]))
    assert found.flow_imbalance == Decimal(repr(expected["flow_imbalance"]))
    assert found.net_flow_quote == Decimal(repr(expected["net_flow_quote"]))
    assert found.vwap == Decimal(repr(expected["vwap"]))
    analyzer = TradeFlowAnalyzer(["A"])
    cvd = {second: _one_second(analyzer, second, trades).cvd for second in range(0, 3000, 1000)}
    assert cvd == {0: 0, 1000: Decimal("0.5"), 2000: Decimal("-1.0")}


def _one_second(analyzer: TradeFlowAnalyzer, start_ms: int, trades: list[Trade]) -> FlowMetrics:
    inside = [trade for trade in trades if start_ms <= trade.time_ms < start_ms + 1000]
    (found,) = analyzer.analyze(window_batch([inside], start_ms=start_ms, duration_ms=1000))
    return found


def test_vector_flow_edge(vectors):
    inputs, expected = vectors["flow_edge"]["inputs"], vectors["flow_edge"]["expected"]
    names = ("empty", "buy_only", "sell_only")
    windows = [_trades(inputs[f"trades_{name}"]) for name in names]
    for name, found in zip(names, measure(window_batch(windows)), strict=True):
        assert found.delta == Decimal(repr(expected[name]["delta"]))
        assert found.flow_imbalance == Decimal(repr(expected[name]["flow_imbalance"]))
        assert (found.vwap is None) == (name == "empty")


def test_a_window_worked_by_hand():
    analyzer = TradeFlowAnalyzer(["A", "B"])
    window = [
        buy(5, "100.10", "600", 1000),
        buy(6, "100.2", "400.5", 1000)._replace(fills=3),
        sell(7, "100.0", "1000", 1000)._replace(suspect=2),
        buy(8, "99.9", "0.25", 4999),
    ]
    (found,) = analyzer.analyze(window_batch([window], symbol_index=[1]))
    assert found.symbol == "B"
    assert (found.trade_count, found.fill_count) == (4, 6)
    assert (found.first_agg_id, found.last_agg_id) == (5, 8)
    assert [str(p) for p in (found.open, found.high, found.low, found.close)] == [
        "100.10",
        "100.20",
        "99.90",
        "99.90",
    ]
    assert found.volume == Decimal("2000.75")
    assert found.buy_volume == Decimal("1000.75")
    assert str(found.delta) == "0.75"
    assert found.quote_volume == Decimal("200215.075")
    assert found.net_flow_quote == Decimal("215.075")
    assert (found.whale_sell_volume, found.whale_buy_volume) == (1000, 0)  # 100,000 is a whale
    assert (found.whale_delta, found.whale_count) == (-1000, 1)
    assert found.suspect_count == 1
    assert found.participant_volume == (Decimal("0.25"), 0, Decimal("1000.5"), 1000, 0)
    assert found.participant_delta == (Decimal("0.25"), 0, Decimal("1000.5"), -1000, 0)
    assert (found.sweep_count, found.max_sweep_notional) == (3, pytest.approx(100190.1))
    assert found.trade_notional_max == 100_000.0
    assert found.second_closes == (None, 100.0, None, None, 99.9)


def test_on_spot_the_whale_is_the_sweep_and_not_its_parts():
    window = [
        buy(1, "100", "600", 10),
        sell(2, "99", "1", 10),
        buy(3, "101", "500", 10),
        buy(4, "101", "500", 11),
    ]
    settings = FlowSettings(whale_unit=WhaleUnit.SWEEP)
    (found,) = measure(window_batch([window]), settings)
    assert (found.whale_count, found.whale_buy_volume, found.whale_sell_volume) == (1, 1100, 0)
    (found,) = measure(window_batch([window]))
    assert (found.whale_count, found.whale_delta) == (0, 0)


def test_a_silent_window_has_zero_sums_and_no_prices():
    analyzer = TradeFlowAnalyzer(["A"])
    found = _one(analyzer, 0)
    for name in ("volume", "quote_volume", "delta", "net_flow_quote", "flow_imbalance", "cvd"):
        assert getattr(found, name) == 0
        assert isinstance(getattr(found, name), Decimal)
    for name in ("open", "high", "low", "close", "vwap", "first_agg_id", "max_sweep_notional"):
        assert getattr(found, name) is None
    assert (found.trade_count, found.fill_count, found.whale_count) == (0, 0, 0)
    assert found.second_closes == (None,) * 5
    assert found.participant_volume == (0,) * 5


@pytest.mark.parametrize("duration_ms", [250, 1000, 1500, 60_000])
def test_seconds_of_a_window_are_those_of_the_clock(duration_ms: int):
    start_ms = duration_ms * 3
    window = [buy(1, "10", "1", start_ms), buy(2, "11", "1", start_ms + duration_ms - 1)]
    analyzer = TradeFlowAnalyzer(["A"])
    (found,) = analyzer.analyze(window_batch([window], start_ms=start_ms, duration_ms=duration_ms))
    first, last = start_ms // 1000, (start_ms + duration_ms - 1) // 1000
    expected: list[float | None] = [None] * (last - first + 1)
    expected[0], expected[-1] = 10.0, 11.0
    assert list(found.second_closes) == expected


def test_cvd_begins_at_the_first_window_and_again_at_midnight():
    analyzer = TradeFlowAnalyzer(["A"])
    late = DAY_MS - _DURATION_MS
    first = _one(analyzer, late - _DURATION_MS, buy(1, "1", "3", late - 1))
    last = _one(analyzer, late, sell(2, "1", "1", late))
    after = _one(analyzer, DAY_MS, buy(3, "1", "0.5", DAY_MS))
    assert [m.cvd for m in (first, last, after)] == [3, 2, Decimal("0.5")]
    assert [m.cvd_anchor_ms for m in (first, last, after)] == [late - _DURATION_MS] * 2 + [DAY_MS]
    assert all(m.cvd_complete for m in (first, last, after))


def test_an_incomplete_window_makes_cvd_incomplete_until_midnight():
    analyzer = TradeFlowAnalyzer(["A"])
    start = DAY_MS - 3 * _DURATION_MS
    found = [
        _one(analyzer, start + k * _DURATION_MS, complete=k != 1).cvd_complete for k in range(4)
    ]
    assert found == [True, False, False, True]


def test_windows_left_out_make_cvd_incomplete_until_it_is_repaired():
    analyzer = TradeFlowAnalyzer(["A"])
    _one(analyzer, 0, buy(1, "1", "1", 0))
    hole = _one(analyzer, 10_000, buy(3, "1", "1", 10_000))
    assert (hole.cvd, hole.cvd_complete, hole.complete) == (2, False, True)
    analyzer.restore_cvd(
        "A", cvd=Decimal("1.75"), anchor_ms=0, complete=True, last_window_start_ms=10_000
    )
    repaired = _one(analyzer, 15_000, buy(4, "1", "1", 15_000))
    assert (repaired.cvd, repaired.cvd_complete) == (Decimal("2.75"), True)
    assert analyzer.cvd_state("A") == (Decimal("2.75"), 0, True)
    assert analyzer.statistics()["holes"] == 1


def test_a_day_that_does_not_begin_at_midnight_is_incomplete():
    analyzer = TradeFlowAnalyzer(["A"])
    _one(analyzer, 0, buy(1, "1", "1", 0))
    found = _one(analyzer, DAY_MS + _DURATION_MS, buy(2, "1", "2", DAY_MS + _DURATION_MS))
    assert (found.cvd, found.cvd_anchor_ms, found.cvd_complete) == (2, DAY_MS, False)


@pytest.mark.parametrize(
    ("last_window_start_ms", "is_complete"), [(None, True), (15_000, True), (10_000, False)]
)
def test_a_restart_goes_on_with_the_stored_cvd(last_window_start_ms, is_complete):
    analyzer = TradeFlowAnalyzer(["A", "B"])
    analyzer.restore_cvd(
        "B",
        cvd=Decimal("7.5"),
        anchor_ms=5000,
        complete=True,
        last_window_start_ms=last_window_start_ms,
    )
    trade = buy(1, "1", "1", 20_000)
    (found,) = analyzer.analyze(window_batch([[trade]], start_ms=20_000, symbol_index=[1]))
    assert (found.cvd, found.cvd_anchor_ms) == (Decimal("8.5"), 5000)
    assert found.cvd_complete is is_complete


def test_windows_already_in_the_restored_cvd_are_not_added_again():
    analyzer = TradeFlowAnalyzer(["A"])
    analyzer.restore_cvd(
        "A", cvd=Decimal(7), anchor_ms=0, complete=True, last_window_start_ms=10_000
    )
    found = [_one(analyzer, 5000 * k, buy(k, "1", "1", 5000 * k)) for k in range(1, 4)]
    assert [m.cvd for m in found] == [7, 7, 8]
    assert found[0].delta == 1
    assert found[-1].cvd_complete


def test_symbols_keep_their_own_cvd_in_whatever_order_they_come():
    analyzer = TradeFlowAnalyzer(["A", "B", "C"])
    windows = [[buy(1, "1", "1", 0)], [buy(1, "1", "10", 0)], [buy(1, "1", "100", 0)]]
    analyzer.analyze(window_batch(windows))
    shifted = [[t._replace(time_ms=5000) for t in window] for window in (windows[2], windows[0])]
    found = analyzer.analyze(window_batch(shifted, start_ms=5000, symbol_index=[2, 0]))
    assert [(m.symbol, m.cvd) for m in found] == [("C", 200), ("A", 2)]
    assert analyzer.cvd_state("B")[0] == 10


def test_a_window_of_the_past_is_refused():
    analyzer = TradeFlowAnalyzer(["A"])
    _one(analyzer, 5000)
    with pytest.raises(ValueError, match="A: window 5000"):
        _one(analyzer, 5000)
    assert analyzer.cvd_state("A") == (0, 5000, True)


def test_measuring_old_windows_leaves_the_history_alone():
    analyzer = TradeFlowAnalyzer(["A"])
    _one(analyzer, 5000, buy(1, "1", "1", 5000))
    measure(window_batch([[buy(0, "1", "9", 0)]]))
    assert analyzer.cvd_state("A") == (1, 5000, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"participant_edges": (Decimal(10), Decimal(10))},
        {"participant_edges": tuple(map(Decimal, range(1, 102)))},
        {"whale_quantile": 1.0},
        {"whale_quantile_minimum": 0},
        {"size_minimum": 501},
        {"round_lot_steps": 0},
        {"burst": BurstSettings(half_life_s=0.0)},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowSettings(**wrong)
