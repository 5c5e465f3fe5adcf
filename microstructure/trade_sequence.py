"""Which ids of a symbol's trades are known, and which are missing between them.

Ids as they come (in order or not, from a socket or from REST) → the holes, with the times around them.
"""

from __future__ import annotations

import msgspec


class MissingRange(msgspec.Struct):
    """Ids that were skipped: ``first_id..last_id``, between two known trades.

    ``after_ms`` and ``before_ms`` are the transaction times of the trades around the hole. What is
    left of one that is filled in part is as ``lost`` and as ``is_told`` (to the ledger) as it was.
    """

    first_id: int
    last_id: int
    after_ms: int
    before_ms: int
    since_ns: int
    lost: bool = False
    absent_replies: int = 0
    is_told: bool = False

    @property
    def count(self) -> int:
        """Number of ids in the range."""
        return self.last_id - self.first_id + 1


class TradeSequence:
    """What is known about one symbol's ids: the highest, the holes below it, the disputed ones."""

    __slots__ = ("disputed", "first_id", "first_ms", "last_ms", "max_id", "missing")

    def __init__(self) -> None:
        self.first_id: int | None = None
        self.first_ms = 0
        self.max_id: int | None = None
        self.last_ms = 0  # transaction time of the trade with the highest id
        self.missing: list[MissingRange] = []
        self.disputed: set[int] = set()

    def resume(self, last_id: int, last_ms: int) -> None:
        """Continue after a known trade, as if it had been the last one received."""
        self.first_id, self.first_ms = last_id, last_ms
        self.max_id, self.last_ms = last_id, last_ms

    def extend(self, trade_id: int, time_ms: int, now_ns: int) -> bool:
        """Take an id into the sequence; False if it is already there (a duplicate)."""
        if self.max_id is None:
            self.first_id, self.first_ms = trade_id, time_ms
        elif trade_id <= self.max_id:
            return self._fill(trade_id, time_ms)
        elif trade_id > self.max_id + 1:
            self.missing.append(
                MissingRange(self.max_id + 1, trade_id - 1, self.last_ms, time_ms, now_ns)
            )
        self.max_id, self.last_ms = trade_id, time_ms
        return True

    def extend_head(self, first_id: int, first_ms: int) -> None:
        """Trades before the first one became known, contiguous with it."""
        self.first_id, self.first_ms = first_id, first_ms

    def mark_lost(self, first_id: int, last_id: int) -> None:
        """The exchange cannot give these back: they block nothing any more."""
        for gap in list(self.missing):
            if gap.first_id > last_id or gap.last_id < first_id or gap.lost:
                continue
            self._cut(gap, max(first_id, gap.first_id), min(last_id, gap.last_id))

    def forget_before(self, time_ms: int) -> None:
        """Drop holes that lie wholly before a time; the gap ledger keeps them."""
        self.missing = [gap for gap in self.missing if gap.before_ms >= time_ms]

    def _cut(self, gap: MissingRange, first_id: int, last_id: int) -> None:
        index = self.missing.index(gap)
        parts = []
        if gap.first_id < first_id:
            parts.append(msgspec.structs.replace(gap, last_id=first_id - 1))
        parts.append(msgspec.structs.replace(gap, first_id=first_id, last_id=last_id, lost=True))
        if gap.last_id > last_id:
            parts.append(msgspec.structs.replace(gap, first_id=last_id + 1))
        self.missing[index : index + 1] = parts

    def _fill(self, trade_id: int, time_ms: int) -> bool:
        for index, gap in enumerate(self.missing):
            if gap.first_id <= trade_id <= gap.last_id:
                parts = []
                if gap.first_id < trade_id:
                    parts.append(msgspec.structs.replace(gap, last_id=trade_id - 1))
                if trade_id < gap.last_id:
                    parts.append(msgspec.structs.replace(gap, first_id=trade_id + 1))
                self.missing[index : index + 1] = parts
                self._narrow(trade_id, time_ms)
                return True
        return False

    def _narrow(self, trade_id: int, time_ms: int) -> None:
        """A trade found between holes bounds the times of all that reach up to it."""
        last_id = trade_id - 1
        for gap in reversed(self.missing):
            if gap.last_id == last_id:
                gap.before_ms = min(gap.before_ms, time_ms)
                last_id = gap.first_id - 1
        first_id = trade_id + 1
        for gap in self.missing:
            if gap.first_id == first_id:
                gap.after_ms = max(gap.after_ms, time_ms)
                first_id = gap.last_id + 1
