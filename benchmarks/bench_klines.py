"""Paginated 1m klines over loopback, parsing into exact types included: our REST client and its peers.

A server in a process of its own cuts pages from rows made beforehand. Every client is a process on
the other core, in turn; each ends with numpy arrays (int64 times, float64 nearest doubles), and the
sums of the closes must agree. ccxt keeps 6 of the 11 columns. "as the connector" asks for six pages
at once; all others for one page after the other.

``python -m benchmarks.bench_klines [--smoke] [--json FILE] [--rounds N] [--rows N]``
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from benchmarks.kline_exchange import START_MS
from benchmarks.report import (
    ROOT,
    arguments,
    cores,
    machine,
    process,
    publish,
    run_json,
    spread,
    versions,
)

PAGE_ROWS = 1_000
RATES = ("rows_per_s", "rows_per_cpu_s")
PEERS = {"ccxt": "ccxt_klines", "python-binance": "python_binance_klines"}


def peer_python() -> str | None:
    """The environment of ``make bench-setup``, if there is one."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    found = ROOT / ".venv-bench" / folder / "python"
    return str(found) if found.exists() else None


def commands(port: int, rows: int) -> dict[str, list[str]]:
    size = ["--port", str(port), "--count", str(rows), "--limit", str(PAGE_ROWS)]
    ours = [sys.executable, "-m", "benchmarks.receive_klines", *size]
    found = {"orderflow": ours, "orderflow, as the connector": [*ours, "--concurrent"]}
    python = peer_python()
    if python is not None:
        for name, module in PEERS.items():
            script = str(ROOT / "benchmarks" / "peers" / f"{module}.py")
            found[name] = [python, script, *size, "--start", str(START_MS)]
    return found


def ratios(runs: dict[str, list[dict[str, Any]]], rate: str) -> dict[str, float]:
    """Our medians over the peers'."""
    medians = {n: statistics.median(run[rate] for run in found) for n, found in runs.items()}
    return {
        f"{ours} / {peer}": round(medians[ours] / medians[peer], 2)
        for ours in runs
        for peer in PEERS
        if peer in medians and ours not in PEERS
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="runs of each client, default 5")
    parser.add_argument("--rows", type=int, help="klines per run, default 200,000")
    given = parser.parse_args()
    rows = given.rows or (10_000 if given.smoke else 200_000)
    rounds = given.rounds or (1 if given.smoke else 5)
    client_core, server_core = cores()
    runs: dict[str, list[dict[str, Any]]] = {}
    with process(
        [sys.executable, "-m", "benchmarks.kline_exchange", str(rows)], server_core
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for _ in range(rounds):
            for name, command in commands(port, rows).items():
                runs.setdefault(name, []).append(run_json(command, client_core, timeout_s=300))
    if (
        len({(run["rows"], round(run["close_sum"], 3)) for found in runs.values() for run in found})
        > 1
    ):
        raise RuntimeError("the clients do not agree about the rows")
    result = {
        "benchmark": "klines",
        "rows": rows,
        "rows_per_page": PAGE_ROWS,
        "rounds": rounds,
        **{
            rate: {n: spread([r[rate] for r in found], 0) for n, found in runs.items()}
            for rate in RATES
        },
        "times_as_fast": {rate: ratios(runs, rate) for rate in RATES},
        "versions": {**versions(), **{n: f[0]["versions"] for n, f in runs.items() if n in PEERS}},
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
