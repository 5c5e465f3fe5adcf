"""What can go wrong with a REST call, as one shallow tree; decided here from status, code and text.

ExchangeError                 any failed call; typed attributes ``status, code, msg, endpoint``
├── Unreachable               no answer in time, connection failed, or 5xx       (exit 3)
├── Forbidden                 403 firewall, 451 location; never retried          (exit 3)
├── RateLimited               429, or the machine's own budget is spent: ``retry_after_s``
│   └── Banned                418: ``until_ms``
├── BadReply                  an answer that is none: HTML, broken JSON, too large
├── InvalidSymbol             the exchange does not know the symbol              (exit 2)
├── InvalidKey                API key or signature refused                       (exit 2)
├── ClockSkew                 our clock is too far from the exchange's
└── RequestRefused            any other 4xx, with Binance's code

Consumes (status, body, Retry-After), produces the error. Codes:
https://developers.binance.com/docs/derivatives/usds-margined-futures/error-code
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from binance_api.endpoints import LONGEST_BAN_S, SHORTEST_BAN_S
from domain.errors import OrderFlowError

_MAX_MESSAGE = 300  # characters of a foreign message that we repeat
_BANNED_UNTIL: Final = re.compile(r"banned until (\d{13})\b")
_TOO_MANY_REQUESTS: Final = -1003
_ILLEGAL_CHARACTERS: Final = -1100
_INVALID_SYMBOL: Final = -1121
_CLOCK_SKEW: Final = -1021
_KEY_REFUSED: Final = frozenset({-1022, -2014, -2015})


class ExchangeError(OrderFlowError):
    """A REST call failed.

    Attributes:
        endpoint: Path without query, such as ``/fapi/v1/klines``.
        status: HTTP status; ``None`` if there was no answer.
        code: Binance's error code; ``None`` if there was none.
        msg: Binance's message, or ours.
    """

    def __init__(
        self, msg: str, *, endpoint: str = "", status: int | None = None, code: int | None = None
    ) -> None:
        self.msg = msg
        self.endpoint = endpoint
        self.status = status
        self.code = code
        facts = [str(fact) for fact in (status, code) if fact is not None]
        where = f"{endpoint}: " if endpoint else ""
        super().__init__(f"{where}{msg}{f' ({", ".join(facts)})' if facts else ''}")


class Unreachable(ExchangeError):
    """No answer in time, a failed connection, or the server's own failure (5xx)."""

    exit_code = 3


class Forbidden(ExchangeError):
    """403 (the exchange's firewall) or 451 (the location is not served)."""

    exit_code = 3


class RateLimited(ExchangeError):
    """Too many requests, by the exchange's count or by ours.

    Attributes:
        retry_after_s: Seconds until the next request may go.
    """

    def __init__(
        self,
        msg: str,
        *,
        retry_after_s: float,
        endpoint: str = "",
        status: int | None = None,
        code: int | None = None,
    ) -> None:
        super().__init__(msg, endpoint=endpoint, status=status, code=code)
        self.retry_after_s = retry_after_s


class Banned(RateLimited):
    """The exchange has banned the address of this machine.

    Attributes:
        until_ms: End of the ban, ms since the epoch by the local clock.
    """

    def __init__(
        self,
        msg: str,
        *,
        retry_after_s: float,
        until_ms: int,
        endpoint: str = "",
        status: int | None = None,
        code: int | None = None,
    ) -> None:
        super().__init__(
            msg, retry_after_s=retry_after_s, endpoint=endpoint, status=status, code=code
        )
        self.until_ms = until_ms


class BadReply(ExchangeError):
    """An answer that is no answer: HTML with status 200, broken JSON, unexpected shape, too large."""


class RequestRefused(ExchangeError):
    """The exchange understood the request and refused it."""


class InvalidSymbol(RequestRefused):
    """The exchange does not know this symbol."""

    exit_code = 2


class InvalidKey(RequestRefused):
    """The API key or the signature was refused."""

    exit_code = 2


class ClockSkew(RequestRefused):
    """Our clock is too far from the exchange's for a signed request."""


class ErrorBody(msgspec.Struct, frozen=True):
    """``{"code":-1121,"msg":"Invalid symbol."}``."""

    code: int
    msg: str


_error_body: Final = msgspec.json.Decoder(ErrorBody)


def parse_error_body(body: bytes) -> ErrorBody | None:
    """Binance's error body, or ``None`` if ``body`` is not one."""
    try:
        return _error_body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def error_from_reply(
    status: int,
    body: bytes,
    *,
    endpoint: str,
    retry_after: str | None = None,
    now_ms: int,
) -> ExchangeError:
    """Name the failure that a reply with an error status or an error body stands for.

    Args:
        status: HTTP status.
        body: The reply's body, or its beginning.
        endpoint: Path without query.
        retry_after: The ``Retry-After`` header.
        now_ms: Local wall clock, ms.
    """
    parsed = parse_error_body(body)
    code = parsed.code if parsed else None
    msg = _printable(parsed.msg) if parsed else _without_body(status)
    if status in (418, 429) or code == _TOO_MANY_REQUESTS:
        return _limited(
            msg,
            status=status,
            code=code,
            endpoint=endpoint,
            wait_s=_seconds(retry_after),
            now_ms=now_ms,
        )
    kind = _kind(status, code, msg)
    return kind(msg, endpoint=endpoint, status=status, code=code)


def _limited(
    msg: str, *, status: int, code: int | None, endpoint: str, wait_s: float | None, now_ms: int
) -> RateLimited:
    until = _BANNED_UNTIL.search(msg)
    if status != 418 and not until:
        if wait_s is None:  # unstated: the weight resets on the clock minute
            wait_s = 60.0 - now_ms % 60_000 / 1_000
        return RateLimited(msg, retry_after_s=wait_s, endpoint=endpoint, status=status, code=code)
    if wait_s is None and until:
        wait_s = min(max((int(until[1]) - now_ms) / 1_000, 0.0), float(LONGEST_BAN_S))
    if wait_s is None:
        wait_s = float(SHORTEST_BAN_S)
    until_ms = now_ms + int(wait_s * 1_000)
    return Banned(
        msg, retry_after_s=wait_s, until_ms=until_ms, endpoint=endpoint, status=status, code=code
    )


def _kind(status: int, code: int | None, msg: str) -> type[ExchangeError]:
    if status in (403, 451):
        return Forbidden
    if status >= 500 or status == 408:  # 408: the exchange's own backend did not answer
        return Unreachable
    if code == _INVALID_SYMBOL or (code == _ILLEGAL_CHARACTERS and "'symbol'" in msg):
        return InvalidSymbol
    if code == _CLOCK_SKEW:
        return ClockSkew
    if status == 401 or code in _KEY_REFUSED:
        return InvalidKey
    if status < 400 and code is None:
        return BadReply
    return RequestRefused


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds, at most the longest ban; ``None`` if absent or no number."""
    text = (retry_after or "").strip()
    if not text.isascii() or not text.isdigit():
        return None
    return float(min(int(text[:9]), LONGEST_BAN_S))


def _without_body(status: int) -> str:
    reasons = {
        403: "refused by the exchange's firewall",
        418: "this address is banned",
        429: "too many requests",
        451: "the exchange does not serve this location",
    }
    return reasons.get(status, f"HTTP status {status}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_MESSAGE])
