"""Holes in the ids of recorded trades that the ledger does not know: a file was damaged or removed.

Consumes the stream files of some dates, produces ledger entries, so that repair can work them off.
Only what lies between stored trades can be seen; before the first and after the last one it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from lake.gap_ledger import Gap, GapLedger
from lake.part_files import DamagedFile, set_aside
from lake.paths import LakePaths
from lake.repaired_rows import ids_and_times
from lake.stream_files import read_stream_file, stream_dates, stream_files, symbol_codes

log = structlog.get_logger()

CAUSE = "not stored"
_COLUMNS = ("symbol", "agg_trade_id", "transact_time_ms")


def enter_stored_holes(
    paths: LakePaths, ledger: GapLedger, *, at_ns: int, dates: int | None = None
) -> list[Gap]:
    """Name every hole between stored trades that no entry speaks of. Blocks on the disk.

    Args:
        paths: The tree; the caller holds its "recorder" lock.
        ledger: Of role "recorder".
        at_ns: Wall clock now.
        dates: Only so many of the newest recorded dates; ``None``: all.

    Returns:
        The entries that are new.
    """
    wanted = stream_dates(paths, "trades")
    last: dict[str, tuple[int, int]] = {}  # of the dates before: id and time of the newest trade
    entered: list[Gap] = []
    for date in wanted if dates is None else wanted[-dates:]:
        for symbol, of_date, at_ms in _trades_of(paths, date):
            before = last.get(symbol, (int(of_date[0]), int(at_ms[0])))
            ids, times = np.append(before[0], of_date), np.append(before[1], at_ms)
            for place in np.flatnonzero(np.diff(ids) > 1).tolist():
                until_ms = int(times[place + 1])
                entered += ledger.found(
                    "trades",
                    symbol,
                    int(ids[place]) + 1,
                    int(ids[place + 1]) - 1,
                    cause=CAUSE,
                    at_ns=at_ns,
                    from_ms=int(times[place]),
                    until_ms=until_ms,
                    repairable_until_ms=until_ms + AGG_TRADES_REACH_MS,
                )
            last[symbol] = (int(ids[-1]), int(times[-1]))
    for gap in entered:
        log.warning(
            "recorder.stored_hole",
            symbol=gap.symbol,
            first_id=gap.first_id,
            last_id=gap.last_id,
            missing_count=gap.missing_count,
        )
    return entered


def _trades_of(paths: LakePaths, date: str) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
    """Symbol, ascending ids (each once) and their times of one date."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in stream_files(paths, "trades", date):
        try:
            table = read_stream_file(path, "trades", columns=_COLUMNS)
        except FileNotFoundError:
            continue  # merged away meanwhile: the caller alone writes, so this is a foreign hand
        except DamagedFile as damaged:
            set_aside(path.parent, damaged)
            continue
        codes, names = symbol_codes(table)
        ids, times = ids_and_times(table)
        for code, name in enumerate(names):
            mine = codes == code
            if mine.any():
                found.setdefault(name, []).append((ids[mine], times[mine]))
    for symbol, parts in sorted(found.items()):
        ids, first = np.unique(np.concatenate([ids for ids, _ in parts]), return_index=True)
        yield symbol, ids, np.concatenate([times for _, times in parts])[first]
