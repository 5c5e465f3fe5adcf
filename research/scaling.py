"""What the training days say of the inputs: scale, bins for stability, class counts. Pure.

Arrays of training days, one day at a time → ``InputScale`` and ``InputHistogram``s. No other day may
be shown to it: ``dates`` keeps which were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.model_card import InputHistogram

BIN_COUNT: Final = 10
_MOST_KEPT: Final = 20_000  # rows of a day that quantiles are taken of
_LEAST_SCALE: Final = 1e-8


class InputScale(msgspec.Struct, frozen=True, eq=False):
    """Mean and deviation of the features, root mean square of the image's channels.

    Attributes:
        feature_mean: float32[F].
        feature_scale: float32[F], above zero.
        image_scale: float32[C], above zero; empty without images.
    """

    feature_mean: npt.NDArray[np.float32]
    feature_scale: npt.NDArray[np.float32]
    image_scale: npt.NDArray[np.float32]


class ScaleFit:
    """Gathers the training days' inputs; see ``scale`` and ``histograms``."""

    def __init__(self, feature_names: Sequence[str], channels: int) -> None:
        self._names = tuple(feature_names)
        self._kept: list[npt.NDArray[np.float32]] = []
        self._squares = np.zeros(channels)
        self._pixels = 0
        self.dates: set[str] = set()

    def add(
        self,
        date: str,
        features: npt.NDArray[np.float32],
        images: npt.NDArray[np.float16] | None = None,
    ) -> None:
        """A training day's valid rows, and a sample of its images."""
        self.dates.add(date)
        step = max(1, -(-len(features) // _MOST_KEPT))
        self._kept.append(features[::step])
        if images is not None:
            values = np.nan_to_num(images.astype(np.float64), posinf=0.0, neginf=0.0)
            self._squares += (values**2).sum(axis=(0, 1, 3, 4))
            self._pixels += values[:, :, 0].size

    def scale(self) -> InputScale:
        """Of the days added; an input that never varies keeps its own units."""
        values = self._values()
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        squares = np.where(known, values - mean, 0.0) ** 2
        deviation = np.sqrt(squares.sum(axis=0) / count)
        root = np.sqrt(self._squares / max(self._pixels, 1))
        return InputScale(
            mean.astype(np.float32),
            np.where(deviation > _LEAST_SCALE, deviation, 1.0).astype(np.float32),
            np.where(root > _LEAST_SCALE, root, 1.0).astype(np.float32),
        )

    def histograms(self) -> tuple[InputHistogram, ...]:
        """Shares of every feature's deciles; equal deciles are one bin."""
        values = self._values()
        return tuple(_histogram(name, values[:, place]) for place, name in enumerate(self._names))

    def _values(self) -> npt.NDArray[np.float64]:
        if not self._kept:
            return np.empty((0, len(self._names)))
        return np.concatenate(self._kept).astype(np.float64)


def _histogram(name: str, values: npt.NDArray[np.float64]) -> InputHistogram:
    known = values[np.isfinite(values)]
    undefined = 1.0 - len(known) / len(values) if len(values) else 1.0
    if not len(known):
        return InputHistogram(name=name, edges=(), shares=(1.0,), undefined_share=undefined)
    edges = np.unique(np.quantile(known, np.arange(1, BIN_COUNT) / BIN_COUNT))
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    return InputHistogram(
        name=name,
        edges=tuple(edges.tolist()),
        shares=tuple((counts / len(known)).tolist()),
        undefined_share=undefined,
    )
