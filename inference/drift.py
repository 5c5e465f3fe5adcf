"""Whether a model's inputs still look like those it was trained on: population stability.

Feature rows as they are decided on → PSI per feature over the last day, against the training shares of
the card; an alert rule reads it. PSI = Σ (a − e) ln(a / e) over bins; above 0.25 the population has changed, as credit scoring
has it (Siddiqi, Credit Risk Scorecards, 2006). A day, because some inputs follow the hour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from domain.model_card import InputHistogram

HOURS: Final = 24
_HOUR_MS: Final = 3_600_000
_LEAST_ROWS: Final = 1_000
_LEAST_SHARE: Final = 1e-4  # of a bin, so that an empty one does not weigh without end


class DriftWatch:
    """Counts the inputs of a model by hour; ``psi`` is of the last 24 whole hours, by input.

    Args:
        histograms: Of the card.
        names: Columns of the feature rows.
    """

    def __init__(self, histograms: Sequence[InputHistogram], names: Sequence[str]) -> None:
        self._histograms = [h for h in histograms if h.name in names]
        self._columns = [list(names).index(h.name) for h in self._histograms]
        self._hours: deque[tuple[int, list[npt.NDArray[np.int64]]]] = deque()
        self.psi: dict[str, float] = {}

    def add(self, at_ms: int, features: npt.NDArray[np.float32]) -> None:
        """Count one row; with the first of an hour the hours before are judged.

        Args:
            at_ms: When it was decided on.
            features: float32[F].
        """
        hour = at_ms // _HOUR_MS
        if not self._hours or hour > self._hours[-1][0]:
            self._judge(hour)
            empty = [np.zeros(len(h.edges) + 2, np.int64) for h in self._histograms]
            self._hours.append((hour, empty))
        counts = self._hours[-1][1]
        for place, (histogram, column) in enumerate(
            zip(self._histograms, self._columns, strict=True)
        ):
            value = float(features[column])
            is_defined = np.isfinite(value)
            counts[place][
                1 + int(np.searchsorted(histogram.edges, value, side="right")) if is_defined else 0
            ] += 1

    def _judge(self, hour: int) -> None:
        """Once the hours of a day are there; before, nothing is said."""
        while self._hours and self._hours[0][0] < hour - HOURS:
            self._hours.popleft()
        if not self._hours or self._hours[0][0] > hour - HOURS:
            self.psi = {}
            return
        psi = {}
        for place, histogram in enumerate(self._histograms):
            counts = np.sum([counts[place] for _, counts in self._hours], axis=0)
            if counts.sum() >= _LEAST_ROWS:
                psi[histogram.name] = stability(histogram, counts)
        self.psi = psi  # replaced as a whole: others read it


def stability(histogram: InputHistogram, counts: npt.NDArray[np.int64]) -> float:
    """PSI of counts against a training histogram; being undefined is a bin like any other.

    Args:
        histogram: Of the card.
        counts: int64[1 + bins], undefined values first.
    """
    defined = 1.0 - histogram.undefined_share
    shares = [histogram.undefined_share, *(share * defined for share in histogram.shares)]
    expected = np.maximum(shares, _LEAST_SHARE)
    actual = np.maximum(counts / counts.sum(), _LEAST_SHARE)
    return float(((actual - expected) * np.log(actual / expected)).sum())
