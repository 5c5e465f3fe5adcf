"""A plain live view of a run: connections, last windows, signals, gaps, health.

Consumes the event bus, produces a full-screen text at most four times a second, or one summary line
a minute in the log. ``reduce`` and ``render`` are pure; drawing and writing happen on a thread of
their own that keeps only the newest state, so a stalled terminal cannot stop the feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TextIO

import msgspec
import structlog
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from domain.events import (
    Alert,
    AnalysisUnavailable,
    ConnectionEvent,
    ConnectionState,
    GapEvent,
    GapState,
    HealthEvent,
    Signal,
    Topic,
    WindowEvent,
)
from domain.flow import FlowMetrics, Origin
from event_bus import DropOldest, Envelope, EventBus, Subscription

log = structlog.get_logger()

FRAME_INTERVAL_S = 0.25
CLOCK_INTERVAL_S = 1.0
SUMMARY_INTERVAL_S = 60.0
CLOSE_TIMEOUT_S = 1.0
QUEUE_EVENTS = 8_192
WINDOWS_KEPT = 256
SIGNALS_KEPT = 16
NOTICES_KEPT = 5
GAPS_KEPT = 1_000
TOPICS = tuple(topic for topic in Topic if topic is not Topic.FEATURES)
_ENTER, _LEAVE, _HOME, _CLEAR_LINE, _CLEAR_BELOW = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)
_STATE_STYLE = {
    ConnectionState.HEALTHY: "green",
    ConnectionState.ROTATING: "green",
    ConnectionState.CONNECTING: "yellow",
    ConnectionState.SUBSCRIBED: "yellow",
    ConnectionState.SUSPECT: "yellow",
}

type GapKey = tuple[str, str, int | None, int | None]


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """What the view knows; a new one is made per batch of events."""

    sockets: dict[tuple[str, int], ConnectionEvent] = {}
    windows: tuple[WindowEvent, ...] = ()  # newest last
    signals: tuple[Signal, ...] = ()  # newest last
    notices: tuple[str, ...] = ()  # alerts and missing analyses, newest last
    open_gaps: dict[GapKey, GapEvent] = {}
    gap_counts: dict[GapState, int] = {}
    health: HealthEvent | None = None
    window_count: int = 0
    incomplete_count: int = 0
    recovered_count: int = 0
    revised_count: int = 0
    trade_count: int = 0
    signal_count: int = 0
    last_live: WindowEvent | None = None


def reduce(state: ViewState, batch: Sequence[Envelope]) -> ViewState:
    """The state after a batch of events; the old one is not changed."""
    payloads = [envelope.payload for envelope in batch]
    windows = [p for p in payloads if isinstance(p, WindowEvent)]
    signals = [p for p in payloads if isinstance(p, Signal)]
    sockets = {(p.route, p.socket_id): p for p in payloads if isinstance(p, ConnectionEvent)}
    health = [p for p in payloads if isinstance(p, HealthEvent)]
    notices = [notice for p in payloads if (notice := _notice(p)) is not None]
    live = [w for w in windows if w.origin is Origin.LIVE]
    open_gaps, gap_counts = _after_gaps(state, [p for p in payloads if isinstance(p, GapEvent)])
    return msgspec.structs.replace(
        state,
        sockets=state.sockets | sockets,
        windows=(*state.windows, *windows)[-WINDOWS_KEPT:],
        signals=(*state.signals, *signals)[-SIGNALS_KEPT:],
        notices=(*state.notices, *notices)[-NOTICES_KEPT:],
        open_gaps=open_gaps,
        gap_counts=gap_counts,
        health=health[-1] if health else state.health,
        window_count=state.window_count + len(live),
        incomplete_count=state.incomplete_count + sum(not w.metrics.complete for w in live),
        recovered_count=state.recovered_count + _count(windows, Origin.RECOVERED),
        revised_count=state.revised_count + _count(windows, Origin.REVISED),
        trade_count=state.trade_count + sum(w.metrics.trade_count for w in live),
        signal_count=state.signal_count + len(signals),
        last_live=live[-1] if live else state.last_live,
    )


def _count(windows: Sequence[WindowEvent], origin: Origin) -> int:
    return sum(window.origin is origin for window in windows)


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
        return f"{_clock(payload.at_ns // 1_000_000)} {payload.severity}: {payload.message}"
    if isinstance(payload, AnalysisUnavailable):
        at = _clock(payload.window_end_ms)
        return f"{at} no analysis of {payload.symbol}: {payload.reason}"
    return None


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
    fixed = 9 + len(state.sockets) + len(problems) + len(state.notices)
    free = max(4, rows - fixed)
    window_rows = max(2, free * 2 // 3)
    parts: list[RenderableType] = [
        Text(f"order flow · {_clock(now_ms)} UTC · {_totals(state)}", style="bold"),
        _connections(state, now_ms),
        _windows(state.windows, window_rows),
        _signals(state.signals, max(1, free - window_rows)),
        Text(_gaps(state), style="yellow" if state.open_gaps else ""),
    ]
    if progress := _progress(state):
        parts.append(Text(progress, style="cyan"))
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
            _clock(metrics.window_end_ms),
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
            _clock(signal.window_end_ms),
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


def _progress(state: ViewState) -> str:
    """Recovery's own figures from the last health event, while there are any."""
    if state.health is None:
        return ""
    shown = [
        f"{name.removeprefix('recovery.').replace('_', ' ')} {value}"
        for name, value in state.health.values.items()
        if name.startswith("recovery.") and value not in {None, 0, ""}
    ]
    return "recovery: " + ", ".join(shown) if shown else ""


def _clock(time_ms: int) -> str:
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
        "last_window_end": "" if latest is None else _clock(latest.metrics.window_end_ms),
        "connections": ", ".join(
            f"{route}#{socket_id} {event.state.value}"
            for (route, socket_id), event in sorted(state.sockets.items())
        ),
    }


class Screen:
    """Draws the newest state on a terminal from a thread of its own; ``show`` never waits."""

    def __init__(self, stream: TextIO, problems: Callable[[], Sequence[str]]) -> None:
        self._problems = problems
        self._raw = open(stream.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
        self._encoding = stream.encoding or "utf-8"
        self._changed = threading.Condition()
        self._newest: ViewState | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._draw_all, name="view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def show(self, state: ViewState) -> None:
        """Make ``state`` the next one drawn; one not drawn yet is replaced."""
        with self._changed:
            self._newest = state
            self._changed.notify()

    def _draw_all(self) -> None:
        try:
            self._write(_ENTER)
            while (state := self._next()) is not None:
                self._write(self._frame(state))
            self._write(_LEAVE)
        except OSError as error:  # the terminal is gone; the run goes on without it
            log.warning("view.terminal_lost", reason=str(error))

    def _next(self) -> ViewState | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._newest is not None)
            state, self._newest = self._newest, None
            return None if self._closing else state

    def _frame(self, state: ViewState) -> str:
        size = shutil.get_terminal_size()
        text = to_text(
            render(
                state,
                now_ms=time.time_ns() // 1_000_000,
                rows=size.lines,
                problems=self._problems(),
            ),
            width=size.columns,
        )
        lines = text.rstrip("\n").split("\n")[: size.lines - 1]
        return _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + _CLEAR_BELOW

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            data = data[self._raw.write(data) or 0 :]


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


async def watch(
    bus: EventBus,
    *,
    with_view: bool,
    stream: TextIO,
    problems: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Show the bus's events until it closes: on the terminal, or a summary a minute in the log.

    Nothing that goes wrong here reaches the caller: a view must not end a run.

    Args:
        bus: where events come from; nothing else is read.
        with_view: draw on ``stream``, which must be a terminal.
        stream: standard output.
        problems: gives the log's last warnings and errors.
    """
    with bus.subscribe(TOPICS, policy=DropOldest(QUEUE_EVENTS), name="view") as subscription:
        try:
            if with_view:
                await _draw(subscription, stream, problems)
            else:
                await _summarise(subscription)
        except Exception:
            log.exception("view.failed")


async def _draw(
    subscription: Subscription, stream: TextIO, problems: Callable[[], Sequence[str]]
) -> None:
    state = ViewState()
    with Screen(stream, problems) as screen:
        while True:
            screen.show(state)
            await asyncio.sleep(FRAME_INTERVAL_S)  # at most four frames a second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_INTERVAL_S):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    state = reduce(state, batch)


async def _summarise(subscription: Subscription) -> None:
    state = ViewState()
    due = time.monotonic() + SUMMARY_INTERVAL_S
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    batch = await subscription.next_batch()
                    if not batch:
                        return
                    state = reduce(state, batch)
            if time.monotonic() >= due:
                due += SUMMARY_INTERVAL_S
                log.info("run.summary", **summary(state))
    finally:
        log.info("run.summary", **summary(state))


def supports_view(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands escape sequences."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return not Console(file=stream).legacy_windows
