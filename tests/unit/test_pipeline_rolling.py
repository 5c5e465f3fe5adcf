from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.rolling import MISSING, Ring, RollingMoments

ENTRIES = st.lists(st.none() | st.integers(-1000, 1000).map(lambda n: n / 8), max_size=60)


@given(ENTRIES, st.integers(2, 12), st.integers(0, 40))
def test_moments_equal_those_of_the_last_entries(
    entries: list[float | None], size: int, phase: int
) -> None:
    moments = RollingMoments(size, phase)
    for entry in entries:
        moments.push(MISSING if entry is None else entry)
    present = [entry for entry in entries[-size:] if entry is not None]
    score = moments.z_score(7.0, 2)
    if len(present) < 2 or statistics.pstdev(present) == 0.0:
        assert score is None
    else:
        expected = (7.0 - statistics.fmean(present)) / statistics.stdev(present)
        assert score == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(ENTRIES, st.integers(2, 30), st.integers(0, 60))
def test_skipping_equals_pushing_missing_entries(
    entries: list[float | None], size: int, count: int
) -> None:
    skipped, pushed = RollingMoments(size), RollingMoments(size)
    ring_skipped, ring_pushed = Ring(size), Ring(size)
    for entry in entries:
        value = MISSING if entry is None else entry
        for memory in (skipped, pushed, ring_skipped, ring_pushed):
            memory.push(value)
    skipped.skip(count)
    ring_skipped.skip(count)
    for _ in range(count):
        pushed.push(MISSING)
        ring_pushed.push(MISSING)
    assert str(skipped.values()) == str(pushed.values())
    assert str(ring_skipped.last(size)) == str(ring_pushed.last(size))


def test_a_score_waits_for_the_minimum_of_entries() -> None:
    moments = RollingMoments(10)
    for value in (1.0, 2.0, MISSING, 3.0):
        moments.push(value)
    assert moments.z_score(2.0, 4) is None
    assert moments.z_score(2.0, 3) == 0.0
    assert moments.z_score(None, 3) is None


def test_an_outlier_leaves_no_trace_once_it_is_gone() -> None:
    moments = RollingMoments(4)
    for value in (1e15, 1.0, 2.0, 3.0, 4.0):
        moments.push(value)
    expected = (5.0 - 2.5) / statistics.stdev([1.0, 2.0, 3.0, 4.0])
    assert moments.z_score(5.0, 2) == pytest.approx(expected, rel=1e-12)


def test_entries_that_do_not_vary_give_no_score() -> None:
    moments = RollingMoments(5)
    for _ in range(12):
        moments.push(0.1 + 0.2)
    assert moments.z_score(1.0, 2) is None


def test_a_ring_gives_its_newest_entries_in_order() -> None:
    ring = Ring(3)
    for value in (1.0, 2.0, 3.0, 4.0):
        ring.push(value)
    assert ring.last(2).tolist() == [3.0, 4.0]
    assert ring.last(3).tolist() == [2.0, 3.0, 4.0]
    assert [ring.at(age) for age in range(4)] == [4.0, 3.0, 2.0, None]


def test_only_missing_entries_are_filled() -> None:
    ring = Ring(3)
    ring.push(1.0)
    ring.push(MISSING)
    ring.fill_missing([7.0, 8.0, 9.0])
    assert ring.last(3).tolist() == [7.0, 1.0, 9.0]
    ring.push(5.0)
    assert ring.last(3).tolist() == [1.0, 9.0, 5.0]
