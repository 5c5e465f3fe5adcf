"""The ``train`` verb: a dataset → a calibrated model with its card."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings
    from research.dataset import Dataset
    from research.fitting import Progress
    from research.splits import Split
    from research.train import TrainOptions

_COUNTS: Final = ("train_days", "validation_days", "test_days")
_DATES: Final = ("train_from", "validation_from", "test_from", "to")
_OWN: Final = (
    *("dataset", "preset", "name", "horizon", "smoothing", "label", "width", "seed", "epochs"),
    *("resume", "device", "steps", *_COUNTS, *_DATES),
)
_NEEDED: Final = ("torch", "transformers", "sklearn", "onnx", "onnxruntime")


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--symbol", dest="symbols", metavar="SYMBOLS", help="the same as --symbols")
    add_settings(parser, first=("symbols", "market", "data_dir"), only=("log_level",))
    add("--dataset", default="default", help="name below --data-dir, path or s3://…")
    add("--preset", default="tiny", help="what network: docs/research.md lists them; default tiny")
    add("--name", help="of the model; default: preset and horizon")
    add("--horizon", metavar="S", type=int, default=60, help="seconds ahead, default 60")
    add("--smoothing", metavar="S", type=float, default=5.0, help="averaged over, default 5 s")
    add("--label", choices=("smooth", "triple_barrier"), default="smooth")
    add("--width", metavar="SD", type=float, default=1.0, help="of triple barriers, default 1")
    add("--train-days", metavar="N", type=int, help="default: 70 %% of the days there are")
    add("--validation-days", metavar="N", type=int, help="default: 15 %%, at least one")
    add("--test-days", metavar="N", type=int, help="default: 15 %%, at least one; the newest")
    add("--train-from", metavar="DAY", help="first training day, instead of counts")
    add("--validation-from", metavar="DAY", help="first validation day")
    add("--test-from", metavar="DAY", help="first test day")
    add("--to", metavar="DAY", help="last test day, included; default: the newest")
    add(
        "--steps",
        metavar="N",
        type=int,
        default=1,
        help="walk forward: N models, each judged on "
        "the test days after the one before, NAME-1 … NAME-N",
    )
    add("--seed", metavar="N", type=int, default=1)
    add("--epochs", metavar="N", type=int, help="at most; default: the preset's")
    add("--resume", action="store_true", default=False, help="go on after the last whole epoch")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _run(given: dict[str, Any]) -> int:
    own: dict[str, Any] = {name: given.pop(name) for name in _OWN if name in given}
    has_symbols = "symbols" in given
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"training needs {', '.join(missing)}: run make setup-research")
    settings = settings_of(given)
    with logging_for(settings):
        dataset = open_dataset(settings, own["dataset"])
        return _train(settings, dataset, _options(settings, dataset, own, has_symbols=has_symbols))


def open_dataset(settings: Settings, name: str) -> Dataset:
    """By name below the data folder, or by path or URI."""
    from research.dataset import Dataset

    is_name = "/" not in name and "\\" not in name
    return Dataset.open(settings.paths.root / "datasets" / name if is_name else name)


def _options(
    settings: Settings, dataset: Dataset, own: dict[str, Any], *, has_symbols: bool
) -> list[TrainOptions]:
    """One model's for every step, the oldest first."""
    from research.presets import preset_of
    from research.samples import LabelSpec
    from research.train import TrainOptions

    preset = preset_of(own["preset"])
    symbols = settings.symbols if has_symbols else dataset.symbols()
    unknown = [symbol for symbol in symbols if not dataset.dates(symbol)]
    if unknown or not symbols:
        raise ConfigError(f"--dataset: it has no days of {', '.join(unknown) or 'any symbol'}")
    for name, least in (("horizon", 1), ("epochs", 1), ("smoothing", 0.1), ("width", 0.01)):
        if name in own and not least <= own[name] <= 86_400:
            raise ConfigError(f"--{name}: must be from {least} to 86400")
    name = own.get("name", f"{preset.name}-{own['horizon']}s")
    if not name or name[0] in "._-" or not all(c.isalnum() or c in "._-" for c in name):
        raise ConfigError(f"--name: letters, digits and ._- only, not {name!r}")

    def has_begun(step: str) -> bool:
        return (settings.paths.root / "models" / step / "checkpoint.pt").is_file()

    splits = _splits(sorted({d for s in symbols for d in dataset.dates(s)}), own)
    return [
        TrainOptions(
            name=name if len(splits) == 1 else f"{name}-{number}",
            preset=preset,
            symbols=tuple(symbols),
            split=split,
            spec=LabelSpec(own["label"], own["horizon"], own["smoothing"], own["width"]),
            seed=own["seed"],
            epochs=own.get("epochs"),
            device=own["device"],
            # The steps after the one that was stopped have not begun.
            is_resumed=own["resume"] and (len(splits) == 1 or has_begun(f"{name}-{number}")),
        )
        for number, split in enumerate(splits, 1)
    ]


def _splits(dates: list[str], own: dict[str, Any]) -> list[Split]:
    """By dates where any is given, else the newest that the counts allow, the oldest first."""
    from research.splits import Split, walk_forward

    dates = [date for date in dates if date <= own.get("to", "9999")]
    steps = own["steps"]
    if steps < 1:
        raise ConfigError("--steps: at least one")
    if "validation_from" in own or "test_from" in own:
        if steps > 1:
            raise ConfigError("--steps: give counts of days (--test-days …), not --test-from")
        if not ("validation_from" in own and "test_from" in own):
            raise ConfigError("--validation-from and --test-from: name both")
        first, middle, last = own.get("train_from", ""), own["validation_from"], own["test_from"]
        split = Split(
            tuple(d for d in dates if first <= d < middle),
            tuple(d for d in dates if middle <= d < last),
            tuple(d for d in dates if d >= last),
        )
        if not (split.train and split.validation and split.test):
            raise ConfigError("--train-from, --validation-from, --test-from: a part has no days")
        return [split]
    dates = [date for date in dates if date >= own.get("train_from", "")]
    held = max(1, round(0.15 * len(dates)))
    validation, test = own.get("validation_days", held), own.get("test_days", held)
    train = own.get("train_days", max(1, len(dates) - validation - steps * test))
    if validation < 1:
        raise ConfigError("--validation-days: at least one, to stop and to calibrate on")
    try:
        splits = walk_forward(dates, train, validation, test, step=1)
    except ValueError as error:
        raise ConfigError(f"--train-days, --validation-days, --test-days: {error}") from error
    newest_first = splits[::-test]
    if len(newest_first) < steps:
        raise ConfigError(f"--steps: the days allow {len(newest_first)}")
    return newest_first[:steps][::-1]


def _train(settings: Settings, dataset: Dataset, steps: list[TrainOptions]) -> int:
    from research.report import render_steps, render_text
    from research.train import train

    models = settings.paths.root / "models"
    judged = []
    for options in steps:
        if len(steps) > 1:
            days = f"{options.split.test[0]} to {options.split.test[-1]}"
            print(f"{options.name}: tests on {days}", file=sys.stderr, flush=True)
        try:
            card, found = train(dataset, options, models, _show)
        except KeyboardInterrupt:
            checkpoint = models / options.name / "checkpoint.pt"
            if checkpoint.is_file():
                print(f"stopped; {checkpoint} holds the last whole epoch, --resume goes on")
            else:
                print("stopped before the first epoch; nothing was written")
            return 0
        judged.append(found)
        print(render_text(found, card), end="")
        print(f"model: {models / options.name}")
    if len(steps) > 1:
        print(render_steps(judged), end="")
    return 0


def _show(progress: Progress) -> None:
    """One line per epoch, on stderr."""
    mark = "  best so far" if progress.is_best else ""
    print(
        f"epoch {progress.epoch}/{progress.epochs}  loss {progress.train_loss:.4f}  "
        f"validation: loss {progress.validation_loss:.4f}, "
        f"macro-F1 {progress.validation_macro_f1:.3f}, MCC {progress.validation_mcc:+.3f}  "
        f"{progress.seconds:.1f} s{mark}",
        file=sys.stderr,
        flush=True,
    )


def model_folder(path: Path) -> Path:
    """The folder of a model, also from a file in it."""
    return path.parent if path.suffix in {".onnx", ".json", ".pt"} else path


VERB = Verb(
    about="Train a model on a dataset: fitted, calibrated, exported to ONNX, judged on test days.",
    examples=(
        "python main.py train --symbol BTCUSDT",
        "python main.py train --preset mlp --test-days 2 --steps 5 --name mlp-forward",
        "python main.py train --preset mlp --horizon 30 --label triple_barrier",
        "python main.py train --preset base --device cuda --name btc-base --resume",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
