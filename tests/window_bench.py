"""A validator and a window builder together, and what they emitted, for the tests of the windows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from data_validator import DataValidator
from domain.flow import Origin, WindowBatch
from market_orchestrator.windows import Closed, WindowBuilder, WindowSettings
from tests.trade_frames import SECOND_NS, START_MS, Print, rows_of

D = 5_000  # ms, a window


class Window(NamedTuple):
    """One emission of a window."""

    start_ms: int
    complete: bool
    missing: int | None
    ids: tuple[int, ...]
    origin: Origin = Origin.LIVE


def windows_of(batch: WindowBatch) -> dict[int, Window]:
    """Symbol index → window of one batch."""
    return {
        index: Window(
            batch.start_ms,
            batch.complete[i],
            batch.missing_trades[i],
            tuple(batch.rows["agg_trade_id"][batch.offsets[i] : batch.offsets[i + 1]].tolist()),
            batch.origin,
        )
        for i, index in enumerate(batch.symbol_index)
    }


class WindowBench:
    """Feeds trades in, keeps every emission; time only moves when told to."""

    def __init__(self, symbols: int = 1, *, repairable: bool = True, **settings: Any) -> None:
        self.validator = DataValidator([f"S{i}USDT" for i in range(symbols)])
        self.sequences = self.validator.sequences
        self.builder = WindowBuilder(
            self.sequences, WindowSettings(**settings), repairable=repairable
        )
        self.now_ns = 1_000 * SECOND_NS
        self.emitted: list[tuple[int, Window]] = []
        self.suspects = np.empty(0, dtype=np.uint8)  # of the trades of all emissions
        self.stale: set[tuple[int, int]] = set()

    def feed(self, prints: Iterable[Print], *, delay_ms: int = 100, is_rest: bool = False) -> None:
        """Trades over the socket, or from REST; closes what is then proven."""
        rows = rows_of(prints, delay_ms=delay_ms, is_rest=is_rest)
        checked = self.validator.check_trades(rows, self.now_ns, authoritative=is_rest)
        self.stale.update(self.builder.ingest(checked, live=not is_rest))
        self.close()

    def start(self, symbols: Iterable[int] = (0,), *, first_ms: int = START_MS) -> None:
        """Begin at a window's start with nothing missing before it."""
        self.builder.begin(first_ms)
        for index in symbols:
            self.sequences[index].resume(0, first_ms - 1)
            self.builder.insert_head(index, rows_of([]), proven=True)

    def close(self, after_s: float = 0.0) -> list[tuple[int, Window]]:
        """Emissions of a look at the windows ``after_s`` later."""
        self.now_ns += int(after_s * SECOND_NS)
        return self.take(self.builder.close(self.now_ns))

    def close_unproven(self, clock_ms: float, after_s: float = 0.0) -> list[tuple[int, Window]]:
        """Emissions of what the clock has passed without proof."""
        self.now_ns += int(after_s * SECOND_NS)
        return self.take(self.builder.close_unproven(self.now_ns, clock_ms))

    def take(self, closed: Closed) -> list[tuple[int, Window]]:
        fresh = [pair for batch in closed.batches for pair in windows_of(batch).items()]
        self.emitted += fresh
        flags = [batch.rows["suspect"] for batch in closed.batches]
        self.suspects = np.concatenate([self.suspects, *flags])
        self.stale.update(closed.stale)
        return fresh

    def windows(self, index: int = 0) -> list[Window]:
        """All emissions of a symbol, in order."""
        return [window for at, window in self.emitted if at == index]

    def latest(self, index: int = 0) -> dict[int, Window]:
        """Window start → its highest revision."""
        return {window.start_ms: window for window in self.windows(index)}
