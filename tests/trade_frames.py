"""Trades as frames, as rows and as a history that can be asked, for the tests of the core."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from domain.market import NO_VALUE, TRADE_DTYPE

START_MS = 1_721_347_200_000  # 2024-07-19 00:00 UTC
SECOND_NS = 1_000_000_000


def agg_trade_frame(symbol: str = "BTCUSDT", stream: str | None = None, **changes: Any) -> bytes:
    """A combined aggTrade frame; ``changes`` replace wire keys, ``None`` takes one out."""
    data: dict[str, Any] = {
        "e": "aggTrade",
        "E": START_MS + 100,
        "a": 7,
        "s": symbol,
        "p": "64000.10",
        "q": "0.250",
        "f": 70,
        "l": 71,
        "T": START_MS,
        "m": True,
    }
    data |= changes
    data = {key: value for key, value in data.items() if value is not None}
    return json.dumps({"stream": stream or f"{symbol.lower()}@aggTrade", "data": data}).encode()


def depth_frame(symbol: str = "BTCUSDT", stream: str | None = None, **changes: Any) -> bytes:
    """A combined depth20 frame of the futures market."""
    data: dict[str, Any] = {
        "e": "depthUpdate",
        "E": START_MS + 3,
        "T": START_MS,
        "s": symbol,
        "U": 11,
        "u": 15,
        "pu": 10,
        "b": [["64000.00", "1.5"], ["63999.90", "2"]],
        "a": [["64000.10", "0.5"], ["64000.20", "3"]],
    }
    data |= changes
    data = {key: value for key, value in data.items() if value is not None}
    return json.dumps(
        {"stream": stream or f"{symbol.lower()}@depth20@100ms", "data": data}
    ).encode()


class Print(NamedTuple):
    """One aggTrade: what the core needs of it."""

    agg_trade_id: int
    time_ms: int
    price: int = 6_400_010  # two decimals
    quantity: int = 250  # three decimals
    is_sell: bool = False
    symbol_index: int = 0


def rows_of(
    prints: Iterable[Print], *, delay_ms: int = 100, clock_ms: int = 0, is_rest: bool = False
) -> np.ndarray:
    """``TRADE_DTYPE`` rows, sent ``delay_ms`` after the trade; the local clock is ahead by ``clock_ms``."""
    records = [
        (
            trade.symbol_index,
            trade.is_sell,
            2,
            3,
            0,
            trade.agg_trade_id,
            trade.price,
            trade.quantity,
            NO_VALUE,
            10 * trade.agg_trade_id,
            10 * trade.agg_trade_id + 1,
            trade.time_ms,
            NO_VALUE if is_rest else trade.time_ms + delay_ms,
            NO_VALUE if is_rest else (trade.time_ms + delay_ms + clock_ms) * 1_000_000,
        )
        for trade in prints
    ]
    return np.array(records, dtype=TRADE_DTYPE)


class ManualClock:
    """Monotonic and wall time that only move when told to."""

    def __init__(self, now_ns: int = 10 * SECOND_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


class Page(NamedTuple):
    """A reply of the fake history."""

    value: np.ndarray
    rejected_count: int = 0


class FakeHistory:
    """The exchange's trade history of any symbol, in memory.

    ``absent`` ids are never given, ``unreadable`` ones are in the reply but cannot be decoded; ids
    above ``visible_id`` are not there yet. ``before_reply`` runs at each request (and may raise);
    ``gate``, where set, is waited for before a reply.
    """

    def __init__(self, prints: Sequence[Print], *, first_id: int = 0) -> None:
        self.prints = sorted(prints)
        self.first_id = first_id  # what is older is out of reach
        self.visible_id: int | None = None
        self.absent: set[int] = set()
        self.unreadable: set[int] = set()
        self.requests: list[tuple[str, int | None, int]] = []
        self.before_reply: Callable[[], None] | None = None
        self.gate: asyncio.Event | None = None

    async def agg_trades(
        self,
        symbol: str,
        *,
        from_id: int | None = None,
        start_ms: int | None = None,
        limit: int = 1_000,
        urgent: bool = False,
        deadline_s: float | None = None,
    ) -> Page:
        self.requests.append((symbol, from_id, limit))
        if self.before_reply is not None:
            self.before_reply()
        if self.gate is not None:
            await self.gate.wait()
        known = [p for p in self.prints if self._is_known(p.agg_trade_id)]
        if start_ms is not None:
            page = [p for p in known if p.time_ms >= start_ms][:limit]
        elif from_id is None:
            page = known[-limit:]
        else:
            page = [p for p in known if p.agg_trade_id >= from_id][:limit]
        readable = [p for p in page if p.agg_trade_id not in self.unreadable]
        rows = rows_of((p._replace(symbol_index=0) for p in readable), is_rest=True)
        return Page(rows, len(page) - len(readable))

    def _is_known(self, agg_trade_id: int) -> bool:
        is_visible = self.visible_id is None or agg_trade_id <= self.visible_id
        return agg_trade_id >= self.first_id and is_visible and agg_trade_id not in self.absent
