"""When to try again: pure decisions about failures and delays.

Consumes the exception of a failed attempt or the way a connection ended, produces RETRY or FATAL
and the seconds to wait. Full jitter after https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

from __future__ import annotations

import enum
from collections import deque

from market_orchestrator.connection.clock import Random
from market_orchestrator.connection.transport import AddressError, Closed, HandshakeError

UNAVAILABLE_FOR_LEGAL_REASONS = 451


class Decision(enum.StrEnum):
    """What a failure means for the next attempt."""

    RETRY = "retry"
    FATAL = "fatal"  # trying again cannot help


def classify(failure: BaseException | Closed) -> Decision:
    """Say whether another attempt can help.

    Any end of a connection can be retried, code 1000 included (we did not ask for it) and so can
    any network failure. Only an address that is none and a refusal because of the location
    (HTTP 451) are final: they count as the last allowed attempt, so that ``run`` ends once all
    sockets of the route are in that state.
    """
    if isinstance(failure, AddressError):
        return Decision.FATAL
    if isinstance(failure, HandshakeError) and failure.status == UNAVAILABLE_FOR_LEGAL_REASONS:
        return Decision.FATAL
    return Decision.RETRY


def backoff_delay(attempt: int, *, base_s: float, cap_s: float, random: Random) -> float:
    """Seconds before the attempt after failure number ``attempt`` (1-based): full jitter, capped."""
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    return random.uniform(0.0, ceiling)


class LossHistory:
    """Losses of one slot in the last minute, so that a flapping server is not reconnected at once.

    A single loss of a healthy socket is followed by an immediate reconnect; from the sixth within
    a minute on, each further one waits like a failed attempt (up to ``flapping_cap_s``): the
    exchange allows 300 connection attempts per 5 minutes and address.
    """

    def __init__(self, *, free_count: int = 5, horizon_s: float = 60.0) -> None:
        self._free_count = free_count
        self._horizon_s = horizon_s
        self._at: deque[float] = deque(maxlen=64)

    def add(self, now: float) -> int:
        """Note a loss at ``now``; return how many exceed the free ones (0: reconnect at once)."""
        self._at.append(now)
        while self._at and now - self._at[0] > self._horizon_s:
            self._at.popleft()
        return max(0, len(self._at) - self._free_count)
