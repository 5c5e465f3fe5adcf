"""What becomes of depth frames whose faults lie behind the best levels, from frame to feature row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from binance_api.endpoints import Route
from domain.features import FeatureRow
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

NS = START_MS * 1_000_000
FAULTY = {
    "malformed level": [["64000.00", "1.5"], ["x", "2"]],
    "unsorted book": [["64000.00", "1.5"], ["64000.50", "2"]],
    "depth with a size that is not positive": [["64000.00", "1.5"], ["63999.90", "0.000"]],
}


def frame(number: int, **changes: Any) -> bytes:
    """The ``number``-th depth frame: 100 ms after the one before, which it follows."""
    ids: dict[str, Any] = {"U": 10 * number + 1, "u": 10 * number + 10, "pu": 10 * number}
    sent = depth_frame(T=START_MS + 100 * number, E=START_MS + 100 * number, **(ids | changes))
    return json.dumps(json.loads(sent), separators=(",", ":")).encode()


def first_row(flow: MarketFlow, depth: list[bytes]) -> FeatureRow:
    """The first window's row, after these depth frames of it."""
    flow.on_frames(Route.DEPTH, 1, depth, [NS] * len(depth))
    times = range(START_MS, START_MS + 6_000, 500)
    trades = [agg_trade_frame(a=i, T=at_ms, E=at_ms) for i, at_ms in enumerate(times)]
    flow.on_frames(Route.TRADES, 2, trades, [NS] * len(trades))
    (closed,) = flow.analyse(flow.live.popleft())
    return closed.row


def new_flow() -> MarketFlow:
    settings = MarketFlowSettings(symbols=("BTCUSDT",))
    return MarketFlow(settings, monotonic_ns=lambda: 0, repairable=False)


@pytest.mark.parametrize("reason", FAULTY)
def test_a_fault_behind_the_best_levels_is_quarantined_and_the_frame_before_stands_in(
    reason: str,
) -> None:
    last = frame(2, b=FAULTY[reason])
    flow = new_flow()
    row = first_row(flow, [frame(0), frame(1, b=[["64000.00", "9"], ["63999.90", "2"]]), last])
    (rejection,) = flow.take_rejections()
    assert (rejection.reason, rejection.payload, rejection.symbol) == (reason, last, "BTCUSDT")
    assert (row.depth_frames, row.ofi_restarts, row.bid_size) == (3, 0, 9.0)
    assert row.ofi == 1.5 - 9 + 9 - 1.5  # the best quotes of all three count


def test_a_fault_in_a_frame_whose_levels_nobody_reads_costs_nothing() -> None:
    flow = new_flow()
    row = first_row(flow, [frame(0), frame(1, b=FAULTY["unsorted book"]), frame(2)])
    assert not flow.take_rejections()
    assert (row.depth_frames, row.bid_size) == (3, 1.5)


def test_without_a_sound_book_at_its_end_a_window_has_no_book_columns() -> None:
    flow = new_flow()
    bad = FAULTY["unsorted book"]
    row = first_row(flow, [frame(0), frame(1, b=bad), frame(2, b=bad)])
    assert len(flow.take_rejections()) == 2
    assert (row.depth_frames, row.mid_price, row.bid_size) == (3, None, None)


def test_a_fault_in_the_best_levels_rejects_the_frame_at_once_and_breaks_the_chain() -> None:
    flow = new_flow()
    row = first_row(flow, [frame(0), frame(1, b=[["9e9", "1"]]), frame(2)])
    (rejection,) = flow.take_rejections()
    assert rejection.reason == "crossed book"
    assert (row.depth_frames, row.ofi_restarts) == (2, 1)
