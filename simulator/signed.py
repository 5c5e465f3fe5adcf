"""Signed requests as the venue judges them: key, time and signature, in this order.

Consumes the raw query and the key header → raises ``ApiError`` with the venue's code, or passes.
https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info (SIGNED)
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from binance_api.signing import KEY_HEADER, RECEIVE_WINDOW_MS, ApiKey
from simulator.api_error import ApiError

_LONGEST_WINDOW_MS = 60_000
_AHEAD_MS = 1_000


def check_signed(
    raw_query: str, headers: Mapping[str, str], keys: Mapping[str, str], now_ms: int
) -> None:
    """Refuse a request that the venue would refuse.

    Args:
        raw_query: The query as sent, encoded.
        headers: Of the request.
        keys: Accepted keys, each with its secret.
        now_ms: The market's time.

    Raises:
        ApiError: -2014, -2015, -1102, -1021 or -1022.
    """
    key = headers.get(KEY_HEADER, "")
    if not key or not key.replace("-", "").isalnum():
        raise ApiError(-2014, "API-key format invalid.", 401)
    if key not in keys:
        raise ApiError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
    query = dict(parse_qsl(raw_query))
    for name in ("timestamp", "signature"):
        if not query.get(name):
            message = f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
            raise ApiError(-1102, message)
    _check_time(query, now_ms)
    signed = raw_query.partition("&signature=")[0]
    if ApiKey(key, keys[key]).signature(signed) != query["signature"]:
        raise ApiError(-1022, "Signature for this request is not valid.")


def _check_time(query: Mapping[str, str], now_ms: int) -> None:
    stamp, window = query["timestamp"], query.get("recvWindow", str(RECEIVE_WINDOW_MS))
    if not (stamp.isdecimal() and window.isdecimal()) or int(window) > _LONGEST_WINDOW_MS:
        raise ApiError(-1130, "Data sent for parameter 'recvWindow' is not valid.")
    if int(stamp) >= now_ms + _AHEAD_MS:
        message = "Timestamp for this request was 1000ms ahead of the server's time."
        raise ApiError(-1021, message)
    if now_ms - int(stamp) > int(window):
        raise ApiError(-1021, "Timestamp for this request is outside of the recvWindow.")
