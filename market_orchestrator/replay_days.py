"""Recorded days (``raw/stream``) for a replay: what the recorder stored, in the order it was received.

Consumes stream files a stretch of time at a time, produces ``DaySlice``: books as the frames they
came in (the flow reads a book's further levels from its frame), trades as rows. Changes no file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np
import structlog

from binance_api.endpoints import Route
from domain.errors import SourceError, StorageError
from domain.market import NO_VALUE, TRADE_DTYPE, Market
from lake.columns import numpy_of
from lake.part_files import DamagedFile, date_start_ms, newest_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import (
    SCHEMAS,
    TIME_COLUMN,
    Kind,
    StreamTable,
    read_stream_file,
    stream_dates,
    stream_files,
    symbol_codes,
)
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.replay_rows import depth_frames, symbol_numbers, trade_rows

log = structlog.get_logger()

_SLICE_NS: Final = 1_000_000_000  # what was received within this time is taken together
_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 3_600_000
_MARGIN_MS: Final = _MINUTE_MS
"""No frame overtakes one that was sent so much earlier."""
_MOST_TRADES: Final = 1_000_000  # of one stretch, about 100 MiB
_MOST_BOOKS: Final = 100_000  # the same
_ATTEMPTS: Final = 20
_STAMP: Final = re.compile(r"\d{8}_\d{6}")
_NEVER: Final = 2**63 - 1
_SOCKET: Final = 1


class DaySlice(msgspec.Struct, frozen=True):
    """What was received within a moment; books are taken first."""

    trades: np.ndarray  # TRADE_DTYPE; repaired ones have no receive time
    books: Sequence[bytes]
    book_stamps: Sequence[int]
    start_ns: int
    end_ns: int

    @property
    def count(self) -> int:
        """Frames, a repaired trade counted as one."""
        return len(self.trades) + len(self.books)

    def enter(self, flow: MarketFlow) -> None:
        """Hand everything to the flow; repaired trades as the exchange's word, which they are."""
        if self.books:
            flow.on_frames(Route.DEPTH, _SOCKET, self.books, self.book_stamps)
        is_repaired = self.trades["receive_time_ns"] == NO_VALUE
        for rows in np.split(self.trades, np.flatnonzero(np.diff(is_repaired)) + 1):
            if len(rows):
                repaired = bool(rows["receive_time_ns"][0] == NO_VALUE)
                flow.on_trades(rows, authoritative=repaired)


class _Stretch(msgspec.Struct, frozen=True):
    """Trades and books in order of the time they are due, ns."""

    trades: np.ndarray
    trades_due: np.ndarray
    books: list[bytes]
    books_due: np.ndarray

    @classmethod
    def sorted(
        cls, trades: np.ndarray, trades_due: np.ndarray, books: list[bytes], books_due: np.ndarray
    ) -> Self:
        by_trade = np.argsort(trades_due, kind="stable")
        by_book = np.argsort(books_due, kind="stable")
        books = [books[place] for place in by_book.tolist()]
        return cls(trades[by_trade], trades_due[by_trade], books, books_due[by_book])

    def joined(self, other: _Stretch) -> _Stretch:
        return _Stretch.sorted(
            np.concatenate([self.trades, other.trades]),
            np.concatenate([self.trades_due, other.trades_due]),
            self.books + other.books,
            np.concatenate([self.books_due, other.books_due]),
        )

    def split(self, due_ns: int) -> tuple[_Stretch, _Stretch]:
        """What is due before a time, and the rest."""
        trade, book = (int(due.searchsorted(due_ns)) for due in (self.trades_due, self.books_due))
        return (
            _Stretch(
                self.trades[:trade],
                self.trades_due[:trade],
                self.books[:book],
                self.books_due[:book],
            ),
            _Stretch(
                self.trades[trade:],
                self.trades_due[trade:],
                self.books[book:],
                self.books_due[book:],
            ),
        )

    def slices(self) -> Iterator[DaySlice]:
        trade = book = 0
        while trade < len(self.trades) or book < len(self.books):
            start_ns = min(
                int(due[place])
                for due, place in ((self.trades_due, trade), (self.books_due, book))
                if place < len(due)
            )
            end_ns = start_ns + _SLICE_NS
            next_trade = int(self.trades_due.searchsorted(end_ns))
            next_book = int(self.books_due.searchsorted(end_ns))
            stamps = self.books_due[book:next_book].tolist()
            last_ns = max([*stamps[-1:], *self.trades_due[trade:next_trade][-1:].tolist()])
            yield DaySlice(
                self.trades[trade:next_trade],
                self.books[book:next_book],
                stamps,
                start_ns,
                last_ns,
            )
            trade, book = next_trade, next_book


_NOTHING = _Stretch(np.empty(0, TRADE_DTYPE), np.empty(0, np.int64), [], np.empty(0, np.int64))


class _File(msgspec.Struct, frozen=True):
    """A stream file; its name and its footer tell what it cannot hold."""

    path: Path
    stamp: str  # no row is older than this says
    newest_ms: int | None

    def overlaps(self, start_ms: int | None, end_ms: int | None) -> bool:
        if start_ms is not None and self.newest_ms is not None and self.newest_ms < start_ms:
            return False
        if end_ms is None or not _STAMP.match(self.stamp):
            return True
        return self.stamp[:15] < time.strftime("%Y%m%d_%H%M%S", time.gmtime(end_ms // 1_000))


class RecordedDays:
    """The stream files of one market, or of one of its days.

    Args:
        folder: ``…/raw/stream``, or one day of either kind, ``…/raw/stream/trades/2024-07-19``.

    Raises:
        SourceError: It is neither.
    """

    def __init__(self, folder: Path) -> None:
        place = folder.resolve()
        is_day = place.parent.name in SCHEMAS
        self._day = place.name if is_day else None
        stream = place.parents[1] if is_day else place
        if stream.name != "stream":
            raise SourceError(
                f"{folder}: is a folder without recorded days; give a recording (.ndjson or "
                ".ndjson.gz), a data folder or its raw/stream"
            )
        raw = stream.parent
        self._paths = LakePaths(root=raw.parent, raw=raw, curated=raw.parent / "curated")
        self._files: dict[tuple[Kind, str], list[_File]] = {}
        self._damaged: set[Path] = set()
        self._delay_ns = 0  # from transaction to receipt, by the recorder's clock

    def symbols(self) -> tuple[str, ...]:
        """Symbols that have trades, sorted."""
        found: set[str] = set()
        for date in self._dates("trades"):
            for table in self._tables("trades", date, None, None, ["symbol"]):
                codes, names = symbol_codes(table)
                found.update(names[code] for code in np.unique(codes).tolist())
        return tuple(sorted(found))

    def slices(self, index: Mapping[str, int], market: Market) -> Iterator[DaySlice]:
        """Everything recorded of these symbols (name → row number), in order of receipt.

        Raises:
            StorageError: The system refused.
        """
        held = _NOTHING
        for stretch, until_ns in self._stretches(index, market):
            ready, held = held.joined(stretch).split(until_ns)
            yield from ready.slices()
        yield from held.slices()

    def _stretches(
        self, index: Mapping[str, int], market: Market
    ) -> Iterator[tuple[_Stretch, int]]:
        """Rows by transaction time, and until when no later ones are due.

        An hour at a time, less where that would be too much.
        """
        step_ms = _MINUTE_MS
        for date in sorted({*self._dates("trades"), *self._dates("depth")}):
            start_ms = date_start_ms(date)
            day_end_ms = start_ms + DAY_MS
            while start_ms < day_end_ms:
                end_ms = min(start_ms + step_ms, day_end_ms)
                trades, trades_due = self._trades(date, start_ms, end_ms, index)
                books, books_due, books_ms = self._books(date, start_ms, end_ms, index, market)
                late_ms = end_ms - _MARGIN_MS
                until_ns = min(
                    _first_due(trades["transact_time_ms"], trades_due, late_ms),
                    _first_due(books_ms, books_due, late_ms),
                )
                yield _Stretch.sorted(trades, trades_due, books, books_due), until_ns
                fill = max(len(trades) / _MOST_TRADES, len(books) / _MOST_BOOKS)
                if fill <= 0.5:
                    step_ms = min(2 * step_ms, _HOUR_MS)
                elif fill > 1.0:
                    step_ms = max(step_ms // 2, _MINUTE_MS)
                start_ms = end_ms

    def _trades(
        self, date: str, start_ms: int, end_ms: int, index: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        tables = self._tables("trades", date, start_ms, end_ms)
        rows = np.concatenate([_NOTHING.trades, *(trade_rows(t, index) for t in tables)])
        # Each trade once: where it was received as well as repaired, as received.
        is_repaired = rows["receive_time_ns"] == NO_VALUE
        rows = rows[np.lexsort((is_repaired, rows["agg_trade_id"], rows["symbol_index"]))]
        is_new = np.ones(len(rows), np.bool_)
        is_new[1:] = np.diff(rows["agg_trade_id"]) != 0
        is_new[1:] |= np.diff(rows["symbol_index"]) != 0
        rows = rows[is_new]
        return rows, self._due_ns(rows)

    def _due_ns(self, rows: np.ndarray) -> np.ndarray:
        """When trades (by symbol and id) were received; repaired ones, when they should have been.

        That is their own time by the recorder's clock, and between the neighbours they lacked.
        """
        received, sent_ns = rows["receive_time_ns"], rows["transact_time_ms"] * 1_000_000
        is_repaired = received == NO_VALUE
        if not is_repaired.all():
            self._delay_ns = int(np.median((received - sent_ns)[~is_repaired]))
        due = np.where(is_repaired, sent_ns + self._delay_ns, received)
        for number in np.unique(rows["symbol_index"][is_repaired]).tolist():
            first, stop = rows["symbol_index"].searchsorted((number, number + 1)).tolist()
            gone, known = is_repaired[first:stop], received[first:stop]
            before = np.maximum.accumulate(np.where(gone, 0, known))
            after = np.minimum.accumulate(np.where(gone, _NEVER, known)[::-1])[::-1]
            between = np.minimum(np.maximum(due[first:stop], before), after)
            due[first:stop] = np.where(gone, between, known)
        return due

    def _books(
        self, date: str, start_ms: int, end_ms: int, index: Mapping[str, int], market: Market
    ) -> tuple[list[bytes], np.ndarray, np.ndarray]:
        books: list[bytes] = []
        due, times_ms = [_NOTHING.books_due], [_NOTHING.books_due]
        for table in self._tables("depth", date, start_ms, end_ms):
            books += depth_frames(table, index, market)
            is_wanted = symbol_numbers(table, index) >= 0
            due.append(numpy_of(table.column("receive_time_ns"))[is_wanted])
            times_ms.append(numpy_of(table.column("transact_time_ms"))[is_wanted])
        return books, np.concatenate(due), np.concatenate(times_ms)

    def _dates(self, kind: Kind) -> list[str]:
        dates = stream_dates(self._paths, kind)
        return dates if self._day is None else [date for date in dates if date == self._day]

    def _tables(
        self,
        kind: Kind,
        date: str,
        start_ms: int | None,
        end_ms: int | None,
        columns: Sequence[str] | None = None,
    ) -> list[StreamTable]:
        for _ in range(_ATTEMPTS):
            try:
                files = self._files_of(kind, date)
                found = [
                    self._read(file.path, kind, start_ms, end_ms, columns)
                    for file in files
                    if file.overlaps(start_ms, end_ms)
                ]
            except FileNotFoundError:  # merged meanwhile
                self._files.pop((kind, date), None)
                continue
            return [table for table in found if table is not None and table.num_rows]
        raise StorageError(f"cannot read {self._paths.stream(kind, date)}: its files keep changing")

    def _files_of(self, kind: Kind, date: str) -> list[_File]:
        if (kind, date) not in self._files:
            self._files[kind, date] = [
                _File(path, path.stem.removeprefix(f"{kind}_"), newest_ms(path, TIME_COLUMN))
                for path in stream_files(self._paths, kind, date)
            ]
        return self._files[kind, date]

    def _read(
        self,
        path: Path,
        kind: Kind,
        start_ms: int | None,
        end_ms: int | None,
        columns: Sequence[str] | None,
    ) -> StreamTable | None:
        if path in self._damaged:
            return None
        try:
            return read_stream_file(
                path, kind, start_ms=start_ms, end_ms=end_ms, columns=columns, use_threads=True
            )
        except DamagedFile as damaged:
            self._damaged.add(path)
            log.error("replay.file_damaged", path=str(path), reason=damaged.reason)
            return None


def _first_due(times_ms: np.ndarray, due_ns: np.ndarray, from_ms: int) -> int:
    """When the first of the rows sent since a time is due; never if there is none."""
    return int(due_ns[times_ms >= from_ms].min(initial=_NEVER))
