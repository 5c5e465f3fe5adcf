"""What the recorder lacks goes into the ledger, what it rejected into the quarantine.

Consumes holes and rejected input of ``StreamRows``; changes ledger and quarantine in memory at once, on
disk with ``flush``.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from collectors.recorder_rows import StreamRows
from domain.events import GapEvent, GapState
from lake.gap_ledger import Gap, GapLedger
from lake.gap_ranges import end_of, range_of
from lake.quarantine import Quarantine


class HoleBook:
    """Between the rows of one recorder, its ledger and its quarantine.

    Args:
        rows: Where holes appear.
        ledger: Of role "recorder".
        quarantine: Gets rejected input.
        wall_ns: Stamped where the input has no time.
        on_hole: Called for every hole entered.
    """

    def __init__(
        self,
        rows: StreamRows,
        ledger: GapLedger,
        quarantine: Quarantine,
        *,
        wall_ns: Callable[[], int],
        on_hole: Callable[[GapEvent], None] = lambda _: None,
    ) -> None:
        self.on_hole = on_hole
        self._rows = rows
        self._ledger = ledger
        self._quarantine = quarantine
        self._wall_ns = wall_ns

    def enter(self, min_age_s: float) -> None:
        """Enter holes (of trades those at least so old), and keep what was rejected."""
        for hole in self._rows.take_holes(min_age_s):
            self._ledger.enter(hole)
            self.on_hole(hole)
        for rejection in self._rows.take_rejections():
            at_ns = rejection.receive_time_ns if rejection.receive_time_ns > 0 else self._wall_ns()
            self._quarantine.add(
                rejection.reason,
                rejection.payload,
                at_ns=at_ns,
                source="recorder",
                symbol=rejection.symbol,
            )

    def enter_recovered(self) -> None:
        """As ``enter``, for frames read again from a journal: what was repaired since is no hole."""
        repaired = [gap for gap in self._ledger.all() if gap.state is GapState.REPAIRED]
        for hole in self._rows.take_holes(0.0):
            for part in _without(hole, repaired):
                self._ledger.enter(part)
        self.enter(0.0)

    def flush(self) -> None:
        """Write both. Blocks: call it in a worker thread.

        Raises:
            StorageError: The disk refused the ledger; its changes are kept.
        """
        self._quarantine.flush()
        self._ledger.flush()


def _without(hole: GapEvent, repaired: list[Gap]) -> list[GapEvent]:
    """The parts of a hole of trades that no repaired gap covers."""
    if hole.first_id is None or hole.last_id is None:
        return [hole]
    known = [
        gap.range()
        for gap in repaired
        if (gap.kind, gap.symbol) == (hole.kind, hole.symbol) and gap.first_id is not None
    ]
    return [
        msgspec.structs.replace(hole, first_id=part.start, last_id=end - 1)
        for part in range_of(hole.first_id, hole.last_id + 1).without(known)
        if (end := end_of(part)) is not None
    ]
