"""The live bot in a process of its own, with a watch on it: what ``bench_paced`` and ``bench_latency`` run.

Consumes an exchange's port and a duration; prints one JSON line: processor time, how long it had to
wait for a core (a busy machine shows there, and in every latency), memory, the loop's lag, and for every window how long after its end, and after the frame that closed it, its features
were published. Stamps are taken where the bus publishes and where the socket's batch is stamped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Collection, Sequence
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as main.py, before pyarrow comes

import msgspec
import psutil
import structlog

from benchmarks.paced_exchange import symbol_names
from benchmarks.report import versions
from binance_api.endpoints import Route
from config import Settings
from domain.events import FeaturesEvent, Topic
from domain.flow import Origin
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.market_orchestrator import EnhancedMarketBot

_LAG_TICK_S = 0.010
_MIB = 2**20
_SETTLED_MS = 1_000  # after a window's end every symbol's row is out
_PATIENCE_S = 100.0  # a busy machine takes longer to begin and to publish
_TRADE_TIME = re.compile(rb'"T":(\d+)')


class Watch:
    """Stamps of one run."""

    def __init__(self, bot: EnhancedMarketBot) -> None:
        settings = bot.settings
        self._window_ms = settings.window_duration * 1_000
        self._lateness_ms = settings.window_lateness_ms
        # Arrays: as lists they would grow the bot's memory by 0.4 MiB a minute.
        self.published: dict[int, array[int]] = {}  # window end, ms → wall ns of each publication
        self.complete = 0
        self.closing_ns: dict[int, int] = {}  # window end, ms → receipt of the frame that closed it
        self.lags_s = array("d")
        self.rss: list[int] = []
        self.is_on = False
        publish = bot.bus.publish

        def stamped(topic: Topic, payload: msgspec.Struct) -> int:
            sequence = publish(topic, payload)
            if isinstance(payload, FeaturesEvent) and payload.origin is Origin.LIVE:
                end_ms = payload.row.window_end_ms
                self.published.setdefault(end_ms, array("q")).append(time.time_ns())
                self.complete += payload.row.complete
            return sequence

        bot.bus.publish = stamped  # type: ignore[method-assign]

    def watch_frames(self, flow: MarketFlow) -> None:
        """Note the first trade frame past each window's end and lateness (few symbols only)."""
        take = flow.on_frames
        next_ms = 0

        def noted(
            route: Route, socket_id: int, payloads: Sequence[bytes], stamps: Sequence[int]
        ) -> Collection[str]:
            nonlocal next_ms
            if route is Route.TRADES:
                for payload, stamp in zip(payloads, stamps, strict=True):
                    found = _TRADE_TIME.search(payload)
                    at_ms = int(found[1]) - self._lateness_ms if found else 0
                    if at_ms >= next_ms:
                        end_ms = at_ms - at_ms % self._window_ms
                        self.closing_ns[end_ms] = stamp
                        next_ms = end_ms + self._window_ms
            return take(route, socket_id, payloads, stamps)

        flow.on_frames = noted  # type: ignore[method-assign, assignment]

    async def tick(self) -> None:
        """Measure the loop's lag for ever."""
        while True:
            due = time.perf_counter() + _LAG_TICK_S
            await asyncio.sleep(_LAG_TICK_S)
            if self.is_on:
                self.lags_s.append(time.perf_counter() - due)

    async def sample(self) -> None:
        """Measure memory for ever."""
        process = psutil.Process()
        while True:
            await asyncio.sleep(1.0)
            if self.is_on:
                self.rss.append(process.memory_info().rss)

    async def until_published(self, first_ms: int, run: asyncio.Future[int | None]) -> None:
        """Wait for the rows of a window that ended then or later, or for the end of the run."""
        async with asyncio.timeout(_PATIENCE_S):
            while not run.done():
                settled_ms = time.time_ns() // 1_000_000 - _SETTLED_MS
                if any(first_ms <= end_ms < settled_ms for end_ms in self.published):
                    return
                await asyncio.sleep(0.05)

    def after_end_ms(self, ends: Collection[int]) -> list[float]:
        """Milliseconds from a window's end plus lateness to its publication, of every window."""
        return [
            stamp / 1e6 - end_ms - self._lateness_ms
            for end_ms in ends
            for stamp in self.published.get(end_ms, ())
        ]

    def after_closing_frame_ms(self, ends: Collection[int]) -> list[float]:
        """Milliseconds from the receipt of the frame that closed a window to its publication."""
        return [
            (stamp - self.closing_ns[end_ms]) / 1e6
            for end_ms in ends
            if end_ms in self.closing_ns
            for stamp in self.published.get(end_ms, ())
        ]


async def observe(
    port: int,
    symbols: tuple[str, ...],
    folder: Path,
    *,
    warm_up_s: float,
    seconds: float,
    is_raw: bool,
) -> dict[str, object]:
    """Run the bot for a warm-up and a measured time; ``is_raw`` adds every window's figure."""
    settings = Settings(
        symbols=symbols,
        binance_ws_url=f"ws://127.0.0.1:{port}",
        binance_rest_url=f"http://127.0.0.1:{port}",
        binance_rate_limit_weight=1_000_000,
        data_dir=folder,
        headless=True,
    )
    bot = EnhancedMarketBot(settings)
    watch = Watch(bot)
    process = psutil.Process()
    window_ms = settings.window_duration * 1_000
    tasks = [asyncio.ensure_future(part) for part in (bot.run(), watch.tick(), watch.sample())]
    while bot.parts is None:
        await asyncio.sleep(0.01)
    if len(symbols) == 1:
        watch.watch_frames(bot.parts.flow)
    await asyncio.sleep(warm_up_s)
    await watch.until_published(0, tasks[0])
    watch.is_on = True
    first_ms = time.time_ns() // 1_000_000
    began, began_cpu, began_wait = time.perf_counter(), process.cpu_times(), run_queue_wait_s()
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    await watch.until_published(first_ms, tasks[0])
    elapsed, cpu = time.perf_counter() - began, process.cpu_times()
    waited_s = run_queue_wait_s() - began_wait
    watch.is_on = False
    last_ms = time.time_ns() // 1_000_000
    if bot.parts is None:
        await tasks[0]  # it ended: say why
        raise RuntimeError("the bot ended early")
    flow, validator = bot.parts.flow.statistics(), bot.parts.flow.validator.statistics()
    outputs = bot.parts.outputs.statistics()
    for task in tasks:
        task.cancel()
    ended = (await asyncio.gather(*tasks, return_exceptions=True))[0]
    stop_s = time.perf_counter() - began - elapsed
    first_end = -(-first_ms // window_ms) * window_ms
    ends = range(first_end, last_ms - _SETTLED_MS, window_ms)
    counts = [len(watch.published.get(end, ())) for end in ends]
    per_boundary = [max(watch.after_end_ms([end])) for end in ends if end in watch.published]
    if not sum(counts):
        raise RuntimeError(f"no window was published; flow: {flow}")
    closing = watch.after_closing_frame_ms(ends)
    raw = {"boundaries_ms": [[round(ms, 3) for ms in watch.after_end_ms([e])] for e in ends]}
    return {
        **(raw if is_raw else {}),
        "seconds": elapsed,
        "cpu_share": (cpu.user + cpu.system - began_cpu.user - began_cpu.system) / elapsed,
        "cpu_user_share": (cpu.user - began_cpu.user) / elapsed,
        "waited_for_core_share": waited_s / elapsed,
        "rss_mib": {
            "first": watch.rss[0] / _MIB,
            "last": watch.rss[-1] / _MIB,
            "max": max(watch.rss) / _MIB,
            "by_10_s": [round(rss / _MIB, 1) for rss in watch.rss[::10]],
            "growth_per_min_in_second_half": _slope(watch.rss[len(watch.rss) // 2 :]) * 60 / _MIB,
        },
        "boundaries": len(counts),
        "windows_per_boundary": {"low": min(counts), "high": max(counts)},
        "window_ms": quantiles(watch.after_end_ms(ends)),
        "boundary_ms": quantiles(per_boundary),
        "after_closing_frame_ms": quantiles(closing) if closing else None,
        "loop_lag_ms": quantiles([lag * 1e3 for lag in watch.lags_s]),
        "frames": flow["frames"],
        "rejected": flow["rejected"],
        "missing_ids": validator["missing_ids"],
        "rows": outputs["rows"],
        "revised_rows": outputs["revised_rows"],
        "stop_s": round(stop_s, 3),
        "stop_error": str(ended) if isinstance(ended, Exception) else None,
        "imports_polars_or_pandas": bool({"polars", "pandas"} & set(sys.modules)),
        "versions": versions(),
    }


def run_queue_wait_s() -> float:
    """Seconds the main thread was ready to run but had no core; 0 where that is not known."""
    try:
        fields = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    return int(fields[1]) / 1e9


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p99", "max"), round(values[0], 3)) if values else {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3), "max": round(max(values), 3)}


def _slope(values: Sequence[float]) -> float:
    """Least-squares growth per sample; samples are a second apart."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--symbols", type=int, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--raw", action="store_true", help="every window's figure too")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        work = observe(
            given.port,
            symbol_names(given.symbols),
            Path(folder),
            warm_up_s=given.warm_up,
            seconds=given.seconds,
            is_raw=given.raw,
        )
        if sys.platform == "win32":
            result = asyncio.run(work)
        else:
            import uvloop  # noqa: PLC0415

            result = uvloop.run(work)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
