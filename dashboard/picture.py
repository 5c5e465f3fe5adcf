"""How the terminal view looks: a pure function of its state, as rich renderables and as text."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dashboard.view_state import ViewState, clock
from domain.events import ConnectionState, GapState, HealthEvent, Signal, WindowEvent
from domain.flow import FlowMetrics, Origin

_STATE_STYLE = {
    ConnectionState.HEALTHY: "green",
    ConnectionState.ROTATING: "green",
    ConnectionState.CONNECTING: "yellow",
    ConnectionState.SUBSCRIBED: "yellow",
    ConnectionState.SUSPECT: "yellow",
}


def render(
    state: ViewState, *, now_ms: int, rows: int, problems: Sequence[str] = ()
) -> RenderableType:
    """The whole view as one renderable of about ``rows`` lines.

    Args:
        state: what to show.
        now_ms: wall clock, UTC.
        rows: height of the terminal.
        problems: last warnings and errors of the log, oldest first.
    """
    fixed = 10 + len(state.sockets) + len(problems) + len(state.notices)
    free = max(4, rows - fixed)
    window_rows = max(2, free * 2 // 3)
    parts: list[RenderableType] = [
        Text(f"order flow · {clock(now_ms)} UTC · {_totals(state)}", style="bold"),
        _connections(state, now_ms),
        Text(),
        _windows(state.windows, window_rows),
        Text(),
        _signals(state.signals, max(1, free - window_rows)),
        Text(),
        Text(_gaps(state), style="yellow" if state.open_gaps else ""),
    ]
    parts += [Text(line, style="cyan") for line in (_recovery(state), _figures(state)) if line]
    parts += [Text(line, style="magenta", no_wrap=True) for line in state.notices]
    parts += [Text(line, style="red", no_wrap=True) for line in problems]
    return Group(*parts)


def _totals(state: ViewState) -> str:
    parts = [f"{state.window_count:,} windows", f"{state.trade_count:,} trades"]
    if state.incomplete_count:
        parts.append(f"{state.incomplete_count:,} incomplete")
    latest = state.last_live
    if latest is not None:
        metrics = latest.metrics
        length_s = (metrics.window_end_ms - metrics.window_start_ms) / 1_000
        trades = sum(
            w.metrics.trade_count
            for w in state.windows
            if w.origin is Origin.LIVE and w.metrics.window_end_ms == metrics.window_end_ms
        )
        lag_ms = latest.closed_at_ns // 1_000_000 - metrics.window_end_ms
        parts += [f"{trades / length_s:,.0f} trades/s", f"closed {lag_ms:,} ms after its end"]
    return " · ".join(parts)


def _connections(state: ViewState, now_ms: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    if not state.sockets:
        table.add_row("connecting …")
    for (route, socket_id), event in sorted(state.sockets.items()):
        since_s = max(0, now_ms - event.at_ns // 1_000_000) // 1_000
        table.add_row(
            f"{route} #{socket_id}",
            Text(event.state.value, style=_STATE_STYLE.get(event.state, "red")),
            f"{since_s:,} s",
            f"attempt {event.attempt}" if event.attempt else "",
            Text(event.reason, overflow="ellipsis", no_wrap=True),
        )
    return table


def _windows(windows: Sequence[WindowEvent], rows: int) -> Table:
    """The newest windows; of those that ended together, the busiest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("end", "symbol", "close", "delta", "CVD", "whales", "trades", "complete"):
        table.add_column(name, justify="left" if name in {"end", "symbol"} else "right")
    newest = sorted(
        windows, key=lambda w: (-w.metrics.window_end_ms, -w.metrics.quote_volume, -w.revision)
    )
    for window in newest[:rows]:
        metrics = window.metrics
        table.add_row(
            clock(metrics.window_end_ms),
            metrics.symbol,
            "" if metrics.close is None else f"{metrics.close:,f}",
            Text(f"{metrics.delta:+,f}", style="green" if metrics.delta >= 0 else "red"),
            f"{metrics.cvd:+,f}" + ("" if metrics.cvd_complete else " ?"),
            f"{metrics.whale_delta:+,f} ({metrics.whale_count})" if metrics.whale_count else "",
            f"{metrics.trade_count:,}",
            _completeness(metrics, window.origin),
        )
    return table


def _completeness(metrics: FlowMetrics, origin: Origin) -> str:
    if metrics.complete:
        return "yes" if origin is Origin.LIVE else origin.value
    missing = "?" if metrics.missing_trades is None else f"{metrics.missing_trades:,}"
    return f"no, {missing} missing"


def _signals(signals: Sequence[Signal], rows: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for signal in reversed(signals[-rows:]):
        style = {"BUY": "green", "SELL": "red"}.get(signal.action.value, "dim")
        table.add_row(
            clock(signal.window_end_ms),
            signal.symbol,
            Text(f"{signal.action.value} {signal.confidence:.0%}", style=style),
            signal.source,
            Text(signal.rationale, overflow="ellipsis", no_wrap=True),
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
