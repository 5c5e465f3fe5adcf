"""A recording through the same code as live data, as fast as it goes; deterministic.

Consumes a recording (lines of ``<receive ns> <combined frame>``, or recorded days), produces the
same store and the same events a live run would have. Time is the recording's own: nothing waits,
no clock closes a window, and what the recording lacks cannot be asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from binance_api.endpoints import Route
from binance_api.frames import Rejection
from domain.errors import SourceError
from domain.events import GapEvent, GapState
from domain.features import FeatureRow
from domain.flow import WindowBatch
from lake.gap_ledger import GapLedger
from lake.quarantine import Quarantine
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.outputs import Outputs
from market_orchestrator.replay_days import DaySlice, RecordedDays

log = structlog.get_logger()

_SLICE_NS = 1_000_000_000  # frames received within this time are taken together, depth first
_MAX_SLICE = 4_096
_READ_BYTES = 1 << 16
_MAX_LINE = 1 << 20  # longer ones are cut: they are no frames
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's largest, with gzip's header
_LONG_NS = 3_600_000_000_000
_MAX_NAMES = 10_000  # of streams remembered; garbage may invent many
_HEAD = b'{"stream":"'
_STAMP = re.compile(rb"[1-8]\d{18}")  # nanoseconds since the epoch, 2001 and later
_TRADE_STREAM = re.compile(rb'"stream":\s*"([^@"]{1,40})@aggTrade"')
_STREAM = re.compile(rb'"stream":\s*"([^@"]+)@(\w+)')
_ROUTES = {b"aggTrade": Route.TRADES, b"depth20": Route.DEPTH}
_SOCKET = {Route.TRADES: 0, Route.DEPTH: 1}


class ReplayReport(msgspec.Struct):
    """What a replay found."""

    frames: int = 0
    garbage_lines: int = 0
    windows: int = 0
    rejected: int = 0
    missing_trades: int = 0
    first_ns: int = 0
    last_ns: int = 0

    @property
    def market_s(self) -> float:
        """Length of the recording, seconds."""
        return max(0, self.last_ns - self.first_ns) / 1e9


class _Slice:
    """Frames received within a moment, by route; depth is taken first."""

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.count = 0
        self.routes: dict[Route, tuple[list[bytes], list[int]]] = {
            Route.DEPTH: ([], []),
            Route.TRADES: ([], []),
        }

    def is_full(self, stamp: int) -> bool:
        return stamp - self.start_ns > _SLICE_NS or self.count >= _MAX_SLICE

    def add(self, route: Route, stamp: int, payload: bytes) -> None:
        payloads, stamps = self.routes[route]
        payloads.append(payload)
        stamps.append(stamp)
        self.end_ns = max(self.end_ns, stamp)
        self.count += 1

    def enter(self, flow: MarketFlow) -> None:
        for route, (payloads, stamps) in self.routes.items():
            if payloads:
                flow.on_frames(route, _SOCKET[route], payloads, stamps)


class Replay:
    """Feeds one recording through a ``MarketFlow`` into ``Outputs``."""

    def __init__(
        self,
        path: Path,
        flow: MarketFlow,
        outputs: Outputs,
        quarantine: Quarantine,
        ledger: GapLedger,
        clock: MarketClock,
    ) -> None:
        self._path = path
        self._flow = flow
        self._outputs = outputs
        self._quarantine = quarantine
        self._ledger = ledger
        self._clock = clock
        self._routes: dict[bytes, Route | None] = {}
        self.report = ReplayReport()

    def run(self) -> Iterator[None]:
        """Process the recording; yields between slices so that the caller can do other things.

        Raises:
            SourceError: the file cannot be read as a recording at all.
        """
        for piece in self._days() if self._path.is_dir() else self._slices():
            self._clock.now_ns = max(self._clock.now_ns, piece.end_ns)
            piece.enter(self._flow)
            self._flow.close()
            self._emit()
            yield
        self._clock.now_ns += _LONG_NS  # whatever still waited has waited long enough
        self._flow.close()
        self._emit()
        self._enter_holes()

    def _emit(self) -> None:
        flow = self._flow
        while flow.live:
            for closed in flow.analyse(flow.live.popleft()):
                self.report.windows += 1
                self._outputs.emit(closed)
                while self._outputs.unjudged_end_ms is not None:
                    self._outputs.judge()
        revised = list(flow.revised)
        flow.revised.clear()
        if revised:
            revise_in_place(flow, self._outputs, revised)
        for gap in flow.take_depth_gaps():
            self._ledger.enter(gap)
        for rejection in flow.take_rejections():
            self.report.rejected += 1
            self._quarantine.add(
                rejection.reason,
                rejection.payload,
                at_ns=max(rejection.receive_time_ns, 0) or self._clock.now_ns,
                symbol=rejection.symbol,
            )

    def _enter_holes(self) -> None:
        """What the recording lacks is lost to a replay: the ledger says so."""
        for symbol, sequence in zip(
            self._flow.symbols, self._flow.validator.sequences, strict=True
        ):
            for hole in sequence.missing:
                self.report.missing_trades += hole.count
                self._ledger.enter(
                    GapEvent(
                        kind="trades",
                        symbol=symbol,
                        first_id=hole.first_id,
                        last_id=hole.last_id,
                        state=GapState.LOST,
                        cause="missing from the recording",
                        from_ms=hole.after_ms,
                        until_ms=hole.before_ms,
                        repairable_until_ms=None,
                        at_ns=self._clock.now_ns,
                    )
                )

    def _days(self) -> Iterator[DaySlice]:
        report = self.report
        flow = self._flow
        for piece in RecordedDays(self._path).slices(flow.index, flow.settings.market):
            report.frames += piece.count
            report.first_ns = report.first_ns or piece.start_ns
            report.last_ns = piece.end_ns
            yield piece
        if report.frames == 0:
            raise SourceError(f"{self._path}: holds no frame of these symbols")

    def _slices(self) -> Iterator[_Slice]:
        piece: _Slice | None = None
        for stamp, payload in self._frames():
            route = self._route_of(payload)
            if route is None:
                continue
            if piece is not None and piece.is_full(stamp):
                yield piece
                piece = None
            if piece is None:
                piece = _Slice(stamp)
            piece.add(route, stamp, payload)
        if piece is not None:
            yield piece

    def _route_of(self, payload: bytes) -> Route | None:
        """The route a recorded frame came over; None for streams and symbols not asked for."""
        name = payload[11 : payload.find(b'"', 11, 80)] if payload.startswith(_HEAD) else None
        if name is None or name not in self._routes:
            match = _STREAM.search(payload, 0, 80)
            if match is None:
                return Route.TRADES  # where it is rejected with its reason
            is_wanted = match[1].decode("ascii", "replace").upper() in self._flow.index
            route = _ROUTES.get(match[2]) if is_wanted else None
            if name is None or len(self._routes) > _MAX_NAMES:
                return route
            self._routes[name] = route
        return self._routes[name]

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        report = self.report
        try:
            for line in _lines(self._path):
                stamp, _, payload = line.strip().partition(b" ")
                if not (payload and _STAMP.fullmatch(stamp)):
                    self._garbage(line)
                    continue
                received_ns = int(stamp)
                report.frames += 1
                report.first_ns = report.first_ns or received_ns
                report.last_ns = received_ns
                yield received_ns, payload
        except (OSError, EOFError, zlib.error) as error:
            if report.frames == 0:
                raise SourceError(f"{self._path}: not a readable recording ({error})") from error
            log.error("replay.recording_damaged", path=str(self._path), error=str(error))
        if report.frames == 0:
            raise SourceError(f"{self._path}: holds no frame of a recording")

    def _garbage(self, line: bytes) -> None:
        if line.strip():
            self.report.garbage_lines += 1
            self._flow.reject([Rejection("no frame of a recording", line, 0)])


class MarketClock:
    """The recording's time, in place of the monotonic and the wall clock."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        """Receive time of the latest frame, nanoseconds."""
        return self.now_ns


def revise_in_place(flow: MarketFlow, outputs: Outputs, revised: list[WindowBatch]) -> None:
    """Work revised windows into the store at once, on this thread."""
    by_symbol: dict[str, dict[int, FeatureRow]] = {}
    for batch in revised:
        for row in flow.rows_of(batch):
            by_symbol.setdefault(row.symbol, {})[row.window_start_ms] = row
    revisions = []
    for symbol, rebuilt in by_symbol.items():
        revision = outputs.revise(symbol, rebuilt)
        flow.restore_cvd(symbol, revision.state)
        revisions.append(revision)
    outputs.write(revisions)
    outputs.announce(revisions)


def symbols_in(path: Path) -> tuple[str, ...]:
    """Symbols whose trades a recording holds, sorted.

    Raises:
        SourceError: the file cannot be read at all, or the folder holds no recorded days.
    """
    if path.is_dir():
        return RecordedDays(path).symbols()
    found: set[bytes] = set()
    tail = b""
    try:
        for piece in _pieces(path):
            found.update(_TRADE_STREAM.findall(tail + piece))
            tail = piece[-200:]
    except (OSError, EOFError, zlib.error) as error:
        if not found:
            raise SourceError(f"{path}: not a readable recording ({error})") from error
    return tuple(sorted(name.decode("ascii", "replace").upper() for name in found))


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a recording, packed or not; a damaged one gives what comes before the damage."""
    tail = b""
    for piece in _pieces(path):
        *lines, tail = (tail + piece).split(b"\n")
        yield from lines
        if len(tail) > _MAX_LINE:
            yield tail
            tail = b""
    if tail:
        yield tail


def _pieces(path: Path) -> Iterator[bytes]:
    """Content of a recording, unpacked.

    Raises:
        EOFError: an archive ends before its end.
        zlib.error: an archive is damaged.
    """
    with path.open("rb") as file:
        packed = file.read(_READ_BYTES)
        if not packed.startswith(_GZIP):
            while packed:
                yield packed
                packed = file.read(_READ_BYTES)
            return
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        while packed:
            yield inflater.decompress(packed)
            packed = inflater.unused_data.lstrip(b"\0")  # archives may follow each other, padded
            if packed:
                inflater = zlib.decompressobj(_GZIP_WINDOW)
            packed = packed or file.read(_READ_BYTES)
        if not inflater.eof:
            raise EOFError("the archive ends before its end")
