"""The frame journal gives back every whole record, whatever happened to the rest of its bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from domain.errors import StorageError
from lake.frame_journal import FrameJournal, JournalRecord, read_segment, segments_in

FRAMES = [
    JournalRecord("trades", 3, [b'{"a":1}', b"", b"\xff" * 30], [10, 11, -(2**60)]),
    JournalRecord("depth", 4, [b"x" * 50], [12]),
    JournalRecord.note({"route": "depth", "cause": "disconnected"}),
]


@pytest.fixture
def journal(tmp_path: Path) -> FrameJournal:
    return FrameJournal(tmp_path / "journal")


def written(journal: FrameJournal) -> Path:
    journal.begin(1, {"symbols": ["BTCUSDT"]})
    for record in FRAMES:
        journal.append([record])
    journal.close()
    ((_, path),) = segments_in(journal.folder)
    return path


def test_records_come_back_as_they_were(journal: FrameJournal) -> None:
    segment = read_segment(written(journal))
    assert segment.records == [JournalRecord.note({"symbols": ["BTCUSDT"]}), *FRAMES]
    assert (segment.cut_bytes, segment.damaged_bytes) == (0, 0)


def test_a_torn_tail_is_cut_and_counted_wherever_it_tears(journal: FrameJournal) -> None:
    path = written(journal)
    content = path.read_bytes()
    starts = [i for i in range(len(content)) if content.startswith(b"FRJ1", i)]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        segment = read_segment(path)
        whole = sum(start <= length for start in starts[1:])
        assert len(segment.records) == whole
        assert segment.cut_bytes == length - [0, *starts[1:]][whole]
        assert segment.damaged_bytes == 0


def test_a_damaged_record_costs_only_itself(journal: FrameJournal) -> None:
    path = written(journal)
    content = bytearray(path.read_bytes())
    second = content.index(b"FRJ1", 1)
    content[second + 60] ^= 1
    path.write_bytes(content)
    segment = read_segment(path)
    assert segment.records == [JournalRecord.note({"symbols": ["BTCUSDT"]}), *FRAMES[1:]]
    assert segment.damaged_bytes == content.index(b"FRJ1", second + 1) - second
    assert segment.cut_bytes == 0


def test_a_payload_that_looks_like_a_record_is_a_payload(journal: FrameJournal) -> None:
    journal.begin(1, {})
    path = segments_in(journal.folder)[0][1]
    inner = path.read_bytes()
    journal.append([JournalRecord("trades", 1, [inner], [1])])
    journal.close()
    assert read_segment(path).records[1].payloads == [inner]


def test_what_the_disk_refused_does_not_count_and_can_be_tried_again(
    journal: FrameJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.begin(1, {})
    journal.append(FRAMES[:1])

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            journal.append(FRAMES[1:])
        with pytest.raises(StorageError, match="No space left"):
            journal.begin(2, {})
    journal.append(FRAMES[1:])
    journal.close()
    ((number, path),) = segments_in(journal.folder)
    assert number == 1
    assert read_segment(path).records[1:] == FRAMES


def test_segments_are_listed_in_order_and_removed_once(journal: FrameJournal) -> None:
    for number in (9, 10, 11):
        journal.begin(number, {})
    journal.close()
    (journal.folder / "notes.txt").touch()
    journal.remove(10)
    journal.remove(10)
    assert [number for number, _ in segments_in(journal.folder)] == [9, 11]
    assert segments_in(journal.folder / "absent") == []
