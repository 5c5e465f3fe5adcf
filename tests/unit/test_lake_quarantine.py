from __future__ import annotations

import base64
import threading

import msgspec
import pytest

from lake import quarantine as module
from lake.quarantine import Quarantine, QuarantineEntry, QuarantineSettings

AT_NS = 1_721_347_199_000_000_000  # 2024-07-18 23:59:59 UTC
SECOND_NS = 1_000_000_000


def entries(path):
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def test_rejected_input_is_kept_with_its_reason(tmp_path):
    quarantine = Quarantine(tmp_path)
    quarantine.add("unparsable", b"{half", at_ns=AT_NS, source="trades", symbol="BTCUSDT")
    assert quarantine.flush() == 1
    assert entries(tmp_path / "2024-07-18.jsonl") == [
        {
            "at_ns": AT_NS,
            "reason": "unparsable",
            "source": "trades",
            "symbol": "BTCUSDT",
            "payload": "{half",
        }
    ]


def test_bytes_that_are_no_text_are_kept_in_base64(tmp_path):
    payload = bytes(range(256))
    quarantine = Quarantine(tmp_path)
    quarantine.add("unparsable", payload, at_ns=AT_NS)
    quarantine.add("lone", "\ud800", at_ns=AT_NS)
    quarantine.flush()
    first, second = entries(tmp_path / "2024-07-18.jsonl")
    assert base64.b64decode(first["payload_base64"]) == payload
    assert "payload" not in first
    assert base64.b64decode(second["payload_base64"]) == b"\xed\xa0\x80"


def test_the_date_of_receipt_names_the_file_and_files_grow(tmp_path):
    quarantine = Quarantine(tmp_path)
    quarantine.add("a", "1", at_ns=AT_NS)
    quarantine.add("a", "2", at_ns=AT_NS + SECOND_NS)
    quarantine.flush()
    quarantine.add("a", "3", at_ns=AT_NS)
    quarantine.flush()
    assert [e["payload"] for e in entries(tmp_path / "2024-07-18.jsonl")] == ["1", "3"]
    assert [e["payload"] for e in entries(tmp_path / "2024-07-19.jsonl")] == ["2"]


def test_long_payloads_are_cut_and_say_so(tmp_path):
    quarantine = Quarantine(tmp_path, QuarantineSettings(max_payload_bytes=4))
    quarantine.add("a", "123456789", at_ns=AT_NS)
    quarantine.flush()
    (entry,) = entries(tmp_path / "2024-07-18.jsonl")
    assert entry["payload"] == "1234"
    assert entry["payload_bytes"] == 9


@pytest.mark.parametrize(
    "settings",
    [
        QuarantineSettings(max_entries_per_day=3),
        QuarantineSettings(max_bytes_per_day=250),
        QuarantineSettings(max_pending=3),
    ],
)
def test_what_is_beyond_the_bounds_is_counted_by_reason(tmp_path, settings):
    quarantine = Quarantine(tmp_path, settings)
    for number in range(10):
        quarantine.add("odd" if number % 2 else "even", str(number), at_ns=AT_NS)
    quarantine.flush()
    *kept, last = entries(tmp_path / "2024-07-18.jsonl")
    assert 0 < len(kept) < 10
    assert [e["payload"] for e in kept] == [str(n) for n in range(len(kept))]
    assert last["reason"] == "suppressed"
    assert sum(last["suppressed"].values()) == 10 - len(kept)
    assert quarantine.statistics()["suppressed"] == 10 - len(kept)
    quarantine.flush()
    assert len(entries(tmp_path / "2024-07-18.jsonl")) == len(kept) + 1


def test_the_bounds_of_a_day_hold_across_restarts(tmp_path):
    for _ in range(3):
        quarantine = Quarantine(tmp_path, QuarantineSettings(max_entries_per_day=2))
        quarantine.add("a", "x", at_ns=AT_NS)
        quarantine.flush()
    kept = [e for e in entries(tmp_path / "2024-07-18.jsonl") if "payload" in e]
    assert len(kept) == 2


def test_a_dead_writers_half_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "2024-07-18.jsonl"
    path.write_bytes(b'{"reason":"a","at_ns":1}\n{"reas')
    quarantine = Quarantine(tmp_path)
    quarantine.add("b", "x", at_ns=AT_NS)
    quarantine.flush()
    assert path.read_bytes().splitlines()[1] == b'{"reas'
    assert (
        msgspec.json.decode(path.read_bytes().splitlines()[2], type=QuarantineEntry).reason == "b"
    )


def test_a_disk_that_refuses_never_raises_and_nothing_is_lost(tmp_path, monkeypatch):
    quarantine = Quarantine(tmp_path)
    quarantine.add("a", "1", at_ns=AT_NS)
    quarantine.add("a", "2", at_ns=AT_NS + SECOND_NS)
    with monkeypatch.context() as patch:

        def refuse(*_args):
            raise OSError(28, "No space left on device")

        patch.setattr(module, "append_durably", refuse)
        assert quarantine.flush() == 0
    assert quarantine.statistics()["pending"] == 2
    assert quarantine.statistics()["failed_flushes"] == 1
    assert quarantine.flush() == 2
    assert [e["payload"] for e in entries(tmp_path / "2024-07-19.jsonl")] == ["2"]


def test_a_folder_that_cannot_be_created_never_raises(tmp_path):
    (tmp_path / "file").write_text("")
    quarantine = Quarantine(tmp_path / "file" / "quarantine", QuarantineSettings(max_pending=2))
    for _ in range(5):
        quarantine.add("a", "1", at_ns=AT_NS)
    assert quarantine.flush() == 0
    assert quarantine.statistics() == {
        "added": 5,
        "written": 0,
        "pending": 2,
        "suppressed": 3,
        "failed_flushes": 1,
    }


def test_adding_and_flushing_from_several_threads_loses_nothing(tmp_path):
    quarantine = Quarantine(tmp_path)
    done = threading.Event()

    def flush_until_done():
        while not done.is_set():
            quarantine.flush()

    flusher = threading.Thread(target=flush_until_done)
    flusher.start()
    for number in range(300):
        quarantine.add("a", str(number), at_ns=AT_NS)
    done.set()
    flusher.join()
    quarantine.flush()
    payloads = [e["payload"] for e in entries(tmp_path / "2024-07-18.jsonl")]
    assert payloads == [str(number) for number in range(300)]
