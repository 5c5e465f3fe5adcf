"""Every attempt on disk: ``calls-YYYY-MM-DD.jsonl`` by the UTC date of the window asked about.

Consumes ``CallRecord``s on the event loop, appends them in a worker thread. A disk
that refuses stops nothing: records are kept, bounded, and tried again; what has to be dropped is
counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path

import msgspec
import structlog

from ai.classify import hide
from ai.contract import Message, Outcome
from ai.reply import MAX_REPLY_CHARS
from domain.errors import StorageError
from domain.market import SCHEMA_VERSION
from lake.atomic import ensure_folder, storage_error
from lake.journal import append_durably
from lake.part_files import date_of

log = structlog.get_logger()

MAX_PENDING = 1_000
RETRY_S = 30.0


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt to get an answer, or one thing noted beside the attempts.

    ``latency_ms`` is the attempt's own, ``analysis_ms`` runs from when the question was put
    (``decided_at_ms``, UTC) to the end of this attempt.
    """

    at_ns: int
    symbol: str
    window_end_ms: int
    outcome: Outcome
    context_hash: str = ""
    decided_at_ms: int | None = None
    events: tuple[str, ...] = ()
    attempt: int = 0
    is_repair: bool = False
    provider: str = ""
    model: str = ""
    template_version: str = ""
    template_hash: str = ""
    prompt_hash: str = ""
    prompt: tuple[Message, ...] = ()
    reply: str | None = None
    error: str | None = None
    status: int | None = None
    retry_after_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: Decimal | None = None
    latency_ms: float = 0.0
    analysis_ms: float = 0.0
    schema_version: int = SCHEMA_VERSION


def calls_file(folder: Path, window_end_ms: int) -> Path:
    """The file of the records about a window."""
    return folder / f"calls-{date_of(window_end_ms)}.jsonl"


class CallJournal:
    """Buffered writer of records; ``run`` owns the writing."""

    def __init__(
        self,
        folder: Path,
        *,
        secrets: Iterable[str],
        on_failure: Callable[[StorageError], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._folder = folder
        self._secrets = tuple(secrets)
        self._on_failure = on_failure
        self._retry_s = retry_s
        self._pending: deque[tuple[Path, bytes]] = deque()
        self._has_pending = asyncio.Event()
        self._writing = asyncio.Lock()
        self._written = self._dropped = self._failed_writes = 0

    def add(self, record: CallRecord) -> None:
        """Hold a record for writing. Never raises, never touches the disk."""
        if len(self._pending) >= MAX_PENDING:
            self._pending.popleft()
            self._dropped += 1
        self._pending.append((calls_file(self._folder, record.window_end_ms), self._line(record)))
        self._has_pending.set()

    async def run(self) -> None:
        """Write until cancelled; what is held then is for ``flush``."""
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            if not await self.flush():
                await asyncio.sleep(self._retry_s)
                self._has_pending.set()

    async def flush(self) -> bool:
        """Write what is held, in a worker thread; false if the disk refused some of it."""
        async with self._writing:
            taken, self._pending = self._pending, deque()
            if not taken:
                return True
            rest: dict[Path, list[bytes]] = {}
            for path, line in taken:
                rest.setdefault(path, []).append(line)
            writing = asyncio.ensure_future(asyncio.to_thread(_append, rest))
            try:
                await asyncio.shield(writing)
            except StorageError as error:
                self._failed_writes += 1
                self._on_failure(error)
                return False
            except asyncio.CancelledError:
                await asyncio.wait({writing})  # the thread goes on; only one may write
                raise
            finally:
                self._keep([(path, line) for path, lines in rest.items() for line in lines])
                self._written += len(taken) - sum(map(len, rest.values()))
            return True

    def statistics(self) -> dict[str, int | float | str | None]:
        """Records written, held, dropped, and writes that failed."""
        return {
            "journal_written": self._written,
            "journal_pending": len(self._pending),
            "journal_dropped": self._dropped,
            "journal_failed_writes": self._failed_writes,
        }

    def _line(self, record: CallRecord) -> bytes:
        reply = record.reply
        if reply is not None and len(reply) > MAX_REPLY_CHARS:
            record = msgspec.structs.replace(record, reply=reply[:MAX_REPLY_CHARS])
        return hide(msgspec.json.encode(record).decode(), self._secrets).encode() + b"\n"

    def _keep(self, lines: list[tuple[Path, bytes]]) -> None:
        self._pending.extendleft(reversed(lines))
        while len(self._pending) > MAX_PENDING:
            self._pending.popleft()
            self._dropped += 1


def _append(by_file: dict[Path, list[bytes]]) -> None:
    """Append the lines; a file that is written leaves the dictionary."""
    for path in list(by_file):
        ensure_folder(path.parent)
        content = b"".join(by_file[path])
        try:
            append_durably(path, _torn_tail(path) + content)
        except OSError as error:
            raise storage_error("cannot write", path, error) from error
        del by_file[path]


def _torn_tail(path: Path) -> bytes:
    """A line break where a dead writer left half a line, so that ours begins a new one."""
    try:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return b"" if file.read(1) == b"\n" else b"\n"
    except OSError:
        return b""  # no such file, or an empty one
