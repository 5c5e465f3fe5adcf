"""Candle intervals: their lengths and where each candle opens (UTC; weeks open on Monday).

Names and alignment as the exchange's klines have them:
https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Kline-Candlestick-Data
"""

from __future__ import annotations

from typing import Final

import numpy as np

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
_WEEK_OFFSET_MS: Final = 4 * DAY_MS  # the epoch was a Thursday; weeks open on Monday

INTERVAL_MS: Final = {
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": 60 * MINUTE_MS,
    "2h": 120 * MINUTE_MS,
    "4h": 240 * MINUTE_MS,
    "6h": 360 * MINUTE_MS,
    "8h": 480 * MINUTE_MS,
    "12h": 720 * MINUTE_MS,
    "1d": DAY_MS,
    "3d": 3 * DAY_MS,
    "1w": 7 * DAY_MS,
    "1M": 31 * DAY_MS,  # nominal: months are cut by the calendar
}


def open_times_ms(times_ms: np.ndarray, interval: str) -> np.ndarray:
    """Start of the candle that holds each time; int64[n], ms."""
    if interval == "1M":
        months = times_ms.astype("datetime64[ms]").astype("datetime64[M]")
        calendar: np.ndarray = months.astype("datetime64[ms]").astype(np.int64)
        return calendar
    size = INTERVAL_MS[interval]
    offset = _WEEK_OFFSET_MS if interval == "1w" else 0
    aligned: np.ndarray = (times_ms - offset) // size * size + offset
    return aligned


def open_time_ms(time_ms: int, interval: str) -> int:
    """Start of the candle that holds ``time_ms``."""
    return int(open_times_ms(np.array([time_ms], np.int64), interval)[0])


def next_open_ms(open_ms: int, interval: str) -> int:
    """Start of the candle after the one that opens at ``open_ms``."""
    if interval == "1M":
        return open_time_ms(open_ms + 32 * DAY_MS, interval)
    return open_ms + INTERVAL_MS[interval]
