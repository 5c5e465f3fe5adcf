"""Writes repaired trades and says so in the ledger, in this order.

Consumes rows and what they settle, produces one file per batch and date; the ledger changes only when
the file is durable. A crash in between leaves rows whose holes are open: the next start finds them
stored (``lake.repaired_rows.stored_trades``) and settles without writing twice. What came over a socket
meanwhile is left out (``TradeClaims``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np
import structlog

from collectors.trade_claims import SymbolSpan, TradeClaims
from domain.events import GapState
from lake.atomic import StepHook, no_hook
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.repaired_rows import Span, TradeTable, runs_of
from lake.stream_files import trade_table, write_stream_file

log = structlog.get_logger()

_REPAIRABLE = (GapState.OPEN, GapState.EXPIRED)


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a range: ids, or times in ms with ``is_time`` (both ends inclusive)."""

    symbol: str
    span: Span
    state: GapState
    by: str | None = None
    is_time: bool = False
    times_ms: tuple[int, int] | None = None
    repairable_until_ms: int | None = None


class RepairWriter:
    """The one writer of repaired rows; one call at a time. All calls block.

    Args:
        paths: The tree.
        ledger: The recorder's.
        claims: The recorder's, of the same ledger.
        wall_ns: Wall clock, ns since the epoch.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        paths: LakePaths,
        ledger: GapLedger,
        claims: TradeClaims,
        wall_ns: Callable[[], int],
        *,
        hook: StepHook = no_hook,
    ) -> None:
        self._paths = paths
        self._ledger = ledger
        self._claims = claims
        self._wall_ns = wall_ns
        self._hook = hook
        self._counts: Counter[str] = Counter()

    def write(self, table: TradeTable | None, settled: Iterable[Settlement]) -> None:
        """Write rows that are missing still durably, then settle.

        Args:
            table: Rows in ``TRADE_SCHEMA``, each once; ``None`` if there are none.
            settled: What they settle, and what is settled without rows.

        Raises:
            StorageError: The disk refused; of rows of several dates some may be stored.
        """
        claimed: list[SymbolSpan] = []
        if table is not None and table.num_rows:
            table, claimed = self._claims.claim(table)
            if table.num_rows:
                write_stream_file(self._paths, "trades", table, metadata={}, hook=self._hook)
                self._counts["rows"] += table.num_rows
                self._counts["files"] += 1
        for one in settled:
            self._settle(one)
        self._claims.release(claimed)  # kept where the disk refused: some rows may be stored
        self._ledger.flush()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Rows and batches written, ids by what became of them."""
        return dict(self._counts)

    def _settle(self, one: Settlement) -> None:
        first, last = one.span
        changed = self._ledger.resolve(
            "trades",
            one.symbol,
            first,
            last + 1 if one.is_time else last,
            one.state,
            at_ns=self._wall_ns(),
            by=one.by,
            is_time=one.is_time,
            of=tuple(state for state in _REPAIRABLE if state is not one.state),
            repairable_until_ms=one.repairable_until_ms,
            times_ms=one.times_ms,
        )
        if not changed:
            return
        count = 0 if one.is_time else last - first + 1
        self._counts[f"{one.by or one.state.value}_ids"] += count
        emit = log.error if one.state is GapState.LOST else log.info
        emit(
            f"repair.{one.state.value}",
            symbol=one.symbol,
            first=first,
            last=last,
            is_time=one.is_time,
            by=one.by,
        )


class RestBatch:
    """Rows from REST of any symbols and what they settle, gathered into one file."""

    def __init__(self) -> None:
        self._symbols: list[str] = []
        self._rows: list[np.ndarray] = []
        self._settled: list[Settlement] = []
        self.row_count = 0

    def __bool__(self) -> bool:
        return bool(self._rows or self._settled)

    def add(self, symbol: str, rows: np.ndarray, settled: Sequence[Settlement]) -> None:
        """Take rows (``TRADE_DTYPE``) of one symbol with what they settle."""
        self._settled += settled
        if len(rows):
            if symbol not in self._symbols:
                self._symbols.append(symbol)
            rows = rows.copy()
            rows["symbol_index"] = self._symbols.index(symbol)
            self._rows.append(rows)
            self.row_count += len(rows)

    def write(self, writer: RepairWriter) -> None:
        """Write all of it. Blocks.

        Raises:
            StorageError: As ``RepairWriter.write``.
        """
        rows = np.concatenate(self._rows) if self._rows else None
        table = None if rows is None else trade_table(rows, self._symbols, "rest")
        writer.write(table, _joined(self._settled))


def _joined(settled: Iterable[Settlement]) -> list[Settlement]:
    """In order, the pages of one hole as one."""
    joined: list[Settlement] = []
    for one in sorted(settled, key=lambda one: (one.symbol, one.is_time, one.span)):
        last = joined[-1] if joined else None
        if last is not None and _continues(last, one) and last.times_ms and one.times_ms:
            span, times_ms = (last.span[0], one.span[1]), (last.times_ms[0], one.times_ms[1])
            joined[-1] = msgspec.structs.replace(last, span=span, times_ms=times_ms)
        else:
            joined.append(one)
    return joined


def _continues(last: Settlement, one: Settlement) -> bool:
    return (last.symbol, last.state, last.by, last.is_time, last.span[1] + 1) == (
        *(one.symbol, GapState.REPAIRED, one.by, one.is_time, one.span[0]),
    )


def found_runs(symbol: str, ids: np.ndarray, times_ms: np.ndarray, by: str) -> list[Settlement]:
    """Repaired: these ids (ascending, each once), with their exchange times."""
    settled = []
    for first, last in runs_of(ids):
        low, high = (int(times_ms[np.searchsorted(ids, number)]) for number in (first, last))
        settled.append(
            Settlement(
                symbol=symbol,
                span=(first, last),
                state=GapState.REPAIRED,
                by=by,
                times_ms=(low, high),
            )
        )
    return settled
