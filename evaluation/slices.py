"""The scores of one slice of signals: a source, or its part of one model, symbol, hour …

Consumes decisions (scored signals with their pair of symbol and horizon) and the market's base rates,
produces a ``SliceReport``. Hits are judged against what the market did anyway, money after costs.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec
import numpy as np

from evaluation.blocks import Blocks, Estimate
from evaluation.forward_returns import Outcomes
from evaluation.reference import Reference
from evaluation.scores import (
    Bin,
    average_ranks,
    break_even_move_bps,
    break_even_rate,
    brier,
    calibration_error,
    newey_west_t,
    reliability,
    score_test,
    standardised,
    wilson,
)

FEWEST_CALLS: Final = 30
FEWEST_BLOCKS: Final = 20


class Verdict(enum.StrEnum):
    """Plain words for what a slice shows."""

    TOO_FEW = "too few"
    CHANCE = "no better than chance"
    BETTER = "better than base rate"
    WORSE = "worse than base rate"


class Money(enum.StrEnum):
    """Plain words for what its calls earn after costs."""

    TOO_FEW = "too few"
    EVEN = "not told from zero"
    GAINS = "gains after costs"
    LOSES = "loses after costs"


class Decisions(msgspec.Struct, frozen=True):
    """Scored signals, and which pair of the reference each belongs to (int64[n])."""

    outcomes: Outcomes
    pair: np.ndarray

    def take(self, rows: np.ndarray) -> Decisions:
        """Some of them, by index or mask."""
        return Decisions(self.outcomes.take(rows), self.pair[rows])

    @property
    def gross_bps(self) -> np.ndarray:
        """float64[n]: gain before costs; 0 for HOLD."""
        gained: np.ndarray = self.outcomes.direction * self.outcomes.return_bps
        return gained

    @property
    def net_bps(self) -> np.ndarray:
        """float64[n]: gain after costs; 0 for HOLD."""
        return net_bps(self.outcomes, self.outcomes.direction)

    @property
    def conviction(self) -> np.ndarray:
        """float64[n]: p_up − p_down where they are given, else ±confidence, 0 for HOLD."""
        given = self.outcomes.p_up.astype(np.float64) - self.outcomes.p_down
        stated = self.outcomes.direction * self.outcomes.confidence.astype(np.float64)
        return np.where(np.isnan(given), stated, given)


def net_bps(outcomes: Outcomes, direction: np.ndarray) -> np.ndarray:
    """float64[n]: what these directions would have gained after costs at the signals' moments."""
    gained: np.ndarray = direction * outcomes.return_bps - (direction != 0) * outcomes.cost_bps
    return gained


class HitRate(msgspec.Struct, frozen=True, kw_only=True):
    """BUY and SELL calls that went the right way.

    ``low`` and ``high``: Wilson interval for ``effective_count`` independent calls (overlapping
    horizons are worth less than their number). ``base_rate``: how often calls of these directions
    on these symbols and horizons are right whatever the moment. ``p_value``: two-sided, against it.
    """

    value: float
    low: float
    high: float
    count: int
    effective_count: float
    base_rate: float
    p_value: float


class BrierScore(msgspec.Struct, frozen=True, kw_only=True):
    """Mean squared error of probabilities; ``skill`` is 1 − score / climatology's."""

    count: int
    score: float
    climatology: float
    skill: Estimate | None


class SliceReport(msgspec.Struct, frozen=True, kw_only=True):
    """All scores of one slice. ``_bps`` are per call and of one unit of notional.

    ``dimension`` is source, model, template, symbol or hour (UTC, of the window's end).
    ``confidence_brier`` treats confidence as the probability that the call's class (up, flat or
    down) comes true; ``probability_brier`` is over the three classes where a signal gives them.
    """

    source: str
    dimension: str
    value: str
    signals: int
    calls: int
    blocks: int
    verdict: Verdict
    money: Money
    hit_rate: HitRate | None
    gross_bps: Estimate | None
    net_bps: Estimate | None
    net_total_bps: float
    cost_bps: float | None
    move_bps: float | None
    break_even_hit_rate: float | None
    break_even_move_bps: float | None
    rank_correlation: Estimate | None
    rank_correlation_t: float | None
    probability_brier: BrierScore | None
    confidence_brier: BrierScore | None
    calibration_error: float | None
    bins: list[Bin]
    provider_cost_usd: float | None


def measure(
    decisions: Decisions, reference: Reference, *, source: str, dimension: str, value: str
) -> SliceReport:
    """Score a slice. The verdict is that of the slice alone; see ``report`` for several at once."""
    calls = decisions.take(decisions.outcomes.direction != 0)
    blocks, all_blocks = _blocks(calls), _blocks(decisions)
    hit_rate = _hit_rate(calls, reference, blocks)
    net = blocks.mean(calls.net_bps) if len(calls.pair) else None
    cost, move = _mean(calls.outcomes.cost_bps), _mean(np.abs(calls.outcomes.return_bps))
    correlation, t_value = _rank_correlation(decisions, reference, all_blocks)
    outcome = _outcome_class(decisions, reference)
    named = 1 - decisions.outcomes.direction.astype(np.int64)
    happened = (outcome == named).astype(np.float64)
    bins = reliability(decisions.outcomes.confidence.astype(np.float64), happened)
    spent = decisions.outcomes.cost_usd
    return SliceReport(
        source=source,
        dimension=dimension,
        value=value,
        signals=len(decisions.pair),
        calls=len(calls.pair),
        blocks=blocks.count,
        verdict=verdict_of(hit_rate, blocks.count),
        money=money_of(net, len(calls.pair), blocks.count),
        hit_rate=hit_rate,
        gross_bps=blocks.mean(calls.gross_bps) if len(calls.pair) else None,
        net_bps=net,
        net_total_bps=float(calls.net_bps.sum()),
        cost_bps=cost,
        move_bps=move,
        break_even_hit_rate=break_even_rate(cost or 0.0, move or 0.0),
        break_even_move_bps=break_even_move_bps(cost or 0.0, hit_rate.value) if hit_rate else None,
        rank_correlation=correlation,
        rank_correlation_t=t_value,
        probability_brier=_probability_brier(decisions, reference, outcome, all_blocks),
        confidence_brier=_confidence_brier(decisions, reference, happened, all_blocks),
        calibration_error=calibration_error(bins),
        bins=bins,
        provider_cost_usd=None if np.isnan(spent).all() else float(np.nansum(spent)),
    )


def verdict_of(
    hit_rate: HitRate | None, blocks: int, *, is_significant: bool | None = None
) -> Verdict:
    """Words for a hit rate; ``is_significant`` where it was one of several tests."""
    if hit_rate is None or hit_rate.count < FEWEST_CALLS or blocks < FEWEST_BLOCKS:
        return Verdict.TOO_FEW
    if not (hit_rate.p_value < 0.05 if is_significant is None else is_significant):
        return Verdict.CHANCE
    return Verdict.BETTER if hit_rate.value > hit_rate.base_rate else Verdict.WORSE


def money_of(net: Estimate | None, calls: int, blocks: int) -> Money:
    """Words for the gain per call."""
    if net is None or calls < FEWEST_CALLS or blocks < FEWEST_BLOCKS:
        return Money.TOO_FEW
    if not net.excludes_zero:
        return Money.EVEN
    return Money.GAINS if net.value > 0 else Money.LOSES


def _blocks(decisions: Decisions) -> Blocks:
    return Blocks.of(decisions.outcomes.entry_ms, decisions.outcomes.horizon_ms)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _hit_rate(calls: Decisions, reference: Reference, blocks: Blocks) -> HitRate | None:
    count = len(calls.pair)
    if not count:
        return None
    hits = (calls.gross_bps > 0).astype(np.float64)
    is_buy = calls.outcomes.direction > 0
    base = np.where(is_buy, reference.rises[calls.pair], reference.falls[calls.pair])
    share, base_rate = float(hits.mean()), float(base.mean())
    effective = blocks.effective_count(hits - base)
    low, high = wilson(share * effective, effective) or (0.0, 1.0)
    return HitRate(
        value=share,
        low=low,
        high=high,
        count=count,
        effective_count=effective,
        base_rate=base_rate,
        p_value=score_test(share, base_rate, effective),
    )


def _rank_correlation(
    decisions: Decisions, reference: Reference, blocks: Blocks
) -> tuple[Estimate | None, float | None]:
    """Spearman of conviction and move, moves in units of their symbol's and horizon's usual one."""
    scale = reference.scale_bps[decisions.pair]
    moves = decisions.outcomes.return_bps / np.where(scale > 0.0, scale, 1.0)
    x = standardised(average_ranks(decisions.conviction))
    y = standardised(average_ranks(moves))
    if x is None or y is None:
        return None, None
    one = np.ones(len(x))
    estimate = blocks.estimate(_correlation, x * y, x, y, x * x, y * y, one)
    lag_ms = int(decisions.outcomes.horizon_ms.max())
    return estimate, newey_west_t(x * y, decisions.outcomes.entry_ms, lag_ms)


def _correlation(
    xy: np.ndarray, x: np.ndarray, y: np.ndarray, xx: np.ndarray, yy: np.ndarray, n: np.ndarray
) -> np.ndarray:
    covariance = xy / n - x / n * (y / n)
    spread = np.sqrt((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2))
    correlation: np.ndarray = np.clip(covariance / spread, -1.0, 1.0)
    return correlation


def _outcome_class(decisions: Decisions, reference: Reference) -> np.ndarray:
    """int64[n]: 0 up, 1 flat, 2 down."""
    moves, band = decisions.outcomes.return_bps, reference.flat_bps[decisions.pair]
    return np.where(moves > band, 0, np.where(moves < -band, 2, 1))


def _probability_brier(
    decisions: Decisions, reference: Reference, outcome: np.ndarray, blocks: Blocks
) -> BrierScore | None:
    found = decisions.outcomes
    given = np.stack([found.p_up, found.p_flat, found.p_down], axis=1)
    usual = brier(reference.classes[decisions.pair], outcome)
    return _skill(brier(given, outcome), usual, blocks)


def _confidence_brier(
    decisions: Decisions, reference: Reference, happened: np.ndarray, blocks: Blocks
) -> BrierScore | None:
    named = 1 - decisions.outcomes.direction.astype(np.int64)
    usual = reference.classes[decisions.pair, named]
    stated = decisions.outcomes.confidence.astype(np.float64)
    return _skill((stated - happened) ** 2, (usual - happened) ** 2, blocks)


def _skill(loss: np.ndarray, usual_loss: np.ndarray, blocks: Blocks) -> BrierScore | None:
    """Of the signals whose loss is known (NaN where a probability is not given)."""
    known = ~np.isnan(loss)
    count = int(known.sum())
    if not count:
        return None
    own, usual = np.where(known, loss, 0.0), np.where(known, usual_loss, 0.0)
    return BrierScore(
        count=count,
        score=float(own.sum()) / count,
        climatology=float(usual.sum()) / count,
        skill=blocks.estimate(lambda own, usual: 1.0 - own / usual, own, usual),
    )
