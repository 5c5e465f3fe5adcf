"""The ``evaluate`` verb: a trained model on its test days, against the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from command_line.train import model_folder, open_dataset
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from domain.model_card import ModelCard
    from research.dataset import Dataset
    from research.evaluate import Evaluation

_OWN: Final = ("model", "dataset", "html", "json", "fee_bps", "latency_ms")


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", metavar="PATH", type=Path, required=True, help="folder that train wrote")
    add("--dataset", default="default", help="name below --data-dir, path or s3://…")
    add("--html", metavar="FILE", type=Path, help="also write a page with plots")
    add("--json", action="store_true", default=False, help="print every number as JSON instead")
    add("--fee-bps", metavar="BPS", type=float, default=5.0, help="taker fee a leg, default 5")
    add("--latency-ms", metavar="MS", type=int, default=250, help="until a fill, default 250")
    add_settings(parser, first=("data_dir",), only=("log_level", "market"))


def _run(given: dict[str, Any]) -> int:
    own: dict[str, Any] = {name: given.pop(name) for name in _OWN if name in given}
    if not 0.0 <= own["fee_bps"] <= 1_000.0:
        raise ConfigError("--fee-bps: must be a number from 0 to 1000")
    if not 250 <= own["latency_ms"] <= 60_000:
        raise ConfigError("--latency-ms: must be from 250 to 60000; nobody trades faster here")
    page: Path | None = own.get("html")
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ConfigError(f"--html: {page} is a folder, or its folder does not exist")
    settings = settings_of(given)
    with logging_for(settings):
        from inference.card import read_card
        from research.card import check_dataset
        from research.report import render_html, render_text

        folder = model_folder(own["model"])
        card = read_card(folder)
        dataset = open_dataset(settings, own["dataset"])
        check_dataset(card, dataset.info)
        found = _judge(dataset, card, folder, own)
        _print(found, render_text(found, card), as_json=own["json"])
        if page is not None:
            from lake.atomic import write_atomic

            write_atomic(page, render_html(found, card).encode(), overwrite=True)
    return 0


def _judge(dataset: Dataset, card: ModelCard, folder: Path, own: dict[str, Any]) -> Evaluation:
    from inference.card import MODEL_FILE
    from inference.onnx_model import OnnxModel
    from research.baselines import fit_baselines
    from research.card import spec_of, split_of
    from research.evaluate import evaluate
    from research.samples import Samples
    from research.train import fit_scale
    from research.trials import trials_of

    samples = Samples(dataset, card.symbols, split_of(card), spec_of(card), card.thresholds)
    absent = set(samples.split.test) - {date for _, date in samples.days(samples.split.test)}
    if absent:
        raise ConfigError(f"--dataset: it has no test day {min(absent)}")
    fitted = fit_scale(samples, takes_image=False)
    samples.check(sorted(fitted.dates))
    counts = samples.label_counts(card.train_dates)
    return evaluate(
        card.name,
        samples,
        OnnxModel(folder / MODEL_FILE),
        fit_baselines(samples, fitted.scale(), card.seed, counts),
        takes_image=card.geometry is not None,
        trials=trials_of(folder.parent),
        fee_bps=own["fee_bps"],
        latency_ms=own["latency_ms"],
    )


def _print(found: Evaluation, text: str, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        print(text, end="")


VERB = Verb(
    about="Judge a model on its test days: classes, probabilities, money, against baselines.",
    examples=(
        "python main.py evaluate --model data/models/tiny-60s",
        "python main.py evaluate --model data/models/tiny-60s --html report.html --fee-bps 2",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
