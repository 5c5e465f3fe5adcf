"""Presets of models: sizes, what they take, how they are trained. No torch here.

A name → ``Preset``; measured times are in docs/research.md.
"""

from __future__ import annotations

from typing import Final

import msgspec

from domain.errors import ConfigError
from domain.model_card import ImageGeometry


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of network and how it is trained.

    ``tubelet`` is (frames, height, width) of a ViViT's tokens; an image's sizes are multiples of it.
    """

    name: str
    kind: str  # vivit | cnn_lstm | mlp | logistic
    about: str
    takes_image: bool
    takes_features: bool
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    tubelet: tuple[int, int, int] = (4, 8, 8)
    dropout: float = 0.1
    epochs: int = 12
    patience: int = 3
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2

    def check(self, geometry: ImageGeometry | None) -> None:
        """Refuse a dataset whose images do not fit.

        Raises:
            ConfigError: No images, or sizes that are no multiples of the tubelet.
        """
        if not self.takes_image:
            return
        if geometry is None:
            raise ConfigError(f"--preset: {self.name} takes images, and the dataset has none")
        frames, _, height, width = geometry.shape
        sizes = zip((frames, height, width), self.tubelet, strict=True)
        if self.kind == "vivit" and any(size % step for size, step in sizes):
            raise ConfigError(
                f"--preset: {self.name} needs frames, height and width in multiples of "
                f"{self.tubelet}, the images have {(frames, height, width)}"
            )


_ALL: Final = (
    Preset(
        name="tiny",
        kind="vivit",
        about="a small ViViT and the features, for a CPU of two cores",
        takes_image=True,
        takes_features=True,
        hidden=48,
        layers=2,
        heads=4,
    ),
    Preset(
        name="base",
        kind="vivit",
        about="a ViViT and the features, for a GPU or an idle night",
        takes_image=True,
        takes_features=True,
        hidden=96,
        layers=4,
        heads=6,
        tubelet=(2, 8, 4),
        epochs=20,
        patience=4,
        learning_rate=5e-4,
    ),
    Preset(
        name="vivit-192",
        kind="vivit",
        about="the size proposed for book images (Arnab et al. 2021, joint attention), images alone",
        takes_image=True,
        takes_features=False,
        hidden=192,
        layers=6,
        heads=6,
        tubelet=(2, 8, 8),
        epochs=30,
        patience=5,
        learning_rate=3e-4,
        weight_decay=5e-2,
    ),
    Preset(
        name="cnn_lstm",
        kind="cnn_lstm",
        about="convolutions over price and time, then an LSTM over frames (after DeepLOB, 2019)",
        takes_image=True,
        takes_features=False,
        hidden=32,
        layers=1,
    ),
    Preset(
        name="mlp",
        kind="mlp",
        about="two layers on the features",
        takes_image=False,
        takes_features=True,
        hidden=64,
        layers=2,
        epochs=20,
        batch=256,
    ),
    Preset(
        name="logistic",
        kind="logistic",
        about="a linear model of the features",
        takes_image=False,
        takes_features=True,
        epochs=20,
        batch=256,
        learning_rate=3e-3,
    ),
)
PRESETS: Final = {preset.name: preset for preset in _ALL}


def preset_of(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset: no {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
