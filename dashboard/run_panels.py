"""Panels about the run: head, connections, AI, alerts, events, foot. Pure: scene and size → lines."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from dashboard.scene import Scene
from dashboard.state import LogLine, SymbolState, clock
from dashboard.wording import (
    QUIET,
    Span,
    age_text,
    bytes_text,
    columns,
    compact,
    line,
    percent,
    price_text,
    ruled,
)
from domain.events import Action, AnalysisUnavailable, ConnectionState, GapState, Signal

_SOCKET_LOOK = {
    ConnectionState.HEALTHY: ("✓", "green"),
    ConnectionState.ROTATING: ("✓", "green"),
    ConnectionState.CONNECTING: ("…", "yellow"),
    ConnectionState.SUBSCRIBED: ("…", "yellow"),
    ConnectionState.SUSPECT: ("?", "yellow"),
}
_BROKEN_LOOK = ("✗", "bold red")
_ACTION_LOOK = {Action.BUY: ("▲", "bold green"), Action.SELL: ("▼", "bold red")}
_SEVERITY_LOOK = {"info": ("·", QUIET), "warning": ("!", "yellow"), "error": ("✗", "red")}
_BREAKER_LOOK = {"closed": ("✓", "green"), "half_open": ("?", "yellow"), "open": ("✗", "red")}
_ALREADY_SHOWN = (" connection.state ", " gap.", " ai.unavailable ")  # as events of the bus
_FEWEST_WIDE = 110
_OLDEST_ANALYSIS_S = 60.0  # a shorter horizon does not make an answer old

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
        if symbol.row is not None:
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


# --- AI -----------------------------------------------------------------------------------


def ai(scene: Scene, width: int, height: int) -> list[Text]:
    """The models' newest answer with its age, or why there is none; providers; the rules beside it."""
    symbol = scene.symbol
    if symbol is None:
        return [ruled("AI", width)]
    has_failed = symbol.unavailable is not None and symbol.unavailable_ns >= symbol.analysis_ns
    if has_failed and symbol.unavailable is not None:
        lines = _unavailable(symbol.unavailable, symbol.unavailable_ns, scene, width)
    elif symbol.analysis is not None:
        lines = _analysis(symbol.analysis, symbol, scene, width, height)
    else:
        lines = [ruled("AI", width), line((_silence(scene), QUIET))]
    rules = [] if symbol.rules is None else _rules(symbol.rules, width, 3 if height > 6 else 1)
    providers = _providers(scene, width) if height > 4 else []
    kept = max(1, height - len(rules) - len(providers))
    return (lines[:kept] + rules + providers)[:height]


def _silence(scene: Scene) -> str:
    mode = scene.reading("ai.mode")
    if mode is None and scene.state.health is not None:
        return "unavailable: no model is asked in this run (--ai)"
    return "no answer yet"


def _unavailable(event: AnalysisUnavailable, since_ns: int, scene: Scene, width: int) -> list[Text]:
    reasons = {"no_key": "no provider has a key (doctor says how to set one)"}
    reason = reasons.get(event.reason, event.reason.replace("_", " "))
    words = _wrapped(f"✗ unavailable: {reason}", width, 3)
    head_line = ruled("AI", width, f"{age_text(since_ns, scene.now_ns)} old")
    tries = [line((f"  {attempt}", QUIET)) for attempt in event.attempts]
    return [head_line, *(line((text, "yellow")) for text in words), *tries]


def _analysis(
    signal: Signal, symbol: SymbolState, scene: Scene, width: int, height: int
) -> list[Text]:
    age_s = (scene.now_ns - symbol.analysis_ns) / 1e9
    is_old = age_s > max(signal.horizon_s, _OLDEST_ANALYSIS_S)
    age = f"{'STALE ' if is_old else ''}{age_text(symbol.analysis_ns, scene.now_ns)} old"
    mark, style = _ACTION_LOOK.get(signal.action, ("·", "bold"))
    chances = [
        f"{name} {value:.0%}"
        for name, value in (("up", signal.p_up), ("flat", signal.p_flat), ("down", signal.p_down))
        if value is not None
    ]
    what = line(
        (f"{mark} {signal.action.value} {signal.confidence:.0%}", style),
        f" for {signal.horizon_s} s at {price_text(signal.price, symbol.price)}  ",
    )
    void = signal.invalidation
    limits = line(
        ("" if void is None else f"void at {price_text(void, symbol.price)}  ", "yellow"),
        (" ".join(chances), QUIET),
    )
    lines = [ruled("AI", width, age, "yellow" if is_old else QUIET)]
    if what.cell_len + limits.cell_len <= width or height < 5:
        lines.append(Text.assemble(what, limits, no_wrap=True, end=""))
    else:
        lines += [what, limits]
    most = max(1, height - 5)
    lines += [line(words) for words in _wrapped(signal.rationale, width, most)]
    lines += [line((words, QUIET)) for words in _wrapped(_source(signal, scene), width, 2)]
    if is_old:
        lines = [lines[0], *(line((text.plain, QUIET)) for text in lines[1:])]
    return lines


def _source(signal: Signal, scene: Scene) -> str:
    tokens = (signal.prompt_tokens or 0) + (signal.completion_tokens or 0)
    first = next(iter(_provider_names(scene)), signal.source)
    fallback = f" (fallback of {first})" if first != signal.source else ""
    cost = "" if signal.cost_usd is None else f" · ${signal.cost_usd:f}"
    model = f" {signal.model}" if signal.model else ""
    return (
        f"{signal.source}{model}{fallback} · {signal.latency_ms:,.0f} ms · {tokens:,} tokens{cost}"
    )


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Words on at most ``most`` lines; the last one is cut short if more would follow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if cell_len(longer) <= width or not lines[-1] or len(lines) == most:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _rules(signal: Signal, width: int, most: int) -> list[Text]:
    """The baseline, beside whatever the models say."""
    mark, style = _ACTION_LOOK.get(signal.action, ("·", "bold"))
    begin = f"rules {mark} {signal.action.value} {signal.confidence:.0%}"
    first, *rest = _wrapped(
        f"{begin} {clock(signal.window_end_ms)} {signal.rationale}", width, most
    )
    return [
        line((first[: len(begin)], style), (first[len(begin) :], QUIET)),
        *(line((text, QUIET)) for text in rest),
    ]


def _provider_names(scene: Scene) -> list[str]:
    values = {} if scene.state.health is None else scene.state.health.values
    return [
        key.removeprefix("ai.").removesuffix(".state")
        for key in values
        if key.startswith("ai.") and key.endswith(".state")
    ]


def _providers(scene: Scene, width: int) -> list[Text]:
    """Breaker, tokens and dollars of today, of each provider, in the order they are asked."""
    found = []
    for name in _provider_names(scene):
        state = str(scene.reading(f"ai.{name}.state"))
        mark, style = _BREAKER_LOOK.get(state, _BROKEN_LOOK)
        tokens = scene.number(f"ai.{name}.tokens_today") or 0
        usd = scene.number(f"ai.{name}.usd_today") or 0.0
        look = QUIET if scene.is_health_stale else style
        spent = f" {compact(tokens)} tokens ${usd:.4f} today  "
        found.append(line((f"{mark} {name} {state}", look), (spent, QUIET)))
    together = Text.assemble(*found, no_wrap=True, end="")
    return [together] if found and together.cell_len <= width else found


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
