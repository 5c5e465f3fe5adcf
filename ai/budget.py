"""What may still be spent today: tokens and dollars per provider and UTC day, across restarts.

Consumes estimates before a call and usage after it, produces leave to spend. A reservation is on
disk before the call is made and counts in full until it is settled, so a crash never forgets one.
Days are told by the wall clock and kept apart by date: a clock that jumps finds its own day again.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from domain.errors import StorageError
from lake.journal import Journal
from lake.part_files import date_of

KEPT_DAYS = 8
FILE_NAME = "budget.jsonl"
_MAX_UNWRITTEN = 1_000


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Per provider and UTC day; ``None``: no limit."""

    daily_tokens: int | None = None
    daily_usd: float | None = None


class Spending(msgspec.Struct):
    """Tokens and dollars."""

    tokens: int = 0
    usd: float = 0.0


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Leave to spend, until ``Budget.settle``."""

    id: str
    day: str
    provider: str
    tokens: int
    usd: float


class Budget:
    """The ledger. ``load`` first; one process per folder (the folder's lock sees to that)."""

    def __init__(
        self,
        folder: Path,
        settings: BudgetSettings,
        *,
        wall_ns: Callable[[], int],
        on_failure: Callable[[StorageError], None],
    ) -> None:
        self._journal = Journal(folder / FILE_NAME)
        self._settings = settings
        self._wall_ns = wall_ns
        self._on_failure = on_failure
        self._entries: dict[str, Reservation] = {}  # by id; a settled one holds what was spent
        self._spent: dict[tuple[str, str], Spending] = {}  # (day, provider)
        self._unwritten: list[Reservation] = []
        self._writing = asyncio.Lock()
        self._ids = (f"{secrets.token_hex(4)}-{number}" for number in itertools.count())

    def load(self) -> None:
        """Read what was spent in the last days and drop older lines. Blocks.

        Raises:
            StorageError: the ledger cannot be read or written.
        """
        self.read()
        if self._journal.path.exists():  # a line torn by a crash must not swallow the next one
            self._journal.compact(map(msgspec.json.encode, self._entries.values()))

    def read(self) -> None:
        """Only read; for somebody who looks while another process writes. Blocks.

        Raises:
            StorageError: the ledger cannot be read.
        """
        entries = {}
        for line in self._journal.read():
            try:
                entry = msgspec.json.decode(line, type=Reservation)
            except msgspec.DecodeError:
                continue  # a line nobody could have written whole
            entries[entry.id] = entry  # a settlement follows its reservation
        days = sorted({entry.day for entry in entries.values()})[-KEPT_DAYS:]
        self._entries, self._spent = {}, {}
        for entry in entries.values():
            if entry.day in days:
                self._count(entry)

    async def reserve(self, provider: str, tokens: int, usd: float) -> Reservation | None:
        """Set aside what a call may cost; ``None`` if the day's rest is less than that."""
        if not self.can_spend(provider, tokens, usd):
            return None
        entry = Reservation(
            id=next(self._ids), day=self.day(), provider=provider, tokens=tokens, usd=usd
        )
        self._count(entry)
        self._unwritten.append(entry)
        await self.flush()
        return entry

    def settle(self, reserved: Reservation, tokens: int, usd: float) -> None:
        """Replace a reservation by what was really spent; on disk with the next ``flush``.

        Until then the disk knows the reservation, which is no less.
        """
        entry = msgspec.structs.replace(reserved, tokens=tokens, usd=usd)
        self._count(entry)
        self._unwritten.append(entry)

    def can_spend(self, provider: str, tokens: int, usd: float) -> bool:
        """Whether the day's rest allows it."""
        spent, limits = self.spent_today(provider), self._settings
        if limits.daily_tokens is not None and spent.tokens + tokens > limits.daily_tokens:
            return False
        return limits.daily_usd is None or spent.usd + usd <= limits.daily_usd

    def spent_today(self, provider: str) -> Spending:
        """Spent and reserved on this UTC day."""
        return self._spent.get((self.day(), provider), Spending())

    def day(self) -> str:
        """The UTC date, ``YYYY-MM-DD``."""
        return date_of(self._wall_ns() // 1_000_000)

    def _count(self, entry: Reservation) -> None:
        before = self._entries.get(entry.id)
        spent = self._spent.setdefault((entry.day, entry.provider), Spending())
        spent.tokens += entry.tokens - (before.tokens if before else 0)
        spent.usd += entry.usd - (before.usd if before else 0.0)
        self._entries[entry.id] = entry
        self._forget_old(entry.day)

    def _forget_old(self, day: str) -> None:
        days = {key[0] for key in self._spent}
        if len(days) <= KEPT_DAYS:
            return
        oldest = min(days - {day})
        self._spent = {key: spent for key, spent in self._spent.items() if key[0] != oldest}
        self._entries = {key: e for key, e in self._entries.items() if e.day != oldest}

    async def flush(self) -> None:
        """Write what is not on disk yet; a disk that refuses stops nobody."""
        async with self._writing:
            taken, self._unwritten = self._unwritten, []
            if not taken:
                return  # the one before us took ours along
            try:
                await asyncio.to_thread(self._journal.append, map(msgspec.json.encode, taken))
            except StorageError as error:
                self._unwritten = (taken + self._unwritten)[-_MAX_UNWRITTEN:]
                self._on_failure(error)
