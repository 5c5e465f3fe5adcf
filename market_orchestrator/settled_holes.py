"""What a rebuilt span says about holes: open ones inside it are repaired, what the history lacks is lost.

Pure: the ledger's gaps of one symbol and the rebuilt rows → the events to publish (and so to record).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from data_validator import MissingRange
from domain.events import GapEvent, GapState
from domain.features import FeatureRow
from lake.gap_ledger import Gap

log = structlog.get_logger()


def settled(
    gaps: Sequence[Gap], rows: Iterable[FeatureRow], lost: Iterable[MissingRange], *, at_ns: int
) -> list[GapEvent]:
    """Events for one symbol, those of lost ids first (logged as well).

    Args:
        gaps: what the ledger knows of the symbol's trades.
        rows: windows rebuilt from the exchange's history.
        lost: ids within them that the history does not have.
        at_ns: wall clock now.
    """
    rebuilt = list(rows)
    if not rebuilt:
        return []
    symbol = rebuilt[0].symbol
    gone = sorted((hole.first_id, hole.last_id) for hole in lost)
    events = [
        _event(symbol, (hole.first_id, hole.last_id), (hole.after_ms, hole.before_ms), at_ns)
        for hole in lost
        if not any(gap.state is GapState.LOST and _covers(gap, hole) for gap in gaps)
    ]
    firsts = [row.first_agg_id for row in rebuilt if row.first_agg_id is not None]
    lasts = [row.last_agg_id for row in rebuilt if row.last_agg_id is not None]
    if firsts and lasts:
        covered = _without(min(firsts), max(lasts), gone)
        for gap in gaps:
            events += _repaired(gap, covered, at_ns)
    return events


def _repaired(gap: Gap, covered: Sequence[tuple[int, int]], at_ns: int) -> list[GapEvent]:
    """The parts of an open gap that were rebuilt."""
    if gap.state is not GapState.OPEN or gap.first_id is None:
        return []
    events = []
    for first_id, last_id in covered:
        begin = max(first_id, gap.first_id)
        end = last_id if gap.last_id is None else min(last_id, gap.last_id)
        if begin <= end:
            times_ms = (gap.from_ms, gap.until_ms)
            events.append(_event(gap.symbol, (begin, end), times_ms, at_ns, gap.cause))
    return events


def _without(first_id: int, last_id: int, gone: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The id ranges of ``first_id..last_id`` between those that are gone (sorted)."""
    parts = []
    for gone_first, gone_last in gone:
        if first_id < gone_first:
            parts.append((first_id, min(last_id, gone_first - 1)))
        first_id = max(first_id, gone_last + 1)
    return [*parts, (first_id, last_id)] if first_id <= last_id else parts


def _covers(gap: Gap, hole: MissingRange) -> bool:
    if gap.first_id is None or gap.first_id > hole.first_id:
        return False
    return gap.last_id is None or hole.last_id <= gap.last_id


def _event(
    symbol: str,
    ids: tuple[int, int],
    times_ms: tuple[int | None, int | None],
    at_ns: int,
    repaired_cause: str | None = None,
) -> GapEvent:
    """A repaired hole where the cause of an old one is given, else a lost one."""
    state = GapState.LOST if repaired_cause is None else GapState.REPAIRED
    level = logging.ERROR if state is GapState.LOST else logging.WARNING
    name = f"gap.{state.value}"
    log.log(level, name, symbol=symbol, first_id=ids[0], last_id=ids[1])
    until_ms = times_ms[1]
    return GapEvent(
        kind="trades",
        symbol=symbol,
        first_id=ids[0],
        last_id=ids[1],
        state=state,
        cause=repaired_cause or "missing from the history",
        from_ms=times_ms[0],
        until_ms=until_ms,
        repairable_until_ms=None if until_ms is None else until_ms + AGG_TRADES_REACH_MS,
        at_ns=at_ns,
    )
