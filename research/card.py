"""What a model's card says of its days and labels, and whether a dataset fits it.

``ModelCard`` → ``Split`` and ``LabelSpec``.
"""

from __future__ import annotations

from domain.errors import ConfigError
from domain.model_card import ModelCard
from research.dataset import DatasetInfo
from research.samples import LabelSpec
from research.splits import Split


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
