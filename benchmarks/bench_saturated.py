"""How many aggTrade frames per second one core takes, from the socket to closed windows with all metrics.

A sender process pushes pre-framed BTC frames over loopback as fast as the receiver reads. Ours runs
``RobustConnectionManager`` → ``MarketFlow`` → ``FlowMetrics`` and feature row of every closed window,
on each transport; cryptofeed and python-binance merely deliver the trades to a callback or reader.
Receiver and sender have a core each; all sides run in turn, in the same call, medians are shown.
``frames_per_s`` is wall time and suffers from whatever else the machine does; ``frames_per_cpu_s``
divides by the receiver's own processor time, kernel included.

``python -m benchmarks.bench_saturated [--smoke] [--json FILE] [--count N] [--rounds N]``
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.loopback import running_sender, write_trades
from benchmarks.report import ROOT, arguments, cores, machine, publish, run_json, spread, versions

PEERS_PYTHON = ROOT / ".venv-bench" / ("Scripts" if os.name == "nt" else "bin") / "python"
PEERS = ("cryptofeed", "python_binance")
TRANSPORTS = ("picows", "aiohttp")
_RUN_TIMEOUT_S = 300.0


def sides() -> dict[str, list[str]]:
    """Name → command of everything that can be measured here."""
    found = {
        f"ours on {name}": [
            sys.executable, "-m", "benchmarks.receive_trades", "--transport", name,
        ]
        for name in TRANSPORTS
    }  # fmt: skip
    if PEERS_PYTHON.exists():
        for name in PEERS:
            found[name] = [str(PEERS_PYTHON), "-m", f"benchmarks.peers.{name}_trades"]
    else:
        print(f"no peers: {PEERS_PYTHON} is absent (make bench-setup)", file=sys.stderr)
    return found


def receive(command: list[str], port: int, count: int, core: int | None) -> dict[str, Any]:
    """One run of one side in a process of its own."""
    command = [*command, "--url", f"ws://127.0.0.1:{port}", "--count", str(count)]
    return run_json(command, core, timeout_s=_RUN_TIMEOUT_S)


def measure(count: int, rounds: int, trades_per_s: float) -> dict[str, list[dict[str, Any]]]:
    """All sides in turn, ``rounds`` times."""
    commands = sides()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    receiver_core, sender_core = cores()
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames.bin"
        write_trades(frames, count, trades_per_s=trades_per_s)
        with running_sender(frames, sender_core) as port:
            for number in range(rounds):
                for name, command in commands.items():
                    run = receive(command, port, count, receiver_core)
                    runs[name].append(run)
                    print(
                        f"round {number + 1}: {name}: {run['frames_per_s']:,.0f}/s, "
                        f"{run['frames_per_cpu_s']:,.0f} per CPU second",
                        file=sys.stderr,
                    )
    return runs


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and how many times the peers' rates ours are."""
    result: dict[str, Any] = {"sides": {}, "ratios": {}}
    medians: dict[str, dict[str, float]] = {}
    for name, all_runs in runs.items():
        shown: dict[str, Any] = {}
        medians[name] = {}
        for key in ("frames_per_s", "frames_per_cpu_s"):
            values = [run[key] for run in all_runs]
            shown[key] = spread(values, 0)
            medians[name][key] = statistics.median(values)
        last = all_runs[-1]
        shown["versions"] = last["versions"]
        shown |= {key: last[key] for key in ("windows", "batches") if key in last}
        result["sides"][name] = shown
    for ours in (name for name in runs if name.startswith("ours")):
        for peer in (name for name in runs if not name.startswith("ours")):
            result["ratios"][f"{ours} / {peer}"] = {
                key: round(medians[ours][key] / medians[peer][key], 2) for key in medians[ours]
            }
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, help="frames per run (default 400,000)")
    parser.add_argument("--rounds", type=int, help="runs of each side (default 5)")
    parser.add_argument(
        "--market-rate",
        type=float,
        default=2_000.0,
        help="trades per second of market time: decides how many windows there are (default 2,000)",
    )
    given = parser.parse_args()
    count = given.count or (40_000 if given.smoke else 400_000)
    rounds = given.rounds or (1 if given.smoke else 5)
    runs = measure(count, rounds, given.market_rate)
    result = {
        "benchmark": "saturated",
        "frames": count,
        "rounds": rounds,
        "market_trades_per_s": given.market_rate,
        **summary(runs),
        "versions": versions(),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
