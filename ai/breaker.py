"""When a provider may be asked: a circuit breaker per provider, and the wait it asked for.

Consumes how attempts ended, and a monotonic clock; produces permits. Closed: everyone may ask.
``failures_to_open`` failures in a row open it; after ``open_s`` (doubling, capped) it is half open: a
single probe decides, everyone else waits. Being told to wait (429) is no failure. An attempt that
we cancelled ourselves says nothing about the provider.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ai.contract import Outcome


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens and for how long, s.

    Attributes:
        failures_to_open: failures in a row until it opens.
        open_s: how long it stays open at first; doubles with every failed probe.
        longest_open_s: upper bound of that.
        wait_s: wait after a 429 that does not say how long; doubles while they go on.
        longest_wait_s: upper bound of that.
    """

    failures_to_open: int = 3
    open_s: float = 30.0
    longest_open_s: float = 600.0
    wait_s: float = 30.0
    longest_wait_s: float = 600.0


class Permit:
    """Leave to make one attempt. Settle it once; what is never settled counts as cancelled."""

    __slots__ = ("_breaker", "_is_open", "is_probe")

    def __init__(self, breaker: Breaker, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._is_open = True
        self.is_probe = is_probe

    def succeeded(self) -> None:
        """The provider answered, whatever its reply is worth."""
        if self._take():
            self._breaker.on_success()

    def failed(self) -> None:
        """The provider did not answer."""
        if self._take():
            self._breaker.on_failure(is_probe=self.is_probe)

    def told_to_wait(self, seconds: float | None) -> None:
        """The provider refused for now, and said for how long (or did not)."""
        if self._take():
            self._breaker.on_wait(seconds)

    def cancelled(self) -> None:
        """We ended the attempt ourselves, or it never reached the provider's judgement."""
        self._take()

    def _take(self) -> bool:
        if not self._is_open:
            return False
        self._is_open = False
        self._breaker.on_end(is_probe=self.is_probe)
        return True


class Breaker:
    """One provider's breaker; belongs to one event loop."""

    def __init__(self, settings: BreakerSettings, monotonic: Callable[[], float]) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._failures = 0  # in a row
        self._opened_until: float | None = None  # None: closed
        self._opened_times = 0  # in a row
        self._wait_until = float("-inf")
        self._waits = 0  # unasked ones in a row
        self._is_probing = False

    def refusal(self) -> Outcome | None:
        """Why nobody may ask now; ``None`` if one may."""
        now = self._monotonic()
        if now < self._wait_until:
            return Outcome.WAITING
        if self._opened_until is None:
            return None
        if now < self._opened_until:
            return Outcome.BREAKER_OPEN
        return Outcome.PROBING if self._is_probing else None

    def enter(self) -> Permit | Outcome:
        """A permit, or why there is none."""
        refused = self.refusal()
        if refused is not None:
            return refused
        is_probe = self._opened_until is not None
        self._is_probing |= is_probe
        return Permit(self, is_probe=is_probe)

    def on_success(self) -> None:
        """For ``Permit``: closes."""
        self._failures = self._opened_times = self._waits = 0
        self._opened_until = None

    def on_failure(self, *, is_probe: bool) -> None:
        """For ``Permit``: counts; a failed probe opens again, for longer."""
        if self._opened_until is not None and not is_probe:
            return  # begun before it opened: known already
        self._failures += 1
        if is_probe or self._failures >= self._settings.failures_to_open:
            open_s = self._settings.open_s * 2.0 ** min(self._opened_times, 30)
            open_s = min(open_s, self._settings.longest_open_s)
            self._opened_until = self._monotonic() + open_s
            self._opened_times += 1

    def on_wait(self, seconds: float | None) -> None:
        """For ``Permit``: closed to everyone until then; an open breaker stays as it is."""
        if seconds is None:
            seconds = self._settings.wait_s * 2.0 ** min(self._waits, 30)
            seconds = min(seconds, self._settings.longest_wait_s)
            self._waits += 1
        self._wait_until = max(self._wait_until, self._monotonic() + seconds)

    def on_end(self, *, is_probe: bool) -> None:
        """For ``Permit``: the probe is over, however it went."""
        if is_probe:
            self._is_probing = False

    @property
    def state(self) -> str:
        """One of closed, waiting, open and half_open, for the statistics."""
        refused = self.refusal()
        if refused is Outcome.WAITING:
            return "waiting"
        if self._opened_until is None:
            return "closed"
        return "open" if refused is Outcome.BREAKER_OPEN else "half_open"
