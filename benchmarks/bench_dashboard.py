"""What the terminal dashboard costs a live bot: 10 symbols, 10,000 messages a second.

A second process sends 5,000 trades and 5,000 depth20 frames a second at wall time; the bot runs in its
own process, by turns without and with the dashboard on a pseudo-terminal (120 × 40) that is read, and
with one that nobody reads. Shown: share of one core of each turn; of it the drawing thread's and the
reducer's on the loop (together what the dashboard costs, whatever else the machine does); frames
drawn, the lag of the event loop (a 10 ms timer that fires late; waiting for a busy core is in it),
ids that were missed.

``python -m benchmarks.bench_dashboard [--smoke] [--json FILE] [--seconds S] [--turns N]``
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import structlog

import dashboard.watch
from benchmarks.observed_bot import quantiles, run_queue_wait_s
from benchmarks.paced_exchange import running_exchange, symbol_names
from benchmarks.report import arguments, cores, machine, publish, run_json, versions
from config import Settings
from dashboard.scene import Banner
from dashboard.screen import THREAD_NAME
from dashboard.state import DashboardState, reduce
from dashboard.watch import Terminal, watch
from event_bus import Envelope, EventBus
from market_orchestrator.market_orchestrator import EnhancedMarketBot

SYMBOLS = 10
RATE = 5_000.0  # trades a second; as many depth frames
COLUMNS, ROWS = 120, 40
WARM_UP_S = 6.0
MODES = ("without", "with", "stalled")
_LAG_TICK_S = 0.010


async def observe(port: int, mode: str, seconds: float, folder: Path) -> dict[str, object]:
    """Run the bot for a while; figures of the time after the warm-up."""
    settings = Settings(
        symbols=symbol_names(SYMBOLS),
        binance_ws_url=f"ws://127.0.0.1:{port}",
        binance_rest_url=f"http://127.0.0.1:{port}",
        binance_rate_limit_weight=1_000_000,
        health_check_interval=5,
        data_dir=folder,
    )
    bot = EnhancedMarketBot(settings)
    drawn, lags_s, reduced_s = [0], [], _timed_reducer()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(bot.run())]
    if mode != "without":
        stream = _terminal(is_read=mode == "with")
        tasks.append(asyncio.ensure_future(_shown(bot.bus, stream, drawn)))
    while bot.parts is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(WARM_UP_S)
    process, read = psutil.Process(), _thread_seconds(THREAD_NAME)
    began, cpu, own = time.perf_counter(), process.cpu_times(), read()
    waited_s, frames, before = run_queue_wait_s(), _frames(bot), drawn[0]
    reduced_before_s = reduced_s[0]
    while time.perf_counter() - began < seconds:
        due = time.perf_counter() + _LAG_TICK_S
        await asyncio.sleep(_LAG_TICK_S)
        lags_s.append(time.perf_counter() - due)
    elapsed, after = time.perf_counter() - began, process.cpu_times()
    assert bot.parts is not None
    result = {
        "cpu_share": (after.user + after.system - cpu.user - cpu.system) / elapsed,
        "drawing_thread_share": (read() - own) / elapsed,
        "loop_share": (reduced_s[0] - reduced_before_s) / elapsed,
        "frames_drawn_per_s": (drawn[0] - before) / elapsed,
        "messages_per_s": (_frames(bot) - frames) / elapsed,
        "loop_lag_ms": quantiles([lag * 1e3 for lag in lags_s]),
        "waited_for_core_share": (run_queue_wait_s() - waited_s) / elapsed,
        "missing_ids": bot.parts.flow.validator.statistics()["missing_ids"],
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return result


def _timed_reducer() -> list[float]:
    """Sums the processor time that the dashboard takes of the loop's thread, seconds."""
    spent_s = [0.0]

    def timed(state: DashboardState, batch: Sequence[Envelope]) -> DashboardState:
        began = time.thread_time()
        try:
            return reduce(state, batch)
        finally:
            spent_s[0] += time.thread_time() - began

    dashboard.watch.reduce = timed  # type: ignore[attr-defined]
    return spent_s


async def _shown(bus: EventBus, stream: TextIO, drawn: list[int]) -> None:
    def banner() -> Banner:
        drawn[0] += 1
        return Banner("bench")

    await watch(bus, Terminal(stream=stream, keys=stream, banner=banner, stop=lambda: None))


def _frames(bot: EnhancedMarketBot) -> int:
    assert bot.parts is not None
    return int(bot.parts.flow.statistics()["frames"] or 0)


def _terminal(*, is_read: bool) -> TextIO:
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    if is_read:

        def read() -> None:
            while os.read(ours, 65_536):
                pass

        threading.Thread(target=read, name="reader", daemon=True).start()
    return os.fdopen(theirs, "w", closefd=False)


def _thread_seconds(name: str) -> Callable[[], float]:
    """Reads the processor time of a thread of this process, where the system tells it."""
    found = [t.native_id for t in threading.enumerate() if t.name == name]
    path = Path(f"/proc/self/task/{found[0] if found else 0}/schedstat")

    def read() -> float:
        return int(path.read_text().split()[0]) / 1e9 if path.exists() else 0.0

    return read


def _child() -> None:
    port, mode, seconds = int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        import uvloop  # noqa: PLC0415

        result = uvloop.run(observe(port, mode, seconds, Path(folder)))
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a writer may be stuck in a terminal that nobody reads


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child()
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help="measured time of a turn (default 20)")
    parser.add_argument("--turns", type=int, help="of each mode (default 3)")
    given = parser.parse_args()
    seconds = given.seconds or (4.0 if given.smoke else 20.0)
    turns = given.turns or (1 if given.smoke else 3)
    rate = RATE / 10 if given.smoke else RATE
    bot_core, exchange_core = cores()
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    with running_exchange(SYMBOLS, rate, rate, exchange_core) as port:
        for _ in range(turns):
            for mode in MODES:
                command = [sys.executable, "-m", "benchmarks.bench_dashboard", "--child"]
                command += [str(port), mode, str(seconds)]
                runs[mode].append(run_json(command, bot_core, timeout_s=seconds + 300))
    medians = {
        mode: {name: _median(found, name) for name in found[0] if name != "loop_lag_ms"}
        for mode, found in runs.items()
    }
    result = {
        "benchmark": "dashboard",
        "symbols": SYMBOLS,
        "offered_messages_per_s": 2 * rate,
        "terminal": f"{COLUMNS}x{ROWS}",
        "costs_share_of_a_core": {
            mode: round(medians[mode]["drawing_thread_share"] + medians[mode]["loop_share"], 4)
            for mode in MODES[1:]
        },
        "medians": medians,
        "loop_lag_ms": {
            mode: [run["loop_lag_ms"] for run in found] for mode, found in runs.items()
        },
        "versions": versions(("rich", "uvloop", "msgspec", "numpy")),
        "machine": machine(),
    }
    publish(result, given)


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(run[name] for run in runs), 4)


if __name__ == "__main__":
    main()
