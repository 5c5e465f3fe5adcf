from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_orchestrator.connection.rotation import rotation_age_s

HOUR = 3600.0


def age(connected_at: float, index: int = 0, minute: int | None = None) -> float:
    return rotation_age_s(connected_at, index, after_s=23 * HOUR, spread_s=90.0, minute=minute)


def test_without_a_minute_sockets_rotate_at_23_hours_and_spread():
    assert [age(0.0, index) for index in range(3)] == [23 * HOUR, 23 * HOUR - 90, 23 * HOUR - 180]


@pytest.mark.parametrize("connected_at", [0.0, 1800.0, 3599.0, 1_700_000_000.0])
def test_with_a_minute_the_rotation_is_at_that_minute_of_an_hour(connected_at):
    at = connected_at + age(connected_at, minute=17)
    assert at % HOUR == 17 * 60


@given(
    st.floats(min_value=0, max_value=4e9),
    st.integers(min_value=0, max_value=200),
    st.none() | st.integers(min_value=0, max_value=59),
)
def test_every_socket_is_rotated_before_the_cut_and_not_too_early(connected_at, index, minute):
    assert 11 * HOUR <= age(connected_at, index, minute) <= 23 * HOUR


def test_a_short_life_falls_back_to_the_age():
    assert rotation_age_s(0.0, 0, after_s=0.5, spread_s=0.0, minute=30) == 0.5
