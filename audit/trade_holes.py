"""Which trades are missing: by the ids of the rows, and by the ledger where no row can show it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from audit.certificate import Hole, Repair
from audit.id_gaps import IdGaps
from lake.gap_ledger import Gap

UNKNOWN_CAUSE: Final = "not in the ledger"


def trade_holes(
    symbol: str, ids: IdGaps, unresolved: Iterable[Gap], bounds_ms: tuple[int, int]
) -> list[Hole]:
    """All holes in the trades of one symbol.

    Args:
        symbol: Whose.
        ids: What the rows lack between the first and the last of them.
        unresolved: Entries of the ledger that nothing has repaired.
        bounds_ms: What was audited; gaps that lie outside do not count.
    """
    holes = [
        Hole(
            kind="trades",
            symbol=symbol,
            from_ms=gap.from_ms,
            until_ms=gap.until_ms,
            first_id=gap.first_id,
            last_id=gap.last_id,
            missing_count=gap.count,
            cause=UNKNOWN_CAUSE,
            repair=Repair.ARCHIVE,
        )
        for gap in ids.found()
    ]
    start_ms, end_ms = bounds_ms
    for gap in unresolved:
        from_ms = start_ms if gap.from_ms is None else gap.from_ms
        until_ms = end_ms if gap.until_ms is None else gap.until_ms
        if gap.kind == "trades" and from_ms < end_ms and until_ms > start_ms:
            if _is_decided(gap, ids):
                continue
            hole = Hole(
                kind="trades",
                symbol=symbol,
                from_ms=from_ms,
                until_ms=until_ms,
                first_id=gap.first_id,
                last_id=gap.last_id,
                missing_count=gap.missing_count,
                cause=gap.cause,
                repair=Repair.ARCHIVE,
            )
            holes.append(hole)
    return holes


def _is_decided(gap: Gap, ids: IdGaps) -> bool:
    """Whether the ids of the rows on both sides tell what of a gap is missing."""
    if ids.first_id is None or ids.last_id is None or ids.first_ms is None or ids.last_ms is None:
        return False
    if gap.first_id is not None:
        return ids.first_id < gap.first_id < ids.last_id
    if gap.from_ms is None or gap.until_ms is None:
        return False
    return ids.first_ms <= gap.from_ms and gap.until_ms <= ids.last_ms
