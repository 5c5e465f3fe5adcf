from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from domain.errors import DataFolderError
from lake.lock import FolderLock

HOLD = """
import sys
from pathlib import Path
from lake.lock import FolderLock
FolderLock(Path(sys.argv[1]), sys.argv[2]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path, repository: Path):
    """Another process that holds the bot's lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "bot"],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_by_a_line_that_names_the_first(tmp_path, holder):
    with pytest.raises(DataFolderError) as caught:
        FolderLock(tmp_path, "bot").acquire()
    message = str(caught.value)
    assert message.startswith(
        f"data folder {tmp_path} is in use by the bot with pid {holder.pid}, started 20"
    )
    assert message.endswith("stop it or choose another --data-dir")
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_another_role_may_share_the_folder(tmp_path, holder):
    with FolderLock(tmp_path, "recorder") as lock:
        assert lock.holder().pid == os.getpid()


def test_a_killed_holder_frees_the_lock(tmp_path, holder):
    holder.kill()
    holder.wait(10)
    with FolderLock(tmp_path, "bot") as lock:
        assert lock.holder().pid == os.getpid()


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
    with FolderLock(tmp_path, "bot"), pytest.raises(DataFolderError, match=f"pid {os.getpid()}"):
        FolderLock(tmp_path, "bot").acquire()


def test_a_released_lock_can_be_taken_again(tmp_path):
    with FolderLock(tmp_path, "bot") as lock:
        assert lock.holder() is not None
    assert lock.holder() is None
    with FolderLock(tmp_path, "bot"):
        pass
    lock.release()


def test_the_folder_is_created(tmp_path):
    with FolderLock(tmp_path / "new" / "data", "bot"):
        assert (tmp_path / "new" / "data").is_dir()


def test_a_holder_without_a_readable_text_is_still_refused(tmp_path):
    with FolderLock(tmp_path, "bot") as lock:
        lock.path.write_text("garbage")
        with pytest.raises(DataFolderError, match="in use by the bot of another process; stop it"):
            FolderLock(tmp_path, "bot").acquire()


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(DataFolderError, match=r"^data folder .* cannot be used: .*$"):
        FolderLock(tmp_path / "data", "bot").acquire()


def test_a_folder_that_refuses_is_one_line(tmp_path, monkeypatch):
    def refuse(*_args, **_keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataFolderError, match=r"is not writable: Permission denied; choose"):
        FolderLock(tmp_path, "bot").acquire()
