"""Checked trades → windows of event time, closed by proof, revised when late trades change them.

Pure and synchronous: time comes in as arguments. A window ``[start, start + D)`` of a symbol closes
when trades up to ``end + lateness`` are proven to have arrived (own trades, or the trade route's
time) and no hole touches it; a hole holds it back for a bounded time, then it is emitted incomplete.
Rows are retained for a while after emission, so that late trades and repairs rebuild the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from data_validator import CheckedTrades, MissingRange, TradeSequence
from domain.flow import Origin, WindowBatch
from domain.market import TRADE_DTYPE
from market_orchestrator.window_lane import Group, Head, Lane, Verdict, described, group_of

_NEVER = np.iinfo(np.int64).max // 2
_MAX_EVENT_DELAY_MS = 10_000  # an event time further beyond all trades is not believed
_LOOK_AGAIN_NS = 100_000_000  # how often holes that may still be filled are looked at again


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


class Closed(msgspec.Struct, frozen=True):
    """What a call produced: windows in order of their start, and old windows to rebuild from REST."""

    batches: list[WindowBatch]
    stale: list[tuple[int, int]]  # (symbol_index, start_ms)


_NOTHING = Closed([], [])

type _Window = tuple[int, Verdict, np.ndarray]
"""symbol_index, completeness, and the trades as plain bytes by id."""


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
        self._lanes = [Lane() for _ in range(count)]
        self._next_end = np.full(count, _NEVER, dtype=np.int64)
        self._own_ms = np.zeros(count, dtype=np.int64)
        self._covered = np.ones(count, dtype=np.bool_)
        self._dirty: set[int] = set()
        self._replaced: set[tuple[int, int]] = set()  # windows whose content changed, count or not
        self._next_look_ns = 0
        self._newest_ms = 0
        self._due_ms = 0
        self.has_more = False  # the last ``close`` left windows that are due
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
        groups = described(checked)
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
            lane.append(group_of(index, rows))
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

    def close(self, now_ns: int, at_most: int | None = None) -> Closed:
        """Emit windows that are proven, and held ones whose patience is over; the oldest first.

        Args:
            now_ns: monotonic.
            at_most: so many, and ``has_more`` tells whether others are due; None: all.
        """
        self.has_more = False
        if not self._dirty and max(self.route_ms, self._newest_ms) < self._due_ms:
            return _NOTHING
        revised, stale = self._revise(now_ns)  # first: emitting moves what is retained
        batches: list[WindowBatch] = []
        held = np.zeros(len(self._lanes), dtype=np.bool_)
        room = _NEVER if at_most is None else at_most
        while (due := self._due(held)).any():
            if room <= 0:
                self.has_more = True
                break
            end_ms = int(self._next_end[due].min())
            ready: list[_Window] = []
            for index in np.flatnonzero(due & (self._next_end == end_ms))[:room].tolist():
                window = self._window(index, end_ms - self.settings.duration_ms)
                if window[1].waiting and not self._out_of_patience(index, now_ns):
                    held[index] = True
                else:
                    ready.append(window)
            room -= len(ready)
            for first in range(0, len(ready), self.settings.batch_symbols):
                part = ready[first : first + self.settings.batch_symbols]
                batches.append(self._emit(end_ms, part))
        self._due_ms = int(self._next_end.min()) + self.settings.lateness_ms
        return Closed(batches + revised, stale)

    def close_unproven(self, now_ns: int, clock_ms: float) -> Closed:
        """Emit, incomplete, windows the clock has passed and no proof has reached in time."""
        none = np.zeros(len(self._lanes), dtype=np.bool_)
        is_overdue = self._next_end + self.settings.lateness_ms <= clock_ms
        overdue = np.flatnonzero(
            is_overdue & ~self._due(none)
        ).tolist()  # proven: ``close`` has more
        by_end: dict[int, list[_Window]] = {}
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
            window = self._window(index, end_ms - self.settings.duration_ms)
            by_end.setdefault(end_ms, []).append(window)
        return Closed([self._emit(end, by_end[end]) for end in sorted(by_end)], [])

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

    def _take(self, groups: Sequence[Group], *, live: bool) -> set[tuple[int, int]]:
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
        return self._oldest_before(self.next_start_ms(index))

    def _oldest_before(self, next_start_ms: int) -> int:
        return max(next_start_ms - self.settings.retain_ms, self.first_start_ms or 0)

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

    def _due(self, held: np.ndarray) -> np.ndarray:
        """Which symbols' next windows are proven, but for those held."""
        proof = np.where(self._covered, np.maximum(self._own_ms, self.route_ms), self._own_ms)
        due: np.ndarray = (proof >= self._next_end + self.settings.lateness_ms) & ~held
        return due

    def _window(self, index: int, start_ms: int) -> _Window:
        """A symbol's next window: its completeness as known now, and its rows."""
        plain = self._lanes[index].cut(start_ms, start_ms + self.settings.duration_ms)
        return index, self._verdict(index, start_ms, len(plain)), plain

    def _known(self, index: int, start_ms: int) -> Verdict:
        """Completeness of a window as known now, emitted or not."""
        is_retained = start_ms >= self._oldest_retained(index)
        end_ms = start_ms + self.settings.duration_ms
        count = len(self._lanes[index].cut(start_ms, end_ms)) if is_retained else 0
        return self._verdict(index, start_ms, count)

    def _verdict(self, index: int, start_ms: int, trade_count: int) -> Verdict:
        lane, holes = self._lanes[index], self.sequences[index].missing
        if not holes and lane.head is Head.PROVEN and lane.unknown_from_ms is None:
            return Verdict(True, 0, trade_count, False)  # nearly always
        end_ms = start_ms + self.settings.duration_ms
        first_ms = self.first_start_ms or 0
        touching = [g for g in holes if _touches(g, start_ms, end_ms)]
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
        return Verdict(complete, missing, trade_count, waiting)

    def _out_of_patience(self, index: int, now_ns: int) -> bool:
        lane = self._lanes[index]
        if lane.held_since_ns is None:
            lane.held_since_ns = now_ns
        hold_ns = self.settings.hold_ms * 1_000_000
        return now_ns - lane.held_since_ns >= hold_ns

    def _emit(self, end_ms: int, ready: list[_Window]) -> WindowBatch:
        start_ms = end_ms - self.settings.duration_ms
        batch = self._batch(start_ms, ready, Origin.LIVE)
        self._next_end[batch.symbol_index] = end_ms + self.settings.duration_ms
        oldest_ms = self._oldest_before(end_ms)
        for index, verdict, _ in ready:
            lane = self._lanes[index]
            lane.emitted[start_ms] = verdict
            self._replaced.discard((index, start_ms))
            if not verdict.waiting:
                lane.held_since_ns = None
            self._forget(index, oldest_ms)
        self.emitted_count += len(ready)
        return batch

    def _batch(self, start_ms: int, windows: Iterable[_Window], origin: Origin) -> WindowBatch:
        indices, verdicts, parts = zip(*windows, strict=True)
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return WindowBatch(
            start_ms,
            start_ms + self.settings.duration_ms,
            list(indices),
            offsets,
            np.concatenate(parts).view(TRADE_DTYPE),
            [verdict.complete for verdict in verdicts],
            [verdict.missing_trades for verdict in verdicts],
            origin,
        )

    def _forget(self, index: int, oldest_ms: int) -> None:
        """Drop what lies beyond retention; what was emitted incomplete is remembered."""
        lane = self._lanes[index]
        for start_ms in [s for s in lane.emitted if s < oldest_ms]:
            if lane.emitted[start_ms].complete and (index, start_ms) not in self._replaced:
                del lane.emitted[start_ms]
        lane.prune(oldest_ms)

    def _revise(self, now_ns: int) -> tuple[list[WindowBatch], list[tuple[int, int]]]:
        """Look again at emitted windows of symbols whose trades or holes changed."""
        if not self._dirty or now_ns < self._next_look_ns:
            return [], []
        self._next_look_ns = now_ns + _LOOK_AGAIN_NS
        revised: dict[int, list[_Window]] = {}
        stale: list[tuple[int, int]] = []
        for index in sorted(self._dirty):
            oldest = self._oldest_retained(index)
            settled = True
            for start_ms in self._emitted_starts(index, oldest):
                after = self._known(index, start_ms)
                if after.waiting and self._is_young(index, start_ms, now_ns):
                    settled = False
                    self._note_news(index, start_ms, after, is_old=start_ms < oldest)
                elif not self._is_changed(index, start_ms, after, is_old=start_ms < oldest):
                    continue
                elif start_ms < oldest:
                    stale.append((index, start_ms))
                else:
                    revised.setdefault(start_ms, []).append(self._window(index, start_ms))
            if settled:
                self._dirty.discard(index)
                if not self._known(index, self.next_start_ms(index)).waiting:
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
