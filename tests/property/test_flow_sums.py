"""The analyzer's window sums equal a plain computation with fractions, whatever the trades."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_analyzer import FlowSettings, TradeFlowAnalyzer, WhaleUnit, measure
from tests.flow_windows import Trade, window_batch

_DURATION_MS = 5000
_EDGES = FlowSettings().participant_edges
_FIFTY_DIGITS = Context(prec=50)


def _decimals(largest: int, places: int) -> st.SearchStrategy[Decimal]:
    return st.builds(
        lambda mantissa, shift: Decimal((0, Decimal(mantissa).as_tuple().digits, -shift)),
        st.integers(1, largest),
        st.integers(0, places),
    )


def _windows(prices: st.SearchStrategy[Decimal], quantities: st.SearchStrategy[Decimal]):
    trade = st.tuples(
        prices,
        quantities,
        st.booleans(),
        st.sampled_from([0, 1, 2, 999, 1000, 2500, 4999]) | st.integers(0, _DURATION_MS - 1),
        st.integers(1, 5),
        st.sampled_from([0, 0, 0, 1, 6]),
    )
    window = st.lists(trade, max_size=25).map(
        lambda trades: [
            Trade(7 + k, p, q, s, t, f, x) for k, (p, q, s, t, f, x) in enumerate(trades)
        ]
    )
    return st.lists(window, min_size=1, max_size=6)


_USUAL = _windows(_decimals(10**7, 3), _decimals(10**6, 3))
_PADDED = _windows(  # spot: eight decimals, most of them zeros
    st.integers(1, 10**7).map(lambda p: Decimal(p * 10**6).scaleb(-8)),
    st.integers(1, 10**9).map(lambda q: Decimal(q * 10**3).scaleb(-8)),
)
_HUGE = _windows(_decimals(2**63 - 1, 18), _decimals(2**63 - 1, 18))


def _quotient(numerator: Fraction, denominator: Fraction) -> Decimal:
    ratio = numerator / denominator
    return _FIFTY_DIGITS.divide(Decimal(ratio.numerator), Decimal(ratio.denominator))


def _sweeps(window: Sequence[Trade]) -> list[list[Trade]]:
    groups: dict[tuple[int, bool], list[Trade]] = defaultdict(list)
    for trade in window:
        groups[trade.time_ms, trade.is_sell].append(trade)
    return list(groups.values())


def _notional(trades: Sequence[Trade]) -> Fraction:
    return sum((Fraction(t.price) * Fraction(t.quantity) for t in trades), Fraction(0))


def _volume(trades: Sequence[Trade]) -> Fraction:
    return sum((Fraction(t.quantity) for t in trades), Fraction(0))


def _expected(window: Sequence[Trade], unit: WhaleUnit) -> dict[str, object]:
    buys, sells = ([t for t in window if t.is_sell is side] for side in (False, True))
    units = [[t] for t in window] if unit is WhaleUnit.AGG_TRADE else _sweeps(window)
    whales = [group for group in units if _notional(group) >= 100_000]
    whale_buy = sum((_volume(g) for g in whales if not g[0].is_sell), Fraction(0))
    whale_sell = sum((_volume(g) for g in whales if g[0].is_sell), Fraction(0))
    delta, volume = _volume(buys) - _volume(sells), _volume(window)
    buckets: list[list[Trade]] = [[] for _ in range(len(_EDGES) + 1)]
    for trade in window:
        buckets[sum(_notional([trade]) >= edge for edge in _EDGES)].append(trade)
    return {
        "trade_count": len(window),
        "fill_count": sum(t.fills for t in window),
        "first_agg_id": window[0].agg_trade_id if window else None,
        "last_agg_id": window[-1].agg_trade_id if window else None,
        "open": window[0].price if window else None,
        "high": max(t.price for t in window) if window else None,
        "low": min(t.price for t in window) if window else None,
        "close": window[-1].price if window else None,
        "vwap": _quotient(_notional(window), volume) if window else None,
        "volume": volume,
        "quote_volume": _notional(window),
        "buy_volume": _volume(buys),
        "sell_volume": _volume(sells),
        "delta": delta,
        "net_flow_quote": _notional(buys) - _notional(sells),
        "flow_imbalance": _quotient(delta, volume) if window else Decimal(0),
        "whale_buy_volume": whale_buy,
        "whale_sell_volume": whale_sell,
        "whale_delta": whale_buy - whale_sell,
        "whale_count": len(whales),
        "suspect_count": sum(t.suspect != 0 for t in window),
        "participant_volume": [_volume(b) for b in buckets],
        "participant_delta": [
            _volume(b) - 2 * _volume([t for t in b if t.is_sell]) for b in buckets
        ],
    }


def _plain(value: object) -> object:
    """Fractions for Decimals, so that comparing never rounds."""
    if isinstance(value, Decimal):
        return Fraction(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _check(windows: list[list[Trade]], unit: WhaleUnit) -> None:
    batch = window_batch(windows, start_ms=86_400_000, duration_ms=_DURATION_MS)
    for found, window in zip(measure(batch, FlowSettings(whale_unit=unit)), windows, strict=True):
        for name, value in _expected(window, unit).items():
            assert _plain(getattr(found, name)) == _plain(value), name


def _at(windows: list[list[Trade]], start_ms: int) -> list[list[Trade]]:
    return [[t._replace(time_ms=t.time_ms + start_ms) for t in window] for window in windows]


@given(_USUAL, st.sampled_from(WhaleUnit))
def test_sums_equal_those_of_fractions(windows: list[list[Trade]], unit: WhaleUnit):
    _check(_at(windows, 86_400_000), unit)


@given(_PADDED, st.sampled_from(WhaleUnit))
def test_sums_of_zero_padded_numbers_equal_those_of_fractions(windows, unit: WhaleUnit):
    _check(_at(windows, 86_400_000), unit)


@given(_HUGE, st.sampled_from(WhaleUnit))
def test_sums_beyond_int64_equal_those_of_fractions(windows, unit: WhaleUnit):
    _check(_at(windows, 86_400_000), unit)


@given(_USUAL | _PADDED | _HUGE)
def test_sweeps_and_seconds_equal_a_plain_grouping(windows: list[list[Trade]]):
    analyzer = TradeFlowAnalyzer([f"S{k}" for k in range(len(windows))])
    for found, window in zip(analyzer.analyze(window_batch(windows)), windows, strict=True):
        groups = _sweeps(window)
        assert found.sweep_count == len(groups)
        if window:
            largest = max(_notional(group) for group in groups)
            assert found.max_sweep_notional == pytest.approx(float(largest))
            largest = max(_notional([trade]) for trade in window)
            assert found.trade_notional_max == pytest.approx(float(largest))
        closes: list[float | None] = [None] * 5
        for trade in window:
            closes[trade.time_ms // 1000] = float(trade.price)
        for close, expected in zip(found.second_closes, closes, strict=True):
            assert (close is None) == (expected is None)
            assert close is None or math.isclose(close, expected or 0.0, rel_tol=1e-15)


@given(st.lists(_USUAL.map(lambda windows: windows[0]), min_size=1, max_size=12))
def test_every_window_moves_cvd_by_its_delta_and_net_flow_by_its_own(windows: list[list[Trade]]):
    analyzer = TradeFlowAnalyzer(["A"])
    rows = []
    for k, window in enumerate(_at([w], 5000 * k)[0] for k, w in enumerate(windows)):
        rows += analyzer.analyze(window_batch([window], start_ms=5000 * k))
    deltas = [Fraction(row.delta) for row in rows]
    assert [Fraction(row.cvd) for row in rows] == [sum(deltas[: k + 1]) for k in range(len(rows))]
    assert all(row.net_flow_quote_1m is None for row in rows[:11])
    if len(rows) == 12:
        total = sum(Fraction(row.net_flow_quote) for row in rows)
        assert _plain(rows[11].net_flow_quote_1m) == total


@given(_USUAL)
def test_a_float_of_a_result_is_the_nearest_double(windows: list[list[Trade]]):
    for found, window in zip(measure(window_batch(windows)), windows, strict=True):
        assert float(found.quote_volume) == float(_notional(window))


@given(_USUAL, st.data())
def test_a_window_measures_the_same_alone_and_among_others(windows, data):
    together = measure(window_batch(windows))
    k = data.draw(st.integers(0, len(windows) - 1))
    assert measure(window_batch([windows[k]], symbol_index=[k])) == [together[k]]


def test_offsets_may_begin_inside_the_rows():
    trade = Trade(1, Decimal("2.5"), Decimal(4), True, 100)
    batch = window_batch([[trade], [trade._replace(agg_trade_id=2)]])
    batch = type(batch)(0, 5000, [1], np.array([1, 2]), batch.rows, [True], [0], batch.origin)
    (found,) = measure(batch)
    assert (found.symbol_index, found.first_agg_id, found.delta) == (1, 2, Decimal(-4))
