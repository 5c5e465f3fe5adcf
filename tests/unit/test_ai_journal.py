from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from ai.contract import Message, Outcome
from ai.journal import MAX_PENDING, CallJournal, CallRecord, calls_file
from ai.recorded import RecordedAnswers
from ai.reply import MAX_REPLY_CHARS
from domain.errors import StorageError
from tests.ai_samples import CANARY, START_MS, WINDOW_MS, needs_full_disk, records

DAY_MS = 86_400_000


def record(number: int = 0, outcome: Outcome = Outcome.ANSWERED, **changes: object) -> CallRecord:
    fields: dict[str, object] = {
        "at_ns": 1,
        "symbol": "BTCUSDT",
        "window_end_ms": START_MS + WINDOW_MS * number,
        "outcome": outcome,
        "context_hash": f"hash-{number}",
        "reply": "{}",
    }
    return CallRecord(**(fields | changes))  # type: ignore[arg-type]


def writer(folder: Path) -> tuple[CallJournal, list[StorageError]]:
    failures: list[StorageError] = []
    secrets = list(CANARY.values())
    return CallJournal(folder, secrets=secrets, on_failure=failures.append), failures


def test_records_go_to_the_file_of_the_window_s_day(tmp_path: Path) -> None:
    calls, _ = writer(tmp_path)
    calls.add(record(0))
    calls.add(record(0, window_end_ms=START_MS + DAY_MS))
    calls.add(record(1))
    assert asyncio.run(calls.flush())
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "calls-2024-07-19.jsonl",
        "calls-2024-07-20.jsonl",
    ]
    assert [r.context_hash for r in records(tmp_path)] == ["hash-0", "hash-1", "hash-0"]


@needs_full_disk
def test_a_full_disk_keeps_records_bounded_and_writes_them_when_there_is_room(
    tmp_path: Path,
) -> None:
    calls, failures = writer(tmp_path)
    path = calls_file(tmp_path, START_MS)
    path.symlink_to("/dev/full")
    for number in range(10):
        calls.add(record(number))
    assert not asyncio.run(calls.flush())
    assert len(failures) == 1
    for number in range(10, MAX_PENDING + 5):
        calls.add(record(number))
    assert not asyncio.run(calls.flush())
    path.unlink()
    assert asyncio.run(calls.flush())
    hashes = [r.context_hash for r in records(tmp_path)]
    assert hashes == [f"hash-{number}" for number in range(5, MAX_PENDING + 5)]
    assert calls.statistics() == {
        "journal_written": MAX_PENDING,
        "journal_pending": 0,
        "journal_dropped": 5,
        "journal_failed_writes": 2,
    }


@needs_full_disk
def test_one_day_that_cannot_be_written_does_not_hold_up_the_other(tmp_path: Path) -> None:
    calls, _ = writer(tmp_path)
    calls_file(tmp_path, START_MS + DAY_MS).symlink_to("/dev/full")
    calls.add(record(0))
    calls.add(record(1, window_end_ms=START_MS + DAY_MS))
    assert not asyncio.run(calls.flush())
    assert calls_file(tmp_path, START_MS).read_bytes().count(b"\n") == 1
    assert calls.statistics()["journal_pending"] == 1


def test_records_added_while_one_is_being_written_are_written_once(tmp_path: Path) -> None:
    async def scene() -> None:
        calls, _ = writer(tmp_path)
        running = asyncio.create_task(calls.run())
        for number in range(200):
            calls.add(record(number))
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
        await calls.flush()

    asyncio.run(scene())
    assert [r.context_hash for r in records(tmp_path)] == [f"hash-{n}" for n in range(200)]


@needs_full_disk
def test_a_disk_that_recovers_is_noticed_without_a_new_record(tmp_path: Path) -> None:
    async def scene() -> None:
        calls = CallJournal(tmp_path, secrets=(), on_failure=lambda _: None, retry_s=0.01)
        path = calls_file(tmp_path, START_MS)
        path.symlink_to("/dev/full")
        calls.add(record())
        async with asyncio.TaskGroup() as group:
            running = group.create_task(calls.run())
            while not calls.statistics()["journal_failed_writes"]:
                await asyncio.sleep(0.005)
            path.unlink()
            while calls.statistics()["journal_written"] != 1:
                await asyncio.sleep(0.005)
            running.cancel()

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert len(records(tmp_path)) == 1


def test_no_key_is_written_wherever_it_turns_up(tmp_path: Path) -> None:
    calls, _ = writer(tmp_path)
    text = " ".join(CANARY.values())
    calls.add(record(reply=f'he said "{text}"', error=text, prompt=(Message("user", text),)))
    asyncio.run(calls.flush())
    content = calls_file(tmp_path, START_MS).read_text()
    assert "canary" not in content
    assert records(tmp_path)[0].error == "*** *** ***"


def test_a_line_torn_by_a_crash_spoils_only_itself(tmp_path: Path) -> None:
    path = calls_file(tmp_path, START_MS)
    path.write_bytes(msgspec.json.encode(record(0)) + b'\n{"at_ns":1,"sym')
    calls, _ = writer(tmp_path)
    calls.add(record(1))
    asyncio.run(calls.flush())
    answers = RecordedAnswers(tmp_path)
    assert answers.has_window("BTCUSDT", START_MS)
    assert answers.find("hash-0") and answers.find("hash-1")
    assert answers.unreadable_lines == 1


def test_only_answers_answer(tmp_path: Path) -> None:
    calls, _ = writer(tmp_path)
    calls.add(record(0, Outcome.NOT_JSON))
    calls.add(record(1, Outcome.TIMEOUT))
    calls.add(record(2))
    asyncio.run(calls.flush())
    answers = RecordedAnswers(tmp_path)
    asked = [answers.has_window("BTCUSDT", START_MS + WINDOW_MS * n) for n in range(4)]
    assert asked == [False, False, True, False]
    assert not answers.has_window("ETHUSDT", START_MS + WINDOW_MS * 2)
    assert not answers.has_window("BTCUSDT", START_MS + 40 * DAY_MS)  # a day without a file


def test_an_enormous_reply_is_cut_in_the_journal(tmp_path: Path) -> None:
    calls, _ = writer(tmp_path)
    calls.add(record(0, Outcome.WRONG_SHAPE, reply="x" * 100_000))
    asyncio.run(calls.flush())
    assert len(records(tmp_path)[0].reply or "") == MAX_REPLY_CHARS
