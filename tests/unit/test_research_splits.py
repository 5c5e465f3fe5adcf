"""Splits: no training sample knows what it is tested on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from research.splits import LeakError, check_leaks, purge, walk_forward

DATES = [f"2024-07-{day:02d}" for day in range(1, 11)]


def test_walk_forward_tests_every_later_day_once():
    splits = walk_forward(DATES[::-1], 4, 1, 2)
    assert [split.test for split in splits] == [tuple(DATES[5:7]), tuple(DATES[7:9])]
    for split in splits:
        days = [*split.train, *split.validation, *split.test]
        assert days == sorted(days)
        assert len(set(days)) == 7


def test_walk_forward_steps_as_told_and_names_what_is_missing():
    assert len(walk_forward(DATES, 4, 1, 2, step=1)) == 4
    with pytest.raises(ValueError, match="needs 11 days, there are 10"):
        walk_forward(DATES, 8, 1, 2)
    with pytest.raises(ValueError, match="at least one day"):
        walk_forward(DATES, 0, 1, 2)


def test_purging_is_that_of_the_worked_example(recordings_dir):
    found = json.loads((recordings_dir.parent / "vectors.json").read_text())["vectors"]
    vector = next(v for v in found if v["id"] == "purge_embargo")
    times = np.arange(vector["inputs"]["n"])
    test = np.array(vector["inputs"]["test"])
    keep = purge(times, test, vector["params"]["h"], vector["params"]["embargo"])
    assert np.flatnonzero(keep).tolist() == vector["expected"]["train"]


def test_purged_and_embargoed_samples_pass_the_check():
    times = np.arange(0, 1_000_000, 5_000)
    test = times[80:100]
    keep = purge(times, test, 60_000, 300_000, look_back_ms=300_000)
    assert 0 < keep.sum() < len(times) - len(test)
    check_leaks(times[keep], test, horizon_ms=60_000, look_back_ms=300_000)


def test_labels_that_reach_into_the_test_are_a_leak():
    times = np.arange(0, 1_000_000, 5_000)
    with pytest.raises(LeakError, match="share time with the test"):
        check_leaks(times[:100], times[105:], horizon_ms=60_000, look_back_ms=0)
    check_leaks(times[:93], times[105:], horizon_ms=60_000, look_back_ms=0)


def test_labels_that_reach_into_the_look_back_of_the_test_are_a_leak():
    times = np.arange(0, 1_000_000, 5_000)
    with pytest.raises(LeakError):
        check_leaks(times[:100], times[120:], horizon_ms=60_000, look_back_ms=60_000)


def test_samples_whose_look_back_reaches_into_the_test_are_a_leak():
    times = np.arange(0, 1_000_000, 5_000)
    with pytest.raises(LeakError):
        check_leaks(times[120:], times[:100], horizon_ms=0, look_back_ms=200_000)


def test_numbers_fitted_on_a_test_day_are_a_leak():
    none = np.empty(0, np.int64)
    with pytest.raises(LeakError, match="2024-07-09"):
        check_leaks(
            none,
            none,
            horizon_ms=0,
            look_back_ms=0,
            fitted_on=DATES[3:9],
            train_dates=DATES[:8],
        )
