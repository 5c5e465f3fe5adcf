"""Doubtful windows are flagged, counted and kept."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

from data_pipeline.pipeline import DataPipeline, PipelineSettings
from data_pipeline.window_flags import WindowFlagSettings, WindowSuspect
from tests.pipeline_samples import DAY, WINDOW_MS, metrics, silent

NONE = WindowSuspect(0)
OPEN_JUMP, RETURN = WindowSuspect.OPEN_JUMP, WindowSuspect.RETURN


def pipeline(**settings: Any) -> DataPipeline:
    return DataPipeline(PipelineSettings(flags=WindowFlagSettings(**settings)))


def suspect(runner: DataPipeline, k: int, first: str, last: str | None = None) -> int | None:
    opened, closed = Decimal(first), Decimal(last or first)
    window = metrics(
        DAY + k * WINDOW_MS,
        price=first,
        open=opened,
        close=closed,
        low=min(opened, closed),
        high=max(opened, closed),
    )
    row = runner.process(window, None).row
    assert row is not None
    return row.window_suspect


def walk(runner: DataPipeline, windows: int) -> None:
    """Returns of about one basis point around 100."""
    rng = random.Random(5)
    for k in range(windows):
        assert suspect(runner, k, f"{100 + rng.uniform(-0.01, 0.01):.4f}") in {None, NONE}
    assert suspect(runner, windows, "100") == NONE


@pytest.mark.parametrize(
    ("first", "last", "flag"),
    [
        ("100.19", "100", NONE),
        ("100.21", "100", OPEN_JUMP),
        ("99.79", "100", OPEN_JUMP),
        ("100", "100.09", NONE),
        ("100", "101", RETURN),
        ("100", "99", RETURN),
        ("101", "101", OPEN_JUMP | RETURN),
    ],
)
def test_an_open_far_from_the_last_close_and_an_outlying_return_are_flagged(
    first: str, last: str, flag: WindowSuspect
) -> None:
    runner = pipeline()
    walk(runner, 80)
    assert suspect(runner, 81, first, last) == flag
    assert runner.statistics()["windows_suspect"] == (flag != NONE)
    assert runner.statistics()["validation_rejected"] == 0


def test_their_thresholds_are_settings() -> None:
    runner = pipeline(open_jump_bps=300.0, return_z=1e6)
    walk(runner, 80)
    assert suspect(runner, 81, "101") == NONE
    runner = pipeline(open_jump_bps=300.0, return_bps=200.0)
    walk(runner, 80)
    assert suspect(runner, 81, "101") == NONE


def test_a_return_is_an_outlier_only_against_enough_others() -> None:
    runner = pipeline()
    walk(runner, 40)
    assert suspect(runner, 41, "100", "101") == NONE


def test_nothing_is_compared_across_a_hole_or_in_silence() -> None:
    runner = pipeline()
    walk(runner, 80)
    quiet = runner.process(silent(DAY + 81 * WINDOW_MS), None).row
    assert quiet is not None
    assert quiet.window_suspect is None
    assert suspect(runner, 82, "101") == OPEN_JUMP | RETURN  # the price before the silence
    assert suspect(runner, 84, "50") is None
    assert suspect(runner, 85, "50") == NONE


def test_a_price_that_seldom_moves_is_compared_with_its_moves() -> None:
    runner = pipeline(open_jump_bps=300.0)
    for k in range(400):
        assert suspect(runner, k, "100.3" if k // 3 % 2 else "100") in {None, NONE}
