"""Does a reading match? Conditions with hysteresis, own distributions, changes and crossings.

``Reading`` × ``Condition`` × ``Memory`` → ``Verdict``; pure but for the memory of the values before,
which is plain data and survives a restart with the engine's state.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence

import msgspec

from alerts.rules import Condition

type Value = float | int | str | bool | None
type Memory = dict[str, float | str]
"""What conditions remember: the value before, or the side of a level; by ``rule|number|labels``."""

_BPS = 10_000


class Reading(msgspec.Struct, frozen=True, dict=True):
    """One event as conditions see it.

    Attributes:
        kind: the kind of event rules name.
        labels: whose reading it is.
        values: every field.
        at_ms: exchange time where the event has one that rules go by, else None.
    """

    kind: str
    labels: dict[str, str]
    values: Mapping[str, Value]
    at_ms: int | None = None

    @functools.cached_property
    def labels_key(self) -> str:
        """The labels as one text."""
        return "|".join(f"{name}={value}" for name, value in sorted(self.labels.items()))


class Verdict(enum.IntEnum):
    """What a reading says about a condition; of several the greatest counts."""

    HOLDS = 0
    BETWEEN = 1  # past the threshold's release, not past the threshold
    UNKNOWN = 2  # the field is undefined or warming up
    OVER = 3


def judge_all(
    conditions: Sequence[Condition], values: Mapping[str, Value], memory: Memory, key: str
) -> Verdict:
    """All conditions together: over where one is, unknown where one is, and so on.

    Every condition is looked at, so that each remembers this reading.
    """
    found = Verdict.HOLDS
    for number, condition in enumerate(conditions):
        verdict = judge(condition, values, memory, f"{key}|{number}")
        found = max(found, verdict)
    return found


def judge(condition: Condition, values: Mapping[str, Value], memory: Memory, key: str) -> Verdict:
    """One condition at one reading.

    Args:
        condition: the comparison.
        values: the reading's fields.
        memory: see ``Memory``; changed.
        key: whose memory.
    """
    value = values.get(condition.field)
    if value is None:
        return Verdict.UNKNOWN
    if condition.equals is not None:
        return _held(value == condition.equals)
    if condition.is_in:
        return _held(value in condition.is_in)
    if condition.not_in:
        return _held(value not in condition.not_in)
    if condition.changed:
        before = memory.get(key)
        memory[key] = str(value)
        return _held(before is not None and before != str(value))
    if isinstance(value, str):
        return Verdict.UNKNOWN  # the field holds no number this time
    if condition.rises is not None:
        last = memory.get(key)
        memory[key] = float(value)
        return _held(isinstance(last, float) and value - last >= condition.rises)
    threshold = condition.threshold
    if threshold is None:
        return _crossing(condition, float(value), values, memory, key)
    return _compared(condition, threshold, float(value), values)


def _compared(
    condition: Condition, threshold: float, value: float, values: Mapping[str, Value]
) -> Verdict:
    scale = _number(values.get(condition.of)) if condition.of else 1.0
    if scale is None:
        return Verdict.UNKNOWN
    on = threshold * scale
    off = on if condition.release is None else condition.release * scale
    if condition.outside is not None:
        value = abs(value)
    if condition.below is not None:
        value, on, off = -value, -on, -off
    if value >= on:
        return Verdict.HOLDS
    return Verdict.BETWEEN if value > off else Verdict.OVER


def _crossing(
    condition: Condition, value: float, values: Mapping[str, Value], memory: Memory, key: str
) -> Verdict:
    """A side of the level is taken ``band_bps`` beyond it; within the band the side before counts."""
    level = condition.crosses
    if level is None:
        level = _number(values.get(condition.crosses_field))
    if level is None:
        return Verdict.UNKNOWN
    if abs(value - level) < abs(level) * condition.band_bps / _BPS:
        return Verdict.OVER
    side = "above" if value > level else "below"
    # A level that itself moves (yesterday's high at midnight) is no crossing.
    before, memory[key] = memory.get(key), f"{side} {level}"
    return _held(before == f"{'below' if side == 'above' else 'above'} {level}")


def _held(holds: bool) -> Verdict:  # noqa: FBT001 - a truth value is all there is
    return Verdict.HOLDS if holds else Verdict.OVER


def _number(value: Value) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)
