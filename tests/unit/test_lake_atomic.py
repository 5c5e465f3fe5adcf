from __future__ import annotations

import errno
import os
import re
import sys
import time
from pathlib import Path

import pytest

from domain.errors import StorageError
from lake import atomic
from lake.atomic import Step, remove_leftovers, write_atomic
from tests.lake_fakes import DyingWriter, FullDisk, Killed

if sys.platform != "win32":
    import resource

STEPS = [Step.CREATED, Step.WRITTEN, Step.SYNCED, Step.RENAMED, Step.FOLDER_SYNCED]


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_the_steps_come_in_the_order_that_makes_the_file_durable(tmp_path):
    writer = DyingWriter()
    write_atomic(tmp_path / "file", lambda handle: handle.write(b"x") and None, hook=writer)
    assert writer.steps == STEPS


@pytest.mark.parametrize("at", range(1, 6))
def test_a_writer_killed_at_any_step_leaves_the_whole_file_or_none(tmp_path, at):
    path = tmp_path / "file"
    with pytest.raises(Killed):
        write_atomic(path, b"content", hook=DyingWriter(at))
    assert path.exists() == (at >= 4)
    assert not path.exists() or path.read_bytes() == b"content"


@pytest.mark.parametrize("at", range(1, 6))
def test_replacing_a_file_shows_the_old_or_the_new_one(tmp_path, at):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(Killed):
        write_atomic(path, b"new", overwrite=True, hook=DyingWriter(at))
    assert path.read_bytes() == (b"new" if at >= 4 else b"old")


def test_an_existing_file_is_not_replaced_unless_asked(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"first")
    with pytest.raises(FileExistsError):
        write_atomic(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_file_that_appears_while_another_is_written_is_not_replaced(tmp_path):
    path = tmp_path / "file"

    def race(step, _path):
        if step is Step.SYNCED:
            path.write_bytes(b"the other one")

    with pytest.raises(FileExistsError):
        write_atomic(path, b"ours", hook=race)
    assert path.read_bytes() == b"the other one"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        write_atomic(path, b"other")


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, step):
    path = tmp_path / "file"
    with pytest.raises(StorageError) as caught:
        write_atomic(path, b"content", hook=FullDisk(step))
    assert re.fullmatch(
        rf"cannot write {path}: No space left on device; free .*--data-dir", str(caught.value)
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_refuses_while_writing_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            write_atomic(tmp_path / "file", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_the_content_leaves_nothing(tmp_path):
    def fail(_handle):
        raise ValueError("bad rows")

    with pytest.raises(ValueError, match="bad rows"):
        write_atomic(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot create folder .*Not a directory"):
        write_atomic(tmp_path / "file" / "below" / "x", b"content")


def leftover(folder: Path, pid: int, token: str = "0badf00d-1") -> Path:  # noqa: S107
    path = folder / f".part.parquet.{pid}.{token}.tmp"
    path.write_bytes(b"half")
    return path


def dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_temporaries_of_dead_writers_are_removed(tmp_path):
    of_dead = leftover(tmp_path, dead_pid())
    of_earlier_run_with_our_pid = leftover(tmp_path, os.getpid())
    assert remove_leftovers(tmp_path) == 2
    assert not of_dead.exists()
    assert not of_earlier_run_with_our_pid.exists()


def test_temporaries_of_living_writers_and_other_files_stay(tmp_path):
    of_parent = leftover(tmp_path, os.getppid())
    ours = leftover(tmp_path, os.getpid(), f"{atomic._RUN_TOKEN}-3")
    (tmp_path / "part.parquet").write_bytes(b"x")
    (tmp_path / ".hidden.tmp").write_bytes(b"x")
    assert remove_leftovers(tmp_path) == 0
    assert of_parent.exists()
    assert ours.exists()


def test_a_temporary_untouched_for_hours_belongs_to_a_reused_pid(tmp_path):
    path = leftover(tmp_path, os.getppid())
    os.utime(path, (time.time() - 7200,) * 2)
    assert remove_leftovers(tmp_path) == 1


def test_no_folder_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "absent") == 0
