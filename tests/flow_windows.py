"""Builds window batches from plain trades, for the tests of the flow analyzer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from domain.flow import FlowMetrics, Origin, WindowBatch
from domain.market import NO_VALUE, TRADE_DTYPE
from flow_analyzer import TradeFlowAnalyzer


class Trade(NamedTuple):
    """One aggTrade as on the wire; ``fills`` gives its first and last trade id.

    ``ex_rpi`` has the quantity's decimals.
    """

    agg_trade_id: int
    price: Decimal
    quantity: Decimal
    is_sell: bool
    time_ms: int
    fills: int = 1
    suspect: int = 0
    ex_rpi: Decimal | None = None


def buy(agg_trade_id: int, price: str, quantity: str, time_ms: int) -> Trade:
    return Trade(agg_trade_id, Decimal(price), Decimal(quantity), False, time_ms)


def sell(agg_trade_id: int, price: str, quantity: str, time_ms: int) -> Trade:
    return Trade(agg_trade_id, Decimal(price), Decimal(quantity), True, time_ms)


def window_batch(
    windows: Sequence[Sequence[Trade]],
    *,
    start_ms: int = 0,
    duration_ms: int = 5000,
    symbol_index: Sequence[int] | None = None,
    complete: Sequence[bool] | None = None,
) -> WindowBatch:
    """A batch of the windows ``[start_ms, start_ms + duration_ms)``, one per symbol."""
    symbols = list(range(len(windows)) if symbol_index is None else symbol_index)
    rows = np.zeros(sum(map(len, windows)), TRADE_DTYPE)
    trades = [(k, trade) for k, window in zip(symbols, windows, strict=True) for trade in window]
    for row, (symbol, trade) in zip(rows, trades, strict=True):
        row["symbol_index"] = symbol
        row["is_buyer_maker"] = trade.is_sell
        row["price"], row["price_decimals"] = _scaled(trade.price)
        row["quantity"], row["quantity_decimals"] = _scaled(trade.quantity)
        row["quantity_ex_rpi"] = NO_VALUE if trade.ex_rpi is None else _scaled(trade.ex_rpi)[0]
        row["suspect"] = trade.suspect
        row["agg_trade_id"] = trade.agg_trade_id
        row["first_trade_id"] = 10 * trade.agg_trade_id
        row["last_trade_id"] = 10 * trade.agg_trade_id + trade.fills - 1
        row["transact_time_ms"] = trade.time_ms
        row["event_time_ms"] = row["receive_time_ns"] = NO_VALUE
    flags = [True] * len(symbols) if complete is None else list(complete)
    return WindowBatch(
        start_ms=start_ms,
        end_ms=start_ms + duration_ms,
        symbol_index=symbols,
        offsets=np.cumsum([0, *map(len, windows)]),
        rows=rows,
        complete=flags,
        missing_trades=[0 if flag else None for flag in flags],
        origin=Origin.LIVE,
    )


def _scaled(value: Decimal) -> tuple[int, int]:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent <= 0, "write 1000, not 1E3"
    return int(value.scaleb(-exponent)), -exponent


def market(seed: int, windows: int, per_window: int, duration_ms: int = 5000) -> list[list[Trade]]:
    """Seeded windows whose price follows the flow, with ties in time and a heavy size tail."""
    rng = random.Random(seed)
    price, result, number = 10_000.0, [], 0
    for k in range(windows):
        times = sorted(rng.randrange(0, duration_ms, 50) for _ in range(rng.randrange(per_window)))
        window = []
        for time_ms in times:
            number += 1
            is_sell = rng.random() < 0.5
            size = min(rng.paretovariate(1.3), 1000.0)
            price += (-1 if is_sell else 1) * 0.02 * size + rng.gauss(0, 0.1)
            window.append(
                Trade(
                    number,
                    Decimal(f"{price:.2f}"),
                    Decimal(f"{size:.3f}"),
                    is_sell,
                    k * duration_ms + time_ms,
                )
            )
        result.append(window)
    return result


def run(analyzer: TradeFlowAnalyzer, windows: list[list[Trade]]) -> list[FlowMetrics]:
    """All windows of one symbol, from time 0."""
    found: list[FlowMetrics] = []
    for k, window in enumerate(windows):
        found += analyzer.analyze(window_batch([window], start_ms=5000 * k))
    return found


def worked_examples(recordings_dir: Path) -> dict[str, dict[str, Any]]:
    """The worked examples kept beside the recorded market data, by name; skips without them."""
    path = recordings_dir.parent / "vectors.json"
    if not path.is_file():
        pytest.skip("no worked examples beside the recorded market data")
    return {vector["id"]: vector for vector in json.loads(path.read_bytes())["vectors"]}
