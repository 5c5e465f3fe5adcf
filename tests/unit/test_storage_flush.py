"""When feature rows reach the disk: in time, sooner when many wait, not while windows close."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np

from domain.flow import Origin, WindowBatch
from domain.market import TRADE_DTYPE
from event_bus import EventBus
from feature_store import FeatureStore
from lake.gap_ledger import GapLedger
from lake.quarantine import Quarantine
from lake.signal_store import signal_store
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from market_orchestrator.outputs import Outputs
from market_orchestrator.storage import Storage, StorageSettings
from tests.lake_fakes import feature_row

PATIENCE_S = 20.0


def storage_of(folder: Path) -> tuple[Storage, FeatureStore, MarketFlow]:
    """Storage that flushes after an hour, or when ten rows wait, and looks often."""
    flow = MarketFlow(
        MarketFlowSettings(symbols=("BTCUSDT",)), monotonic_ns=lambda: 0, repairable=False
    )
    features = FeatureStore(folder)
    outputs = Outputs(EventBus(), features, signal_store(folder / "signals"), None, lambda: 0)
    storage = Storage(
        flow,
        outputs,
        Quarantine(folder / "quarantine"),
        GapLedger(folder / "gaps"),
        StorageSettings(flush_s=3_600.0, first_flush_s=3_600.0, side_flush_s=0.01, flush_rows=10),
        monotonic=asyncio.get_running_loop().time,
        wall_ns=lambda: 0,
    )
    return storage, features, flow


def test_many_waiting_rows_are_written_before_their_time(tmp_path: Path) -> None:
    async def run() -> tuple[int, int]:
        storage, features, _ = storage_of(tmp_path)
        task = asyncio.create_task(storage.run())
        for index in range(9):
            features.append(feature_row(index))
        await asyncio.sleep(0.2)  # many looks
        few = features.pending_count
        features.append(feature_row(9))
        async with asyncio.timeout(PATIENCE_S):
            while features.pending_count:
                await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return few, FeatureStore(tmp_path).read().num_rows

    assert asyncio.run(run()) == (9, 10)


def test_a_write_waits_while_windows_are_analysed_but_not_for_ever(tmp_path: Path) -> None:
    no_rows = np.empty(0, dtype=TRADE_DTYPE)
    batch = WindowBatch(0, 5_000, [], np.zeros(1, dtype=np.int64), no_rows, [], [], Origin.LIVE)

    async def run() -> tuple[list[int], list[int]]:
        storage, features, flow = storage_of(tmp_path)
        task = asyncio.create_task(storage.run())
        waiting: list[int] = []
        written: list[int] = []
        for is_freed in (True, False):
            flow.live.append(batch)
            for index in range(10):
                features.append(feature_row(index + 10 * len(written)))
            await asyncio.sleep(0.2)  # many looks
            waiting.append(features.pending_count)
            if is_freed:
                flow.live.clear()
            async with asyncio.timeout(PATIENCE_S):
                while features.pending_count:
                    await asyncio.sleep(0.01)
            written.append(FeatureStore(tmp_path).read().num_rows)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return waiting, written

    assert asyncio.run(run()) == ([10, 10], [10, 20])
