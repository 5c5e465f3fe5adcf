"""How the terminal view looks: a pure function of its state, as rich renderables and as text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dashboard.view_state import ViewState, clock
from domain.events import ConnectionState, GapState, HealthEvent, Signal, WindowEvent
from domain.flow import FlowMetrics, Origin

NARROW_COLUMNS = 100  # below: shorter words, no counts beside whales
_DIGITS = 6
_STATE_STYLE = {
    ConnectionState.HEALTHY: "green",
    ConnectionState.ROTATING: "green",
    ConnectionState.CONNECTING: "yellow",
    ConnectionState.SUBSCRIBED: "yellow",
    ConnectionState.SUSPECT: "yellow",
}


def render(
    state: ViewState, *, now_ms: int, rows: int, columns: int, problems: Sequence[str] = ()
) -> RenderableType:
    """The whole view as one renderable of at most ``rows`` lines (from 24 on); no line wraps.

    Args:
        state: what to show.
        now_ms: wall clock, UTC.
        rows: height of the terminal.
        columns: its width.
        problems: last warnings and errors of the log, oldest first.
    """
    most = max(1, rows // 8)
    problems, notices = problems[-most:], state.notices[-most:]
    fixed = 10 + len(state.sockets) + len(problems) + len(notices)
    free = max(4, rows - fixed)
    window_rows = max(2, free * 2 // 3)
    parts: list[RenderableType] = [
        _line(_header(state, now_ms, columns), "bold"),
        _connections(state, now_ms),
        Text(),
        _windows(state.windows, window_rows, is_narrow=columns < NARROW_COLUMNS),
        Text(),
        _signals(state.signals, max(1, free - window_rows)),
        Text(),
        _line(_gaps(state), "yellow" if state.open_gaps else ""),
    ]
    parts += [_line(line, "cyan") for line in (_recovery(state), _figures(state)) if line]
    parts += [_line(line, "magenta") for line in notices]
    parts += [_line(line, "red") for line in problems]
    return Group(*parts)


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _header(state: ViewState, now_ms: int, columns: int) -> str:
    """Clock, totals, rate and delay, in as many words as fit."""
    at, count = f"{clock(now_ms)} UTC", f"{state.window_count:,} windows"
    incomplete = [f"{state.incomplete_count:,} incomplete"] if state.incomplete_count else []
    rate, lag_ms = _rate_and_lag(state)
    long = ["order flow", at, count, f"{state.trade_count:,} trades", *incomplete]
    short = [at, count, *incomplete]
    if rate is not None:
        long += [f"{rate:,.0f} trades/s", f"closed {lag_ms:,} ms after its end"]
        short += [f"{rate:,.0f} trades/s", f"closed +{lag_ms:,} ms"]
    text = " · ".join(long)
    return text if len(text) <= columns else " · ".join(short)


def _rate_and_lag(state: ViewState) -> tuple[float | None, int]:
    """Trades a second in the last windows, and how long after their end they closed, ms."""
    latest = state.last_live
    if latest is None:
        return None, 0
    end_ms = latest.metrics.window_end_ms
    length_s = (end_ms - latest.metrics.window_start_ms) / 1_000
    trades = sum(
        w.metrics.trade_count
        for w in state.windows
        if w.origin is Origin.LIVE and w.metrics.window_end_ms == end_ms
    )
    return trades / length_s, latest.closed_at_ns // 1_000_000 - end_ms


def _table(*names: str, last_shrinks: bool = True, spaces: int = 2) -> Table:
    """A table without lines whose rows never wrap; only the last column may be cut short."""
    has_header = any(names)
    table = Table(box=None, padding=(0, spaces, 0, 0), show_header=has_header, header_style="dim")
    for place, name in enumerate(names):
        may_shrink = last_shrinks and place == len(names) - 1
        table.add_column(name, no_wrap=not may_shrink, overflow="ellipsis")
    return table


def _connections(state: ViewState, now_ms: int) -> Table:
    table = _table(*[""] * 5)
    if not state.sockets:
        table.add_row("connecting …")
    for (route, socket_id), event in sorted(state.sockets.items()):
        since_s = max(0, now_ms - event.at_ns // 1_000_000) // 1_000
        table.add_row(
            f"{route} #{socket_id}",
            Text(event.state.value, style=_STATE_STYLE.get(event.state, "red")),
            f"{since_s:,} s",
            f"attempt {event.attempt}" if event.attempt else "",
            _line(event.reason, ""),
        )
    return table


def _windows(windows: Sequence[WindowEvent], rows: int, *, is_narrow: bool) -> Table:
    """The newest windows; of those that ended together, the busiest first."""
    names = ("end", "symbol", "close", "delta", "CVD", "whales", "trades", "complete")
    table = _table(*names, last_shrinks=False, spaces=1 if is_narrow else 2)
    for column in table.columns[2:]:
        column.justify = "right"
    newest = sorted(windows, key=lambda w: (-w.metrics.window_end_ms, -w.metrics.quote_volume))
    for window in newest[:rows]:
        metrics = window.metrics
        whales = _signed(metrics.whale_delta) if metrics.whale_count else ""
        if whales and not is_narrow:
            whales += f" ({metrics.whale_count})"
        table.add_row(
            clock(metrics.window_end_ms),
            metrics.symbol,
            "" if metrics.close is None else f"{metrics.close:,f}",
            Text(_signed(metrics.delta), style="green" if metrics.delta >= 0 else "red"),
            _signed(metrics.cvd) + ("" if metrics.cvd_complete else " ?"),
            whales,
            f"{metrics.trade_count:,}",
            _completeness(metrics, window.origin, is_narrow=is_narrow),
        )
    return table


def _signed(value: Decimal) -> str:
    """With sign and at most six digits, or all those before the point; the store has it exact."""
    decimals = max(0, -int(value.as_tuple().exponent))
    return f"{value:+,.{min(decimals, max(0, _DIGITS - 1 - value.adjusted()))}f}"


def _completeness(metrics: FlowMetrics, origin: Origin, *, is_narrow: bool) -> str:
    if metrics.complete:
        return "yes" if origin is Origin.LIVE else origin.value
    missing = "?" if metrics.missing_trades is None else f"{metrics.missing_trades:,}"
    return f"no, {missing}" if is_narrow else f"no, {missing} missing"


def _signals(signals: Sequence[Signal], rows: int) -> Table:
    table = _table(*[""] * 5)
    for signal in reversed(signals[-rows:]):
        style = {"BUY": "green", "SELL": "red"}.get(signal.action.value, "dim")
        table.add_row(
            clock(signal.window_end_ms),
            signal.symbol,
            Text(f"{signal.action.value} {signal.confidence:.0%}", style=style),
            signal.source,
            _line(signal.rationale, ""),
        )
    return table


def _gaps(state: ViewState) -> str:
    counts = state.gap_counts
    return (
        f"gaps: {len(state.open_gaps)} open, {counts.get(GapState.REPAIRED, 0)} repaired, "
        f"{counts.get(GapState.LOST, 0) + counts.get(GapState.EXPIRED, 0)} lost · "
        f"windows recovered {state.recovered_count:,}, revised {state.revised_count:,}"
    )


def _recovery(state: ViewState) -> str:
    """How far the recovery of earlier windows is, while there is one."""
    if state.health is None:
        return ""
    read = state.health.values.get
    done, wanted = read("recovery.windows_done"), read("recovery.windows_wanted")
    if not isinstance(done, int) or not isinstance(wanted, int) or done >= wanted:
        return ""
    eta_s = read("recovery.eta_s")
    left = f", about {eta_s:,.0f} s left" if isinstance(eta_s, float | int) else ""
    return f"recovering {done:,} of {wanted:,} windows{left}"


def _figures(state: ViewState) -> str:
    """The main figures of the last health event."""
    if state.health is None:
        return ""
    parts = []
    if (rate := _frames_per_s(state.health_before, state.health)) is not None:
        parts.append(f"{rate:,.0f} messages/s")
    for name, words in (
        ("validator.clock_offset_ms", "received {} ms after the event"),
        ("loop.worst_lag_ms", "loop lag at most {} ms"),
    ):
        value = state.health.values.get(name)
        if isinstance(value, float | int):
            parts.append(words.format(f"{value:,.0f}"))
    if dropped := state.health.values.get("bus.dropped_count"):
        parts.append(f"{dropped:,} events dropped by slow subscribers")
    return " · ".join(parts)


def _frames_per_s(before: HealthEvent | None, now: HealthEvent) -> float | None:
    if before is None or now.at_ns <= before.at_ns:
        return None
    first, last = before.values.get("flow.frames"), now.values.get("flow.frames")
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return (last - first) * 1e9 / (now.at_ns - before.at_ns)


def to_text(renderable: RenderableType, *, width: int, colour: bool = True) -> str:
    """A renderable as text with terminal colours, ``width`` columns wide."""
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        highlight=False,
        _environ={},
    )
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()
