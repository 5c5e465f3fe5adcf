"""Plots as inline SVG: calibration, cumulative gain, confidence histogram.

Consumes parts of a report, produces SVG text. Colours come from the page's CSS classes (``s0`` …), so
that a plot is readable in light and dark; lines also differ by their dashes.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from evaluation.report import Histogram
from evaluation.scores import Bin
from evaluation.versus import Curves

_WIDTH: Final = 420
_HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 12, 40
_DASHES: Final = ("", "5 3", "", "7 3 2 3", "2 3", "9 4")
_DAY_MS: Final = 86_400_000


class Axes(msgspec.Struct, frozen=True, kw_only=True):
    """Data limits of a plot and how they map to its pixels."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return _TOP + height - (value - self.y0) / (self.y1 - self.y0) * height


def calibration_plot(bins: Sequence[Bin]) -> str:
    """How often calls of a confidence came true; a perfect source lies on the diagonal."""
    axes = Axes(x0=0.0, x1=1.0, y0=0.0, y1=1.0)
    most = max((b.count for b in bins), default=1)
    parts = [_line(axes, (0.0, 0.0), (1.0, 1.0), "grid strong")]
    for b in bins:
        low = (b.mean_confidence, b.observed_low)
        parts.append(_line(axes, low, (b.mean_confidence, b.observed_high), "s0 bar"))
        radius = 2.5 + 5.0 * math.sqrt(b.count / most)
        words = f"said {b.mean_confidence:.0%}, came true {b.observed:.0%}, {b.count:,} signals"
        parts.append(
            f'<circle class="s0 dot" cx="{axes.x(b.mean_confidence):.1f}" '
            f'cy="{axes.y(b.observed):.1f}" r="{radius:.1f}"><title>{words}</title></circle>'
        )
    ticks = [(k / 5, f"{20 * k}%") for k in range(6)]
    return _plot(
        axes, parts, ticks, ticks, "Calibration", "confidence stated", "share that came true"
    )


def curves_plot(curves: Curves) -> str:
    """Cumulative gain after costs over time, the baselines beside it."""
    values = [v for c in curves.curves for v in c.total_bps]
    low, high = min(*values, 0.0), max(*values, 0.0)
    pad = 0.05 * (high - low) or 1.0
    first, last = curves.time_ms[0], curves.time_ms[-1]
    axes = Axes(x0=first, x1=max(last, first + 1), y0=low - pad, y1=high + pad)
    parts = [_line(axes, (first, 0.0), (axes.x1, 0.0), "grid strong")]
    for number, curve in enumerate(curves.curves):
        points = " ".join(
            f"{axes.x(t):.1f},{axes.y(v):.1f}"
            for t, v in zip(curves.time_ms, curve.total_bps, strict=True)
        )
        parts.append(
            f'<polyline class="s{number} line" stroke-dasharray="{_DASHES[number % 6]}" '
            f'points="{points}"><title>{html.escape(curve.name)}</title></polyline>'
        )
    plot = _plot(
        axes,
        parts,
        _time_ticks(first, int(axes.x1)),
        [(v, _short(v)) for v in _nice(axes.y0, axes.y1)],
        "Cumulative gain",
        "time of exit, UTC",
        "sum of bps",
    )
    return plot + _legend([c.name for c in curves.curves])


def histogram_plot(histogram: Histogram) -> str:
    """How confident signals were: BUY and SELL below, HOLD stacked on top."""
    count = len(histogram.calls)
    tops = [c + h for c, h in zip(histogram.calls, histogram.holds, strict=True)]
    axes = Axes(x0=0.0, x1=1.0, y0=0.0, y1=1.05 * max(*tops, 1))
    parts = []
    for k, (calls, total) in enumerate(zip(histogram.calls, tops, strict=True)):
        for number, (low, high) in enumerate(((0, calls), (calls, total))):
            if high > low:
                parts.append(_bar(axes, k / count, (k + 1) / count, low, high, number))
    ticks = [(k / 5, f"{20 * k}%") for k in range(6)]
    levels = [(v, _short(v)) for v in _nice(0.0, axes.y1) if v == int(v)]
    plot = _plot(axes, parts, ticks, levels, "Confidence", "confidence stated", "signals")
    return plot + _legend(["BUY or SELL", "HOLD"], dashed=False)


def _bar(axes: Axes, x0: float, x1: float, low: float, high: float, number: int) -> str:
    left, top = axes.x(x0) + 0.5, axes.y(high)
    width, height = axes.x(x1) - axes.x(x0) - 1.0, axes.y(low) - top
    return (
        f'<rect class="s{number} fill" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"><title>{high - low:,.0f}</title></rect>'
    )


def _plot(
    axes: Axes,
    parts: Sequence[str],
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    marks = []
    for value, text in x_ticks:
        x = axes.x(value)
        marks.append(_line(axes, (value, axes.y0), (value, axes.y1), "grid"))
        kind = "mid"
        if x + 3 * len(text) > _WIDTH:  # the last date would be cut
            x, kind = _WIDTH - 1, "end"
        marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}" class="{kind}">{text}</text>')
    for value, text in y_ticks:
        y = axes.y(value)
        marks.append(_line(axes, (axes.x0, value), (axes.x1, value), "grid"))
        marks.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" class="end">{text}</text>')
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    labels = (
        f'<text x="{_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" class="mid">'
        f"{x_label}</text>"
        f'<text transform="translate(11 {middle:.0f}) rotate(-90)" class="mid">{y_label}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        + "".join(marks)
        + "".join(parts)
        + labels
        + "</svg>"
    )


def _line(axes: Axes, start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    (x0, y0), (x1, y1) = start, end
    return (
        f'<line class="{kind}" x1="{axes.x(x0):.1f}" y1="{axes.y(y0):.1f}" '
        f'x2="{axes.x(x1):.1f}" y2="{axes.y(y1):.1f}"/>'
    )


def _legend(names: Sequence[str], *, dashed: bool = True) -> str:
    keys = []
    for number, name in enumerate(names):
        dash = _DASHES[number % 6] if dashed else ""
        mark = (
            f'<svg viewBox="0 0 26 10" class="key"><line class="s{number} line" x1="1" y1="5" '
            f'x2="25" y2="5" stroke-dasharray="{dash}"/></svg>'
        )
        keys.append(f"<span>{mark}{html.escape(name)}</span>")
    return f'<p class="legend">{"".join(keys)}</p>'


def _short(value: float) -> str:
    """``2.5k``, ``-1M``: room for five characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _nice(low: float, high: float, count: int = 5) -> list[float]:
    """Round values between two limits, about ``count`` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _time_ticks(first_ms: int, last_ms: int) -> list[tuple[float, str]]:
    span = last_ms - first_ms
    is_one_year = time.gmtime(first_ms // 1_000).tm_year == time.gmtime(last_ms // 1_000).tm_year
    days = "%m-%d" if is_one_year else "%Y-%m-%d"
    shown = days if span > 5 * _DAY_MS else "%m-%d %H:%M" if span > _DAY_MS else "%H:%M"
    if span < 20 * 60_000:
        shown = "%H:%M:%S"
    times = [first_ms + span * k // 4 for k in range(5)]
    return [(t, time.strftime(shown, time.gmtime(t // 1_000))) for t in times]
