"""Scoring a month of signals by the recorded trades of a busy symbol: time, and memory by days.

Days of 1.5 million trades each, as the recorder and its merges leave them, and a signal a minute with a
horizon of a minute. ``python main.py signals`` scores them (report, intervals and base rates included);
``pandas`` reads the same files and joins entries and exits alone (``merge_asof``), a day at a time and
all at once. Each run is a process of its own, in turn; medians over the rounds.

``python -m benchmarks.bench_signals [--smoke] [--json FILE] [--rounds N] [--days N] [--rows N]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_lake_read import START_MS, SYMBOL, day_of_trades
from benchmarks.report import ROOT, arguments, machine, publish, versions
from domain.events import Action, Signal
from lake.paths import DAY_MS, LakePaths
from lake.signal_store import signal_store
from lake.stream_files import trade_table, write_stream_file

HORIZON_S = 60
WINDOW_MS = 5_000
WAYS = ("product", "pandas by day", "pandas at once")


def write_lake(folder: Path, days: int, rows: int) -> None:
    """The same day again and again, its ids and times going on."""
    day = day_of_trades(rows)
    signals = signal_store(folder / "signals")
    for number in range(days):
        table = trade_table(day, [SYMBOL], "stream")
        write_stream_file(LakePaths.of(folder), "trades", table, metadata={})
        start_ms = START_MS + number * DAY_MS
        signals.write_batch(_signal(start_ms + k * 60_000 + WINDOW_MS, k) for k in range(1_440))
        day["agg_trade_id"] += rows
        day["transact_time_ms"] += DAY_MS


def _signal(end_ms: int, number: int) -> Signal:
    return Signal(
        signal_id=f"rules:{SYMBOL}:{end_ms}",
        symbol=SYMBOL,
        window_end_ms=end_ms,
        decided_at_ms=end_ms + 300,
        price=None,
        action=Action.BUY if number % 2 else Action.SELL,
        confidence=0.6,
        horizon_s=HORIZON_S,
        rationale="",
        evidence={},
        source="rules",
        invalidation=None,
    )


def run_one(way: str, folder: Path) -> None:
    """Score all signals one way; prints seconds and the peak of memory."""
    began = time.perf_counter()
    if way == "product":
        import main  # noqa: PLC0415 - what a user starts

        main.main(["signals", "--data-dir", str(folder), "--json", str(folder / "report.json")])
        scored = json.loads((folder / "report.json").read_text())["priced_by"]["trades"]
    else:
        scored = _joined(folder, at_once=way == "pandas at once")
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "scored": scored}))


def peak_mib() -> float:
    """Of this program alone: the system's count of a process remembers whose fork it was."""
    (line,) = (t for t in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in t)
    return int(line.split()[1]) / 1024


def _joined(folder: Path, *, at_once: bool) -> int:
    """Entries and exits by ``merge_asof``; signals near a day's end lack theirs day by day."""
    import pandas as pd  # noqa: PLC0415 - the peer's own process

    signals = pd.read_parquet(folder / "signals", columns=["decided_at_ms"]).sort_values(
        "decided_at_ms"
    )
    dates = sorted((folder / "raw/stream/trades").iterdir())
    columns = ["transact_time_ms", "price"]
    groups = [folder / "raw/stream/trades"] if at_once else dates
    scored = 0
    for group in groups:
        trades = pd.read_parquet(group, columns=columns).sort_values("transact_time_ms")
        trades["entry_ms"] = trades["transact_time_ms"]
        first, last = trades["entry_ms"].iloc[[0, -1]]
        own = signals[signals["decided_at_ms"].between(first, last)]
        entries = pd.merge_asof(
            own, trades, left_on="decided_at_ms", right_on="transact_time_ms", direction="forward"
        )
        entries["due_ms"] = entries["entry_ms"] + HORIZON_S * 1_000
        exits = pd.merge_asof(
            entries[["due_ms", "price"]],
            trades,
            left_on="due_ms",
            right_on="transact_time_ms",
            suffixes=("_in", "_out"),
        )
        scored += int((exits["due_ms"] < last).sum())
    return scored


def measured(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_signals", "--one", way, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = given.rows or (100_000 if given.smoke else 1_500_000)
    days = given.days or (2 if given.smoke else 30)
    rounds = given.rounds or (1 if given.smoke else 3)
    sizes = {count: folder / str(count) for count in (max(1, days // 5), days)}
    for count, place in sizes.items():
        write_lake(place, count, rows)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for count, place in sizes.items():
            for way in WAYS:
                runs.setdefault(f"{way}, {count} days", []).append(measured(way, place))
    return {
        "benchmark": "signals",
        "trades_a_day": rows,
        "rounds": rounds,
        "medians": {
            name: {key: round(statistics.median(r[key] for r in found), 2) for key in found[0]}
            for name, found in runs.items()
        },
        "versions": {**versions(), **versions(("pandas",))},
        "machine": machine(),
    }


def start() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="runs of each way, default 3")
    parser.add_argument("--days", type=int, help="of trades and signals, default 30")
    parser.add_argument("--rows", type=int, help="trades a day, default 1.5 million")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one[0], Path(given.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        publish(compare(given, Path(folder)), given)


if __name__ == "__main__":
    start()
