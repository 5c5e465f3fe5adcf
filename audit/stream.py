"""Does the recorder record all it should? Hour by hour, of the recorded files alone.

Consumes recorded rows a few hours at a time and the gap ledger, produces per symbol and hour what
was expected and found, breaks of the depth's ``pu`` chain and how late frames came, the holes, and a
certificate per hour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec
import numpy as np

from audit.certificate import HOUR_MS, Hole, Hour, Repair, certify, known_holes
from audit.id_gaps import IdGaps
from audit.month_scan import SOURCES, STRETCH_MS
from audit.trade_holes import UNKNOWN_CAUSE, trade_holes
from domain.events import GapState
from lake.columns import numpy_of
from lake.file_sample import FileSample, sample_of
from lake.gap_ledger import Gap, read_gaps
from lake.part_files import DamagedFile, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.sequence import Rows, Wanted, stored_pieces, trust_ranks, woven
from lake.stream_files import stream_dates, stream_files

NOMINAL_DEPTH_MS: Final = 100
"""depth20@100ms: at most so often; a book that does not change sends nothing."""
_TRADE_COLUMNS: Final = ("agg_trade_id", "transact_time_ms", "event_time_ms", "receive_time_ns")
_DEPTH_COLUMNS: Final = (
    *("transact_time_ms", "event_time_ms", "receive_time_ns"),
    *("final_update_id", "prev_final_update_id"),
)


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """Receipt minus event time of an hour's frames, ms; negative where the local clock is behind."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class StreamHour(msgspec.Struct, kw_only=True):
    """One hour of one symbol's recording.

    Attributes:
        symbol, start_ms: Of whom and when.
        trades_expected: By the ids: found, and missing ones of gaps that begin in the hour.
        trades_found: Rows; ``sources`` says where from.
        depth_expected: One frame every 100 ms of the time recorded; an upper bound.
        depth_found: Rows.
        chain_breaks: Depth frames whose ``pu`` is not the ``u`` before.
        gaps: Entries of the ledger that touch the hour, repaired ones too.
        trade_lag, depth_lag: ``None`` where no frame came over a socket.
    """

    symbol: str
    start_ms: int
    trades_expected: int = 0
    trades_found: int = 0
    sources: dict[str, int] = {}
    depth_expected: int = 0
    depth_found: int = 0
    chain_breaks: int = 0
    gaps: int = 0
    trade_lag: Lag | None = None
    depth_lag: Lag | None = None


class SymbolStream(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's recording."""

    symbol: str
    hours: list[StreamHour]
    holes: list[Hole]
    certificate: list[Hour]


def latest_files(paths: LakePaths) -> dict[Literal["trades", "depth"], FileSample]:
    """The file with the newest frames of each kind, as far as there is one that can be read."""
    found: dict[Literal["trades", "depth"], FileSample] = {}
    for kind in ("trades", "depth"):
        for date in reversed(stream_dates(paths, kind)):
            for path in reversed(stream_files(paths, kind, date)):
                try:
                    found[kind] = sample_of(path)
                except (DamagedFile, FileNotFoundError):  # the audit itself names a damaged one
                    continue
                break
            if kind in found:
                break
    return found


def audit_recording(
    paths: LakePaths,
    symbol: str,
    dates: list[str],
    *,
    now_ms: int,
    on_progress: Callable[[str, float], None] = lambda _date, _done: None,
) -> SymbolStream:
    """Audit some days of one symbol's recording.

    Args:
        paths: The tree.
        symbol: In upper case.
        dates: ``YYYY-MM-DD``, oldest first.
        now_ms: Exchange time.
        on_progress: Called with the date and the share of it that is done (0-1).

    Raises:
        StorageError: The system refused to read a file.
    """
    ledger = [gap for gap in read_gaps(paths.gaps, "recorder") if gap.symbol == symbol]
    scan = _Recording(paths, symbol)
    for date in dates:
        day_ms = date_start_ms(date)
        for start_ms in range(day_ms, day_ms + DAY_MS, STRETCH_MS):
            scan.stretch(start_ms, start_ms + STRETCH_MS)
            on_progress(date, (start_ms + STRETCH_MS - day_ms) / DAY_MS)
    unresolved = [gap for gap in ledger if gap.state is not GapState.REPAIRED]
    first_ms, _ = scan.bounds_ms()
    end_ms = date_start_ms(dates[-1]) + DAY_MS if dates else first_ms
    inside = [gap for gap in unresolved if _is_within(gap, first_ms, end_ms)]
    holes = [
        *trade_holes(symbol, scan.ids, inside, (first_ms, min(end_ms, now_ms))),
        *scan.depth_holes(inside),
    ]
    holes = sorted(
        (part for hole in holes for part in known_holes(hole, unresolved, now_ms)),
        key=lambda hole: hole.from_ms,
    )
    hours = scan.finished_hours(ledger)
    rows = {hour.start_ms: scan.rows_of(hour) for hour in hours}
    return SymbolStream(
        symbol=symbol,
        hours=hours,
        holes=holes,
        certificate=certify(symbol, rows, enumerate(holes), ledger),
    )


def _is_within(gap: Gap, first_ms: int, last_ms: int) -> bool:
    starts = gap.from_ms is None or gap.from_ms <= last_ms
    return starts and (gap.until_ms is None or gap.until_ms >= first_ms)


class _Recording:
    """Reads one symbol's recorded rows stretch by stretch."""

    def __init__(self, paths: LakePaths, symbol: str) -> None:
        self._paths = paths
        self._symbol = symbol
        self.ids = IdGaps()
        self._breaks: list[tuple[int, int]] = []
        self._last_depth: tuple[int, int] | None = None  # time and u
        self._first_depth_ms: int | None = None
        self._hours: dict[int, StreamHour] = {}

    def stretch(self, start_ms: int, end_ms: int) -> None:
        """Read ``[start_ms, end_ms)``."""
        self._trades(start_ms, end_ms)
        self._depth(start_ms, end_ms)

    def bounds_ms(self) -> tuple[int, int]:
        """Times of the first and the last row."""
        firsts = [t for t in (self.ids.first_ms, self._first_depth_ms) if t is not None]
        lasts = [self.ids.last_ms, self._last_depth[0] if self._last_depth else None]
        return min(firsts, default=0), max((t for t in lasts if t is not None), default=-1)

    def depth_holes(self, gaps: list[Gap]) -> list[Hole]:
        """Breaks of the chain, and what the ledger says where the chain says nothing."""
        found = [self._depth_hole(*times, UNKNOWN_CAUSE) for times in self._breaks]
        for gap in gaps:
            if gap.kind != "depth" or gap.from_ms is None:
                continue
            until_ms = self.bounds_ms()[1] if gap.until_ms is None else gap.until_ms
            if not any(a <= until_ms and b >= gap.from_ms for a, b in self._breaks):
                found.append(self._depth_hole(gap.from_ms, until_ms, gap.cause))
        return found

    def finished_hours(self, ledger: list[Gap]) -> list[StreamHour]:
        """Every hour between the first row and the last, with or without rows."""
        first_ms, last_ms = self.bounds_ms()
        for start_ms in range(first_ms - first_ms % HOUR_MS, last_ms + 1, HOUR_MS):
            hour = self._hour(start_ms)
            hour.gaps = sum(_is_within(gap, start_ms, start_ms + HOUR_MS - 1) for gap in ledger)
            hour.trades_expected = hour.trades_found + sum(
                gap.count for gap in self.ids.found() if 0 <= gap.from_ms - start_ms < HOUR_MS
            )
            if self._first_depth_ms is not None and self._last_depth is not None:
                begin_ms = max(start_ms, self._first_depth_ms)
                end_ms = min(start_ms + HOUR_MS, self._last_depth[0] + NOMINAL_DEPTH_MS)
                hour.depth_expected = max(0, end_ms - begin_ms) // NOMINAL_DEPTH_MS
        return [self._hours[start_ms] for start_ms in sorted(self._hours)]

    def rows_of(self, hour: StreamHour) -> dict[str, dict[str, int]]:
        """Rows by kind and source, of the kinds that are recorded of the symbol."""
        rows = {}
        if self.ids.first_id is not None:
            rows["trades"] = hour.sources
        if self._last_depth is not None:
            rows["depth"] = {"stream": hour.depth_found}
        return rows

    def _hour(self, start_ms: int) -> StreamHour:
        if start_ms not in self._hours:
            self._hours[start_ms] = StreamHour(symbol=self._symbol, start_ms=start_ms)
        return self._hours[start_ms]

    def _depth_hole(self, from_ms: int, until_ms: int, cause: str) -> Hole:
        return Hole(
            kind="depth",
            symbol=self._symbol,
            from_ms=from_ms,
            until_ms=until_ms,
            cause=cause,
            repair=Repair.NOBODY,
        )

    def _trades(self, start_ms: int, end_ms: int) -> None:
        wanted = Wanted.of("trades", self._symbol, start_ms, end_ms, _TRADE_COLUMNS)
        table = woven(wanted, stored_pieces(self._paths, wanted, recorded_only=True))
        if not table.num_rows:
            return
        times_ms = numpy_of(table.column("transact_time_ms"))
        self.ids.add(numpy_of(table.column("agg_trade_id")), times_ms)
        lags, has_lag = _lags(table)
        ranks = trust_ranks(table)
        hours = times_ms - times_ms % HOUR_MS
        for start in np.unique(hours).tolist():
            inside = hours == start
            hour = self._hour(start)
            hour.trades_found = int(inside.sum())
            found, counts = np.unique(ranks[inside], return_counts=True)
            hour.sources = {
                SOURCES[rank]: count
                for rank, count in zip(found.tolist(), counts.tolist(), strict=True)
            }
            hour.trade_lag = _lag(lags[inside & has_lag])

    def _depth(self, start_ms: int, end_ms: int) -> None:
        wanted = Wanted.of("depth", self._symbol, start_ms, end_ms, _DEPTH_COLUMNS)
        table = woven(wanted, stored_pieces(self._paths, wanted, recorded_only=True))
        if not table.num_rows:
            return
        times_ms = numpy_of(table.column("transact_time_ms"))
        broken = self._follow_chain(table, times_ms)
        lags, has_lag = _lags(table)
        hours = times_ms - times_ms % HOUR_MS
        for start in np.unique(hours).tolist():
            inside = hours == start
            hour = self._hour(start)
            hour.depth_found = int(inside.sum())
            hour.chain_breaks = int((inside & broken).sum())
            hour.depth_lag = _lag(lags[inside & has_lag])

    def _follow_chain(self, table: Rows, times_ms: np.ndarray) -> np.ndarray:
        """bool[n]: frames that do not follow the one before them; spot's frames name none."""
        finals = numpy_of(table.column("final_update_id"))
        named = numpy_of(table.column("prev_final_update_id").is_valid())
        previous = numpy_of(table.column("prev_final_update_id"))
        last_ms, last_final = self._last_depth or (int(times_ms[0]), int(previous[0]))
        broken: np.ndarray = named & (previous != np.concatenate([[last_final], finals[:-1]]))
        before_ms = np.concatenate([[last_ms], times_ms[:-1]])
        for place in np.flatnonzero(broken).tolist():
            self._breaks.append((int(before_ms[place]), int(times_ms[place])))
        if self._first_depth_ms is None:
            self._first_depth_ms = int(times_ms[0])
        self._last_depth = (int(times_ms[-1]), int(finals[-1]))
        return broken


def _lags(table: Rows) -> tuple[np.ndarray, np.ndarray]:
    """float64[n] receipt minus event time in ms, and bool[n] which rows have both."""
    received, event = table.column("receive_time_ns"), table.column("event_time_ms")
    present = numpy_of(received.is_valid()) & numpy_of(event.is_valid())
    lags_ms: np.ndarray = numpy_of(received) / 1e6 - numpy_of(event)
    return lags_ms, present


def _lag(lags_ms: np.ndarray) -> Lag | None:
    if not len(lags_ms):
        return None
    p50, p95, p99 = np.percentile(lags_ms, (50, 95, 99)).round(1).tolist()
    return Lag(p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=round(float(lags_ms.max()), 1))
