"""Panels about the run: head, connections, AI, alerts, events, foot. Pure: scene and size → lines."""

from __future__ import annotations

from rich.text import Text

from dashboard.scene import Scene
from dashboard.state import LogLine, SymbolState, clock
from dashboard.wording import (
    QUIET,
    Span,
    age_text,
    bytes_text,
    columns,
    line,
    percent,
    price_text,
    ruled,
)
from domain.events import ConnectionState, GapState

_SOCKET_LOOK = {
    ConnectionState.HEALTHY: ("✓", "green"),
    ConnectionState.ROTATING: ("✓", "green"),
    ConnectionState.CONNECTING: ("…", "yellow"),
    ConnectionState.SUBSCRIBED: ("…", "yellow"),
    ConnectionState.SUSPECT: ("?", "yellow"),
}
_BROKEN_LOOK = ("✗", "bold red")
_SEVERITY_LOOK = {"info": ("·", QUIET), "warning": ("!", "yellow"), "error": ("✗", "red")}
_ALREADY_SHOWN = (" connection.state ", " gap.", " ai.unavailable ")  # as events of the bus
_FEWEST_WIDE = 110

HELP = (
    ("← → tab n p 1-9", "another symbol"),
    ("z", "more time on the charts: 1, 4 or 12 windows a column"),
    ("Ctrl-L", "draw everything anew"),
    ("h ?", "this help"),
    ("q then y, Ctrl-C", "stop"),
    ("", ""),
    ("▲ + green", "up, bought, bids weigh more"),
    ("▼ - red", "down, sold, asks weigh more"),
    ("~", "the look-back is not full yet, or has a hole"),
    ("grey with an age", "stale: nothing newer has come"),
)


# --- head and foot ------------------------------------------------------------------------


def head(scene: Scene, width: int) -> list[Text]:
    """Symbol, price and change; the other symbols; sockets; the run's figures."""
    rows = [_title(scene, width)]
    if len(scene.state.symbols) > 1:
        rows.append(_symbols(scene, width))
    status, figures = _sockets(scene), _figures(scene, is_wide=width >= _FEWEST_WIDE)
    if status.cell_len + figures.cell_len + 2 <= width:
        return [*rows, Text.assemble(status, "  ", figures, no_wrap=True, end="")]
    return [*rows, status, figures]


def _title(scene: Scene, width: int) -> Text:
    symbol, banner = scene.symbol, scene.banner
    left: list[Span] = []
    if symbol is None:
        left.append(("order flow", "bold"))
    else:
        stale = scene.is_stale(symbol)
        price = price_text(symbol.price, symbol.price)
        left += [(symbol.symbol, "bold"), "  ", (price, QUIET if stale else "bold")]
        if symbol.seen_ns:
            age = age_text(symbol.seen_ns, scene.now_ns)
            left.append((f"  {'STALE ' if stale else ''}{age} old", "yellow" if stale else QUIET))
    at = f"{clock(scene.now_ns // 1_000_000)} UTC"
    right: list[Span] = [(banner.mode, "magenta"), f"  {at}"]
    if banner.trouble:
        left.insert(0, (f"✗ {banner.trouble}  ", "bold red"))
    room = width - line(*left).cell_len - line(*right).cell_len - 1
    for name, ratio in [] if symbol is None else _changes(symbol):
        text, style = percent(ratio)
        change = f"  {text} {name}"
        if (room := room - len(change)) >= 0:
            left.append((change, QUIET if symbol and scene.is_stale(symbol) else style))
    return _ends(left, right, width)


def _ends(left: list[Span], right: list[Span], width: int) -> Text:
    """``left`` at the left and ``right`` at the right; the left gives way."""
    start, end = line(*left), line(*right)
    room = max(0, width - end.cell_len - 1)
    start.truncate(room, overflow="ellipsis", pad=True)
    return Text.assemble(start, " ", end, no_wrap=True, end="")


def _changes(symbol: SymbolState) -> list[tuple[str, float | None]]:
    row = symbol.row
    if row is None:
        return []
    found = [
        (name, None if bps is None else bps / 1e4)
        for name, bps in (("1 min", row.return_1m_bps), ("15 min", row.return_15m_bps))
    ]
    if row.previous_close and row.price:
        found.append(("day", row.price / row.previous_close - 1.0))
    return [(name, ratio) for name, ratio in found if ratio is not None]


def _symbols(scene: Scene, width: int) -> Text:
    """Every symbol with its last minute; the chosen one in reverse, always among those shown."""
    chosen = scene.symbol
    cells: list[tuple[str, str]] = []
    place = 0
    for number, symbol in enumerate(scene.state.symbols.values(), 1):
        row = symbol.row
        moved = row.return_1m_bps if row else None
        text, style = percent(None if moved is None else moved / 1e4)
        if symbol is chosen:
            place = number - 1
        mark = "!" if scene.is_stale(symbol) else ""
        label = f" {number} {symbol.symbol} {mark}{text} "
        look = QUIET if mark else style
        cells.append((label, f"{look} reverse".strip() if symbol is chosen else look))
    first = place
    used = len(cells[place][0])
    while first > 0 and used + len(cells[first - 1][0]) <= width // 2:
        first -= 1
        used += len(cells[first][0])
    return line("‹" if first else "", *cells[first:])


def _sockets(scene: Scene) -> Text:
    spans: list[Span] = []
    for (route, socket_id), event in sorted(scene.state.sockets.items()):
        mark, style = _SOCKET_LOOK.get(event.state, _BROKEN_LOOK)
        if scene.banner.trouble:  # the last that was heard of it
            mark, style = "?", QUIET
        attempt = f" attempt {event.attempt}" if event.attempt else ""
        since = age_text(event.at_ns, scene.now_ns)
        spans += [
            (f"{mark} {route} #{socket_id} {event.state.value}{attempt}", style),
            (f" {since}   ", QUIET),
        ]
    return line(*(spans or [("… connecting", "yellow")]))


def _figures(scene: Scene, *, is_wide: bool) -> Text:
    """Rates, losses, delays: where width is short the least telling come last."""
    state, counts = scene.state, scene.state.gap_counts
    lost = counts.get(GapState.LOST, 0) + counts.get(GapState.EXPIRED, 0)
    rate, lag_ms = _rate(scene), scene.symbol.lag_ms if scene.symbol else None
    old = QUIET if scene.is_health_stale else ""
    spans: list[Span] = []
    if rate is not None:
        spans.append(f"{rate:,.0f} msg/s")
    words = "{} open {} repaired {} lost" if is_wide else "{} open {} fixed {} lost"
    shown = words.format(len(state.open_gaps), counts.get(GapState.REPAIRED, 0), lost)
    mark, style = ("✗ ", "red") if lost else ("! ", "yellow") if state.open_gaps else ("", "")
    spans.append((f"{mark}gaps {shown}", style))
    dropped = scene.number("bus.dropped_count") or 0
    spans.append((f"✗ drops {dropped:,.0f}", "red") if dropped else ("drops 0", old))
    if lag_ms is not None:
        spans.append(f"closed {lag_ms:+,} ms")
    if state.health is not None and scene.is_health_stale:
        spans.append((f"{age_text(state.health.at_ns, scene.now_ns)} old:", "yellow"))
    for name, form in (
        ("validator.clock_offset_ms", "lag {:,.0f} ms"),
        ("rest.clock_offset_ms", "clock {:+,.0f} ms"),
        ("loop.worst_lag_ms", "loop {:,.0f} ms"),
    ):
        if (value := scene.number(name)) is not None:
            spans.append((form.format(value), old))
    return line(*_joined(spans))


def _joined(spans: list[Span]) -> list[Span]:
    found: list[Span] = []
    for span in spans:
        found += [(" · ", QUIET), span]
    return found[1:]


def _rate(scene: Scene) -> float | None:
    """Messages a second of all symbols in their newest windows."""
    newest = [s.bars[-1] for s in scene.state.symbols.values() if s.bars]
    end_ms = max((bar.end_ms for bar in newest), default=0)
    together = [bar for bar in newest if bar.end_ms == end_ms]
    if not together:
        return None
    return sum(bar.messages for bar in together) / (together[0].length_ms / 1_000)


def foot(scene: Scene, width: int) -> Text:
    """The store, the disk, the version; how to get help."""
    if scene.view.stopped:
        return line((" stopping: what is open is written first … ", "bold reverse"))
    if scene.view.asks_to_stop:
        return line((" stop? y stops, any other key goes on ", "bold reverse"))
    state = scene.state
    spans: list[Span] = []
    if (rows := scene.number("store.rows_written")) is not None:
        pending = scene.number("store.rows_pending") or 0
        flushed = (
            age_text(state.flushed_ns, scene.now_ns) + " ago" if state.flushed_ns else "none yet"
        )
        spans.append((f"store {rows:,.0f} rows + {pending:,.0f} waiting, flush {flushed}", QUIET))
    if failed := scene.number("store.failed_flushes"):
        spans.append((f"✗ {failed:,.0f} flushes failed", "red"))
    if (free := scene.number("disk.free_bytes")) is not None:
        spans.append((f"disk {bytes_text(free)} free", QUIET))
    done, wanted = scene.number("recovery.windows_done"), scene.number("recovery.windows_wanted")
    if done is not None and wanted is not None and done < wanted:
        spans.append((f"recovering {done:,.0f} of {wanted:,.0f} windows", "yellow"))
    counts = f"{state.window_count:,} windows"
    counts += f", {state.incomplete_count:,} incomplete" if state.incomplete_count else ""
    counts += f", {state.recovered_count:,} recovered" if state.recovered_count else ""
    counts += f", {state.revised_count:,} revised" if state.revised_count else ""
    spans.append((counts, QUIET))
    version = f"v{scene.banner.version}  " if scene.banner.version else ""
    return _ends(_joined(spans), [(f"{version}h help  q stop", QUIET)], width)


def help_lines(width: int, height: int) -> list[Text]:
    """What the keys do and what the signs mean."""
    rows = [columns([((f"  {keys}", "bold"), 20), (about, 58)]) for keys, about in HELP]
    return [ruled("Help", width), *rows][:height]


# --- alerts and events --------------------------------------------------------------------


def alerts(scene: Scene, width: int, height: int) -> list[Text]:
    """The newest alerts, newest first."""
    lines = [ruled("Alerts", width, f"{len(scene.state.alerts)}" if scene.state.alerts else "")]
    lines += [_log_line(entry) for entry in reversed(scene.state.alerts[-max(0, height - 1) :])]
    if len(lines) == 1:
        lines.append(line(("none", QUIET)))
    return lines[:height]


def events(scene: Scene, width: int, height: int) -> list[Text]:
    """Connections and gaps, and the log's other warnings and errors; newest first of each."""
    room = max(1, height - 1)
    problems = [p for p in scene.problems if not any(name in p for name in _ALREADY_SHOWN)]
    shown = problems[-max(1, room // 2) :]
    own = scene.state.events[-(room - len(shown)) :] if room > len(shown) else ()
    lines = [ruled("Events", width)]
    lines += [
        line(("✗ " if " error " in text else "! ", "red"), (text, "yellow"))
        for text in reversed(shown)
    ]
    return [*lines, *map(_log_line, reversed(own))][:height]


def alerts_and_events(scene: Scene, width: int, height: int) -> list[Text]:
    """Both in one small panel: alerts first."""
    count = min(len(scene.state.alerts), max(1, (height - 1) // 2))
    newest = scene.state.alerts[len(scene.state.alerts) - count :]
    rest = events(scene, width, height - count)
    return [ruled("Alerts and events", width), *map(_log_line, reversed(newest)), *rest[1:]][
        :height
    ]


def _log_line(entry: LogLine) -> Text:
    mark, style = _SEVERITY_LOOK.get(entry.severity, _SEVERITY_LOOK["error"])
    at = clock(entry.at_ns // 1_000_000)
    return line((f"{at} ", QUIET), (f"{mark} {entry.text}", style))
