"""A month of aggTrades out of its archive: 10 million rows from zip to sorted, verified Parquet.

``ours`` is ``lake.month_build.build_month`` after comparing the archive's SHA-256; ``pandas`` does the
same with its C reader: checksum, read, sort, drop duplicates, check the order, write zstd Parquet.
Each run is a process of its own, in turn; its time begins after its imports, its peak memory is the
operating system's. Both results are compared row by row.

With ``--rows`` one run of ours alone, for its memory: at 100 million the peer needs more than a machine has.

    python -m benchmarks.bench_history [--smoke] [--rows N] [--json FILE]
"""
# ruff: noqa: PLC0415 - a contestant's process imports its own library alone

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report

ROWS = 10_000_000
SMOKE_ROWS = 300_000
PIECE_ROWS = 10_000_000
RUNS = 5
MONTH = "2024-07"
START_MS = 1_719_792_000_000
MONTH_MS = 31 * 86_400_000
SPEED_TARGET = 1.8
MEMORY_TARGET_MIB = 600
LARGE_TARGET_MIB = 1_024  # whatever the rows
TIMEOUT_S = 600.0


def make_archive(path: Path, count: int) -> None:
    """Trades shaped like BTCUSDT's: ids and times rise, prices walk by ticks, sizes are log-normal."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pcsv

    source = np.random.default_rng(7)
    trade_id, price = 8_000_000_000, 64_000.0
    options: Any = {"quoting_header": "none"}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"BTCUSDT-aggTrades-{MONTH}.csv", "w", force_zip64=True) as member,
    ):
        for start in range(0, count, PIECE_ROWS):
            rows = min(PIECE_ROWS, count - start)
            begin_ms, end_ms = (MONTH_MS * n // count for n in (start, start + rows))
            steps = source.integers(-3, 4, rows) * (source.random(rows) < 0.3)
            prices = np.round(np.maximum(price + np.cumsum(steps) * 0.1, 1.0), 1)
            first = trade_id + np.cumsum(source.integers(1, 4, rows))
            columns: dict[str, Any] = {
                "agg_trade_id": 3_000_000_000 + start + np.arange(rows),
                "price": prices,
                "quantity": np.round(np.exp(source.normal(-3.5, 1.5, rows)) + 0.001, 3),
                "first_trade_id": first,
                "last_trade_id": np.append(first[1:] - 1, first[-1]),
                "transact_time": START_MS + np.sort(source.integers(begin_ms, end_ms, rows)),
                "is_buyer_maker": source.random(rows) < 0.5,
            }
            price, trade_id = float(prices[-1]), int(first[-1])
            options["include_header"] = start == 0
            pcsv.write_csv(pa.table(columns), member, pcsv.WriteOptions(**options))


def run_ours(archive: Path, sha256: str, folder: Path) -> Path:
    """The product's way."""
    from lake.month_build import ArchiveSource, Month, build_month
    from lake.paths import LakePaths

    paths = LakePaths.of(folder)
    source = ArchiveSource(path=archive, period=MONTH, url=archive.name, sha256=sha256)
    month = Month(symbol="BTCUSDT", kind="aggTrades", month=MONTH)

    def work() -> Path:
        check(archive, sha256)
        about = build_month(paths, month, [source], work=folder / "work")
        assert about.is_complete
        return paths.historical("BTCUSDT") / f"aggTrades_{MONTH}.parquet"

    return timed(work)


def run_pandas(archive: Path, sha256: str, folder: Path) -> Path:
    """The same with pandas."""
    import pandas as pd

    def work() -> Path:
        check(archive, sha256)
        frame = pd.read_csv(archive, engine="c")
        frame = frame.sort_values("agg_trade_id", kind="stable").drop_duplicates("agg_trade_id")
        assert frame["agg_trade_id"].is_monotonic_increasing
        frame = frame.rename(columns={"transact_time": "transact_time_ms"})
        path = folder / "pandas.parquet"
        frame.to_parquet(path, compression="zstd", index=False)
        return path

    return timed(work)


def check(archive: Path, sha256: str) -> None:
    with archive.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256


def timed(work: Callable[[], Path]) -> Path:
    """Run, print what it took as one line of JSON."""
    began = time.perf_counter()
    path = work()
    seconds = time.perf_counter() - began
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak_kib / (1024 if sys.platform != "darwin" else 1024**2)
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "bytes": path.stat().st_size}))
    return path


CONTESTANTS = {"ours": run_ours, "pandas": run_pandas}


def compare(folder: Path) -> None:
    import polars as pl

    ours = pl.read_parquet(folder / f"ours/raw/historical/BTCUSDT/aggTrades_{MONTH}.parquet")
    theirs = pl.read_parquet(folder / "pandas/pandas.parquet")
    assert ours.equals(theirs.select(ours.columns)), "the results differ"


def measure(
    folder: Path, archive: Path, runs: int, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.bench_history", "--run", name]
            command += [str(archive), sha256, str(folder / name)]
            found[name].append(report.run_json(command, None, timeout_s=TIMEOUT_S))
    if "pandas" in names:
        compare(folder)
    return {
        name: {
            "seconds": report.spread([run["seconds"] for run in results], 2),
            "peak_mib": report.spread([run["peak_mib"] for run in results], 0),
            "file_bytes": results[0]["bytes"],
        }
        for name, results in found.items()
    }


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--rows", type=int, help="one run of ours alone, of so many rows")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make_archive(Path(given.make[0]), int(given.make[1]))
        return
    if given.run:
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as main does
        name, archive, sha256, folder = given.run
        CONTESTANTS[name](Path(archive), sha256, Path(folder))
        return
    count = given.rows or (SMOKE_ROWS if given.smoke else ROWS)
    runs = 1 if given.rows or given.smoke else RUNS
    names = ("ours",) if given.rows else tuple(CONTESTANTS)
    with tempfile.TemporaryDirectory() as text:
        archive = Path(text) / f"BTCUSDT-aggTrades-{MONTH}.zip"
        # Not in this process: children would count its memory as theirs (Linux keeps it over exec).
        made = [sys.executable, "-m", "benchmarks.bench_history"]
        made += ["--make", str(archive), str(count)]
        subprocess.run(made, cwd=report.ROOT, check=True, timeout=TIMEOUT_S)
        results = measure(Path(text), archive, runs, names)
        size = archive.stat().st_size
    result = {
        "benchmark": "history",
        "rows": count,
        "archive_bytes": size,
        "runs": runs,
        **results,
        **judged(results),
        "versions": report.versions((*report.PRODUCT, "isal", "pandas")),
        "machine": report.machine(),
    }
    report.publish(result, given)


def judged(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Beside the targets."""
    peak_mib = results["ours"]["peak_mib"]["high"]
    if "pandas" not in results:
        return {"target_peak_mib": LARGE_TARGET_MIB, "meets_targets": peak_mib <= LARGE_TARGET_MIB}
    ratio = results["pandas"]["seconds"]["median"] / results["ours"]["seconds"]["median"]
    return {
        "times_faster": round(ratio, 2),
        "target_times_faster": SPEED_TARGET,
        "target_peak_mib": MEMORY_TARGET_MIB,
        "meets_targets": ratio >= SPEED_TARGET and peak_mib <= MEMORY_TARGET_MIB,
    }


if __name__ == "__main__":
    main()
