"""What one call of ``collect`` asks for, checked before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from domain.intervals import INTERVAL_MS
from domain.times import When, time_ms


class CollectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    symbol: In upper case.
    interval: Of the candles; ``None``: ticks.
    start_ms, end_ms: Half-open range, UTC ms; ``None``: not given.
    limit: Rows at most; ``None``: all, or the default number of newest rows without a start.
    offset: Rows of the range to leave out at its beginning.
    poll_s: Seconds between two polls of a stream.
    """

    symbol: str
    interval: str | None
    start_ms: int | None
    end_ms: int | None
    limit: int | None
    offset: int
    poll_s: float


def collect_request(
    symbol: str,
    timeframe: str,
    start: When,
    end: When,
    data_type: str,
    *,
    is_streaming: bool,
    options: Mapping[str, Any],
) -> CollectRequest:
    """Check the arguments of ``collect``.

    Raises:
        ValueError: A value that cannot be.
        TypeError: An argument that does not exist (in this mode), or of another kind.
    """
    known = ("poll_interval_s",) if is_streaming else ("limit", "offset")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"collect() takes no {unknown[0]!r} here; there are {', '.join(known)}")
    name = symbol.strip().upper()
    if not name:
        raise ValueError("symbol must not be empty")
    if timeframe not in INTERVAL_MS:
        raise ValueError(f"no timeframe {timeframe!r}; there are {', '.join(INTERVAL_MS)}")
    if data_type not in {"ohlcv", "tick"}:
        raise ValueError(f"data_type must be ohlcv or tick, not {data_type!r}")
    start_ms, end_ms = time_ms(start), time_ms(end)
    if is_streaming and end_ms is not None:
        raise ValueError("a stream has no end_date; stop it with close()")
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise ValueError("end_date must lie after start_date")
    limit, offset = _count(options, "limit", 1), _count(options, "offset", 0) or 0
    if offset and start_ms is None:
        raise ValueError("offset counts from start_date, which is missing")
    interval = timeframe if data_type == "ohlcv" else None
    return CollectRequest(
        symbol=name,
        interval=interval,
        start_ms=start_ms,
        end_ms=end_ms,
        limit=limit,
        offset=offset,
        poll_s=_poll_s(options, interval),
    )


def _count(options: Mapping[str, Any], name: str, least: int) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}")
    return value


def _poll_s(options: Mapping[str, Any], interval: str | None) -> float:
    """As told, else some twenty times per candle; ticks: what the request weight allows."""
    value = options.get("poll_interval_s")
    if value is None:
        return 2.0 if interval is None else min(max(INTERVAL_MS[interval] / 20_000, 1.0), 10.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError("poll_interval_s must be a number above 0")
    return float(value)
