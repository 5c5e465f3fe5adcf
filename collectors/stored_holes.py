"""Holes in the ids of recorded trades that the ledger does not know: a file was damaged or removed.

Consumes the stream files of some dates and how far recording had come, produces ledger entries, so that
repair can work them off. Only what lies between stored trades, or between the last stored one and the
last recorded one, can be seen. A day that is gone as a whole was deleted on purpose (``prune``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
import numpy as np
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from collectors.recorder_recovery import positions_at
from domain.errors import StorageError
from lake.gap_ledger import Gap, GapLedger
from lake.gap_ranges import end_of, range_of
from lake.part_files import DamagedFile, date_start_ms, set_aside
from lake.paths import DAY_MS, LakePaths
from lake.repaired_rows import ids_and_times
from lake.stream_files import (
    StreamTable,
    read_stream_file,
    stream_dates,
    stream_files,
    symbol_codes,
)

log = structlog.get_logger()

CAUSE = "not stored"
_COLUMNS = ("symbol", "agg_trade_id", "transact_time_ms")
_ATTEMPTS: Final = 20

type Trade = tuple[int, int]
"""Id, and exchange time in ms."""
type Trades = tuple[np.ndarray, np.ndarray]
"""Ascending ids, each once, and their times."""


class Recorded(msgspec.Struct, frozen=True):
    """What was recorded before this process: nobody adds to it but those who repair ``known``.

    Attributes:
        until: By symbol, the last trade; of others there is no bound.
        known: What was named as missing.
    """

    until: Mapping[str, Trade]
    known: tuple[Gap, ...]


def recorded_before(paths: LakePaths, ledger: GapLedger, running: Iterable[str] = ()) -> Recorded:
    """As it is now: call it before anybody repairs or records. Blocks on the disk.

    Args:
        paths: The tree; the caller holds its "recorder" lock.
        ledger: Of role "recorder".
        running: Symbols that are about to be recorded: all of theirs that is new is out of bounds.
    """
    until = {
        symbol: (at.trade_id, at.trade_ms)
        for symbol, at in positions_at(paths.stream_journal).items()
        if at.trade_id is not None
    }
    return Recorded(
        {**dict.fromkeys(running, (-1, 0)), **until}, tuple(ledger.unresolved("trades"))
    )


def enter_stored_holes(
    paths: LakePaths,
    ledger: GapLedger,
    recorded: Recorded,
    *,
    at_ns: int,
    dates: int | None = None,
) -> list[Gap]:
    """Name every hole in what was recorded that no entry speaks of. Blocks on the disk.

    A recorder and its repairs may run beside.

    Args:
        paths: The tree; the caller holds its "recorder" lock.
        ledger: Of role "recorder".
        recorded: Where to look.
        at_ns: Wall clock now.
        dates: Only so many of the newest recorded dates; ``None``: all.

    Returns:
        The entries that are new.

    Raises:
        StorageError: The disk refused.
    """
    entered: list[Gap] = []
    for symbol, before, after in _holes(paths, recorded, dates):
        first_id, end_id = before[0] + 1, after[0]
        named = [gap.range() for gap in recorded.known if _is_of(gap, symbol)]
        for part in range_of(first_id, end_id).without(named):
            entered += ledger.found(
                *("trades", symbol, part.start, (end_of(part) or end_id) - 1),
                cause=CAUSE,
                at_ns=at_ns,
                from_ms=before[1],
                until_ms=after[1],
                repairable_until_ms=after[1] + AGG_TRADES_REACH_MS,
            )
    for gap in entered:
        log.warning(
            "recorder.stored_hole",
            symbol=gap.symbol,
            first_id=gap.first_id,
            last_id=gap.last_id,
            missing_count=gap.missing_count,
        )
    return entered


def _is_of(gap: Gap, symbol: str) -> bool:
    return gap.symbol == symbol and gap.first_id is not None


def _holes(
    paths: LakePaths, recorded: Recorded, dates: int | None
) -> Iterator[tuple[str, Trade, Trade]]:
    """Symbol and the trades around each hole."""
    wanted = stream_dates(paths, "trades")
    last: dict[str, Trade] = {}  # of the dates before
    end_ms = 0
    for date in wanted if dates is None else wanted[-dates:]:
        start_ms = date_start_ms(date)
        if start_ms > end_ms:  # the days between are gone
            last = {}
        end_ms = start_ms + DAY_MS
        for symbol, found in _trades_of(paths, date):
            ids, times = _within(found, recorded.until.get(symbol), last.get(symbol))
            for place in np.flatnonzero(np.diff(ids) > 1).tolist():
                before, after = ((int(ids[n]), int(times[n])) for n in (place, place + 1))
                yield symbol, before, after
            if len(ids):
                last[symbol] = (int(ids[-1]), int(times[-1]))
    for symbol, (trade_id, time_ms) in sorted(last.items()):
        until_id, until_ms = recorded.until.get(symbol, (trade_id, time_ms))
        if until_id > trade_id and until_ms < end_ms + DAY_MS:
            yield symbol, (trade_id, time_ms), (until_id + 1, until_ms + 1)


def _within(trades: Trades, until: Trade | None, before: Trade | None) -> Trades:
    """Those that are not out of bounds, after the last one of the dates before."""
    ids, times = trades
    if until is not None:
        count = int(np.searchsorted(ids, until[0], side="right"))
        ids, times = ids[:count], times[:count]
    if before is None:
        return ids, times
    start = int(np.searchsorted(ids, before[0], side="right"))
    ids, times = ids[start:], times[start:]
    return np.append(before[0], ids), np.append(before[1], times)


def _trades_of(paths: LakePaths, date: str) -> Iterator[tuple[str, Trades]]:
    """Symbol and trades of one date."""
    found: dict[str, list[Trades]] = {}
    for table in _tables_of(paths, date):
        codes, names = symbol_codes(table)
        ids, times = ids_and_times(table)
        for code, name in enumerate(names):
            mine = codes == code
            if mine.any():
                found.setdefault(name, []).append((ids[mine], times[mine]))
    for symbol, parts in sorted(found.items()):
        ids, first = np.unique(np.concatenate([ids for ids, _ in parts]), return_index=True)
        yield symbol, (ids, np.concatenate([times for _, times in parts])[first])


def _tables_of(paths: LakePaths, date: str) -> list[StreamTable]:
    for _ in range(_ATTEMPTS):
        tables = []
        try:
            for path in stream_files(paths, "trades", date):
                try:
                    tables.append(read_stream_file(path, "trades", columns=_COLUMNS))
                except DamagedFile as damaged:
                    set_aside(path.parent, damaged)
        except FileNotFoundError:  # merged meanwhile
            continue
        return tables
    raise StorageError(f"cannot read {paths.stream('trades', date)}: its files keep changing")
