"""The whole picture: which panels a terminal of this size has, and where. Pure.

A scene and a size → lines of exactly that width and number, or a rich renderable of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Group
from rich.text import Text

from dashboard import ai_panel
from dashboard import market_panels as market
from dashboard import run_panels as run
from dashboard.market_panels import Panel
from dashboard.scene import Scene
from dashboard.wording import QUIET, line

TWO_COLUMNS = 110
THREE_COLUMNS = 170
_GUTTER = " │ "


class Slot(msgspec.Struct, frozen=True):
    """A panel of a column: the lines it needs, and those it can use."""

    panel: Panel
    least: int
    most: int
    rank: int  # 0 is kept longest where height is short


_ONE = (
    Slot(market.charts, 6, 14, 1),
    Slot(market.book, 4, 7, 2),
    Slot(market.horizons, 4, 7, 3),
    Slot(ai_panel.ai, 3, 9, 0),
    Slot(market.whales, 2, 8, 5),
    Slot(run.alerts_and_events, 2, 40, 4),
)
_TWO: tuple[tuple[Slot, ...], ...] = (
    (
        Slot(market.charts, 7, 60, 0),
        Slot(market.book, 4, 7, 1),
        Slot(market.horizons, 5, 7, 2),
    ),
    (
        Slot(ai_panel.ai, 4, 14, 0),
        Slot(market.whales, 3, 14, 2),
        Slot(run.alerts, 2, 10, 1),
        Slot(run.events, 2, 60, 3),
    ),
)
_THREE: tuple[tuple[Slot, ...], ...] = (
    (
        Slot(market.charts, 7, 60, 0),
        Slot(market.horizons, 5, 7, 1),
        Slot(market.watchlist, 3, 14, 2),
    ),
    (Slot(market.book, 4, 7, 0), Slot(market.whales, 4, 60, 1)),
    (Slot(ai_panel.ai, 4, 16, 0), Slot(run.alerts, 3, 16, 1), Slot(run.events, 3, 60, 2)),
)


def frame(scene: Scene, width: int, height: int) -> list[Text]:
    """``height`` lines of ``width`` cells each."""
    head = run.head(scene, width)
    room = max(0, height - len(head) - 1)
    if scene.view.help:
        body = _filled(run.help_lines(width, room), width, room)
    elif width < TWO_COLUMNS:
        body = _column(scene, _ONE, width, room)
    else:
        body = _side_by_side(scene, _THREE if width >= THREE_COLUMNS else _TWO, width, room)
    lines = [*_filled(head, width, len(head)), *body, *_filled([run.foot(scene, width)], width, 1)]
    return lines[: height - 1] + lines[-1:]


def picture(scene: Scene, width: int, height: int) -> Group:
    """The same as a rich renderable."""
    return Group(*(Text.assemble(text, no_wrap=True) for text in frame(scene, width, height)))


def _side_by_side(
    scene: Scene, slots: Sequence[Sequence[Slot]], width: int, height: int
) -> list[Text]:
    room = width - len(_GUTTER) * (len(slots) - 1)
    share = 0.56 if len(slots) == 2 else 0.4
    widths = [round(room * share)]
    others = len(slots) - 1
    widths += [(room - widths[0]) // others] * (others - 1)
    widths.append(room - sum(widths))
    stacks = [_column(scene, own, size, height) for own, size in zip(slots, widths, strict=True)]
    gutter = (_GUTTER, QUIET)
    found = []
    for row in zip(*stacks, strict=True):
        pieces: list[Text | tuple[str, str]] = [row[0]]
        for text in row[1:]:
            pieces += [gutter, text]
        found.append(Text.assemble(*pieces, no_wrap=True, end=""))
    return found


def _column(scene: Scene, slots: Sequence[Slot], width: int, height: int) -> list[Text]:
    lines: list[Text] = []
    for slot, size in zip(slots, heights(slots, height), strict=True):
        if size:
            lines += _filled(slot.panel(scene, width, size), width, size)
    return _filled(lines, width, height)


def heights(slots: Sequence[Slot], height: int) -> list[int]:
    """The lines of each slot: all get their least, by rank, then grow in turn up to their most."""
    given = [0] * len(slots)
    by_rank = sorted(range(len(slots)), key=lambda place: slots[place].rank)
    for place in by_rank:
        if slots[place].least <= height:
            given[place] = slots[place].least
            height -= slots[place].least
    while height > 0:
        growing = [p for p in by_rank if 0 < given[p] < slots[p].most]
        if not growing:
            break
        for place in growing[:height]:
            given[place] += 1
        height -= len(growing[:height])
    return given


def _filled(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    """Exactly ``height`` lines of exactly ``width`` cells."""
    found = []
    for text in lines[:height]:
        whole = text.copy()
        whole.truncate(width, overflow="ellipsis", pad=True)
        found.append(whole)
    blank = line(" " * width)
    return found + [blank] * (height - len(found))
