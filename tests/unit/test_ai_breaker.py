from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai.breaker import Breaker, BreakerSettings, Permit
from ai.contract import Outcome

SETTINGS = BreakerSettings(
    failures_to_open=3, open_s=30, longest_open_s=100, wait_s=10, longest_wait_s=35
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Iterator[Breaker]:
    yield Breaker(SETTINGS, clock)


def permit(breaker: Breaker) -> Permit:
    found = breaker.enter()
    assert isinstance(found, Permit), found
    return found


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        permit(breaker).failed()


def test_it_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.enter() is Outcome.BREAKER_OPEN


def test_a_success_starts_the_count_again(breaker: Breaker) -> None:
    fail(breaker, 2)
    permit(breaker).succeeded()
    fail(breaker, 2)
    assert breaker.state == "closed"


def test_a_cancelled_attempt_counts_for_nothing(breaker: Breaker) -> None:
    fail(breaker, 2)
    for _ in range(10):
        permit(breaker).cancelled()
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_half_open_lets_a_single_probe_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.state == "half_open"
    probe = permit(breaker)
    assert probe.is_probe
    assert breaker.enter() is Outcome.PROBING
    assert breaker.enter() is Outcome.PROBING
    probe.succeeded()
    assert breaker.state == "closed"
    assert not permit(breaker).is_probe


def test_a_cancelled_probe_makes_room_for_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    permit(breaker).cancelled()
    assert permit(breaker).is_probe


def test_a_failed_probe_opens_again_for_longer_up_to_the_cap(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, 3)
    for expected in (30, 60, 100, 100):
        clock.now += expected - 0.1
        assert breaker.enter() is Outcome.BREAKER_OPEN
        clock.now += 0.1
        fail(breaker)
    clock.now += 100
    permit(breaker).succeeded()
    fail(breaker, 3)
    clock.now += 30
    assert permit(breaker).is_probe  # a success made it forget


def test_late_failures_of_attempts_begun_before_do_not_prolong_it(
    breaker: Breaker, clock: Clock
) -> None:
    late = [permit(breaker) for _ in range(5)]
    fail(breaker, 3)
    clock.now += 29
    for one in late:
        one.failed()
    clock.now += 1
    assert permit(breaker).is_probe


def test_being_told_to_wait_is_no_failure(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        permit(breaker).told_to_wait(3)
        assert breaker.enter() is Outcome.WAITING
        assert breaker.state == "waiting"
        clock.now += 3
    assert breaker.state == "closed"


def test_a_wait_without_a_length_grows_while_it_goes_on(breaker: Breaker, clock: Clock) -> None:
    for expected in (10, 20, 35, 35):
        permit(breaker).told_to_wait(None)
        clock.now += expected - 0.1
        assert breaker.enter() is Outcome.WAITING
        clock.now += 0.1
    permit(breaker).succeeded()
    permit(breaker).told_to_wait(None)
    clock.now += 10
    assert isinstance(breaker.enter(), Permit)


def test_a_shorter_wait_does_not_cut_a_longer_one_short(breaker: Breaker, clock: Clock) -> None:
    first, second = permit(breaker), permit(breaker)
    first.told_to_wait(60)
    second.told_to_wait(1)
    clock.now += 59
    assert breaker.enter() is Outcome.WAITING


def test_a_probe_that_is_told_to_wait_leaves_it_half_open(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    permit(breaker).told_to_wait(5)
    assert breaker.enter() is Outcome.WAITING
    clock.now += 5
    assert permit(breaker).is_probe


def test_a_permit_is_settled_once(breaker: Breaker) -> None:
    for _ in range(5):
        one = permit(breaker)
        one.succeeded()
        one.failed()
        one.told_to_wait(9)
    assert breaker.state == "closed"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "ok", "fail", "wait", "stop", "tick"]), st.integers(0, 4)
        )
    )
)
def test_never_two_probes_at_once_and_never_stuck(moves: list[tuple[str, int]]) -> None:
    clock = Clock()
    breaker, open_permits = Breaker(SETTINGS, clock), list[Permit]()
    for move, number in moves:
        if move == "tick":
            clock.now += 7.0 * number
        elif move == "enter":
            found = breaker.enter()
            open_permits += [found] if isinstance(found, Permit) else []
        elif open_permits:
            one = open_permits.pop(number % len(open_permits))
            {"ok": one.succeeded, "fail": one.failed, "stop": one.cancelled}.get(
                move, lambda one=one: one.told_to_wait(5.0)
            )()
        assert sum(one.is_probe for one in open_permits) <= 1
    for one in open_permits:
        one.cancelled()
    clock.now += 1_000
    assert isinstance(breaker.enter(), Permit)
