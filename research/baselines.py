"""What a model has to beat: the majority, the last sign, and models of the features (scikit-learn).

Samples of training days → predictors of probabilities, calibrated on validation days like the model.
Without scikit-learn only the first two are there. They are the same whenever they are fitted again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from research.calibration import Calibration, fit_calibration
from research.samples import Samples
from research.scaling import InputScale

MAJORITY: Final = "majority"
ALWAYS_FLAT: Final = "always_flat"
LAST_SIGN: Final = "last_sign"
LOGISTIC_OFI: Final = "logistic_ofi"
GRADIENT_BOOSTING: Final = "gradient_boosting"
_LAST_RETURN: Final = "mid_return_bps_12"
_MOST_ROWS: Final = 100_000
_SURE: Final = 0.9  # of a baseline that only names a class; calibration then says how right it is

type Floats = npt.NDArray[np.float64]
type Features = npt.NDArray[np.float32]
type Predictor = Callable[[Features], Floats]


def fit_baselines(
    samples: Samples, scale: InputScale, seed: int, counts: npt.NDArray[np.int64]
) -> dict[str, Predictor]:
    """Predictors of float64[n, 3] by name.

    Args:
        samples: Their training days fit, their validation days calibrate.
        scale: Of the features.
        seed: Of the boosting.
        counts: int64[3] of the training days' labels.
    """
    climatology = counts / max(int(counts.sum()), 1)
    features, labels = _rows(samples, samples.split.train)
    names = samples.dataset.info.feature_names
    raw: dict[str, Predictor] = {}
    if _LAST_RETURN in names:
        raw[LAST_SIGN] = _last_sign(names.index(_LAST_RETURN))
    if names and len(np.unique(labels)) > 1:
        raw |= _learned(features, labels, scale, names, seed)
    held, outcome = _rows(samples, samples.split.validation)
    fitted = {name: _calibrated(found, held, outcome) for name, found in raw.items()}
    flat = np.array([0.0, 1.0, 0.0])
    return {MAJORITY: _constant(climatology), ALWAYS_FLAT: _constant(flat), **fitted}


def _rows(samples: Samples, dates: tuple[str, ...]) -> tuple[Features, npt.NDArray[np.int64]]:
    """Evenly spread rows, so that any number of days fits into memory."""
    days = samples.days(dates)
    parts, outcomes = [], []
    most = max(1, _MOST_ROWS // max(len(days), 1))
    for symbol, date in days:
        found = samples.of_day(symbol, date)
        step = max(1, -(-len(found.rows) // most))
        parts.append(found.day.features[found.rows[::step]])
        outcomes.append(found.labels[::step])
    if not parts:
        return np.empty((0, len(samples.dataset.info.feature_names)), np.float32), np.empty(
            0, np.int64
        )
    return np.concatenate(parts), np.concatenate(outcomes)


def _constant(shares: Floats) -> Predictor:
    return lambda features: np.tile(shares, (len(features), 1))


def _last_sign(column: int) -> Predictor:
    """The sign of the last minute's return goes on; flat where it is zero or undefined."""

    def predict(features: Features) -> Floats:
        called = np.sign(np.nan_to_num(features[:, column])).astype(np.int64) + 1
        rest = (1.0 - _SURE) / 2.0
        return np.where(np.arange(3) == called[:, None], _SURE, rest)

    return predict


def _learned(
    features: Features,
    labels: npt.NDArray[np.int64],
    scale: InputScale,
    names: tuple[str, ...],
    seed: int,
) -> dict[str, Predictor]:
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {}
    columns = [k for k, name in enumerate(names) if "ofi" in name]

    def levels(rows: Features) -> Floats:
        scaled = (rows[:, columns] - scale.feature_mean[columns]) / scale.feature_scale[columns]
        return np.nan_to_num(scaled.astype(np.float64), posinf=0.0, neginf=0.0)

    boosting = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        random_state=seed,
    ).fit(features, labels)
    found = {GRADIENT_BOOSTING: _of_sklearn(boosting, lambda rows: rows)}
    if columns:
        linear = LogisticRegression(max_iter=500).fit(levels(features), labels)
        found[LOGISTIC_OFI] = _of_sklearn(linear, levels)
    return found


def _of_sklearn(model: Any, inputs: Callable[[Features], Any]) -> Predictor:
    def predict(features: Features) -> Floats:
        shares = np.zeros((len(features), 3))
        if len(features):
            shares[:, model.classes_] = model.predict_proba(inputs(features))
        return shares

    return predict


def _calibrated(
    predict: Predictor, features: Features, outcome: npt.NDArray[np.int64]
) -> Predictor:
    def logits(rows: Features) -> Floats:
        found: Floats = np.log(np.clip(predict(rows), 1e-6, 1.0))
        return found

    fitted = fit_calibration(logits(features), outcome) if len(outcome) else Calibration()
    return lambda rows: fitted.probabilities(logits(rows))
