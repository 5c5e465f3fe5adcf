"""An evaluation for people: a table for the terminal, and one HTML page in the style of ``signals``.

``Evaluation`` and ``ModelCard`` → text and HTML without scripts; every name is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from domain.model_card import ModelCard
from evaluation.html_report import STYLE
from evaluation.svg_plots import calibration_plot, curves_plot
from evaluation.versus import Curve, Curves
from evaluation.wording import interval, percent, printable, signed
from research.evaluate import Evaluation
from research.metrics import Scores
from research.trades import Money

_TITLES: Final = (
    *("", "samples", "macro-F1", "MCC", "Brier skill", "ECE"),
    *("trades", "net bps per trade", "break-even fee"),
)

type Row = tuple[str, ...]


def render_text(found: Evaluation, card: ModelCard) -> str:
    """The terminal's report."""
    lines = [*_facts(found, card), ""]
    lines += _aligned([_TITLES, *_main_rows(found)])
    lines += ["", "macro-F1 of the model less that of the baseline, paired:"]
    lines += _aligned(_gain_rows(found))
    lines += ["", _timing(found)]
    lines += ["", "by horizon and regime:", *_aligned([_TITLES, *_part_rows(found)])]
    return "\n".join([*lines, "", f"verdict: {found.verdict}"]) + "\n"


def render_steps(found: Sequence[Evaluation]) -> str:
    """Walk-forward steps side by side, and how many of them showed skill."""
    rows: list[Row] = [("", "test days", *_TITLES[1:])]
    for step in found:
        days = f"{step.dates[0]} to {step.dates[-1]}"
        rows.append((step.model, days, *_row("", step.scores, step.money)[1:]))
    skilled = sum(step.has_skill for step in found)
    better = sum(step.is_better for step in found)
    lines = ["", "walking forward:", *_aligned(rows), ""]
    lines.append(
        f"skill in {skilled} of {len(found)} steps, better than every baseline in {better}"
    )
    return "\n".join(lines) + "\n"


def render_html(found: Evaluation, card: ModelCard) -> str:
    """The whole page."""
    name = escape(printable(found.model))
    tone = "good" if found.is_better else "bad" if not found.has_skill else ""
    curve = Curve(name="model", total_bps=found.total_bps)
    plots = _figure("Calibration", calibration_plot(found.bins), "All three classes together.")
    plots += _figure(
        "Cumulative gain",
        curves_plot(Curves(time_ms=found.time_ms, curves=[curve])),
        "One unit of notional per call, after fees and latency.",
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Model {name}</title><style>{STYLE}</style></head><body>",
        f'<h1>Model {name}</h1><p class="{tone}"><b>{escape(found.verdict)}</b></p>',
        *(f"<p>{escape(line)}</p>" for line in _facts(found, card)),
        f'<div class="plots">{plots}</div>',
        f"<h2>Model and baselines</h2>{_table(_TITLES, _main_rows(found))}",
        "<h2>Model less baseline, paired</h2>",
        _table(("baseline", "macro-F1 gain"), _gain_rows(found)),
        f"<p>{escape(_timing(found))}</p>",
        f"<h2>Horizons and regimes</h2>{_table(_TITLES, _part_rows(found))}",
        (
            '<p class="dim">Intervals: 95 %, blocks of two horizons drawn with replacement. Past '
            "results say little about the future; this is no advice.</p></body></html>"
        ),
    ]
    return "\n".join(parts) + "\n"


def _facts(found: Evaluation, card: ModelCard) -> list[str]:
    support = ", ".join(f"{name} {count:,}" for name, count in found.support.items())
    deflated = "unknown" if found.deflated_sharpe is None else f"{found.deflated_sharpe:.2f}"
    return [
        (
            f"{card.kind} ({card.preset}) for {', '.join(map(printable, card.symbols))}: "
            f"{card.label} over {card.horizon_s} s"
        ),
        f"test days {found.dates[0]} to {found.dates[-1]}, classes: {support}",
        f"costs: taker fee {found.fee_bps:g} bps a leg, fills {found.latency_ms} ms late at bid and ask",
        f"deflated Sharpe ratio: probability {deflated} of a real gain, {found.trials} variants tried",
    ]


def _main_rows(found: Evaluation) -> list[Row]:
    rows = [_row("model", found.scores, found.money)]
    return rows + [_row(b.name, b.scores, b.money) for b in found.baselines]


def _part_rows(found: Evaluation) -> list[Row]:
    return [_row(f"{p.dimension} {p.value}", p.scores, p.money) for p in found.parts]


def _gain_rows(found: Evaluation) -> list[Row]:
    rows = [(b.name, interval(b.macro_f1_gain, 3)) for b in found.baselines]
    return [*rows, ("same calls at random moments", interval(found.scores.chance, 3))]


def _timing(found: Evaluation) -> str:
    return (
        "mid price after a call, in its direction, less after the same calls at random moments: "
        f"{interval(found.money.timing_bps, 3)} bps"
    )


def _row(name: str, scores: Scores, money: Money) -> Row:
    even = money.break_even_fee_bps
    return (
        name,
        f"{scores.samples:,}",
        interval(scores.macro_f1, 3),
        interval(scores.mcc, 3),
        interval(scores.brier_skill, 3),
        percent(scores.calibration_error),
        f"{money.trades:,}",
        interval(money.net_bps, 2),
        f"{signed(even, 2)} bps" if even is not None else signed(None),
    )


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _figure(title: str, plot: str, caption: str) -> str:
    return f"<figure><h3>{title}</h3>{plot}<figcaption>{caption}</figcaption></figure>"


def _table(titles: Sequence[str], rows: Sequence[Row]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        shown = (
            f'<{tag} class="{"l" if k == 0 else ""}">{escape(text)}</{tag}>'
            for k, text in enumerate(cells)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(titles, "th")}{body}</table></div>'
