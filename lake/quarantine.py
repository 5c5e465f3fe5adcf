"""Rejected input, kept as it came: ``quarantine/YYYY-MM-DD.jsonl``, one JSON object per line.

Consumes payloads with a reason from the feed, which it never blocks or fails; a flush in a worker
thread appends whole lines. Bounded per day: what is beyond is counted by reason, and the counts are
written instead. Text is kept as ``payload``, anything else as ``payload_base64``.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import msgspec
import structlog

from domain.errors import StorageError
from lake.atomic import ensure_folder
from lake.journal import append_durably
from lake.part_files import date_of

log = structlog.get_logger()


class QuarantineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the quarantine.

    ``max_entries_per_day``, ``max_bytes_per_day``: written per UTC date; the rest is only counted.
    ``max_payload_bytes``: of one entry; longer ones are cut and say so.
    ``max_pending``: entries held between two flushes.
    """

    max_entries_per_day: int = 100_000
    max_bytes_per_day: int = 64 * 1024 * 1024
    max_payload_bytes: int = 8192
    max_pending: int = 10_000


class QuarantineEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rejected input, or (``suppressed``) how many were left out since the last such line."""

    at_ns: int
    reason: str
    source: str | None = None
    symbol: str | None = None
    payload: str | None = None
    payload_base64: bytes | None = None
    payload_bytes: int | None = None  # full length, where the payload is cut
    suppressed: dict[str, int] | None = None


class Quarantine:
    """Buffered writer of rejected input.

    Args:
        folder: ``LakePaths.quarantine``; created by the first write.
        settings: See ``QuarantineSettings``.
    """

    def __init__(self, folder: Path, settings: QuarantineSettings | None = None) -> None:
        self._folder = folder
        self._settings = settings or QuarantineSettings()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: list[QuarantineEntry] = []
        self._suppressed: Counter[str] = Counter()
        self._last_at_ns = 0
        self._days: dict[str, _DayFile] = {}
        self._added = self._written = self._suppressed_total = self._failed_flushes = 0

    def add(
        self,
        reason: str,
        payload: bytes | str,
        *,
        at_ns: int,
        source: str | None = None,
        symbol: str | None = None,
    ) -> None:
        """Keep a rejected input. Never raises, never touches the disk.

        Args:
            reason: Why, as counted.
            payload: The input as it came.
            at_ns: When it was received; its UTC date names the file.
            source: Which route or endpoint sent it.
            symbol: Whose it is, if known.
        """
        with self._lock:
            self._added += 1
            self._last_at_ns = max(self._last_at_ns, at_ns)
            if len(self._pending) >= self._settings.max_pending:
                self._suppress(reason)
                return
            entry = _entry(reason, payload, self._settings.max_payload_bytes)
            self._pending.append(
                msgspec.structs.replace(entry, at_ns=at_ns, source=source, symbol=symbol)
            )

    def flush(self) -> int:
        """Append what is held. Blocks: call it in a worker thread. A failure is logged, not raised.

        Returns:
            Entries written; those of a failed write are held for the next flush.
        """
        with self._flushing:
            with self._lock:
                taken, self._pending = self._pending, []
            by_date: dict[str, list[QuarantineEntry]] = {}
            for entry in taken:
                by_date.setdefault(date_of(entry.at_ns // 1_000_000), []).append(entry)
            written = 0
            try:
                for date in sorted(by_date):
                    written += self._write(date, by_date[date])
                    del by_date[date]
                self._write_suppressed()
            except (OSError, StorageError) as error:
                self._keep([entry for rest in by_date.values() for entry in rest], error)
            self._written += written
            return written

    def statistics(self) -> dict[str, int | float | str | None]:
        """Entries added, written, held and suppressed since construction."""
        with self._lock:
            return {
                "added": self._added,
                "written": self._written,
                "pending": len(self._pending),
                "suppressed": self._suppressed_total,
                "failed_flushes": self._failed_flushes,
            }

    def _write(self, date: str, entries: list[QuarantineEntry]) -> int:
        day = self._day(date)
        lines: list[bytes] = []
        size = day.size_bytes
        refused: list[str] = []
        for entry in entries:
            line = msgspec.json.encode(entry) + b"\n"
            if (
                day.entries + len(lines) >= self._settings.max_entries_per_day
                or size + len(line) > self._settings.max_bytes_per_day
            ):
                refused.append(entry.reason)
                continue
            lines.append(line)
            size += len(line)
        day.append(b"".join(lines), len(lines))
        with self._lock:
            for reason in refused:
                self._suppress(reason)
        return len(lines)

    def _write_suppressed(self) -> None:
        with self._lock:
            counts, at_ns = dict(self._suppressed), self._last_at_ns
        if not counts:
            return
        line = QuarantineEntry(at_ns=at_ns, reason="suppressed", suppressed=counts)
        self._day(date_of(at_ns // 1_000_000)).append(msgspec.json.encode(line) + b"\n", 0)
        with self._lock:
            self._suppressed.subtract(counts)
            self._suppressed = +self._suppressed

    def _suppress(self, reason: str) -> None:
        self._suppressed[reason] += 1
        self._suppressed_total += 1

    def _keep(self, entries: list[QuarantineEntry], error: Exception) -> None:
        self._failed_flushes += 1
        with self._lock:
            room = max(0, self._settings.max_pending - len(self._pending))
            self._pending[:0] = entries[:room]
            for entry in entries[room:]:
                self._suppress(entry.reason)
        log.error("quarantine.write_failed", folder=str(self._folder), problem=str(error))

    def _day(self, date: str) -> _DayFile:
        if date not in self._days:
            ensure_folder(self._folder)
            while len(self._days) >= 2:
                del self._days[min(self._days)]
            self._days[date] = _DayFile(self._folder / f"{date}.jsonl")
        return self._days[date]


class _DayFile:
    """One date's file: what it holds already, and appends of whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        self.size_bytes = len(content)
        self.entries = content.count(b"\n")
        self._is_torn = bool(content) and not content.endswith(b"\n")

    def append(self, lines: bytes, entries: int) -> None:
        if not lines:
            return
        if self._is_torn:  # a dead writer's half line: end it, readers skip it
            lines = b"\n" + lines
        append_durably(self._path, lines)
        self._is_torn = False
        self.size_bytes += len(lines)
        self.entries += entries


def _entry(reason: str, payload: bytes | str, max_bytes: int) -> QuarantineEntry:
    raw = payload.encode(errors="surrogatepass") if isinstance(payload, str) else bytes(payload)
    length = len(raw) if len(raw) > max_bytes else None
    kept = raw[:max_bytes]
    try:
        text = kept.decode()
    except UnicodeDecodeError:
        return QuarantineEntry(at_ns=0, reason=reason, payload_base64=kept, payload_bytes=length)
    return QuarantineEntry(at_ns=0, reason=reason, payload=text, payload_bytes=length)
