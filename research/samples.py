"""Samples of a dataset's days: which rows count, their labels, and blocks of them to train on.

Dataset, split and label → ``DaySamples``; what is fitted is fitted on training days, and ``check_leaks``
has the last word. A few days are in memory at a time, their images a block at a time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError
from domain.model_card import SMOOTH, TRIPLE_BARRIER, ImageGeometry
from microstructure.book_image import IMAGE_LOOK_BACK_MS
from microstructure.measures import LOOK_BACK_MS
from research.dataset import Dataset, DayData
from research.labels import (
    UNDEFINED,
    fit_alpha,
    smooth_labels,
    smooth_moves,
    triple_barrier_labels,
)
from research.splits import Split, check_leaks, purge

LOOK_BACK_OF_INPUTS_MS: Final = max(LOOK_BACK_MS, IMAGE_LOOK_BACK_MS)
_BLOCK_ROWS: Final = 512
_BLOCKS_MIXED: Final = 4
_DAYS_MIXED: Final = 4
_IMAGES_FOR_SCALE: Final = 256  # of a day


class LabelSpec(msgspec.Struct, frozen=True):
    """What is to be told beforehand."""

    label: str = SMOOTH
    horizon_s: int = 60
    smoothing_s: float = 5.0
    width: float = 1.0  # of triple barriers, in standard deviations over the horizon

    @property
    def horizon_ms(self) -> int:
        """How far a label looks ahead."""
        return self.horizon_s * 1_000


class DaySamples(msgspec.Struct, frozen=True, eq=False):
    """The rows of a day that count.

    Attributes:
        day: They are of.
        rows: int64[k], places in the day.
        labels: int64[k], 0 down, 1 flat, 2 up.
    """

    day: DayData
    rows: npt.NDArray[np.intp]
    labels: npt.NDArray[np.int64]

    @property
    def decision_ms(self) -> npt.NDArray[np.int64]:
        """int64[k]."""
        times: npt.NDArray[np.int64] = self.day.decision_ms[self.rows]
        return times


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Samples in memory: ``images`` float16[k,T,C,H,W] (or empty), ``features`` float32[k,F]."""

    images: npt.NDArray[np.float16]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class Samples:
    """A dataset's days under one split and label.

    Args:
        dataset: Where from.
        symbols: Of these.
        split: Which day is for what.
        spec: The label.
        thresholds: Per symbol; ``None``: fitted on the training days.
    """

    def __init__(
        self,
        dataset: Dataset,
        symbols: Sequence[str],
        split: Split,
        spec: LabelSpec,
        thresholds: dict[str, float] | None = None,
    ) -> None:
        self.dataset, self.symbols, self.split, self.spec = dataset, tuple(symbols), split, spec
        self.thresholds = self._fit_thresholds() if thresholds is None else thresholds
        self._day = functools.lru_cache(maxsize=_DAYS_MIXED)(dataset.day)
        self._labels: dict[tuple[str, str], tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]] = {}

    @property
    def geometry(self) -> ImageGeometry | None:
        """Of the images."""
        return self.dataset.info.geometry

    def days(self, dates: Sequence[str]) -> list[tuple[str, str]]:
        """(symbol, date) of what there is, in order of time."""
        has = {symbol: set(self.dataset.dates(symbol)) for symbol in self.symbols}
        return [(s, date) for date in sorted(set(dates)) for s in self.symbols if date in has[s]]

    def of_day(self, symbol: str, date: str) -> DaySamples:
        """The rows of a day that count and what followed them.

        Rows whose label reaches into what the next group's inputs look back at are left out, unless
        the day itself is of that group: then there is nothing to save, and ``check`` says so.
        """
        day = self._day(symbol, date)
        if (symbol, date) not in self._labels:
            labels = day_labels(day, self.spec, self.thresholds.get(symbol, 0.0))
            keep = day.is_valid & (labels != UNDEFINED) & self._purged(day, date)
            rows = np.flatnonzero(keep)
            self._labels[symbol, date] = rows, labels[rows].astype(np.int64)
        return DaySamples(day, *self._labels[symbol, date])

    def label_counts(self, dates: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64[3] over these days."""
        counts = np.zeros(3, np.int64)
        for symbol, date in self.days(dates):
            counts += np.bincount(self.of_day(symbol, date).labels, minlength=3)
        return counts

    def check(self, fitted_on: Sequence[str]) -> None:
        """Refuse what knows the days it is judged on.

        Raises:
            LeakError: As ``check_leaks``.
        """
        train, validation, test = (
            self._times(dates) for dates in msgspec.structs.astuple(self.split)
        )
        look_back_ms = LOOK_BACK_OF_INPUTS_MS
        for earlier, later in ((train, validation), (train, test), (validation, test)):
            check_leaks(
                earlier,
                later,
                horizon_ms=self.spec.horizon_ms,
                look_back_ms=look_back_ms,
                fitted_on=fitted_on,
                train_dates=self.split.train,
            )

    def blocks(
        self, dates: Sequence[str], random: np.random.Generator | None = None, *, images: bool
    ) -> Iterator[Batch]:
        """All samples of these days, some thousand at a time.

        Where ``random`` is given the days are shuffled, and the blocks of a few days among each other.
        """
        days = self.days(dates)
        if random is not None:
            days = [days[place] for place in random.permutation(len(days))]
        for group in itertools.batched(days, _DAYS_MIXED):
            parts = [
                (symbol, date, first)
                for symbol, date in group
                for first in range(0, len(self.of_day(symbol, date).rows), _BLOCK_ROWS)
            ]
            if random is not None:
                parts = [parts[place] for place in random.permutation(len(parts))]
            for mixed in itertools.batched(parts, _BLOCKS_MIXED):
                yield _joined([self._block(*part, images=images) for part in mixed], random)

    def sample_images(self, samples: DaySamples) -> npt.NDArray[np.float16] | None:
        """Some of a day's images, to fit their scale on."""
        if self.geometry is None or not len(samples.rows):
            return None
        return samples.day.images(samples.rows[:_IMAGES_FOR_SCALE])

    def _block(self, symbol: str, date: str, first: int, *, images: bool) -> Batch:
        samples = self.of_day(symbol, date)
        rows = samples.rows[first : first + _BLOCK_ROWS]
        return Batch(
            samples.day.images(rows) if images else np.empty((len(rows), 0), np.float16),
            samples.day.features[rows],
            samples.labels[first : first + _BLOCK_ROWS],
        )

    def _fit_thresholds(self) -> dict[str, float]:
        found = {}
        for symbol in self.symbols:
            dates = [date for owner, date in self.days(self.split.train) if owner == symbol]
            if self.spec.label == TRIPLE_BARRIER:
                found[symbol] = self.spec.width
                continue
            days = (self.dataset.day(symbol, date) for date in dates)
            moves = [
                smooth_moves(day, self.spec.horizon_s, self.spec.smoothing_s)[day.is_valid]
                for day in days
            ]
            try:
                found[symbol] = fit_alpha(moves)
            except ValueError as error:
                raise ConfigError(f"{symbol} on the training days: {error}") from error
        return found

    def _purged(self, day: DayData, date: str) -> npt.NDArray[np.bool_]:
        keep = np.ones(len(day), np.bool_)
        groups = (self.split.train, self.split.validation, self.split.test)
        for earlier, later in itertools.pairwise(groups):
            if date in earlier and later and date not in later:
                start = np.datetime64(min(later), "ms").astype(np.int64)
                span = np.array([start], np.int64)
                horizon_ms = self.spec.horizon_ms
                keep &= purge(
                    day.decision_ms,
                    span,
                    horizon_ms,
                    max(horizon_ms, LOOK_BACK_OF_INPUTS_MS),
                    LOOK_BACK_OF_INPUTS_MS,
                )
        return keep

    def _times(self, dates: Sequence[str]) -> npt.NDArray[np.int64]:
        found = [self.of_day(*key).decision_ms for key in self.days(dates)]
        return np.concatenate(found) if found else np.empty(0, np.int64)


def day_labels(day: DayData, spec: LabelSpec, threshold: float) -> npt.NDArray[np.int8]:
    """int8[n], -1 where undefined; the threshold is alpha, or the barriers' width."""
    if spec.label == TRIPLE_BARRIER:
        return triple_barrier_labels(day, spec.horizon_s, threshold)
    return smooth_labels(smooth_moves(day, spec.horizon_s, spec.smoothing_s), threshold)


def _joined(parts: Sequence[Batch], random: np.random.Generator | None) -> Batch:
    images = np.concatenate([part.images for part in parts])
    features = np.concatenate([part.features for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    if random is None:
        return Batch(images, features, labels)
    order = random.permutation(len(labels))
    return Batch(images[order], features[order], labels[order])
