"""Sharpe ratios of the sources, deflated for how many variants were tried.

Consumes decisions, produces the ratio of gain and deviation over calendar periods shared by all.
"""

from __future__ import annotations

import msgspec
import numpy as np

from evaluation.blocks import Blocks
from evaluation.scores import expected_best_sharpe, probabilistic_sharpe
from evaluation.slices import FEWEST_BLOCKS, FEWEST_CALLS, Decisions


class Sharpe(msgspec.Struct, frozen=True, kw_only=True):
    """Gain after costs per period over its deviation, not annualised.

    ``period_s`` is two of the longest horizons or more. ``deflated``: probability that the ratio is
    above zero for real, given skew and kurtosis and that it is one of ``trials`` variants (source,
    model, template).
    """

    value: float
    period_s: float
    periods: int
    trials: int
    deflated: float | None


def sharpes_of(decisions: Decisions) -> dict[int, Sharpe]:
    """By source code; sources with too little data are absent. Periods without a call gain 0."""
    found = decisions.outcomes
    blocks = Blocks.of(found.entry_ms, found.horizon_ms)
    if blocks.count < FEWEST_BLOCKS:
        return {}
    net_bps = decisions.net_bps
    variant = (
        (found.source.astype(np.int64) << 40)
        + (found.model.astype(np.int64) << 20)
        + found.template
    )
    trials = [_ratio(blocks.sums(np.where(variant == k, net_bps, 0.0))) for k in np.unique(variant)]
    best = expected_best_sharpe(float(np.var(trials)), len(trials))
    sharpes = {}
    for code in np.unique(found.source).tolist():
        own = found.source == code
        gains = blocks.sums(np.where(own, net_bps, 0.0))
        if int((own & (found.direction != 0)).sum()) < FEWEST_CALLS or gains.std() == 0.0:
            continue
        z = (gains - gains.mean()) / gains.std()
        skew, kurtosis = float((z**3).mean()), float((z**4).mean())
        sharpes[code] = Sharpe(
            value=_ratio(gains),
            period_s=blocks.length_ms / 1_000.0,
            periods=blocks.count,
            trials=len(trials),
            deflated=probabilistic_sharpe(_ratio(gains), best, blocks.count, skew, kurtosis),
        )
    return sharpes


def _ratio(gains: np.ndarray) -> float:
    deviation = float(gains.std())
    return float(gains.mean()) / deviation if deviation > 0.0 else 0.0
