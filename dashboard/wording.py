"""Numbers, ages and lines as the dashboard writes them. Pure.

Whatever has a direction carries a sign or an arrow as well as its colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from rich.cells import cell_len
from rich.text import Text

UP, DOWN, FLAT = "green", "red", ""
QUIET = "bright_black"
TITLE = "bold cyan"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

type Span = str | tuple[str, str]  # text, or text and style


def line(*spans: Span) -> Text:
    """One line out of spans; what would control a terminal is left out of it."""
    return Text.assemble(*map(_printable, spans), no_wrap=True, overflow="ellipsis", end="")


def _printable(span: Span) -> Span:
    """Models, exchanges and logs write some of the texts: none may send escape sequences."""
    text, style = (span, "") if isinstance(span, str) else span
    if text.isprintable():
        return span
    return "".join(letter if letter.isprintable() else " " for letter in text), style


def ruled(title: Span, width: int, note: str = "", note_style: str = QUIET) -> Text:
    """A panel's first line: its title, a rule, and a note at the right where there is room."""
    words = title if isinstance(title, str) else title[0]
    style = TITLE if isinstance(title, str) else title[1]
    room = width - cell_len(words) - 1
    if note and cell_len(note) + 3 <= room:
        rule = "─" * (room - cell_len(note) - 2)
        return line((words, style), " ", (rule, QUIET), " ", (note, note_style), " ")
    return line((words, style), " ", ("─" * max(0, room), QUIET))


def columns(cells: Iterable[tuple[Span, int]]) -> Text:
    """Cells side by side: a width above 0 aligns left, below 0 right; one blank between two."""
    spans: list[Span] = []
    for cell, width in cells:
        text, style = (cell, "") if isinstance(cell, str) else cell
        room = abs(width)
        if cell_len(text) > room:
            text = text[: max(0, room - 1)] + "…"
        blanks = " " * max(0, room - cell_len(text))
        between = " " if spans else ""
        spans += (
            [between, (text, style), blanks] if width > 0 else [between + blanks, (text, style)]
        )
    return line(*spans)


def style_of(value: float | Decimal | None) -> str:
    """Green above zero, red below."""
    return FLAT if not value else UP if value > 0 else DOWN


def arrow(value: float | Decimal | None) -> str:
    """The direction as a sign that needs no colour."""
    return "·" if not value else "▲" if value > 0 else "▼"


def compact(value: float, *, signed: bool = False) -> str:
    """At most four digits and a unit: ``1.234``, ``12.3k``, ``+4.56M``."""
    sign = "+" if signed else ""
    size = abs(value)
    for unit, letter in _UNITS:
        if size >= unit * 0.99995 and (unit > 1e3 or size >= 9_999.5):
            return f"{_digits(value / unit, sign)}{letter}"
    return _digits(value, sign)


def count_text(number: int) -> str:
    """A count: whole as long as it is short."""
    return f"{number:,}" if number < 10_000 else compact(number)


def _digits(value: float, sign: str) -> str:
    size = abs(value)
    if size and size < 0.001:
        return f"{value:{sign}.2g}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1_000 else 0
    return f"{value:{sign},.{decimals}f}"


def signed(value: float | None) -> tuple[str, str]:
    """``compact`` with sign and colour; a dash for what is unknown."""
    return ("–", QUIET) if value is None else (compact(value, signed=True), style_of(value))


def signed_ratio(value: float | None) -> tuple[str, str]:
    """Something between -1 and 1 with arrow, sign and colour."""
    return ("–", QUIET) if value is None else (f"{arrow(value)}{value:+.2f}", style_of(value))


def percent(ratio: float | None) -> tuple[str, str]:
    """A change with arrow, sign and colour; ``ratio`` 0.01 is 1 %."""
    if ratio is None:
        return "–", QUIET
    return f"{arrow(ratio)} {ratio * 100:+.2f}%", style_of(ratio)


def price_text(value: float | Decimal | None, like: Decimal | None) -> str:
    """A price with as many decimals as ``like``."""
    if value is None:
        return "–"
    decimals = 2 if like is None else max(0, -int(like.as_tuple().exponent))
    return f"{value:,.{decimals}f}"


def span_text(seconds: float) -> str:
    """A length of time in one or two units."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        rest = f" {whole % 60:02d} s" if whole % 60 and whole < 600 else ""
        return f"{whole // 60} min{rest}"
    if whole < 86_400:
        rest = f" {whole % 3_600 // 60:02d} min" if whole % 3_600 >= 60 else ""
        return f"{whole // 3_600} h{rest}"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def age_text(since_ns: int, now_ns: int) -> str:
    """How long ago something was."""
    return span_text((now_ns - since_ns) / 1e9)


def bytes_text(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1_024:
            return f"{count:,.0f} {unit}" if unit in {"B", "KiB"} else f"{count:,.1f} {unit}"
        count /= 1_024
    return f"{count:,.1f} TiB"
