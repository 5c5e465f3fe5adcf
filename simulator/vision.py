"""The archive side: past trades as the exchange publishes them, file by file, with its dirt.

Consumes past trades, the clock and scripted faults → serves ``/data/…/NAME.zip`` (ranges too) and
``NAME.zip.CHECKSUM``; what is not published (yet) is a 404. A file is made when it is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import Counter
from typing import Final

from aiohttp import web

from domain.intervals import INTERVAL_MS
from domain.market import Market
from simulator.clock import MarketClock
from simulator.settings import SimulatorSettings
from simulator.vision_faults import VisionFault, VisionFaultKind
from simulator.vision_tables import (
    DAY_MS,
    ArchiveFile,
    ArchiveName,
    Content,
    PastTrades,
    make_archive,
)

_KEPT_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 16
_MONTH_LATER_MS: Final = DAY_MS  # a monthly file comes a day after the last daily one
_HTML: Final = "<html><head><title>Sign in</title></head><body>proxy</body></html>"
_NO_SUCH_KEY: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
    "<Message>The specified key does not exist.</Message></Error>"
)
_PATH: Final = re.compile(
    r"/data/(?P<market>futures/um|spot)/(?P<span>daily|monthly)/(?P<data>aggTrades|klines)/"
    r"(?P<symbol>[^/]+)/(?:(?P<interval>\w+)/)?(?P<file>[^/]+)\.zip(?P<checksum>\.CHECKSUM)?"
)
_PERIOD: Final = {"daily": re.compile(r"\d{4}-\d\d-\d\d"), "monthly": re.compile(r"\d{4}-\d\d")}
_CONTENT_FAULTS: Final = frozenset(
    {
        VisionFaultKind.HEADER,
        VisionFaultKind.SHUFFLED,
        VisionFaultKind.DOUBLED,
        VisionFaultKind.CUT_ARCHIVE,
    }
)


class VisionArchive:
    """Serves the archive of one market.

    Args:
        settings: Market, delay of publication, and what the archive holds.
        source: Past trades.
        clock: Decides what is published.
        faults: See ``VisionFault``.

    Attributes:
        applied: How often each fault acted, by (kind, file name).
    """

    def __init__(
        self,
        settings: SimulatorSettings,
        source: PastTrades,
        clock: MarketClock,
        faults: tuple[VisionFault, ...],
    ) -> None:
        self._market = settings.market
        self._delay_ms = settings.archive_delay_ms
        self._source = source
        self._clock = clock
        self._faults = faults
        self._making: dict[tuple[ArchiveName, Content], asyncio.Task[ArchiveFile]] = {}
        self._asked: Counter[ArchiveName] = Counter()
        self.applied: Counter[tuple[VisionFaultKind, str]] = Counter()
        self._counts = dict.fromkeys(
            ("vision_requests", "vision_missing", "vision_bytes", "vision_made"), 0
        )

    def routes(self) -> list[web.RouteDef]:
        """The archive's routes."""
        return [web.get("/data/{path:.*}", self._answer)]

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests, those for files that are not there, bytes sent, archives made."""
        return dict(self._counts)

    async def close(self) -> None:
        """Let archives being made go."""
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._counts["vision_requests"] += 1
        found = _PATH.fullmatch(request.path)
        name = self._name(found) if found is not None else None
        if found is None or name is None or not self._is_published(name):
            return self._missing()
        if self._acts(VisionFaultKind.UNAVAILABLE, name):
            return web.Response(status=503)
        if self._acts(VisionFaultKind.HTML, name):
            return web.Response(text=_HTML, content_type="text/html")
        is_checksum = found["checksum"] is not None
        self._asked[name] += is_checksum
        file = await self._made(name, self._content(name, is_checksum=is_checksum))
        if not file.data:
            return self._missing()
        return self._checksum(name, file) if is_checksum else await self._send(request, name, file)

    def _name(self, found: re.Match[str]) -> ArchiveName | None:
        """What a path asks for; ``None`` where the market has no such folder."""
        is_spot = found["market"] == "spot"
        interval = found["interval"] or ""
        is_kline = found["data"] == "klines"
        prefix = f"{found['symbol']}-{interval or found['data']}-"
        period = found["file"].removeprefix(prefix)
        if (
            is_spot != (self._market is Market.SPOT)
            or found["symbol"] not in self._source.symbols
            or is_kline != (interval in INTERVAL_MS)
            or not found["file"].startswith(prefix)
            or not _PERIOD[found["span"]].fullmatch(period)
        ):
            return None
        return ArchiveName(found["data"], found["symbol"], period, interval)

    def _is_published(self, name: ArchiveName) -> bool:
        try:
            end_ms = name.days_ms()[-1] + DAY_MS
        except (ValueError, IndexError):  # 2024-13
            return False
        published_ms = end_ms + self._delay_ms
        published_ms += _MONTH_LATER_MS if len(name.days_ms()) > 1 else 0
        for fault in self._concerning(name):
            if fault.kind is VisionFaultKind.ABSENT:
                return False
            if fault.kind is VisionFaultKind.LATE:
                published_ms += fault.delay_ms
        return self._clock.now_ms() >= published_ms

    def _content(self, name: ArchiveName, *, is_checksum: bool) -> Content:
        is_first = False
        kinds: set[VisionFaultKind] = set()
        lost: set[int] = set()
        for fault in self._concerning(name):
            if fault.kind in _CONTENT_FAULTS:
                kinds.add(fault.kind)
            lost.update(fault.days if fault.kind is VisionFaultKind.LOST_DAYS else ())
            if fault.kind is VisionFaultKind.REPLACED:
                is_between = fault.mode == "between"
                is_first = self._asked[name] <= 1 and (is_checksum or not is_between)
        return Content(frozenset(kinds), frozenset(lost), is_first)

    async def _made(self, name: ArchiveName, content: Content) -> ArchiveFile:
        """The archive, made once however many ask meanwhile."""
        key = (name, content)
        if key not in self._making:
            self._counts["vision_made"] += 1
            self._making[key] = asyncio.create_task(
                asyncio.to_thread(make_archive, self._source, self._market, name, content)
            )
        file = await asyncio.shield(self._making[key])
        self._forget()
        return file

    def _forget(self) -> None:
        """Keep the newest archives, up to a size."""
        kept = 0
        for key, task in reversed(list(self._making.items())):
            if task.done() and not task.exception():
                kept += len(task.result().data)
                if kept > _KEPT_BYTES:
                    del self._making[key]

    def _checksum(self, name: ArchiveName, file: ArchiveFile) -> web.Response:
        digest = file.sha256
        if self._acts(VisionFaultKind.WRONG_CHECKSUM, name):
            digest = hashlib.sha256(digest.encode()).hexdigest()
        return web.Response(body=f"{digest}  {name.file_name}.zip".encode())

    async def _send(
        self, request: web.Request, name: ArchiveName, file: ArchiveFile
    ) -> web.StreamResponse:
        size = len(file.data)
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start >= size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {"Content-Length": str(size - start), "Content-Type": "application/zip"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        response = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        with contextlib.suppress(ConnectionError):  # the client has gone: its own affair
            await response.prepare(request)
            await self._body(request, response, name, file.data[start:])
        return response

    async def _body(
        self, request: web.Request, response: web.StreamResponse, name: ArchiveName, data: bytes
    ) -> None:
        middle = len(data) // 2
        await self._write(response, data[:middle])
        stall = self._acting(VisionFaultKind.STALL, name)
        if stall is not None:
            await asyncio.sleep(stall.delay_ms / 1_000)
        if self._acts(VisionFaultKind.CUT, name) and request.transport is not None:
            request.transport.abort()
            return
        await self._write(response, data[middle:])
        await response.write_eof()

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            self._counts["vision_bytes"] += len(piece)
            await response.write(piece)

    def _missing(self) -> web.Response:
        self._counts["vision_missing"] += 1
        return web.Response(status=404, text=_NO_SUCH_KEY, content_type="application/xml")

    def _concerning(self, name: ArchiveName) -> list[VisionFault]:
        return [f for f in self._faults if f.concerns(name.data, name.symbol, name.period)]

    def _acts(self, kind: VisionFaultKind, name: ArchiveName) -> bool:
        return self._acting(kind, name) is not None

    def _acting(self, kind: VisionFaultKind, name: ArchiveName) -> VisionFault | None:
        """A fault that acts now; it is counted as having done so."""
        key = (kind, name.file_name)
        for fault in self._concerning(name):
            if fault.kind is kind and (not fault.count or self.applied[key] < fault.count):
                self.applied[key] += 1
                return fault
        return None
