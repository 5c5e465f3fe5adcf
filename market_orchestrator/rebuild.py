"""A span of windows rebuilt from the exchange's trade history (REST), page by page.

One mechanism for late repairs, restarts and crashes: the history runs through the same validator and
window builder as live trades. Consumes (symbol, span, id to begin at); produces window batches.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec
import numpy as np

from data_validator import DataValidator, MissingRange, TradeSequence
from domain.flow import Origin, WindowBatch
from domain.market import TRADE_DTYPE
from market_orchestrator.windows import WindowBuilder, WindowSettings
from microstructure.trade_flags import ValidatorSettings

PAGE = 1_000  # rows of one aggTrades request, the exchange's maximum
_MAX_HEAD_PAGES = 60  # a window of more than 60,000 trades before the first one is not completed
_LAG_REPLIES = 6  # replies that end before a known trade, until what lies between is lost
_LAG_WAIT_S = 0.5
_ASK_AGAIN = 2  # replies that must lack an id before it counts as lost


class TradePage(Protocol):
    """A reply whose ``value`` is an array of ``TRADE_DTYPE``."""

    @property
    def value(self) -> np.ndarray: ...
    @property
    def rejected_count(self) -> int: ...


class TradeHistory(Protocol):
    """The exchange's trade history; implemented by the REST client."""

    async def agg_trades(
        self,
        symbol: str,
        *,
        from_id: int | None = None,
        start_ms: int | None = None,
        limit: int = 1_000,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> TradePage: ...


class Span(msgspec.Struct, frozen=True):
    """Windows ``[first_start_ms, end_ms)`` of a symbol, whose trades begin at ``from_id``.

    ``from_known``: the trade ``from_id - 1`` is known to lie before the span, so that nothing can
    be missing at its beginning. ``until_id``: a trade known to follow the span, which the history
    must reach before silence in it counts; None if none is known.
    """

    symbol: str
    first_start_ms: int
    end_ms: int
    from_id: int
    from_known: bool
    until_id: int | None = None


class Head(msgspec.Struct, frozen=True):
    """Trades from a window's start up to a known trade; ``proven`` if none can be missing."""

    rows: np.ndarray
    proven: bool


async def fetch_head(
    history: TradeHistory, symbol: str, first_id: int, start_ms: int, *, urgent: bool
) -> Head:
    """Trades before ``first_id`` back to ``start_ms``, without a hole up to ``first_id``.

    Proven when a trade before ``start_ms`` was seen; not when the history ends or lacks one earlier.
    """
    pages: list[np.ndarray] = []
    below = first_id
    for _ in range(_MAX_HEAD_PAGES):
        if below <= 0:
            return Head(_joined(pages), proven=True)
        from_id = max(0, below - PAGE)
        reply = await history.agg_trades(symbol, from_id=from_id, limit=PAGE, urgent=urgent)
        rows = _below(reply.value, below)
        if not len(rows):
            return Head(_joined(pages), proven=False)
        pages.append(rows)
        if int(rows["transact_time_ms"].min()) < start_ms:
            return Head(_joined(pages), proven=True)
        if int(rows["agg_trade_id"][0]) > from_id:
            return Head(_joined(pages), proven=False)
        below = from_id
    return Head(_joined(pages), proven=False)


def _below(rows: np.ndarray, below: int) -> np.ndarray:
    """The rows (by id) that end right before an id, back to the first hole."""
    rows = rows[rows["agg_trade_id"] < below]
    wanted = np.arange(below - len(rows), below)
    holes = np.flatnonzero(rows["agg_trade_id"] != wanted)
    return rows[holes[-1] + 1 :] if len(holes) else rows


async def rebuild(
    history: TradeHistory,
    span: Span,
    windows: WindowSettings,
    validator: ValidatorSettings,
    on_lost: Callable[[MissingRange], None] = lambda _: None,
    on_early: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[list[WindowBatch]]:
    """Rebuild a span; yields its windows in order, a page of trades at a time.

    ``on_lost`` is told of ids the history does not have, before the windows they touch are yielded;
    ``on_early`` of the start of a window before the span that one of its trades belongs to (that
    window was closed without it).

    Raises:
        ExchangeError: a request failed for good; what was yielded stands, the rest can be resumed.
    """
    checker = DataValidator([span.symbol], validator)
    builder = WindowBuilder(
        checker.sequences, msgspec.structs.replace(windows, hold_ms=0, silence_ms=2**40)
    )
    builder.begin(span.first_start_ms)
    head = Head(_none(), proven=True)
    if not span.from_known:
        head = await fetch_head(
            history, span.symbol, span.from_id, span.first_start_ms, urgent=False
        )
    sequence = checker.sequences[0]
    sequence.resume(span.from_id - 1, span.first_start_ms - 1)
    patience = _LAG_REPLIES
    told = 0
    for page in itertools.count(1):
        from_id = (sequence.max_id or 0) + 1
        reply = await history.agg_trades(span.symbol, from_id=from_id, limit=PAGE)
        rows = reply.value[reply.value["agg_trade_id"] >= from_id]
        if len(rows):
            builder.ingest(checker.check_trades(rows, 0, authoritative=True), live=False)
            await _confirm_lost(history, span.symbol, checker, builder)
            times = rows["transact_time_ms"]
            for time_ms in times[times < span.first_start_ms].tolist():
                on_early(time_ms - time_ms % windows.duration_ms)
        is_last = len(reply.value) + reply.rejected_count < PAGE
        lags = is_last and (sequence.max_id or 0) + 1 < (span.until_id or 0)
        if lags and patience:
            patience -= 1
            await asyncio.sleep(_LAG_WAIT_S)
            continue
        if builder.heads():
            _insert_head(builder, head, rows, span)
        if lags or not (is_last or len(rows)):  # the latter: a page that nobody can read
            _lose_tail(sequence, span)
            is_last = True
        for gap in sequence.missing[told:]:
            on_lost(gap)
        told = len(sequence.missing)
        until_ms = span.end_ms + windows.lateness_ms
        done = is_last or int(rows["transact_time_ms"].max()) >= until_ms
        if done:
            builder.prove(until_ms)
        batches = [
            msgspec.structs.replace(batch, origin=Origin.RECOVERED)
            for batch in builder.close(page * 1_000_000_000).batches
            if batch.end_ms <= span.end_ms
        ]
        if batches:
            yield batches
        if done:
            return


def _insert_head(builder: WindowBuilder, head: Head, rows: np.ndarray, span: Span) -> None:
    """Give the builder what lies before ``from_id``; ``rows`` is the first page from there on."""
    known = head.rows if len(head.rows) else rows
    earliest_ms = int(known["transact_time_ms"][0]) if len(known) else span.end_ms
    builder.insert_head(0, head.rows, proven=head.proven, until_ms=earliest_ms)


def _lose_tail(sequence: TradeSequence, span: Span) -> None:
    """The history ends before a trade known to exist: what lies between is missing."""
    first_id = (sequence.max_id or 0) + 1
    last_id = max(first_id, (span.until_id or 0) - 1)
    sequence.missing.append(
        MissingRange(first_id, last_id, sequence.last_ms, span.end_ms, 0, lost=True)
    )


async def _confirm_lost(
    history: TradeHistory, symbol: str, checker: DataValidator, builder: WindowBuilder
) -> None:
    """Ids absent from a page are asked for once more; absent again, they are lost."""
    for gap in [g for g in checker.sequences[0].missing if not g.lost]:
        for _ in range(_ASK_AGAIN - 1):
            limit = min(PAGE, gap.count + 1)
            reply = await history.agg_trades(symbol, from_id=gap.first_id, limit=limit)
            found = reply.value[reply.value["agg_trade_id"] <= gap.last_id]
            if len(found):
                builder.ingest(checker.check_trades(found, 0, authoritative=True), live=False)
        checker.sequences[0].mark_lost(gap.first_id, gap.last_id)
        builder.touch(0)


def _joined(pages: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pages[::-1]) if pages else _none()


def _none() -> np.ndarray:
    return np.empty(0, dtype=TRADE_DTYPE)
