"""Keeps the decisions among the events on disk, so that followers can resume after a restart.

Consumes entries of the event stream, produces ``events/journal.jsonl`` (and the one before it,
``journal.1.jsonl``): one line per event, written behind, given to the system before the next look. A
killed process loses at most what it published in its last moments; windows and features are in the
feature store and are not kept here.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import msgspec
import structlog

from domain.events import Topic
from monitoring.event_stream import Entry, Reader

log = structlog.get_logger()

REMEMBERED = (Topic.SIGNAL, Topic.ANALYSIS_UNAVAILABLE, Topic.ALERT, Topic.GAP)
_BATCH = 1_000
_RETRY_S = 5.0


class EventJournal:
    """Two files below ``folder``; the older goes when the newer holds ``keep`` events.

    Args:
        folder: Created when missing; of one process.
        keep: At least so many events survive.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._current = folder / "journal.jsonl"
        self._before = folder / "journal.1.jsonl"
        self._keep = keep
        self._lines = 0
        self._failed_writes = self._lost = 0

    def read(self) -> list[Entry]:
        """What earlier runs left, in order; a torn last line is cut off. Blocks.

        Raises:
            OSError: The folder cannot be used.
        """
        self._current.parent.mkdir(parents=True, exist_ok=True)
        before, current = _entries(self._before), _entries(self._current)
        self._lines = len(current)
        return before + current

    async def run(self, reader: Reader) -> None:
        """Write what a reader of ``REMEMBERED`` gets, until the stream ends.

        A disk that refuses is tried again; what falls off meanwhile is counted.
        """
        while entries := await reader.next(_BATCH):
            self._lost += reader.missed.total()
            reader.missed.clear()
            await self._append_in_the_end(entries)

    async def _append_in_the_end(self, entries: list[Entry]) -> None:
        while True:
            if await asyncio.to_thread(self._append, entries):
                return
            await asyncio.sleep(_RETRY_S)

    def _append(self, entries: list[Entry]) -> bool:
        try:
            if self._lines >= self._keep:
                self._current.replace(self._before)
                self._lines = 0
            _append_whole(self._current, b"".join(entry.json + b"\n" for entry in entries))
        except OSError as error:
            self._failed_writes += 1
            if self._failed_writes == 1:
                log.warning("events.journal_failed", path=str(self._current), error=str(error))
            return False
        self._lines += len(entries)
        return True

    def statistics(self) -> dict[str, int | float | str | None]:
        """Events in the newer file, failed writes, events lost to the journal."""
        return {"lines": self._lines, "failed_writes": self._failed_writes, "lost": self._lost}


def _append_whole(path: Path, lines: bytes) -> None:
    """All of it or, where the disk refuses, nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        written = 0
        try:
            written = file.write(lines)
        finally:
            if written != len(lines):
                file.truncate(size)
    if written != len(lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _entries(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # the process died while writing: the next line must begin a line
        with path.open("r+b") as file:
            file.truncate(whole)
    found = []
    for line in content[:whole].splitlines():
        try:
            found.append(Entry.from_json(line))
        except msgspec.MsgspecError as error:
            log.warning("events.journal_line_damaged", path=str(path), error=str(error))
    return found
