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

from audit.certificate import HOUR_MS, Hole, Hour, Repair, certify, known_hole
from audit.id_gaps import IdGaps
from audit.minute_bars import MINUTE_MS, PRICES, SUMS, BarDifference, MinuteBars, Trades
from domain.events import GapState
from lake.columns import numpy_of
from lake.gap_ledger import Gap, read_gaps
from lake.historical_files import (
    AboutMonth,
    HistoryKind,
    about_month,
    month_bounds_ms,
    month_path,
    months_of,
)
from lake.part_files import DamagedFile, date_of, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.sequence import HISTORICAL, TRUST, Piece, Wanted, stored_pieces, trust_ranks, woven
from lake.stream_files import stream_dates

STRETCH_MS: Final = 6 * HOUR_MS
"""Trades in memory at a time: 2.5 million in the busiest hours seen, about 300 MiB with all copies."""
FIRST_ID: Final = 1
"""A market whose ids begin no higher has no earlier trades."""
QUIET_MS: Final = HOUR_MS
"""No trade for so long before the first one known, or after the last, is taken for a hole."""
NEVER: Final = 1 << 62
UNKNOWN_CAUSE: Final = "not in the ledger"
SOURCES: Final = (*TRUST, "other")
_MOST_DIFFERENCES: Final = 20
_COLUMNS: Final = (
    *("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id"),
    *("transact_time_ms", "is_buyer_maker"),
)


class MonthAudit(msgspec.Struct, kw_only=True):
    """What was found in one month of one symbol. Counts; ``None`` where there is nothing to count.

    Attributes:
        symbol, month: Of whom and when (``YYYY-MM``, UTC).
        trades: Trades of the sequence, each id once.
        sources: Those by where they come from.
        first_id, last_id: Ids of the first and last trade.
        missing_ids: Ids of gaps that begin in the month; ``missing_ranges`` of them.
        duplicated_ids: Rows whose id another row of the recording (or of the archive's month) has.
        disordered_ids: Rows behind one with a higher id in their file.
        archive_duplicates, archive_disordered: The same of the downloaded archives, before their
            rows were sorted and made unique.
        minutes: Minutes that are to be whole, by trades or klines.
        zero_trade_minutes: Minutes proven to have had no trade.
        missing_minutes: Minutes with no trade that had some, or may have had.
        klines, missing_klines: Official bars, and minutes that lack theirs.
        compared_bars, differing_bars: Bars rebuilt from trades that could be compared.
        differences: The first columns that differ.
    """

    symbol: str
    month: str
    trades: int = 0
    sources: dict[str, int] = {}
    first_id: int | None = None
    last_id: int | None = None
    missing_ids: int = 0
    missing_ranges: int = 0
    duplicated_ids: int = 0
    disordered_ids: int = 0
    archive_duplicates: int | None = None
    archive_disordered: int | None = None
    minutes: int = 0
    zero_trade_minutes: int = 0
    missing_minutes: int = 0
    klines: int | None = None
    missing_klines: int | None = None
    compared_bars: int = 0
    differing_bars: int = 0
    differences: list[BarDifference] = []


class SymbolAudit(msgspec.Struct, frozen=True, kw_only=True):
    """All months of one symbol, its holes, and the certificate."""

    symbol: str
    months: list[MonthAudit]
    holes: list[Hole]
    hours: list[Hour]


class _Month(msgspec.Struct, kw_only=True):
    """One month at work. Arrays are over its minutes."""

    audit: MonthAudit
    start_ms: int
    end_ms: int
    bars: MinuteBars
    hourly: dict[int, dict[str, int]]  # hour → source → trades
    trades_about: AboutMonth | None
    klines_about: AboutMonth | None
    klines: dict[str, np.ndarray] | None  # NaN, and a trade_count of -1, where there is no bar

    @property
    def has_bar(self) -> np.ndarray:
        """bool[minutes]: which official bars are there."""
        if self.klines is None:
            return np.zeros(self.bars.minutes, np.bool_)
        found: np.ndarray = self.klines["trade_count"] >= 0
        return found


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
    scan = _Scan(paths, symbol, now_ms)
    done = [scan.month(month, functools.partial(on_progress, month)) for month in months]
    holes = _trade_holes(scan, done, unresolved)
    for at_work in done:
        holes += _kline_holes(scan, at_work, is_first=at_work is done[0])
        _count_minutes(scan, at_work)
    holes = sorted(
        (known_hole(hole, unresolved, now_ms) for hole in holes), key=lambda hole: hole.from_ms
    )
    hours = {hour: rows for at_work in done for hour, rows in _hours(scan, at_work).items()}
    return SymbolAudit(
        symbol=symbol,
        months=[at_work.audit for at_work in done],
        holes=holes,
        hours=certify(symbol, hours, enumerate(holes), ledger),
    )


class _Scan:
    """Reads the months one after another; knows which ids they lack in all."""

    def __init__(self, paths: LakePaths, symbol: str, now_ms: int) -> None:
        self.paths = paths
        self.symbol = symbol
        self.now_ms = now_ms
        self.ids = IdGaps()
        self.expected_ms: list[tuple[int, int]] = []  # by the archive's months

    def month(self, month: str, on_progress: Callable[[float], None]) -> _Month:
        start_ms, end_ms = month_bounds_ms(month)
        trades_about, is_archived = self._about("aggTrades", month)
        klines_about, has_klines = self._about("klines", month)
        found = _Month(
            audit=MonthAudit(symbol=self.symbol, month=month),
            start_ms=start_ms,
            end_ms=end_ms,
            bars=MinuteBars(start_ms, end_ms),
            hourly={},
            trades_about=trades_about,
            klines_about=klines_about,
            klines=self._klines(start_ms, end_ms) if has_klines else None,
        )
        if is_archived:
            self.expected_ms.append((start_ms, self.archive_end_ms(trades_about, end_ms)))
        for at_ms in range(start_ms, min(end_ms, self.now_ms), STRETCH_MS):
            self._stretch(found, at_ms)
            on_progress((at_ms + STRETCH_MS - start_ms) / (end_ms - start_ms))
        return found

    def archive_end_ms(self, about: AboutMonth | None, end_ms: int) -> int:
        """Up to when the archives in a month's file reach."""
        days = [part.period for part in about.parts] if about is not None else []
        if days and all(len(day) > 7 for day in days):
            end_ms = date_start_ms(max(days)) + DAY_MS
        return min(end_ms, self.now_ms)

    def _about(self, kind: HistoryKind, month: str) -> tuple[AboutMonth | None, bool]:
        """What the month's file says of itself, and whether there is one."""
        path = month_path(self.paths, self.symbol, kind, month)
        try:
            return about_month(path), path.exists()
        except DamagedFile:  # whoever reads its rows decides whether it can be read
            return None, True

    def _klines(self, start_ms: int, end_ms: int) -> dict[str, np.ndarray]:
        columns = ("open_time_ms", *PRICES, *SUMS, "trade_count")
        wanted = Wanted.of("klines", self.symbol, start_ms, end_ms, columns)
        table = woven(wanted, stored_pieces(self.paths, wanted))
        at = (numpy_of(table.column("open_time_ms")) - start_ms) // MINUTE_MS
        minutes = (end_ms - start_ms) // MINUTE_MS
        found = {name: np.full(minutes, np.nan) for name in (*PRICES, *SUMS)}
        found["trade_count"] = np.full(minutes, -1, np.int64)
        for name, values in found.items():
            values[at] = numpy_of(table.column(name))
        return found

    def _stretch(self, month: _Month, start_ms: int) -> None:
        wanted = Wanted.of("trades", self.symbol, start_ms, start_ms + STRETCH_MS, _COLUMNS)
        pieces = stored_pieces(self.paths, wanted)
        table = woven(wanted, pieces)
        if not table.num_rows:
            return
        self._count_disorder(month.audit, pieces)
        values = {name: numpy_of(table.column(name)) for name in _COLUMNS}
        ids, times_ms = values["agg_trade_id"], values["transact_time_ms"]
        audit = month.audit
        audit.trades += len(ids)
        audit.first_id = int(ids[0]) if audit.first_id is None else audit.first_id
        audit.last_id = int(ids[-1])
        self.ids.add(ids, times_ms)
        month.bars.add(
            Trades(
                ids=ids,
                times_ms=times_ms,
                prices=values["price"],
                quantities=values["quantity"],
                fills=values["last_trade_id"] - values["first_trade_id"] + 1,
                is_buyer_maker=values["is_buyer_maker"],
            )
        )
        _count_sources(month, times_ms // HOUR_MS, trust_ranks(table))

    def _count_disorder(self, audit: MonthAudit, pieces: list[Piece]) -> None:
        """Of the recording and of the archive's month each by itself: that both have a trade is fine."""
        archived = self.paths.historical(self.symbol)
        for is_archive in (False, True):
            files = [
                numpy_of(piece.table.column("agg_trade_id"))
                for piece in pieces
                if (piece.path.parent == archived) is is_archive
            ]
            if not files:
                continue
            for ids in files:
                audit.disordered_ids += int((ids < np.maximum.accumulate(ids)).sum())
            every = np.concatenate(sorted(files, key=lambda ids: int(ids[0])))
            if not (every[1:] > every[:-1]).all():
                audit.duplicated_ids += len(every) - len(np.unique(every))


def _count_sources(month: _Month, hours: np.ndarray, ranks: np.ndarray) -> None:
    found, counts = np.unique(hours * len(SOURCES) + ranks, return_counts=True)
    for code, count in zip(found.tolist(), counts.tolist(), strict=True):
        hour, rank = divmod(code, len(SOURCES))
        hourly = month.hourly.setdefault(hour * HOUR_MS, {})
        hourly[SOURCES[rank]] = count
        month.audit.sources[SOURCES[rank]] = month.audit.sources.get(SOURCES[rank], 0) + count


def _trade_holes(scan: _Scan, months: list[_Month], unresolved: list[Gap]) -> list[Hole]:
    """Ids between two trades, what is missing at both ends, and what only the ledger knows."""
    holes = [
        Hole(
            kind="trades",
            symbol=scan.symbol,
            from_ms=gap.from_ms,
            until_ms=gap.until_ms,
            first_id=gap.first_id,
            last_id=gap.last_id,
            missing_count=gap.count,
            cause=UNKNOWN_CAUSE,
            repair=Repair.ARCHIVE,
        )
        for gap in scan.ids.found()
    ]
    for at_work in months:
        begun = [g for g in scan.ids.found() if at_work.start_ms <= g.from_ms < at_work.end_ms]
        at_work.audit.missing_ids = sum(gap.count for gap in begun)
        at_work.audit.missing_ranges = len(begun)
    return holes + _edge_holes(scan, months) + _holes_of_ledger(scan, unresolved)


def _edge_holes(scan: _Scan, months: list[_Month]) -> list[Hole]:
    """Before the first trade and after the last one no id tells; the official bars do, or the clock."""
    ids, spans = scan.ids, scan.expected_ms
    edges: list[tuple[int, int]] = []
    if spans and ids.first_ms is not None and ids.last_ms is not None:
        if ids.first_id is not None and ids.first_id > FIRST_ID:
            edges.append((min(start for start, _ in spans), ids.first_ms))
        edges.append((ids.last_ms, max(end for _, end in spans)))
    elif spans:
        edges = spans
    holes = []
    for start_ms, end_ms in edges:
        silent_ms = _unproven_silence_ms(months, start_ms, end_ms)
        if silent_ms > QUIET_MS:
            hole = Hole(
                kind="trades",
                symbol=scan.symbol,
                from_ms=start_ms,
                until_ms=end_ms,
                cause="no trades in the archive's month",
                repair=Repair.ARCHIVE,
            )
            holes.append(hole)
    return holes


def _unproven_silence_ms(months: list[_Month], start_ms: int, end_ms: int) -> int:
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


def _holes_of_ledger(scan: _Scan, unresolved: list[Gap]) -> list[Hole]:
    """What the recorder knows to be missing where no id of a trade can show it."""
    ids = scan.ids
    holes = []
    for gap in unresolved:
        if gap.kind != "trades" or gap.from_ms is None:
            continue
        if ids.first_ms is not None and ids.last_ms is not None:
            is_proven = gap.from_ms >= ids.first_ms and (gap.until_ms or NEVER) <= ids.last_ms
            is_later = gap.first_id is not None and gap.first_id > (ids.last_id or 0)
            if is_proven or (gap.first_id is not None and not is_later):
                continue
        holes.append(
            Hole(
                kind="trades",
                symbol=scan.symbol,
                from_ms=gap.from_ms,
                until_ms=scan.now_ms if gap.until_ms is None else gap.until_ms,
                first_id=gap.first_id,
                last_id=gap.last_id,
                missing_count=gap.missing_count,
                cause=gap.cause,
                repair=Repair.REST,
            )
        )
    return holes


def _kline_holes(scan: _Scan, month: _Month, *, is_first: bool) -> list[Hole]:
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


def _klines_expected_ms(scan: _Scan, month: _Month, *, is_first: bool) -> tuple[int, int]:
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


def _trades_expected_ms(scan: _Scan, month: _Month) -> tuple[int, int]:
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


def _count_minutes(scan: _Scan, month: _Month) -> None:
    """Tell silent minutes from missing ones, and compare the bars of those that are whole."""
    start_ms, end_ms = _trades_expected_ms(scan, month)
    bars, minutes = month.bars, month.bars.minutes
    begins_ms = month.start_ms + np.arange(minutes) * MINUTE_MS
    is_expected = (begins_ms + MINUTE_MS > start_ms) & (begins_ms < end_ms)
    has_gap = np.zeros(minutes, np.bool_)
    for gap in scan.ids.found():
        first, last = ((t - month.start_ms) // MINUTE_MS for t in (gap.from_ms, gap.until_ms))
        has_gap[max(0, first) : max(0, last + 1)] = True
    between = np.zeros(minutes, np.bool_)
    if scan.ids.first_ms is not None and scan.ids.last_ms is not None:
        between = (begins_ms >= scan.ids.first_ms) & (begins_ms + MINUTE_MS <= scan.ids.last_ms)
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


def _hours(scan: _Scan, month: _Month) -> dict[int, dict[str, dict[str, int]]]:
    """Hours in which something ought to be there, with their rows by kind and source."""
    start_ms, end_ms = _trades_expected_ms(scan, month)
    found: dict[int, dict[str, dict[str, int]]] = {
        hour: {} for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS)
    }
    for hour, sources in month.hourly.items():
        found.setdefault(hour, {})["trades"] = sources
    if month.klines is not None:
        end_ms = scan.archive_end_ms(month.klines_about, month.end_ms)
        counts = month.has_bar.reshape(-1, HOUR_MS // MINUTE_MS).sum(axis=1).tolist()
        for number, count in enumerate(counts):
            hour = month.start_ms + number * HOUR_MS
            if count or hour < end_ms:
                found.setdefault(hour, {})["klines"] = {HISTORICAL: count} if count else {}
    return found
