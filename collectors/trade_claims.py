"""Who stores a trade that was missing: the socket it came late over, or repair; never both.

Consumes late trades of the recorder (event loop) and what repair is about to write (its worker thread),
produces what each of them may store. The ledger says what is missing; between the moment repair decides
and the moment its file is durable, this does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from collectors.repair_plan import Turn, missing_of, turn_of
from domain.events import GapState
from lake.columns import mask_array, numpy_of
from lake.gap_ledger import GapLedger
from lake.repaired_rows import Missing, Span, TradeTable, runs_of
from lake.stream_files import symbol_codes

type SymbolSpan = tuple[str, Span]


class TradeClaims:
    """One per ledger of role "recorder"; safe to call from several threads, none of them waits.

    Args:
        ledger: The recorder's.
        wall_ns: Wall clock, ns since the epoch, for the ledger's time stamps.
    """

    def __init__(self, ledger: GapLedger, wall_ns: Callable[[], int]) -> None:
        self._ledger = ledger
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._claimed: list[SymbolSpan] = []  # written by repair, or about to be

    def take_late(self, symbol: str, ids: np.ndarray) -> np.ndarray:
        """Trades of a hole in the ledger came over a socket: bool[n], which of them to store.

        Not those that repair has written or is writing. The others count as repaired at once.
        """
        with self._lock:
            gaps = [gap for gap in self._ledger.unresolved("trades") if gap.symbol == symbol]
            spans = Missing(tuple(span for of, span in self._claimed if of == symbol))
            times = np.zeros_like(ids)
            is_missing = Missing(missing_of(gaps).ids).mask(ids, times)
            wanted: np.ndarray = is_missing & ~spans.mask(ids, times)
            self._fill(symbol, ids[wanted])
            return wanted

    def take_recovered(self, symbol: str, ids: np.ndarray) -> np.ndarray:
        """As ``take_late``, for frames of a journal: all are wanted, the writer knows what is stored."""
        with self._lock:
            self._fill(symbol, ids)
            return np.ones(len(ids), dtype=np.bool_)

    def _fill(self, symbol: str, ids: np.ndarray) -> None:
        for first, last in runs_of(np.sort(ids)):
            self._ledger.resolve(
                *("trades", symbol, first, last, GapState.REPAIRED),
                at_ns=self._wall_ns(),
                by="stream",
            )

    def claim(self, table: TradeTable) -> tuple[TradeTable, list[SymbolSpan]]:
        """Repair is about to write these rows: those that are missing still, and what to ``release``.

        Until then late trades of them are left to repair, which asks again where it fails.
        """
        with self._lock:
            codes, names = symbol_codes(table)
            ids, times_ms = (
                numpy_of(table.column(name)) for name in ("agg_trade_id", "transact_time_ms")
            )
            keep = np.zeros(len(ids), dtype=np.bool_)
            claimed: list[SymbolSpan] = []
            for place, name, missing in self._missing(codes, names):
                wanted = missing.mask(ids[place], times_ms[place])
                keep[place[wanted]] = True
                claimed += [(name, run) for run in runs_of(np.unique(ids[place[wanted]]))]
            self._claimed += claimed
            return table.filter(mask_array(keep)), claimed

    def _missing(
        self, codes: np.ndarray, names: Iterable[str]
    ) -> Iterator[tuple[np.ndarray, str, Missing]]:
        """The rows of each symbol, and what repair may give back of it."""
        gaps = [g for g in self._ledger.unresolved("trades") if turn_of(g) is not Turn.NOBODY]
        for code, name in enumerate(names):
            yield (
                np.flatnonzero(codes == code),
                name,
                missing_of(gap for gap in gaps if gap.symbol == name),
            )

    def release(self, claimed: Iterable[SymbolSpan]) -> None:
        """The ledger says what became of these."""
        with self._lock:
            for one in claimed:
                self._claimed.remove(one)

    def release_all(self) -> None:
        """Whatever a failed write left on disk is in the ledger now."""
        with self._lock:
            self._claimed.clear()
