"""Past candles given as tables, for klines of any length that take no time to make.

Consumes candles of one short interval (rows, or files in the archive's layout) → serves every longer
interval built from them. A candle is served when all its parts are there: a hole stays a hole, until
``add`` fills it.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from domain.errors import SourceError
from domain.intervals import INTERVAL_MS, next_open_ms, open_time_ms, open_times_ms
from simulator.candles import MINUTE_DTYPE, SPLIT, aggregated, rows_of
from simulator.frames import SymbolSpec

_FILE = re.compile(r"(?P<symbol>[A-Z0-9_]+)-(?P<interval>\w+)-\d{4}-\d{2}(-\d{2})?\.csv(\.gz)?")
_MOST_DECIMALS = 8


class CandleTable:
    """Candles of some symbols.

    Args:
        rows: Per symbol ``MINUTE_DTYPE`` rows in order of time, and the grid they are scaled to.
        interval: Of the rows.
    """

    def __init__(
        self, rows: Mapping[str, tuple[np.ndarray, SymbolSpec]], interval: str = "1m"
    ) -> None:
        self._rows = {symbol: table for symbol, (table, _) in rows.items()}
        self._specs = {symbol: spec for symbol, (_, spec) in rows.items()}
        self._interval = interval
        self._whole: dict[tuple[str, str], np.ndarray] = {}

    @classmethod
    def from_files(cls, files: Sequence[Path]) -> Self:
        """Candles of archive files, ``BTCUSDT-1m-2024-07.csv`` or ``….csv.gz``, of one interval.

        Raises:
            SourceError: A file cannot be read, or its name does not say what it holds.
        """
        parts: dict[str, list[np.ndarray]] = {}
        intervals = set()
        for path in files:
            match = _FILE.fullmatch(path.name)
            if match is None:
                raise SourceError(f"{path}: must be named like BTCUSDT-1m-2024-07.csv.gz")
            intervals.add(match["interval"])
            parts.setdefault(match["symbol"], []).append(_numbers(path))
        if len(intervals) != 1 or not intervals <= set(INTERVAL_MS):
            raise SourceError("klines: files of one interval are needed")
        tables = {}
        for symbol, pieces in parts.items():
            numbers = np.concatenate(pieces)
            numbers = numbers[np.argsort(numbers[:, 0], kind="stable")]
            spec = _spec(symbol, numbers)
            tables[symbol] = (scaled_rows(numbers, spec), spec)
        return cls(tables, intervals.pop())

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols that have a table."""
        return tuple(self._rows)

    @property
    def end_ms(self) -> int:
        """Close of the last candle of all."""
        return max(
            next_open_ms(int(rows["open_time_ms"][-1]), self._interval)
            for rows in self._rows.values()
        )

    def spec(self, symbol: str) -> SymbolSpec:
        """Grid of a symbol."""
        return self._specs[symbol]

    def rows(self, symbol: str) -> np.ndarray:
        """What is held of a symbol, MINUTE_DTYPE."""
        return self._rows[symbol]

    def add(self, symbol: str, rows: np.ndarray) -> None:
        """Fill holes; of equal times the new row counts."""
        both = np.concatenate([rows, self._rows[symbol]])
        _, first = np.unique(both["open_time_ms"], return_index=True)
        self._rows[symbol] = both[first]
        for key in [key for key in self._whole if key[0] == symbol]:
            del self._whole[key]

    def rest_rows(
        self,
        symbol: str,
        interval: str,
        limit: int,
        start_ms: int | None,
        end_ms: int | None,
        now_ms: int,
    ) -> list[str]:
        """The rows of a ``klines`` reply at a time: closed candles, and the open one so far."""
        found = self._candles(symbol, interval, now_ms)
        opens = found["open_time_ms"]
        begin = 0 if start_ms is None else int(np.searchsorted(opens, start_ms))
        end = int(np.searchsorted(opens, now_ms if end_ms is None else end_ms, side="right"))
        if start_ms is None:
            begin = max(begin, end - limit)
        return rows_of(found[begin : min(end, begin + limit)], self._specs[symbol], interval)

    def _candles(self, symbol: str, interval: str, now_ms: int) -> np.ndarray:
        key = (symbol, interval)
        if key not in self._whole:
            self._whole[key] = self._built(symbol, interval)
        whole = self._whole[key]
        open_ms = open_time_ms(now_ms, interval)
        closed = whole[: int(np.searchsorted(whole["open_time_ms"], open_ms))]
        rows = self._rows[symbol]
        begin = int(np.searchsorted(rows["open_time_ms"], open_ms))
        end = int(np.searchsorted(rows["open_time_ms"], open_time_ms(now_ms, self._interval)))
        so_far = aggregated(rows[begin:end], interval)
        return np.concatenate([closed, so_far]) if len(so_far) else closed

    def _built(self, symbol: str, interval: str) -> np.ndarray:
        """The candles of which every part is held."""
        rows = self._rows[symbol]
        if interval == self._interval:
            return rows
        if INTERVAL_MS[interval] < INTERVAL_MS[self._interval]:
            return rows[:0]
        buckets, place, counts = np.unique(
            open_times_ms(rows["open_time_ms"], interval), return_inverse=True, return_counts=True
        )
        part_ms = INTERVAL_MS[self._interval]
        needed = [(next_open_ms(int(at), interval) - int(at)) // part_ms for at in buckets]
        return aggregated(rows[(counts == needed)[place]], interval)


def scaled_rows(numbers: np.ndarray, spec: SymbolSpec) -> np.ndarray:
    """Rows of the archive's layout, float64[n, 11 or 12] → MINUTE_DTYPE[n]."""
    out = np.zeros(len(numbers), MINUTE_DTYPE)
    out["open_time_ms"], out["fills"] = numbers[:, 0], numbers[:, 8]
    for column, name in enumerate(("open", "high", "low", "close"), start=1):
        out[name] = np.rint(numbers[:, column] * 10**spec.price_decimals)
    out["volume"] = np.rint(numbers[:, 5] * 10**spec.quantity_decimals)
    out["taker_buy_volume"] = np.rint(numbers[:, 9] * 10**spec.quantity_decimals)
    for column, name in ((7, "quote"), (10, "taker_quote")):
        quote = np.rint(numbers[:, column] * 10.0 ** (spec.price_decimals + spec.quantity_decimals))
        out[f"{name}_high"], out[f"{name}_low"] = np.divmod(quote.astype(np.int64), SPLIT)
    return out


def _numbers(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        skipped = 0 if text[:1].isdigit() else 1
        return np.loadtxt(io.StringIO(text), delimiter=",", skiprows=skipped, ndmin=2)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path}: {error}") from error


def _spec(symbol: str, numbers: np.ndarray) -> SymbolSpec:
    return SymbolSpec(
        symbol=symbol,
        price_decimals=_decimals(numbers[:, 1:5]),
        tick_mantissa=1,
        quantity_decimals=_decimals(numbers[:, [5, 9]]),
        step_mantissa=1,
    )


def _decimals(values: np.ndarray) -> int:
    """The fewest decimals that all values have."""
    for decimals in range(_MOST_DECIMALS):
        if (np.rint(values * 10**decimals) / 10**decimals == values).all():
            return decimals
    return _MOST_DECIMALS
