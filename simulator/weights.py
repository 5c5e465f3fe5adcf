"""Request weights: counted per minute, refused with 429 above the limit, banned with 418 after that.

Consumes a clock in ms and the weight of each request → produces ``Allowed`` or ``Refused``.
https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

_MINUTE_MS = 60_000
_LONGEST_BAN_S = 3 * 86_400


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a request gets: ``status`` 200, 429 or 418, and the weight used in this minute."""

    status: int
    used_weight: int
    retry_after_s: int = 0
    banned_until_ms: int = 0


class WeightMeter:
    """One address's budget.

    Args:
        limit: Weight per clock minute.
        requests_until_ban: Requests refused with 429 in one minute before the ban.
        ban_s: Length of the first ban, seconds; each further one doubles.
        now_ms: The clock whose minutes count.
    """

    def __init__(
        self, limit: int, requests_until_ban: int, ban_s: int, now_ms: Callable[[], int]
    ) -> None:
        self.limit = limit
        self._requests_until_ban = requests_until_ban
        self._next_ban_s = ban_s
        self._now_ms = now_ms
        self._minute = -1
        self._used = 0
        self._refused_count = 0
        self._banned_until_ms = 0

    def spend(self, weight: int) -> Verdict:
        """Count one request."""
        now_ms = self._now_ms()
        if now_ms < self._banned_until_ms:
            return self._banned(now_ms)
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._used, self._refused_count = minute, 0, 0
        self._used += weight
        if self._used <= self.limit:
            return Verdict(status=200, used_weight=self._used)
        self._refused_count += 1
        if self._refused_count > self._requests_until_ban:
            self._banned_until_ms = now_ms + self._next_ban_s * 1000
            self._next_ban_s = min(self._next_ban_s * 2, _LONGEST_BAN_S)
            return self._banned(now_ms)
        rest_ms = (minute + 1) * _MINUTE_MS - now_ms
        return Verdict(
            status=429, used_weight=self._used, retry_after_s=max(1, -(-rest_ms // 1000))
        )

    def ban(self, seconds: int) -> Verdict:
        """Ban the address from now on, as if it had asked too much."""
        now_ms = self._now_ms()
        self._banned_until_ms = now_ms + seconds * 1_000
        return self._banned(now_ms)

    def refuse(self, seconds: int) -> Verdict:
        """A 429 that says how long to wait."""
        return Verdict(status=429, used_weight=self.limit, retry_after_s=seconds)

    def now_ms(self) -> int:
        """The clock whose minutes count."""
        return self._now_ms()

    def _banned(self, now_ms: int) -> Verdict:
        return Verdict(
            status=418,
            used_weight=self._used,
            retry_after_s=max(1, -(-(self._banned_until_ms - now_ms) // 1000)),
            banned_until_ms=self._banned_until_ms,
        )
