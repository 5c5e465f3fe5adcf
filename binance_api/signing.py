"""Signed requests: the one place that knows an API secret and computes an HMAC.

Consumes a query and the exchange's time → produces the query with ``timestamp``, ``recvWindow`` and
``signature``, and the header with the key. Neither key nor secret ever shows in a repr or a log.
https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info (SIGNED)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

KEY_HEADER: Final = "X-MBX-APIKEY"
RECEIVE_WINDOW_MS: Final = 5_000
"""How old a signed request may be when it reaches the exchange; its own default."""


class ApiKey:
    """An API key with its secret; shows neither."""

    __slots__ = ("_key", "_secret")

    def __init__(self, key: str, secret: str) -> None:
        self._key = key.strip()
        self._secret = secret.strip().encode()
        if not self._key.isascii() or not self._key.isprintable():
            raise ValueError("api_key: must be printable ASCII")  # it goes into a header

    def __repr__(self) -> str:
        return "ApiKey(**********)"

    def headers(self) -> dict[str, str]:
        """What tells the exchange who asks."""
        return {KEY_HEADER: self._key}

    def signed(self, params: Mapping[str, str | int], now_ms: int) -> dict[str, str | int]:
        """The query of a signed request; the signature is its last entry.

        Args:
            params: The query without timestamp.
            now_ms: The exchange's time.
        """
        timed = {**params, "recvWindow": RECEIVE_WINDOW_MS, "timestamp": now_ms}
        return {**timed, "signature": self.signature(urlencode(timed))}

    def signature(self, query: str) -> str:
        """HMAC-SHA256 of a query string, hexadecimal."""
        return hmac.new(self._secret, query.encode(), hashlib.sha256).hexdigest()
