"""Cards of models for tests."""

from __future__ import annotations

from typing import Any

from domain.model_card import ModelCard
from microstructure.measures import FEATURE_NAMES


def card_of(**changes: Any) -> ModelCard:
    """The card of a model of BTCUSDT's features; changes over it."""
    given: dict[str, Any] = {
        "name": "m",
        "kind": "mlp",
        "preset": "mlp",
        "created_at_ms": 1,
        "market": "um",
        "symbols": ("BTCUSDT",),
        "window_ms": 5_000,
        "input_version": "1",
        "feature_names": FEATURE_NAMES,
        "geometry": None,
        "label": "smooth",
        "horizon_s": 60,
        "smoothing_s": 5.0,
        "thresholds": {"BTCUSDT": 0.001},
        "train_dates": ("2024-07-01",),
        "validation_dates": (),
        "test_dates": ("2024-07-02",),
        "data_sha256": "",
        "model_sha256": "0123456789abcdef",
        "seed": 1,
        "metrics": {},
        "baselines": {},
        "input_histograms": (),
        "software": {},
    }
    return ModelCard(**{**given, **changes})
