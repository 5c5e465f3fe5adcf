"""Folders of models for tests: a network of random weights with the card that fits it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import torch

from domain.model_card import ImageGeometry, InputHistogram, ModelCard
from inference.card import CARD_FILE, MODEL_FILE
from inference.onnx_model import OnnxModel
from microstructure.measures import FEATURE_NAMES
from research.export import export
from research.models import Network
from research.presets import preset_of
from tests.model_cards import card_of

GEOMETRY = ImageGeometry(frames=4, height=8, width=8)


def write_model(
    folder: Path, *, preset: str = "tiny", geometry: ImageGeometry = GEOMETRY, **changes
) -> ModelCard:
    """An untrained model of BTCUSDT; ``changes`` are the card's."""
    kind = preset_of(preset)
    torch.manual_seed(7)
    network = Network(kind, geometry, len(FEATURE_NAMES)).eval()
    folder.mkdir(parents=True)
    export(network, geometry, len(FEATURE_NAMES), folder / MODEL_FILE)
    card = card_of(
        name="untrained",
        kind=kind.kind,
        preset=kind.name,
        feature_names=FEATURE_NAMES if kind.takes_features else (),
        geometry=geometry if kind.takes_image else None,
        model_sha256=hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest(),
        input_histograms=tuple(
            InputHistogram(name=name, edges=(0.0,), shares=(0.5, 0.5), undefined_share=0.0)
            for name in FEATURE_NAMES
        ),
        **changes,
    )
    (folder / CARD_FILE).write_bytes(msgspec.json.encode(card))
    return card


def probabilities(folder: Path, images: np.ndarray, features: np.ndarray) -> np.ndarray:
    """float64[k, 3] of a folder's model."""
    return OnnxModel(folder / MODEL_FILE)(images, features)
