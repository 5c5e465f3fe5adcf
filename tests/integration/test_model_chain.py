"""The whole chain on markets that are known: lake, features, training, export, evaluation, live.

One market is a random walk, the other has a pattern planted into its book. ``MODELS`` of both are trained
and judged by the product's verbs: the pattern must be found, and of the walk no skill told.
What finds it finds it live: its signals of the test day, replayed as a bot hears it, are offline's.
Other seeds and sizes: ``benchmarks/bench_model_chain.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import main
from inference.card import MODEL_FILE
from inference.onnx_model import OnnxModel
from lake.paths import LakePaths
from lake.signal_store import signal_store
from research.dataset import Dataset
from research.synthetic_days import DaysWanted, write_days

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1_200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
]

SYMBOL = "BTCUSDT"
WALK = DaysWanted(
    symbols=(SYMBOL,), first_date="2026-01-01", days=5, hours=2, seed=1, planted_edge=0.0
)
PLANTED = msgspec.structs.replace(WALK, seed=2, planted_edge=1.0)
MODELS = {"tiny": 2, "logistic": 20}  # preset and the epochs it gets
NAIVE = {"majority", "always_flat", "last_sign"}


def run(*arguments: str) -> None:
    assert main.main([*arguments, "--log-level", "ERROR"]) == 0


def dataset_of(folder: Path, wanted: DaysWanted) -> Path:
    """A data folder with recorded days and the dataset built of them."""
    assert tuple(write_days(LakePaths.of(folder), wanted)) == wanted.dates
    build = ["features", "build", "--data-dir", str(folder), "--symbol", SYMBOL, "--workers", "1"]
    build += ["--from", wanted.dates[0], "--to", wanted.dates[-1]]
    run(*build, "--frames", "4", "--height", "16", "--width", "8")
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """The same bits on any machine, and no threads that wait for each other on a busy one."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    return dataset_of(tmp_path_factory.mktemp("planted"), PLANTED)


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    return dataset_of(tmp_path_factory.mktemp("walk"), WALK)


def judged(folder: Path, preset: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Train, export, and what ``evaluate`` says of the exported model."""
    train = ["train", "--data-dir", str(folder), "--preset", preset, "--device", "cpu"]
    run(*train, "--horizon", "10", "--smoothing", "1", "--epochs", str(MODELS[preset]))
    capsys.readouterr()
    model = folder / "models" / f"{preset}-10s"
    run("evaluate", "--data-dir", str(folder), "--model", str(model), "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def check_live(folder: Path, preset: str, live: Path) -> None:
    """The signals of the replayed test day have the probabilities that offline gives its windows."""
    model, date = folder / "models" / f"{preset}-10s", PLANTED.dates[-1]
    day_folder = folder / "raw" / "stream" / "trades" / date
    run("replay", str(day_folder), "--model", str(model), "--data-dir", str(live))
    found = signal_store(LakePaths.of(live).signals).read_rows()
    signals = {s.window_end_ms: s for s in found if s.source == f"model:{preset}-10s"}
    day = Dataset.open(folder / "datasets" / "default").day(SYMBOL, date)
    rows = np.flatnonzero(day.is_valid)
    rows = rows[np.isin(day.decision_ms[rows], list(signals))]
    assert len(signals) == len(rows) > 1_300  # of 1,440 windows, of which the first 61 warm up
    offline = OnnxModel(model / MODEL_FILE)(day.images(rows), day.features[rows])
    asked = [signals[int(at)] for at in day.decision_ms[rows]]
    said = np.array([(s.p_down, s.p_flat, s.p_up) for s in asked])
    assert np.abs(said - offline).max() < 1e-6


@pytest.mark.parametrize("preset", MODELS)
def test_a_planted_pattern_is_found(preset, planted, tmp_path, capsys, clean_environment):
    found = judged(planted, preset, capsys)
    assert found["has_skill"], found["verdict"]
    gains = {b["name"]: b["macro_f1_gain"] for b in found["baselines"]}
    assert all(gains[name]["low"] > 0.1 for name in NAIVE), gains
    assert found["scores"]["mcc"]["low"] > 0.0
    assert found["money"]["timing_bps"]["low"] > 0.0
    assert found["dates"] == [PLANTED.dates[-1]]
    check_live(planted, preset, tmp_path / "live")


@pytest.mark.parametrize("preset", MODELS)
def test_of_a_random_walk_no_skill_is_told(preset, walk, capsys, clean_environment):
    found = judged(walk, preset, capsys)
    assert not found["has_skill"]
    assert not found["is_better"]
    assert found["verdict"].startswith("no skill")
    assert (
        found["money"]["timing_bps"]["low"] < 0.0
    )  # one interval in forty is wholly below, by chance
