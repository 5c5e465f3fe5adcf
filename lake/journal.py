"""An append-only file of lines that survives its writer: fsync per append, torn tails dropped.

Consumes lines, produces them again after any crash: a line is there whole or not at all. Rewritten
atomically by ``compact``. One writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lake.atomic import (
    StepHook,
    ensure_folder,
    no_hook,
    remove_leftovers,
    storage_error,
    write_atomic,
)

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Journal:
    """Lines of bytes without newlines in one file.

    Args:
        path: The file; created by the first append.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(self, path: Path, *, hook: StepHook = no_hook) -> None:
        self.path = path
        self._hook = hook

    def read(self) -> list[bytes]:
        """All whole lines; what a dead writer left behind the last newline is not one.

        Raises:
            StorageError: The system refused.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error("cannot read", self.path, error) from error
        return content.split(b"\n")[:-1]

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines durably, all or (as far as a living system can) none.

        Raises:
            StorageError: The disk refused; the file is as it was.
        """
        content = b"".join(line + b"\n" for line in lines)
        if not content:
            return
        ensure_folder(self.path.parent)
        try:
            append_durably(self.path, content)
        except OSError as error:
            raise storage_error("cannot write", self.path, error) from error

    def compact(self, lines: Iterable[bytes]) -> None:
        """Replace the content. Call it at start: it also drops a torn tail.

        Raises:
            StorageError: The disk refused; the file is as it was.
        """
        remove_leftovers(self.path.parent)
        content = b"".join(line + b"\n" for line in lines)
        write_atomic(self.path, content, overwrite=True, hook=self._hook)

    def keep_copy(self, name: str) -> Path:
        """Copy the file as it is beside it, before lines nobody can read are dropped.

        Raises:
            StorageError: The disk refused.
        """
        copy = self.path.with_name(name)
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise storage_error("cannot read", self.path, error) from error
        write_atomic(copy, content, overwrite=True)
        return copy


def append_durably(path: Path, content: bytes) -> None:
    """Append bytes to a file and fsync; on failure the file keeps its length.

    Raises:
        OSError: The disk refused.
    """
    descriptor = os.open(path, _APPEND, 0o644)
    try:
        length = os.fstat(descriptor).st_size
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)
