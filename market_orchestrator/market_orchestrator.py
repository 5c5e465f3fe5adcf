"""``EnhancedMarketBot`` builds the parts of a live run and owns every task; it carries no data itself.

Settings → parts → one task group. Stops in flow order: sockets first, then what is queued is
analysed, then everything is written. ``replay`` puts a recording through the same parts.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog

from binance_api.endpoints import Route, StreamKind, stream_name
from binance_api.listing import listed
from collectors.recording import Recording
from config import Settings
from domain.errors import ConfigError, SourceError, StorageError
from domain.events import ConnectionEvent, GapEvent, Topic
from domain.market import Market
from event_bus import EventBus
from feature_store import FeatureStore
from flow_analyzer import WhaleUnit
from inference.model import Model
from lake.gap_ledger import GapLedger
from lake.lock import FolderLock
from lake.paths import LakePaths
from lake.quarantine import Quarantine
from lake.signal_store import signal_store
from lake.source import claim_source
from market_orchestrator.analyst import ai_analyst, analyst_at_work
from market_orchestrator.connection.clock import SystemClock
from market_orchestrator.connection.contract import FrameBatch
from market_orchestrator.connection.robust_connection import RobustConnectionManager
from market_orchestrator.connection.transport import default_transport
from market_orchestrator.exchange import Exchange, connection_settings, open_exchange
from market_orchestrator.gap_repair import GapRepairer, GapRepairSettings
from market_orchestrator.live_tasks import analyse_windows, spare_the_collector, warm_context
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from market_orchestrator.model_signals import ModelAnalyst, model_of
from market_orchestrator.outputs import Outputs
from market_orchestrator.recording import open_recording
from market_orchestrator.recovery import Recovery, RecoverySettings
from market_orchestrator.replay import MarketClock, Replay, symbols_in
from market_orchestrator.route_watch import RouteWatch, RouteWatchSettings
from market_orchestrator.storage import Storage, StorageSettings
from market_orchestrator.windows import WindowSettings
from monitoring.disk import DiskSettings, DiskWatch
from monitoring.heartbeat import Heartbeat
from monitoring.long_run import prepare_process
from rules_analyst import RulesAnalyst

log = structlog.get_logger()

STOP_TIMEOUT_S = 8.0  # for writing everything after the sockets are closed


class _DurationOver(Exception):
    """The run's ``--duration`` is over."""


class EnhancedMarketBot:
    """One live run: ``await EnhancedMarketBot(settings).run()`` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bus = EventBus()
        self.opened = asyncio.Event()  # the data folder is this bot's own
        self.parts: LiveParts | None = None  # while it runs

    def read(self) -> dict[str, float | int | str | None]:
        """Every part's statistics, ``part.name`` to value; empty while it is not running."""
        return {} if self.parts is None else self.parts.read()

    async def run(self) -> int:
        """Run until cancelled or for the asked-for duration.

        Raises:
            ConfigError: an unknown symbol, a folder in use or of another source (exit 2).
            ConnectionLost: the exchange could not be reached for good (exit 3).
            StorageError: what was recorded could not be written (exit 1).
        """
        settings = self.settings
        prepare_process(2_000, 5, 800)
        try:
            async with AsyncExitStack() as stack:
                model = await asyncio.to_thread(model_of, settings, settings.symbols)
                exchange = await open_exchange(settings, stack)
                paths = _open_folder(settings, stack)
                self.opened.set()
                await asyncio.sleep(0)  # who waited for it subscribes before the first event
                recording = (
                    await open_recording(settings, exchange, stack) if settings.record else None
                )
                self.parts = LiveParts(settings, paths, exchange, self.bus, recording, model)
                return await self.parts.run()
        finally:
            self.parts = None
            self.bus.close()


class LiveParts:
    """The parts of one live run and how they are wired."""

    def __init__(
        self,
        settings: Settings,
        paths: LakePaths,
        exchange: Exchange,
        bus: EventBus,
        recording: Recording | None = None,
        model: Model | None = None,
    ) -> None:
        rest = exchange.rest
        self._settings = settings
        self.recording = recording
        self._rest = rest
        self._bus = bus
        self.flow = MarketFlow(
            flow_settings(settings, settings.symbols),
            monotonic_ns=time.monotonic_ns,
            wall_ns=time.time_ns,
            repairable=True,
        )
        self.outputs = Outputs(
            bus,
            FeatureStore(paths.root),
            signal_store(paths.signals),
            RulesAnalyst(settings.rules),
            time.time_ns,
            self.flow.validator.clock.exchange_ms,
        )
        self.storage = Storage(
            self.flow,
            self.outputs,
            Quarantine(paths.quarantine),
            GapLedger(paths.gaps),
            StorageSettings(flush_s=settings.feature_flush_seconds),
            monotonic=time.monotonic,
            wall_ns=time.time_ns,
        )
        self.recovery = Recovery(
            self.flow,
            self.outputs,
            self.storage,
            rest,
            self._on_gap,
            RecoverySettings(),
            monotonic=time.monotonic,
            wall_ns=time.time_ns,
        )
        self.repairer = GapRepairer(
            self.flow,
            rest,
            self._on_gap,
            GapRepairSettings(grace_ms=200 if settings.ws_redundancy > 1 else 50),
            monotonic_ns=time.monotonic_ns,
            wall_ns=time.time_ns,
        )
        self.watch = RouteWatch(
            self.flow,
            rest,
            RouteWatchSettings(),
            on_up=self._on_route,
            trade_sockets=lambda: list(self.manager.sockets(Route.TRADES)),
            monotonic=time.monotonic,
            wall_ns=time.time_ns,
        )
        self.manager = RobustConnectionManager(
            connection_settings(settings, exchange.ws_url),
            [stream_name(kind, s) for kind in StreamKind for s in settings.symbols],
            self._on_frames,
            self,
            self.watch,
            transport=default_transport(),
            clock=SystemClock(),
            random=random.Random(),
            awaits_trades=self.flow.awaits_trades,
        )
        self.analyst = ai_analyst(
            settings,
            self.outputs,
            bus,
            is_healthy=lambda _: self._is_healthy(),
            quiet_moment=self.storage.between_boundaries,
        )
        self.model = (
            None
            if model is None
            else ModelAnalyst(model, self.flow, self.outputs, bus, market=settings.market)
        )
        self.disk = DiskWatch(
            paths.root,
            # Rows that find no room wait in memory: a full disk stops the run only when too many do.
            # A recorder fills it by itself, and stops before.
            DiskSettings(
                warn_mib=settings.disk_warn_mib,
                stop_mib=0 if recording is None else settings.disk_stop_mib,
            ),
            monotonic=time.monotonic,
        )
        self._work = asyncio.Event()  # something was closed or rejected
        self.flow.on_work = self._work.set

    async def run(self) -> int:
        """Prepare, run every task, and stop in order."""
        await asyncio.to_thread(self.outputs.features.recover)
        await asyncio.to_thread(self.outputs.signals.partitioned.recover)
        await asyncio.to_thread(
            self.outputs.check_duration,
            self._settings.symbols,
            self.flow.settings.windows.duration_ms,
        )
        self.recovery.adopt(await asyncio.to_thread(self.recovery.examine))
        await self._check_symbols()
        gc.collect()
        gc.freeze()
        if self.recording is not None:
            await self.recording.open()
        try:
            async with asyncio.TaskGroup() as group:
                if self.recording is not None:
                    group.create_task(self.recording.run(), name="recording")
                group.create_task(self.manager.run(), name="connection")
                group.create_task(self.watch.run(), name="route-watch")
                group.create_task(self.repairer.run(), name="gap-repair")
                group.create_task(self._analysis(), name="analysis")
                group.create_task(self.storage.run(), name="storage")
                group.create_task(self.recovery.run(), name="recovery")
                group.create_task(self._settle_in(), name="warm-context")
                if self.analyst is not None:
                    group.create_task(self.analyst.run(), name="ai-analyst")
                if self.model is not None:
                    group.create_task(self.model.run(), name="model")
                heartbeat = Heartbeat(self._bus, self._settings.health_check_interval, self.read)
                group.create_task(heartbeat.run(), name="health")
                group.create_task(self.disk.run(), name="disk-watch")
                if self._settings.duration is not None:
                    group.create_task(_end_after(self._settings.duration), name="duration")
        except* _DurationOver:
            pass
        finally:
            await self._stop()
        return 0

    def on_connection(self, event: ConnectionEvent) -> None:
        """A socket changed its state (``ConnectionListener``)."""
        self._bus.publish(Topic.CONNECTION, event)
        self.watch.on_connection(event)
        if self.recording is not None:
            self.recording.on_connection(event)

    def _is_healthy(self) -> bool:
        return self.manager.is_healthy(Route.TRADES) and self.manager.is_healthy(Route.DEPTH)

    def _on_frames(self, batch: FrameBatch) -> set[str]:
        if self.recording is not None:
            self.recording.on_frames(batch)
        return self.flow.on_frames(
            batch.route, batch.socket_id, batch.payloads, batch.receive_time_ns
        )

    def _on_route(self, up: bool) -> None:  # noqa: FBT001 - a callback's one argument
        self.repairer.route_changed(up=up)

    def _on_gap(self, event: GapEvent) -> None:
        self.storage.record_gap(event)
        self._bus.publish(Topic.GAP, event)

    async def _settle_in(self) -> None:
        await warm_context(self.flow, self._rest, self.outputs.features)
        await spare_the_collector()

    async def _analysis(self) -> None:
        """Analyse closed windows as they come, a few at a time so that the loop stays free."""
        while True:
            await self._work.wait()
            self._work.clear()
            await analyse_windows(self.flow, self.outputs, self.storage)
            for event in self.flow.take_depth_gaps():
                self._on_gap(event)

    async def _check_symbols(self) -> None:
        """Refuse symbols the exchange does not know, and learn the price grids of the others."""
        known = await listed(self._rest, self._settings.symbols, self._settings.market)
        for symbol, found in known.items():
            if found.tick_size and found.step_size:
                self.flow.validator.set_grid(symbol, float(found.tick_size), float(found.step_size))

    async def _stop(self) -> None:
        """Analyse what closed, write everything; runs to its end even when cancelled again."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._finish())
        except TimeoutError:
            log.error("run.stop_timeout", seconds=STOP_TIMEOUT_S)
            raise StorageError("writing the last rows took too long") from None
        finally:
            gc.unfreeze()

    async def _finish(self) -> None:
        if self.recording is not None:
            await self.recording.finish()
        await analyse_windows(self.flow, self.outputs, self.storage)
        await self.storage.finish()
        log.info("run.stopped", **self.outputs.statistics())

    def read(self) -> dict[str, float | int | str | None]:
        """Every part's statistics now, ``part.name`` to value."""
        parts = {
            "flow": self.flow.statistics(),
            "windows": self.flow.builder.statistics(),
            "validator": self.flow.validator.statistics(),
            "books": self.flow.books.statistics(),
            "analyzer": self.flow.analyzer.statistics(),
            "pipeline": self.flow.pipeline.statistics(),
            "connection": self.manager.statistics(),
            "repair": self.repairer.statistics(),
            "route": self.watch.statistics(),
            "recovery": self.recovery.statistics(),
            "store": self.outputs.features.statistics(),
            "outputs": self.outputs.statistics(),
            "storage": self.storage.statistics(),
            "rest": self._rest.statistics(),
            "bus": self._bus.statistics(),
            "disk": self.disk.statistics(),
        }
        if self.recording is not None:
            parts["recording"] = self.recording.statistics()
        if self.analyst is not None:
            parts["ai"] = self.analyst.statistics()
        if self.model is not None:
            parts["model"] = self.model.statistics()
        return {f"{part}.{k}": v for part, read in parts.items() for k, v in read.items()}


async def replay(settings: Settings, path: Path) -> int:
    """Put a recording through the same code as live data; writes what is not stored yet."""
    settings = settings.model_copy(update={"source": f"replay:{path}"})
    symbols = await asyncio.to_thread(_symbols_to_replay, settings, path)
    model = await asyncio.to_thread(model_of, settings, symbols)
    paths = settings.paths
    with FolderLock(paths.root, "bot"):
        claim_source(paths.root, settings.source_description)
        clock = MarketClock()
        flow = MarketFlow(flow_settings(settings, symbols), monotonic_ns=clock, repairable=False)
        bus = EventBus()
        outputs = Outputs(
            bus,
            FeatureStore(paths.root),
            signal_store(paths.signals),
            RulesAnalyst(settings.rules),
            clock,
            flow.validator.clock.exchange_ms,
        )
        quarantine = Quarantine(paths.quarantine)
        outputs.features.recover()
        outputs.check_duration(symbols, flow.settings.windows.duration_ms)
        outputs.skip_stored(symbols)
        ledger = GapLedger(paths.gaps)
        run = Replay(path, flow, outputs, quarantine, ledger, clock)
        asks = "ai" in settings.model_fields_set  # a replay asks models only when told to
        analyst = ai_analyst(settings, outputs, bus) if asks else None
        modelled = (
            None
            if model is None
            else ModelAnalyst(
                model, flow, outputs, bus, market=settings.market, clock_s=lambda: 0.0
            )
        )
        started = time.perf_counter()
        async with analyst_at_work(analyst) as answered:
            shown_at = started
            for _ in run.run():
                if modelled is not None:
                    modelled.settle()
                await answered()
                if time.perf_counter() - shown_at > 0.5:
                    shown_at = time.perf_counter()
                    _show_progress(run, shown_at - started)
                    await asyncio.sleep(0)
            if modelled is not None:
                modelled.settle()
            await answered()
        outputs.features.flush()
        outputs.signals.flush()
        quarantine.flush()
        ledger.flush()
        elapsed_s = time.perf_counter() - started
    if run.report.rejected > run.report.frames // 2:
        log.error("replay.mostly_rejected", advice="is it a recording of this --market?")
    log.info(
        "replay.done",
        **msgspec.to_builtins(run.report),
        **outputs.statistics(),
        market_s=round(run.report.market_s, 3),
        elapsed_s=round(elapsed_s, 3),
        times_real_time=round(run.report.market_s / elapsed_s, 1),
        data_dir=str(paths.root),
    )
    return 0


def _symbols_to_replay(settings: Settings, path: Path) -> tuple[str, ...]:
    """The asked-for symbols, or all that the recording holds trades of."""
    held = symbols_in(path)
    if not held:
        raise SourceError(f"{path}: holds no trades; is it a recording?")
    if "symbols" not in settings.model_fields_set:
        return held
    for symbol in settings.symbols:
        if symbol not in held:
            raise ConfigError(
                f"SYMBOLS (--symbols): {symbol} is not in the recording, "
                f"which holds {', '.join(held)}"
            )
    return settings.symbols


def flow_settings(settings: Settings, symbols: tuple[str, ...]) -> MarketFlowSettings:
    """The settings of the synchronous parts."""
    window_ms = settings.window_duration * 1_000
    whale_unit = WhaleUnit.AGG_TRADE if settings.market is Market.UM else WhaleUnit.SWEEP
    return MarketFlowSettings(
        symbols=symbols,
        market=settings.market,
        validator=settings.validator,
        windows=WindowSettings(
            duration_ms=window_ms,
            lateness_ms=settings.window_lateness_ms,
            hold_ms=int(settings.gap_repair_timeout * 1_000),
            retain_ms=max(30_000, 6 * window_ms),
        ),
        flow=msgspec.structs.replace(
            settings.flow, whale_notional=settings.whale_notional, whale_unit=whale_unit
        ),
        pipeline=msgspec.structs.replace(settings.pipeline, window_ms=window_ms),
    )


def _open_folder(settings: Settings, stack: AsyncExitStack) -> LakePaths:
    paths = settings.paths
    stack.enter_context(FolderLock(paths.root, "bot"))
    claim_source(paths.root, settings.source_description)
    return paths


async def _end_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise _DurationOver


def _show_progress(run: Replay, elapsed_s: float) -> None:
    if sys.stderr.isatty():
        speed = run.report.market_s / elapsed_s
        sys.stderr.write(f"\r{run.report.frames:,} frames, {speed:,.0f} times real time ")
        sys.stderr.flush()


__all__ = ["EnhancedMarketBot", "SourceError", "replay"]
