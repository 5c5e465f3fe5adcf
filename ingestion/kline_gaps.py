"""Which candles a stretch of time should have, which lack, and in what pages to ask for them. Pure.

Open times (int64, ms) → runs of missing ones, each ``[start_ms, end_ms)`` on the interval's grid;
batches of whole UTC days, so that a daily file is written once; pages of one request each.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from domain.intervals import DAY_MS, INTERVAL_MS, next_open_ms, open_time_ms, open_times_ms


class KlineGap(msgspec.Struct, frozen=True, order=True):
    """Candles of one symbol and interval that are not stored.

    Attributes:
        symbol, interval: Whose.
        start_ms: Open time of the first missing candle.
        end_ms: Open time of the first one after the gap.
        bar_count: How many are missing.
        at_exchange: The exchange was asked and does not have them either (a halt, a lost page).
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


def closed_before_ms(interval: str, end_ms: int, now_ms: int) -> int:
    """Candles that open before this have closed by ``now_ms``, and open before ``end_ms``."""
    opened_ms = open_time_ms(now_ms, interval)
    return min(end_ms, opened_ms)


def runs(opens: np.ndarray, interval: str) -> list[tuple[int, int, int]]:
    """Neighbouring open times joined: ``(start_ms, end_ms, bar_count)`` each."""
    if not len(opens):
        return []
    if interval == "1M":
        after = np.array([next_open_ms(at, interval) for at in opens.tolist()], np.int64)
    else:
        after = opens + INTERVAL_MS[interval]
    edges = np.flatnonzero(opens[1:] != after[:-1]) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(opens)]])
    return [
        (int(opens[a]), int(after[b - 1]), int(b - a)) for a, b in zip(starts, ends, strict=True)
    ]


def gaps_of(symbol: str, interval: str, opens: np.ndarray, *, at_exchange: bool) -> list[KlineGap]:
    """The runs of missing candles, named."""
    return [
        KlineGap(symbol, interval, start, end, count, at_exchange)
        for start, end, count in runs(opens, interval)
    ]


def batches(missing: np.ndarray, interval: str, page_bars: int) -> list[np.ndarray]:
    """Missing open times by stretches of whole UTC days, each about a page long (or one day)."""
    days = max(1, page_bars * INTERVAL_MS[interval] // DAY_MS)
    stretch = missing // DAY_MS // days
    return [part for part in np.split(missing, np.flatnonzero(np.diff(stretch)) + 1) if len(part)]


def pages(opens: np.ndarray, interval: str, page_bars: int) -> Iterator[tuple[int, int, int]]:
    """Requests that cover these open times: ``(start_ms, last_ms inclusive, limit)`` each."""
    at = 0
    while at < len(opens):
        start_ms = int(opens[at])
        end = int(np.searchsorted(opens, start_ms + page_bars * INTERVAL_MS[interval]))
        last_ms = int(opens[end - 1])
        slots = (last_ms - start_ms) // INTERVAL_MS[interval] + 1
        if interval == "1M":  # months are shorter than their nominal length
            slots = end - at + 1
        yield start_ms, next_open_ms(last_ms, interval) - 1, min(slots, page_bars)
        at = end
