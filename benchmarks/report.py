"""What every benchmark shares at its two ends: ``--smoke``, ``--json``, and how results are shown.

Consumes rates of single runs, produces one JSON object with medians, versions and machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("aiohttp", "picows", "uvloop", "msgspec", "numpy", "pyarrow")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--smoke", action="store_true", help="a short run: shows that it works")
    return parser


def versions(names: Sequence[str] = PRODUCT) -> dict[str, str]:
    """Versions of installed distributions, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | list[float] | None]:
    """Where the figures were measured, and how busy it was."""
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": load,
    }


def publish(result: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Print a result, and write it where ``--json`` says."""
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, lowest and highest of some runs."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


@contextlib.contextmanager
def process(command: Sequence[str], core: int | None) -> Iterator[subprocess.Popen[str]]:
    """A child process on one core with all its threads, ended at the end of a ``with``."""
    with _pinned(core):
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def run_json(command: Sequence[str], core: int | None, *, timeout_s: float) -> dict[str, Any]:
    """Run a child to its end; the last line it prints is its result."""
    with process(command, core) as child:
        out, err = child.communicate(timeout=timeout_s)
    if child.returncode or not out:
        raise RuntimeError(f"{' '.join(command)}: exit {child.returncode}\n{err[-2_000:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Children started inside inherit the core, threads of their libraries included."""
    if core is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores() -> tuple[int | None, int | None]:
    """A core for the receiver and one for the sender; ``None`` where there are not two."""
    if sys.platform != "linux":
        return None, None
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {platform.machine()}"
    except OSError:
        pass
    return platform.processor() or platform.machine()
