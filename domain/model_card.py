"""The card of a trained model: what it is, what it takes, what it was trained on and how well it did.

Written by training beside the ONNX file; whoever runs the model refuses what does not fit it.
"""

from __future__ import annotations

from typing import Final

import msgspec

CARD_SCHEMA_VERSION: Final = 1
CLASSES: Final = ("down", "flat", "up")
SMOOTH: Final = "smooth"
TRIPLE_BARRIER: Final = "triple_barrier"
LABELS: Final = (SMOOTH, TRIPLE_BARRIER)


class ImageGeometry(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and grid of a book image ``[frames, channels, height, width]``.

    A frame covers ``width`` slots of ``slot_ms``; ``height`` price bins lie around the mid price at
    decision time, half of them on either side.
    """

    frames: int = 16
    channels: int = 3
    height: int = 32
    width: int = 8
    slot_ms: int = 100

    @property
    def span_ms(self) -> int:
        """Time that an image looks back from its decision."""
        return self.frames * self.width * self.slot_ms

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(frames, channels, height, width)``."""
        return self.frames, self.channels, self.height, self.width


class InputHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Training shares of one input's bins, for population stability.

    ``edges`` ascend, n - 1 of them for n bins: bin k holds
    ``edges[k - 1] <= x < edges[k]``. ``undefined_share`` is that of NaN among all rows; ``shares`` are
    of the others and sum to 1.
    """

    name: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    undefined_share: float


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must be known to use, trust or refuse a model. Times are UTC ms.

    ``metrics`` and ``baselines`` map a name to ``{metric: value | [value, low, high]}``.
    """

    name: str
    kind: str  # vivit | cnn_lstm | mlp | logistic
    preset: str
    created_at_ms: int
    market: str
    symbols: tuple[str, ...]
    window_ms: int
    input_version: str
    feature_names: tuple[str, ...]  # empty: the model takes no features
    geometry: ImageGeometry | None  # None: the model takes no image
    label: str  # smooth | triple_barrier
    horizon_s: int
    smoothing_s: float
    thresholds: dict[
        str, float
    ]  # per symbol: what separates flat from a move, fitted on training days
    train_dates: tuple[str, ...]
    validation_dates: tuple[str, ...]
    test_dates: tuple[str, ...]
    data_sha256: str
    model_sha256: str  # of model.onnx
    seed: int
    metrics: dict[str, dict[str, float | list[float] | None]]
    baselines: dict[str, dict[str, float | list[float] | None]]
    input_histograms: tuple[InputHistogram, ...]
    software: dict[str, str]
    notes: tuple[str, ...] = ()
    schema_version: int = CARD_SCHEMA_VERSION
