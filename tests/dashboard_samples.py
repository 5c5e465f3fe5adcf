"""Events as a bot publishes them, for tests of the dashboard; and a state full of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from dashboard.scene import Banner, Scene, View
from dashboard.state import DashboardState, reduce
from domain.events import (
    Action,
    Alert,
    ConnectionEvent,
    ConnectionState,
    FeaturesEvent,
    GapEvent,
    GapState,
    HealthEvent,
    Signal,
    Topic,
    WindowEvent,
)
from domain.features import FeatureRow
from domain.flow import FlowMetrics, Origin, WhalePrint
from domain.market import Side
from event_bus import Envelope

T0 = 1_721_347_200_000  # 2024-07-19 00:00:00 UTC, ms
WINDOW_MS = 5_000
_REQUIRED = tuple(f.name for f in msgspec.structs.fields(FeatureRow) if f.required)


def whale(time_ms: int, price: str, quantity: str = "3.5", side: Side = Side.BUY) -> WhalePrint:
    return WhalePrint(time_ms, side, Decimal(price), Decimal(quantity))


def window(
    end_ms: int = T0,
    symbol: str = "BTCUSDT",
    close: str = "64123.40",
    whales: tuple[WhalePrint, ...] = (),
) -> WindowEvent:
    values: dict[str, Any] = dict.fromkeys(FlowMetrics.__struct_fields__)
    zeros = ("volume", "quote_volume", "buy_volume", "sell_volume", "delta", "net_flow_quote")
    values |= dict.fromkeys(zeros, Decimal(0))
    values |= {
        "flow_imbalance": Decimal(0),
        "vwap": Decimal(1),
        "symbol": symbol,
        "window_start_ms": end_ms - WINDOW_MS,
        "window_end_ms": end_ms,
        "origin": Origin.LIVE,
        "complete": True,
        "missing_trades": 0,
        "trade_count": 10,
        "fill_count": 10,
        "close": Decimal(close),
        "cvd": Decimal(0),
        "cvd_anchor_ms": 0,
        "cvd_complete": True,
        "whale_delta": Decimal(0),
        "whale_buy_volume": Decimal(0),
        "whale_sell_volume": Decimal(0),
        "whale_count": 0,
        "suspect_count": 0,
        "burst_count": 0,
        "sweep_count": 0,
        "participant_volume": (),
        "participant_delta": (),
        "second_closes": (),
        "second_sides": (),
        "second_flows": (),
        "schema_version": 1,
    }
    closed_at_ns = (end_ms + 260) * 1_000_000
    return WindowEvent(FlowMetrics(**values), Origin.LIVE, 0, closed_at_ns, whales)


def features(
    end_ms: int = T0, symbol: str = "BTCUSDT", *, origin: Origin = Origin.LIVE, **changes: Any
) -> FeaturesEvent:
    values: dict[str, Any] = dict.fromkeys(_REQUIRED, 0.0)
    values |= {
        "symbol": symbol,
        "window_start_ms": end_ms - WINDOW_MS,
        "window_end_ms": end_ms,
        "revision": 0,
        "complete": True,
        "missing_trades": 0,
        "trade_count": 400,
        "fill_count": 400,
        "first_agg_id": 1,
        "last_agg_id": 400,
        "close": 64_123.4,
        "price": 64_123.4,
        "vwap": 64_120.0,
        "volume": 10.0,
        "quote_volume": 641_200.0,
        "delta": -1.25,
        "net_flow_quote": -80_150.0,
        "cvd": 17.5,
        "whale_count": 0,
        "burst_count": 0,
        "suspect_count": 0,
        "cvd_anchor_ms": 0,
        "cvd_complete": True,
        "depth_frames": 50,
        "origin": origin.value,
    }
    return FeaturesEvent(FeatureRow(**values | changes), origin)


def socket(
    state: ConnectionState = ConnectionState.HEALTHY,
    socket_id: int = 0,
    route: str = "trades",
    *,
    reason: str = "because",
    attempt: int = 0,
) -> ConnectionEvent:
    return ConnectionEvent(
        route=route,
        socket_id=socket_id,
        state=state,
        reason=reason,
        attempt=attempt,
        at_ns=T0 * 1_000_000,
    )


def gap(state: GapState, first_id: int | None = 5, kind: str = "trades") -> GapEvent:
    return GapEvent(
        kind=kind,
        symbol="BTCUSDT",
        first_id=first_id,
        last_id=first_id,
        state=state,
        cause="test",
        from_ms=None,
        until_ms=None,
        repairable_until_ms=None,
        at_ns=T0 * 1_000_000,
    )


def signal(source: str = "rules", action: Action = Action.BUY, **changes: Any) -> Signal:
    found = Signal(
        signal_id="s",
        symbol="BTCUSDT",
        window_end_ms=T0,
        decided_at_ms=T0,
        price=64_123.4,
        action=action,
        confidence=0.75,
        horizon_s=60,
        rationale="whales bought",
        evidence={},
        invalidation=None,
        source=source,
    )
    return msgspec.structs.replace(found, **changes)


def alert(message: str = "disk is slow", severity: str = "error") -> Alert:
    return Alert(
        name="a", severity=severity, symbol="BTCUSDT", message=message, at_ns=T0 * 1_000_000
    )


def health(at_s: float = 0.0, **values: float | str | None) -> HealthEvent:
    """``_`` in a name stands for the point: ``bus__dropped_count`` is ``bus.dropped_count``."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return HealthEvent(at_ns=T0 * 1_000_000 + int(at_s * 1e9), values=named)


def after(*payloads: msgspec.Struct, state: DashboardState | None = None) -> DashboardState:
    batch = [Envelope(Topic.WINDOW, n, payload) for n, payload in enumerate(payloads, 1)]
    return reduce(state or DashboardState(), batch)


def scene(
    state: DashboardState,
    *,
    later_s: float = 1.0,
    view: View | None = None,
    problems: tuple[str, ...] = (),
    trouble: str = "",
) -> Scene:
    """``later_s`` after ``T0``."""
    return Scene(
        state=state,
        view=view or View(),
        now_ns=T0 * 1_000_000 + int(later_s * 1e9),
        banner=Banner("demo um", "9.9.9", trouble),
        problems=problems,
    )


def busy_market(symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT")) -> DashboardState:
    """Ten minutes of two symbols with a book, whales, a model's answer and a few mishaps."""
    events: list[msgspec.Struct] = [socket(), socket(ConnectionState.SUSPECT, 1, "depth")]
    for place, symbol in enumerate(symbols):
        for n in range(120):
            end_ms = T0 - (119 - n) * WINDOW_MS
            price = 64_000.0 / (place + 1) + 40 * ((n * 7) % 13) - n
            has_whale = n % 10 == 0
            events += [
                window(
                    end_ms,
                    symbol,
                    f"{price:.2f}",
                    (
                        whale(end_ms - 4_000, f"{price:.2f}"),
                        whale(end_ms - 1_000, f"{price:.2f}", "2.25", Side.SELL),
                    )
                    if has_whale
                    else (),
                ),
                features(
                    end_ms,
                    symbol,
                    price=price,
                    close=price,
                    vwap=price,
                    cvd=float((n * 5) % 37 - n),
                    delta=float(n % 5 - 2),
                    whale_count=2 if has_whale else 0,
                    whale_buy_volume=3.0 if has_whale else 0.0,
                    spread_bps=0.12,
                    microprice=price + 0.2,
                    mid_price=price,
                    bid_price=price - 0.1,
                    bid_size=2.5,
                    ask_price=price + 0.1,
                    ask_size=5.0,
                    book_imbalance=-0.25,
                    book_imbalance_1=0.33,
                    book_imbalance_10=-0.1,
                    book_imbalance_20=0.0,
                    depth_bid_quote=750_000.0,
                    depth_ask_quote=250_000.0,
                    bid_wall_price=price - 5.0,
                    bid_wall_size=120.0,
                    bid_wall_distance_bps=0.8,
                    bid_wall_age_s=42.0,
                    return_1m_bps=12.0,
                    return_15m_bps=-34.0,
                    session="asia",
                ),
            ]
    answer = signal(
        "dashscope",
        Action.SELL,
        confidence=0.66,
        invalidation=64_500.0,
        rationale="sellers absorb every bid while the CVD falls and the book leans on the ask",
        model="qwen-plus",
        latency_ms=1_240.0,
        prompt_tokens=1_400,
        completion_tokens=120,
        cost_usd=Decimal("0.00081"),
        p_up=0.2,
        p_flat=0.14,
        p_down=0.66,
    )
    numbers: dict[str, float | int | str | None] = {
        "store__flushes": 1,
        "store__rows_written": 240,
        "store__rows_pending": 2,
        "ai__mode": "live",
        "ai__groq.state": "open",
        "ai__groq.tokens_today": 12_345,
        "ai__groq.usd_today": 0.0123,
        "ai__dashscope.state": "closed",
        "ai__dashscope.tokens_today": 1_520,
        "ai__dashscope.usd_today": 0.0008,
        "validator__clock_offset_ms": 12.5,
        "rest__clock_offset_ms": -3,
        "loop__worst_lag_ms": 3.2,
        "bus__dropped_count": 4,
        "disk__free_bytes": 53 * 1_024**3,
    }
    events += [
        signal(action=Action.HOLD, rationale="score +0.03"),
        answer,
        alert("whale sold 4.2M"),
        gap(GapState.OPEN, 5),
        gap(GapState.REPAIRED, 5),
        gap(GapState.OPEN, 9),
        health(-30.0, **numbers | {"store__flushes": 0}),
        health(0.0, **numbers),
    ]
    return after(*events)
