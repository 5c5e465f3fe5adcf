"""How many times faster than real time a recording is replayed, without the interpreter's start.

Each run is a process of its own with an empty data folder: imports are done first, then the clock
runs over the whole verb, from finding the recording's symbols to the last file written. Without a
path a synthetic recording of BTCUSDT and ETHUSDT (trades and 20 levels of depth) is made.

``python -m benchmarks.bench_replay [RECORDING] [--smoke] [--json FILE] [--rounds N]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, cores, machine, publish, run_json, spread, versions

SYMBOLS = ("BTCUSDT", "ETHUSDT")
START_MS = 1_786_171_800_000
_RUN_TIMEOUT_S = 600.0


def write_recording(path: Path, *, minutes: float, seed: int = 7) -> None:
    """Some minutes of the synthetic market, as a recorder would have written them."""
    from simulator.synthetic import SyntheticMarket  # noqa: PLC0415

    end_ns = (START_MS + int(minutes * 60_000)) * 1_000_000
    market = SyntheticMarket(seed, SYMBOLS, start_ms=START_MS)
    with gzip.open(path, "wb", compresslevel=1) as out:
        for chunk in market.chunks():
            for frame in chunk:
                if frame.due_ns >= end_ns:
                    return
                out.write(b"%d %b\n" % (frame.due_ns, frame.combined))


def replay_once(path: Path, folder: Path) -> dict[str, float]:
    """Replay in this process; seconds of market, wall and processor time."""
    import structlog  # noqa: PLC0415

    from config import Settings  # noqa: PLC0415
    from market_orchestrator.market_orchestrator import replay  # noqa: PLC0415

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settings = Settings(data_dir=folder, headless=True)
    began, began_cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        code = asyncio.run(replay(settings, path))
    if code:
        raise RuntimeError(f"replay ended with {code}")
    return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}


def contents(path: Path) -> tuple[int, float]:
    """Frames in a recording, and the seconds from its first to its last."""
    content = path.read_bytes()
    with io.BytesIO(gzip.decompress(content) if path.suffix == ".gz" else content) as lines:
        stamps = [int(stamp) for stamp in (line.split(b" ", 1)[0] for line in lines) if stamp]
    return len(stamps), (max(stamps) - min(stamps)) / 1e9


def measure(path: Path, rounds: int) -> list[dict[str, float]]:
    """Replay ``rounds`` times, each in a new process and an empty folder."""
    runs = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.bench_replay", str(path)]
            command += ["--once", folder]
            runs.append(run_json(command, cores()[0], timeout_s=_RUN_TIMEOUT_S))
        print(f"round {number + 1}: {runs[-1]}", file=sys.stderr)
    return runs


def compare(given: argparse.Namespace, path: Path) -> dict[str, Any]:
    frames, market_s = contents(path)
    rounds = given.rounds or (1 if given.smoke else 5)
    runs = measure(path, rounds)
    return {
        "benchmark": "replay",
        "recording": path.name,
        "frames": frames,
        "market_s": round(market_s, 1),
        "rounds": rounds,
        "times_real_time": spread([market_s / run["wall_s"] for run in runs]),
        "times_real_time_by_cpu": spread([market_s / run["cpu_s"] for run in runs]),
        "frames_per_s": spread([frames / run["wall_s"] for run in runs], 0),
        "versions": versions(),
        "machine": machine(),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, help="replays, each in its own process (default 5)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(replay_once(given.recording, given.once)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.recording and given.recording.resolve()
        if path is None:
            path = Path(folder) / "synthetic.ndjson.gz"
            write_recording(path, minutes=0.5 if given.smoke else 8.0)
        publish(compare(given, path), given)


if __name__ == "__main__":
    main()
