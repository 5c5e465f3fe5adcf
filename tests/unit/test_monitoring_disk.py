from __future__ import annotations

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from domain.errors import StorageError
from monitoring import disk
from monitoring.disk import DiskSettings, DiskSpace, DiskWatch, free_bytes

MIB = 1_048_576
SETTINGS = DiskSettings(warn_mib=100, stop_mib=10, check_s=0.001, repeat_s=60.0)


class Scene:
    def __init__(self, folder, *free_mib, settings=SETTINGS):
        self.free_mib = list(free_mib)
        self.now = 0.0
        self.watch = DiskWatch(folder, settings, free=self.free, monotonic=lambda: self.now)

    def free(self, _folder):
        found = self.free_mib[0] if len(self.free_mib) == 1 else self.free_mib.pop(0)
        if isinstance(found, OSError):
            raise found
        return found * MIB


def run(watch):
    asyncio.run(asyncio.wait_for(watch.run(), 10))


def events(logs):
    return [entry["event"] for entry in logs]


def test_a_disk_with_room_is_not_mentioned(tmp_path):
    scene = Scene(tmp_path)
    with capture_logs() as logs:
        assert scene.watch.judge(100 * MIB) is DiskSpace.ENOUGH
    assert logs == []


def test_a_low_disk_is_warned_about_now_and_then(tmp_path):
    scene = Scene(tmp_path)
    with capture_logs() as logs:
        for now in (0.0, 59.0, 61.0):
            scene.now = now
            assert scene.watch.judge(99 * MIB) is DiskSpace.LOW
        scene.watch.judge(500 * MIB)
        scene.watch.judge(99 * MIB)
    assert events(logs) == ["disk.low", "disk.low", "disk.enough_again", "disk.low"]
    assert logs[0]["free_mib"] == 99


def test_a_nearly_full_disk_ends_the_task_and_says_what_to_do(tmp_path):
    scene = Scene(tmp_path, 500, 50, 5)
    with pytest.raises(StorageError) as raised:
        run(scene.watch)
    assert raised.value.exit_code == 1
    assert str(raised.value).startswith(f"only 5 MiB are free at {tmp_path}")
    assert "prune" in str(raised.value)
    expected = {"free_bytes": 5 * MIB, "free_mib": 5, "space": "full", "failed_looks": 0}
    assert scene.watch.statistics() == expected


def test_bounds_of_zero_are_off(tmp_path):
    scene = Scene(tmp_path, settings=DiskSettings(warn_mib=0, stop_mib=0))
    assert scene.watch.judge(0) is DiskSpace.ENOUGH


def test_a_look_that_fails_is_said_once_and_harms_nothing(tmp_path):
    scene = Scene(tmp_path, OSError(5, "Input/output error"), OSError(5, "again"), 5)
    with capture_logs() as logs, pytest.raises(StorageError):
        run(scene.watch)
    assert events(logs).count("disk.not_readable") == 1


def test_a_file_system_that_does_not_answer_holds_one_thread_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_LOOK_TIMEOUT_S", 0.005)
    answers, looks = threading.Event(), []

    def hanging(_folder):
        looks.append(1)
        answers.wait(20)
        return 5 * MIB

    async def go():
        watch = DiskWatch(tmp_path, SETTINGS, free=hanging, monotonic=lambda: 0.0)
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            while watch.statistics()["failed_looks"] < 5:
                await asyncio.sleep(0.001)
            answers.set()
            with pytest.raises(StorageError):
                await task

    asyncio.run(go())
    assert len(looks) == 1


def test_a_folder_that_is_not_there_yet_lies_on_its_parents_disk(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0
