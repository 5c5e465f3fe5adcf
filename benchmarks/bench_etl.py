"""How long a day takes from the lake to features, images and quotes, and what two workers gain.

A synthetic day of BTCUSDT (1.5 million trades, 864,000 books of 20 levels, in stream files of an hour)
is built in a process of its own: seconds, and the most memory it held. Then sixteen symbol-days of
an hour of market each are built with one worker on one core and with two on two, the start of the worker
processes included; beside it, what a second process gains on bare arithmetic here. Those days are an hour long only to keep the benchmark short.

``python -m benchmarks.bench_etl [--smoke] [--json FILE] [--rounds N]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, cores, machine, publish, run_json, spread, versions

START_MS = 1_721_260_800_000  # 2024-07-18, midnight
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
TRADES_PER_S = 1_500_000 / 86_400
SYMBOL_DAYS = 16
_RUN_TIMEOUT_S = 900.0


def write_market(folder: Path, start_ms: int, span_ms: int, seed: int) -> None:
    """Trades and books in files of an hour at most."""
    from lake.paths import LakePaths  # noqa: PLC0415
    from tests.book_days import Walk  # noqa: PLC0415

    for number, first_ms in enumerate(range(start_ms, start_ms + span_ms, HOUR_MS)):
        stop_ms = min(first_ms + HOUR_MS, start_ms + span_ms)
        walk = Walk(first_ms, stop_ms, seed=seed + number, trades_per_s=TRADES_PER_S)
        walk.write(LakePaths.of(folder))


def build(folder: Path, workers: int, days: int) -> dict[str, float]:
    """Build in this process or its workers: seconds, and MiB of the largest process."""
    from domain.market import Market  # noqa: PLC0415
    from domain.model_card import ImageGeometry  # noqa: PLC0415
    from lake.part_files import date_of  # noqa: PLC0415
    from research.build import BuildSettings, plan, run_here  # noqa: PLC0415
    from research.day_task import BUILT  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as out:
        settings = BuildSettings(
            lake=str(folder),
            out=out,
            market=Market.UM,
            symbols=("BTCUSDT",),
            dates=tuple(date_of(START_MS + n * DAY_MS) for n in range(days)),
            window_ms=5_000,
            geometry=ImageGeometry(),
        )
        tasks = plan(settings)
        began = time.perf_counter()
        reports = list(run_here(tasks, workers))
        wall_s = time.perf_counter() - began
    if len(reports) != days or any(report.status != BUILT for report in reports):
        raise RuntimeError(f"not all days were built: {reports}")
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "wall_s": wall_s,
        "peak_mib": max(own, children),
        "valid": sum(r.valid for r in reports),
    }


def measure(folder: Path, workers: int, days: int) -> dict[str, float]:
    """Build in a new process; one worker has one core, but a day alone has all."""
    command = [sys.executable, "-m", "benchmarks.bench_etl", "--once", str(folder)]
    command += ["--workers", str(workers), "--days", str(days)]
    core = cores()[0] if workers == 1 and days > 1 else None
    found: dict[str, float] = run_json(command, core, timeout_s=_RUN_TIMEOUT_S)
    print(f"{days} days, {workers} workers: {found}", file=sys.stderr)
    return found


def _spin(count: int) -> float:
    """Arithmetic that needs nothing but a core."""
    import numpy as np  # noqa: PLC0415

    values = np.linspace(0.1, 1.0, 10_000)
    for _ in range(count):
        values = np.sqrt(values * values + 1e-9)
    return float(values[0])


def machine_speed_up(count: int) -> float:
    """What a second process can gain here at all: twice the work of one, done by two."""
    walls = []
    for workers in (1, 2):
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(_spin, [1] * workers)  # the imports
            began = time.perf_counter()
            pool.map(_spin, [count] * workers, chunksize=1)
            walls.append(time.perf_counter() - began)
    return 2.0 * walls[0] / walls[1]


def run(given: argparse.Namespace) -> dict[str, Any]:
    span_ms, days = (600_000, 4) if given.smoke else (DAY_MS, SYMBOL_DAYS)
    short_ms = 300_000 if given.smoke else HOUR_MS
    rounds = 1 if given.smoke else given.rounds
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as short:
        write_market(Path(whole), START_MS, span_ms, seed=1)
        one_day = [measure(Path(whole), 1, 1) for _ in range(rounds)]
        for number in range(days):
            write_market(Path(short), START_MS + number * DAY_MS, short_ms, seed=100 * number)
        single, double, ceiling = [], [], []
        for _ in range(rounds):  # in turn
            single.append(measure(Path(short), 1, days)["wall_s"])
            double.append(measure(Path(short), 2, days)["wall_s"])
            ceiling.append(machine_speed_up(10_000 if given.smoke else 300_000))
    return {
        "benchmark": "etl",
        "market_s_of_the_day": span_ms // 1_000,
        "day_s": spread([found["wall_s"] for found in one_day]),
        "day_peak_mib": round(max(found["peak_mib"] for found in one_day)),
        "day_valid_windows": one_day[0]["valid"],
        "symbol_days": days,
        "market_s_of_each": short_ms // 1_000,
        "one_worker_s": spread(single),
        "two_workers_s": spread(double),
        "speed_up": round(statistics.median(single) / statistics.median(double), 2),
        "speed_up_of_bare_arithmetic": round(statistics.median(ceiling), 2),
        "versions": versions(),
        "machine": {**machine(), "cores_used": list(cores())},
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--days", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once is not None:
        print(json.dumps(build(given.once, given.workers, given.days)))
        return
    publish(run(given), given)


if __name__ == "__main__":
    main()
