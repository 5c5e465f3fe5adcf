"""The one way a file comes to exist: temporary name, write, fsync, rename, fsync of the folder.

Consumes a target path and its bytes, produces a whole file or none: a reader never sees part of
one, whenever the process dies. An existing file is never replaced unless asked. Temporaries are
named ``.<name>.<pid>.<run>-<number>.tmp`` so that those of dead writers can be told and removed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from domain.errors import StorageError

TEMPORARY_SUFFIX: Final = ".tmp"
LEFTOVER_AGE_S: Final = 3600.0
"""A temporary whose pid is alive but that nobody wrote to for so long belongs to a reused pid."""

_RUN_TOKEN: Final = secrets.token_hex(4)
_COUNTER: Final = itertools.count()
_NO_HARD_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Step(enum.StrEnum):
    """The points at which a writer can die; a ``StepHook`` is called right after each."""

    CREATED = "created"  # the temporary exists, empty
    WRITTEN = "written"
    SYNCED = "synced"
    RENAMED = "renamed"  # the file is visible
    FOLDER_SYNCED = "folder_synced"
    REMOVED = "removed"  # a file replaced by a merged one is gone


type StepHook = Callable[[Step, Path], None]
"""Called after every step with the target path. Tests raise from it to stop a writer there."""


def no_hook(_step: Step, _path: Path) -> None:
    """Do nothing: the hook of production."""


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """Map an operating system error to one clear line.

    Args:
        action: What was being done, as in ``"cannot write"``.
        path: The file or folder concerned.
        error: The cause.
    """
    reason = error.strerror or str(error).splitlines()[0]
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        reason += "; free some space or choose another --data-dir"
    return StorageError(f"{action} {path}: {reason}")


def ensure_folder(folder: Path) -> None:
    """Create ``folder`` and its parents durably.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error("cannot create folder", folder, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(
    path: Path,
    content: bytes | memoryview | Callable[[BinaryIO], None],
    *,
    overwrite: bool = False,
    hook: StepHook = no_hook,
) -> None:
    """Write a whole file or nothing; its folder is created if missing.

    Args:
        path: The file to create.
        content: Its bytes, or a function that writes them to the handle it is given.
        overwrite: Replace an existing file.
        hook: See ``StepHook``.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        StorageError: The disk refused (full, read-only, not permitted); nothing is left behind.
    """
    with atomic_file(path, overwrite=overwrite, hook=hook) as handle:
        if callable(content):
            content(handle)
        else:
            handle.write(content)


@contextlib.contextmanager
def atomic_file(
    path: Path, *, overwrite: bool = False, hook: StepHook = no_hook
) -> Iterator[BinaryIO]:
    """Like ``write_atomic`` with the handle in a ``with`` block; an exception in it leaves no file."""
    ensure_folder(path.parent)
    if not overwrite and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    token = f"{_RUN_TOKEN}-{next(_COUNTER)}"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{token}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as handle:
            hook(Step.CREATED, path)
            yield handle
            hook(Step.WRITTEN, path)
            handle.flush()
            os.fsync(handle.fileno())
        hook(Step.SYNCED, path)
        _publish(temporary, path, overwrite=overwrite)
        hook(Step.RENAMED, path)
        sync_folder(path.parent)
        hook(Step.FOLDER_SYNCED, path)
    except FileExistsError:
        _discard(temporary)
        raise
    except OSError as error:
        _discard(temporary)
        raise storage_error("cannot write", path, error) from error
    except Exception:
        _discard(temporary)
        raise


def publish_file(finished: Path, path: Path, *, hook: StepHook = no_hook) -> None:
    """Give a file that was written elsewhere on the same filesystem its final name, durably.

    Args:
        finished: The file; nobody writes to it any more.
        path: Its new name; replaced if it exists. The folder is created if missing.
        hook: See ``StepHook``.

    Raises:
        StorageError: The disk refused; ``finished`` is still there.
    """
    ensure_folder(path.parent)
    try:
        with finished.open("rb") as handle:
            os.fsync(handle.fileno())
        hook(Step.SYNCED, path)
        finished.replace(path)
        hook(Step.RENAMED, path)
        sync_folder(path.parent)
        hook(Step.FOLDER_SYNCED, path)
    except OSError as error:
        raise storage_error("cannot write", path, error) from error


def _publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give the temporary its final name. Without ``overwrite`` a hard link decides races."""
    if overwrite:
        temporary.replace(path)
        return
    if os.name == "nt":  # rename refuses an existing target there
        temporary.rename(path)
        return
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.rename(path)
    else:
        temporary.unlink()


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the temporaries of dead writers from ``folder`` (not below it).

    Returns:
        How many were removed; 0 where the folder does not exist.
    """
    removed = 0
    try:
        entries = list(folder.iterdir())
    except OSError:
        return 0
    for path in entries:
        if _is_leftover(path):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _is_leftover(path: Path) -> bool:
    parts = path.name.rsplit(".", 3)
    if len(parts) != 4 or not path.name.startswith(".") or path.suffix != TEMPORARY_SUFFIX:
        return False
    _, pid, token, _ = parts
    if not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return token.partition("-")[0] != _RUN_TOKEN
    return not _is_alive(int(pid)) or _age_s(path) > LEFTOVER_AGE_S


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there; an open file cannot be removed
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
