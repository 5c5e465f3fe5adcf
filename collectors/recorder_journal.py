"""The event loop's side of the frame journal: what is noted here is durable within one sync.

Consumes records without ever blocking, produces segments: ``seal`` ends one between two records, and a
segment whose frames are in Parquet (``finished``) is removed. A failed sync keeps its records.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from collectors.worker_thread import WorkerThread
from lake.frame_journal import FrameJournal, JournalRecord


class _Seal(msgspec.Struct, frozen=True):
    """Ends its segment; ``state`` opens the next one."""

    segment: int
    state: object


class _Noted(msgspec.Struct, frozen=True):
    segment: int
    record: JournalRecord
    payload_bytes: int


class JournalKeeper:
    """Keeps one journal.

    Args:
        journal: Whose segment ``segment`` was begun.
        segment: Its number.
    """

    def __init__(self, journal: FrameJournal, segment: int) -> None:
        self.segment = segment  # that what is noted now belongs to
        self.payload_bytes = 0  # noted, not durable yet
        self._journal = journal
        self._thread = WorkerThread("recorder-journal")
        self._syncing = asyncio.Lock()
        self._waiting: deque[_Noted | _Seal] = deque()
        self._finished: set[int] = set()
        self._begun = segment  # that the journal writes to

    def note(self, record: JournalRecord) -> None:
        """Keep a record for the next sync."""
        size = sum(map(len, record.payloads))
        self.payload_bytes += size
        self._waiting.append(_Noted(self.segment, record, size))

    def seal(self, state: object) -> int:
        """End the segment here; the next one begins with a note of ``state``.

        Returns:
            The number of the ended one.
        """
        sealed = self.segment
        self._waiting.append(_Seal(sealed, state))
        self.segment += 1
        return sealed

    def finished(self, segment: int) -> None:
        """All of an ended segment is in Parquet: it goes with the next sync."""
        self._finished.add(segment)

    async def sync(self) -> None:
        """Make durable what was noted, and remove what is finished.

        Raises:
            StorageError: The disk refused; what is not durable is kept.
        """
        async with self._syncing:
            taken, self._waiting = self._waiting, deque()
            try:
                await self._thread.run(lambda: self._write(taken))
            finally:
                taken.extend(self._waiting)
                self._waiting = taken
                self.payload_bytes = sum(
                    item.payload_bytes for item in taken if isinstance(item, _Noted)
                )

    def _write(self, items: deque[_Noted | _Seal]) -> None:
        """Take items out as they become durable."""
        while items:
            records: list[JournalRecord] = []
            count = 0
            for item in items:
                if isinstance(item, _Seal):
                    break
                count += 1
                if item.segment not in self._finished:
                    records.append(item.record)
            self._journal.append(records)
            for _ in range(count):
                items.popleft()
            if items and isinstance(items[0], _Seal):
                seal = items[0]
                self._journal.begin(seal.segment + 1, seal.state)
                self._begun = seal.segment + 1
                items.popleft()
        for segment in sorted(self._finished):
            if segment < self._begun:
                self._journal.remove(segment)
                self._finished.discard(segment)

    async def close(self) -> None:
        """End the thread; nothing may be noted any more."""
        await self._thread.run(self._journal.close)
        self._thread.close()
