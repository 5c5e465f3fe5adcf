"""Calibration of logits: one temperature and a bias per class, fitted on validation days. Pure.

``softmax(logits / T + b)`` (bias-corrected temperature scaling, Alexandari et al. 2020): training weighs
rare classes up, and the bias gives their true frequency back.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

_STEPS: Final = 50
_RIDGE: Final = 1e-3  # keeps the common shift of the biases, which changes nothing, at zero
_FEWEST: Final = 30

type Floats = npt.NDArray[np.float64]


class Calibration(msgspec.Struct, frozen=True):
    """What logits are multiplied by and added to before the softmax."""

    temperature_inverse: float = 1.0
    bias: tuple[float, ...] = (0.0, 0.0, 0.0)

    def probabilities(self, logits: Floats) -> Floats:
        """float64[n, 3]."""
        return softmax(logits * self.temperature_inverse + np.array(self.bias))


def softmax(logits: Floats) -> Floats:
    """float64[n, classes], rows sum to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def fit_calibration(logits: Floats, outcome: npt.NDArray[np.integer]) -> Calibration:
    """Minimise the log loss by Newton's method (it is convex), with halved steps where needed.

    Args:
        logits: float64[n, 3] of validation days.
        outcome: int[n], classes.

    Returns:
        The identity where there are too few samples to fit anything.
    """
    count, classes = logits.shape
    if count < _FEWEST:
        return Calibration()
    happened = np.eye(classes)[outcome]
    at = np.array([1.0, *([0.0] * classes)])
    loss = _loss(at, logits, outcome)
    for _ in range(_STEPS):
        step = np.linalg.solve(*_curvature(at, logits, happened))
        size = 1.0
        while size > 1e-6:
            tried = at - size * step
            tried[0] = max(tried[0], 0.0)  # a negative one would turn the model around
            found = _loss(tried, logits, outcome)
            if found < loss:
                break
            size /= 2.0
        else:
            break
        at, gain, loss = tried, loss - found, found
        if gain < 1e-12:
            break
    return Calibration(float(at[0]), tuple(at[1:].tolist()))


def _loss(at: Floats, logits: Floats, outcome: npt.NDArray[np.integer]) -> float:
    shares = softmax(logits * at[0] + at[1:])
    likely = shares[np.arange(len(outcome)), outcome]
    return float(-np.log(np.maximum(likely, 1e-300)).mean() + _RIDGE / 2.0 * (at[1:] @ at[1:]))


def _curvature(at: Floats, logits: Floats, happened: Floats) -> tuple[Floats, Floats]:
    """The Hessian and the gradient of the loss."""
    count, classes = logits.shape
    shares = softmax(logits * at[0] + at[1:])
    moved = np.concatenate([logits[:, :, None], np.broadcast_to(np.eye(classes), (count, 3, 3))], 2)
    gradient = np.einsum("nc,nck->k", shares - happened, moved) / count
    mean = np.einsum("nc,nck->nk", shares, moved)
    hessian = np.einsum("nc,nck,ncl->kl", shares, moved, moved) - mean.T @ mean
    hessian = hessian / count + 1e-9 * np.eye(classes + 1)
    gradient[1:] += _RIDGE * at[1:]
    hessian[1:, 1:] += _RIDGE * np.eye(classes)
    return hessian, gradient
