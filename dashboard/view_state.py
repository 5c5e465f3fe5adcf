"""What the terminal view knows, and how events change it. Pure.

Consumes envelopes of the event bus, produces a new ``ViewState`` per batch; everything in it is
bounded. The old state is never changed, so another thread may still be drawing it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from domain.events import (
    Alert,
    AnalysisUnavailable,
    ConnectionEvent,
    ConnectionState,
    FeaturesEvent,
    GapEvent,
    GapState,
    HealthEvent,
    Signal,
    WindowEvent,
)
from domain.flow import Origin
from event_bus import Envelope

WINDOWS_KEPT = 256
SIGNALS_KEPT = 16
NOTICES_KEPT = 5
GAPS_KEPT = 1_000

_DEAD = {ConnectionState.DISCONNECTED, ConnectionState.CLOSED, ConnectionState.GAVE_UP}

type SocketEvents = dict[tuple[str, int], ConnectionEvent]
type GapKey = tuple[str, str, int | None, int | None]


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """What the view knows; a new one is made per batch of events."""

    sockets: SocketEvents = {}  # by route and socket id
    windows: tuple[WindowEvent, ...] = ()  # newest last
    signals: tuple[Signal, ...] = ()  # newest last
    notices: tuple[str, ...] = ()  # alerts and missing analyses, newest last
    open_gaps: dict[GapKey, GapEvent] = {}
    gap_counts: dict[GapState, int] = {}
    health: HealthEvent | None = None
    health_before: HealthEvent | None = None  # the one before it, for rates
    window_count: int = 0
    incomplete_count: int = 0
    recovered_count: int = 0
    revised_count: int = 0
    trade_count: int = 0
    signal_count: int = 0
    last_live: WindowEvent | None = None


def reduce(state: ViewState, batch: Sequence[Envelope]) -> ViewState:
    """The state after a batch of events; the old one is not changed.

    Recovered and revised windows are counted by their features: those that did not close beside
    the live ones come as features alone.
    """
    payloads = [envelope.payload for envelope in batch]
    windows = [p for p in payloads if isinstance(p, WindowEvent)]
    live = [w for w in windows if w.origin is Origin.LIVE]
    origins = [p.origin for p in payloads if isinstance(p, FeaturesEvent)]
    signals = [p for p in payloads if isinstance(p, Signal)]
    sockets = {(p.route, p.socket_id): p for p in payloads if isinstance(p, ConnectionEvent)}
    health = [p for p in payloads if isinstance(p, HealthEvent)]
    notices = [notice for p in payloads if (notice := _notice(p)) is not None]
    open_gaps, gap_counts = _after_gaps(state, [p for p in payloads if isinstance(p, GapEvent)])
    return msgspec.structs.replace(
        state,
        sockets=_shown(state.sockets | sockets),
        windows=(*state.windows, *windows)[-WINDOWS_KEPT:],
        signals=(*state.signals, *signals)[-SIGNALS_KEPT:],
        notices=(*state.notices, *notices)[-NOTICES_KEPT:],
        open_gaps=open_gaps,
        gap_counts=gap_counts,
        health=health[-1] if health else state.health,
        health_before=(state.health, *health)[-2] if health else state.health_before,
        window_count=state.window_count + len(live),
        incomplete_count=state.incomplete_count + sum(not w.metrics.complete for w in live),
        recovered_count=state.recovered_count + origins.count(Origin.RECOVERED),
        revised_count=state.revised_count + origins.count(Origin.REVISED),
        trade_count=state.trade_count + sum(w.metrics.trade_count for w in live),
        signal_count=state.signal_count + len(signals),
        last_live=live[-1] if live else state.last_live,
    )


def _shown(sockets: SocketEvents) -> SocketEvents:
    """Without the dead ones that a newer socket of their route has replaced."""
    newest = dict(sorted(sockets))
    return {
        (route, socket_id): event
        for (route, socket_id), event in sockets.items()
        if event.state not in _DEAD or newest[route] == socket_id
    }


def _after_gaps(
    state: ViewState, events: Sequence[GapEvent]
) -> tuple[dict[GapKey, GapEvent], dict[GapState, int]]:
    if not events:
        return state.open_gaps, state.gap_counts
    open_gaps, counts = dict(state.open_gaps), dict(state.gap_counts)
    for event in events:
        counts[event.state] = counts.get(event.state, 0) + 1
        key = (event.kind, event.symbol, event.first_id, event.last_id)
        if event.state is not GapState.OPEN:
            open_gaps.pop(key, None)
        elif (
            event.kind == "trades"
        ):  # nothing brings depth back: its breaks are counted, not awaited
            open_gaps[key] = event
            if len(open_gaps) > GAPS_KEPT:
                del open_gaps[next(iter(open_gaps))]
    return open_gaps, counts


def _notice(payload: msgspec.Struct) -> str | None:
    if isinstance(payload, Alert):
        return f"{clock(payload.at_ns // 1_000_000)} {payload.severity}: {payload.message}"
    if isinstance(payload, AnalysisUnavailable):
        at = clock(payload.window_end_ms)
        return f"{at} no analysis of {payload.symbol}: {payload.reason}"
    return None


def clock(time_ms: int) -> str:
    """Time of day, UTC."""
    return time.strftime("%H:%M:%S", time.gmtime(time_ms / 1_000))


def summary(state: ViewState) -> dict[str, str | int]:
    """The state in one log line's fields."""
    latest = state.last_live
    return {
        "windows": state.window_count,
        "incomplete": state.incomplete_count,
        "trades": state.trade_count,
        "signals": state.signal_count,
        "recovered": state.recovered_count,
        "revised": state.revised_count,
        "open_gaps": len(state.open_gaps),
        "last_window_end": "" if latest is None else clock(latest.metrics.window_end_ms),
        "connections": ", ".join(
            f"{route}#{socket_id} {event.state.value}"
            for (route, socket_id), event in sorted(state.sockets.items())
        ),
    }
