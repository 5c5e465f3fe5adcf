"""Numbers and findings in plain words, shared by the terminal and the HTML report. ASCII only.

Consumes parts of a ``Report``, produces short texts; what is unknown is "-".
"""

from __future__ import annotations

import math
import time
from typing import Final

from evaluation.blocks import Estimate
from evaluation.report import Report, SourceReport
from evaluation.slices import FEWEST_BLOCKS, FEWEST_CALLS, HitRate, Money, SliceReport, Verdict

UNKNOWN: Final = "-"


def percent(value: float | None) -> str:
    """A share as ``51.2%``."""
    return UNKNOWN if value is None else f"{100 * value:.1f}%"


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign; never ``-0.0``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    rounded = round(value, digits)
    return f"{rounded or 0.0:+.{digits}f}"


def interval(estimate: Estimate | None, digits: int = 1) -> str:
    """``+1.2 (-0.3 .. +2.7)``."""
    if estimate is None:
        return UNKNOWN
    if estimate.low is None:
        return signed(estimate.value, digits)
    low, high = signed(estimate.low, digits), signed(estimate.high, digits)
    return f"{signed(estimate.value, digits)} ({low} .. {high})"


def hit_interval(rate: HitRate | None) -> str:
    """``51.2% (48.0 .. 54.4)``."""
    if rate is None:
        return UNKNOWN
    return f"{percent(rate.value)} ({100 * rate.low:.1f} .. {100 * rate.high:.1f})"


def moment(time_ms: int | None) -> str:
    """A time as ``2024-07-18 23:57``, UTC."""
    if time_ms is None:
        return UNKNOWN
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_ms // 1_000))


def printable(text: str) -> str:
    """A name without control characters: it may come from a reply or a file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def header(report: Report) -> list[str]:
    """What was looked at and under which assumptions, one statement a line."""
    count = len(report.symbols)
    shown = ", ".join(map(printable, report.symbols[:6])) + (", ..." if count > 6 else "")
    lines = [
        (
            f"{report.signals:,} signals on {count} symbol{'s' * (count != 1)} ({shown}), windows that "
            f"ended {moment(report.first_ms)} to {moment(report.last_ms)} UTC; {report.scored:,} scored."
        )
    ]
    lines += [f"Not scored: {n:,} ({reason})." for reason, n in report.left_out.items()]
    if report.scored:
        lines.append(
            f"Entered {_entries(report)} (typically {report.entry_delay_s or 0.0:.3g} s after the "
            f"signal's own window), left one horizon later; fees {report.fee_bps:g} bps a leg plus "
            "half the spread at either end; no funding, no slippage beyond the best quote."
        )
    if report.without_spread:
        lines.append(
            f"{report.without_spread:,} scored signals lack a recorded spread at one end: the usual "
            "spread of those days was taken, or none where no spread is known."
        )
    return lines


def _entries(report: Report) -> str:
    """By whose prices signals were entered, and how many where it is not all of them."""
    window_s = (report.window_ms or 0) / 1_000
    ways = {
        "trades": "at the first recorded trade after decision and latency",
        "windows": (
            f"in the first {window_s:g} s window after decision and latency, at the quote of its end"
        ),
        "klines": "in the first bar after decision and latency, at its close",
    }
    if len(report.priced_by) == 1:
        return ways[next(iter(report.priced_by))]
    return ", ".join(f"{count:,} {ways[name]}" for name, count in report.priced_by.items())


def _prices(priced_by: dict[str, int]) -> str:
    return ", ".join(f"{count:,} by {name}" for name, count in priced_by.items())


def findings(source: SourceReport) -> list[tuple[str, str]]:
    """What a source's scores say, as (topic, sentence)."""
    scores = source.summary
    if scores is None:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in source.left_out.items())
        return [("signals", f"{source.signals:,}, none can be scored: {reasons}")]
    found = [
        (
            "signals",
            (
                f"{source.signals:,}, {scores.signals:,} scored: {scores.calls:,} BUY or SELL, "
                f"{scores.signals - scores.calls:,} HOLD"
            ),
        ),
        ("prices", _prices(source.priced_by)),
        ("direction", _direction(scores)),
        ("money", _money(scores)),
        ("break-even", _break_even(scores)),
        ("ranking", _ranking(scores)),
        ("probabilities", _probabilities(scores)),
    ]
    if source.sharpe is not None:
        found.append(("Sharpe", _sharpe(source)))
    if scores.provider_cost_usd is not None:
        found.append(("provider", f"cost {scores.provider_cost_usd:.4f} USD in all"))
    return found


def _direction(scores: SliceReport) -> str:
    rate = scores.hit_rate
    if rate is None:
        return "no BUY or SELL to judge"
    text = (
        f"{hit_interval(rate)} right, base rate {percent(rate.base_rate)}: {scores.verdict.value}"
    )
    if scores.verdict is Verdict.TOO_FEW:
        text += _needs(scores)
    elif rate.effective_count < 0.9 * rate.count:
        text += (
            f"; horizons overlap, {rate.count:,} calls tell as much as "
            f"{rate.effective_count:,.0f} separate ones"
        )
    return text


def _needs(scores: SliceReport) -> str:
    return (
        f" (a verdict needs {FEWEST_CALLS} calls in {FEWEST_BLOCKS} separate stretches of time, "
        f"there are {scores.calls:,} in {scores.blocks:,})"
    )


def _money(scores: SliceReport) -> str:
    if scores.net_bps is None:
        return "no BUY or SELL, nothing gained or lost"
    verdict = "" if scores.money is Money.TOO_FEW else f": {scores.money.value}"
    return (
        f"{interval(scores.net_bps)} bps per call after costs of {scores.cost_bps or 0.0:.1f}"
        f"{verdict}; before costs {interval(scores.gross_bps)}; "
        f"{signed(scores.net_total_bps, 0)} bps in all"
    )


def _break_even(scores: SliceReport) -> str:
    needed, move = scores.break_even_hit_rate, scores.move_bps or 0.0
    if scores.hit_rate is None:
        return UNKNOWN
    if needed is None or needed > 1.0:
        text = f"the typical move of {move:.1f} bps is less than the costs: no hit rate pays them"
    else:
        text = f"a typical move of {move:.1f} bps pays the costs from {percent(needed)} right on"
    at = scores.break_even_move_bps
    if at is None:
        return f"{text}; at this hit rate no move would"
    return f"{text}; at this hit rate moves of {at:.1f} bps would"


def _ranking(scores: SliceReport) -> str:
    estimate = scores.rank_correlation
    if estimate is None:
        return "conviction or moves never vary: no rank correlation"
    told = "stronger conviction, better move" if estimate.value > 0 else "convinced the wrong way"
    words = told if estimate.excludes_zero else "zero is inside the interval"
    if scores.blocks < FEWEST_BLOCKS:
        words = "too few to tell"
    return f"rank correlation {interval(estimate, 3)}: {words}"


def _probabilities(scores: SliceReport) -> str:
    told = []
    for name, score in (
        ("up/flat/down", scores.probability_brier),
        ("confidence", scores.confidence_brier),
    ):
        if score is not None:
            told.append(
                f"{name} Brier {score.score:.3f}, skill {interval(score.skill, 3)} over base rates"
            )
    if scores.calibration_error is not None:
        told.append(f"calibration error {100 * scores.calibration_error:.1f} points")
    return "; ".join(told) or "none given"


def _sharpe(source: SourceReport) -> str:
    sharpe = source.sharpe
    if sharpe is None:
        return UNKNOWN
    chance = "" if sharpe.deflated is None else f", {percent(sharpe.deflated)} likely above zero"
    return (
        f"{signed(sharpe.value, 3)} per {sharpe.period_s:,.0f} s{chance} "
        f"given {sharpe.trials} variant{'s' * (sharpe.trials != 1)} tried"
    )


def together(report: Report) -> str:
    """How the slices' verdicts are to be read."""
    several = (
        f"Verdicts of the {report.slices_tested} slices with enough data hold for all of them "
        "together (Holm); one interval alone may miss its base rate by luck. "
    )
    return (several if report.slices_tested > 1 else "") + (
        f"'{Verdict.TOO_FEW.value}': below {FEWEST_CALLS} calls or {FEWEST_BLOCKS} separate "
        "stretches of time."
    )
