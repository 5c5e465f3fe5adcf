"""Whether models find what is planted, and nothing where nothing is: the chain from lake to verdict.

For every seed a random walk (edge 0) and the same walk with a pattern planted into its book are written
as recorded days; features and images are built, each preset is trained, exported and judged, all by the
product's own verbs in this process. Told are macro-F1 with intervals, the gain over each baseline, the
price's move after calls, verdicts, and seconds per stage, on one core. The model has never seen the
test day.

``python -m benchmarks.bench_model_chain [--smoke] [--json FILE] [--seeds N] [--edges X,Y] [--presets A,B]``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import PRODUCT, arguments, machine, publish, spread, versions

SYMBOL = "BTCUSDT"
FIRST_DATE = "2026-01-01"
HORIZON_S, SMOOTHING_S = 10, 1
LIBRARIES = (*PRODUCT, "torch", "onnxruntime", "scikit-learn")


class Stages:
    """Seconds of each stage, of all rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - began_s)


def verb(*given: str) -> str:
    """Run a verb of the product; what it printed."""
    from main import main  # noqa: PLC0415

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*given, "--log-level", "ERROR"])
    if code:
        raise RuntimeError(f"{' '.join(given)} ended with {code}")
    return printed.getvalue()


def make(folder: Path, seed: int, edge: float, given: argparse.Namespace, stages: Stages) -> None:
    """Days of one market and the dataset of them."""
    from lake.paths import LakePaths  # noqa: PLC0415
    from research.presets import preset_of  # noqa: PLC0415
    from research.synthetic_days import DaysWanted, write_days  # noqa: PLC0415

    wanted = DaysWanted(
        symbols=(SYMBOL,),
        first_date=FIRST_DATE,
        days=given.days,
        hours=given.hours,
        seed=seed,
        planted_edge=edge,
    )
    with stages.timing("synthetic days"):
        list(write_days(LakePaths.of(folder), wanted))
    flags = [] if any(preset_of(name).takes_image for name in given.presets) else ["--no-images"]
    with stages.timing("features build"):
        verb(
            *("features", "build", "--data-dir", str(folder), "--symbol", SYMBOL, *flags),
            *("--from", wanted.dates[0], "--to", wanted.dates[-1], "--workers", "1"),
        )


def judge(folder: Path, preset: str, given: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Train, export and evaluate one preset."""
    train = ["train", "--data-dir", str(folder), "--preset", preset, "--device", "cpu"]
    train += ["--horizon", str(HORIZON_S), "--smoothing", str(SMOOTHING_S)]
    if given.smoke:
        train += ["--epochs", "1"]
    with stages.timing(f"train {preset}"):
        verb(*train)
    model = folder / "models" / f"{preset}-{HORIZON_S}s"
    with stages.timing("evaluate"):
        told = verb("evaluate", "--data-dir", str(folder), "--model", str(model), "--json")
    found = json.loads(told)
    return {
        "samples": found["scores"]["samples"],
        "macro_f1": interval(found["scores"]["macro_f1"]),
        "baselines_macro_f1": {
            b["name"]: interval(b["scores"]["macro_f1"]) for b in found["baselines"]
        },
        "macro_f1_gain": {b["name"]: interval(b["macro_f1_gain"]) for b in found["baselines"]},
        "mcc": interval(found["scores"]["mcc"]),
        "timing_bps": interval(found["money"]["timing_bps"]),
        "has_skill": found["has_skill"],
        "is_better": found["is_better"],
        "verdict": found["verdict"],
    }


def interval(estimate: dict[str, float | None] | None) -> list[float | None]:
    """Value, low and high."""
    if estimate is None:
        return []
    numbers = (estimate["value"], estimate["low"], estimate["high"])
    return [None if number is None else round(number, 4) for number in numbers]


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one edge and preset over all seeds."""
    values = {name: [found[name][0] for found in rounds] for name in ("macro_f1", "mcc")}
    values["timing_bps"] = [found["timing_bps"][0] for found in rounds]
    return {
        "seeds": len(rounds),
        "with_skill": sum(found["has_skill"] for found in rounds),
        "better_than_all_baselines": sum(found["is_better"] for found in rounds),
        "medians": {name: round(statistics.median(v), 4) for name, v in values.items()},
        "rounds": list(rounds),
    }


def run(given: argparse.Namespace) -> dict[str, Any]:
    if given.smoke:
        given.days, given.hours, given.seeds = 3, 1, 1
    stages = Stages()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(1, given.seeds + 1):
        for edge in given.edges:
            with tempfile.TemporaryDirectory() as name:
                make(Path(name), seed, edge, given, stages)
                for preset in given.presets:
                    one = judge(Path(name), preset, given, stages)
                    print(f"seed {seed} edge {edge:g} {preset}: {one}", file=sys.stderr)
                    found.setdefault(f"edge {edge:g}", {}).setdefault(preset, []).append(one)
    return {
        "benchmark": "model_chain",
        "days": given.days,
        "hours_of_each_day": given.hours,
        "horizon_s": HORIZON_S,
        "smoothing_s": SMOOTHING_S,
        "markets": {
            edge: {preset: summary(rounds) for preset, rounds in of_edge.items()}
            for edge, of_edge in found.items()
        },
        "stage_s": {name: spread(seconds) for name, seconds in stages.seconds.items()},
        "versions": versions(LIBRARIES),
        "machine": machine(),
    }


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other measure others
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="markets of each kind, default 3")
    add("--edges", type=_edges, default=(0.0, 0.5), help="planted edges, default 0,0.5")
    add("--presets", type=_names, default=("tiny", "mlp", "logistic"), help="what to train")
    add("--days", type=int, default=6)
    add("--hours", type=int, default=4, help="of each day")
    given = parser.parse_args()
    publish(run(given), given)


def _edges(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
