"""Stored trades against the exchange's own answer, as far back as REST reaches.

Consumes the lake and a REST client, produces how many trades were compared and which differ. Pages
are spread over the reach: all of it would cost hours of the weight budget. Without a network the
result says so, and nothing else is affected.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import numpy as np

from audit.certificate import REST_REACH_MS
from binance_api.errors import ExchangeError
from binance_api.rest import RestClient
from lake.columns import numpy_of
from lake.paths import LakePaths
from lake.sequence import Wanted, stored_pieces, woven

PAGE_ROWS: Final = 1_000
_DEADLINE_S: Final = 10.0
_COLUMNS: Final = (
    *("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id"),
    *("transact_time_ms", "is_buyer_maker"),
)


class RestCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of one symbol found.

    Attributes:
        compared: Trades of REST between the first and last stored id.
        missing: Those that are not stored.
        differing: Those stored with another price, size, time, side or fill.
        first_differing_id: The first of both.
        note: Why nothing, or not all, was compared; ``None`` if it was.
    """

    symbol: str
    compared: int = 0
    missing: int = 0
    differing: int = 0
    first_differing_id: int | None = None
    note: str | None = None


async def exchange_time_ms(rest: RestClient) -> int | None:
    """The exchange's time; ``None`` if it does not answer soon."""
    try:
        return (await rest.time(deadline_s=_DEADLINE_S)).value
    except ExchangeError:
        return None


async def compare_with_rest(
    rest: RestClient, paths: LakePaths, symbol: str, *, now_ms: int, pages: int
) -> RestCheck:
    """Compare pages of 1,000 trades, spread over what is stored of the last 48 h.

    Args:
        rest: Inside its context.
        paths: The tree.
        symbol: In upper case.
        now_ms: Exchange time.
        pages: At most so many requests (weight 20 each on futures).

    Raises:
        StorageError: The system refused to read a file.
    """
    ids = await asyncio.to_thread(_stored_ids, paths, symbol, now_ms - REST_REACH_MS)
    found = RestCheck(symbol=symbol)
    if not len(ids):
        return msgspec.structs.replace(found, note="nothing stored of the last 48 h")
    places = np.linspace(0, max(0, len(ids) - PAGE_ROWS), num=pages).astype(int)
    for first_id in np.unique(ids[places]).tolist():
        try:
            reply = await rest.agg_trades(symbol, from_id=first_id, deadline_s=_DEADLINE_S)
        except ExchangeError as error:
            return msgspec.structs.replace(found, note=f"REST stopped answering: {error}")
        page = reply.value[reply.value["agg_trade_id"] <= ids[-1]]
        if len(page):
            found = await asyncio.to_thread(_compared, found, paths, page)
    return found


def _stored_ids(paths: LakePaths, symbol: str, start_ms: int) -> np.ndarray:
    wanted = Wanted.of("trades", symbol, start_ms, None, ("agg_trade_id",))
    return numpy_of(woven(wanted, stored_pieces(paths, wanted)).column("agg_trade_id"))


def _compared(found: RestCheck, paths: LakePaths, page: np.ndarray) -> RestCheck:
    times_ms = page["transact_time_ms"]
    bounds = int(times_ms.min()), int(times_ms.max()) + 1
    wanted = Wanted.of("trades", found.symbol, *bounds, _COLUMNS)
    table = woven(wanted, stored_pieces(paths, wanted))
    stored = {name: numpy_of(table.column(name)) for name in _COLUMNS}
    ids, here = stored["agg_trade_id"], page["agg_trade_id"]
    is_stored = np.isin(here, ids)
    at = np.searchsorted(ids, here[is_stored])
    given = page[is_stored]
    differs = np.zeros(len(given), np.bool_)
    for name in _COLUMNS:
        theirs = given[name]
        if name in {"price", "quantity"}:
            theirs = theirs / 10.0 ** given[f"{name}_decimals"]
        differs |= theirs != stored[name][at]
    wrong = np.concatenate([here[~is_stored], given["agg_trade_id"][differs]])
    first = found.first_differing_id
    if first is None and len(wrong):
        first = int(wrong.min())
    return msgspec.structs.replace(
        found,
        compared=found.compared + len(page),
        missing=found.missing + int((~is_stored).sum()),
        differing=found.differing + int(differs.sum()),
        first_differing_id=first,
    )
