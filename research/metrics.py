"""Scores of class probabilities, with intervals over blocks of time. Pure.

Outcomes and probabilities → macro-F1, Matthews correlation (multiclass, Gorodkin 2004), Brier and its
skill against the training days' frequencies, calibration. ``Judged`` are one predictor's samples.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from evaluation.blocks import Blocks, Estimate
from evaluation.scores import Bin, brier, calibration_error, reliability

CLASS_COUNT = 3

type Floats = npt.NDArray[np.float64]
type Classes = npt.NDArray[np.integer]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """How well classes were told; ``None`` where undefined.

    ``chance`` is macro-F1 less that of the same calls at random moments.
    """

    samples: int
    macro_f1: Estimate | None
    mcc: Estimate | None
    accuracy: Estimate | None
    chance: Estimate | None
    brier: Estimate | None
    brier_skill: Estimate | None
    calibration_error: float | None


def confusion(outcome: Classes, called: Classes) -> Floats:
    """float64[3, 3]: rows what happened, columns what was called."""
    cells = np.bincount(outcome * CLASS_COUNT + called, minlength=CLASS_COUNT**2)
    return cells.reshape(CLASS_COUNT, CLASS_COUNT).astype(np.float64)


def macro_f1(table: Floats) -> Floats:
    """float64[...] of tables float64[..., 3, 3]; a class that is neither there nor called scores 0."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    total = table.sum(axis=-1) + table.sum(axis=-2)
    scores: Floats = np.divide(2.0 * hits, total, out=np.zeros_like(total), where=total > 0.0)
    return scores.mean(axis=-1)


def matthews(table: Floats) -> Floats:
    """float64[...]; 0 where only one class happened or was called."""
    happened, called = table.sum(axis=-1), table.sum(axis=-2)
    count = happened.sum(axis=-1)
    hits = np.diagonal(table, axis1=-2, axis2=-1).sum(axis=-1)
    top = hits * count - (happened * called).sum(axis=-1)
    spread = (count**2 - (happened**2).sum(axis=-1)) * (count**2 - (called**2).sum(axis=-1))
    return np.divide(
        top, np.sqrt(np.maximum(spread, 0.0)), out=np.zeros_like(top), where=spread > 0
    )


def at_random(table: Floats) -> Floats:
    """The table expected of the same calls at random moments."""
    happened, called = table.sum(axis=-1), table.sum(axis=-2)
    count = np.maximum(happened.sum(axis=-1), 1.0)[..., None, None]
    expected: Floats = happened[..., :, None] * called[..., None, :] / count
    return expected


def cells(outcome: Classes, called: Classes) -> list[Floats]:
    """Nine float64[n]: which cell of the confusion table each sample is in."""
    place = outcome * CLASS_COUNT + called
    return [(place == k).astype(np.float64) for k in range(CLASS_COUNT**2)]


def table_of(sums: tuple[np.ndarray, ...]) -> Floats:
    """Nine float64[draws] → float64[draws, 3, 3]."""
    return np.stack(sums, axis=-1).reshape(-1, CLASS_COUNT, CLASS_COUNT)


def score(outcome: Classes, probabilities: Floats, climatology: Floats, blocks: Blocks) -> Scores:
    """All scores of one predictor.

    Args:
        outcome: int[n].
        probabilities: float64[n, 3]; the most probable class is what is called.
        climatology: float64[3], frequencies of the training days.
        blocks: Of the samples' times.
    """
    called = probabilities.argmax(axis=1)
    places = cells(outcome, called)
    loss = brier(probabilities, outcome)
    reference = brier(np.broadcast_to(climatology, probabilities.shape), outcome)
    return Scores(
        samples=len(outcome),
        macro_f1=blocks.estimate(lambda *s: macro_f1(table_of(s)), *places),
        mcc=blocks.estimate(lambda *s: matthews(table_of(s)), *places),
        accuracy=blocks.mean((outcome == called).astype(np.float64)),
        chance=blocks.estimate(
            lambda *s: macro_f1(table_of(s)) - macro_f1(at_random(table_of(s))), *places
        ),
        brier=blocks.mean(loss),
        brier_skill=blocks.estimate(lambda own, base: 1.0 - own / base, loss, reference),
        calibration_error=calibration_error(all_bins(outcome, probabilities)),
    )


def macro_f1_gain(
    outcome: Classes, probabilities: Floats, other: Floats, blocks: Blocks
) -> Estimate | None:
    """Macro-F1 less that of another predictor on the same samples, paired."""
    half = CLASS_COUNT**2

    def gain(*sums: np.ndarray) -> np.ndarray:
        return macro_f1(table_of(sums[:half])) - macro_f1(table_of(sums[half:]))

    return blocks.estimate(
        gain,
        *cells(outcome, probabilities.argmax(axis=1)),
        *cells(outcome, other.argmax(axis=1)),
    )


def all_bins(outcome: Classes, probabilities: Floats) -> list[Bin]:
    """The reliability of every class's probability, all together."""
    happened = np.eye(CLASS_COUNT)[outcome]
    return reliability(probabilities.ravel(), happened.ravel())
