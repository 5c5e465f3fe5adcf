"""Curating as candles come in gives the same files as curating everything, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Settings
from ingestion import DataCuration
from ingestion.curated_bars import CurationSettings
from ingestion.curation import CURATED_COLUMNS
from lake.kline_files import curated_dates, curated_path, read_bars
from lake.paths import LakePaths
from tests.kline_samples import bars, rows_where, store_bars

SMALL = CurationSettings(atr_period=5, volatility_days=1, level_bars=40)
BARS_A_DAY = {"1h": 24, "4h": 6, "1d": 1, "1w": 1}


def everything(paths: LakePaths, interval: str) -> dict[str, dict[str, np.ndarray]]:
    names = ["symbol", *CURATED_COLUMNS]
    return {
        date: read_bars(curated_path(paths, interval, date), names)
        for date in curated_dates(paths, interval)
    }


def assert_same(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, dict[str, np.ndarray]]):
    assert list(found) == list(wanted)
    for date, columns in wanted.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(found[date][name], values, err_msg=f"{date} {name}")


@st.composite
def histories(draw: Callable) -> tuple[str, int, list[np.ndarray], int]:
    """Interval, number of bars, which bars come in each step, and the days of a chunk."""
    interval = draw(st.sampled_from(sorted(BARS_A_DAY)))
    days = draw(st.integers(8, 14)) if BARS_A_DAY[interval] > 1 else draw(st.integers(15, 60))
    count = days * BARS_A_DAY[interval] + draw(st.integers(0, 5))
    source = np.random.default_rng(draw(st.integers(0, 1_000)))
    kept = np.ones(count, np.bool_)
    for _ in range(draw(st.integers(0, 3))):  # holes, up to weeks long
        begin = draw(st.integers(0, count - 1))
        kept[begin : begin + draw(st.integers(1, count // 2))] = False
    step_count = draw(st.integers(1, 4))
    in_order = np.sort(source.integers(0, step_count, count))
    steps = in_order if draw(st.booleans()) else source.integers(0, step_count, count)
    parts = [np.flatnonzero(kept & (steps == step)) for step in range(step_count)]
    return interval, count, parts, draw(st.integers(1, 12))


@settings(max_examples=3)
@given(histories(), st.integers(0, 99))
def test_incremental_curation_equals_curating_everything(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[str, int, list[np.ndarray], int],
    seed: int,
) -> None:
    check_history(tmp_path_factory.mktemp("curation"), history, seed)


@pytest.mark.long
@settings(max_examples=200)
@given(histories(), st.integers(0, 99))
def test_incremental_curation_equals_curating_everything_at_length(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[str, int, list[np.ndarray], int],
    seed: int,
) -> None:
    check_history(tmp_path_factory.mktemp("curation"), history, seed)


def check_history(folder: Path, history: tuple[str, int, list[np.ndarray], int], seed: int) -> None:
    interval, count, parts, chunk_days = history
    step_by_step = Settings(data_dir=folder / "steps", _env_file=None)
    at_once = Settings(data_dir=folder / "once", _env_file=None)
    series = {
        symbol: bars(count, interval, seed=seed + place)
        for place, symbol in enumerate(("AAAUSDT", "BBBUSDT"))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingestion.curation.CHUNK_DAYS", chunk_days)
        patch.setattr("os.fsync", lambda _descriptor: None)  # durability is tested elsewhere
        for number, part in enumerate(parts):
            for symbol, columns in series.items():
                if number or symbol == "AAAUSDT":  # the second symbol comes later
                    store_bars(step_by_step.paths, symbol, interval, rows_where(columns, part))
            DataCuration(step_by_step, SMALL).curate_timeframe(interval)
        for symbol, columns in series.items():
            here = np.sort(
                np.concatenate(parts if symbol == "AAAUSDT" else [parts[0][:0], *parts[1:]])
            )
            store_bars(at_once.paths, symbol, interval, rows_where(columns, here))
        patch.undo()
        DataCuration(at_once, SMALL).curate_timeframe(interval)
    assert_same(everything(step_by_step.paths, interval), everything(at_once.paths, interval))
    shutil.rmtree(folder)
