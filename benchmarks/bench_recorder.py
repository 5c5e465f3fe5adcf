"""What the recorder costs at 3,000 depth20 and 5,000 trade frames per second over 300 symbols.

A second process sends them at wall time over the two routes; the recorder runs as ``main.py record``
builds it (journal, self-repair, compaction), in its own process on its own core. Shown: share of one core with all
threads, memory, and the lag of the event loop (a 5 ms timer that fires late), told apart by whether a
flush was under way. ``waited_for_core_share`` tells how busy the machine was: lags contain it.

``python -m benchmarks.bench_recorder [--smoke] [--json FILE] [--seconds S] [--flush-items N]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import psutil
import structlog

from benchmarks.observed_bot import quantiles, run_queue_wait_s
from benchmarks.paced_exchange import running_exchange, symbol_names
from benchmarks.report import arguments, cores, machine, publish, run_json, versions
from binance_api.rest import RestClient, RestSettings
from binance_api.vision import VisionClient
from collectors.recorder import RecorderSettings
from collectors.recorder_run import RecordRun, RecordSettings
from collectors.recording import RecordingSettings, open_folder
from lake.paths import LakePaths
from market_orchestrator.connection.contract import ConnectionSettings

_LAG_TICK_S = 0.005
_MIB = 2**20


class Watch:
    """Lag of the loop and memory of one run."""

    def __init__(self, run: RecordRun) -> None:
        self._recorder = run.recording.recorder
        self.is_on = False
        self.flushing_ms: list[float] = []
        self.other_ms: list[float] = []
        self.rss: list[int] = []

    async def tick(self) -> None:
        """Measure the loop's lag for ever."""
        writing = self._recorder._writing  # noqa: SLF001 - whether a flush is under way
        while True:
            due, was = time.perf_counter() + _LAG_TICK_S, writing.locked()
            await asyncio.sleep(_LAG_TICK_S)
            if self.is_on:
                lags = self.flushing_ms if was or writing.locked() else self.other_ms
                lags.append(1e3 * (time.perf_counter() - due))

    async def sample(self) -> None:
        """Measure memory for ever."""
        process = psutil.Process()
        while True:
            await asyncio.sleep(0.5)
            if self.is_on:
                self.rss.append(process.memory_info().rss)


async def observe(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Record for a warm-up and a measured time."""
    host = f"127.0.0.1:{given.port}"
    rest_settings = RestSettings(base_url=f"http://{host}", weight_limit=1_000_000)
    paths = LakePaths.of(folder)
    async with RestClient(rest_settings) as rest, VisionClient(rest_settings) as archive:
        with open_folder(paths, {"host": host}):
            run = RecordRun(_settings(given), paths, rest, archive)
            return await _measure(run, given)


def _settings(given: argparse.Namespace) -> RecordSettings:
    return RecordSettings(
        recording=RecordingSettings(
            recorder=RecorderSettings(
                symbols=symbol_names(given.symbols), flush_max_items=given.flush_items
            )
        ),
        connection=ConnectionSettings(ws_base=f"ws://127.0.0.1:{given.port}"),
    )


async def _measure(run: RecordRun, given: argparse.Namespace) -> dict[str, object]:
    watch, process = Watch(run), psutil.Process()
    recorder = run.recording.recorder
    tasks = [asyncio.ensure_future(part) for part in (run.run(), watch.tick(), watch.sample())]
    await asyncio.sleep(given.warm_up)
    watch.is_on = True
    before = recorder.statistics()
    began, cpu, waited_s = time.perf_counter(), process.cpu_times(), run_queue_wait_s()
    await asyncio.wait(tasks, timeout=given.seconds, return_when=asyncio.FIRST_COMPLETED)
    seconds, after = time.perf_counter() - began, recorder.statistics()
    used, waited_s = process.cpu_times(), run_queue_wait_s() - waited_s
    watch.is_on = False
    for task in tasks:
        task.cancel()
    ended = (await asyncio.gather(*tasks, return_exceptions=True))[0]
    total = recorder.statistics()
    if isinstance(ended, Exception):
        raise ended
    return {
        "seconds": round(seconds, 2),
        "cpu_share": round((used.user + used.system - cpu.user - cpu.system) / seconds, 4),
        "waited_for_core_share": round(waited_s / seconds, 4),
        "rss_max_mib": round(max(watch.rss) / _MIB, 1),
        "loop_lag_ms": {
            "flushing": quantiles(watch.flushing_ms),
            "otherwise": quantiles(watch.other_ms),
        },
        "flushes": int(after["flushes"] or 0) - int(before["flushes"] or 0),
        "trades_per_s": round((int(after["trades"] or 0) - int(before["trades"] or 0)) / seconds),
        "depth_per_s": round((int(after["depth"] or 0) - int(before["depth"] or 0)) / seconds),
        "lost_frames": int(total["frames"] or 0)
        - int(total["files_trades"] or 0)
        - int(total["files_depth"] or 0),
        "missing_ids": total["missing_ids"],
        "imports_polars_or_pandas": bool({"polars", "pandas"} & set(sys.modules)),
        "versions": versions(),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help="measured time after the warm-up")
    parser.add_argument("--warm-up", type=float, help="seconds before it")
    parser.add_argument("--symbols", type=int, help="default 300")
    parser.add_argument("--flush-items", type=int, default=500_000, help="STREAM_FLUSH_MAX_ITEMS")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)  # the measured process
    given = parser.parse_args()
    given.symbols = given.symbols or (50 if given.smoke else 300)
    given.seconds = given.seconds or (8.0 if given.smoke else 60.0)
    given.warm_up = given.warm_up if given.warm_up is not None else (4.0 if given.smoke else 15.0)
    if given.port is not None:
        _record(given)
        return
    scale = given.symbols / 300
    recorder_core, exchange_core = cores()
    with running_exchange(given.symbols, 5_000 * scale, 3_000 * scale, exchange_core) as port:
        command = [sys.executable, "-m", "benchmarks.bench_recorder", "--port", str(port)]
        for name in ("symbols", "seconds", "warm_up", "flush_items"):
            command += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
        timeout_s = given.warm_up + given.seconds + 300
        run = run_json(command, recorder_core, timeout_s=timeout_s)
    result = {
        "benchmark": "recorder",
        "symbols": given.symbols,
        "flush_items": given.flush_items,
        **run,
        "machine": machine(),
    }
    publish(result, given)


def _record(given: argparse.Namespace) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        if sys.platform == "win32":
            result = asyncio.run(observe(given, Path(folder)))
        else:
            import uvloop  # noqa: PLC0415

            result = uvloop.run(observe(given, Path(folder)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
