"""Seeded trades and book snapshots of one symbol for the tests and benchmarks of the array kernels."""

from __future__ import annotations

import numpy as np

from domain.market import NO_VALUE, TRADE_DTYPE
from microstructure.book_tape import BookTape

START_MS = 1_721_347_200_000  # 2024-07-19 00:00 UTC
TICK = 0.1


def tape_of(
    seed: int, snapshots: int, *, levels: int = 20, step_ms: int = 100, start_ms: int = START_MS
) -> BookTape:
    """A BTC-like book: a spread of one tick, a random walk of the mid, heavy-tailed sizes."""
    rng = np.random.default_rng(seed)
    moves = rng.choice([-1, 0, 1], size=snapshots, p=[0.1, 0.8, 0.1])
    best = 640_000 + np.cumsum(moves)
    depth = np.arange(levels)
    sizes = rng.lognormal(0.0, 1.0, (2, snapshots, levels)).astype(np.float32).astype(np.float64)
    times = start_ms + step_ms * np.arange(snapshots) + rng.integers(0, step_ms // 2, snapshots)
    bids, asks = (best[:, None] - depth) * TICK, (best[:, None] + 1 + depth) * TICK
    return BookTape.of_arrays(times, bids, sizes[0], asks, sizes[1])


def trades_of(seed: int, count: int, span_ms: int, *, start_ms: int = START_MS) -> np.ndarray:
    """``TRADE_DTYPE`` rows over a span, ascending by id and time."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, TRADE_DTYPE)
    rows["is_buyer_maker"] = rng.random(count) < 0.5
    rows["price_decimals"], rows["quantity_decimals"] = 1, 3
    rows["agg_trade_id"] = np.arange(count) + 1
    rows["price"] = 640_000 + np.cumsum(rng.choice([-1, 0, 1], size=count, p=[0.2, 0.6, 0.2]))
    rows["quantity"] = np.maximum(rng.lognormal(3.0, 2.0, count), 1.0).astype(np.int64)
    rows["quantity_ex_rpi"] = rows["quantity"]
    rows["first_trade_id"] = rows["last_trade_id"] = rows["agg_trade_id"]
    rows["transact_time_ms"] = start_ms + np.sort(rng.integers(0, span_ms, count))
    rows["event_time_ms"] = rows["receive_time_ns"] = NO_VALUE
    return rows
