"""Silences: which alerts are not told of, and until when.

A small file beside the alert state, written by ``alerts silence`` and read by a running bot. An
alert that still fires when its silence ends is told of then.
"""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from domain.errors import ConfigError, StorageError
from lake.atomic import storage_error, write_atomic
from lake.lock import FolderLock

FILE: Final = "silences.json"
MAX_SILENCES: Final = 1_000


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """One silence. ``name`` is an alert's name, shell-style wildcards allowed; times are UTC, ms."""

    silence_id: str
    name: str
    symbol: str | None
    until_ms: int
    created_ms: int
    comment: str = ""

    def covers(self, name: str, symbol: str | None, now_ms: int) -> bool:
        """Whether an alert is silenced at ``now_ms``; one without ``symbol`` covers all symbols."""
        if now_ms >= self.until_ms or self.symbol not in {None, symbol}:
            return False
        return fnmatch.fnmatchcase(name, self.name)


def read_silences(folder: Path) -> tuple[Silence, ...]:
    """What the file says; nothing where there is none.

    Raises:
        StorageError: It cannot be read or is none of ours.
    """
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Silence, ...])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise storage_error("cannot read", path, error) from error
    except msgspec.DecodeError as error:
        raise StorageError(f"{path}: holds no silences ({error})") from error


def add_silence(
    folder: Path, *, name: str, symbol: str | None, until_ms: int, now_ms: int, comment: str
) -> Silence:
    """Write one more; those over are dropped from the file.

    Raises:
        ConfigError: There are too many, or another process is writing.
        StorageError: The disk refused.
    """
    silence = Silence(
        silence_id=secrets.token_hex(4),
        name=name,
        symbol=symbol,
        until_ms=until_ms,
        created_ms=now_ms,
        comment=comment,
    )
    with FolderLock(folder, "silences"):
        current = [s for s in read_silences(folder) if s.until_ms > now_ms]
        if len(current) >= MAX_SILENCES:
            raise ConfigError(f"there are {len(current)} silences already; end some")
        _write(folder, [*current, silence])
    return silence


def end_silences(folder: Path, ids: Iterable[str], now_ms: int) -> int:
    """Remove silences by id, and those that are over.

    Returns:
        How many of the ids there were.
    """
    wanted = set(ids)
    with FolderLock(folder, "silences"):
        current = [s for s in read_silences(folder) if s.until_ms > now_ms]
        _write(folder, [s for s in current if s.silence_id not in wanted])
    return sum(s.silence_id in wanted for s in current)


def _write(folder: Path, silences: Iterable[Silence]) -> None:
    write_atomic(folder / FILE, msgspec.json.encode(tuple(silences)), overwrite=True)
