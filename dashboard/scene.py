"""What a frame is drawn from: state, what the user chose to see, the clock. Pure.

Keys change a ``View``; a ``Scene`` answers what panels ask in common: which symbol, how old.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dashboard.state import DashboardState, SymbolState

ZOOMS = (1, 4, 12)  # windows a column of the charts
_STALE_WINDOWS = 2.5
_STALE_MARGIN_S = 2.0
_USUAL_HEALTH_S = 30.0


class Banner(msgspec.Struct, frozen=True):
    """What the dashboard says about the program it shows."""

    mode: str  # demo | live um | replay | attached …
    version: str = ""
    trouble: str = ""  # why nothing arrives, where that is known


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the user chose."""

    symbol: str | None = None  # None: the first one
    zoom: int = 0
    help: bool = False
    asks_to_stop: bool = False
    stopped: bool = False
    redraws: int = 0  # a change draws every line anew


def pressed(view: View, key: str, symbols: Sequence[str]) -> View:
    """The view after one key."""
    if view.stopped:
        return view
    if view.asks_to_stop:
        return msgspec.structs.replace(view, asks_to_stop=False, stopped=key in {"y", "Y"})
    place = symbols.index(view.symbol) if view.symbol in symbols else 0
    if key in {"right", "tab", "n", "down"}:
        return _showing(view, place + 1, symbols)
    if key in {"left", "p", "up"}:
        return _showing(view, place - 1, symbols)
    if key.isdecimal() and 1 <= int(key) <= len(symbols):
        return _showing(view, int(key) - 1, symbols)
    if key == "z":
        return msgspec.structs.replace(view, zoom=(view.zoom + 1) % len(ZOOMS))
    if key in {"h", "?"}:
        return msgspec.structs.replace(view, help=not view.help)
    if key in {"q", "Q"}:
        return msgspec.structs.replace(view, asks_to_stop=True)
    if key == "redraw":
        return msgspec.structs.replace(view, redraws=view.redraws + 1)
    return msgspec.structs.replace(view, help=False)


def _showing(view: View, place: int, symbols: Sequence[str]) -> View:
    if not symbols:
        return view
    return msgspec.structs.replace(view, symbol=symbols[place % len(symbols)])


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the dashboard.

    Attributes:
        state: What is known.
        view: What the user chose.
        now_ns: Wall clock.
        banner: About the program.
        problems: Last warnings and errors of the log, oldest first.
    """

    state: DashboardState
    view: View = View()
    now_ns: int
    banner: Banner = Banner("")
    problems: Sequence[str] = ()

    @property
    def symbol(self) -> SymbolState | None:
        """The chosen symbol, or the first."""
        known = self.state.symbols
        chosen = known.get(self.view.symbol or "")
        return chosen or next(iter(known.values()), None)

    def is_stale(self, symbol: SymbolState) -> bool:
        """Whether its newest window is older than a missing one explains."""
        if symbol.row is None:
            return True
        length_s = (symbol.row.window_end_ms - symbol.row.window_start_ms) / 1_000
        age_s = (self.now_ns - symbol.seen_ns) / 1e9
        return age_s > _STALE_WINDOWS * length_s + _STALE_MARGIN_S

    @property
    def is_health_stale(self) -> bool:
        """Whether health readings stopped coming."""
        before, now = self.state.health_before, self.state.health
        if now is None:
            return False
        usual_s = _USUAL_HEALTH_S if before is None else (now.at_ns - before.at_ns) / 1e9
        age_s = (self.now_ns - now.at_ns) / 1e9
        return age_s > _STALE_WINDOWS * usual_s + _STALE_MARGIN_S

    def reading(self, name: str) -> float | int | str | None:
        """One number of the last health event."""
        return None if self.state.health is None else self.state.health.values.get(name)

    def number(self, name: str) -> float | None:
        """The same, where it is a number."""
        value = self.reading(name)
        return None if value is None or isinstance(value, str) else value
