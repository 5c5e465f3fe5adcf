"""Past data of one ``CollectRequest``: fetched, checked for holes at both ends, and paged.

Consumes a request and ``History`` → produces marked columns. What comes before a listing's first
candle, after the last closed one and out of the exchange's reach is told apart from a hole.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import structlog

from binance_api.connector_frames import tick_columns
from binance_api.connector_history import History, first_open_ms
from binance_api.connector_quality import Checked, GapSettings, OutlierSettings, QualityCheck
from binance_api.connector_request import CollectRequest
from domain.intervals import open_time_ms

log = structlog.get_logger()

_NEWEST_BARS: Final = 500
_NEWEST_TRADES: Final = 1_000


async def past(
    history: History, request: CollectRequest, gaps: GapSettings, outliers: OutlierSettings
) -> Checked:
    """The rows asked for, with their marks.

    Raises:
        ExchangeError: The exchange refused for good, or was not reached.
    """
    now_ms = await history.now_ms()
    if request.interval is None:
        checked = await _ticks(history, request, now_ms, gaps, outliers)
    else:
        checked = await _bars(history, request, request.interval, now_ms, gaps, outliers)
    stop = None if request.limit is None else request.offset + request.limit
    return _part(checked, request.offset, stop)


async def _bars(
    history: History,
    request: CollectRequest,
    interval: str,
    now_ms: int,
    gaps: GapSettings,
    outliers: OutlierSettings,
) -> Checked:
    symbol, end_ms = request.symbol, now_ms if request.end_ms is None else request.end_ms
    expected: int | None = None
    if request.start_ms is None:
        count = request.limit or _NEWEST_BARS
        columns = await history.newest_bars(symbol, interval, end_ms, now_ms, count)
    elif request.limit is not None:
        count = request.offset + request.limit
        start_ms = request.start_ms
        columns = await history.bars_from(symbol, interval, start_ms, end_ms, now_ms, count)
    else:
        columns = await history.bars_between(symbol, interval, request.start_ms, end_ms, now_ms)
    opens = columns["open_time_ms"]
    if request.start_ms is not None:
        expected = first_open_ms(request.start_ms, interval)
        if not len(opens) or int(opens[0]) > expected:  # a hole, or not listed yet
            first_ms = await history.first_bar_ms(symbol, interval)
            expected = None if first_ms is None else max(expected, first_ms)
    check = QualityCheck(interval, gaps, outliers, expected=expected)
    checked = check.check(columns)
    if request.limit is not None and len(opens) >= request.limit + request.offset:
        return checked
    stop_ms = min(first_open_ms(end_ms, interval), open_time_ms(now_ms, interval))
    return check.ended(checked, stop_ms)


async def _ticks(
    history: History,
    request: CollectRequest,
    now_ms: int,
    gaps: GapSettings,
    outliers: OutlierSettings,
) -> Checked:
    check = QualityCheck(None, gaps, outliers)
    if request.start_ms is None:
        count = request.limit or _NEWEST_TRADES
        rows = await history.newest_trades(request.symbol, request.end_ms, count)
        return check.check(tick_columns(rows))
    count_or_all = None if request.limit is None else request.offset + request.limit
    begin_ms = max(request.start_ms, history.reach_ms(now_ms))
    end_ms = now_ms + 1 if request.end_ms is None else min(request.end_ms, now_ms + 1)
    rows = await history.trades_between(request.symbol, begin_ms, end_ms, count_or_all)
    checked = check.check(tick_columns(rows))
    if begin_ms > request.start_ms:
        log.warning(
            "connector.out_of_reach",
            symbol=request.symbol,
            reason="the exchange gives trades of the last 48 h only",
            missing_until=f"{np.datetime64(min(begin_ms, end_ms), 'ms')}Z",
        )
        checked.columns["gap"][:1] = True
    return checked


def _part(checked: Checked, start: int, stop: int | None) -> Checked:
    """Some of the rows; the holes are those of the whole range."""
    if not start and stop is None:
        return checked
    columns = {name: values[start:stop] for name, values in checked.columns.items()}
    return msgspec.structs.replace(checked, columns=columns)
