"""The panel of the AI's answers, with a trained model and the rules beside them. Pure: scene and size → lines."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from dashboard.scene import Scene
from dashboard.state import SymbolState, clock
from dashboard.wording import QUIET, age_text, compact, line, price_text, ruled
from domain.events import Action, AnalysisUnavailable, Signal

_ACTION_LOOK = {Action.BUY: ("▲", "bold green"), Action.SELL: ("▼", "bold red")}
_BREAKER_LOOK = {"closed": ("✓", "green"), "half_open": ("?", "yellow"), "open": ("✗", "red")}
_DISABLED_LOOK = ("✗", "bold red")
_OLDEST_ANALYSIS_S = 60.0  # a shorter horizon does not make an answer old


def ai(scene: Scene, width: int, height: int) -> list[Text]:
    """The AI's newest answer with its age, or why there is none; model, rules and providers below."""
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
    beside: list[Text] = []
    if symbol.model is not None:
        beside += _beside(symbol.model.source, symbol.model, width, 1)
    if symbol.rules is not None:
        beside += _beside("rules", symbol.rules, width, 3 if height > 6 else 1)
    providers = _providers(scene, width) if height > 4 else []
    kept = max(1, height - len(beside) - len(providers))
    return (lines[:kept] + beside + providers)[:height]


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


def _beside(name: str, signal: Signal, width: int, most: int) -> list[Text]:
    """Another analyst's newest signal, with the end of its window."""
    mark, style = _ACTION_LOOK.get(signal.action, ("·", "bold"))
    begin = f"{name} {mark} {signal.action.value} {signal.confidence:.0%}"
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
        mark, style = _BREAKER_LOOK.get(state, _DISABLED_LOOK)
        tokens = scene.number(f"ai.{name}.tokens_today") or 0
        usd = scene.number(f"ai.{name}.usd_today") or 0.0
        look = QUIET if scene.is_health_stale else style
        spent = f" {compact(tokens)} tokens ${usd:.4f} today  "
        found.append(line((f"{mark} {name} {state}", look), (spent, QUIET)))
    together = Text.assemble(*found, no_wrap=True, end="")
    return [together] if found and together.cell_len <= width else found
