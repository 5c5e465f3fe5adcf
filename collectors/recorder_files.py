"""Rows taken from the recorder → Parquet, each exactly once. Blocks: for one worker thread.

Consumes ``Rows``, produces whole files, and tells the frames that turned out faulty. What a failed or dead
attempt may have written already is looked up by what identifies a row (trade id; receipt and update
id of a frame) and left out, so that a write can be tried again at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from collectors.depth_levels import read_levels
from collectors.recorder_rows import Rows
from domain.market import NO_VALUE, DepthTop, Market
from lake.atomic import StepHook, no_hook
from lake.columns import mask_array, numpy_of
from lake.part_files import DamagedFile, set_aside
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import (
    TIME_COLUMN,
    Kind,
    StreamTable,
    by_date,
    depth_table,
    read_stream_file,
    stream_files,
    symbol_codes,
    trade_order,
    trade_table,
    write_stream_file,
)

log = structlog.get_logger()

METADATA: Final = {"orderflow.writer": "recorder"}
_TIME_MARGIN_MS: Final = 60_000
"""Spot depth has no exchange time: that of a frame read again may differ by so much."""
_ATTRIBUTE_SLICE: Final = 2_000
_RELEASED: Final = 500


class Batch(msgspec.Struct):
    """Rows of one journal segment on their way to Parquet; what is written is taken out."""

    segment: int
    frame_count: int
    payload_bytes: int
    rows: Rows | None  # None: made into tables
    tables: list[tuple[Kind, StreamTable]] = []
    faulty: list[DepthTop] = []  # frames with a faulty level, which are not written
    is_suspect: bool = False  # an attempt that failed or died may have written some of it

    @classmethod
    def of(cls, segment: int, rows: Rows, *, is_suspect: bool = False) -> Batch:
        """All rows of a segment."""
        return cls(segment, rows.frame_count, rows.payload_bytes, rows, is_suspect=is_suspect)


class StreamWriter:
    """Writes batches below ``paths.raw/stream``.

    Args:
        paths: The tree.
        symbols: The run's symbols; the rows' ``symbol_index`` counts in them.
        market: Whose frames.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self, paths: LakePaths, symbols: Sequence[str], market: Market, *, hook: StepHook = no_hook
    ) -> None:
        self._paths = paths
        self._symbols = list(symbols)
        self._index = {symbol: i for i, symbol in enumerate(self._symbols)}
        self._market = market
        self._hook = hook
        self._counts = dict.fromkeys(("files", "trades", "depth", "already_stored", "bytes"), 0)
        self._seconds = 0.0

    def write(self, batch: Batch) -> None:
        """Write what is left of a batch.

        Raises:
            StorageError: The disk refused; call again with the same batch.
        """
        began = time.perf_counter()
        try:
            if batch.rows is not None:
                rows = batch.rows
                batch.tables, batch.faulty = self._tables(rows)
                batch.rows = None
                _release(rows)
            while batch.tables:
                kind, table = batch.tables[0]
                self._write_table(
                    kind, self._without_stored(kind, table) if batch.is_suspect else table
                )
                del batch.tables[0]
        except BaseException:
            batch.is_suspect = True
            raise
        finally:
            self._seconds += time.perf_counter() - began

    def _write_table(self, kind: Kind, table: StreamTable) -> None:
        written = write_stream_file(self._paths, kind, table, metadata=METADATA, hook=self._hook)
        self._counts["files"] += len(written)
        self._counts[kind] += table.num_rows
        self._counts["bytes"] += sum(path.stat().st_size for path in written)

    def _tables(self, rows: Rows) -> tuple[list[tuple[Kind, StreamTable]], list[DepthTop]]:
        """One table per kind and date, and the frames that are in none."""
        tables: list[tuple[Kind, StreamTable]] = []
        if rows.trades:
            tables += [("trades", table) for table in self._trades(np.concatenate(rows.trades))]
        depth, faulty = self._depth(rows.tops)
        tables += [("depth", table) for _, table in by_date(depth)]
        return tables, faulty

    def _trades(self, trades: np.ndarray) -> Iterator[StreamTable]:
        """One table per date and source, in the order of the files."""
        order = trade_order(trades, self._symbols)
        days = trades["transact_time_ms"][order] // DAY_MS
        is_streamed = trades["receive_time_ns"][order] != NO_VALUE
        for day in [days[0]] if (days == days[0]).all() else np.unique(days):
            of_day = days == day
            for source, wanted in (("stream", is_streamed), ("rest", ~is_streamed)):
                part = order[of_day & wanted]
                if len(part):
                    yield trade_table(trades, self._symbols, source, order=part)

    def _depth(self, tops: Sequence[DepthTop]) -> tuple[StreamTable, list[DepthTop]]:
        """One table in the order of the files, and the frames that are not in it."""
        rank = {symbol: number for number, symbol in enumerate(sorted(self._symbols))}
        order = np.lexsort(
            [
                _column(tops, attrgetter("final_update_id")),
                _column(tops, attrgetter("transact_time_ms")),
                _column(tops, lambda top: rank[top.symbol]),
            ]
        )
        tops = [tops[place] for place in order.tolist()]
        levels = read_levels([top.payload for top in tops], self._market)
        faulty = [tops[i] for i in np.flatnonzero(~levels.is_sound).tolist()]
        if faulty:
            tops = [tops[i] for i in np.flatnonzero(levels.is_sound).tolist()]
        index = self._index
        table = depth_table(
            _column(tops, lambda top: index[top.symbol]).astype(np.int32),
            self._symbols,
            event_time_ms=_column(tops, attrgetter("event_time_ms")),
            transact_time_ms=_column(tops, attrgetter("transact_time_ms")),
            receive_time_ns=_column(tops, attrgetter("receive_time_ns")),
            first_update_id=_column(tops, attrgetter("first_update_id")),
            final_update_id=_column(tops, attrgetter("final_update_id")),
            prev_final_update_id=_column(tops, _previous),
            bids=levels.bids,
            asks=levels.asks,
        )
        return table, faulty

    def _without_stored(self, kind: Kind, table: StreamTable) -> StreamTable:
        """The rows that no file has yet."""
        stored = self._stored_keys(kind, table)
        if not stored:
            return table
        is_new = np.array([key not in stored for key in _keys(kind, table)], np.bool_)
        self._counts["already_stored"] += int(np.count_nonzero(~is_new))
        return table.filter(mask_array(is_new))

    def _stored_keys(self, kind: Kind, table: StreamTable) -> set[tuple[Any, ...]]:
        found: set[tuple[Any, ...]] = set()
        times = numpy_of(table.column(TIME_COLUMN))
        start_ms, end_ms = int(times.min()) - _TIME_MARGIN_MS, int(times.max()) + _TIME_MARGIN_MS
        for date in dict.fromkeys(date for date, _ in by_date(table)):
            for path in stream_files(self._paths, kind, date):
                try:
                    rows = read_stream_file(
                        path,
                        kind,
                        start_ms=start_ms,
                        end_ms=end_ms,
                        columns=("symbol", *_KEYS[kind]),
                    )
                except FileNotFoundError:
                    continue
                except DamagedFile as damaged:  # its rows are lost: those at hand are written anew
                    set_aside(self._paths.raw / "stream" / kind, damaged)
                    continue
                found.update(_keys(kind, rows))
        return found

    def statistics(self) -> dict[str, int | float | str | None]:
        """Files, rows and bytes written since the start, and the seconds it took."""
        return {**self._counts, "write_s": round(self._seconds, 3)}


_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "trades": ("agg_trade_id",),
    "depth": ("receive_time_ns", "final_update_id"),
}


def _keys(kind: Kind, table: StreamTable) -> list[tuple[Any, ...]]:
    """What identifies each row."""
    codes, names = symbol_codes(table)
    columns = [numpy_of(table.column(name)).tolist() for name in _KEYS[kind]]
    return list(zip([names[code] for code in codes.tolist()], *columns, strict=True))


def _column(tops: Sequence[DepthTop], read: Callable[[DepthTop], int]) -> np.ndarray:
    """int64[n]; the interpreter lock is offered now and then."""
    column = np.empty(len(tops), np.int64)
    for start in range(0, len(tops), _ATTRIBUTE_SLICE):
        part = tops[start : start + _ATTRIBUTE_SLICE]
        column[start : start + len(part)] = np.fromiter(map(read, part), np.int64, len(part))
        time.sleep(0)
    return column


def _release(rows: Rows) -> None:
    """Free the frames bit by bit: all at once would hold the interpreter lock for long."""
    while rows.tops:
        del rows.tops[-_RELEASED:]
        time.sleep(0)


def _previous(top: DepthTop) -> int:
    return NO_VALUE if top.prev_final_update_id is None else top.prev_final_update_id
