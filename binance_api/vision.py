"""The public archive: what is published, with which checksum, and verified downloads.

Consumes an ``ArchiveRef`` → produces its checksum, or the archive as a file whose SHA-256 is the
published one. A download that broke off, in this process or an earlier one, goes on where it
stopped. Layout: https://github.com/binance/binance-public-data
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal, Self

import msgspec
import structlog

from binance_api.endpoints import DEFAULT_VISION_BASE, VISION_PREFIX
from binance_api.errors import BadReply, ExchangeError, RequestRefused, Unreachable
from binance_api.http_reply import HttpStream
from binance_api.http_session import HttpSession
from binance_api.request_runner import (
    Answer,
    Request,
    RequestRunner,
    RestSettings,
)
from domain.errors import StorageError
from domain.market import Market

log = structlog.get_logger()

type Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and, where the server says, those there will be."""

CHECKSUM_BOUND_S: Final = 120.0
DOWNLOAD_BOUND_S: Final = 3_600.0  # of one call; a download that advances is called again
_MISMATCHES_ALLOWED: Final = 3
_WRITE_BYTES: Final = 1 << 20
_CHECKSUM: Final = re.compile(r"([0-9a-fA-F]{64})\s+\*?(\S+)")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


class NotPublished(RequestRefused):
    """The archive has no such file: not yet, or never."""


class ChecksumMismatch(BadReply):
    """Every download of the archive differed from its published checksum."""


class ArchiveRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the archive.

    Attributes:
        market: Whose.
        kind: ``aggTrades`` or ``klines``.
        symbol: In upper case.
        period: ``YYYY-MM`` (monthly file) or ``YYYY-MM-DD`` (daily file).
        interval: Of klines.
    """

    market: Market
    kind: Literal["aggTrades", "klines"]
    symbol: str
    period: str
    interval: str = "1m"

    @property
    def name(self) -> str:
        """``BTCUSDT-aggTrades-2024-07.zip``, ``BTCUSDT-1m-2024-07-18.zip``."""
        middle = self.interval if self.kind == "klines" else self.kind
        return f"{self.symbol}-{middle}-{self.period}.zip"

    @property
    def path(self) -> str:
        """Path below the archive's host."""
        span = "daily" if len(self.period) > len("2024-07") else "monthly"
        interval = f"/{self.interval}" if self.kind == "klines" else ""
        folder = f"{VISION_PREFIX[self.market]}/{span}/{self.kind}/{self.symbol}{interval}"
        return f"{folder}/{self.name}"


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """A verified archive on disk."""

    ref: ArchiveRef
    path: Path
    url: str
    sha256: str
    size_bytes: int


class VisionClient:
    """Async context manager; one per archive host and process.

    Args:
        settings: ``base_url`` ``None`` is the public archive; ``request_timeout_s`` is also the
            longest silence within a download. Requests have no weight there.
    """

    def __init__(self, settings: RestSettings | None = None) -> None:
        settings = settings or RestSettings(request_timeout_s=30.0)
        self._http = HttpSession(settings, settings.base_url or DEFAULT_VISION_BASE)
        self._runner = RequestRunner(
            settings,
            self._http.base_url,
            self._http,
            monotonic=time.monotonic,
            wall_ns=time.time_ns,
            sleep=asyncio.sleep,
            jitter=random.Random(),
        )
        self._counts = dict.fromkeys(("archives", "archive_bytes", "resumed", "mismatches"), 0)

    async def __aenter__(self) -> Self:
        self._http.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.close()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests, retries and failures; archives and bytes received, resumed, mismatched."""
        return {**self._runner.statistics(), **self._counts}

    def url(self, ref: ArchiveRef) -> str:
        """Where an archive is published."""
        return self._http.base_url + ref.path

    async def checksum(self, ref: ArchiveRef) -> str:
        """The published SHA-256 of an archive, lower-case hex.

        Raises:
            NotPublished: There is no such file.
            ExchangeError: The archive could not be asked.
        """
        request = _request(f"{ref.path}.CHECKSUM", CHECKSUM_BOUND_S)
        try:
            reply = await self._runner.call(request, lambda answer: _checksum_in(answer, ref.name))
        except RequestRefused as error:
            raise _not_published(error, ref) from error
        return reply.value

    async def download(
        self,
        ref: ArchiveRef,
        target: Path,
        on_progress: Progress | None = None,
        *,
        sha256: str | None = None,
    ) -> Archive:
        """Have a verified archive at ``target``.

        What came of an interrupted download is kept beside it (``.<name>.<checksum>.part``).

        Args:
            ref: Which archive.
            target: Where to; replaced if it is there and differs.
            on_progress: See ``Progress``.
            sha256: Its checksum if known already; else it is asked for.

        Raises:
            NotPublished: There is no such file.
            ChecksumMismatch: It never was what its checksum says.
            ExchangeError: The archive could not be had.
            StorageError: The disk refused.
        """
        report = on_progress or (lambda _done, _total: None)
        for attempt in range(1, _MISMATCHES_ALLOWED + 1):
            expected = sha256 or await self.checksum(ref)
            part = target.with_name(f".{target.name}.{expected[:16]}.part")
            if await _digest(target) != expected:
                if await _digest(part) != expected:
                    await self._fetch(ref, part, report)
                    if await _digest(part) != expected:
                        self._mismatched(ref, part, attempt)
                        sha256 = None  # the archive may have been replaced meanwhile: ask again
                        continue
                with _disk(target):
                    part.replace(target)
            return Archive(
                ref=ref,
                path=target,
                url=self.url(ref),
                sha256=expected,
                size_bytes=_size(target),
            )
        message = f"the archive differs from its checksum, {_MISMATCHES_ALLOWED} times"
        raise ChecksumMismatch(message, endpoint=ref.path)

    def _mismatched(self, ref: ArchiveRef, part: Path, attempt: int) -> None:
        self._counts["mismatches"] += 1
        log.warning("vision.checksum_mismatch", archive=ref.name, attempt=attempt)
        _remove(part)

    async def _fetch(self, ref: ArchiveRef, part: Path, report: Progress) -> None:
        """Bring ``part`` to its end; as long as calls bring it further, there is another one."""
        request = _request(ref.path, DOWNLOAD_BOUND_S)
        take = functools.partial(self._take, part, report)
        while True:
            before = _size(part)
            try:
                await self._runner.receive(request, lambda: self._wanted(part), take)
            except RequestRefused as error:
                if error.status != 416 or not before:
                    raise _not_published(error, ref) from error
                _remove(part)  # longer than the archive: of another one
            except Unreachable:
                if _size(part) <= before:
                    raise
            else:
                self._counts["archives"] += 1
                return

    def _wanted(self, part: Path) -> Mapping[str, str]:
        size = _size(part)
        if not size:
            return {}
        self._counts["resumed"] += 1
        return {"Range": f"bytes={size}-"}

    async def _take(self, part: Path, report: Progress, stream: HttpStream) -> None:
        """Append the body to ``part``, or begin ``part`` anew if the body is the whole archive."""
        done, total = _span(stream, _size(part))
        waiting = bytearray()
        with contextlib.ExitStack() as stack:
            file: BinaryIO | None = None
            try:
                async for piece in stream.pieces:
                    if file is None:  # what is no archive must not replace what has come so far
                        _check_beginning(piece, stream.status)
                        file = stack.enter_context(_opened(part, append=done > 0))
                    waiting += piece
                    if len(waiting) >= _WRITE_BYTES:
                        done += await self._write(file, part, waiting)
                        report(done, total)
            finally:
                if file is not None and waiting:
                    with _disk(part):
                        file.write(waiting)
                    self._counts["archive_bytes"] += len(waiting)
        report(done + len(waiting), total)

    async def _write(self, file: BinaryIO, part: Path, waiting: bytearray) -> int:
        data = bytes(waiting)
        waiting.clear()
        with _disk(part):
            await asyncio.to_thread(file.write, data)
        self._counts["archive_bytes"] += len(data)
        return len(data)


def _request(path: str, bound_s: float) -> Request:
    return Request(path=path, params={}, weight=0, is_urgent=False, bound_s=bound_s)


def _checksum_in(answer: Answer, name: str) -> str:
    """``<64 hex>  <file name>``, without a newline at the end."""
    found = _CHECKSUM.fullmatch(answer.body.decode("ascii").strip())
    if found is None or found[2] != name:
        raise ValueError(f"no checksum of {name}")
    return found[1].lower()


def _not_published(error: RequestRefused, ref: ArchiveRef) -> ExchangeError:
    if error.status != 404:
        return error
    return NotPublished(f"{ref.name} is not in the archive", endpoint=ref.path, status=404)


def _span(stream: HttpStream, have: int) -> tuple[int, int | None]:
    """Bytes that precede the body, and bytes in all.

    Raises:
        BadReply: The body is another part than the one asked for.
    """
    if stream.status == 206:
        found = _CONTENT_RANGE.fullmatch(stream.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise BadReply("not the part of the archive that was asked for", status=206)
        return have, int(found[2])
    length = stream.headers.get("Content-Length", "")
    return 0, int(length) if length.isascii() and length.isdigit() else None


def _check_beginning(piece: bytes, status: int) -> None:
    if status == 200 and not piece.startswith(b"P"):
        is_html = piece.lstrip()[:1] == b"<"
        raise BadReply("HTML instead of an archive" if is_html else "not an archive", status=status)


def _opened(part: Path, *, append: bool) -> BinaryIO:
    with _disk(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        return part.open("ab" if append else "wb")


async def _digest(path: Path) -> str | None:
    """SHA-256 of a file, or ``None`` if there is none."""

    def compute() -> str | None:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    with _disk(path):
        return await asyncio.to_thread(compute)


def _remove(path: Path) -> None:
    with _disk(path):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}") from error
