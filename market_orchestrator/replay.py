"""A recording through the same code as live data, as fast as it goes; deterministic.

Consumes a recording (lines of ``<receive ns> <combined frame>``), produces the same store and the
same events a live run would have. Time is the recording's own: nothing waits, no clock closes a
window, and what the recording lacks cannot be asked for.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import structlog

from binance_api.decode import Rejection
from binance_api.endpoints import Route
from domain.errors import SourceError
from domain.features import FeatureRow
from domain.flow import WindowBatch
from lake.quarantine import Quarantine
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.outputs import Outputs

log = structlog.get_logger()

_SLICE_NS = 100_000_000  # frames received within this time are taken together, depth first
_MAX_SLICE = 2_048
_STAMP = re.compile(rb"[0-8]?\d{1,18}")  # nanoseconds that fit an int64
_STREAM = re.compile(rb'"stream":\s*"([^@"]+)@(\w+)')
_ROUTES = {b"aggTrade": Route.TRADES, b"depth20": Route.DEPTH}
_SOCKET = {Route.TRADES: 0, Route.DEPTH: 1}


class ReplayReport(msgspec.Struct):
    """What a replay found."""

    frames: int = 0
    garbage_lines: int = 0
    windows: int = 0
    rejected: int = 0
    first_ns: int = 0
    last_ns: int = 0

    @property
    def market_s(self) -> float:
        """Length of the recording, seconds."""
        return max(0, self.last_ns - self.first_ns) / 1e9


class Replay:
    """Feeds one recording through a ``MarketFlow`` into ``Outputs``."""

    def __init__(
        self,
        path: Path,
        flow: MarketFlow,
        outputs: Outputs,
        quarantine: Quarantine,
        clock: MarketClock,
    ) -> None:
        self._path = path
        self._flow = flow
        self._outputs = outputs
        self._quarantine = quarantine
        self._clock = clock
        self.report = ReplayReport()

    def run(self, progress: Callable[[int], None] | None = None) -> Iterator[None]:
        """Process the recording; yields between slices so that the caller can do other things.

        Raises:
            SourceError: the file cannot be read as a recording at all.
        """
        for payloads, stamps in self._slices():
            self._clock.now_ns = max(self._clock.now_ns, stamps[-1])
            for route in (Route.DEPTH, Route.TRADES):
                self._feed(route, payloads, stamps)
            self._flow.close()
            self._emit()
            if progress is not None:
                progress(len(payloads))
            yield
        self._clock.now_ns += 3_600_000_000_000  # whatever still waited has waited long enough
        self._flow.close()
        self._emit()

    def _feed(self, route: Route, payloads: list[bytes], stamps: list[int]) -> None:
        chosen = [i for i, payload in enumerate(payloads) if self._route_of(payload) is route]
        if chosen:
            frames = [payloads[i] for i in chosen]
            self._flow.on_frames(route, _SOCKET[route], frames, [stamps[i] for i in chosen])

    def _route_of(self, payload: bytes) -> Route | None:
        """The route a recorded frame came over; None for streams and symbols not asked for."""
        match = _STREAM.search(payload, 0, 80)
        if match is None:
            return Route.TRADES  # where it is rejected with its reason
        if match[1].decode("ascii", "replace").upper() not in self._flow.index:
            return None
        return _ROUTES.get(match[2])

    def _emit(self) -> None:
        flow = self._flow
        while flow.live:
            for closed in flow.analyse(flow.live.popleft()):
                self.report.windows += 1
                self._outputs.emit(closed)
        revised = list(flow.revised)
        flow.revised.clear()
        if revised:
            revise_in_place(flow, self._outputs, revised)
        flow.take_depth_gaps()
        for rejection in flow.take_rejections():
            self.report.rejected += 1
            self._quarantine.add(
                rejection.reason,
                rejection.payload,
                at_ns=max(rejection.receive_time_ns, 0) or self._clock.now_ns,
                symbol=rejection.symbol,
            )

    def _slices(self) -> Iterator[tuple[list[bytes], list[int]]]:
        payloads: list[bytes] = []
        stamps: list[int] = []
        for stamp, payload in self._frames():
            if payloads and (stamp - stamps[0] > _SLICE_NS or len(payloads) >= _MAX_SLICE):
                yield payloads, stamps
                payloads, stamps = [], []
            payloads.append(payload)
            stamps.append(stamp)
        if payloads:
            yield payloads, stamps

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        report = self.report
        try:
            with _open(self._path) as lines:
                for line in lines:
                    stamp, _, payload = line.strip().partition(b" ")
                    if not (_STAMP.fullmatch(stamp) and payload):
                        self._garbage(line)
                        continue
                    report.frames += 1
                    report.first_ns = report.first_ns or int(stamp)
                    report.last_ns = int(stamp)
                    yield int(stamp), payload
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
    """Symbols whose trades a recording holds, sorted."""
    found: set[bytes] = set()
    try:
        with _open(path) as lines:
            for line in lines:
                match = _STREAM.search(line, 0, 120)
                if match is not None and match[2] == b"aggTrade":
                    found.add(match[1])
    except (OSError, EOFError, zlib.error):
        pass  # what is wrong with it is said when it is read
    return tuple(sorted(name.decode("ascii", "replace").upper() for name in found))


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise SourceError(f"{path}: is a folder; give a recording (.ndjson or .ndjson.gz)")
    with path.open("rb") as probe:
        magic = probe.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else path.open("rb")  # type: ignore[return-value]
