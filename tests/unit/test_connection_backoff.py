from __future__ import annotations

import random

import pytest

from market_orchestrator.connection.backoff import Decision, LossHistory, backoff_delay, classify
from market_orchestrator.connection.clock import Random
from market_orchestrator.connection.transport import AddressError, Closed, HandshakeError


class Highest:
    def uniform(self, a: float, b: float) -> float:
        return b


def delay(attempt: int, source: Random) -> float:
    return backoff_delay(attempt, base_s=0.5, cap_s=60.0, random=source)


def test_the_ceiling_doubles_up_to_the_cap():
    assert [delay(n, Highest()) for n in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_no_attempt_number_is_too_large():
    assert delay(100_000, Highest()) == 60.0


def test_jitter_uses_the_full_range():
    delays = [delay(20, random.Random(seed)) for seed in range(200)]
    assert min(delays) < 3
    assert max(delays) > 57


@pytest.mark.parametrize(
    "failure",
    [
        TimeoutError(),
        ConnectionRefusedError(),
        OSError("no route"),
        HandshakeError("busy", 503),
        HandshakeError("firewall", 403),
        HandshakeError("dropped"),
        Closed(1000, ""),
        Closed(1001, "going away"),
        Closed(1006, ""),
        Closed(1008, "policy"),
    ],
)
def test_failures_that_may_pass_are_retried(failure):
    assert classify(failure) is Decision.RETRY


@pytest.mark.parametrize("failure", [AddressError("nonsense"), HandshakeError("location", 451)])
def test_failures_that_cannot_pass_are_fatal(failure):
    assert classify(failure) is Decision.FATAL


def test_losses_are_free_until_there_are_many_within_a_minute():
    history = LossHistory(free_count=2, horizon_s=60.0)
    assert [history.add(now) for now in (0.0, 10.0, 20.0, 30.0)] == [0, 0, 1, 2]
    assert history.add(200.0) == 0
