"""The training loop, in torch: epochs over days from disk, a checkpoint after each, early stopping.

Samples and a ``Network`` → the weights of its best epoch. What an epoch does depends on the seed, the
epoch's number and the weights alone, so a resumed run on a CPU ends with the bits of one that was
never stopped. Import this module lazily.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from domain.errors import ConfigError
from lake.atomic import write_atomic
from research.metrics import confusion, macro_f1, matthews
from research.models import Network
from research.presets import Preset
from research.samples import Batch, Samples

CHECKPOINT_FILE: Final = "checkpoint.pt"
_MOST_WEIGHT: Final = 10.0
_EVALUATION_ROWS: Final = 512


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One finished epoch; ``validation_`` numbers are before calibration."""

    epoch: int
    epochs: int
    train_loss: float
    validation_loss: float
    validation_macro_f1: float
    validation_mcc: float
    seconds: float
    is_best: bool


class Fit:
    """A run of training.

    Args:
        network: Fresh, with its input scale set.
        preset: How to train it.
        samples: What on.
        seed: Of weights, order and dropout.
        epochs: At most so many.
        device: ``cpu`` or ``cuda``.
        path: The checkpoint.
        identity: What must be equal for a checkpoint to be gone on with.
    """

    def __init__(
        self,
        network: Network,
        preset: Preset,
        samples: Samples,
        *,
        seed: int,
        epochs: int,
        device: str,
        path: Path,
        identity: str,
    ) -> None:
        self.network = network.to(device)
        self._preset, self._samples, self._seed = preset, samples, seed
        self._epochs, self._device, self._path = epochs, device, path
        self._identity = identity
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=preset.learning_rate, weight_decay=preset.weight_decay
        )
        uses_half = device == "cuda" and not torch.cuda.is_bf16_supported()
        self._scaler = torch.amp.GradScaler(device, enabled=uses_half)
        self._half = torch.float16 if uses_half else torch.bfloat16
        counts = samples.label_counts(samples.split.train)
        weights = counts.sum() / np.maximum(3.0 * counts, 1.0)
        self._loss = nn.CrossEntropyLoss(
            torch.tensor(np.minimum(weights, _MOST_WEIGHT), dtype=torch.float32, device=device)
        )
        self._done, self._best_loss, self._since_best = 0, math.inf, 0
        self._best: dict[str, Any] = _copy(network.state_dict())

    def resume(self) -> int:
        """Go on from the checkpoint; the epochs it has.

        Raises:
            ConfigError: It is missing, damaged, or of a run with other settings.
        """
        try:
            held = torch.load(self._path, map_location=self._device, weights_only=True)
            is_same = held["identity"] == self._identity
        except FileNotFoundError as error:
            raise ConfigError(f"--resume: there is no {self._path}") from error
        except Exception as error:  # torch raises whatever its reader meets in a damaged file
            raise ConfigError(f"--resume: {self._path} cannot be read: {error}") from error
        if not is_same:
            raise ConfigError(f"--resume: {self._path} is of a run with other settings or data")
        self.network.load_state_dict(held["network"])
        self._optimizer.load_state_dict(held["optimizer"])
        self._scaler.load_state_dict(held["scaler"])
        self._best, self._done = held["best"], held["done"]
        self._best_loss, self._since_best = held["best_loss"], held["since_best"]
        return self._done

    def run(self, show: Callable[[Progress], None]) -> None:
        """Train until the last epoch or until validation stopped improving; then take the best.

        A Ctrl-C goes through: the checkpoint is that of the last finished epoch.
        """
        if self._done == 0:
            self.save()
        while self._done < self._epochs and self._since_best < self._preset.patience:
            started_s = time.monotonic()
            train_loss = self._epoch(self._done)
            logits, outcome = self.logits(self._samples.split.validation)
            loss = _log_loss(logits, outcome)
            is_best = loss < self._best_loss
            if is_best:
                self._best, self._best_loss = _copy(self.network.state_dict()), loss
            self._since_best = 0 if is_best else self._since_best + 1
            self._done += 1
            self.save()
            table = confusion(outcome, logits.argmax(axis=1))
            show(
                Progress(
                    epoch=self._done,
                    epochs=self._epochs,
                    train_loss=train_loss,
                    validation_loss=loss,
                    validation_macro_f1=float(macro_f1(table)),
                    validation_mcc=float(matthews(table)),
                    seconds=time.monotonic() - started_s,
                    is_best=is_best,
                )
            )
        self.network.load_state_dict(self._best)
        self.network.eval()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        held = {
            "identity": self._identity,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": self._best,
            "best_loss": self._best_loss,
            "since_best": self._since_best,
            "done": self._done,
        }
        buffer = io.BytesIO()
        torch.save(held, buffer)
        write_atomic(self._path, buffer.getvalue(), overwrite=True)

    def logits(
        self, dates: tuple[str, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """float64[n, 3] and int64[n] of these days, in order of time; not calibrated."""
        self.network.eval()
        found, outcomes = [np.empty((0, 3))], [np.empty(0, np.int64)]
        with torch.no_grad():
            for block in self._samples.blocks(dates, images=self._preset.takes_image):
                for batch in _pieces(block, _EVALUATION_ROWS):
                    logits = self.network.logits(*tensors(batch, self._device))
                    found.append(logits.double().cpu().numpy())
                outcomes.append(block.labels)
        return np.concatenate(found), np.concatenate(outcomes)

    def _epoch(self, number: int) -> float:
        """Train over all training days once; the mean loss."""
        torch.manual_seed(self._seed * 100_003 + number)
        random = np.random.default_rng((self._seed, number))
        rate = self._preset.learning_rate * (1.0 + math.cos(math.pi * number / self._epochs)) / 2.0
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        total, count = 0.0, 0
        dates, images = self._samples.split.train, self._preset.takes_image
        for block in self._samples.blocks(dates, random, images=images):
            for batch in _pieces(block, self._preset.batch):
                total += self._step(batch) * len(batch.labels)
                count += len(batch.labels)
        return total / max(count, 1)

    def _step(self, batch: Batch) -> float:
        labels = torch.from_numpy(batch.labels).to(self._device)
        with self._precision():
            loss = self._loss(self.network.logits(*tensors(batch, self._device)).float(), labels)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return float(loss.detach())

    def _precision(self) -> AbstractContextManager[Any]:
        """Mixed precision on a GPU alone: a CPU's results stay exact and repeatable."""
        if self._device != "cuda":
            return nullcontext()
        context: AbstractContextManager[Any] = torch.autocast("cuda", dtype=self._half)
        return context


def tensors(batch: Batch, device: str) -> tuple[Any, Any]:
    """Image float32[k,T,C,H,W] and features float32[k,F]."""
    return (
        torch.from_numpy(batch.images).to(device).float(),
        torch.from_numpy(batch.features).to(device),
    )


def pick_device(wanted: str) -> str:
    """``auto`` is the GPU where there is one.

    Raises:
        ConfigError: A GPU is wanted and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError("--device: torch finds no CUDA device here; use cpu or auto")
    return "cuda" if has_gpu and wanted != "cpu" else "cpu"


def _pieces(block: Batch, size: int) -> Iterator[Batch]:
    for first in range(0, len(block.labels), size):
        rows = slice(first, first + size)
        yield Batch(block.images[rows], block.features[rows], block.labels[rows])


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in state.items()}


def _log_loss(logits: npt.NDArray[np.float64], outcome: npt.NDArray[np.int64]) -> float:
    """Mean log loss, classes weighed alike: the networks are trained so."""
    if not len(outcome):
        return math.inf
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(outcome)), outcome]
    return float(np.mean([losses[outcome == k].mean() for k in np.unique(outcome)]))
