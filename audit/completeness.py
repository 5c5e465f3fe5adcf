"""Are trades and klines of a symbol whole? Month by month, a few hours in memory at a time.

Consumes the files' rows as ``lake.sequence`` gives them and the gap ledger, produces a
``MonthAudit`` per month, the holes, and a certificate per hour.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from audit.certificate import HOUR_MS, Hole, Hour, Repair, certify, known_holes
from audit.minute_bars import MINUTE_MS
from audit.month_scan import MonthAudit, MonthRows, MonthScan
from audit.trade_holes import UNKNOWN_CAUSE, trade_holes
from domain.events import GapState
from lake.gap_ledger import read_gaps
from lake.historical_files import months_of
from lake.part_files import date_of
from lake.paths import DAY_MS, LakePaths
from lake.sequence import HISTORICAL
from lake.stream_files import stream_dates

FIRST_ID: Final = 1
"""A market whose ids begin no higher has no earlier trades."""
QUIET_MS: Final = HOUR_MS
"""No trade for so long before the first one known, or after the last, is taken for a hole."""
_MOST_DIFFERENCES: Final = 20


class SymbolAudit(msgspec.Struct, frozen=True, kw_only=True):
    """All months of one symbol, its holes, and the certificate."""

    symbol: str
    months: list[MonthAudit]
    holes: list[Hole]
    hours: list[Hour]


def held_months(paths: LakePaths, symbol: str) -> list[str]:
    """Months in which the lake may hold trades or klines of a symbol, oldest first."""
    months = {*months_of(paths, symbol, "aggTrades"), *months_of(paths, symbol, "klines")}
    return sorted(months | {date[:7] for date in stream_dates(paths, "trades")})


def audit_symbol(
    paths: LakePaths,
    symbol: str,
    months: list[str],
    *,
    now_ms: int,
    on_progress: Callable[[str, float], None] = lambda _month, _done: None,
) -> SymbolAudit:
    """Audit some months of one symbol, which should follow one another.

    Args:
        paths: The tree.
        symbol: In upper case.
        months: ``YYYY-MM``, oldest first.
        now_ms: Exchange time: nothing later is expected, and REST reaches 48 h back from it.
        on_progress: Called with the month and the share of it that is done (0-1).

    Raises:
        StorageError: The system refused to read a file.
    """
    ledger = [gap for gap in read_gaps(paths.gaps, "recorder") if gap.symbol == symbol]
    unresolved = [gap for gap in ledger if gap.state is not GapState.REPAIRED]
    scan = MonthScan(paths, symbol, now_ms)
    done = [scan.month(month, functools.partial(on_progress, month)) for month in months]
    bounds_ms = (done[0].start_ms, min(done[-1].end_ms, now_ms)) if done else (0, 0)
    holes = [
        _in_archive(hole, done) for hole in trade_holes(symbol, scan.ids, unresolved, bounds_ms)
    ]
    holes += _edge_holes(scan, done)
    _count_gaps(scan, done)
    for at_work in done:
        holes += _kline_holes(scan, at_work, is_first=at_work is done[0])
        _count_minutes(scan, at_work)
    holes = sorted(
        (part for hole in holes for part in known_holes(hole, unresolved, now_ms)),
        key=lambda hole: hole.from_ms,
    )
    hours: dict[int, dict[str, dict[str, int]]] = {}
    for at_work in done:
        hours |= _hours(scan, at_work, is_first=at_work is done[0])
    return SymbolAudit(
        symbol=symbol,
        months=[m.audit for m in done if m.audit.minutes or m.audit.trades],
        holes=holes,
        hours=certify(symbol, hours, enumerate(holes), ledger),
    )


def _in_archive(hole: Hole, months: list[MonthRows]) -> Hole:
    """What the archive's months say of a hole the ledger may not know."""
    touched = [m for m in months if m.start_ms <= hole.until_ms and m.end_ms > hole.from_ms]
    abouts = [m.trades_about for m in touched if m.trades_about is not None]
    if hole.cause != UNKNOWN_CAUSE or len(abouts) < len(touched):
        return hole
    doubtful = {day for about in abouts for day in about.doubtful_days}
    days = range(hole.from_ms - hole.from_ms % DAY_MS, hole.until_ms + 1, DAY_MS)
    is_lost = doubtful.isdisjoint(map(date_of, days))
    return msgspec.structs.replace(
        hole,
        cause="the archive lacks it for good" if is_lost else "not in the archive's month",
        repair=Repair.NOBODY if is_lost else Repair.ARCHIVE,
    )


def _count_gaps(scan: MonthScan, months: list[MonthRows]) -> None:
    for at_work in months:
        begun = [g for g in scan.ids.found() if at_work.start_ms <= g.from_ms < at_work.end_ms]
        at_work.audit.missing_ids = sum(gap.count for gap in begun)
        at_work.audit.missing_ranges = len(begun)


def _edge_holes(scan: MonthScan, months: list[MonthRows]) -> list[Hole]:
    """Before the first trade and after the last one no id tells; the official bars do, or the clock.

    What is silent there in truth is proven from here on: see ``MonthScan.proven_ms``.
    """
    ids, spans = scan.ids, scan.expected_ms
    if not spans:
        return []
    start_ms, end_ms = min(start for start, _ in spans), max(end for _, end in spans)
    if ids.first_id is None or ids.first_ms is None or ids.last_ms is None:
        edges = [(start_ms, end_ms)]
    else:
        edges = [(start_ms, ids.first_ms), (ids.last_ms, end_ms)]
        if ids.first_id <= FIRST_ID:
            edges[0] = (ids.first_ms, ids.first_ms)  # the market began with it
    holes = []
    for from_ms, until_ms in edges:
        if _unproven_silence_ms(months, from_ms, until_ms) <= QUIET_MS:
            scan.prove(from_ms, until_ms)
            continue
        hole = Hole(
            kind="trades",
            symbol=scan.symbol,
            from_ms=from_ms,
            until_ms=until_ms,
            cause="no trades in the archive's month",
            repair=Repair.ARCHIVE,
        )
        holes.append(hole)
    return holes


def _unproven_silence_ms(months: list[MonthRows], start_ms: int, end_ms: int) -> int:
    """How much of a time without trades is not proven to have had none; all, if bars had trades."""
    silent_ms = max(0, end_ms - start_ms)
    for at_work in months:
        first = max(0, -(-(start_ms - at_work.start_ms) // MINUTE_MS))
        last = max(0, (end_ms - at_work.start_ms) // MINUTE_MS)
        if at_work.klines is None or first >= last:
            continue
        counts = at_work.klines["trade_count"][first:last]
        if (counts > 0).any():
            return max(silent_ms, QUIET_MS + 1)
        silent_ms -= int((counts == 0).sum()) * MINUTE_MS
    return silent_ms


def _kline_holes(scan: MonthScan, month: MonthRows, *, is_first: bool) -> list[Hole]:
    """Runs of minutes without an official bar."""
    if month.klines is None:
        return []
    start_ms, end_ms = _klines_expected_ms(scan, month, is_first=is_first)
    first, last = ((t - month.start_ms) // MINUTE_MS for t in (start_ms, end_ms))
    is_missing = np.zeros(month.bars.minutes, np.bool_)
    is_missing[first:last] = ~month.has_bar[first:last]
    month.audit.klines = int(month.has_bar.sum())
    month.audit.missing_klines = int(is_missing.sum())
    edges = np.flatnonzero(np.diff(is_missing, prepend=False, append=False)).reshape(-1, 2)
    return [
        Hole(
            kind="klines",
            symbol=scan.symbol,
            from_ms=month.start_ms + begin * MINUTE_MS,
            until_ms=month.start_ms + end * MINUTE_MS,
            missing_count=end - begin,
            cause="not in the archive's month",
            repair=Repair.REST,
        )
        for begin, end in edges.tolist()
    ]


def _klines_expected_ms(scan: MonthScan, month: MonthRows, *, is_first: bool) -> tuple[int, int]:
    start_ms, end_ms = month.start_ms, scan.archive_end_ms(month.klines_about, month.end_ms)
    bars = np.flatnonzero(month.has_bar)
    if is_first and len(bars):
        first_ms = start_ms + int(bars[0]) * MINUTE_MS
        absent = set() if month.klines_about is None else set(month.klines_about.absent_days)
        days = range(start_ms, first_ms - first_ms % DAY_MS, DAY_MS)
        began = scan.ids.first_id is not None and scan.ids.first_id <= FIRST_ID
        if began or (days and all(date_of(day) in absent for day in days)):
            start_ms = first_ms  # the market was not there before
    return start_ms, max(start_ms, end_ms - end_ms % MINUTE_MS)


def _trades_expected_ms(scan: MonthScan, month: MonthRows) -> tuple[int, int]:
    """The part of a month in which trades ought to be there; empty if in none."""
    starts = [start for start, _ in scan.expected_ms]
    ends = [end for _, end in scan.expected_ms]
    if scan.ids.first_ms is not None and scan.ids.last_ms is not None:
        if scan.ids.first_id is not None and scan.ids.first_id <= FIRST_ID:
            starts = []
        starts.append(scan.ids.first_ms)
        ends.append(scan.ids.last_ms + 1)
    if not starts:
        return month.start_ms, month.start_ms
    start_ms = max(month.start_ms, min(starts))
    return start_ms, max(start_ms, min(month.end_ms, max(ends)))


def _count_minutes(scan: MonthScan, month: MonthRows) -> None:
    """Tell silent minutes from missing ones, and compare the bars of those that are whole."""
    start_ms, end_ms = _trades_expected_ms(scan, month)
    bars, minutes = month.bars, month.bars.minutes
    begins_ms = month.start_ms + np.arange(minutes) * MINUTE_MS
    is_expected = (begins_ms + MINUTE_MS > start_ms) & (begins_ms < end_ms)
    has_gap = np.zeros(minutes, np.bool_)
    for gap in scan.ids.found():
        first, last = ((t - month.start_ms) // MINUTE_MS for t in (gap.from_ms, gap.until_ms))
        has_gap[max(0, first) : max(0, last + 1)] = True
    first_ms, last_ms = scan.proven_ms
    between = (begins_ms >= first_ms) & (begins_ms + MINUTE_MS <= last_ms)
    counts = np.full(minutes, -1) if month.klines is None else month.klines["trade_count"]
    is_silent = is_expected & ~bars.has_trades
    is_zero = is_silent & ((counts == 0) | ((counts < 0) & between & ~has_gap))
    audit = month.audit
    audit.minutes = int((is_expected | month.has_bar).sum())
    audit.zero_trade_minutes = int(is_zero.sum())
    audit.missing_minutes = int((is_silent & ~is_zero).sum())
    if month.trades_about is not None:
        audit.archive_duplicates = month.trades_about.duplicate_count
        audit.archive_disordered = month.trades_about.disordered_count
    if month.klines is not None:
        among = is_expected & between & ~has_gap & month.has_bar
        differences = bars.differences(month.klines, among)
        audit.compared_bars = int(among.sum())
        audit.differing_bars = len({difference.open_time_ms for difference in differences})
        audit.differences = differences[:_MOST_DIFFERENCES]


def _hours(
    scan: MonthScan, month: MonthRows, *, is_first: bool
) -> dict[int, dict[str, dict[str, int]]]:
    """Hours in which something ought to be there, with their rows by kind and source."""
    start_ms, end_ms = _trades_expected_ms(scan, month)
    found: dict[int, dict[str, dict[str, int]]] = {
        hour: {"trades": {}} for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS)
    }
    for hour, sources in month.hourly.items():
        found.setdefault(hour, {})["trades"] = sources
    if month.klines is not None:
        begin_ms, end_ms = _klines_expected_ms(scan, month, is_first=is_first)
        counts = month.has_bar.reshape(-1, HOUR_MS // MINUTE_MS).sum(axis=1).tolist()
        for number, count in enumerate(counts):
            hour = month.start_ms + number * HOUR_MS
            if count or begin_ms < hour + HOUR_MS <= end_ms + HOUR_MS - 1:
                found.setdefault(hour, {})["klines"] = {HISTORICAL: count} if count else {}
    return found
