"""One pass of repairs without a recorder: what was missing, what came back, what is left.

Consumes the recorder's ledger, the exchange and the archive, produces a ``RepairReport``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec

from binance_api.rest import RestClient
from collectors.repair import RecorderRepair, RepairSettings
from collectors.repair_archive import PublicArchive
from collectors.repair_plan import Turn, turn_of
from collectors.stored_holes import enter_stored_holes, recorded_before
from domain.events import GapState
from domain.market import Market
from lake.gap_ledger import Gap, GapLedger
from lake.part_files import date_of
from lake.paths import LakePaths

_SOURCES = ("rest", "archive", "stream")


class SymbolReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one symbol's missing trades, in ids.

    Attributes:
        symbol: Whose.
        missing: Of known extent at the beginning.
        repaired: By source: "rest", "archive", "stream" (found stored).
        waiting: May be repaired later.
        waiting_holes: Entries that may be, those of unknown extent included.
        until_ms: Exchange time until which; of the one that ends first.
        permanent: Nobody has them.
    """

    symbol: str
    missing: int
    repaired: dict[str, int]
    waiting: int
    waiting_holes: int
    until_ms: int | None
    permanent: int


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """A pass.

    Attributes:
        symbols: Those that lacked something when it began, by name.
        permanent_depth_holes: Holes in recorded books: nobody keeps old books.
        failed_requests: To REST and the archive, after all retries.
    """

    symbols: tuple[SymbolReport, ...]
    permanent_depth_holes: int
    failed_requests: int

    @property
    def waiting_holes(self) -> int:
        """Holes that a later pass may repair."""
        return sum(symbol.waiting_holes for symbol in self.symbols)

    @property
    def exit_code(self) -> int:
        """0: nothing is left to do; 4: holes are left that may be repaired later."""
        return 4 if self.waiting_holes else 0

    def text(self) -> str:
        """The table for people; symbols that lack and lacked nothing are not in it."""
        if not self.symbols:
            lines = ["No trades are missing."]
        else:
            lines = [_HEADER, *(_line(symbol) for symbol in self.symbols)]
        if self.permanent_depth_holes:
            lines.append(f"Permanent holes in depth: {self.permanent_depth_holes:,}; see audit.")
        if self.failed_requests:
            lines.append(f"Failed requests: {self.failed_requests:,}; the log says why.")
        if self.waiting_holes:
            lines.append(
                f"Holes that may be repaired later: {self.waiting_holes:,}; run repair again, or the "
                "recorder, which does so by itself."
            )
        return "\n".join(lines)


_HEADER = (
    f"{'symbol':<14}{'missing':>13}{'from REST':>13}{'archive':>13}{'stored':>10}"
    f"{'waiting':>13}  {'until':<16}{'permanent':>11}"
)


def _line(symbol: SymbolReport) -> str:
    rest, archive, stored = (symbol.repaired[source] for source in _SOURCES)
    waiting = f"{symbol.waiting:,}" if symbol.waiting else f"{symbol.waiting_holes:,} holes"
    until = "-" if symbol.until_ms is None else f"{date_of(symbol.until_ms)}"
    return (
        f"{symbol.symbol:<14}{symbol.missing:>13,}{rest:>13,}{archive:>13,}{stored:>10,}"
        f"{waiting if symbol.waiting_holes else 0:>13}  {until:<16}{symbol.permanent:>11,}"
    )


async def repair_once(
    paths: LakePaths,
    ledger: GapLedger,
    rest: RestClient,
    archive: PublicArchive,
    *,
    market: Market,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    settings: RepairSettings | None = None,
) -> RepairReport:
    """Repair all that can be repaired now.

    Args:
        paths: The tree; the caller holds its "recorder" lock.
        ledger: Of role "recorder".
        rest: The exchange.
        archive: The public archive.
        market: Whose trades.
        on_progress: Called with the trades settled, and those missing at the beginning.
        settings: See ``RepairSettings``; holes need no time to settle here.

    Raises:
        ExchangeError: The exchange does not tell its time: without it nothing can be decided.
        StorageError: The disk refused.
    """
    server_ms = (await rest.time()).value
    started = time.monotonic()
    repair = RecorderRepair(
        paths,
        ledger,
        rest,
        archive,
        msgspec.structs.replace(settings or RepairSettings(), grace_s=0.0),
        market=market,
        market_ms=lambda: server_ms + int((time.monotonic() - started) * 1_000),
        wall_ns=time.time_ns,
        monotonic=time.monotonic,
    )
    recorded = await asyncio.to_thread(recorded_before, paths, ledger)
    repair.doubt(
        await asyncio.to_thread(enter_stored_holes, paths, ledger, recorded, at_ns=time.time_ns())
    )
    before = _count(_waiting(ledger))
    total = sum(before.values())
    repair.on_progress = lambda: on_progress(total - sum(_count(_waiting(ledger)).values()), total)
    counts_before = _repaired(ledger)
    await repair.work_off()
    counts = repair.statistics()
    failed = sum(int(counts[name] or 0) for name in ("rest_failures", "archive_failures"))
    depth_holes = ledger.unresolved("depth")
    return RepairReport(
        symbols=tuple(
            _report(ledger, symbol, before.get(symbol, 0), counts_before)
            for symbol in sorted({*before, *(gap.symbol for gap in ledger.unresolved("trades"))})
        ),
        permanent_depth_holes=sum(gap.state is GapState.LOST for gap in depth_holes),
        failed_requests=failed,
    )


def _waiting(ledger: GapLedger) -> list[Gap]:
    return [gap for gap in ledger.unresolved("trades") if turn_of(gap) is not Turn.NOBODY]


def _count(gaps: Iterable[Gap]) -> dict[str, int]:
    """Missing ids of known extent by symbol; symbols of unknown extents are there as well."""
    found: dict[str, int] = {}
    for gap in gaps:
        found[gap.symbol] = found.get(gap.symbol, 0) + (gap.missing_count or 0)
    return found


def _repaired(ledger: GapLedger) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for gap in ledger.all():
        if gap.kind == "trades" and gap.state is GapState.REPAIRED and gap.repaired_by:
            key = (gap.symbol, gap.repaired_by)
            found[key] = found.get(key, 0) + (gap.missing_count or 0)
    return found


def _report(
    ledger: GapLedger, symbol: str, missing: int, before: dict[tuple[str, str], int]
) -> SymbolReport:
    now = _repaired(ledger)
    waiting = [gap for gap in _waiting(ledger) if gap.symbol == symbol]
    lost = [
        gap
        for gap in ledger.unresolved("trades")
        if gap.symbol == symbol and gap.state is GapState.LOST
    ]
    return SymbolReport(
        symbol=symbol,
        missing=missing,
        repaired={by: now.get((symbol, by), 0) - before.get((symbol, by), 0) for by in _SOURCES},
        waiting=sum(gap.missing_count or 0 for gap in waiting),
        waiting_holes=len(waiting),
        until_ms=min(
            (g.repairable_until_ms for g in waiting if g.repairable_until_ms is not None),
            default=None,
        ),
        permanent=sum(gap.missing_count or 0 for gap in lost),
    )
