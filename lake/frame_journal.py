"""Frames that are not in Parquet yet: append-only segments that survive their writer.

Consumes batches of frames as received, produces them again after any crash. A segment is
``frames-<number>.journal``: records of ``magic, length, crc32, body``, a body being route, socket, stamps and
payloads of one batch, or a note. Each segment begins with a note that says where the ones before it
ended, so that a segment whose frames are in Parquet can simply be removed. One writer, in one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from domain.errors import StorageError
from lake.atomic import Step, StepHook, ensure_folder, no_hook, storage_error, sync_folder

_NAME: Final = re.compile(r"frames-(\d{8,})\.journal")
_MAGIC: Final = b"FRJ1"
_HEAD: Final = struct.Struct("<4sII")  # magic, bytes of the body, its crc32
_BODY: Final = struct.Struct("<8sqI")  # route, socket, count of payloads
_NOTE: Final = "note"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class JournalRecord(msgspec.Struct, frozen=True):
    """Frames of one socket in arrival order, or (``route`` "note") one JSON text."""

    route: str
    socket_id: int
    payloads: Sequence[bytes]
    receive_time_ns: Sequence[int]

    @classmethod
    def note(cls, value: object) -> JournalRecord:
        """A record that holds a JSON value."""
        return cls(_NOTE, 0, [msgspec.json.encode(value)], [0])

    @property
    def is_note(self) -> bool:
        """Whether it holds a JSON value instead of frames."""
        return self.route == _NOTE


class Segment(msgspec.Struct, frozen=True):
    """What a segment holds: its whole records, and how many bytes were none."""

    records: list[JournalRecord]
    cut_bytes: int  # torn tail of a dead writer
    damaged_bytes: int  # before the last whole record: somebody else's doing


def segments_in(folder: Path) -> list[tuple[int, Path]]:
    """Number and path of the segments below ``folder``, oldest first."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    return sorted((int(m[1]), folder / m[0]) for m in map(_NAME.fullmatch, names) if m)


def read_segment(path: Path) -> Segment:
    """All whole records of a segment.

    Raises:
        StorageError: The system refused.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise storage_error("cannot read", path, error) from error
    records: list[JournalRecord] = []
    position = skipped = damaged = 0
    while position < len(content):
        end = _end_of_record(content, position)
        if end is None:  # torn or damaged: go on at the next record, if there is one
            following = content.find(_MAGIC, position + 1)
            following = len(content) if following < 0 else following
            skipped += following - position
            position = following
            continue
        records.append(_decode(content[position + _HEAD.size : end]))
        damaged, skipped = damaged + skipped, 0
        position = end
    return Segment(records, skipped, damaged)


def _end_of_record(content: bytes, position: int) -> int | None:
    """Where the record that begins here ends; ``None`` if none whole does."""
    start = position + _HEAD.size
    if start > len(content):
        return None
    magic, length, checksum = _HEAD.unpack_from(content, position)
    end = start + int(length)
    if magic != _MAGIC or length < _BODY.size or end > len(content):
        return None
    return end if zlib.crc32(memoryview(content)[start:end]) == checksum else None


def _encode(record: JournalRecord) -> list[bytes]:
    count = len(record.payloads)
    lengths = np.fromiter(map(len, record.payloads), np.uint32, count)
    body = [
        _BODY.pack(record.route.encode(), record.socket_id, count),
        np.array(record.receive_time_ns, np.int64).tobytes(),
        lengths.tobytes(),
        *record.payloads,
    ]
    joined = b"".join(body)
    return [_HEAD.pack(_MAGIC, len(joined), zlib.crc32(joined)), joined]


def _decode(body: bytes) -> JournalRecord:
    route, socket_id, count = _BODY.unpack_from(body)
    stamps = np.frombuffer(body, np.int64, count, _BODY.size)
    start = _BODY.size + stamps.nbytes
    lengths = np.frombuffer(body, np.uint32, count, start)
    ends = (start + lengths.nbytes + np.cumsum(lengths, dtype=np.int64)).tolist()
    starts = [start + lengths.nbytes, *ends[:-1]]
    payloads = [body[first:end] for first, end in zip(starts, ends, strict=True)]
    return JournalRecord(route.rstrip(b"\0").decode(), socket_id, payloads, stamps.tolist())


class FrameJournal:
    """Writer of segments. Every call blocks: use it from one worker thread.

    Args:
        folder: Where segments lie; created by the first one.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(self, folder: Path, *, hook: StepHook = no_hook) -> None:
        self.folder = folder
        self._hook = hook
        self._descriptor: int | None = None
        self._path = folder
        self._size = 0  # what is known to be whole

    def begin(self, number: int, state: object) -> None:
        """End the segment at hand and begin another, durably, with a note of ``state``.

        Raises:
            StorageError: The disk refused; the segment at hand goes on.
        """
        ensure_folder(self.folder)
        path = self.folder / f"frames-{number:08d}.journal"
        try:
            descriptor = os.open(path, _NEW, 0o644)
        except OSError as error:
            raise storage_error("cannot write", path, error) from error
        self._hook(Step.CREATED, path)
        previous = (self._descriptor, self._path, self._size)
        self._descriptor, self._path, self._size = descriptor, path, 0
        try:
            self.append([JournalRecord.note(state)])
            sync_folder(self.folder)
        except (OSError, StorageError) as error:
            self.close()
            with contextlib.suppress(OSError):
                path.unlink()
            self._descriptor, self._path, self._size = previous
            if isinstance(error, OSError):
                raise storage_error("cannot write", path, error) from error
            raise
        if previous[0] is not None:
            os.close(previous[0])
        self._hook(Step.FOLDER_SYNCED, path)

    def append(self, records: Iterable[JournalRecord]) -> None:
        """Add records durably.

        Raises:
            StorageError: The disk refused; none of them counts (one may be there all the same).
        """
        descriptor = self._descriptor
        parts = [part for record in records for part in _encode(record)]
        if not parts:
            return
        if descriptor is None:
            raise RuntimeError("no segment was begun")
        content = memoryview(b"".join(parts))
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            self._hook(Step.WRITTEN, self._path)
            os.fsync(descriptor)
            self._hook(Step.SYNCED, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
                os.lseek(descriptor, self._size, os.SEEK_SET)
            raise storage_error("cannot write", self._path, error) from error
        self._size += len(content)

    def remove(self, number: int) -> None:
        """Remove a segment whose frames are in Parquet; one that is gone already is fine.

        Raises:
            StorageError: The disk refused.
        """
        path = self.folder / f"frames-{number:08d}.journal"
        try:
            path.unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            raise storage_error("cannot remove", path, error) from error
        self._hook(Step.REMOVED, path)

    def close(self) -> None:
        """End writing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
