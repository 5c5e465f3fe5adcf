"""Training from a dataset to a model that can be run: fit, calibrate, export, judge, write the card.

Dataset and ``TrainOptions`` → ``models/NAME/{checkpoint.pt, model.onnx, card.json}`` and one more line
in ``models/trials.jsonl``. Needs torch; ``command_line.train`` says so where it is missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from domain.errors import ConfigError
from domain.model_card import ModelCard
from inference.card import CARD_FILE, MODEL_FILE
from inference.onnx_model import OnnxModel
from lake.atomic import write_atomic
from research.baselines import fit_baselines
from research.calibration import Calibration, fit_calibration
from research.dataset import Dataset
from research.evaluate import Evaluation, evaluate
from research.metrics import Scores
from research.presets import Preset
from research.samples import Batch, LabelSpec, Samples
from research.scaling import ScaleFit
from research.splits import Split
from research.trades import Money
from research.trials import Trial, log_trial, trials_of

if TYPE_CHECKING:
    from evaluation.blocks import Estimate
    from research.fitting import Progress
    from research.models import Network

_PARITY_ROWS: Final = 64
_SOFTWARE: Final = ("torch", "transformers", "onnx", "onnxruntime", "scikit-learn", "numpy")

type Metrics = dict[str, float | list[float] | None]


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to train."""

    name: str
    preset: Preset
    symbols: tuple[str, ...]
    split: Split
    spec: LabelSpec
    seed: int = 1
    epochs: int | None = None  # None: the preset's
    device: str = "auto"
    is_resumed: bool = False


def train(
    dataset: Dataset, options: TrainOptions, models: Path, show: Callable[[Progress], None]
) -> tuple[ModelCard, Evaluation]:
    """Train, export and judge one model.

    Args:
        dataset: What on.
        options: See there.
        models: Folder of models; the model's own is made in it.
        show: Called after every epoch.

    Raises:
        ConfigError: The dataset does not fit.
        LeakError: What trains knows what judges.
        ExportFailed: The exported model differs.
    """
    from research.export import check_parity, export

    preset = options.preset
    preset.check(dataset.info.geometry)
    samples = Samples(dataset, options.symbols, options.split, options.spec)
    fitted = fit_scale(samples, takes_image=preset.takes_image)
    samples.check(sorted(fitted.dates))
    counts = samples.label_counts(options.split.train)
    if np.count_nonzero(counts) < 2:
        raise ConfigError(f"the training days need labels of two classes, they have {counts}")
    folder = models / options.name
    network, calibration = _fit(dataset, samples, options, fitted, folder, show)
    network.set_calibration(calibration)
    count = len(dataset.info.feature_names)
    export(network, dataset.info.geometry, count, folder / MODEL_FILE)
    worst = check_parity(
        network, folder / MODEL_FILE, _some(samples, takes_image=preset.takes_image)
    )
    found = _judge(samples, options, fitted, counts, models)
    notes = (
        f"ONNX and torch differ by at most {worst:.1e} in a probability",
        f"deflated for {found.trials} variants tried",
        found.verdict,
    )
    card = _card(dataset, samples, options, fitted, found, folder / MODEL_FILE, notes)
    content = msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"
    write_atomic(folder / CARD_FILE, content, overwrite=True)
    return card, found


def fit_scale(samples: Samples, *, takes_image: bool) -> ScaleFit:
    """Scales and histograms of the training days."""
    geometry = samples.geometry if takes_image else None
    fitted = ScaleFit(samples.dataset.info.feature_names, geometry.channels if geometry else 0)
    for symbol, date in samples.days(samples.split.train):
        found = samples.of_day(symbol, date)
        images = samples.sample_images(found) if takes_image else None
        fitted.add(date, found.day.features[found.rows], images)
    return fitted


def _fit(
    dataset: Dataset,
    samples: Samples,
    options: TrainOptions,
    fitted: ScaleFit,
    folder: Path,
    show: Callable[[Progress], None],
) -> tuple[Network, Calibration]:
    import torch

    from research.fitting import CHECKPOINT_FILE, Fit, pick_device
    from research.models import Network

    preset = options.preset
    torch.manual_seed(options.seed)
    network = Network(preset, dataset.info.geometry, len(dataset.info.feature_names))
    network.set_scale(fitted.scale())
    epochs = preset.epochs if options.epochs is None else options.epochs
    identity = [
        *(preset, options.symbols, options.split, options.spec, options.seed, epochs),
        *(dataset.sha256(), dataset.info.input_version),
    ]
    fit = Fit(
        network,
        preset,
        samples,
        seed=options.seed,
        epochs=epochs,
        device=pick_device(options.device),
        path=folder / CHECKPOINT_FILE,
        identity=hashlib.sha256(msgspec.json.encode(identity)).hexdigest(),
    )
    if options.is_resumed:
        fit.resume()
    fit.run(show)
    calibration = fit_calibration(*fit.logits(options.split.validation))
    return network.cpu().eval(), calibration


def _judge(
    samples: Samples,
    options: TrainOptions,
    fitted: ScaleFit,
    counts: np.ndarray,
    models: Path,
) -> Evaluation:
    """Judge on the test days, and log the trial: its Sharpe ratio counts among those tried."""
    predict = OnnxModel(models / options.name / MODEL_FILE)
    baselines = fit_baselines(samples, fitted.scale(), options.seed, counts)
    found = evaluate(
        options.name,
        samples,
        predict,
        baselines,
        takes_image=options.preset.takes_image,
        trials=trials_of(models),
    )
    trial = Trial(
        name=options.name,
        at_ms=time.time_ns() // 1_000_000,
        preset=options.preset.name,
        label=options.spec.label,
        horizon_s=options.spec.horizon_s,
        seed=options.seed,
        sharpe=found.money.sharpe,
        period_s=found.money.period_s,
    )
    log_trial(models, trial)
    return msgspec.structs.replace(found, trials=found.trials + 1)


def _some(samples: Samples, *, takes_image: bool) -> Batch:
    """Real samples, the first of the test days, to compare two forms of the model on."""
    for block in samples.blocks(samples.split.test, images=takes_image):
        rows = slice(0, _PARITY_ROWS)
        return Batch(block.images[rows], block.features[rows], block.labels[rows])
    raise ConfigError("the test days hold no sample with a label")


def _card(
    dataset: Dataset,
    samples: Samples,
    options: TrainOptions,
    fitted: ScaleFit,
    found: Evaluation,
    model: Path,
    notes: tuple[str, ...],
) -> ModelCard:
    preset, split, info = options.preset, options.split, dataset.info
    return ModelCard(
        name=options.name,
        kind=preset.kind,
        preset=preset.name,
        created_at_ms=time.time_ns() // 1_000_000,
        market=info.market,
        symbols=options.symbols,
        window_ms=info.window_ms,
        input_version=info.input_version,
        feature_names=info.feature_names if preset.takes_features else (),
        geometry=info.geometry if preset.takes_image else None,
        label=options.spec.label,
        horizon_s=options.spec.horizon_s,
        smoothing_s=options.spec.smoothing_s,
        thresholds=samples.thresholds,
        train_dates=split.train,
        validation_dates=split.validation,
        test_dates=split.test,
        data_sha256=dataset.sha256(),
        model_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        seed=options.seed,
        metrics={"test": metrics_of(found.scores, found.money)},
        baselines={b.name: metrics_of(b.scores, b.money) for b in found.baselines},
        input_histograms=fitted.histograms(),
        software=_software(),
        notes=notes,
    )


def metrics_of(scores: Scores, money: Money) -> Metrics:
    """As the card has them: a value, or a value with its interval."""
    estimates: Mapping[str, Estimate | None] = {
        "macro_f1": scores.macro_f1,
        "mcc": scores.mcc,
        "accuracy": scores.accuracy,
        "brier": scores.brier,
        "brier_skill": scores.brier_skill,
        "net_bps": money.net_bps,
        "timing_bps": money.timing_bps,
    }
    found: Metrics = {}
    for name, estimate in estimates.items():
        if estimate is None:
            found[name] = None
        elif estimate.low is None or estimate.high is None:
            found[name] = estimate.value
        else:
            found[name] = [estimate.value, estimate.low, estimate.high]
    return found | {
        "calibration_error": scores.calibration_error,
        "break_even_fee_bps": money.break_even_fee_bps,
        "samples": float(scores.samples),
        "trades": float(money.trades),
    }


def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
