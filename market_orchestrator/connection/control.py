"""Messages of the exchange that are about the connection, not the market. Pure.

Consumes a message, says which kind of control message it is. Sources:
https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams/Live-Subscribing-Unsubscribing-to-streams
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams (serverShutdown)
"""

from __future__ import annotations

import enum

CONTROL_MAX_BYTES = 160
"""Longest control message looked at; data frames are, as a rule, longer, so most batches skip it."""


class ControlKind(enum.StrEnum):
    """What a control message says."""

    ACKNOWLEDGED = "acknowledged"  # proves nothing: names that do not exist are acknowledged too
    REFUSED = "refused"
    SHUTDOWN = "shutdown"  # the server goes down soon: open another connection


def control_kind(payload: bytes) -> ControlKind | None:
    """The kind of control message, or ``None`` for data (and for anything unknown)."""
    if len(payload) > CONTROL_MAX_BYTES:
        return None
    if b'"serverShutdown"' in payload:
        return ControlKind.SHUTDOWN
    if b'"stream"' in payload or b'"id"' not in payload:
        return None
    if b'"error"' in payload or b'"code"' in payload:
        return ControlKind.REFUSED
    return ControlKind.ACKNOWLEDGED if b'"result"' in payload else None
