"""When a connection is replaced ahead of the exchange's 24 h cut. Pure.

Without a chosen minute a socket is rotated at ``rotation_after_s``, each further socket
``spread_s`` earlier. With one (``WS_ROTATION_MINUTE``, minute of the UTC hour, 0-59) it is rotated
at the last such minute before that age, further sockets ``spread_s`` later but within 10 minutes.
The cut: https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
"""

from __future__ import annotations

_HOUR_S = 3600
_MIN_AGE_S = 60.0
_MINUTE_SPREAD_S = 600.0


def rotation_age_s(
    connected_at_s: float,
    index: int,
    *,
    after_s: float,
    spread_s: float,
    minute: int | None,
) -> float:
    """Age in seconds at which the ``index``-th socket, connected at that wall time, is replaced."""
    by_age = max(after_s - index * spread_s, after_s / 2)
    if minute is None:
        return by_age
    offset = minute * 60 + (index * spread_s) % _MINUTE_SPREAD_S
    latest = connected_at_s + after_s - offset
    at = latest // _HOUR_S * _HOUR_S + offset
    age = at - connected_at_s
    return age if age >= _MIN_AGE_S else by_age
