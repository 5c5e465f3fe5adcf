from __future__ import annotations

from math import log

import pytest

from data_pipeline.context import ContextSettings, SymbolHistory, WindowSample, session_of
from domain.context import MarketContext, Session
from tests.pipeline_samples import DAY, DAY_MS, WINDOW_MS, kline

HOUR_MS = 3_600_000


def _sample(k: int, price: float | None, delta: float = 0.0) -> WindowSample:
    start_ms = DAY + k * WINDOW_MS
    prices = None if price is None else (price + 1.0, price - 1.0, price)
    volume = 0.0 if price is None else 2.0
    return WindowSample(
        start_ms,
        start_ms + WINDOW_MS,
        complete=True,
        prices=prices,
        volume=volume,
        quote_volume=volume * (price or 0.0),
        delta=delta,
        net_flow_quote=0.0,
        trade_count=1,
        ofi=None,
        spread_bps=None,
        realized_vol=None,
    )


def _history() -> SymbolHistory:
    return SymbolHistory(WINDOW_MS, ContextSettings())


def _context(history: SymbolHistory, k: int) -> MarketContext:
    return history.context("BTCUSDT", DAY + k * WINDOW_MS, complete=True, cvd=None)


@pytest.mark.parametrize(
    ("hour", "session"),
    [
        (0, Session.ASIA),
        (7, Session.ASIA),
        (8, Session.EUROPE),
        (12, Session.EUROPE),
        (13, Session.US),
        (21, Session.US),
        (22, Session.ASIA),
    ],
)
def test_sessions_follow_the_utc_hour(hour: int, session: Session) -> None:
    assert session_of(DAY + hour * HOUR_MS) is session


def test_returns_look_back_exactly_as_far_as_they_say() -> None:
    history = _history()
    for k in range(181):
        history.observe(_sample(k, 100.0 + k))
        context = _context(history, k)
        assert (context.return_1m_bps is None) == (k < 12)
        assert (context.return_5m_bps is None) == (k < 60)
        assert (context.return_15m_bps is None) == (k < 180)
    assert context.return_1m_bps == pytest.approx(1e4 * log(280 / 268))
    assert context.return_15m_bps == pytest.approx(1e4 * log(280 / 100))


def test_the_price_is_carried_through_silence() -> None:
    history = _history()
    history.observe(_sample(0, 100.0))
    for k in range(1, 13):
        history.observe(_sample(k, None))
    context = _context(history, 12)
    assert context.price == 100.0
    assert context.return_1m_bps == 0.0
    assert (context.high_15m, context.low_15m) == (101.0, 99.0)


def test_a_hole_is_no_silence() -> None:
    history = _history()
    for k in range(30):
        history.observe(_sample(k, 100.0))
    history.observe(_sample(40, 101.0))  # ten windows never came
    context = _context(history, 40)
    assert context.history_windows == 1
    assert context.return_5m_bps is None  # would look before the first window
    assert context.return_1m_bps == pytest.approx(1e4 * log(1.01))  # window 28 is known
    history.observe(_sample(41, 101.0))
    history.observe(_sample(42, 101.0))
    assert _context(history, 42).return_1m_bps is None  # window 30 is in the hole


def test_a_hole_as_long_as_the_look_back_empties_it() -> None:
    history = _history()
    for k in range(200):
        history.observe(_sample(k, 100.0))
    history.observe(_sample(1000, None))
    context = _context(history, 1000)
    assert (context.price, context.high_15m, context.return_15m_bps) == (None, None, None)


def test_extremes_forget_what_is_older_than_fifteen_minutes() -> None:
    history = _history()
    history.observe(_sample(0, 500.0))
    for k in range(1, 181):
        history.observe(_sample(k, 100.0))
    context = _context(history, 180)
    assert (context.high_15m, context.low_15m) == (101.0, 99.0)


def test_cvd_slope_is_the_least_squares_slope_per_minute() -> None:
    history = _history()
    for k in range(60):
        history.observe(_sample(k, 100.0, delta=0.5))
        assert (_context(history, k).cvd_slope_5m is None) == (k < 59)
    assert _context(history, 59).cvd_slope_5m == pytest.approx(0.5 * 12)


@pytest.mark.parametrize(
    ("price", "delta", "divergence"),
    [
        (150.0, -1.0, -1),  # new high, cvd below that of the old high
        (150.0, 1.0, 0),  # new high, new cvd high
        (50.0, 1.0, 1),  # new low, cvd above that of the old low
        (50.0, -1.0, 0),
        (100.0, -1.0, 0),  # no new extreme
    ],
)
def test_divergence_is_a_price_extreme_the_flow_did_not_follow(
    price: float, delta: float, divergence: int
) -> None:
    history = _history()
    for k in range(180):
        history.observe(_sample(k, 100.0 + k % 2))
    assert _context(history, 179).cvd_divergence is None
    history.observe(_sample(180, price, delta=delta))
    assert _context(history, 180).cvd_divergence == divergence


def test_divergence_is_unknown_while_a_price_is() -> None:
    history = _history()
    for k in range(200):
        history.observe(_sample(k, 100.0 if k > 100 else None))
    assert _context(history, 199).cvd_divergence is None


def test_distances_point_to_the_nearest_levels() -> None:
    history = _history()
    start_ms = DAY - DAY_MS
    bars = [kline(start_ms + k * 60_000, "100") for k in range(1440)]
    bars[0] = kline(start_ms, "110")
    bars[1] = kline(start_ms + 60_000, "90")
    history.warm(bars, [])
    history.observe(_sample(0, 105.0))
    context = _context(history, 0)
    assert context.levels is not None
    assert context.resistance_distance_bps == pytest.approx(1e4 * log(110 / 105))
    # poc, value area, pivot and close all stand at 100, the profile's at their bin's centre
    assert context.support_distance_bps == pytest.approx(1e4 * log(105 / 100), abs=5.0)


def test_klines_warm_returns_volatility_and_vwap() -> None:
    history = _history()
    bars = [kline(DAY + k * 60_000, str(100 + k % 2)) for k in range(120)]
    history.warm(bars, [])
    first = 120 * 12
    history.observe(_sample(first, 102.0))
    context = _context(history, first)
    assert context.return_1m_bps == pytest.approx(1e4 * log(102 / 100))  # close of minute 118
    assert context.return_15m_bps == pytest.approx(1e4 * log(102 / 100))  # of minute 104
    assert context.volatility_1m == pytest.approx(log(1.01))
    assert context.volatility_ratio == pytest.approx(1.0)
    assert context.session_vwap == pytest.approx((1200 * 100.5 + 2 * 102.0) / 1202)
    assert context.session_coverage_ratio == 1.0
    assert context.history_windows == 1


def test_stored_windows_are_preferred_to_klines_and_leave_no_seam() -> None:
    samples = [_sample(k, 100.0 + k / 10, delta=1.0) for k in range(240)]
    whole, restarted = _history(), _history()
    for sample in samples:
        whole.observe(sample)
    bars = [kline(DAY + k * 60_000, str(100 + (12 * k + 11) / 10)) for k in range(10)]
    restarted.warm(bars, samples[:200])
    for sample in samples[200:]:
        restarted.observe(sample)
    expected, found = _context(whole, 239), _context(restarted, 239)
    assert found.return_15m_bps == expected.return_15m_bps
    assert found.cvd_slope_5m == pytest.approx(expected.cvd_slope_5m)
    assert found.cvd_divergence == expected.cvd_divergence
    assert found.history_windows == expected.history_windows
    assert found.volatility_1m == pytest.approx(expected.volatility_1m)
    assert found.session_coverage_ratio == 1.0
