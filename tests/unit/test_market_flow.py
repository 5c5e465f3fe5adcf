"""What the synchronous core tells of frames that had to be corrected."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from binance_api.endpoints import Route
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

NS = START_MS * 1_000_000


@pytest.mark.parametrize("factor", [1_000, 1_000_000], ids=["microseconds", "nanoseconds"])
@pytest.mark.parametrize("batch", [1, 60, 900])
def test_times_finer_than_milliseconds_are_counted_and_logged_once_a_stream(
    factor: int, batch: int
) -> None:
    flow = MarketFlow(
        MarketFlowSettings(symbols=("BTCUSDT", "ETHUSDT")),
        monotonic_ns=lambda: 0,
        repairable=False,
    )
    finer: dict[str, Any] = {"T": START_MS * factor, "E": (START_MS + 1) * factor}
    frames = [
        agg_trade_frame(symbol, a=10_000 + i, **finer)
        for symbol in ("BTCUSDT", "ETHUSDT")
        for i in range(3)
    ]
    frames += [agg_trade_frame(a=10_003 + i) for i in range(batch)]
    books = [
        depth_frame(u=20, **finer),
        depth_frame(u=21, T=START_MS, E=START_MS),
        depth_frame(u=22, T=START_MS, E=START_MS * factor),
        depth_frame(u=23, T=2**62),  # impossible in any unit: rejected, not corrected
    ]
    with capture_logs() as logs:
        flow.on_frames(Route.TRADES, 1, frames, [NS] * len(frames))
        flow.on_frames(Route.DEPTH, 2, books, [NS] * len(books))
    assert flow.statistics()["finer_times"] == 8
    assert flow.statistics()["trades"] == 6 + batch
    first = {"log_level": "warning", "event": "flow.finer_time", "used_ms": START_MS + 1}
    assert [entry for entry in logs if entry["event"] == "flow.finer_time"] == [
        first | {"stream": stream, "sent": (START_MS + 1) * factor}
        for stream in ("btcusdt@aggTrade", "ethusdt@aggTrade", "btcusdt@depth20@100ms")
    ]
