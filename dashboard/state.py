"""What the dashboard knows, and how events change it. Pure.

Envelopes of the event bus → a new ``DashboardState`` per batch; every history in it is bounded. The
old state is never changed, so another thread may still be drawing it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from decimal import Decimal

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
from domain.features import FeatureRow
from domain.flow import Origin, WhalePrint
from event_bus import Envelope

BARS_KEPT = 900  # per symbol: 75 minutes of 5 s windows
BARS_IN_ALL = 60_000  # of all symbols together, so that a thousand of them stay affordable
FEWEST_BARS = 60
LINES_KEPT = 64
WHALES_KEPT = 60  # per symbol
GAPS_KEPT = 1_000

_DEAD = {ConnectionState.DISCONNECTED, ConnectionState.CLOSED, ConnectionState.GAVE_UP}
_BAD = {ConnectionState.DISCONNECTED, ConnectionState.GAVE_UP, ConnectionState.SUSPECT}

type SocketEvents = dict[tuple[str, int], ConnectionEvent]
type GapKey = tuple[str, str, int | None, int | None]


class Bar(msgspec.Struct, frozen=True, gc=False):
    """One closed window, as much of it as charts and sums need."""

    end_ms: int
    length_ms: int
    close: float | None
    vwap: float | None
    volume: float
    quote_volume: float
    delta: float
    net_flow_quote: float
    cvd: float
    trades: int
    messages: int
    whale_count: int
    whale_buy: float
    whale_sell: float
    complete: bool


class SymbolState(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol. ``_ns`` are the bot's wall clock."""

    symbol: str
    bars: tuple[Bar, ...] = ()  # by time, newest last
    whales: tuple[WhalePrint, ...] = ()  # likewise
    row: FeatureRow | None = None  # of the newest live window
    price: Decimal | None = None  # last trade, carried through silent windows
    lag_ms: int | None = None  # from the newest live window's end to its close
    seen_ns: int = 0  # when the last window closed in which the feed lived
    rules: Signal | None = None
    model: Signal | None = None  # of a trained one
    analysis: Signal | None = None  # of an AI model
    analysis_ns: int = 0
    unavailable: AnalysisUnavailable | None = None
    unavailable_ns: int = 0


class LogLine(msgspec.Struct, frozen=True):
    """One line for the operator. ``severity`` as an alert's."""

    at_ns: int
    severity: str
    text: str


class DashboardState(msgspec.Struct, frozen=True, kw_only=True):
    """What the dashboard knows; a new one is made per batch of events."""

    order: tuple[str, ...] = ()  # symbols as the user named them
    symbols: dict[str, SymbolState] = {}  # those heard of, in that order; others behind, by name
    sockets: SocketEvents = {}  # by route and socket id
    open_gaps: dict[GapKey, GapEvent] = {}
    gap_counts: dict[GapState, int] = {}
    alerts: tuple[LogLine, ...] = ()  # newest last
    events: tuple[LogLine, ...] = ()  # connections and gaps, newest last
    health: HealthEvent | None = None
    health_before: HealthEvent | None = None
    flushed_ns: int = 0  # when the feature store's count of flushes last changed
    window_count: int = 0  # live
    incomplete_count: int = 0
    recovered_count: int = 0
    revised_count: int = 0
    trade_count: int = 0
    signal_count: int = 0
    last_end_ms: int | None = None  # of the newest live window of all symbols


def reduce(state: DashboardState, batch: Sequence[Envelope]) -> DashboardState:
    """The state after a batch of events; the old one is not changed.

    Args:
        state: the state before.
        batch: events in the order they were published; other types of payload are ignored.
    """
    by_type: dict[type, list[msgspec.Struct]] = {}
    for envelope in batch:
        by_type.setdefault(type(envelope.payload), []).append(envelope.payload)

    def of[T: msgspec.Struct](kind: type[T]) -> list[T]:
        return by_type.get(kind, [])  # type: ignore[return-value]

    rows, signals = of(FeaturesEvent), of(Signal)
    origins = [event.origin for event in rows]
    live = [event.row for event in rows if event.origin is Origin.LIVE]
    symbols = _after_rows(state.symbols, rows)
    symbols = _after_windows(symbols, of(WindowEvent))
    symbols = _after_signals(symbols, signals, of(AnalysisUnavailable))
    if symbols.keys() != state.symbols.keys():
        symbols = _sorted(symbols, state.order)
    gaps, connections = of(GapEvent), of(ConnectionEvent)
    open_gaps, gap_counts = _after_gaps(state, gaps)
    events = [line for envelope in batch if (line := _event_line(envelope.payload)) is not None]
    return msgspec.structs.replace(
        _after_health(state, of(HealthEvent)),
        symbols=symbols,
        sockets=_shown(state.sockets | {(c.route, c.socket_id): c for c in connections}),
        open_gaps=open_gaps,
        gap_counts=gap_counts,
        alerts=_newest(state.alerts, map(_alert_line, of(Alert))),
        events=_newest(state.events, events),
        window_count=state.window_count + len(live),
        incomplete_count=state.incomplete_count + sum(not row.complete for row in live),
        recovered_count=state.recovered_count + origins.count(Origin.RECOVERED),
        revised_count=state.revised_count + origins.count(Origin.REVISED),
        trade_count=state.trade_count + sum(row.trade_count for row in live),
        signal_count=state.signal_count + len(signals),
        last_end_ms=live[-1].window_end_ms if live else state.last_end_ms,
    )


# --- symbols ------------------------------------------------------------------------------


def _sorted(symbols: dict[str, SymbolState], order: Sequence[str]) -> dict[str, SymbolState]:
    """The same place for a symbol in every run, whichever was heard of first."""
    places = {symbol: place for place, symbol in enumerate(order)}
    names = sorted(symbols, key=lambda name: (places.get(name, len(places)), name))
    return {name: symbols[name] for name in names}


def _after_rows(
    symbols: dict[str, SymbolState], events: Sequence[FeaturesEvent]
) -> dict[str, SymbolState]:
    """With the rows' bars; recovered and revised windows correct the past of the charts."""
    if not events:
        return symbols
    by_symbol: dict[str, list[FeaturesEvent]] = {}
    for event in events:
        by_symbol.setdefault(event.row.symbol, []).append(event)
    found = dict(symbols)
    names = found.keys() | by_symbol.keys()
    kept = max(FEWEST_BARS, min(BARS_KEPT, BARS_IN_ALL // len(names)))
    for symbol, own in by_symbol.items():
        before = found.get(symbol) or SymbolState(symbol=symbol)
        after = msgspec.structs.replace(before, bars=_merged(before.bars, own, kept))
        live = [event.row for event in own if event.origin is Origin.LIVE]
        if live:
            after = msgspec.structs.replace(after, row=live[-1])
        found[symbol] = after
    return found


def _merged(bars: tuple[Bar, ...], events: Sequence[FeaturesEvent], kept: int) -> tuple[Bar, ...]:
    last_ms = bars[-1].end_ms if bars else 0
    if len(events) == 1 and events[0].row.window_end_ms > last_ms:  # the usual case
        return (*bars, _bar(events[0].row))[-kept:]
    newest_ms = max(last_ms, *(event.row.window_end_ms for event in events))
    reach_ms = kept * (events[0].row.window_end_ms - events[0].row.window_start_ms)
    by_end = {bar.end_ms: bar for bar in bars}
    for event in events:
        if event.row.window_end_ms > newest_ms - reach_ms:  # a repair can revise a whole day
            by_end[event.row.window_end_ms] = _bar(event.row)
    return tuple(by_end[end_ms] for end_ms in sorted(by_end)[-kept:])


def _bar(row: FeatureRow) -> Bar:
    return Bar(
        end_ms=row.window_end_ms,
        length_ms=row.window_end_ms - row.window_start_ms,
        close=row.price if row.close is None else row.close,
        vwap=row.vwap,
        volume=row.volume,
        quote_volume=row.quote_volume,
        delta=row.delta,
        net_flow_quote=row.net_flow_quote,
        cvd=row.cvd,
        trades=row.trade_count,
        messages=row.trade_count + row.depth_frames,
        whale_count=row.whale_count,
        whale_buy=row.whale_buy_volume,
        whale_sell=row.whale_sell_volume,
        complete=row.complete,
    )


def _after_windows(
    symbols: dict[str, SymbolState], events: Sequence[WindowEvent]
) -> dict[str, SymbolState]:
    """With the exact last price, and how late the window closed."""
    live: dict[str, list[WindowEvent]] = {}
    for event in events:
        if event.origin is Origin.LIVE:
            live.setdefault(event.metrics.symbol, []).append(event)
    if not live:
        return symbols
    found = dict(symbols)
    for symbol, own in live.items():
        event, before = own[-1], found.get(symbol) or SymbolState(symbol=symbol)
        prints = [whale for each in own for whale in each.whale_prints]
        close, end_ms = event.metrics.close, event.metrics.window_end_ms
        heard_ns = [each.closed_at_ns for each in own if _was_heard(each)]
        found[symbol] = msgspec.structs.replace(
            before,
            price=before.price if close is None else close,
            lag_ms=event.closed_at_ns // 1_000_000 - end_ms,
            seen_ns=heard_ns[-1] if heard_ns else before.seen_ns,
            whales=(*before.whales, *prints)[-WHALES_KEPT:] if prints else before.whales,
        )
    return found


def _was_heard(event: WindowEvent) -> bool:
    """Whether the feed showed that it lives: windows of a dead one are empty, and holed."""
    return event.metrics.complete or event.metrics.trade_count > 0


def _after_signals(
    symbols: dict[str, SymbolState],
    signals: Sequence[Signal],
    missing: Sequence[AnalysisUnavailable],
) -> dict[str, SymbolState]:
    if not signals and not missing:
        return symbols
    found = dict(symbols)

    def update(symbol: str, **changes: Signal | AnalysisUnavailable | int) -> None:
        before = found.get(symbol) or SymbolState(symbol=symbol)
        found[symbol] = msgspec.structs.replace(before, **changes)

    for signal in signals:
        if signal.source == "rules":
            update(signal.symbol, rules=signal)
        elif signal.source.startswith("model:"):
            update(signal.symbol, model=signal)
        else:
            at_ns = _wall_ns(found.get(signal.symbol), signal.decided_at_ms)
            update(signal.symbol, analysis=signal, analysis_ns=at_ns)
    for event in missing:
        at_ns = _wall_ns(found.get(event.symbol), event.window_end_ms)
        update(event.symbol, unavailable=event, unavailable_ns=at_ns)
    return found


def _wall_ns(symbol: SymbolState | None, market_ms: int) -> int:
    """The bot's wall clock at a market time: a served recording's market may lie years back."""
    lag_ms = symbol.lag_ms if symbol is not None else None
    return (market_ms + (lag_ms or 0)) * 1_000_000


# --- the run ------------------------------------------------------------------------------


def _after_health(state: DashboardState, events: Sequence[HealthEvent]) -> DashboardState:
    for event in events:
        before = state.health
        flushes = event.values.get("store.flushes")
        has_flushed = bool(flushes) and (
            before is None or before.values.get("store.flushes") != flushes
        )
        state = msgspec.structs.replace(
            state,
            health=event,
            health_before=before,
            flushed_ns=event.at_ns if has_flushed else state.flushed_ns,
        )
    return state


def _shown(sockets: SocketEvents) -> SocketEvents:
    """Without the dead ones that a newer socket of their route has replaced."""
    newest = dict(sorted(sockets))
    return {
        (route, socket_id): event
        for (route, socket_id), event in sockets.items()
        if event.state not in _DEAD or newest[route] == socket_id
    }


def _after_gaps(
    state: DashboardState, events: Sequence[GapEvent]
) -> tuple[dict[GapKey, GapEvent], dict[GapState, int]]:
    if not events:
        return state.open_gaps, state.gap_counts
    open_gaps, counts = dict(state.open_gaps), dict(state.gap_counts)
    for event in events:
        counts[event.state] = counts.get(event.state, 0) + 1
        key = (event.kind, event.symbol, event.first_id, event.last_id)
        if event.state is not GapState.OPEN:
            open_gaps.pop(key, None)
        elif event.kind == "trades":  # nothing brings depth back: counted, not awaited
            open_gaps[key] = event
            if len(open_gaps) > GAPS_KEPT:
                del open_gaps[next(iter(open_gaps))]
    return open_gaps, counts


def _newest(lines: tuple[LogLine, ...], more: Iterable[LogLine]) -> tuple[LogLine, ...]:
    return (*lines, *more)[-LINES_KEPT:]


def _alert_line(alert: Alert) -> LogLine:
    is_named = not alert.symbol or alert.message.startswith(alert.symbol)
    text = alert.message if is_named else f"{alert.symbol} {alert.message}"
    return LogLine(alert.at_ns, alert.severity, text)


def _event_line(payload: msgspec.Struct) -> LogLine | None:
    if isinstance(payload, ConnectionEvent):
        return _connection_line(payload)
    return _gap_line(payload) if isinstance(payload, GapEvent) else None


def _connection_line(event: ConnectionEvent) -> LogLine:
    attempt = f", attempt {event.attempt}" if event.attempt else ""
    text = f"{event.route} #{event.socket_id} {event.state.value}: {event.reason}{attempt}"
    return LogLine(event.at_ns, "warning" if event.state in _BAD else "info", text)


def _gap_line(event: GapEvent) -> LogLine:
    has_ids = event.first_id is not None and event.last_id is not None
    count = f"{event.last_id - event.first_id + 1:,} " if has_ids else ""  # type: ignore[operator]
    severity = {GapState.OPEN: "warning", GapState.REPAIRED: "info"}.get(event.state, "error")
    text = f"{event.symbol} {count}{event.kind} missing, {event.state.value}: {event.cause}"
    return LogLine(event.at_ns, severity, text)


def clock(time_ms: int) -> str:
    """Time of day, UTC."""
    return time.strftime("%H:%M:%S", time.gmtime(time_ms / 1_000))


def summary(state: DashboardState) -> dict[str, str | int]:
    """The state in one log line's fields."""
    return {
        "windows": state.window_count,
        "incomplete": state.incomplete_count,
        "trades": state.trade_count,
        "signals": state.signal_count,
        "recovered": state.recovered_count,
        "revised": state.revised_count,
        "open_gaps": len(state.open_gaps),
        "last_window_end": "" if state.last_end_ms is None else clock(state.last_end_ms),
        "connections": ", ".join(
            f"{route}#{socket_id} {event.state.value}"
            for (route, socket_id), event in sorted(state.sockets.items())
        ),
    }
