"""The parts' own settings as variables, ``<PART>_<FIELD>``: one per number, described by its docstring.

Frozen structs of the parts → names, defaults and descriptions; texts of an environment → the structs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
from pydantic import PlainValidator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from data_pipeline.pipeline import PipelineSettings
from flow_analyzer import FlowSettings
from microstructure.trade_flags import ValidatorSettings
from rules_analyst import RulesSettings


class _Threshold(msgspec.Struct, frozen=True):
    """One number of a part's own settings, and the variable that sets it."""

    variable: str
    path: tuple[str, ...]
    kind: Any
    default: object
    description: str


def thresholds(name: str, part: type[msgspec.Struct]) -> list[_Threshold]:
    """Every number in ``part`` and in the structs inside it, except what other settings decide."""
    found: list[_Threshold] = []
    described = dict(
        re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", part.__doc__ or "", re.MULTILINE)
    )
    for field in msgspec.structs.fields(part):
        variable = f"{name}_{field.name}".upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found += [
                msgspec.structs.replace(inner, path=(field.name, *inner.path))
                for inner in thresholds(variable, field.type)
            ]
        elif field.type in _READ_AS and variable not in _DECIDED_ELSEWHERE:
            text = described.get(field.name, field.name.replace("_", " "))
            description = " ".join(text.split()).rstrip(".")
            found.append(
                _Threshold(variable, (field.name,), field.type, field.default, description)
            )
    return found


def _as_numbers(text: str | tuple[object, ...]) -> tuple[Decimal, ...]:
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(Decimal(str(part).strip()) for part in parts)


_READ_AS: Mapping[Any, tuple[Callable[[Any], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    Decimal: (Decimal, "a number"),
    tuple[Decimal, ...]: (_as_numbers, "numbers, comma between two, each"),
}
_DECIDED_ELSEWHERE = {"FLOW_WHALE_NOTIONAL", "PIPELINE_WINDOW_MS"}


def part_of[T: msgspec.Struct](name: str, part: type[T]) -> PlainValidator:
    """Builds a part's settings from ``{variable: text or number}``; all finite and not negative."""

    def build(value: object) -> T:
        if isinstance(value, part):
            return value
        if not isinstance(value, dict):
            raise ValueError("is set by one variable per number")  # noqa: TRY004 - for pydantic
        nested: dict[str, Any] = {}
        for threshold in thresholds(name, part):
            if threshold.variable in value:
                inner = nested
                for step in threshold.path[:-1]:
                    inner = inner.setdefault(step, {})
                inner[threshold.path[-1]] = _read(threshold, value[threshold.variable])
        return msgspec.convert(nested, part)

    return PlainValidator(build)


def _read(threshold: _Threshold, value: object) -> object:
    read, words = _READ_AS[threshold.kind]
    try:
        number = read(value)
        sound = all(
            math.isfinite(one) and one >= 0
            for one in (number if isinstance(number, tuple) else (number,))
        )
    except (ValueError, TypeError, ArithmeticError):
        sound = False
    if not sound:
        raise ValueError(f"{threshold.variable}: must be {words} ≥ 0")
    return number


class PartVariables(PydanticBaseSettingsSource):
    """The variables of the parts' own settings, in one environment or file."""

    def __init__(self, settings: type[BaseSettings], texts: Mapping[str, str | None]) -> None:
        super().__init__(settings)
        self._texts = {name.upper(): text for name, text in texts.items() if text}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """What is set of one part, if anything."""
        names = {t.variable for t in thresholds(field_name, PARTS[field_name])}
        given = {name: text for name, text in self._texts.items() if name in names}
        return given or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {part: self.get_field_value(None, part)[0] for part in PARTS}
        return {part: values for part, values in found.items() if values}


PARTS: Mapping[str, type[msgspec.Struct]] = {
    "validator": ValidatorSettings,
    "flow": FlowSettings,
    "pipeline": PipelineSettings,
    "rules": RulesSettings,
}
"""Parts whose own numbers are variables: ``<PART>_<FIELD>``, ``<PART>_<STRUCT>_<FIELD>``."""
