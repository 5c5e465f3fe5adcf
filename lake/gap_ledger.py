"""The one truth of what is missing, whether and how it was repaired, and until when it still can be.

Consumes found and resolved ranges (aggTrade ids, or times where there are no ids), produces entries
that say so, in memory at once and in ``gaps/<role>.jsonl`` at the next ``flush``. A line holds all
entries one call changed, so that a crash keeps or loses a change as a whole; the newest line of an
entry counts. Ranges are split when only part of them is resolved, and never reported twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
import structlog

from domain.events import GapEvent, GapState
from domain.market import SCHEMA_VERSION
from lake.atomic import StepHook, no_hook
from lake.gap_ranges import Range, end_of, range_of
from lake.journal import Journal

log = structlog.get_logger()


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """One missing range in one state.

    Ids are inclusive; ``last_id`` is ``None`` while the extent is unknown, both are where the hole
    is known by time only (depth, or no trade seen yet). Times are exchange time: of the last
    message before the hole and the first after it.
    """

    gap_id: int
    kind: str  # "trades" | "depth"
    symbol: str
    first_id: int | None
    last_id: int | None
    from_ms: int | None
    until_ms: int | None
    repairable_until_ms: int | None
    cause: str
    state: GapState
    repaired_by: str | None = None  # "rest" | "archive" | ...
    found_at_ns: int
    changed_at_ns: int
    schema_version: int = SCHEMA_VERSION

    @property
    def missing_count(self) -> int | None:
        """Ids in the range; ``None`` if unknown."""
        if self.first_id is None or self.last_id is None:
            return None
        return self.last_id - self.first_id + 1

    def range(self) -> Range:
        """The ids, or the times where there are none."""
        if self.first_id is not None:
            return range_of(self.first_id, None if self.last_id is None else self.last_id + 1)
        return range_of(self.from_ms or 0, self.until_ms)

    def with_range(self, part: Range) -> Gap:
        """The same gap, but only this part of it."""
        end = end_of(part)
        if self.first_id is None:
            return msgspec.structs.replace(self, from_ms=part.start, until_ms=end)
        last_id = None if end is None else end - 1
        return msgspec.structs.replace(self, first_id=part.start, last_id=last_id)


class GapLedger:
    """The gaps one process found. Calls change memory at once; ``flush`` makes them durable.

    Args:
        folder: ``LakePaths.gaps``.
        role: The writer ("bot", "recorder"): each has its own journal.
        hook: See ``lake.atomic.StepHook``.

    Raises:
        StorageError: The journal cannot be read or compacted.
    """

    def __init__(self, folder: Path, role: str = "bot", *, hook: StepHook = no_hook) -> None:
        self._journal = Journal(folder / f"{role}.jsonl", hook=hook)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._gaps: dict[int, Gap] = {}
        self._unresolved: dict[tuple[str, str], set[int]] = {}
        self._lines: list[bytes] = []
        lines = self._journal.read()
        gaps, damaged = _replay(lines)
        for gap in gaps.values():
            self._keep(gap)
        self._next_id = max(gaps, default=0) + 1
        if damaged:
            name = f"{role}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.jsonl.damaged"
            copy = self._journal.keep_copy(name)
            log.error("gaps.lines_damaged", count=damaged, copy=str(copy))
        if self._journal.path.exists():
            self._journal.compact(msgspec.json.encode([gap]) for gap in gaps.values())

    def found(
        self,
        kind: str,
        symbol: str,
        first_id: int | None,
        last_id: int | None,
        *,
        cause: str,
        at_ns: int,
        from_ms: int | None = None,
        until_ms: int | None = None,
        repairable_until_ms: int | None = None,
        state: GapState = GapState.OPEN,
    ) -> list[Gap]:
        """Record that a range is missing; what is known to be missing already is not added again.

        A range found with its end known gives it to an open one whose end was unknown; do that
        before finding later ranges.

        Args:
            kind: "trades" or "depth".
            symbol: Whose.
            first_id: First missing id; ``None`` if the hole is known by time only.
            last_id: Last missing id; ``None`` while the extent is unknown.
            cause: Why, in a word.
            at_ns: Wall clock now.
            from_ms: Exchange time before the hole.
            until_ms: Exchange time after it.
            repairable_until_ms: Exchange time until which it can be asked for.
            state: ``LOST`` for what nothing can give back.

        Returns:
            The entries that are new or changed.
        """
        gap = Gap(
            gap_id=0,
            kind=kind,
            symbol=symbol,
            first_id=first_id,
            last_id=last_id,
            from_ms=from_ms,
            until_ms=until_ms,
            repairable_until_ms=repairable_until_ms,
            cause=cause,
            state=state,
            found_at_ns=at_ns,
            changed_at_ns=at_ns,
        )
        with self._lock:
            changed = self._bounded(gap)
            known = [other.range() for other in self._same_kind(gap)]
            for part in gap.range().without(known):
                changed.append(msgspec.structs.replace(gap.with_range(part), gap_id=self._new_id()))
            return self._record(changed)

    def enter(self, event: GapEvent) -> list[Gap]:
        """``found`` for a hole as it was told."""
        return self.found(
            event.kind,
            event.symbol,
            event.first_id,
            event.last_id,
            cause=event.cause,
            at_ns=event.at_ns,
            from_ms=event.from_ms,
            until_ms=event.until_ms,
            repairable_until_ms=event.repairable_until_ms,
            state=event.state,
        )

    def resolve(
        self,
        kind: str,
        symbol: str,
        first: int,
        last: int | None,
        state: GapState,
        *,
        at_ns: int,
        by: str | None = None,
        is_time: bool = False,
        of: Collection[GapState] = (GapState.OPEN,),
        repairable_until_ms: int | None = None,
        times_ms: tuple[int, int] | None = None,
    ) -> list[Gap]:
        """Change the state of all or part of what is missing; the rest keeps its own.

        ``REPAIRED`` applies to whatever is not repaired (the archive may give back what was lost);
        other states only to gaps in the states ``of``.

        Args:
            kind: "trades" or "depth".
            symbol: Whose.
            first: First id, or a time in ms with ``is_time``.
            last: Last id, inclusive (a time: exclusive); ``None`` for everything from ``first`` on.
            state: The new state.
            at_ns: Wall clock now.
            by: Who gave the trades back: "rest", "archive".
            is_time: The range is a time; only gaps without ids are concerned.
            of: States that may change, for other new states than ``REPAIRED``.
            repairable_until_ms: The new bound (exchange time), if it changes with the state.
            times_ms: Exchange times of the first and last id, or of the trades around the range
                where it is missing still: what is left of a hole then knows its times better.

        Returns:
            The entries that are new or changed, remainders included.
        """
        end = last if is_time or last is None else last + 1
        resolved = range_of(first, end)
        with self._lock:
            changed: list[Gap] = []
            for gap_id in sorted(self._unresolved.get((kind, symbol), ())):
                gap = self._gaps[gap_id]
                is_concerned = (gap.first_id is None) == is_time and (
                    state is GapState.REPAIRED or gap.state in of
                )
                if is_concerned:
                    until_ms = repairable_until_ms
                    until_ms = gap.repairable_until_ms if until_ms is None else until_ms
                    done = msgspec.structs.replace(
                        gap,
                        state=state,
                        repaired_by=by,
                        repairable_until_ms=until_ms,
                        changed_at_ns=at_ns,
                    )
                    changed += self._split(gap, done, resolved, times_ms)
            return self._record(changed)

    def expire(self, now_ms: int, *, at_ns: int) -> list[Gap]:
        """Mark open gaps whose ``repairable_until_ms`` is before ``now_ms`` (exchange time).

        Returns:
            The entries that expired.
        """
        with self._lock:
            late = [
                msgspec.structs.replace(gap, state=GapState.EXPIRED, changed_at_ns=at_ns)
                for gap in self._gaps.values()
                if gap.state is GapState.OPEN
                and gap.repairable_until_ms is not None
                and gap.repairable_until_ms < now_ms
            ]
            return self._record(late)

    def open_gaps(self, symbol: str | None = None, kind: str | None = None) -> list[Gap]:
        """Gaps that can still be repaired, in order of their ranges."""
        found = [
            gap
            for gap in self.all()
            if gap.state is GapState.OPEN
            and symbol in {None, gap.symbol}
            and kind in {None, gap.kind}
        ]
        return sorted(found, key=lambda gap: (gap.kind, gap.symbol, gap.range()))

    def unresolved(self, kind: str) -> list[Gap]:
        """Gaps of a kind that are not repaired, whatever their state, in order of finding."""
        with self._lock:
            groups = [ids for (of, _), ids in self._unresolved.items() if of == kind]
            return [self._gaps[gap_id] for gap_id in sorted(set().union(*groups))]

    def all(self) -> list[Gap]:
        """Every gap, in order of finding."""
        with self._lock:
            return [self._gaps[gap_id] for gap_id in sorted(self._gaps)]

    def missing_count(self, symbol: str) -> int:
        """Trade ids of known extent that are missing still, whatever their state."""
        return sum(
            gap.missing_count or 0
            for gap in self.all()
            if gap.symbol == symbol and gap.kind == "trades" and gap.state is not GapState.REPAIRED
        )

    def flush(self) -> int:
        """Write what changed and fsync. Blocks: call it in a worker thread.

        Returns:
            How many changes were written.

        Raises:
            StorageError: The disk refused; the changes are kept for the next flush.
        """
        with self._flushing:
            with self._lock:
                lines = list(self._lines)
            self._journal.append(lines)
            with self._lock:
                del self._lines[: len(lines)]
            return len(lines)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Gaps by state, and changes not written yet."""
        with self._lock:
            states = [gap.state for gap in self._gaps.values()]
            return {
                **{f"gaps_{state.value}": states.count(state) for state in GapState},
                "changes_pending": len(self._lines),
            }

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _keep(self, gap: Gap) -> None:
        self._gaps[gap.gap_id] = gap
        group = self._unresolved.setdefault((gap.kind, gap.symbol), set())
        if gap.state is GapState.REPAIRED:
            group.discard(gap.gap_id)
        else:
            group.add(gap.gap_id)

    def _record(self, changed: list[Gap]) -> list[Gap]:
        for gap in changed:
            self._keep(gap)
        if changed:
            self._lines.append(msgspec.json.encode(changed))
        return changed

    def _same_kind(self, gap: Gap) -> list[Gap]:
        """Unresolved gaps whose ranges can be compared with this one's."""
        ids = self._unresolved.get((gap.kind, gap.symbol), ())
        others = (self._gaps[gap_id] for gap_id in ids)
        return [other for other in others if (other.first_id is None) == (gap.first_id is None)]

    def _bounded(self, gap: Gap) -> list[Gap]:
        """Open gaps of unknown extent that this one gives an end."""
        found = gap.range()
        end = end_of(found)
        if end is None:
            return []
        bounded = []
        for other in self._same_kind(gap):
            known = other.range()
            if end_of(known) is None and known.overlap(found) and other.state is GapState.OPEN:
                ended = other.with_range(Range(known.start, end))
                bounded.append(
                    msgspec.structs.replace(
                        ended,
                        until_ms=gap.until_ms,
                        repairable_until_ms=_earlier(
                            other.repairable_until_ms, gap.repairable_until_ms
                        ),
                        changed_at_ns=gap.changed_at_ns,
                    )
                )
        for entry in bounded:
            self._keep(entry)
        return bounded

    def _split(
        self, gap: Gap, as_resolved: Gap, resolved: Range, times_ms: tuple[int, int] | None
    ) -> list[Gap]:
        """The gap's parts after some of it changed state; the first keeps its number."""
        inside = gap.range().overlap(resolved)
        if inside is None:
            return []
        outside = [gap.with_range(part) for part in gap.range().without([resolved])]
        done = as_resolved.with_range(inside)
        if times_ms is not None and gap.first_id is not None:
            done = _between(done, times_ms)
            outside = [_beside(part, inside, times_ms) for part in outside]
        if not outside:
            return [done]
        neighbour = self._resolved_before(done)
        if neighbour is None:
            done = msgspec.structs.replace(done, gap_id=self._new_id())
        else:
            grown = neighbour.with_range(Range(neighbour.range().start, inside.end))
            done = msgspec.structs.replace(grown, until_ms=done.until_ms)
        rest = [outside[0]] + [
            msgspec.structs.replace(part, gap_id=self._new_id()) for part in outside[1:]
        ]
        return [done, *rest]

    def _resolved_before(self, done: Gap) -> Gap | None:
        """An entry of the same hole and fate that ends where this one starts (repair by pages)."""
        for gap in self._gaps.values():
            if (
                gap.gap_id != done.gap_id
                and (gap.kind, gap.symbol, gap.cause, gap.found_at_ns, gap.state, gap.repaired_by)
                == (
                    done.kind,
                    done.symbol,
                    done.cause,
                    done.found_at_ns,
                    done.state,
                    done.repaired_by,
                )
                and (gap.first_id is None) == (done.first_id is None)
                and gap.range().end == done.range().start
            ):
                return gap
        return None


def read_gaps(folder: Path, role: str | None = None) -> list[Gap]:
    """All gaps below ``LakePaths.gaps``, of one role or of every one, without changing anything.

    Raises:
        StorageError: A journal cannot be read.
    """
    gaps: list[Gap] = []
    for path in sorted(folder.glob(f"{role or '*'}.jsonl")):
        found, _ = _replay(Journal(path).read())
        gaps += found.values()
    return gaps


def _between(gap: Gap, times_ms: tuple[int, int]) -> Gap:
    """The gap, known to lie between two trades at these times."""
    from_ms = times_ms[0] if gap.from_ms is None else max(gap.from_ms, times_ms[0])
    until_ms = times_ms[1] if gap.until_ms is None else min(gap.until_ms, times_ms[1])
    return msgspec.structs.replace(gap, from_ms=from_ms, until_ms=until_ms)


def _beside(left: Gap, done: Range, times_ms: tuple[int, int]) -> Gap:
    """What is left of a gap before or after a range whose first and last trade have these times."""
    is_before = left.range().start < done.start
    known = (left.from_ms, left.until_ms)
    from_ms, until_ms = (known[0], times_ms[0]) if is_before else (times_ms[1], known[1])
    return msgspec.structs.replace(left, from_ms=from_ms, until_ms=until_ms)


def _earlier(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return min(known, default=None)


def _replay(lines: Iterable[bytes]) -> tuple[dict[int, Gap], int]:
    """The state after all lines, and how many lines nobody can read."""
    decoder = msgspec.json.Decoder(list[Gap])
    gaps: dict[int, Gap] = {}
    damaged = 0
    for line in lines:
        try:
            entries = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            damaged += 1
            continue
        gaps.update((gap.gap_id, gap) for gap in entries)
    return gaps, damaged
