"""Builders of windows, books and klines for the tests of the pipeline and its kernels."""

from __future__ import annotations

import json
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.flow import BookWindow, FlowMetrics, Origin
from domain.market import DepthSnapshot, DepthTop, Kline

WINDOW_MS = 5000
MINUTE_MS = 60_000
DAY_MS = 86_400_000
EXACT = Context(prec=100)
DAY = 1_721_347_200_000  # 2024-07-19 00:00 UTC


def vector(recordings_dir: Path, name: str) -> dict[str, Any]:
    """One worked example of the reference vectors beside the recordings."""
    path = recordings_dir.parent / "vectors.json"
    if not path.is_file():
        pytest.skip("no reference vectors beside the recorded data")
    entries = json.loads(path.read_text())["vectors"]
    return next(entry for entry in entries if entry["id"] == name)


def snapshot(
    bids: list[tuple[float, float]],
    asks: list[tuple[float, float]],
    at_ms: int = DAY,
    symbol: str = "BTCUSDT",
) -> DepthSnapshot:
    return DepthSnapshot(symbol, at_ms, at_ms, at_ms * 1_000_000, 1, 2, 1, bids, asks)


def top_of(book: DepthSnapshot) -> DepthTop:
    """A frame that holds this book: its payload is the book as JSON."""
    bid, ask = book.bids[0] if book.bids else None, book.asks[0] if book.asks else None
    head = msgspec.structs.asdict(book)
    del head["bids"], head["asks"]
    return DepthTop(**head, bid=bid, ask=ask, payload=msgspec.json.encode(book))


def read_book(top: DepthTop) -> DepthSnapshot | None:
    """The book a frame of ``top_of`` holds."""
    return msgspec.json.decode(top.payload, type=DepthSnapshot)


def quote(bid: float, bid_size: float, ask: float, ask_size: float, at_ms: int = DAY) -> DepthTop:
    return top_of(snapshot([(bid, bid_size)], [(ask, ask_size)], at_ms))


def book_window(
    start_ms: int, last: DepthSnapshot | None = None, ofi: float | None = 1.5, frames: int = 50
) -> BookWindow:
    if last is None:
        bids = [(100.0 - 0.1 * k, 5.0 + k) for k in range(20)]
        asks = [(100.1 + 0.1 * k, 4.0 + k) for k in range(20)]
        last = snapshot(bids, asks, start_ms + 4900)
    return BookWindow(
        symbol="BTCUSDT",
        window_start_ms=start_ms,
        window_end_ms=start_ms + WINDOW_MS,
        depth_frames=frames,
        ofi=ofi,
        ofi_restarts=0,
        last=last,
    )


def metrics(
    start_ms: int = DAY,
    price: str = "100",
    buy: str = "3",
    sell: str = "1",
    **changes: Any,
) -> FlowMetrics:
    """A window whose trades were all at ``price``; silent if nothing was bought or sold."""
    at, bought, sold = Decimal(price), Decimal(buy), Decimal(sell)
    volume, delta = EXACT.add(bought, sold), EXACT.subtract(bought, sold)
    is_silent = volume == 0
    quoted = None if is_silent else at
    fields: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "window_start_ms": start_ms,
        "window_end_ms": start_ms + WINDOW_MS,
        "origin": Origin.LIVE,
        "complete": True,
        "missing_trades": 0,
        "trade_count": 0 if is_silent else 7,
        "fill_count": 0 if is_silent else 9,
        "first_agg_id": None if is_silent else 1,
        "last_agg_id": None if is_silent else 7,
        "open": quoted,
        "high": quoted,
        "low": quoted,
        "close": quoted,
        "vwap": quoted,
        "volume": volume,
        "quote_volume": EXACT.multiply(volume, at),
        "buy_volume": bought,
        "sell_volume": sold,
        "delta": delta,
        "cvd": delta,
        "cvd_anchor_ms": DAY,
        "cvd_complete": True,
        "net_flow_quote": EXACT.multiply(delta, at),
        "flow_imbalance": Decimal(0) if is_silent else delta / volume,
        "whale_buy_volume": Decimal(0),
        "whale_sell_volume": Decimal(0),
        "whale_delta": Decimal(0),
        "whale_count": 0,
        "suspect_count": 0,
        "burst_count": 0,
        "net_flow_quote_1m": None,
        "net_flow_quote_5m": None,
        "net_flow_quote_15m": None,
        "whale_threshold_quantile_notional": None,
        "whale_quantile_count": None,
        "whale_quantile_delta": None,
        "sweep_count": 0 if is_silent else 3,
        "max_sweep_notional": None,
        "trade_notional_q50": None,
        "trade_notional_q90": None,
        "trade_notional_q99": None,
        "trade_notional_max": None,
        "hill_alpha": None,
        "participant_volume": (bought, sold),
        "participant_delta": (bought, -sold),
        "arrival_z": None,
        "second_closes": (None,) * 5 if is_silent else (float(at),) * 5,
    }
    return FlowMetrics(**(fields | changes))


def silent(start_ms: int) -> FlowMetrics:
    return metrics(start_ms, buy="0", sell="0")


def kline(open_ms: int, close: str = "100", volume: str = "10", **changes: Any) -> Kline:
    price, traded = Decimal(close), Decimal(volume)
    fields: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "interval": "1m",
        "open_time_ms": open_ms,
        "close_time_ms": open_ms + MINUTE_MS - 1,
        "open": price,
        "high": price,
        "low": price,
        "close": price,
        "volume": traded,
        "quote_volume": traded * price,
        "trade_count": 5,
        "taker_buy_volume": traded / 2,
        "taker_buy_quote_volume": traded * price / 2,
    }
    return Kline(**(fields | changes))
