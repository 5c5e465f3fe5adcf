"""The line of events: one order, readers at their own pace, what is missed is counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from domain.events import Alert, HealthEvent, Topic
from event_bus import Envelope
from monitoring.event_journal import REMEMBERED, EventJournal
from monitoring.event_stream import Entry, EventStream

START_NS = 1_700_000_000_000_000_000


def alert(number: int, symbol: str | None = "BTCUSDT") -> Envelope:
    return Envelope(
        Topic.ALERT,
        number,
        Alert(name=f"a{number}", severity="info", symbol=symbol, message="", at_ns=number),
    )


def health(number: int) -> Envelope:
    return Envelope(Topic.HEALTH, number, HealthEvent(at_ns=number, values={}))


def stream_of(keep: int = 100, at_ns: int = START_NS, **earlier: Any) -> EventStream:
    return EventStream(keep, wall_ns=lambda: at_ns, **earlier)


def names(entries: list[Entry]) -> list[str]:
    return [json.loads(entry.json)["payload"].get("name", "health") for entry in entries]


def test_readers_get_every_event_in_one_order_over_all_topics() -> None:
    stream = stream_of()
    reader = stream.reader()
    stream.append([alert(1), health(1), alert(2)])
    taken = reader.take(10)
    assert names(taken) == ["a1", "health", "a2"]
    begin = START_NS // 1_000
    assert [entry.sequence for entry in taken] == [begin + 1, begin + 2, begin + 3]
    assert reader.take(10) == []


def test_a_reader_takes_in_small_steps_what_another_takes_at_once() -> None:
    stream = stream_of()
    slow = stream.reader()
    stream.append([alert(1), health(1), alert(2), health(2), alert(3)])
    steps = []
    while entries := slow.take(2):
        steps += names(entries)
    assert steps == names(stream.reader(after=0).take(100))


def test_only_the_topics_and_symbols_asked_for_are_given() -> None:
    stream = stream_of()
    reader = stream.reader([Topic.ALERT], ["ETHUSDT"])
    stream.append([alert(1), alert(2, "ETHUSDT"), health(1), alert(3, None)])
    assert names(reader.take(10)) == ["a2", "a3"]  # what is nobody's concerns everybody


def test_a_resuming_reader_gets_exactly_what_followed() -> None:
    stream = stream_of()
    stream.append([alert(1), alert(2), alert(3)])
    after = stream.reader(after=0).take(1)[0].sequence
    resumed = stream.reader(after=after)
    assert names(resumed.take(10)) == ["a2", "a3"]
    assert not resumed.uncounted
    assert not resumed.missed


def test_what_falls_off_before_a_slow_reader_comes_is_counted_by_topic() -> None:
    stream = stream_of(keep=2)
    reader = stream.reader()
    stream.append([alert(1), alert(2), health(1), alert(3), alert(4), alert(5)])
    assert names(reader.take(10)) == ["health", "a4", "a5"]
    assert dict(reader.missed) == {Topic.ALERT: 3}


def test_resuming_behind_what_is_kept_says_which_topics_are_not_whole() -> None:
    stream = stream_of(keep=2)
    stream.append([alert(1)])
    after = stream.last_sequence
    stream.append([alert(2), health(1), alert(3), alert(4)])
    reader = stream.reader(after=after)
    assert reader.uncounted == [Topic.ALERT]
    assert names(reader.take(10)) == ["health", "a3", "a4"]


def test_a_sequence_from_the_future_is_not_believed() -> None:
    stream = stream_of()
    stream.append([alert(1)])
    reader = stream.reader([Topic.ALERT], after=stream.last_sequence + 10)
    assert reader.uncounted == [Topic.ALERT]
    stream.append([alert(2)])
    assert names(reader.take(10)) == ["a2"]


def test_a_conflating_reader_gets_the_newest_state_and_every_alert() -> None:
    stream = stream_of()
    reader = stream.reader(conflate=True)
    stream.append([health(1), alert(1), health(2), alert(2), health(3)])
    taken = reader.take(10)
    assert names(taken) == ["a1", "a2", "health"]
    assert json.loads(taken[-1].json)["payload"]["at_ns"] == 3
    assert reader.conflated == 2


def test_a_waiting_reader_is_woken_and_told_of_the_end() -> None:
    async def scene() -> None:
        stream = stream_of()
        reader = stream.reader()
        waiting = asyncio.ensure_future(reader.next(10))
        await asyncio.sleep(0)
        stream.append([alert(1)])
        assert names(await waiting) == ["a1"]
        ending = asyncio.ensure_future(reader.next(10))
        await asyncio.sleep(0)
        stream.close()
        assert await ending == []

    asyncio.run(scene())


def journalled(folder: Path, keep: int, envelopes: list[Envelope], at_ns: int) -> EventStream:
    """One run of a program: everything is published and the stream ends."""

    async def scene() -> EventStream:
        journal = EventJournal(folder, keep)
        stream = stream_of(keep, at_ns, earlier=journal.read(), remembered=REMEMBERED)
        writing = asyncio.ensure_future(journal.run(stream.reader(REMEMBERED)))
        for envelope in envelopes:
            stream.append([envelope])
            await asyncio.sleep(0)
        stream.close()
        await writing
        return stream

    return asyncio.run(scene())


def test_decisions_are_still_there_after_a_restart_and_states_are_named_as_gone(
    tmp_path: Path,
) -> None:
    first = journalled(tmp_path, 10, [alert(1), health(1), alert(2)], START_NS)
    known = first.reader(after=0).take(1)[0].sequence
    second = journalled(tmp_path, 10, [alert(3)], START_NS + 10**9)
    reader = second.reader([Topic.ALERT, Topic.HEALTH], after=known)
    assert reader.uncounted == [Topic.HEALTH]
    assert names(reader.take(10)) == ["a2", "a3"]


def test_sequences_grow_even_if_the_clock_was_set_back(tmp_path: Path) -> None:
    first = journalled(tmp_path, 10, [alert(1)], START_NS)
    second = journalled(tmp_path, 10, [alert(2)], START_NS - 10**12)
    assert second.last_sequence > first.last_sequence
    assert names(second.reader(after=first.last_sequence).take(10)) == ["a2"]


def test_the_journal_keeps_at_least_the_last_events_and_stays_small(tmp_path: Path) -> None:
    journalled(tmp_path, 5, [alert(n) for n in range(1, 24)], START_NS)
    stream = journalled(tmp_path, 5, [], START_NS + 10**9)
    assert names(stream.reader(after=0).take(100)) == [f"a{n}" for n in range(19, 24)]
    lines = [len(path.read_bytes().splitlines()) for path in tmp_path.iterdir()]
    assert sum(lines) <= 15


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    journalled(tmp_path, 10, [alert(1), alert(2)], START_NS)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    stream = journalled(tmp_path, 10, [alert(3)], START_NS + 10**9)
    assert names(stream.reader(after=0).take(10)) == ["a1", "a3"]
    again = journalled(tmp_path, 10, [], START_NS + 2 * 10**9)
    assert names(again.reader(after=0).take(10)) == ["a1", "a3"]
