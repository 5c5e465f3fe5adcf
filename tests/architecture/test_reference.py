"""docs/reference.md names every column, event field, verb and exit code there is, and nothing else."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec

from domain.errors import ConfigError, ConnectionLost, OrderFlowError
from domain.events import Signal, Topic
from domain.features import FeatureRow


def section(repository: Path, title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    text = (repository / "docs" / "reference.md").read_text(encoding="utf-8")
    _, level, rest = re.split(rf"^(#+) {title}$", text, maxsplit=1, flags=re.MULTILINE)
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def expanded(name: str) -> list[str]:
    """``a_{x,y}_b`` → ``a_x_b``, ``a_y_b``."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def test_every_feature_column_is_described_and_none_is_invented(repository: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", section(repository, "Feature columns"), re.MULTILINE)
    named = [
        name for row in rows for code in re.findall(r"`([^`]+)`", row) for name in expanded(code)
    ]
    assert sorted(named) == sorted(FeatureRow.__struct_fields__)


def test_every_signal_field_and_topic_is_named(repository: Path) -> None:
    signals, events = section(repository, "Signals"), section(repository, "Events")
    for field in msgspec.structs.fields(Signal):
        assert re.search(rf"\b{field.name}\b", signals), field.name
    for topic in Topic:
        assert re.search(rf"\b{topic.value}\b", events), topic


def test_exit_codes_are_those_of_the_errors(repository: Path) -> None:
    text = section(repository, "Command line")
    for code in (0, OrderFlowError.exit_code, ConfigError.exit_code, ConnectionLost.exit_code):
        assert f"\n| {code} | " in text
