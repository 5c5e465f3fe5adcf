"""A model's folder: its card and its ONNX file, refused where they do not fit together or do not fit the run.

Folder → ``ModelCard``. Whoever runs or judges a model reads its card here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from domain.errors import ConfigError
from domain.model_card import CARD_SCHEMA_VERSION, LABELS, ModelCard
from microstructure.book_image import LONGEST_SPAN_MS
from microstructure.image_grid import check_geometry
from microstructure.measures import FEATURE_NAMES
from microstructure.model_input import INPUT_VERSION

CARD_FILE: Final = "card.json"
MODEL_FILE: Final = "model.onnx"


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
    if card.geometry is not None:
        try:
            check_geometry(card.geometry, LONGEST_SPAN_MS)
        except ValueError as error:
            return str(error)
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


def check_run(card: ModelCard, market: str, window_ms: int, symbols: Sequence[str]) -> list[str]:
    """The symbols of a run that a model may speak of.

    Args:
        card: Of the model.
        market: Of the run.
        window_ms: Length of its windows.
        symbols: Which it watches.

    Raises:
        ConfigError: The model was made for other inputs, another market, windows or symbols.
    """
    reason = None
    known = [symbol for symbol in symbols if symbol in card.symbols]
    if card.input_version != INPUT_VERSION:
        reason = (
            f"it was trained on inputs of version {card.input_version}, these have version "
            f"{INPUT_VERSION}; build the dataset and train again"
        )
    elif card.feature_names and card.feature_names != FEATURE_NAMES:
        reason = "its features are not those of this program; build the dataset and train again"
    elif card.market != market:
        reason = f"it was trained on market {card.market}, this run's is {market}"
    elif card.window_ms != window_ms:
        reason = (
            f"it was trained on windows of {card.window_ms / 1_000:g} s, this run's are "
            f"{window_ms / 1_000:g} s (WINDOW_DURATION)"
        )
    elif not known:
        reason = f"it knows {', '.join(card.symbols)}, none of which this run watches"
    if reason is not None:
        raise ConfigError(f"--model: {card.name}: {reason}")
    return known
