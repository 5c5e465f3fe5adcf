"""Prices of past windows on a grid, a few days in memory at a time.

Consumes the feature store, produces per symbol dense columns: window ``i`` starts at
``first_ms + i * window_ms``; what the store lacks is NaN and not ``sound``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec
import numpy as np

from feature_store import FeatureStore
from lake.columns import numpy_of
from lake.paths import DAY_MS

_VALUES: Final = ("mid_price", "close", "spread_bps", "delta")
_COLUMNS: Final = ("symbol", "window_start_ms", "complete", *_VALUES)


class SymbolPrices(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's windows of some days.

    Attributes:
        first_ms: start of window 0, UTC.
        window_ms: length of a window.
        last_start_ms: start of the last window of this symbol that the store has at all.
        mid_price: float64[n], of the last book of a window, quote units.
        close: float64[n], last trade of a window, quote units.
        spread_bps: float64[n], of the last book of a window.
        delta: float64[n], bought minus sold in a window, base units.
        hole_count: int64[n + 1], missing or incomplete windows before window i.
    """

    first_ms: int
    window_ms: int
    last_start_ms: int
    mid_price: np.ndarray
    close: np.ndarray
    spread_bps: np.ndarray
    delta: np.ndarray
    hole_count: np.ndarray

    def __len__(self) -> int:
        return len(self.close)

    def has_holes(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """bool[k]: a window of ``first[i]..last[i]`` (both included) is missing or incomplete."""
        outside = (first < 0) | (last >= len(self)) | (last < first)
        low, high = np.clip(first, 0, len(self)), np.clip(last + 1, 0, len(self))
        found: np.ndarray = outside | (self.hole_count[high] > self.hole_count[low])
        return found

    def move_bps(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """float64[k]: simple return between the ends of two windows, 1e-4; NaN where unknown.

        Quotes (mid) where both ends have one, else the last trades of both: never one of each,
        half a spread apart.
        """
        inside = (first >= 0) & (last >= 0) & (first < len(self)) & (last < len(self))
        low, high = np.where(inside, first, 0), np.where(inside, last, 0)
        if not len(self):
            return np.full(len(first), np.nan)
        quoted = self.mid_price[high] / self.mid_price[low]
        ratio = np.where(np.isnan(quoted), self.close[high] / self.close[low], quoted)
        moved: np.ndarray = np.where(inside, 1e4 * (ratio - 1.0), np.nan)
        return moved


class _Day(msgspec.Struct, frozen=True):
    """One symbol's windows of one day: 4 values by name, and which windows are sound."""

    values: dict[str, np.ndarray]
    sound: np.ndarray


class PriceDays:
    """Reads each day once, as long as days are asked for in order.

    Args:
        store: Where windows are.
        symbols: Which ones; ``None`` for all.
    """

    def __init__(self, store: FeatureStore, symbols: Collection[str] | None = None) -> None:
        self._store = store
        self._symbols = None if symbols is None else list(symbols)
        self._days: dict[int, dict[str, _Day]] = {}
        self._last_start_ms: dict[str, int] = {}
        self._asked: set[str] = set()
        self.window_ms: int | None = None  # None while the store is empty

    def last_start_ms(self, symbols: Iterable[str]) -> dict[str, int]:
        """Start of the last stored window of each symbol; those without any are absent."""
        new = set(symbols) - self._asked
        if new:
            self._asked |= new
            for symbol, row in self._store.last_rows(sorted(new)).items():
                self._last_start_ms[symbol] = row.window_start_ms
                self.window_ms = row.window_end_ms - row.window_start_ms
        return self._last_start_ms

    def between(self, symbols: Iterable[str], from_ms: int, to_ms: int) -> dict[str, SymbolPrices]:
        """Windows of the days from ``from_ms`` to ``to_ms`` (both included), whole days.

        Days before ``from_ms`` are forgotten.
        """
        names = list(symbols)
        last = self.last_start_ms(names)
        days = range(from_ms - from_ms % DAY_MS, to_ms + 1, DAY_MS)
        self._days = {day: held for day, held in self._days.items() if day >= days[0]}
        for day in days:
            if day not in self._days:
                self._days[day] = self._read(day)
        return {name: self._joined(name, days, last[name]) for name in names if name in last}

    def _read(self, day_ms: int) -> dict[str, _Day]:
        table = self._store.read(self._symbols, day_ms, day_ms + DAY_MS, _COLUMNS)
        if not table.num_rows or self.window_ms is None:
            return {}
        encoded = table.column("symbol").combine_chunks().dictionary_encode()
        bounds = np.searchsorted(numpy_of(encoded.indices), np.arange(len(encoded.dictionary) + 1))
        columns = {name: numpy_of(table.column(name)) for name in _COLUMNS[1:]}
        index = (columns["window_start_ms"] - day_ms) // self.window_ms
        found = {}
        for code, symbol in enumerate(encoded.dictionary.to_pylist()):
            rows = slice(bounds[code], bounds[code + 1])
            values = {name: self._on_grid(index[rows], columns[name][rows]) for name in _VALUES}
            sound = np.zeros(DAY_MS // self.window_ms, dtype=np.bool_)
            sound[index[rows]] = columns["complete"][rows]
            found[str(symbol)] = _Day(values, sound)
        return found

    def _on_grid(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        assert self.window_ms is not None  # noqa: S101 - checked by the caller
        grid = np.full(DAY_MS // self.window_ms, np.nan)
        grid[index] = values
        return grid

    def _joined(self, symbol: str, days: range, last_start_ms: int) -> SymbolPrices:
        assert self.window_ms is not None  # noqa: S101 - some window is stored
        count = DAY_MS // self.window_ms
        absent = _Day(dict.fromkeys(_VALUES, np.full(count, np.nan)), np.zeros(count, np.bool_))
        parts = [self._days[day].get(symbol, absent) for day in days]
        holes = ~np.concatenate([part.sound for part in parts])
        return SymbolPrices(
            first_ms=days[0],
            window_ms=self.window_ms,
            last_start_ms=last_start_ms,
            hole_count=np.concatenate([[0], np.cumsum(holes)]),
            **{name: np.concatenate([part.values[name] for part in parts]) for name in _VALUES},
        )
