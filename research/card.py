"""Reading a model's card beside its ONNX file, and refusing what does not belong together.

Folder → ``ModelCard`` that fits the file and the dataset it is to be judged on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from domain.errors import ConfigError
from domain.model_card import CARD_SCHEMA_VERSION, ModelCard
from research.dataset import DatasetInfo
from research.samples import LABELS, LabelSpec
from research.splits import Split

CARD_FILE = "card.json"
MODEL_FILE = "model.onnx"


def read_card(folder: Path) -> ModelCard:
    """The card of a model's folder.

    Raises:
        ConfigError: It is missing, makes no sense, or the model beside it is another one.
    """
    path = folder / CARD_FILE
    try:
        card = msgspec.json.decode(path.read_bytes(), type=ModelCard)
        model = (folder / MODEL_FILE).read_bytes()
    except OSError as error:
        raise ConfigError(f"--model: cannot read {error.filename}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model: {path} cannot be understood: {error}") from error
    reason = nonsense_of(card)
    if reason is None and hashlib.sha256(model).hexdigest() != card.model_sha256:
        reason = f"{MODEL_FILE} is not the file that it was written for"
    if reason is not None:
        raise ConfigError(f"--model: {path}: {reason}")
    return card


def nonsense_of(card: ModelCard) -> str | None:
    """Why a card cannot be true; ``None`` if it can."""
    groups = (card.train_dates, card.validation_dates, card.test_dates)
    if card.schema_version != CARD_SCHEMA_VERSION:
        return f"schema_version {card.schema_version} is not {CARD_SCHEMA_VERSION}"
    if not card.feature_names and card.geometry is None:
        return "the model takes nothing"
    if card.label not in LABELS:
        return f"label {card.label!r} is none of {', '.join(LABELS)}"
    if card.horizon_s < 1 or card.smoothing_s <= 0.0 or card.window_ms < 1:
        return "horizon_s, smoothing_s and window_ms must be above zero"
    if not card.train_dates or not card.test_dates:
        return "it names no training or no test days"
    if sum(map(len, groups)) != len({date for group in groups for date in group}):
        return "a day is in two of training, validation and test"
    if set(card.thresholds) != set(card.symbols) or min(card.thresholds.values(), default=0.0) < 0:
        return "thresholds must be one number of at least zero per symbol"
    return None


def check_dataset(card: ModelCard, info: DatasetInfo) -> None:
    """Refuse a dataset whose inputs are not those of the model.

    Raises:
        ConfigError: The versions, names or shapes differ.
    """
    if card.input_version != info.input_version:
        raise ConfigError(
            f"--dataset: its inputs have version {info.input_version}, the model was trained "
            f"on {card.input_version}"
        )
    if card.feature_names and card.feature_names != info.feature_names:
        raise ConfigError("--dataset: its features are not those of the model")
    if card.geometry is not None and card.geometry != info.geometry:
        raise ConfigError("--dataset: its images have another shape than the model's")


def split_of(card: ModelCard) -> Split:
    """The days of a card."""
    return Split(card.train_dates, card.validation_dates, card.test_dates)


def spec_of(card: ModelCard) -> LabelSpec:
    """The label of a card; the width of triple barriers is its threshold."""
    width = next(iter(card.thresholds.values()), 1.0)
    return LabelSpec(card.label, card.horizon_s, card.smoothing_s, width)
