"""Missing trades from the exchange's REST history, page by page.

Consumes a hole and the history, produces pages that say which ids they prove: what lies within them
and is not among their rows, the exchange does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec
import numpy as np

from domain.market import TRADE_DTYPE
from lake.gap_ledger import Gap
from lake.repaired_rows import Span, runs_of

PAGE: Final = 1_000
"""Rows of one aggTrades request, the exchange's maximum."""
_ASK_AGAIN_S: Final = 0.5
_HOUR_MS: Final = 3_600_000


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


class Page(msgspec.Struct, frozen=True):
    """Rows of a hole, ascending and unique, and the ids they prove (``None``: none).

    ``before_ms`` and ``after_ms`` are the times of the nearest trades around the proven ids that
    are known; ``None`` where there is none. ``is_end``: the hole's end was reached.
    """

    rows: np.ndarray
    proven: Span | None
    before_ms: int | None = None
    after_ms: int | None = None
    is_end: bool = False


class Piece(msgspec.Struct, frozen=True):
    """Consecutive ids that were found, or that the exchange does not have."""

    ids: Span
    is_found: bool
    times_ms: tuple[int, int] | None  # of first and last, or of the trades around what is absent


async def id_pages(
    history: TradeHistory, symbol: str, first_id: int, last_id: int | None
) -> AsyncIterator[Page]:
    """The trades ``first_id … last_id``, or all from ``first_id`` on.

    Raises:
        ExchangeError: A request failed for good; what was yielded stands.
    """
    before_ms = None
    while last_id is None or first_id <= last_id:
        # one more than is missing: proof that the exchange is past the hole
        limit = PAGE if last_id is None else min(PAGE, last_id - first_id + 2)
        rows, is_last = await _asked(history, symbol, first_id, limit)
        if not len(rows):
            return
        newest = int(rows["agg_trade_id"][-1])
        last = newest if last_id is None else min(newest, last_id)
        inside = rows[rows["agg_trade_id"] <= last]
        behind = rows[rows["agg_trade_id"] > last]
        after_ms = int(behind["transact_time_ms"][0]) if len(behind) else None
        is_end = is_last if last_id is None else newest >= last_id
        yield Page(inside, (first_id, last), before_ms, after_ms, is_end)
        if is_end or is_last:  # the latter: the history has not caught up with the stream yet
            return
        before_ms = int(rows["transact_time_ms"][-1])
        first_id = newest + 1


async def _asked(
    history: TradeHistory, symbol: str, first_id: int, limit: int
) -> tuple[np.ndarray, bool]:
    """A page in order, asked for again if ids are absent in it; and whether the history ends there."""
    rows, is_last = await _page(history, symbol, first_id, limit)
    if len(rows) and int(rows["agg_trade_id"][-1]) - first_id + 1 != len(rows):
        await asyncio.sleep(_ASK_AGAIN_S)  # perhaps an invalid row, or one server that lags
        again, is_last = await _page(history, symbol, first_id, limit)
        both = np.concatenate((rows, again))
        rows = both[np.unique(both["agg_trade_id"], return_index=True)[1]]
    return rows, is_last


async def _page(
    history: TradeHistory, symbol: str, first_id: int, limit: int
) -> tuple[np.ndarray, bool]:
    reply = await history.agg_trades(symbol, from_id=first_id, limit=limit)
    is_last = len(reply.value) + reply.rejected_count < limit
    rows = reply.value[reply.value["agg_trade_id"] >= first_id]
    return rows[np.unique(rows["agg_trade_id"], return_index=True)[1]], is_last


async def time_pages(
    history: TradeHistory, symbol: str, start_ms: int, end_ms: int
) -> AsyncIterator[Page]:
    """The trades with ``start_ms <= T < end_ms``, a time that is over; nothing is proven in ids.

    Raises:
        ExchangeError: As ``id_pages``.
    """
    rows, is_last = _none(), True
    for begin_ms in range(start_ms, end_ms, _HOUR_MS):  # a reply by time may end an hour later
        rows = (await history.agg_trades(symbol, start_ms=begin_ms, limit=PAGE)).value
        if len(rows):
            is_last = False
            break
    while True:
        times = rows["transact_time_ms"]
        is_end = is_last or bool((times >= end_ms).any())
        yield Page(rows[(times >= start_ms) & (times < end_ms)], None, is_end=is_end)
        if is_end or not len(rows):  # the latter: a page that nobody can read
            return
        rows, is_last = await _page(history, symbol, int(rows["agg_trade_id"].max()) + 1, PAGE)


def _none() -> np.ndarray:
    return np.empty(0, dtype=TRADE_DTYPE)


def pieces_of(page: Page, gap: Gap) -> list[Piece]:
    """The proven ids of a page in order, as found and absent pieces."""
    if page.proven is None:
        return []
    ids, times = page.rows["agg_trade_id"], page.rows["transact_time_ms"]
    next_id, last_id = page.proven
    before_ms = gap.from_ms if page.before_ms is None else page.before_ms
    after_ms = gap.until_ms if page.after_ms is None else page.after_ms
    pieces: list[Piece] = []
    for first, last in runs_of(ids):
        low, high = (int(times[np.searchsorted(ids, number)]) for number in (first, last))
        if next_id < first:
            pieces.append(_absent((next_id, first - 1), before_ms, low))
        pieces.append(Piece((first, last), is_found=True, times_ms=(low, high)))
        next_id, before_ms = last + 1, high
    if next_id <= last_id:
        pieces.append(_absent((next_id, last_id), before_ms, after_ms))
    return pieces


def _absent(ids: Span, before_ms: int | None, after_ms: int | None) -> Piece:
    known = None if before_ms is None or after_ms is None else (before_ms, after_ms)
    return Piece(ids, is_found=False, times_ms=known)
