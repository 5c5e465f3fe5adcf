"""Which candles a stretch of time should have, which are stored, and what lies between. Pure.

Open times (int64, ms) → runs of missing ones, each ``[start_ms, end_ms)`` on the interval's grid.
"""

from __future__ import annotations

import msgspec
import numpy as np

from domain.intervals import INTERVAL_MS, next_open_ms, open_time_ms, open_times_ms


class KlineGap(msgspec.Struct, frozen=True, order=True):
    """Candles of one symbol and interval that are not stored.

    Attributes:
        symbol, interval: Whose.
        start_ms: Open time of the first missing candle.
        end_ms: Open time of the first one after the gap.
        bar_count: How many are missing.
        at_exchange: The exchange was asked and does not have them either.
    """

    symbol: str
    interval: str
    start_ms: int
    end_ms: int
    bar_count: int
    at_exchange: bool = False


def expected_opens(interval: str, start_ms: int, end_ms: int) -> np.ndarray:
    """Open times of all candles that open in ``[start_ms, end_ms)``; int64[n]."""
    first = open_time_ms(start_ms, interval)
    if first < start_ms:
        first = next_open_ms(first, interval)
    if end_ms <= first:
        return np.empty(0, np.int64)
    if interval != "1M":
        return np.arange(first, end_ms, INTERVAL_MS[interval], dtype=np.int64)
    days = np.arange(first, end_ms, INTERVAL_MS["1d"], dtype=np.int64)
    return np.unique(open_times_ms(days, interval))


def runs(opens: np.ndarray, interval: str) -> list[tuple[int, int, int]]:
    """Neighbouring open times joined: ``(start_ms, end_ms, bar_count)`` each."""
    if not len(opens):
        return []
    after = np.array([next_open_ms(int(t), interval) for t in opens], np.int64) \
        if interval == "1M" else opens + INTERVAL_MS[interval]  # fmt: skip
    edges = np.flatnonzero(opens[1:] != after[:-1]) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(opens)]])
    return [
        (int(opens[a]), int(after[b - 1]), int(b - a)) for a, b in zip(starts, ends, strict=True)
    ]
