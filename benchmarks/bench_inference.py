"""One live inference of the default preset, on one core: books and trades of a window in, probabilities out.

A seeded market as dense as BTC's (10 books of 20 levels and 17 trades a second) goes through the code of
``run --model``, window by window. Per window: ``read`` decodes and keeps its 50 frames, ``window`` computes
its bins, ``ask`` the inputs and the network's answer. Weights are random: they take as long as good ones.
``python -m benchmarks.bench_inference [--json FILE] [--smoke] [--preset NAME]``
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, machine, publish, versions
from binance_api.decode_depth import decode_depth, read_levels
from domain.market import DepthTop, Market
from domain.model_card import ImageGeometry
from inference.model import Model, Prediction
from market_orchestrator.replay_rows import depth_frames
from tests.book_days import START_MS, Walk

WINDOW_MS = 5_000
LIMIT_MS = 50.0


def frames_of(walk: Walk) -> list[DepthTop]:
    """The walk's books as depth frames, decoded as far as the loop decodes them."""
    payloads = depth_frames(walk.depth(), {"BTCUSDT": 0}, Market.UM)
    return decode_depth(payloads, [0] * len(payloads), {"BTCUSDT": 0}).tops


def measure(folder: Path, windows: int) -> dict[str, Any]:
    walk = Walk(START_MS, START_MS + windows * WINDOW_MS, trades_per_s=17.0)
    tops, trades = frames_of(walk), walk.trade_rows()
    model = Model.open(folder, "um", WINDOW_MS, ("BTCUSDT",))
    times: dict[str, list[float]] = {"read": [], "window": [], "ask": []}
    at = 0
    for start_ms in range(START_MS, START_MS + windows * WINDOW_MS, WINDOW_MS):
        end_ms = start_ms + WINDOW_MS
        inside = (trades["transact_time_ms"] >= start_ms) & (trades["transact_time_ms"] < end_ms)
        rows = trades[inside]
        began = time.perf_counter()
        while at < len(tops) and tops[at].transact_time_ms < end_ms:
            book = read_levels(tops[at])
            assert book is not None
            model.add_book(book, chain_broken=False)
            at += 1
        read = time.perf_counter()
        model.add_window("BTCUSDT", rows, start_ms, is_complete=True)
        added = time.perf_counter()
        found = model.predict("BTCUSDT", start_ms)
        asked = time.perf_counter()
        if isinstance(found, Prediction):
            times["read"].append(read - began)
            times["window"].append(added - read)
            times["ask"].append(asked - added)
    whole = np.sum([times[name] for name in times], axis=0)
    return {name: milliseconds(found) for name, found in {**times, "whole": whole}.items()}


def milliseconds(seconds: Any) -> dict[str, float]:
    found = 1_000.0 * np.asarray(seconds)
    return {
        "median": round(float(np.median(found)), 2),
        "p99": round(float(np.quantile(found, 0.99)), 2),
        "high": round(float(found.max()), 2),
    }


def run(given: Any) -> dict[str, Any]:

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    windows = 61 + (20 if given.smoke else 600)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        # It imports torch, which not every machine has.
        models = importlib.import_module("tests.model_folders")
        models.write_model(folder, preset=given.preset, geometry=ImageGeometry())
        found = measure(folder, windows)
    return {
        "benchmark": "inference",
        "preset": given.preset,
        "windows": windows - 61,
        "milliseconds": found,
        "limit_ms": LIMIT_MS,
        "versions": versions(("numpy", "msgspec", "onnxruntime")),
        "machine": machine(),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--preset", default="tiny", help="default: tiny, that of train")
    given = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("bench_inference needs torch, to make a model of: make setup-research")
        return
    publish(run(given), given)


if __name__ == "__main__":
    main()
