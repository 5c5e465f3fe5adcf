"""Reads the stored trades and klines of a symbol month by month, a few hours in memory at a time.

Consumes the files' rows as ``lake.sequence`` gives them, produces counts, minute bars and missing ids:
what ``completeness`` judges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from audit.certificate import HOUR_MS
from audit.id_gaps import IdGaps
from audit.minute_bars import MINUTE_MS, PRICES, SUMS, BarDifference, MinuteBars, Trades
from lake.columns import numpy_of
from lake.historical_files import (
    AboutMonth,
    HistoryKind,
    about_month,
    month_bounds_ms,
    month_path,
)
from lake.part_files import DamagedFile, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.sequence import TRUST, Piece, Wanted, stored_pieces, trust_ranks, woven

STRETCH_MS: Final = 3 * HOUR_MS
"""Trades in memory at a time: of a day of ten million, 500 MiB for the whole process (measured)."""
SOURCES: Final = (*TRUST, "other")
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


class MonthRows(msgspec.Struct, kw_only=True):
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


class MonthScan:
    """Reads the months one after another; knows which ids they lack in all."""

    def __init__(self, paths: LakePaths, symbol: str, now_ms: int) -> None:
        self.paths = paths
        self.symbol = symbol
        self.now_ms = now_ms
        self.ids = IdGaps()
        self.expected_ms: list[tuple[int, int]] = []  # by the archive's months
        self._silence_ms: tuple[int, int] | None = None

    def month(self, month: str, on_progress: Callable[[float], None]) -> MonthRows:
        start_ms, end_ms = month_bounds_ms(month)
        trades_about, is_archived = self._about("aggTrades", month)
        klines_about, has_klines = self._about("klines", month)
        found = MonthRows(
            audit=MonthAudit(symbol=self.symbol, month=month),
            start_ms=start_ms,
            end_ms=end_ms,
            bars=MinuteBars(start_ms, end_ms),
            hourly={},
            trades_about=trades_about,
            klines_about=klines_about,
            klines=self._official(start_ms, end_ms) if has_klines else None,
        )
        if is_archived:
            self.expected_ms.append((start_ms, self.archive_end_ms(trades_about, end_ms)))
        for at_ms in range(start_ms, min(end_ms, self.now_ms), STRETCH_MS):
            self._stretch(found, at_ms)
            on_progress((at_ms + STRETCH_MS - start_ms) / (end_ms - start_ms))
        return found

    @property
    def proven_ms(self) -> tuple[int, int]:
        """The time in which only gaps of ids are missing; empty if there is none."""
        if self.ids.first_ms is None or self.ids.last_ms is None:
            return self._silence_ms or (0, 0)
        start_ms, end_ms = self._silence_ms or (self.ids.first_ms, self.ids.last_ms)
        return min(start_ms, self.ids.first_ms), max(end_ms, self.ids.last_ms)

    def prove(self, start_ms: int, end_ms: int) -> None:
        """Nobody traded in this time, which borders on what is proven."""
        known = self._silence_ms or (start_ms, end_ms)
        self._silence_ms = (min(start_ms, known[0]), max(end_ms, known[1]))

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

    def _official(self, start_ms: int, end_ms: int) -> dict[str, np.ndarray]:
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

    def _stretch(self, month: MonthRows, start_ms: int) -> None:
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


def _count_sources(month: MonthRows, hours: np.ndarray, ranks: np.ndarray) -> None:
    found, counts = np.unique(hours * len(SOURCES) + ranks, return_counts=True)
    for code, count in zip(found.tolist(), counts.tolist(), strict=True):
        hour, rank = divmod(code, len(SOURCES))
        hourly = month.hourly.setdefault(hour * HOUR_MS, {})
        hourly[SOURCES[rank]] = count
        month.audit.sources[SOURCES[rank]] = month.audit.sources.get(SOURCES[rank], 0) + count
