"""The completeness certificate: what can be said of each hour of one symbol. Pure.

Consumes the holes an audit found, what the gap ledger knows of them, and how many rows of each hour
came from where; produces one entry per hour: whole, repaired (from what), or holed (what, why, until
when it can be repaired).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from domain.events import GapState
from lake.gap_ledger import Gap
from lake.gap_ranges import Range
from lake.sequence import HISTORICAL

HOUR_MS: Final = 3_600_000
REST_REACH_MS: Final = 48 * HOUR_MS
"""https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Compressed-Aggregate-Trades-List"""

type HoleKind = Literal["trades", "depth", "klines"]


class Status(enum.StrEnum):
    """What an hour is."""

    WHOLE = "whole"
    REPAIRED = "repaired"
    HOLED = "holed"


class Repair(enum.StrEnum):
    """Who can still give back what is missing."""

    REST = "rest"
    ARCHIVE = "archive"
    NOBODY = "nobody"


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is missing.

    Attributes:
        kind, symbol: What of whom.
        from_ms, until_ms: Trades and depth: exchange time of the last message before it and of the
            first after it. Klines: open time of the first missing bar, and of the one after the last.
        first_id, last_id: Trades: the missing ids as far as they are known.
        missing_count: Ids or bars; ``None`` if unknown.
        cause: Why, in a word.
        repair: Who can give it back.
        repairable_until_ms: Until when; ``None``: no end is known.
    """

    kind: HoleKind
    symbol: str
    from_ms: int
    until_ms: int
    first_id: int | None = None
    last_id: int | None = None
    missing_count: int | None = None
    cause: str
    repair: Repair
    repairable_until_ms: int | None = None

    def touches(self, start_ms: int, end_ms: int) -> bool:
        """Whether ``[start_ms, end_ms)`` may lack something of it."""
        if self.kind == "klines":
            return self.from_ms < end_ms and self.until_ms > start_ms
        # what is missing may bear the same ms as the message before or after
        return self.from_ms < end_ms and self.until_ms >= start_ms


class Hour(msgspec.Struct, frozen=True, kw_only=True):
    """One hour of one symbol.

    Attributes:
        rows: Rows by kind and source, as ``{"trades": {"stream": 812}}``; of the kinds that ought
            to be there: of others nothing is certified.
        repaired_from: Sources that filled holes.
        holes: Positions in the report's list of holes.
    """

    symbol: str
    start_ms: int
    status: Status
    rows: dict[str, dict[str, int]]
    repaired_from: list[str] = []
    holes: list[int] = []


def known_holes(hole: Hole, ledger: Iterable[Gap], now_ms: int) -> list[Hole]:
    """The same hole with its cause and its chances, in parts where the ledger knows several.

    Args:
        hole: As found in the rows.
        ledger: The symbol's gaps that nothing has repaired.
        now_ms: Exchange time; decides whether REST still reaches what the ledger does not know.
    """
    gaps = [gap for gap in ledger if gap.kind == hole.kind and _is_same(gap, hole)]
    if hole.first_id is None or hole.last_id is None:
        return [_told(hole, gaps[0])] if gaps else [_untold(hole, now_ms)]
    found, rest = [], [Range(hole.first_id, hole.last_id + 1)]
    for gap in gaps:
        told = gap.range() if gap.first_id is not None else rest[0]
        parts = [part for left in rest if (part := left.overlap(told)) is not None]
        found += [_told(_part(hole, part), gap) for part in parts]
        rest = [part for left in rest for part in left.without([told])]
        if not rest:
            break
    found += [_untold(_part(hole, part), now_ms) for part in rest]
    return sorted(found, key=lambda part: part.first_id or 0)


def _part(hole: Hole, ids: Range) -> Hole:
    end = int(ids.end)
    return msgspec.structs.replace(
        hole, first_id=ids.start, last_id=end - 1, missing_count=end - ids.start
    )


def _told(hole: Hole, gap: Gap) -> Hole:
    is_hopeful = gap.kind == "trades" and gap.state is not GapState.LOST
    return msgspec.structs.replace(
        hole,
        cause=gap.cause,
        repair=_REPAIR_OF[gap.state] if is_hopeful else Repair.NOBODY,
        repairable_until_ms=gap.repairable_until_ms if is_hopeful else None,
    )


def _untold(hole: Hole, now_ms: int) -> Hole:
    rest_until_ms = hole.from_ms + REST_REACH_MS
    if hole.kind != "trades" or hole.repair is Repair.NOBODY or now_ms >= rest_until_ms:
        return hole
    return msgspec.structs.replace(hole, repair=Repair.REST, repairable_until_ms=rest_until_ms)


_REPAIR_OF: Final = {
    GapState.OPEN: Repair.REST,
    GapState.EXPIRED: Repair.ARCHIVE,
    GapState.LOST: Repair.NOBODY,
}


def _is_same(gap: Gap, hole: Hole) -> bool:
    """They share ids, or time where one of them has no ids."""
    if gap.first_id is not None and hole.first_id is not None and hole.last_id is not None:
        ends_after = gap.last_id is None or gap.last_id >= hole.first_id
        return gap.first_id <= hole.last_id and ends_after
    return _may_be_in(gap, hole.from_ms, hole.until_ms + 1)


def certify(
    symbol: str,
    hours: Mapping[int, dict[str, dict[str, int]]],
    holes: Iterable[tuple[int, Hole]],
    ledger: Iterable[Gap],
) -> list[Hour]:
    """One entry per hour.

    Args:
        symbol: Whose.
        hours: Start of each hour that is to be whole, ms → its rows by kind and source. Hours that
            lie in a hole are added.
        holes: The symbol's holes with their positions in the report.
        ledger: All gaps the ledger has of the symbol, repaired ones too.
    """
    holes, ledger = list(holes), list(ledger)
    found = []
    in_holes = {
        start_ms
        for _, hole in holes
        for start_ms in range(hole.from_ms - hole.from_ms % HOUR_MS, hole.until_ms, HOUR_MS)
    }
    for start_ms in sorted(in_holes | hours.keys()):
        rows = hours.get(start_ms, {})
        inside = [place for place, hole in holes if hole.touches(start_ms, start_ms + HOUR_MS)]
        sources = _repairs(start_ms, rows.get("trades", {}), ledger)
        status = Status.HOLED if inside else Status.REPAIRED if sources else Status.WHOLE
        found.append(
            Hour(
                symbol=symbol,
                start_ms=start_ms,
                status=status,
                rows=rows,
                repaired_from=sorted(sources),
                holes=inside,
            )
        )
    return found


def _repairs(start_ms: int, sources: Mapping[str, int], ledger: Iterable[Gap]) -> set[str]:
    """Where rows of an hour came from that its recording lacked."""
    found = {source for source in sources if source in {"rest", "archive"}}
    for gap in ledger:
        if not _may_be_in(gap, start_ms, start_ms + HOUR_MS):
            continue
        if gap.repaired_by is not None:
            found.add(gap.repaired_by)
        elif gap.kind == "trades" and HISTORICAL in sources:
            found.add(HISTORICAL)  # the ledger speaks of the recording alone
    return found


def _may_be_in(gap: Gap, start_ms: int, end_ms: int) -> bool:
    starts = gap.from_ms is None or gap.from_ms < end_ms
    return starts and (gap.until_ms is None or gap.until_ms >= start_ms)
