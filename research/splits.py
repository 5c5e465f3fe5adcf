"""Which days train, validate and test a model, and proof that the past does not know the future. Pure.

Dates → walk-forward splits; times of samples → those to keep; and the check that training runs before
it believes a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import OrderFlowError

type Times = npt.NDArray[np.int64]


class LeakError(OrderFlowError):
    """Training would see what it is tested on; the message says where."""


class Split(msgspec.Struct, frozen=True):
    """Days of one step of a walk-forward, each group after the one before."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def walk_forward(
    dates: Sequence[str], train: int, validation: int, test: int, step: int | None = None
) -> list[Split]:
    """Splits in order of time; each begins ``step`` days after the one before.

    Args:
        dates: ``YYYY-MM-DD``; days that are missing are not counted.
        train: Days to train on; also of the others.
        validation: Days to choose and calibrate on.
        test: Days to judge on.
        step: Default: ``test``, so that every day is tested once.

    Raises:
        ValueError: A count makes no sense, or there are too few days.
    """
    ordered = sorted(set(dates))
    step = test if step is None else step
    if min(train, test, step) < 1 or validation < 0:
        raise ValueError("train, test and step need at least one day, validation none or more")
    length = train + validation + test
    if len(ordered) < length:
        raise ValueError(f"a split needs {length} days, there are {len(ordered)}")
    splits = []
    for first in range(0, len(ordered) - length + 1, step):
        middle, last = first + train, first + train + validation
        splits.append(
            Split(
                tuple(ordered[first:middle]),
                tuple(ordered[middle:last]),
                tuple(ordered[last : last + test]),
            )
        )
    return splits


def purge(
    decision_ms: Times, test_ms: Times, horizon_ms: int, embargo_ms: int, look_back_ms: int = 0
) -> npt.NDArray[np.bool_]:
    """Which samples may train, given those that test.

    A sample goes if its label's time ``[t, t + horizon]`` overlaps that of the test, or if it lies
    within ``embargo_ms`` after the test's (López de Prado 2018, ch. 7).

    Args:
        decision_ms: int64[n].
        test_ms: int64[m], one contiguous block.
        horizon_ms: How far a label looks ahead.
        embargo_ms: At least the longer one of the horizon and the features' look-back.
        look_back_ms: Count what the test's inputs look back at as the test's time, too.

    Returns:
        bool[n].
    """
    if not len(test_ms):
        return np.ones(len(decision_ms), np.bool_)
    first, last = int(test_ms.min()) - look_back_ms, int(test_ms.max()) + horizon_ms
    is_before = decision_ms + horizon_ms < first
    is_after: npt.NDArray[np.bool_] = decision_ms > last + embargo_ms
    return is_before | is_after


def check_leaks(
    train_ms: Times,
    test_ms: Times,
    *,
    horizon_ms: int,
    look_back_ms: int,
    fitted_on: Iterable[str] = (),
    train_dates: Iterable[str] = (),
) -> None:
    """Refuse a split whose training samples or fitted numbers know the test.

    Args:
        train_ms: int64[n], decisions that train.
        test_ms: int64[m], decisions that test (or validate).
        horizon_ms: How far a label looks ahead.
        look_back_ms: How far an input looks back.
        fitted_on: Days that scalers, thresholds and the like were fitted on.
        train_dates: Days that may train.

    Raises:
        LeakError: A training label or input shares time with the test's, or something was fitted on
            other days.
    """
    strange = sorted(set(fitted_on) - set(train_dates))
    if strange:
        raise LeakError(f"fitted on {', '.join(strange)}, which no training day is")
    if not len(test_ms) or not len(train_ms):
        return
    first, last = int(test_ms.min()) - look_back_ms, int(test_ms.max()) + horizon_ms
    overlaps = (train_ms + horizon_ms > first) & (train_ms - look_back_ms < last)
    if overlaps.any():
        worst = int(train_ms[overlaps][0])
        raise LeakError(
            f"{int(overlaps.sum())} training samples share time with the test, the first at "
            f"{worst} ms: their inputs or labels reach into {first} to {last} ms"
        )
