"""Past trades given as tables, for an archive of any size that takes no time to make.

Consumes ``TRADE_DTYPE`` rows per symbol → answers what the archive asks of a market.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from domain.market import TRADE_DTYPE
from simulator.frames import EMPTY_TAPE, SymbolSpec, Tape


class TradeTable:
    """Trades of some symbols.

    Args:
        rows: Per symbol ``TRADE_DTYPE`` rows in order of id and of time, on one grid.
    """

    def __init__(self, rows: Mapping[str, np.ndarray]) -> None:
        self._rows = dict(rows)

    @classmethod
    def random(
        cls, seed: int, symbols: tuple[str, ...], start_ms: int, end_ms: int, *, per_day: float
    ) -> Self:
        """Random trades, the same for the same arguments; at least one symbol and one trade each."""
        return cls(
            {
                symbol: _random_rows(
                    np.random.default_rng([seed, place]), start_ms, end_ms, per_day
                )
                for place, symbol in enumerate(symbols)
            }
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols that have a table."""
        return tuple(self._rows)

    def spec(self, symbol: str) -> SymbolSpec:
        """Grid of a symbol: one tick and step is one unit of its decimals."""
        row = self._rows[symbol][0]
        return SymbolSpec(
            symbol=symbol,
            price_decimals=int(row["price_decimals"]),
            tick_mantissa=1,
            quantity_decimals=int(row["quantity_decimals"]),
            step_mantissa=1,
        )

    def between(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Trades with ``start_ms ≤ T < end_ms``."""
        rows = self._rows[symbol]
        begin, end = np.searchsorted(rows["transact_time_ms"], (start_ms, end_ms)).tolist()
        return _tape(rows[begin:end])

    def before(self, symbol: str, due_ns: int, limit: int) -> Tape:
        """The last ``limit`` trades up to a time."""
        rows = self._rows[symbol]
        end = int(np.searchsorted(rows["transact_time_ms"], due_ns // 1_000_000, side="right"))
        return _tape(rows[max(0, end - limit) : end])


def _tape(rows: np.ndarray) -> Tape:
    return Tape(rows, rows["transact_time_ms"] * 1_000_000) if len(rows) else EMPTY_TAPE


def _random_rows(
    source: np.random.Generator, start_ms: int, end_ms: int, per_day: float
) -> np.ndarray:
    count = max(1, round((end_ms - start_ms) / 86_400_000 * per_day))
    rows = np.zeros(count, TRADE_DTYPE)
    rows["agg_trade_id"] = 1_000_000 + np.arange(count)
    rows["transact_time_ms"] = np.sort(source.integers(start_ms, end_ms, count))
    rows["price_decimals"], rows["quantity_decimals"] = 2, 3
    rows["price"] = 6_000_000 + np.cumsum(source.integers(-40, 41, count)).clip(-5_000_000)
    rows["quantity"] = 1 + (1_000 * source.pareto(1.5, count)).astype(np.int64).clip(0, 10**9)
    fills = source.integers(1, 5, count)
    rows["last_trade_id"] = 5_000_000 + np.cumsum(fills)
    rows["first_trade_id"] = rows["last_trade_id"] - fills + 1
    rows["is_buyer_maker"] = source.random(count) < 0.5
    rows["event_time_ms"] = rows["receive_time_ns"] = rows["quantity_ex_rpi"] = -1
    return rows
