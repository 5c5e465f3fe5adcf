"""``main.py record``: a recording on sockets of its own, from the first frame to the last flush.

Consumes settings and clients, produces an exit code. Stops in flow order: sockets, journal, files.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time

import msgspec
import structlog

from binance_api.endpoints import StreamKind, stream_name, symbol_of
from binance_api.errors import ExchangeError
from binance_api.listing import listed
from binance_api.rest import RestClient
from collectors.recorder_rows import StreamRows
from collectors.recording import Recording, RecordingSettings
from collectors.repair_archive import PublicArchive
from domain.errors import StorageError
from lake.paths import LakePaths
from market_orchestrator.connection.clock import SystemClock
from market_orchestrator.connection.contract import ConnectionSettings
from market_orchestrator.connection.robust_connection import RobustConnectionManager
from market_orchestrator.connection.transport import default_transport
from monitoring.disk import DiskSettings, DiskWatch
from monitoring.long_run import prepare_process

log = structlog.get_logger()

STOP_TIMEOUT_S = 8.0  # for writing everything after the sockets are closed
_BATCH_S = 0.04
_SETTLE_S = 0.3  # what REST has may take so long to arrive over the socket


class RecordSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the parts; ``duration_s`` ``None`` runs on."""

    recording: RecordingSettings
    connection: ConnectionSettings
    disk: DiskSettings = DiskSettings()
    duration_s: float | None = None


class _DurationOver(Exception):
    """The asked-for time is over."""


class StreamProber:
    """Asks the exchange whether a silent stream has news (``connection.Prober``).

    Args:
        rest: The REST client.
        rows: What has arrived.
    """

    def __init__(self, rest: RestClient, rows: StreamRows) -> None:
        self._rest = rest
        self._rows = rows

    async def probe(self, stream: str) -> bool | None:
        """True: the exchange has newer data than arrived; False: nothing newer; None: unknown."""
        symbol = symbol_of(stream)
        try:
            if stream.endswith(StreamKind.AGG_TRADE.value):
                return await self._has_newer_trades(symbol)
            return await self._has_newer_book(symbol)
        except ExchangeError as error:
            log.info("recorder.probe_failed", stream=stream, error=str(error))
            return None

    async def _has_newer_trades(self, symbol: str) -> bool | None:
        before = self._rows.last_trade_id(symbol)
        if before is None:
            return None
        reply = await self._rest.agg_trades(symbol, from_id=before + 1, limit=1_000, urgent=True)
        newest = int(reply.value["agg_trade_id"].max(initial=before))
        if newest <= before:
            return False
        await asyncio.sleep(_SETTLE_S)
        is_stalled = (self._rows.last_trade_id(symbol) or 0) < newest
        if is_stalled:  # what is at hand already need not wait for the stream to show the hole
            self._rows.on_rest_trades(symbol, reply.value)
        return is_stalled

    async def _has_newer_book(self, symbol: str) -> bool | None:
        before = self._rows.last_update_id(symbol)
        if before is None:
            return None
        newest = (await self._rest.depth(symbol, 50)).value.final_update_id
        if newest <= before:
            return False
        await asyncio.sleep(_SETTLE_S)
        return (self._rows.last_update_id(symbol) or 0) < newest


class RecordRun:
    """One run of the recorder alone.

    Args:
        settings: See ``RecordSettings``.
        paths: The tree, opened (``recording.open_folder``).
        rest: The REST client.
        archive: The public archive.
    """

    def __init__(
        self, settings: RecordSettings, paths: LakePaths, rest: RestClient, archive: PublicArchive
    ) -> None:
        self._settings = settings
        self._rest = rest
        symbols = settings.recording.recorder.symbols
        self.recording = Recording(settings.recording, paths, rest, archive)
        self.manager = RobustConnectionManager(
            # Nobody waits for a recorded frame, and a batch costs much the same whatever it holds.
            msgspec.structs.replace(
                settings.connection, batch_interval_s=_BATCH_S, busy_interval_s=_BATCH_S
            ),
            [stream_name(kind, symbol) for kind in StreamKind for symbol in symbols],
            self.recording.on_frames,
            self.recording,
            StreamProber(rest, self.recording.recorder.rows),
            transport=default_transport(),
            clock=SystemClock(),
            random=random.Random(),
        )
        self._watch = DiskWatch(paths.raw, settings.disk, monotonic=time.monotonic)

    async def run(self) -> int:
        """Record until cancelled or for the asked-for time.

        Raises:
            ConfigError: An unknown symbol (exit 2).
            ConnectionLost: The exchange could not be reached for good (exit 3).
            StorageError: The disk refuses, or is nearly full (exit 1).
        """
        prepare_process(10_000, 20, 50)
        recorder = self._settings.recording.recorder
        await listed(self._rest, recorder.symbols, recorder.market)
        await self.recording.open()
        gc.collect()
        gc.freeze()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.recording.run(), name="recording")
                group.create_task(self.manager.run(), name="connection")
                group.create_task(self._watch.run(), name="disk-watch")
                if self._settings.duration_s is not None:
                    group.create_task(_end_after(self._settings.duration_s), name="duration")
        except* _DurationOver:
            pass
        finally:
            await self._stop()
        return 0

    def statistics(self) -> dict[str, int | float | str | None]:
        """Those of the parts, as ``part.name``."""
        parts = {
            "connection": self.manager.statistics(),
            "rest": self._rest.statistics(),
            "disk": self._watch.statistics(),
        }
        own = {f"{part}.{k}": v for part, read in parts.items() for k, v in read.items()}
        return {**self.recording.statistics(), **own}

    async def _stop(self) -> None:
        """Write everything; runs to its end even when cancelled again."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self.recording.finish())
        except TimeoutError:
            raise StorageError("writing the last frames took too long") from None
        finally:
            gc.unfreeze()


async def _end_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise _DurationOver
