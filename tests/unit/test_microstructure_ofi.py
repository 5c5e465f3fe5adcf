from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microstructure.ofi import ofi_event, ofi_events
from tests.pipeline_samples import vector

PRICES = st.integers(1, 6).map(float)
SIZES = st.integers(0, 50).map(lambda n: n / 4)
QUOTES = st.lists(st.tuples(PRICES, SIZES, PRICES, SIZES), max_size=30)


def test_events_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "ofi_l1")
    quotes = [tuple(quote) for quote in example["inputs"]["quotes"]]
    events = [ofi_event(before, now) for before, now in pairwise(quotes)]
    assert events == pytest.approx(example["expected"]["e"], abs=1e-9)
    assert sum(events) == pytest.approx(example["expected"]["ofi"], abs=1e-9)
    assert ofi_events(np.array(quotes)).tolist() == pytest.approx(events, abs=1e-9)


def test_at_unchanged_prices_the_event_is_the_change_of_size() -> None:
    assert ofi_event((100.0, 10.0, 101.0, 8.0), (100.0, 12.0, 101.0, 5.0)) == 2.0 + 3.0


def test_one_quote_is_no_event() -> None:
    assert ofi_events(np.array([[100.0, 1.0, 101.0, 1.0]])).size == 0
    assert ofi_events(np.empty((0, 4))).size == 0


@given(QUOTES)
def test_event_by_event_equals_the_whole_array(
    quotes: list[tuple[float, float, float, float]],
) -> None:
    single = [ofi_event(before, now) for before, now in pairwise(quotes)]
    assert ofi_events(np.array(quotes).reshape(-1, 4)).tolist() == single
