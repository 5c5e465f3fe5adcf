"""Checked trades → windows of event time, closed by proof, revised when late trades change them.

Pure and synchronous: time comes in as arguments. A window ``[start, start + D)`` of a symbol closes
when trades up to ``end + lateness`` are proven to have arrived (own trades, or the trade route's
time) and no hole touches it; a hole holds it back for a bounded time, then it is emitted incomplete.
Rows are retained for a while after emission, so that late trades and repairs rebuild the window.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from data_validator import CheckedTrades, MissingRange, TradeSequence
from domain.flow import Origin, WindowBatch
from domain.market import TRADE_DTYPE
from microstructure.trade_flags import Suspect

_NEVER = np.iinfo(np.int64).max // 2
_MAX_EVENT_DELAY_MS = 10_000  # an event time further beyond all trades is not believed
_NOT_A_JUMP = np.uint8(255 - Suspect.PRICE_JUMP)
_LOOK_AGAIN_NS = 100_000_000  # how often holes that may still be filled are looked at again
_PLAIN = np.dtype((np.void, TRADE_DTYPE.itemsize))  # rows as bytes: numpy copies fields one by one


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in milliseconds.

    Attributes:
        duration_ms: D, a divisor of a day.
        lateness_ms: how far past its end the proof for a window must reach.
        hold_ms: how long a hole or an unproven route may hold a window back.
        retain_ms: how long trades of emitted windows are kept for rebuilding them.
        silence_ms: a trade route silent for longer must be verified symbol by symbol.
        batch_symbols: symbols computed at once, so that no boundary blocks the loop for long.
    """

    duration_ms: int = 5_000
    lateness_ms: int = 250
    hold_ms: int = 3_000
    retain_ms: int = 30_000
    silence_ms: int = 5_000
    batch_symbols: int = 50


class Head(enum.Enum):
    """What is known of the first window's time before the first trade received."""

    OPEN = "open"  # being asked from the exchange
    PROVEN = "proven"
    LOST = "lost"  # nothing can tell


class Verdict(msgspec.Struct, frozen=True):
    """Completeness of one window as known now; ``waiting`` while a hole in it may still be filled.

    ``trade_count`` counts retained trades: 0 for old windows.
    """

    complete: bool
    missing_trades: int | None
    trade_count: int
    waiting: bool


class Closed(msgspec.Struct, frozen=True):
    """What a call produced: windows in order of their start, and old windows to rebuild from REST."""

    batches: list[WindowBatch]
    stale: list[tuple[int, int]]  # (symbol_index, start_ms)


_NOTHING = Closed([], [])


class _Group(msgspec.Struct, frozen=True, gc=False):
    """New rows of one symbol: what of them is asked for again and again, as plain numbers."""

    index: int
    plain: np.ndarray
    first_id: int
    last_id: int
    times: tuple[int, int]  # lowest and highest transaction time
    is_ordered: bool  # ids ascend, times do not descend


def _described(checked: CheckedTrades) -> list[_Group]:
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
    plain = rows.view(_PLAIN)
    facts = zip(checked.groups, first_ids, last_ids, spans, is_ordered.tolist(), strict=True)
    return [
        _Group(index, plain[start:stop], first_id, last_id, span, order)
        for (index, start, stop), first_id, last_id, span, order in facts
    ]


def _group(index: int, rows: np.ndarray) -> _Group:
    none = rows[:0]
    return _described(CheckedTrades(rows, [(index, 0, len(rows))], none, none, set()))[0]


class _Lane:
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
        "unknown_from_ms",
        "unproven_until_ms",
    )

    def __init__(self) -> None:
        self.rows = np.empty(64, dtype=TRADE_DTYPE)
        self.plain = self.rows.view(_PLAIN)  # the same memory
        self.count = 0
        self.monotonic = True  # ids and times both ascend in ``rows``
        self.last_id = 0  # of the last row, which is the highest while monotonic
        self.last_ms = 0
        self.emitted: dict[int, Verdict] = {}
        self.held_since_ns: int | None = None
        self.head = Head.OPEN
        self.unknown_from_ms: int | None = None
        self.unproven_until_ms = 0  # while the head is not proven

    def append(self, group: _Group) -> None:
        need = self.count + len(group.plain)
        if need > len(self.rows):
            grown = np.empty(max(need, len(self.rows) * 3 // 2), dtype=_PLAIN)
            grown[: self.count] = self.plain[: self.count]
            self.plain, self.rows = grown, grown.view(TRADE_DTYPE)
        self.plain[self.count : need] = group.plain
        if self.count and self.monotonic:
            self.monotonic = group.first_id > self.last_id and group.times[0] >= self.last_ms
        self.monotonic = self.monotonic and group.is_ordered
        self.last_id, self.last_ms = group.last_id, group.times[1]
        self.count = need

    def slice(self, start_ms: int, end_ms: int) -> np.ndarray:
        """Trades with start ≤ T < end, by id."""
        rows = self.rows[: self.count]
        times = rows["transact_time_ms"]
        if self.monotonic:
            first, stop = times.searchsorted((start_ms, end_ms)).tolist()
            return rows[first:stop]
        chosen = rows[(times >= start_ms) & (times < end_ms)]
        return chosen[np.argsort(chosen["agg_trade_id"], kind="stable")]

    def count_between(self, start_ms: int, end_ms: int) -> int:
        """Number of trades with start ≤ T < end."""
        times = self.rows["transact_time_ms"][: self.count]
        if self.monotonic:
            first, stop = times.searchsorted((start_ms, end_ms)).tolist()
            return int(stop - first)
        return int(np.count_nonzero((times >= start_ms) & (times < end_ms)))

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
        times = self.rows["transact_time_ms"][: self.count]
        if not self.count or (self.monotonic and before_ms <= times[self.count // 4]):
            return
        keep = times >= before_ms
        kept = int(np.count_nonzero(keep))
        if kept * 4 <= self.count * 3:
            self.plain[:kept] = self.plain[: self.count][keep]
            self.count = kept
            if kept and not self.monotonic:
                ids, times = self.rows["agg_trade_id"][:kept], self.rows["transact_time_ms"][:kept]
                ascends = (ids[1:] > ids[:-1]).all() and (times[1:] >= times[:-1]).all()
                self.monotonic = bool(ascends)
                self.last_id, self.last_ms = int(ids[-1]), int(times[-1])
            self.monotonic = self.monotonic or not kept


class WindowBuilder:
    """Builds the windows of a fixed list of symbols that share one trade route."""

    def __init__(
        self,
        sequences: Sequence[TradeSequence],
        settings: WindowSettings | None = None,
        *,
        repairable: bool = True,
    ) -> None:
        """``repairable`` is False where nothing can be asked (replay): the head is lost at once."""
        self.settings = settings or WindowSettings()
        self.sequences = sequences
        self.route_ms = 0  # the route's trades up to here have been received
        self._repairable = repairable
        count = len(sequences)
        self._lanes = [_Lane() for _ in range(count)]
        self._next_end = np.full(count, _NEVER, dtype=np.int64)
        self._own_ms = np.zeros(count, dtype=np.int64)
        self._covered = np.ones(count, dtype=np.bool_)
        self._dirty: set[int] = set()
        self._replaced: set[tuple[int, int]] = set()  # windows whose content changed, count or not
        self._next_look_ns = 0
        self._newest_ms = 0
        self._due_ms = 0
        self.first_start_ms: int | None = None
        self.emitted_count = 0

    # --- what is fed in -------------------------------------------------------------------

    def ingest(self, checked: CheckedTrades, *, live: bool) -> list[tuple[int, int]]:
        """Take checked trades; ``live`` when they came over a socket (not REST).

        Returns:
            (symbol_index, window start) of emitted windows whose trades are no longer retained and
            that therefore must be rebuilt from REST.
        """
        orphans: set[tuple[int, int]] = set()
        if self.first_start_ms is None and len(checked.rows):
            self.begin(int(checked.rows["transact_time_ms"].min()))
        groups = _described(checked)
        if groups:
            orphans = self._take(groups, live=live)
        for i in range(len(checked.replacements)):
            orphans |= self._replace(checked.replacements[i : i + 1])
        for index, trade_id in checked.confirmed:
            self._lanes[index].confirm_jump(trade_id)
        for index in checked.changed:
            self._touch(index)
        if live and len(checked.rows):
            self._advance(checked)
        return sorted(orphans)

    def begin(self, first_ms: int) -> None:
        """Start all symbols with the window that holds ``first_ms``."""
        duration = self.settings.duration_ms
        self.first_start_ms = first_ms - first_ms % duration
        self._next_end[:] = self.first_start_ms + duration
        self._due_ms = 0
        self.route_ms = max(self.route_ms, first_ms)
        if not self._repairable:
            for lane in self._lanes:
                lane.head = Head.LOST

    def insert_head(
        self, index: int, rows: np.ndarray, *, proven: bool, until_ms: int | None = None
    ) -> None:
        """Take trades from before the first received one.

        Args:
            index: whose.
            rows: contiguous with the first one; may be empty.
            proven: nothing else is missing before it. If False the head is lost: nothing can tell
                what the first window lacks.
            until_ms: with a lost head, the time of the earliest known trade: windows up to the one
                that holds it lack trades too. None: only the first window does.
        """
        lane = self._lanes[index]
        if self.first_start_ms is not None:
            rows = rows[rows["transact_time_ms"] >= self.first_start_ms]
        if len(rows):
            lane.append(_group(index, rows))
        lane.head = Head.PROVEN if proven else Head.LOST
        lane.unproven_until_ms = until_ms or 0
        self._touch(index)

    def prove(self, until_ms: int) -> None:
        """The route's trades up to a time are known to have arrived (clock or REST probe)."""
        self.route_ms = max(self.route_ms, until_ms)

    def lose_coverage(self) -> None:
        """All sockets of the route are down: from here on ids must decide, symbol by symbol."""
        if self.first_start_ms is None:
            return
        for index, lane in enumerate(self._lanes):
            if self._covered[index]:
                self._covered[index] = False
                lane.unknown_from_ms = max(
                    int(self._own_ms[index]), self.route_ms - self.settings.lateness_ms
                )

    def verify(self, index: int) -> None:
        """REST was asked after the socket came back: ids up to now are known or known missing."""
        self._covered[index] = True
        self._lanes[index].unknown_from_ms = None
        self._touch(index)

    def uncovered(self) -> list[int]:
        """Symbols whose ids since the last outage are not decided yet."""
        return [int(i) for i in np.flatnonzero(~self._covered)]

    def heads(self) -> list[int]:
        """Symbols whose first window still lacks proof of its beginning."""
        return [i for i, lane in enumerate(self._lanes) if lane.head is Head.OPEN]

    def forget_before(self, index: int, time_ms: int) -> None:
        """Drop a symbol's holes that end before a time, and the incomplete windows before it."""
        self.sequences[index].forget_before(time_ms)
        emitted = self._lanes[index].emitted
        for start_ms in [s for s in emitted if s < min(time_ms, self._oldest_retained(index))]:
            del emitted[start_ms]

    def touch(self, index: int) -> None:
        """Holes of a symbol changed outside ``ingest`` (found lost)."""
        self._touch(index)

    # --- what comes out -------------------------------------------------------------------

    def close(self, now_ns: int) -> Closed:
        """Emit every window that is proven, and every held one whose patience is over."""
        if not self._dirty and max(self.route_ms, self._newest_ms) < self._due_ms:
            return _NOTHING
        revised, stale = self._revise(now_ns)  # first: emitting moves what is retained
        batches: list[WindowBatch] = []
        skip = np.zeros(len(self._lanes), dtype=np.bool_)
        while True:
            proof = np.where(self._covered, np.maximum(self._own_ms, self.route_ms), self._own_ms)
            due = (proof >= self._next_end + self.settings.lateness_ms) & ~skip
            if not due.any():
                break
            end_ms = int(self._next_end[due].min())
            ready = []
            for index in np.flatnonzero(due & (self._next_end == end_ms)).tolist():
                verdict = self._verdict(index, end_ms - self.settings.duration_ms)
                if verdict.waiting and not self._out_of_patience(index, now_ns):
                    skip[index] = True
                else:
                    ready.append((index, verdict))
            for first in range(0, len(ready), self.settings.batch_symbols):
                part = ready[first : first + self.settings.batch_symbols]
                batches.append(self._emit(end_ms, part, Origin.LIVE))
        self._due_ms = int(self._next_end.min()) + self.settings.lateness_ms
        return Closed(batches + revised, stale)

    def close_unproven(self, now_ns: int, clock_ms: float) -> Closed:
        """Emit, incomplete, windows the clock has passed and no proof has reached in time."""
        overdue = np.flatnonzero(self._next_end + self.settings.lateness_ms <= clock_ms).tolist()
        by_end: dict[int, list[tuple[int, Verdict]]] = {}
        for index in overdue:
            if not self._out_of_patience(index, now_ns):
                continue
            lane = self._lanes[index]
            end_ms = int(self._next_end[index])
            if lane.unknown_from_ms is None:
                lane.unknown_from_ms = max(
                    int(self._own_ms[index]), self.route_ms - self.settings.lateness_ms
                )
            self._covered[index] = False
            verdict = self._verdict(index, end_ms - self.settings.duration_ms)
            by_end.setdefault(end_ms, []).append((index, verdict))
        return Closed([self._emit(end, by_end[end], Origin.LIVE) for end in sorted(by_end)], [])

    def next_end_ms(self) -> int | None:
        """The earliest end of a window not yet emitted."""
        return None if self.first_start_ms is None else int(self._next_end.min())

    def next_start_ms(self, index: int) -> int:
        """Start of a symbol's next window to be emitted."""
        return int(self._next_end[index]) - self.settings.duration_ms

    def proof_ms(self, index: int) -> int:
        """Up to where a symbol's trades are proven to have arrived (holes aside)."""
        own = int(self._own_ms[index])
        return max(own, self.route_ms) if self._covered[index] else own

    def last_trade_ms(self, index: int) -> int:
        """Transaction time of a symbol's latest trade, 0 before the first."""
        return int(self._own_ms[index])

    def statistics(self) -> dict[str, int | float | str | None]:
        """Windows emitted, retained rows, symbols waiting for their ids to be decided."""
        return {
            "emitted": self.emitted_count,
            "retained_rows": sum(lane.count for lane in self._lanes),
            "uncovered_symbols": int(np.count_nonzero(~self._covered)),
            "route_ms": self.route_ms,
        }

    # --- inside ---------------------------------------------------------------------------

    def _take(self, groups: Sequence[_Group], *, live: bool) -> set[tuple[int, int]]:
        """Add the groups (one per symbol) to their lanes; returns the orphans among their rows."""
        indices = np.array([group.index for group in groups])
        newest_ms = np.array([group.times[1] for group in groups])
        self._own_ms[indices] = np.maximum(self._own_ms[indices], newest_ms)
        self._newest_ms = max(self._newest_ms, int(newest_ms.max()))
        if live:
            for index in indices[~self._covered[indices]].tolist():
                self.verify(index)
        next_starts = (self._next_end[indices] - self.settings.duration_ms).tolist()
        first_start_ms = self.first_start_ms or 0
        orphans: set[tuple[int, int]] = set()
        for group, next_start_ms in zip(groups, next_starts, strict=True):
            index, oldest_ms = group.index, group.times[0]
            lane = self._lanes[index]
            lane.append(group)
            if lane.head is Head.OPEN and oldest_ms < first_start_ms:
                lane.head = Head.PROVEN  # the sequence reaches back before the first window
            if oldest_ms < next_start_ms:
                self._touch(index)
                orphans |= self._orphans(index, group.plain.view(TRADE_DTYPE))
        return orphans

    def _replace(self, row: np.ndarray) -> set[tuple[int, int]]:
        index = int(row["symbol_index"][0])
        time_ms = int(row["transact_time_ms"][0])
        self._lanes[index].replace(row)
        self._replaced.add((index, time_ms - time_ms % self.settings.duration_ms))
        self._touch(index)
        return self._orphans(index, row)

    def _orphans(self, index: int, rows: np.ndarray) -> set[tuple[int, int]]:
        """Emitted windows that these rows belong to and that can no longer be rebuilt from memory."""
        duration = self.settings.duration_ms
        oldest = self._oldest_retained(index)
        old = rows["transact_time_ms"][rows["transact_time_ms"] < oldest]
        first = self.first_start_ms or 0
        return {(index, int(t) - int(t) % duration) for t in old.tolist() if t >= first}

    def _oldest_retained(self, index: int) -> int:
        """Start of the oldest emitted window all of whose trades are still held."""
        start = self.next_start_ms(index) - self.settings.retain_ms
        return max(start, self.first_start_ms or 0)

    def _advance(self, checked: CheckedTrades) -> None:
        event_ms = int(checked.rows["event_time_ms"].max())
        event_ms = min(event_ms, self._newest_ms + _MAX_EVENT_DELAY_MS)
        if event_ms - self.route_ms > self.settings.silence_ms and self.route_ms:
            self._suspect_silence({index for index, _, _ in checked.groups})
        self.route_ms = max(self.route_ms, event_ms)

    def _suspect_silence(self, heard: set[int]) -> None:
        """The route was silent too long to vouch for the symbols it did not just carry."""
        for index, lane in enumerate(self._lanes):
            if index not in heard and self._covered[index]:
                self._covered[index] = False
                lane.unknown_from_ms = max(
                    int(self._own_ms[index]), self.route_ms - self.settings.lateness_ms
                )

    def _touch(self, index: int) -> None:
        self._dirty.add(index)
        self._next_look_ns = 0

    def _verdict(self, index: int, start_ms: int) -> Verdict:
        lane = self._lanes[index]
        end_ms = start_ms + self.settings.duration_ms
        first_ms = self.first_start_ms or 0
        touching = [g for g in self.sequences[index].missing if _touches(g, start_ms, end_ms)]
        missing: int | None = sum(
            g.count for g in touching if max(g.after_ms, first_ms) >= start_ms
        )
        waiting = any(not g.lost for g in touching)
        complete = not touching
        if lane.head is not Head.PROVEN and start_ms <= max(first_ms, lane.unproven_until_ms):
            complete, missing = False, None
            waiting = waiting or lane.head is Head.OPEN
        if lane.unknown_from_ms is not None and lane.unknown_from_ms < end_ms:
            complete, missing, waiting = False, None, True
        is_retained = start_ms >= self._oldest_retained(index)
        count = lane.count_between(start_ms, end_ms) if is_retained else 0
        return Verdict(complete, missing, count, waiting)

    def _out_of_patience(self, index: int, now_ns: int) -> bool:
        lane = self._lanes[index]
        if lane.held_since_ns is None:
            lane.held_since_ns = now_ns
        hold_ns = self.settings.hold_ms * 1_000_000
        return now_ns - lane.held_since_ns >= hold_ns

    def _emit(self, end_ms: int, ready: list[tuple[int, Verdict]], origin: Origin) -> WindowBatch:
        start_ms = end_ms - self.settings.duration_ms
        batch = self._batch(start_ms, ready, origin)
        for index, verdict in ready:
            lane = self._lanes[index]
            lane.emitted[start_ms] = verdict
            self._replaced.discard((index, start_ms))
            if not verdict.waiting:
                lane.held_since_ns = None
            self._next_end[index] = end_ms + self.settings.duration_ms
            self._forget(index)
        self.emitted_count += len(ready)
        return batch

    def _batch(
        self, start_ms: int, ready: Iterable[tuple[int, Verdict]], origin: Origin
    ) -> WindowBatch:
        ready = list(ready)
        end_ms = start_ms + self.settings.duration_ms
        slices = [self._lanes[index].slice(start_ms, end_ms) for index, _ in ready]
        offsets = np.zeros(len(slices) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in slices], out=offsets[1:])
        rows = np.concatenate([part.view(_PLAIN) for part in slices]).view(TRADE_DTYPE)
        return WindowBatch(
            start_ms,
            end_ms,
            [index for index, _ in ready],
            offsets,
            rows,
            [verdict.complete for _, verdict in ready],
            [verdict.missing_trades for _, verdict in ready],
            origin,
        )

    def _forget(self, index: int) -> None:
        """Drop what lies beyond retention; what was emitted incomplete is remembered."""
        lane = self._lanes[index]
        oldest = self._oldest_retained(index)
        for start_ms in [s for s in lane.emitted if s < oldest]:
            if lane.emitted[start_ms].complete and (index, start_ms) not in self._replaced:
                del lane.emitted[start_ms]
        lane.prune(oldest)

    def _revise(self, now_ns: int) -> tuple[list[WindowBatch], list[tuple[int, int]]]:
        """Look again at emitted windows of symbols whose trades or holes changed."""
        if not self._dirty or now_ns < self._next_look_ns:
            return [], []
        self._next_look_ns = now_ns + _LOOK_AGAIN_NS
        revised: dict[int, list[tuple[int, Verdict]]] = {}
        stale: list[tuple[int, int]] = []
        for index in sorted(self._dirty):
            oldest = self._oldest_retained(index)
            settled = True
            for start_ms in self._emitted_starts(index, oldest):
                after = self._verdict(index, start_ms)
                if after.waiting and self._is_young(index, start_ms, now_ns):
                    settled = False
                    self._note_news(index, start_ms, after, is_old=start_ms < oldest)
                elif not self._is_changed(index, start_ms, after, is_old=start_ms < oldest):
                    continue
                elif start_ms < oldest:
                    stale.append((index, start_ms))
                else:
                    revised.setdefault(start_ms, []).append((index, after))
            if settled:
                self._dirty.discard(index)
                if not self._verdict(index, self.next_start_ms(index)).waiting:
                    self._lanes[index].held_since_ns = None
        batches = [self._batch(s, revised[s], Origin.REVISED) for s in sorted(revised)]
        return batches, stale

    def _note_news(self, index: int, start_ms: int, now: Verdict, *, is_old: bool) -> None:
        """Trades came for a window that waits for more: publish them however long that takes."""
        before = self._lanes[index].emitted.get(start_ms)
        if not is_old and before is not None and now.trade_count != before.trade_count:
            self._replaced.add((index, start_ms))

    def _emitted_starts(self, index: int, oldest: int) -> list[int]:
        """Emitted windows to look at: the remembered ones, and old ones that a hole reaches back to."""
        duration = self.settings.duration_ms
        starts = set(self._lanes[index].emitted)
        for gap in self.sequences[index].missing:
            first = max(gap.after_ms - gap.after_ms % duration, self.first_start_ms or 0)
            starts.update(range(first, min(oldest, gap.before_ms + 1), duration))
        return sorted(starts)

    def _is_changed(self, index: int, start_ms: int, after: Verdict, *, is_old: bool) -> bool:
        """Compare with what was emitted, and remember what will be."""
        emitted = self._lanes[index].emitted
        before = emitted.get(start_ms)
        emitted[start_ms] = after
        key = (index, start_ms)
        if key in self._replaced:
            self._replaced.discard(key)
            return True
        if before is None:  # forgotten since: it was complete
            return not after.complete
        same = (after.complete, after.missing_trades) == (before.complete, before.missing_trades)
        return not (same and (is_old or after.trade_count == before.trade_count))

    def _is_young(self, index: int, start_ms: int, now_ns: int) -> bool:
        """Whether a hole touching the window may still be filled soon: do not publish it worse yet."""
        lane = self._lanes[index]
        end_ms = start_ms + self.settings.duration_ms
        if lane.unknown_from_ms is not None and lane.unknown_from_ms < end_ms:
            return True
        hold_ns = self.settings.hold_ms * 1_000_000
        return any(
            not gap.lost and now_ns - gap.since_ns < hold_ns
            for gap in self.sequences[index].missing
            if _touches(gap, start_ms, end_ms)
        )


def _touches(gap: MissingRange, start_ms: int, end_ms: int) -> bool:
    """Whether trades of the hole may belong to the window."""
    return gap.after_ms < end_ms and gap.before_ms >= start_ms
