"""One symbol's trades since its oldest retained window, and what was emitted of them. Pure.

Checked trades, described group by group → rows of a window by time, in id order.
"""

from __future__ import annotations

import enum

import msgspec
import numpy as np

from data_validator import CheckedTrades
from domain.market import TRADE_DTYPE
from microstructure.trade_flags import Suspect

PLAIN = np.dtype((np.void, TRADE_DTYPE.itemsize))  # rows as bytes: numpy copies fields one by one
_NOT_A_JUMP = np.uint8(255 - Suspect.PRICE_JUMP)


class Head(enum.Enum):
    """What is known of the first window's time before the first trade received."""

    OPEN = "open"  # being asked from the exchange
    PROVEN = "proven"
    LOST = "lost"  # nothing can tell


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Completeness of one window as known now; ``waiting`` while a hole in it may still be filled.

    ``trade_count`` counts retained trades: 0 for old windows.
    """

    complete: bool
    missing_trades: int | None
    trade_count: int
    waiting: bool


class Group(msgspec.Struct, frozen=True, gc=False):
    """New rows of one symbol: what of them is asked for again and again, as plain numbers."""

    index: int
    plain: np.ndarray
    first_id: int
    last_id: int
    times: tuple[int, int]  # lowest and highest transaction time
    is_ordered: bool  # ids ascend, times do not descend


def described(checked: CheckedTrades) -> list[Group]:
    """The groups of a batch; computed together, since batches of many symbols hold tiny groups."""
    if not checked.groups:
        return []
    rows = checked.rows
    ids, times = rows["agg_trade_id"], rows["transact_time_ms"]
    starts = [start for _, start, _ in checked.groups]
    ordered = np.ones(len(rows), dtype=np.bool_)
    ordered[1:] = (ids[1:] > ids[:-1]) & (times[1:] >= times[:-1])
    ordered[starts] = True
    lowest, highest = np.minimum.reduceat(times, starts), np.maximum.reduceat(times, starts)
    is_ordered = np.logical_and.reduceat(ordered, starts)
    first_ids = ids[starts].tolist()
    last_ids = ids[[stop - 1 for _, _, stop in checked.groups]].tolist()
    spans = zip(lowest.tolist(), highest.tolist(), strict=True)
    plain = rows.view(PLAIN)
    facts = zip(checked.groups, first_ids, last_ids, spans, is_ordered.tolist(), strict=True)
    return [
        Group(index, plain[start:stop], first_id, last_id, span, order)
        for (index, start, stop), first_id, last_id, span, order in facts
    ]


def group_of(index: int, rows: np.ndarray) -> Group:
    none = rows[:0]
    return described(CheckedTrades(rows, [(index, 0, len(rows))], none, none, set()))[0]


class Lane:
    """One symbol: its trades since the oldest retained window, and what was emitted of them."""

    __slots__ = (
        "count",
        "emitted",
        "head",
        "held_since_ns",
        "last_id",
        "last_ms",
        "monotonic",
        "plain",
        "rows",
        "times",
        "unknown_from_ms",
        "unproven_until_ms",
    )

    def __init__(self) -> None:
        self.rows = np.empty(64, dtype=TRADE_DTYPE)
        self.plain = self.rows.view(PLAIN)  # the same memory
        self.times = self.rows["transact_time_ms"]  # likewise
        self.count = 0
        self.monotonic = True  # ids and times both ascend in ``rows``
        self.last_id = 0  # of the last row, which is the highest while monotonic
        self.last_ms = 0
        self.emitted: dict[int, Verdict] = {}
        self.held_since_ns: int | None = None
        self.head = Head.OPEN
        self.unknown_from_ms: int | None = None
        self.unproven_until_ms = 0  # while the head is not proven

    def append(self, group: Group) -> None:
        need = self.count + len(group.plain)
        if need > len(self.rows):
            grown = np.empty(max(need, len(self.rows) * 3 // 2), dtype=PLAIN)
            grown[: self.count] = self.plain[: self.count]
            self.plain, self.rows = grown, grown.view(TRADE_DTYPE)
            self.times = self.rows["transact_time_ms"]
        self.plain[self.count : need] = group.plain
        if self.count and self.monotonic:
            self.monotonic = group.first_id > self.last_id and group.times[0] >= self.last_ms
        self.monotonic = self.monotonic and group.is_ordered
        self.last_id, self.last_ms = group.last_id, group.times[1]
        self.count = need

    def cut(self, start_ms: int, end_ms: int) -> np.ndarray:
        """Trades with start ≤ T < end, by id, as plain bytes."""
        times = self.times[: self.count]
        if self.monotonic:
            first = int(times.searchsorted(start_ms))
            return self.plain[first : first + int(times[first:].searchsorted(end_ms))]
        chosen = self.rows[: self.count][(times >= start_ms) & (times < end_ms)]
        ordered: np.ndarray = chosen[np.argsort(chosen["agg_trade_id"], kind="stable")]
        return ordered.view(PLAIN)

    def replace(self, row: np.ndarray) -> None:
        """Put an authoritative copy of a trade in the place of the doubted one."""
        where = np.flatnonzero(self.rows["agg_trade_id"][: self.count] == row["agg_trade_id"][0])
        if len(where):
            self.rows[where[0]] = row[0]
            self.monotonic = False

    def confirm_jump(self, trade_id: int) -> None:
        """Take the doubt from a trade whose price the market has borne out, if it is still retained."""
        where = np.flatnonzero(self.rows["agg_trade_id"][: self.count] == trade_id)
        self.rows["suspect"][where] &= _NOT_A_JUMP

    def prune(self, before_ms: int) -> None:
        """Forget trades before a time, once that frees a quarter of them."""
        times = self.times[: self.count]
        if not self.count or (self.monotonic and before_ms <= times[self.count // 4]):
            return
        keep = times >= before_ms
        kept = int(np.count_nonzero(keep))
        if kept * 4 <= self.count * 3:
            self.plain[:kept] = self.plain[: self.count][keep]
            self.count = kept
            if kept and not self.monotonic:
                ids, times = self.rows["agg_trade_id"][:kept], self.times[:kept]
                ascends = (ids[1:] > ids[:-1]).all() and (times[1:] >= times[:-1]).all()
                self.monotonic = bool(ascends)
                self.last_id, self.last_ms = int(ids[-1]), int(times[-1])
            self.monotonic = self.monotonic or not kept
