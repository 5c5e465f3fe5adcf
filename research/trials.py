"""The log of every variant tried: what a good result must be discounted for.

One JSON line per training run in ``models/trials.jsonl``, appended → the deflated Sharpe ratio.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from domain.errors import StorageError
from evaluation.scores import expected_best_sharpe, probabilistic_sharpe
from research.trades import Money

TRIALS_FILE: Final = "trials.jsonl"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One trained variant; ``sharpe`` is per ``period_s`` on its test days."""

    name: str
    at_ms: int
    preset: str
    label: str
    horizon_s: int
    seed: int
    sharpe: float
    period_s: float


def log_trial(folder: Path, trial: Trial) -> None:
    """Append.

    Raises:
        StorageError: The file cannot be written.
    """
    path = folder / TRIALS_FILE
    try:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(trial) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def trials_of(folder: Path) -> list[Trial]:
    """All variants tried there; a line that was cut off by a crash does not count."""
    try:
        lines = (folder / TRIALS_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {folder / TRIALS_FILE}: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Trial))
        except msgspec.DecodeError:
            continue
    return found


def deflated_sharpe(money: Money, trials: list[Trial]) -> float | None:
    """Probability that the gain is real, given how many variants were tried."""
    ratios = [trial.sharpe for trial in trials]
    best = expected_best_sharpe(float(np.var(ratios)), len(ratios)) if ratios else 0.0
    if not money.trades:
        return None
    return probabilistic_sharpe(money.sharpe, best, money.periods, money.skew, money.kurtosis)
