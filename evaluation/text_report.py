"""The report as plain text for a terminal of any width; colours and frames are left out.

Consumes a ``Report`` and a width, produces lines. Narrow terminals lose columns, not rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec

from evaluation.report import Report, SourceReport
from evaluation.slices import SliceReport
from evaluation.wording import (
    UNKNOWN,
    findings,
    header,
    hit_interval,
    interval,
    percent,
    printable,
    signed,
    together,
)

_INDENT: Final = "  "
_NARROWEST: Final = 60
_WIDEST_PROSE: Final = 110


class Column(msgspec.Struct, frozen=True):
    """A table's column: title, cells, and what is dropped first (0: never, highest: first)."""

    title: str
    cells: list[str]
    drop: int = 0
    is_text: bool = False


def render_text(report: Report, width: int) -> str:
    """The whole report."""
    width = max(width, _NARROWEST)
    prose = min(width, _WIDEST_PROSE)
    lines: list[str] = []
    for statement in header(report):
        lines += textwrap.wrap(statement, prose)
    for source in report.sources:
        lines += ["", *_source(source, width)]
    if report.slices:
        lines += ["", "slices", *_slices(report.slices, width)]
        lines += ["", *textwrap.wrap(together(report), prose)]
    return "\n".join(lines) + "\n"


def _source(source: SourceReport, width: int) -> list[str]:
    lines = [printable(source.name)]
    for topic, sentence in findings(source):
        lead = f"{_INDENT}{topic:<14}"
        rest = " " * len(lead)
        lines += textwrap.wrap(
            sentence, min(width, _WIDEST_PROSE), initial_indent=lead, subsequent_indent=rest
        )
    if source.baselines:
        rows = source.baselines
        lines += [
            "",
            *table(
                [
                    Column("baseline", [v.name for v in rows], is_text=True),
                    Column("calls", [f"{v.calls:,}" for v in rows], 2),
                    Column("right", [percent(v.hit_rate) for v in rows], 3),
                    Column("net bps/call", [signed(v.net_bps, 2) for v in rows], 1),
                    Column("source minus it", [interval(v.difference_bps, 2) for v in rows]),
                    Column("", [v.verdict for v in rows], is_text=True),
                ],
                width,
            ),
        ]
    return lines


def _slices(slices: Sequence[SliceReport], width: int) -> list[str]:
    named = [f"{shortened(s.source)} {s.dimension} {shortened(s.value)}" for s in slices]
    bases = [s.hit_rate.base_rate if s.hit_rate else None for s in slices]
    skills = [s.probability_brier or s.confidence_brier for s in slices]
    return table(
        [
            Column("slice", named, is_text=True),
            Column("signals", [f"{s.signals:,}" for s in slices], 7),
            Column("calls", [f"{s.calls:,}" for s in slices], 1),
            Column("right", [hit_interval(s.hit_rate) for s in slices], 2),
            Column("base", [percent(base) for base in bases], 3),
            Column("net bps/call", [interval(s.net_bps) for s in slices], 4),
            Column("rank corr.", [interval(s.rank_correlation, 2) for s in slices], 5),
            Column("Brier skill", [interval(k.skill if k else None, 2) for k in skills], 6),
            Column("verdict", [s.verdict.value for s in slices], is_text=True),
        ],
        width,
    )


def shortened(name: str, size: int = 14) -> str:
    """A name that fits, its middle left out."""
    text = printable(name)
    return text if len(text) <= size else f"{text[: size // 2 - 1]}..{text[1 - size + size // 2 :]}"


def table(columns: Sequence[Column], width: int) -> list[str]:
    """Lines of a table; columns are dropped until it fits, the last resort is a cut line."""
    kept = list(columns)
    while len(_line(kept, _widths(kept), header=True)) > width:
        droppable = [c for c in kept if c.drop]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda c: c.drop))
    widths = _widths(kept)
    lines = [_line(kept, widths, header=True)]
    lines += [_line(kept, widths, row=row) for row in range(len(columns[0].cells))]
    return [line.rstrip()[:width] for line in lines]


def _widths(columns: Sequence[Column]) -> list[int]:
    return [max(len(c.title), *map(len, c.cells), len(UNKNOWN)) for c in columns]


def _line(
    columns: Sequence[Column], widths: Sequence[int], *, row: int = 0, header: bool = False
) -> str:
    cells = [
        f"{text:<{size}}" if column.is_text else f"{text:>{size}}"
        for column, size in zip(columns, widths, strict=True)
        for text in [column.title if header else column.cells[row]]
    ]
    return _INDENT + "  ".join(cells)
