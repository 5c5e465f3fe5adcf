"""Checks what a run needs, one finding after the other, and says what to do about each failure.

Consumes addresses, symbols and a folder (plain values), produces findings, reported as they come,
and an exit code, the one a run would end with: 0 sound or only warnings, 1 no space left, 2 a
folder or a symbol that a run refuses, 3 the exchange is out of reach. Several: the lowest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from binance_api.endpoints import Route, StreamKind, stream_name, stream_url
from binance_api.errors import ExchangeError
from binance_api.rest import RestClient, RestSettings
from domain.errors import ConfigError, ConnectionLost, DataFolderError, OrderFlowError
from domain.market import Market
from lake.lock import FolderLock
from lake.paths import LakePaths
from lake.source import is_claimed
from market_orchestrator.connection.transport import (
    CONNECT_ERRORS,
    Closed,
    Transport,
    TransportConnection,
    default_transport,
)

REST_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 10.0
FIRST_FRAME_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0
CLOCK_WARNING_MS = 1_000
DISK_WARNING_BYTES = 2 * 1024**3
DISK_FAILURE_BYTES = 100 * 1024**2
_ROUTE_KIND = {Route.TRADES: StreamKind.AGG_TRADE, Route.DEPTH: StreamKind.DEPTH20}


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What is examined; ``ws_url`` is the host alone, ``source`` is the folder's."""

    market: Market
    symbols: tuple[str, ...]
    data_root: Path
    source: Mapping[str, str | int]
    ws_url: str
    rest: RestSettings
    uses_exchange: bool = True


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One result; ``advice`` says what to do about a warning or failure.

    ``exit_code`` is that of a run that fails for this reason.
    """

    subject: str
    verdict: Literal["ok", "warning", "FAILED"]
    detail: str
    advice: str = ""
    exit_code: int = ConfigError.exit_code

    def __str__(self) -> str:
        advice = f" → {self.advice}" if self.advice else ""
        return f"{self.verdict:<8} {self.subject:<18} {self.detail}{advice}"


async def examine(
    examined: Examined,
    report: Callable[[str], None],
    more: AsyncIterable[Finding] | None = None,
    *,
    transport: Transport | None = None,
    first_frame_timeout_s: float = FIRST_FRAME_TIMEOUT_S,
) -> int:
    """Run every check and report each finding as soon as it is known.

    Args:
        examined: what to look at.
        report: takes one line per finding, and one before each wait.
        more: findings of other parts, made after the exchange's.
        transport: how WebSockets are opened; None: as a run opens them.
        first_frame_timeout_s: how long a route may take to deliver its first data frame.

    Returns:
        The exit code.
    """
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        report(str(finding))

    add(check_python())
    add(Finding(subject="configuration", verdict="ok", detail=_described(examined)))
    add(check_space(examined.data_root))
    add(check_writable(examined.data_root))
    add(check_owner(LakePaths.of(examined.data_root, examined.market).root, examined.source))
    if examined.uses_exchange:
        report(f"{'…':<8} {'REST':<18} asking {examined.rest.base_url}")
        async for finding in check_rest(examined):
            add(finding)
        report(f"{'…':<8} {'WebSocket':<18} waiting for data of {examined.ws_url}")
        await check_routes(examined, add, transport or default_transport(), first_frame_timeout_s)
    if more is not None:
        async for finding in more:
            add(finding)
    code = exit_code(findings)
    report("all is well" if code == 0 else f"{_failed(findings)} of {len(findings)} checks failed")
    return code


def exit_code(findings: list[Finding]) -> int:
    """The lowest exit code of what failed, 0 if nothing did."""
    return min((f.exit_code for f in findings if f.verdict == "FAILED"), default=0)


def _failed(findings: list[Finding]) -> int:
    return sum(finding.verdict == "FAILED" for finding in findings)


def _described(examined: Examined) -> str:
    shown = ", ".join(examined.symbols[:5]) + (" …" if len(examined.symbols) > 5 else "")
    return f"market {examined.market.value}, {len(examined.symbols)} symbols ({shown})"


def check_python() -> Finding:
    """The interpreter's version, and whether the faster event loop is there."""
    version = ".".join(map(str, sys.version_info[:3]))
    loop = "without uvloop" if sys.platform == "win32" else "with uvloop"
    return Finding(subject="Python", verdict="ok", detail=f"{version} on {sys.platform}, {loop}")


def check_space(folder: Path) -> Finding:
    """Free space where the data go."""
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1024**3:,.1f} GiB free for {folder}"
    advice = "make room, or choose another --data-dir"
    if free < DISK_FAILURE_BYTES:
        return Finding(
            subject="disk space",
            verdict="FAILED",
            detail=detail,
            advice=advice,
            exit_code=OrderFlowError.exit_code,
        )
    if free < DISK_WARNING_BYTES:
        return Finding(subject="disk space", verdict="warning", detail=detail, advice=advice)
    return Finding(subject="disk space", verdict="ok", detail=detail)


def check_writable(folder: Path) -> Finding:
    """Whether a file can be written, made durable and removed in the data folder."""
    existing = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            subject="data folder",
            verdict="FAILED",
            detail=f"{existing} cannot be written: {error.strerror}",
            advice="change its permissions, or choose another --data-dir",
        )
    note = "" if existing == folder else " (will be created)"
    return Finding(subject="data folder", verdict="ok", detail=f"{folder} can be written{note}")


def check_owner(root: Path, source: Mapping[str, str | int]) -> Finding:
    """Whether a run may have the folder: held by no bot, and of no other source.

    Args:
        root: of one market's tree.
        source: what a run would write there.
    """
    try:
        lock = FolderLock(root, "bot")
        if lock.path.exists():  # taking it would make one
            with lock:
                pass
        mine = is_claimed(root, source)
    except DataFolderError as error:
        return Finding(subject="data owner", verdict="FAILED", detail=str(error))
    held = "holds data of this source" if mine else "holds no data yet"
    return Finding(subject="data owner", verdict="ok", detail=f"{root} {held}, no bot is running")


def _existing(folder: Path) -> Path:
    """The folder itself or its nearest ancestor that is there."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return folder if path == folder.absolute() else path


async def check_rest(examined: Examined) -> AsyncIterator[Finding]:
    """Whether REST answers, how far our clock is off, and whether the symbols exist."""
    settings = msgspec.structs.replace(examined.rest, max_attempts=2)
    async with RestClient(settings) as client:
        try:
            pinged = await client.ping(deadline_s=REST_TIMEOUT_S)
            yield _sound("REST", f"answered in {pinged.latency_ms:.0f} ms")
            told = await client.time(deadline_s=REST_TIMEOUT_S)
            yield clock_finding(told.value, told.fetched_at_ms, told.latency_ms)
            known = await client.exchange_info(deadline_s=REST_TIMEOUT_S)
            yield symbols_finding(examined.symbols, set(known.value))
        except ExchangeError as error:
            advice = _NETWORK if error.exit_code == 3 else "see the message; try again in a minute"
            yield _unreachable("REST", str(error), advice)


_NETWORK = (
    "check the network, a proxy or firewall, and BINANCE_REST_URL and BINANCE_WS_URL; "
    "Binance does not serve every country"
)


def clock_finding(exchange_ms: int, local_ms: int, latency_ms: float) -> Finding:
    """How far the local clock is from the exchange's, half the round trip taken off."""
    offset_ms = local_ms - latency_ms / 2 - exchange_ms
    detail = f"{offset_ms:+,.0f} ms against the exchange (± {latency_ms / 2:.0f} ms)"
    if abs(offset_ms) <= CLOCK_WARNING_MS + latency_ms / 2:
        return _sound("clock", detail)
    return Finding(
        subject="clock",
        verdict="warning",
        detail=detail,
        advice="synchronise this machine's clock (NTP); windows stay exact, latencies read wrong",
    )


def symbols_finding(wanted: tuple[str, ...], known: set[str]) -> Finding:
    """Whether the exchange lists the symbols."""
    unknown = [symbol for symbol in wanted if symbol not in known]
    if not known:
        return Finding(
            subject="symbols",
            verdict="warning",
            detail="the exchange lists none, so they cannot be checked",
            advice="nothing to do if this is a proxy or a simulator",
        )
    if unknown:
        return Finding(
            subject="symbols",
            verdict="FAILED",
            detail=f"unknown: {', '.join(unknown)}",
            advice="correct --symbols, or choose the --market that lists them",
        )
    return _sound("symbols", f"all {len(wanted)} are listed")


async def check_routes(
    examined: Examined, add: Callable[[Finding], None], transport: Transport, timeout_s: float
) -> None:
    """Whether each route delivers data; a connection or an acknowledgement proves nothing."""

    async def check(route: Route) -> None:
        add(await _check_route(examined, route, transport, timeout_s))

    async with asyncio.TaskGroup() as tasks:
        for route in Route:
            tasks.create_task(check(route))


async def _check_route(
    examined: Examined, route: Route, transport: Transport, timeout_s: float
) -> Finding:
    subject = f"WebSocket {route.value}"
    streams = [stream_name(_ROUTE_KIND[route], symbol) for symbol in examined.symbols[:100]]
    url = stream_url(examined.market, examined.ws_url, route, streams)
    frames, begun = _FirstFrame(), time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await transport.connect(url, frames)
    except TimeoutError:
        return _unreachable(subject, f"no connection in {CONNECT_TIMEOUT_S:.0f} s", _NETWORK)
    except CONNECT_ERRORS as error:
        return _unreachable(subject, str(error) or type(error).__name__, _NETWORK)
    try:
        closed = await _first_frame_or_end(connection, frames, timeout_s)
    finally:
        await connection.close(timeout_s=CLOSE_TIMEOUT_S)
    if frames.has_data:
        return _sound(subject, f"first data after {time.monotonic() - begun:.1f} s")
    if closed is not None:
        detail = f"closed with code {closed.code} {closed.reason}".rstrip()
        return _unreachable(subject, detail, _NETWORK)
    return _unreachable(
        subject,
        f"connected, but no data in {timeout_s:.0f} s",
        "check the symbols (unknown ones are accepted and stay silent) and BINANCE_WS_URL",
    )


async def _first_frame_or_end(
    connection: TransportConnection, frames: _FirstFrame, timeout_s: float
) -> Closed | None:
    """Receive until there are data, the connection ends or the time is up."""
    async with asyncio.TaskGroup() as tasks:
        receiving = tasks.create_task(connection.receive())
        receiving.add_done_callback(lambda _: frames.is_over.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await frames.is_over.wait()
        closed = receiving.result() if receiving.done() else None
        receiving.cancel()
    return closed


class _FirstFrame:
    """Notices the first frame that carries data."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self.has_data = False

    def on_open(self) -> None:
        """Nothing yet: a handshake proves nothing."""

    def on_frame(self, payload: bytes) -> None:
        if b'"data"' in payload:
            self.has_data = True
            self.is_over.set()

    def on_frames(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.on_frame(payload)

    def on_pong(self) -> None:
        """Nothing: a pong proves the socket, not the data."""


def _sound(subject: str, detail: str) -> Finding:
    return Finding(subject=subject, verdict="ok", detail=detail)


def _unreachable(subject: str, detail: str, advice: str) -> Finding:
    return Finding(
        subject=subject,
        verdict="FAILED",
        detail=detail,
        advice=advice,
        exit_code=ConnectionLost.exit_code,
    )
