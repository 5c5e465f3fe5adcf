"""Rolling thresholds and distributions of sizes, against plain recomputation from all before."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from flow_analyzer import FlowSettings, TradeFlowAnalyzer
from microstructure.rolling_sizes import RollingThreshold, size_distributions
from tests.flow_windows import Trade, market, run, window_batch, worked_examples


@pytest.fixture(scope="module")
def vectors(recordings_dir: Path) -> dict[str, dict]:
    return worked_examples(recordings_dir)


# --- whale threshold ----------------------------------------------------------------------


def _threshold(quantile: float, values: list[float], *, size: int = 5000, minimum: int = 1):
    rolling = RollingThreshold(1, quantile=quantile, size=size, minimum=minimum)
    for value in values:
        rolling.append(np.array([0]), np.array([1]), np.array([value], dtype=np.float64))
    return rolling.of(0)


def test_vector_whale_quantile(vectors):
    vector = vectors["whale_quantile"]
    past, expected = vector["inputs"]["past_notional"], vector["expected"]
    found = _threshold(0.9, past)
    assert found.value == pytest.approx(expected["q90"])
    assert (vector["inputs"]["new_notional"] >= found.value) is expected["whale_at_q90"]
    assert _threshold(0.75, past).value == pytest.approx(expected["q75"])


@pytest.mark.parametrize("kind", ["heavy", "rising", "falling", "few_values", "constant"])
def test_the_threshold_is_the_quantile_of_the_last_sweeps(kind: str):
    rng = np.random.default_rng(3)
    symbols, size = 3, 400
    rolling = RollingThreshold(symbols, quantile=0.97, size=size, minimum=50)
    past: list[list[float]] = [[] for _ in range(symbols)]
    for step in range(150):
        owners = np.flatnonzero(rng.random(symbols) < 0.8)
        if owners.size == 0:
            continue
        counts = rng.integers(1, 40, owners.size) if step != 70 else np.full(owners.size, 2 * size)
        values = np.asarray(rng.pareto(1.2, int(counts.sum())) + 1)
        if kind in {"rising", "falling"}:
            values *= 1.1 ** (step if kind == "rising" else -step)
        elif kind == "few_values":
            values[:] = rng.choice([1.0, 2.0, 3.0], values.size, p=[0.9, 0.08, 0.02])
        elif kind == "constant":
            values[:] = 7.0
        rolling.append(owners, counts, values)
        for index, new in zip(
            owners.tolist(), np.split(values, np.cumsum(counts)[:-1]), strict=True
        ):
            past[index] = (past[index] + new.tolist())[-size:]
        for owner in range(symbols):
            found = rolling.of(owner)
            if len(past[owner]) < 50:
                assert found is None
                continue
            assert found is not None
            assert found.value == pytest.approx(np.quantile(past[owner], 0.97), rel=1e-12)
            assert found.is_above_median == (found.value > np.median(past[owner]))


def test_a_floor_raises_the_threshold():
    rolling = RollingThreshold(1, quantile=0.5, size=10, minimum=1, floor=50.0)
    rolling.append(np.array([0]), np.array([3]), np.array([1.0, 2.0, 3.0]))
    assert rolling.of(0).value == 50.0


def test_quantile_whales_are_measured_against_earlier_windows_only():
    settings = FlowSettings(whale_quantile_minimum=30, whale_quantile_sweeps=100)
    windows = market(seed=1, windows=60, per_window=20)
    past: list[float] = []
    for found, window in zip(
        run(TradeFlowAnalyzer(["A"], settings), windows), windows, strict=True
    ):
        sweeps: dict[tuple[int, bool], list[Trade]] = {}
        for trade in window:
            sweeps.setdefault((trade.time_ms, trade.is_sell), []).append(trade)
        notionals = [float(sum(t.price * t.quantity for t in group)) for group in sweeps.values()]
        if len(past) < 30:
            assert found.whale_threshold_quantile_notional is None
            assert found.whale_quantile_count is found.whale_quantile_delta is None
        else:
            threshold = float(np.quantile(past[-100:], 0.99))
            assert found.whale_threshold_quantile_notional == pytest.approx(threshold, rel=1e-12)
            whales = [
                group
                for group, notional in zip(sweeps.values(), notionals, strict=True)
                if notional >= threshold
            ]
            assert found.whale_quantile_count == len(whales)
            signed = [-t.quantity if t.is_sell else t.quantity for group in whales for t in group]
            assert found.whale_quantile_delta == sum(signed)
        past += notionals
    assert sum(
        m.whale_quantile_count or 0 for m in run(TradeFlowAnalyzer(["A"], settings), windows)
    )


def test_trades_of_one_size_are_not_all_whales():
    settings = FlowSettings(whale_quantile_minimum=5)
    window = [Trade(k, Decimal(10), Decimal(1), False, 100 * k) for k in range(10)]
    first, second = run(
        TradeFlowAnalyzer(["A"], settings),
        [window, [t._replace(time_ms=t.time_ms + 5000) for t in window]],
    )
    assert first.whale_quantile_count is None
    assert (second.whale_threshold_quantile_notional, second.whale_quantile_count) == (10.0, 0)


# --- sizes --------------------------------------------------------------------------------


def test_quantiles_hill_exponent_and_gini_follow_their_definitions():
    draws = np.random.default_rng(5).pareto(1.5, (5, 230)) + 1
    counts = [230, 230, 170, 120, 101]
    ordered = np.zeros((5, 230))
    for row, values, count in zip(ordered, draws, counts, strict=True):
        row[:count] = np.sort(values[:count])
    found = size_distributions(ordered, np.array(counts))
    for values, count, (q50, q90, q99, hill, gini) in zip(draws, counts, found, strict=True):
        row = values[:count]
        assert [q50, q90, q99] == pytest.approx(np.quantile(row, [0.5, 0.9, 0.99]).tolist())
        top = sorted(row, reverse=True)
        k = math.isqrt(count)
        assert hill == pytest.approx(k / sum(math.log(x / top[k]) for x in top[:k]))
        differences = np.abs(row[:, np.newaxis] - row).mean()  # Gini's mean difference
        assert gini == pytest.approx(differences / (2 * row.mean()))


def test_a_tail_exponent_needs_ten_largest_values():
    rows = np.zeros((3, 121))
    counts = np.array([1, 99, 121])
    for row, count in zip(rows, counts, strict=True):
        row[:count] = np.arange(1.0, count + 1)
    found = size_distributions(rows, counts)
    assert [hill is not None for *_, hill, _ in found] == [False, False, True]
    assert found[0] == (1.0, 1.0, 1.0, None, 0.0)


def test_a_distribution_does_not_depend_on_who_else_is_measured():
    rows = np.sort(np.random.default_rng(6).pareto(1.5, (3, 400)) + 1, axis=1)
    counts = np.array([400, 333, 150])
    rows[np.arange(400) >= counts[:, np.newaxis]] = 0.0
    together = size_distributions(rows, counts)
    alone = [size_distributions(rows[k : k + 1], counts[k : k + 1])[0] for k in range(3)]
    assert together == alone


def test_equal_largest_values_have_no_tail_exponent():
    found = size_distributions(np.full((1, 100), 3.0), np.array([100]))
    assert found == [(3.0, 3.0, 3.0, None, 0.0)]


def test_one_trade_that_holds_everything_has_the_largest_gini():
    ((*_, gini),) = size_distributions(np.array([[1e-12] * 99 + [1e9]]), np.array([100]))
    assert gini == pytest.approx(0.99)


@pytest.mark.parametrize("per_window", [30, 600])
def test_sizes_are_of_the_window_or_of_the_last_trades_if_it_has_fewer(per_window: int):
    settings = FlowSettings(size_trades=200, size_minimum=50)
    windows = market(seed=2, windows=25, per_window=per_window)
    windows[7] = []
    past: list[float] = []
    for found, window in zip(
        run(TradeFlowAnalyzer(["A"], settings), windows), windows, strict=True
    ):
        past += [float(t.price * t.quantity) for t in window]
        sample = past[-max(200, len(window)) :]
        if len(sample) < 50:
            assert found.trade_notional_q50 is found.hill_alpha is None
            assert found.trade_notional_gini is found.round_lot_ratio is None
            continue
        quantiles = [found.trade_notional_q50, found.trade_notional_q90, found.trade_notional_q99]
        assert quantiles == pytest.approx(np.quantile(sample, [0.5, 0.9, 0.99]).tolist())
        assert (found.hill_alpha is not None) == (len(sample) >= 100)


@pytest.mark.parametrize("padding", [Decimal(1), Decimal("1.00000")], ids=["natural", "padded"])
@pytest.mark.parametrize("per_window", [30, 300])
def test_round_lots_are_multiples_of_a_hundred_of_the_smallest_step(
    per_window: int, padding: Decimal
):
    rng = np.random.default_rng(6)
    settings = FlowSettings(size_trades=200, size_minimum=50)
    analyzer, past, shares = TradeFlowAnalyzer(["A"], settings), [], set()
    for k in range(30):
        steps = [1, 3, *rng.integers(1, 40, per_window - 2) * rng.choice([1, 50, 100])]
        sizes = [Decimal(int(n)) * Decimal("0.002") * padding for n in steps]
        window = [
            Trade(100 * k + i, Decimal("7.5"), size, False, 5000 * k + i)
            for i, size in enumerate(sizes)
        ]
        (found,) = analyzer.analyze(window_batch([window], start_ms=5000 * k))
        past += [size % Decimal("0.2") == 0 for size in sizes]
        sample = past[-max(200, per_window) :]
        if len(sample) < 50:
            assert found.round_lot_ratio is None
        else:
            assert found.round_lot_ratio == pytest.approx(sum(sample) / len(sample))
            shares.add(found.round_lot_ratio)
    assert len(shares) > 2


def test_round_lots_of_windows_with_unlike_decimals_are_the_same():
    settings = FlowSettings(size_trades=100, size_minimum=1)
    analyzer = TradeFlowAnalyzer(["A", "B"], settings)
    fine = [Trade(k, Decimal(1), Decimal(q), False, k) for k, q in enumerate(["0.001", "0.25"])]
    analyzer.analyze(window_batch([fine, fine]))
    coarse = [Trade(9, Decimal(1), Decimal("0.5"), False, 5001)]
    whole = [Trade(9, Decimal(1), Decimal(3), False, 5001)]
    found = analyzer.analyze(window_batch([coarse, whole], start_ms=5000))
    assert [m.round_lot_ratio for m in found] == [pytest.approx(1 / 3)] * 2


def test_round_lots_of_numbers_beyond_64_bits_are_counted():
    settings = FlowSettings(size_trades=10, size_minimum=1)
    huge = [
        Trade(k, Decimal("123456789012.123456"), Decimal(q), False, k)
        for k, q in enumerate(["12345678901.2345", "12345678901.23", "99999999999.9999"])
    ]
    (found,) = TradeFlowAnalyzer(["A"], settings).analyze(window_batch([huge]))
    assert found.round_lot_ratio == pytest.approx(1 / 3)


def test_sizes_of_symbols_do_not_mix():
    settings = FlowSettings(size_trades=60, size_minimum=20)
    both = TradeFlowAnalyzer(["A", "B"], settings)
    alone = TradeFlowAnalyzer(["A", "B"], settings)
    first, second = market(3, 12, 40), market(4, 12, 80)
    for k, pair in enumerate(zip(first, second, strict=True)):
        together = both.analyze(window_batch(pair, start_ms=5000 * k))
        single = [
            alone.analyze(window_batch([window], start_ms=5000 * k, symbol_index=[i]))[0]
            for i, window in enumerate(pair)
        ]
        assert together == single
