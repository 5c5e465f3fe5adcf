"""What can be wrong with single REST replies: scripted by endpoint and by number of the request.

Consumes a fault plan's ``rest`` entries → says for each request which of them acts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from domain.errors import ConfigError

REPLY_MODES = ("empty", "short", "429", "418", "500", "503", "html")
"""``empty``: an array without entries, a lost page; ``short``: its second half is missing."""


class RestFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some requests in a row get another reply.

    Args:
        endpoint: Such as ``klines``.
        mode: One of ``REPLY_MODES``.
        after: So many requests of the endpoint are answered well before.
        count: So many are not.
        wait_s: What 429 and 418 tell to wait; 418 bans the address for that long.
    """

    endpoint: str
    mode: str
    after: int = 0
    count: int = 1
    wait_s: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything, naming the field."""
        if self.mode not in REPLY_MODES:
            raise ConfigError(
                f"fault {self.endpoint}: mode must be one of {', '.join(REPLY_MODES)}"
            )
        if self.after < 0 or self.count < 1 or self.wait_s < 1:
            raise ConfigError(f"fault {self.endpoint}: counts and waits must be positive")


class ReplyScript:
    """Counts requests and says what is wrong with each."""

    def __init__(self, faults: Sequence[RestFault]) -> None:
        self._faults = tuple(faults)
        self._asked: dict[str, int] = {}

    def next(self, endpoint: str) -> RestFault | None:
        """The fault of this request, if any; the first one of the plan counts."""
        number = self._asked.get(endpoint, 0)
        self._asked[endpoint] = number + 1
        for fault in self._faults:
            if fault.endpoint == endpoint and 0 <= number - fault.after < fault.count:
                return fault
        return None
