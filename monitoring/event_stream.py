"""The last events of each topic in one ordered line, which any number of readers follow at their own pace.

Consumes ``Envelope``s of the bus, produces numbered ``Entry``s. ``sequence`` grows over all topics and
through restarts: it starts at the wall clock's microseconds, or after what the journal holds. A reader
has no queue of its own, only its place: what it is too slow for falls off the end and is counted.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable

import msgspec

from domain.events import Topic
from event_bus import Envelope

STATE_TOPICS = frozenset({Topic.WINDOW, Topic.FEATURES, Topic.HEALTH})
"""Topics whose newest event of a symbol may stand for the earlier ones (conflation)."""


class _Wire(msgspec.Struct, frozen=True):
    """What a reader outside of the process gets."""

    sequence: int
    topic: Topic
    payload: msgspec.Struct


class _LinePayload(msgspec.Struct, frozen=True):
    symbol: str | None = None
    signal_id: str | None = None


class _Line(msgspec.Struct, frozen=True):
    sequence: int
    topic: Topic
    payload: _LinePayload


class Entry:
    """One event of the line.

    Attributes:
        sequence: Its number; larger than that of every earlier event, of earlier runs as well.
        symbol: Whose event it is; None: everybody's.
        signal_id: Of a signal, else None.
    """

    __slots__ = ("_json", "_payload", "sequence", "signal_id", "symbol", "topic")

    def __init__(self, sequence: int, topic: Topic, payload: msgspec.Struct | None) -> None:
        self.sequence = sequence
        self.topic = topic
        self._payload = payload
        inner = getattr(payload, "metrics", None) or getattr(payload, "row", None) or payload
        self.symbol: str | None = getattr(inner, "symbol", None)
        self.signal_id: str | None = getattr(payload, "signal_id", None)
        self._json: bytes | None = None

    @classmethod
    def from_json(cls, line: bytes) -> Entry:
        """An entry of an earlier run.

        Raises:
            msgspec.MsgspecError: The line is not a whole entry.
        """
        found = msgspec.json.decode(line, type=_Line)
        entry = cls(found.sequence, found.topic, None)
        entry.symbol, entry.signal_id = found.payload.symbol, found.payload.signal_id
        entry._json = line
        return entry

    @property
    def json(self) -> bytes:
        """One line of JSON: sequence, topic, payload; encoded when first asked for."""
        if self._json is None:
            assert self._payload is not None  # noqa: S101 - else it came as JSON
            self._json = msgspec.json.encode(_Wire(self.sequence, self.topic, self._payload))
            self._payload = None
        return self._json


class _Ring:
    """The last entries of one topic; ordinals count the topic's entries from 0."""

    def __init__(self, keep: int, floor: int) -> None:
        self.entries: deque[Entry] = deque(maxlen=keep)
        self.first = 0  # ordinal of the oldest kept
        self.floor = floor  # sequence up to which nothing is kept any more

    @property
    def end(self) -> int:
        return self.first + len(self.entries)

    def append(self, entry: Entry) -> None:
        if len(self.entries) == self.entries.maxlen:
            self.floor = self.entries[0].sequence
            self.first += 1
        self.entries.append(entry)

    def after(self, sequence: int) -> int:
        """Ordinal of the first kept entry behind ``sequence``."""
        return self.first + bisect.bisect_right(
            self.entries, sequence, key=lambda entry: entry.sequence
        )

    def take(self, start: int, limit: int) -> list[Entry]:
        begin = start - self.first
        return [self.entries[i] for i in range(begin, min(begin + limit, len(self.entries)))]


class EventStream:
    """The line. Belongs to one event loop.

    Args:
        keep: Events kept of each topic.
        wall_ns: Wall clock, ns since the epoch.
        earlier: Kept entries of earlier runs, in order.
        remembered: Topics that ``earlier`` speaks for; of the others earlier runs left nothing.
    """

    def __init__(
        self,
        keep: int,
        *,
        wall_ns: Callable[[], int],
        earlier: Iterable[Entry] = (),
        remembered: Collection[Topic] = (),
    ) -> None:
        known = list(earlier)
        begin = max(wall_ns() // 1_000, known[-1].sequence if known else 0)
        oldest = known[0].sequence - 1 if known else begin
        self._rings = {
            topic: _Ring(keep, oldest if topic in remembered else begin) for topic in Topic
        }
        self._last = begin
        for entry in known:
            self._rings[entry.topic].append(entry)
        self._news: asyncio.Future[None] | None = None
        self._is_closed = False

    @property
    def last_sequence(self) -> int:
        """The newest event's number; before the first one that of the start."""
        return self._last

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be added any more."""
        return self._is_closed

    def append(self, envelopes: Iterable[Envelope]) -> None:
        """Number and keep events, then wake the readers."""
        for envelope in envelopes:
            self._last += 1
            self._rings[envelope.topic].append(Entry(self._last, envelope.topic, envelope.payload))
        self._wake()

    def close(self) -> None:
        """Nothing more comes; readers still get what is kept."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None

    async def wait(self) -> None:
        """Until something is added or the line ends; readers look first, then wait."""
        if self._is_closed:
            return
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def reader(
        self,
        topics: Collection[Topic] = tuple(Topic),
        symbols: Collection[str] = (),
        *,
        after: int | None = None,
        conflate: bool = False,
    ) -> Reader:
        """Follow some of the events.

        Args:
            topics: Which topics.
            symbols: Whose events, beside those that are nobody's; empty: everybody's.
            after: The last sequence already known; 0: everything kept; None: only what comes.
            conflate: Of what waits, give only the newest window, features and health per symbol.
        """
        return Reader(self, self._rings, topics, symbols, after=after, conflate=conflate)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Newest number, and events kept by topic."""
        kept = {f"kept.{topic}": len(ring.entries) for topic, ring in self._rings.items()}
        return {"last_sequence": self._last, **kept}


class Reader:
    """A place in the line for each topic.

    Attributes:
        missed: Events that fell off before this reader came to them, by topic, of any symbol.
        uncounted: Topics of which events before the start of the reader are no longer kept.
        conflated: Events left out because a newer one stood for them.
    """

    def __init__(
        self,
        stream: EventStream,
        rings: dict[Topic, _Ring],
        topics: Collection[Topic],
        symbols: Collection[str],
        *,
        after: int | None,
        conflate: bool,
    ) -> None:
        self._stream = stream
        self._rings = {topic: rings[topic] for topic in Topic if topic in topics}
        self._symbols = frozenset(symbols)
        self._conflate = conflate
        self.missed: Counter[Topic] = Counter()
        self.uncounted: list[Topic] = []
        self.conflated = 0
        self.sequence = stream.last_sequence if after is None else after
        self._next = {}
        for topic, ring in self._rings.items():
            self._next[topic] = ring.end if after is None else ring.after(after)
            is_known = after in {None, 0} or ring.floor <= self.sequence <= stream.last_sequence
            if not is_known:
                self.uncounted.append(topic)

    @property
    def has_more(self) -> bool:
        """Whether ``take`` has something to look at."""
        return any(ring.end > self._next[topic] for topic, ring in self._rings.items())

    @property
    def behind(self) -> int:
        """Kept entries of any symbol that it has not come to."""
        return sum(ring.end - max(self._next[t], ring.first) for t, ring in self._rings.items())

    def take(self, limit: int) -> list[Entry]:
        """The next entries in order, at most ``limit``; ``sequence`` is how far it came."""
        found: list[Entry] = []
        for topic, ring in self._rings.items():
            behind = ring.first - self._next[topic]
            if behind > 0:
                self.missed[topic] += behind
                self._next[topic] = ring.first
            if ring.end > self._next[topic]:
                found += ring.take(self._next[topic], limit)
        found.sort(key=lambda entry: entry.sequence)
        del found[limit:]
        for entry in found:
            self._next[entry.topic] += 1
        if found:
            self.sequence = found[-1].sequence
        chosen = [
            e for e in found if not self._symbols or e.symbol is None or e.symbol in self._symbols
        ]
        return self._newest(chosen) if self._conflate else chosen

    def _newest(self, entries: list[Entry]) -> list[Entry]:
        newest = {(e.topic, e.symbol): e.sequence for e in entries}
        kept = [
            e
            for e in entries
            if e.topic not in STATE_TOPICS or newest[e.topic, e.symbol] == e.sequence
        ]
        self.conflated += len(entries) - len(kept)
        return kept

    async def next(self, limit: int) -> list[Entry]:
        """Like ``take``, waiting for at least one entry of its own; empty once the line has ended."""
        while True:
            entries = self.take(limit)
            if entries:
                return entries
            if not self.has_more:
                if self._stream.is_closed:
                    return []
                await self._stream.wait()
