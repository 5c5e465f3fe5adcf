"""One process per role and data folder: an operating system lock that dies with its holder.

Consumes a folder and a role ("bot", "recorder"), produces exclusive use of it. The lock is the
system's (``flock`` or ``msvcrt``), so ``kill -9`` frees it; the file's text only says who holds it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from domain.errors import DataFolderError, FolderInUse, StorageError
from lake.atomic import ensure_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCKED_BYTE: Final = 1 << 30
"""Windows locks bytes, and locked ones cannot be read: lock one far behind the text."""


class LockHolder(msgspec.Struct, frozen=True, kw_only=True):
    """What the lock file says about the process that wrote it."""

    pid: int
    started_at: str
    command: str


class FolderLock:
    """Context manager holding ``<folder>/.<role>.lock``.

    Args:
        folder: The data folder; created if missing.
        role: One word naming the kind of process, as users know it.

    Raises:
        FolderInUse: On entering: held by another process.
        DataFolderError: On entering: the folder cannot be written.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder = folder
        self._role = role
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        """The lock file; it stays when the lock is released."""
        return self._folder / f".{self._role}.lock"

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock or say who has it; never waits."""
        try:
            ensure_folder(self._folder)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except StorageError as error:
            raise DataFolderError(f"data folder {self._folder} cannot be used: {error}") from error
        except OSError as error:
            raise not_writable(self._folder, error) from error
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise self._in_use() from error
        self._descriptor = descriptor
        self._write_holder(descriptor)

    def release(self) -> None:
        """Free the lock; does nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            _unlock(descriptor)
            os.close(descriptor)

    def holder(self) -> LockHolder | None:
        """Who wrote the lock file; ``None`` if it is empty, absent or unreadable."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=LockHolder)
        except (OSError, msgspec.DecodeError):
            return None

    def _write_holder(self, descriptor: int) -> None:
        holder = LockHolder(
            pid=os.getpid(),
            started_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            command=" ".join(
                Path(part).name if i == 0 else part for i, part in enumerate(sys.argv)
            ),
        )
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, msgspec.json.encode(holder))
        except OSError as error:
            self.release()
            raise not_writable(self._folder, error) from error

    def _in_use(self) -> FolderInUse:
        holder = self.holder()
        who = (
            f"with pid {holder.pid}, started {holder.started_at}"
            if holder
            else "of another process"
        )
        return FolderInUse(
            f"data folder {self._folder} is in use by the {self._role} {who}; "
            "stop it or choose another --data-dir"
        )


def not_writable(folder: Path, error: OSError) -> DataFolderError:
    """The one line for a folder that cannot be written."""
    return DataFolderError(
        f"data folder {folder} is not writable: {error.strerror or error}; choose another --data-dir"
    )


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
