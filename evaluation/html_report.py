"""The report as one HTML file: no script, nothing loaded, readable in light and dark.

Consumes a ``Report``, produces the page. Every name is escaped: it may come from a model's reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from evaluation.report import Report, SourceReport
from evaluation.slices import Money, SliceReport, Verdict
from evaluation.svg_plots import calibration_plot, curves_plot, histogram_plot
from evaluation.versus import Versus
from evaluation.wording import (
    findings,
    header,
    hit_interval,
    interval,
    moment,
    percent,
    printable,
    signed,
    together,
)

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#59636e;--rule:#d9dee3;--card:#f6f8fa;
--good:#116b32;--bad:#b02318;--c0:#0b63b0;--c1:#c2570c;--c2:#12805c;--c3:#8a3f9e;--c4:#6b5b00;--c5:#5c6670}
@media(prefers-color-scheme:dark){:root{--bg:#0f1317;--fg:#e4e8ec;--dim:#9aa5b1;--rule:#2c343c;
--card:#171d23;--good:#5fd38a;--bad:#ff8a80;--c0:#62b3f5;--c1:#f2a154;--c2:#4fd0a3;--c3:#d59be6;
--c4:#d9c763;--c5:#a7b1bb}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:84rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:0}
p{margin:.25rem 0}.dim{color:var(--dim)}
.badge{font-size:.8rem;font-weight:600;border:1px solid currentColor;border-radius:1rem;
padding:.05rem .6rem;margin-left:.5rem;color:var(--dim);white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.5rem 0}
dt{color:var(--dim)}dd{margin:0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem;margin:1rem 0}
figure{margin:0;padding:.75rem;background:var(--card);border:1px solid var(--rule);border-radius:.5rem}
figcaption{color:var(--dim);font-size:.85rem}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--dim)}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--rule);stroke-width:1}.strong{stroke:var(--dim);stroke-dasharray:4 3}
.line{fill:none;stroke-width:1.8}.bar{stroke-width:1.4}.fill{stroke:none}.dot{stroke:var(--card)}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}
.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}
.s0.fill,.s0.dot{fill:var(--c0)}.s1.fill{fill:var(--c1)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem}
.key{width:26px;height:10px;display:inline-block;margin-right:.35rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--dim);font-weight:600}.l{text-align:left}
"""
_TONES: Final = {
    Verdict.BETTER.value: "good",
    Verdict.WORSE.value: "bad",
    Money.GAINS.value: "good",
    Money.LOSES.value: "bad",
    "source is better": "good",
    "source is worse": "bad",
}


def render_html(report: Report) -> str:
    """The whole page."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Signals {moment(report.first_ms)} to {moment(report.last_ms)}</title>",
        f"<style>{STYLE}</style></head><body><h1>Signals against what followed</h1>",
        *(f"<p>{escape(line)}</p>" for line in header(report)),
        *(_source(source) for source in report.sources),
        _slices(report),
        (
            f'<p class="dim">Written {moment(report.generated_at_ms)} UTC. Past results say little '
            "about the future; this is no advice.</p></body></html>"
        ),
    ]
    return "\n".join(parts) + "\n"


def _source(source: SourceReport) -> str:
    scores = source.summary
    badges = "" if scores is None else _badge(scores.verdict.value) + _badge(_money(scores))
    listed = "".join(
        f"<dt>{escape(topic)}</dt><dd>{escape(sentence)}</dd>"
        for topic, sentence in findings(source)
    )
    return (
        f"<section><h2>{escape(printable(source.name))}{badges}</h2><dl>{listed}</dl>"
        f'<div class="plots">{_plots(source)}</div>{_baselines(source.baselines)}</section>'
    )


def _money(scores: SliceReport) -> str:
    return "" if scores.money is Money.TOO_FEW else scores.money.value


def _badge(text: str) -> str:
    return f'<span class="badge {_TONES.get(text, "")}">{escape(text)}</span>' if text else ""


def _plots(source: SourceReport) -> str:
    plots = []
    if source.summary is not None and source.summary.bins:
        caption = (
            "Above the dashed line: more right than it said. Bars: 95 % (Wilson, signals taken as "
            "separate); dots: size by count."
        )
        plots.append(_figure("Calibration", calibration_plot(source.summary.bins), caption))
    if source.curves is not None:
        caption = "One unit of notional per call; baselines at the moments of the same calls."
        plots.append(_figure("Cumulative gain", curves_plot(source.curves), caption))
    caption = "All signals, scored or not."
    plots.append(_figure("Confidence", histogram_plot(source.histogram), caption))
    return "".join(plots)


def _figure(title: str, plot: str, caption: str) -> str:
    return f"<figure><h3>{title}</h3>{plot}<figcaption>{caption}</figcaption></figure>"


def _baselines(rows: Sequence[Versus]) -> str:
    if not rows:
        return ""
    titles = ("baseline", "calls", "right", "net bps per call", "source minus it", "")
    cells = [
        (
            v.name,
            f"{v.calls:,}",
            percent(v.hit_rate),
            signed(v.net_bps, 2),
            interval(v.difference_bps, 2),
            v.verdict,
        )
        for v in rows
    ]
    return _table(titles, cells)


def _slices(report: Report) -> str:
    if not report.slices:
        return ""
    titles = (
        *("source", "slice", "signals", "calls", "right", "base", "net bps per call"),
        *("rank correlation", "Brier skill", "verdict"),
    )
    cells = []
    for s in report.slices:
        skill = s.probability_brier or s.confidence_brier
        cells.append(
            (
                printable(s.source),
                f"{s.dimension} {printable(s.value)}",
                f"{s.signals:,}",
                f"{s.calls:,}",
                hit_interval(s.hit_rate),
                percent(s.hit_rate.base_rate if s.hit_rate else None),
                interval(s.net_bps),
                interval(s.rank_correlation, 2),
                interval(skill.skill if skill else None, 2),
                s.verdict.value,
            )
        )
    note = f'<p class="dim">{escape(together(report))}</p>'
    return f"<section><h2>Slices</h2>{_table(titles, cells, texts=(0, 1, 9))}{note}</section>"


def _table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int] = (0, 5)
) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        shown = []
        for k, text in enumerate(cells):
            kind = f"{'l ' if k in texts else ''}{_TONES.get(text, '')}".strip()
            shown.append(f'<{tag} class="{kind}">{escape(text)}</{tag}>')
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(titles, "th")}{body}</table></div>'
