"""Our side of ``bench_saturated``, one run in a process of its own.

Socket → ``RobustConnectionManager`` → ``MarketFlow`` → every closed window with all flow metrics and
its feature row, on one thread. Prints one JSON line. Time runs from the end of the first batch to
the end of the last, the frames of the first batch left out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import sys
import time
from collections.abc import Callable

import structlog

from benchmarks.aiohttp_transport import AiohttpTransport
from benchmarks.loopback import SYMBOL
from benchmarks.report import versions
from binance_api.endpoints import StreamKind, stream_name
from domain.events import ConnectionEvent
from market_orchestrator.connection.clock import SystemClock
from market_orchestrator.connection.robust_connection import (
    ConnectionSettings,
    FrameBatch,
    RobustConnectionManager,
)
from market_orchestrator.connection.transport import PicowsTransport, Transport
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings

_STOP_S = 120.0
TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "aiohttp": AiohttpTransport,
    "picows": PicowsTransport,
}


class Receiver:
    """Takes frames through the product's parts and keeps the time."""

    def __init__(self, expected: int) -> None:
        self.flow = MarketFlow(
            MarketFlowSettings(symbols=(SYMBOL,)), monotonic_ns=time.monotonic_ns, repairable=False
        )
        self.done = asyncio.Event()
        self.frames = self.first_frames = self.batches = 0
        self.windows = self.complete_windows = self.trades_in_windows = 0
        self.began = self.ended = self.began_cpu = self.ended_cpu = 0.0
        self._expected = expected

    def on_connection(self, event: ConnectionEvent) -> None:
        """State changes are not of interest here (``ConnectionListener``)."""

    async def probe(self, stream: str) -> bool | None:  # noqa: ARG002 - Prober's signature
        return None

    def on_frames(self, batch: FrameBatch) -> set[str]:
        flow = self.flow
        streams = flow.on_frames(
            batch.route, batch.socket_id, batch.payloads, batch.receive_time_ns
        )
        while flow.live:
            for closed in flow.analyse(flow.live.popleft()):
                self.windows += 1
                self.complete_windows += closed.row.complete
                self.trades_in_windows += closed.metrics.trade_count
        self.frames += len(batch.payloads)
        self.batches += 1
        if not self.first_frames:
            self.first_frames = self.frames
            self.began, self.began_cpu = time.perf_counter(), time.process_time()
        if self.frames >= self._expected:
            self.ended, self.ended_cpu = time.perf_counter(), time.process_time()
            self.done.set()
        return streams

    def result(self) -> dict[str, float | int]:
        counts = self.flow.statistics()
        if counts["trades"] != self._expected or counts["rejected"] or counts["waiting_batches"]:
            raise RuntimeError(f"not every frame became a trade: {counts}")
        if self.complete_windows < self.windows - 1 or not self.windows:
            raise RuntimeError(f"{self.windows} windows, {self.complete_windows} of them complete")
        timed = self.frames - self.first_frames
        return {
            "frames_per_s": timed / (self.ended - self.began),
            "frames_per_cpu_s": timed / (self.ended_cpu - self.began_cpu),
            "frames": self.frames,
            "batches": self.batches,
            "windows": self.windows,
            "trades_in_windows": self.trades_in_windows,
        }


async def receive(url: str, transport: str, expected: int) -> dict[str, float | int]:
    """Receive ``expected`` frames and say how fast that went."""
    receiver = Receiver(expected)
    manager = RobustConnectionManager(
        ConnectionSettings(ws_base=url),
        [stream_name(StreamKind.AGG_TRADE, SYMBOL)],
        receiver.on_frames,
        receiver,
        receiver,
        transport=TRANSPORTS[transport](),
        clock=SystemClock(),
        random=random.Random(1),
    )
    gc.collect()  # as the live bot does before it begins
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    async with asyncio.timeout(_STOP_S):
        running = asyncio.ensure_future(manager.run())
        waiting = asyncio.ensure_future(receiver.done.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        running.cancel()
    return receiver.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--transport", choices=TRANSPORTS, required=True)
    parser.add_argument("--profile", help="write a cProfile of the run here")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if given.profile:
        import cProfile  # noqa: PLC0415

        profiler = cProfile.Profile()
        profiler.enable()
    work = receive(given.url, given.transport, given.count)
    if sys.platform == "win32":
        result = asyncio.run(work)
    else:
        import uvloop  # noqa: PLC0415

        result = uvloop.run(work)
    if given.profile:
        profiler.disable()
        profiler.dump_stats(given.profile)
    print(json.dumps({**result, "versions": versions()}))


if __name__ == "__main__":
    main()
