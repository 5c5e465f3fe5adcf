"""The simulated exchange: one local server with the venue's sockets, REST and archive.

Consumes ``SimulatorSettings`` → produces base URLs a client can use in place of the venue's hosts.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from aiohttp import web

from domain.errors import ConfigError
from domain.market import Market
from simulator.clock import MarketClock
from simulator.faults import AppliedFault, FaultKind, FaultPlan, load_plan
from simulator.feed import Feed
from simulator.frames import MarketSource
from simulator.recording import RecordingSource
from simulator.rest_api import RestApi
from simulator.rest_faults import ReplyScript
from simulator.settings import SimulatorSettings
from simulator.streams import StreamHub
from simulator.synthetic import SyntheticMarket
from simulator.vision import VisionArchive
from simulator.weights import WeightMeter

__all__ = ["SimulatedExchange", "SimulatorSettings"]

_DEFAULT_FAULT_SPAN_MS = 600_000
_LONGEST_URL_BYTES = 131_072  # 1,024 stream names in one URL


def open_source(settings: SimulatorSettings) -> RecordingSource | SyntheticMarket:
    """The market the settings ask for (reads a recording once; may take seconds).

    Raises:
        SourceError: The recording cannot be read.
    """
    if settings.recording is not None:
        return RecordingSource(settings.recording)
    return SyntheticMarket(
        settings.seed,
        settings.symbols,
        start_ms=settings.start_ms if settings.start_ms is not None else time.time_ns() // 10**6,
        rate_multiplier=settings.rate_multiplier,
        planted_edge=settings.planted_edge,
        market=settings.market,
    )


class SimulatedExchange:
    """A Binance-compatible exchange on loopback, as an async context manager.

    Args:
        settings: What it serves and how it misbehaves.

    Attributes:
        ws_url, rest_url, vision_url: Base URLs (host alone), valid inside the context.
        source: The market being served.
        vision: Its archive.

    Raises:
        SourceError: The recording cannot be read (on entering).
        ConfigError: The fault plan cannot be read, or the port is taken (on entering).
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self.ws_url = ""
        self.rest_url = ""
        self.vision_url = ""
        self.source: RecordingSource | SyntheticMarket
        self._feed: Feed
        self._hub: StreamHub
        self._rest: RestApi
        self.vision: VisionArchive
        self._clock: MarketClock
        self._runner: web.AppRunner
        self._tasks: asyncio.TaskGroup
        self._running: list[asyncio.Task[None]] = []

    @property
    def fault_log(self) -> list[AppliedFault]:
        """Faults applied so far, in order, with the aggTrades each one touched."""
        return self._feed.log

    @property
    def clock(self) -> MarketClock:
        """The market's clock."""
        return self._clock

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts of the feed, the sockets, REST, the archive and the source."""
        parts = (self._feed, self._hub, self._rest, self.vision, self.source)
        return {key: value for part in parts for key, value in part.statistics().items()}

    async def __aenter__(self) -> Self:
        settings = self._settings
        self.source = await asyncio.to_thread(open_source, settings)
        self._build(self.source, self._plan(self.source))
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=1.0,
            max_line_size=_LONGEST_URL_BYTES,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{settings.host}:{settings.port}"
            raise ConfigError(f"port: cannot listen on {where}: {error.strerror}") from error
        address = f"{settings.host}:{self._runner.addresses[0][1]}"
        self.ws_url = f"ws://{address}"
        self.rest_url = self.vision_url = f"http://{address}"
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._running = [
            self._tasks.create_task(self._feed.load(), name="simulator.load"),
            self._tasks.create_task(self._feed.run(), name="simulator.feed"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._running:
            task.cancel()
        if not isinstance(error, asyncio.CancelledError):
            kind = error = trace = None  # the body's own error goes on unwrapped
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._hub.close_all("1001", "server stops")
            await self.vision.close()
            await self._runner.cleanup()

    def _build(self, source: MarketSource, plan: FaultPlan) -> None:
        settings = self._settings
        speed = None if settings.is_unpaced else settings.speed
        self._clock = MarketClock(source.start_ns, speed)
        self._hub = StreamHub(settings, self._clock, self._start)
        self._feed = Feed(source, self._clock, self._hub, plan, settings.market)
        self._hub.is_refused = self._refusal
        limit = 6000 if settings.market is Market.SPOT else 2400
        meter = WeightMeter(
            settings.weight_limit or limit,
            settings.requests_until_ban,
            settings.ban_s,
            _wall_ms if settings.weight_clock == "wall" else self._clock.now_ms,
        )
        self._rest = RestApi(
            settings, source, self._clock, self._feed, meter, ReplyScript(plan.rest)
        )
        held = source if settings.archive is None else settings.archive
        self.vision = VisionArchive(settings, held, self._clock, plan.vision)

    def _start(self) -> None:
        self._feed.start()

    def _plan(self, source: MarketSource) -> FaultPlan:
        faults = self._settings.faults
        if faults is None or isinstance(faults, FaultPlan):
            return faults or FaultPlan()
        span_ms = self._settings.fault_duration_ms
        if span_ms is None and source.end_ns is not None:
            span_ms = (source.end_ns - source.start_ns) // 1_000_000
        return load_plan(faults, span_ms or _DEFAULT_FAULT_SPAN_MS)

    def _refusal(self, path_route: str | None) -> str | None:
        for _, fault in self._feed.active(FaultKind.REFUSED):
            route = {"market": "trades", "public": "depth"}.get(path_route or "")
            if fault.route is None or route is None or fault.route == route:
                return fault.variant
        return None

    def _application(self) -> web.Application:
        application = web.Application()
        application.add_routes([*self._rest.routes(), *self.vision.routes()])
        routes = ("",) if self._settings.market is Market.SPOT else ("", "/market", "/public")
        for prefix in routes:
            application.add_routes(
                [
                    web.get(f"{prefix}/ws", self._socket),
                    web.get(f"{prefix}/ws/{{streams:.*}}", self._socket),
                    web.get(f"{prefix}/stream", self._socket),
                ]
            )
        return application

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        """Routed or old path, raw (/ws) or combined (/stream) framing."""
        path = request.path.strip("/").split("/")
        route = path[0] if path[0] in ("market", "public") else None
        combined = request.path.endswith("/stream")
        listed = request.query.get("streams", "") if combined else request.match_info.get("streams")
        streams = [name for name in (listed or "").split("/") if name]
        return await self._hub.handle(request, route, streams, combined=combined)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
