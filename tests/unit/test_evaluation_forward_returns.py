"""Entry, exit, cost and what cannot be scored, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation.baselines import cvd_sign, momentum_sign, rules_direction
from evaluation.forward_returns import Status, entry_from_ms, market_returns
from tests.signal_market import T0, WINDOW_MS, columns, prices, scored_against

RISING = [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0]


def _status(market_changes: dict[str, Any], **signal: Any) -> Status:
    outcomes = scored_against(prices(RISING, **market_changes), columns(0, **signal))
    return Status(outcomes.status[0])


def test_a_signal_enters_the_next_whole_window_and_leaves_one_horizon_later() -> None:
    """Made at the end of window 0, decided in window 1: in at the end of 2, out at the end of 4."""
    outcomes = scored_against(prices(RISING), columns(0))
    assert outcomes.status.tolist() == [Status.SCORED]
    assert outcomes.entry_ms.tolist() == [T0 + 2 * WINDOW_MS]
    assert outcomes.steps.tolist() == [2]
    assert outcomes.return_bps[0] == pytest.approx(1e4 * (104 / 102 - 1))
    assert outcomes.cost_bps[0] == pytest.approx(2 * 5.0 + 0.1 + 0.1)


@pytest.mark.parametrize(
    ("latency_ms", "window"), [(0.0, 2), (4_700.0, 2), (4_700.1, 3), (9_700.0, 3), (9_701.0, 4)]
)
def test_latency_moves_the_entry_back(latency_ms: float, window: int) -> None:
    signals = columns(0, latency_ms=latency_ms)
    outcomes = scored_against(prices(RISING), signals)
    assert outcomes.entry_ms[0] == T0 + window * WINDOW_MS
    assert outcomes.entry_ms[0] >= signals.decided_at_ms[0] + latency_ms


@pytest.mark.parametrize("decided_at_ms", [0, T0, T0 + WINDOW_MS - 1, T0 + WINDOW_MS])
def test_a_signal_never_enters_its_own_window_whatever_its_clock(decided_at_ms: int) -> None:
    outcomes = scored_against(prices(RISING), columns(0, decided_at_ms=decided_at_ms))
    assert outcomes.entry_ms[0] == T0 + WINDOW_MS


@pytest.mark.parametrize("latency_ms", [float("nan"), -50.0])
def test_an_impossible_latency_counts_as_none(latency_ms: float) -> None:
    signals = columns(0, latency_ms=latency_ms)
    assert entry_from_ms(signals).tolist() == signals.decided_at_ms.tolist()


def test_a_horizon_that_is_no_multiple_of_the_window_is_rounded_up() -> None:
    assert scored_against(prices(RISING), columns(0, horizon_s=11)).steps.tolist() == [3]
    assert scored_against(prices(RISING), columns(0, horizon_s=1)).steps.tolist() == [1]


def test_a_signal_is_pending_until_its_exit_window_is_stored() -> None:
    assert _status({}, horizon_s=25) is Status.SCORED
    assert _status({}, horizon_s=26) is Status.PENDING
    assert _status({}, latency_ms=float("inf")) is Status.PENDING


@pytest.mark.parametrize(
    ("hole", "status"),
    [
        (1, Status.SCORED),  # before the entry
        (2, Status.HOLE),
        (3, Status.HOLE),  # on the way
        (4, Status.HOLE),
        (5, Status.SCORED),  # after the exit
    ],
)
def test_a_hole_between_entry_and_exit_leaves_the_signal_out(hole: int, status: Status) -> None:
    assert _status({"holes": [hole]}) is status


@pytest.mark.parametrize("horizon_s", [0, -60, 7 * 86_400 + 1, 2**60])
def test_an_impossible_horizon_leaves_the_signal_out(horizon_s: int) -> None:
    assert _status({}, horizon_s=horizon_s) is Status.BAD_HORIZON


def test_a_symbol_without_windows_leaves_the_signal_out() -> None:
    outcomes = scored_against(prices(RISING), columns([0, 0], symbol=[0, 1]))
    assert outcomes.status.tolist() == [Status.SCORED, Status.NO_WINDOWS]
    assert np.isnan(outcomes.return_bps[1])


def test_last_trades_stand_in_where_one_end_has_no_quote_and_are_never_mixed_with_quotes() -> None:
    middle = np.array(RISING)
    middle[4] = np.nan
    market = prices(middle, close=np.array(RISING) + 0.5)
    outcomes = scored_against(market, columns(0))
    assert outcomes.return_bps[0] == pytest.approx(1e4 * (104.5 / 102.5 - 1))


def test_neither_quote_nor_trade_leaves_the_signal_out() -> None:
    nothing = np.where(np.arange(8) == 4, np.nan, np.array(RISING))
    assert _status({"mid_price": nothing, "close": nothing}) is Status.NO_PRICE


def test_an_unknown_spread_counts_as_the_usual_one_and_says_so() -> None:
    spread = np.array([0.4, 0.4, np.nan, 0.4, 0.4, 2.0, 0.4, 0.4])
    outcomes = scored_against(prices(RISING, spread_bps=spread), columns([0, 1]))
    assert outcomes.cost_bps.tolist() == pytest.approx([10.4, 11.2])
    assert outcomes.has_spread.tolist() == [False, True]


def test_without_any_spread_only_fees_are_charged() -> None:
    outcomes = scored_against(prices(RISING, spread_bps=np.full(8, np.nan)), columns(0))
    assert outcomes.cost_bps.tolist() == [10.0]


def test_base_rates_come_from_every_window_with_sound_ends() -> None:
    market = prices(RISING, holes=[3])
    moves = market_returns(market, T0, T0 + 8 * WINDOW_MS, 2, 1)
    expected = [1e4 * (RISING[k + 2] / RISING[k] - 1) for k in (0, 4, 5)]
    assert moves.tolist() == pytest.approx(expected)


def test_momentum_is_the_sign_of_the_move_of_one_horizon_before() -> None:
    market = prices([100.0, 101.0, 100.5, 100.5, 99.0], holes=[])
    known, steps = np.array([1, 2, 3, 4]), np.array([1, 2, 1, 2])
    assert momentum_sign(market, known, steps).tolist() == [1, 1, 0, -1]


def test_momentum_without_enough_history_has_no_direction() -> None:
    market = prices(RISING, holes=[2])
    assert momentum_sign(market, np.array([1, 4]), np.array([5, 2])).tolist() == [0, 0]


def test_cvd_is_the_sign_of_what_was_bought_less_what_was_sold() -> None:
    market = prices(RISING, delta=np.array([1.0, -3.0, 1.0, 2.0, -2.0, 0.0, 0.1, 0.0]))
    known, steps = np.array([0, 1, 3, 4, 3]), np.array([1, 1, 2, 2, 9])
    assert cvd_sign(market, known, steps).tolist() == [1, -1, 1, 0, 0]


def test_sums_that_cancel_give_no_direction_from_rounding() -> None:
    market = prices(RISING, delta=np.array([1e9 + 0.1, 0.1, 0.2, -0.3, 1.0, 1.0, 1.0, 1.0]))
    assert cvd_sign(market, np.array([3]), np.array([3])).tolist() == [0]


def test_the_rules_signal_of_the_same_window_and_symbol_is_the_baseline() -> None:
    signals = columns(
        [0, 0, 1, 2, 0, 0],
        symbol=[0, 0, 0, 0, 1, 1],
        source=[7, 3, 3, 7, 7, 3],
        direction=[-1, 1, 1, 1, 1, -1],
    )
    assert rules_direction(signals, 7).tolist() == [-1, -1, 0, 1, 1, 1]
    assert rules_direction(signals, None).tolist() == [0] * 6
    assert rules_direction(signals, 9).tolist() == [0] * 6
