"""``audit completeness``: trades and klines of some symbols, month by month.

Consumes a data folder, produces a ``CompletenessReport``; also ``python -m audit.check_completeness``.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from audit.certificate import Hole, Hour
from audit.completeness import SymbolAudit, audit_symbol, held_months
from audit.month_scan import MonthAudit
from audit.rest_check import RestCheck, compare_with_rest, exchange_time_ms
from audit.tables import certificate_text, months_table, remarks
from binance_api.rest import RestClient
from domain.errors import ConfigError
from lake.historical_files import month_bounds_ms
from lake.part_files import date_of
from lake.paths import LakePaths


class SymbolCompleteness(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found of one symbol; ``certificate`` counts in ``holes``, from 0."""

    symbol: str
    months: list[MonthAudit]
    rest: RestCheck | None
    holes: list[Hole]
    certificate: list[Hour]


class CompletenessReport(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of ``audit completeness``."""

    audit: str = "completeness"
    market_time_ms: int
    symbols: list[SymbolCompleteness]
    has_holes: bool
    schema_version: int = 1

    @property
    def unknown(self) -> list[str]:
        """Symbols of which nothing is stored and nothing is named as missing."""
        return [one.symbol for one in self.symbols if not one.months and not one.holes]

    def text(self) -> str:
        """Tables for a terminal."""
        months = [month for symbol in self.symbols for month in symbol.months]
        if not months:
            return "nothing is stored of these symbols"
        parts = [months_table(months)]
        checks = [symbol.rest for symbol in self.symbols if symbol.rest is not None]
        parts.append("\n".join(remarks(months, checks)))
        parts += [
            f"completeness certificate of {symbol.symbol}\n"
            + certificate_text(symbol.certificate, symbol.holes)
            for symbol in self.symbols
            if symbol.certificate
        ]
        return "\n\n".join(part for part in parts if part)


async def check_completeness(
    paths: LakePaths,
    symbols: Sequence[str],
    rest: RestClient,
    *,
    first_month: str | None = None,
    last_month: str | None = None,
    rest_pages: int = 5,
    on_progress: Callable[[str, str, float], None] = lambda _symbol, _month, _done: None,
) -> CompletenessReport:
    """Audit what is stored of some symbols.

    Args:
        paths: The tree.
        symbols: In upper case.
        rest: Inside its context; without an answer from it, nothing is compared with it.
        first_month: ``YYYY-MM``; ``None``: from the first stored one.
        last_month: Inclusive; ``None``: to the last stored one.
        rest_pages: Requests per symbol for the comparison with REST; 0: none.
        on_progress: Called with symbol, month and its share that is done (0-1).

    Raises:
        ConfigError: A month that is none.
        StorageError: The system refused to read a file.
    """
    stored = {symbol: held_months(paths, symbol) for symbol in symbols}
    chosen = {symbol: _chosen(stored[symbol], first_month, last_month) for symbol in symbols}
    now_ms = await exchange_time_ms(rest) if rest_pages else None
    found = []
    for symbol in symbols:
        audited = await _in_thread(
            functools.partial(
                audit_symbol,
                paths,
                symbol,
                chosen[symbol],
                now_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms,
            ),
            functools.partial(on_progress, symbol),
        )
        check = None
        if rest_pages and chosen[symbol]:
            check = RestCheck(symbol=symbol, note="REST did not answer")
            if now_ms is not None:
                check = await compare_with_rest(
                    rest, paths, symbol, now_ms=now_ms, pages=rest_pages
                )
        found.append(
            SymbolCompleteness(
                symbol=symbol,
                months=audited.months,
                rest=check,
                holes=audited.holes,
                certificate=audited.hours,
            )
        )
    return CompletenessReport(
        market_time_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms,
        symbols=found,
        has_holes=any(symbol.holes for symbol in found),
    )


class _Cancelled(Exception):
    """The task that waited for a thread is gone."""


async def _in_thread(
    work: Callable[..., SymbolAudit], on_progress: Callable[[str, float], None]
) -> SymbolAudit:
    """Run an audit in a thread that ends soon after this task is cancelled."""
    is_over = threading.Event()

    def progress(month: str, done: float) -> None:
        if is_over.is_set():
            raise _Cancelled
        on_progress(month, done)

    try:
        return await asyncio.to_thread(work, on_progress=progress)
    finally:
        is_over.set()


def _chosen(stored: list[str], first: str | None, last: str | None) -> list[str]:
    """The stored months from first to last, and those between that lack everything."""
    for name, month in (("--from", first), ("--to", last)):
        if month is not None:
            try:
                month_bounds_ms(month)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
    wanted = [m for m in stored if (first is None or m >= first) and (last is None or m <= last)]
    months: list[str] = []
    while wanted and (not months or months[-1] < wanted[-1]):
        months.append(date_of(month_bounds_ms(months[-1])[1])[:7] if months else wanted[0])
    return months


if __name__ == "__main__":
    from main import main

    sys.exit(main(["audit", "completeness", *sys.argv[1:]]))
