"""Prices of past bars, for signals whose horizon the feature store does not cover.

Consumes ingested klines of the finest interval there is, produces the same columns as ``prices``:
a bar is a window, its close the price; spreads are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from domain.intervals import INTERVAL_MS
from evaluation.prices import SymbolPrices
from lake.kline_files import TIME_COLUMN, Columns, raw_dates, read_raw
from lake.part_files import date_start_ms
from lake.paths import DAY_MS, LakePaths

FINE_INTERVALS: Final = ("1m", "3m", "5m", "15m", "30m", "1h")


class KlinePrices:
    """Reads the bars of a data folder.

    Args:
        paths: The data folder.
    """

    def __init__(self, paths: LakePaths) -> None:
        self._paths = paths
        found = ((name, raw_dates(paths, name)) for name in FINE_INTERVALS)
        self._interval, self._dates = next(
            ((n, d) for n, d in found if d), (FINE_INTERVALS[-1], {})
        )

    @property
    def window_ms(self) -> int:
        """Length of a bar."""
        return INTERVAL_MS[self._interval]

    def last_start_ms(self, symbols: Iterable[str]) -> dict[str, int]:
        """Open time of the last stored bar of each symbol; those without any are absent."""
        found = {}
        for symbol in symbols:
            for date in reversed(self._dates.get(symbol, [])):
                start_ms = date_start_ms(date)
                bars, _ = read_raw(self._paths, symbol, self._interval, start_ms, start_ms + DAY_MS)
                if len(bars[TIME_COLUMN]):
                    found[symbol] = int(bars[TIME_COLUMN][-1])
                    break
        return found

    def between(self, symbols: Iterable[str], from_ms: int, to_ms: int) -> dict[str, SymbolPrices]:
        """Bars of the days from ``from_ms`` to ``to_ms`` (both included), whole days."""
        first_ms = from_ms - from_ms % DAY_MS
        until_ms = to_ms - to_ms % DAY_MS + DAY_MS
        prices = {}
        for symbol, last_ms in self.last_start_ms(symbols).items():
            bars, _ = read_raw(self._paths, symbol, self._interval, first_ms, until_ms)
            prices[symbol] = self._on_grid(bars, first_ms, until_ms, last_ms)
        return prices

    def _on_grid(self, bars: Columns, first_ms: int, until_ms: int, last_ms: int) -> SymbolPrices:
        count = (until_ms - first_ms) // self.window_ms
        place = (bars[TIME_COLUMN] - first_ms) // self.window_ms
        columns = {
            "close": bars["close"],
            "delta": 2.0 * bars["taker_buy_volume"] - bars["volume"],
        }
        grids = {name: np.full(count, np.nan) for name in ("mid_price", "spread_bps", *columns)}
        for name, values in columns.items():
            grids[name][place] = values
        holes = np.isnan(grids["close"])
        return SymbolPrices(
            first_ms=first_ms,
            window_ms=self.window_ms,
            last_start_ms=last_ms,
            hole_count=np.concatenate([[0], np.cumsum(holes)]),
            **grids,
        )
