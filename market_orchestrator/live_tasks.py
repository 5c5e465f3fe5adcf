"""Small tasks of a live run: analysing closed windows, warming the context.

Each is a plain coroutine over the parts it is given; the orchestrator owns them.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import structlog

from binance_api.errors import ExchangeError
from binance_api.rest import RestClient
from domain.features import FeatureRow
from domain.market import Kline
from feature_store import FeatureStore
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.outputs import Outputs
from market_orchestrator.storage import Storage

log = structlog.get_logger()

_SLICE_S = 0.004  # the loop is given back after this much analysis
_BACKLOG = 32  # closed batches waiting; beyond this analysis goes before new frames
_SETTLED_S = 60.0  # after warming: the SDKs of AI providers are loaded, too
_DAY_MS = 86_400_000
_KLINES_AT_ONCE = 1_000
_LOOK_BACK_MS = 3_600_000  # of stored windows
_WARM_RETRY_S = 5.0
_WARM_RETRY_CAP_S = 300.0


async def analyse_windows(flow: MarketFlow, outputs: Outputs, storage: Storage) -> None:
    """Take everything the flow has closed through analysis, in slices.

    The windows of a boundary first, then what analysts say of them, then what scores learn of them,
    then the last books of windows that will close soon, then revisions.
    """
    while _has_work(flow, outputs):
        if not flow.live:
            flow.close_more()
        if _has_windows_of_boundary(flow, outputs):
            await _give_way(flow)
            async with outputs.emitting:
                await _emit_batch(flow, outputs)
        elif outputs.unjudged_end_ms is not None:
            await _slice(flow, lambda: outputs.unjudged_end_ms is not None, outputs.judge)
        elif flow.pipeline.unlearnt:
            await _slice(flow, lambda: bool(flow.pipeline.unlearnt), flow.pipeline.learn_more)
        elif flow.books.unread:
            await _slice(flow, lambda: bool(flow.books.unread), flow.books.read_ahead)
        elif flow.revised:
            rebuilt: dict[str, dict[int, FeatureRow]] = {}
            for row in flow.rows_of(flow.revised.popleft()):
                rebuilt.setdefault(row.symbol, {})[row.window_start_ms] = row
            for symbol, rows in rebuilt.items():
                storage.submit(symbol, rows)
    storage.reject()


def _has_work(flow: MarketFlow, outputs: Outputs) -> bool:
    has_windows = flow.live or flow.builder.has_more or flow.revised
    return bool(
        has_windows
        or outputs.unjudged_end_ms is not None
        or flow.pipeline.unlearnt
        or flow.books.unread
    )


def _has_windows_of_boundary(flow: MarketFlow, outputs: Outputs) -> bool:
    """Whether windows wait that do not end after those the analysts have still to see."""
    judged_ms = outputs.unjudged_end_ms
    return bool(flow.live) and (judged_ms is None or flow.live[0].end_ms <= judged_ms)


async def _emit_batch(flow: MarketFlow, outputs: Outputs) -> None:
    windows = flow.analyse(flow.live.popleft())
    slice_ends = time.perf_counter() + _SLICE_S
    try:
        for closed in windows:
            outputs.emit(closed)
            if time.perf_counter() > slice_ends:
                await _give_way(flow)
                slice_ends = time.perf_counter() + _SLICE_S
    except asyncio.CancelledError:
        for closed in windows:  # a stop between two slices loses none
            outputs.emit(closed)
        raise


async def _slice(flow: MarketFlow, has_more: Callable[[], bool], work: Callable[[], None]) -> None:
    """As much of some work as fits."""
    await _give_way(flow)
    slice_ends = time.perf_counter() + _SLICE_S
    while has_more():
        work()
        if time.perf_counter() > slice_ends:
            return


async def _give_way(flow: MarketFlow) -> None:
    """Let frames in, unless windows pile up: what is received must be analysed, frames wait instead."""
    if len(flow.live) <= _BACKLOG:
        await asyncio.sleep(0)


async def warm_context(flow: MarketFlow, rest: RestClient, features: FeatureStore) -> None:
    """Give every symbol's context its past, beside the live run: stored windows, then minutes.

    Without the stored windows scores and rolling sums start empty, without yesterday's and today's
    klines levels and regimes are unknown for hours; what fails is tried again until it is there.
    """
    rows = {}
    for symbol in flow.symbols:
        rows[symbol] = await asyncio.to_thread(_recent_rows, features, symbol)
        flow.analyzer.warm(symbol, rows[symbol])
    waiting, wait_s = list(flow.symbols), _WARM_RETRY_S
    while waiting:
        failed = []
        for symbol in waiting:
            try:
                klines = await _klines_since_yesterday(rest, symbol)
            except ExchangeError as error:
                log.warning("context.not_warmed", symbol=symbol, error=str(error), retry_s=wait_s)
                failed.append(symbol)
                klines = []
            flow.pipeline.warm(symbol, klines, rows.pop(symbol, []))
        waiting = failed
        if waiting:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _WARM_RETRY_CAP_S)


async def spare_the_collector() -> None:
    """Hide what lives as long as the run from full collections, which would stop the loop for long.

    Measured: the SDKs of the AI providers 40 ms, the memories of 500 symbols 15 ms each time.
    Warming makes new memories, so it comes before.
    """
    await asyncio.sleep(_SETTLED_S)
    gc.freeze()


async def _klines_since_yesterday(rest: RestClient, symbol: str) -> list[Kline]:
    """Closed one-minute klines of the previous and the current UTC day."""
    server_ms = (await rest.time()).value
    start_ms = server_ms - server_ms % _DAY_MS - _DAY_MS
    klines: list[Kline] = []
    while start_ms < server_ms:
        reply = await rest.klines(symbol, "1m", start_ms=start_ms, limit=_KLINES_AT_ONCE)
        klines += [kline for kline in reply.value if kline.close_time_ms < server_ms]
        if len(reply.value) < _KLINES_AT_ONCE:
            break
        start_ms = reply.value[-1].open_time_ms + 60_000
    return klines


def _recent_rows(features: FeatureStore, symbol: str) -> list[FeatureRow]:
    last = features.last_row(symbol)
    return [] if last is None else features.scan_recent(symbol, last.window_end_ms - _LOOK_BACK_MS)
