"""A source beside what costs nothing: baselines at the moments of its calls, and curves over time.

Consumes decisions, produces the gain of each baseline and the paired difference with its interval,
and cumulative gains after costs. Only moments at which the source said BUY or SELL count: a baseline
has a direction nearly always, and paying costs more often would be all that the difference shows.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from evaluation.blocks import Blocks, Estimate
from evaluation.slices import FEWEST_BLOCKS, FEWEST_CALLS, Decisions, net_bps

_POINTS: Final = 240
_FLAT: Final = "always flat"
_BASELINES: Final = {
    _FLAT: None,
    "momentum": "momentum",
    "CVD sign": "cvd",
    "rules": "rules",
}


class Versus(msgspec.Struct, frozen=True, kw_only=True):
    """A baseline at the moments of a source's calls; ``calls`` are its own among them.

    ``net_bps``: its gain after costs per call of the source. ``difference_bps``: the source's minus
    that, paired by moment.
    """

    name: str
    calls: int
    hit_rate: float | None
    net_bps: float
    difference_bps: Estimate
    verdict: str


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative gain after costs, one value per time of ``Curves``."""

    name: str
    total_bps: list[float]


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """Gains over time; ``time_ms`` are exits, UTC."""

    time_ms: list[int]
    curves: list[Curve]


def baselines_beside(decisions: Decisions, source: str) -> list[Versus]:
    """Every baseline that is not the source itself and had a direction; none where the source made no call."""
    decisions = _calls(decisions)
    if not len(decisions.pair):
        return []
    found = decisions.outcomes
    blocks = Blocks.of(found.entry_ms, found.horizon_ms)
    own = decisions.net_bps
    reports = []
    for name, direction in _directions(decisions, source).items():
        net = net_bps(found, direction)
        calls = direction != 0
        if not calls.any() and name != _FLAT:
            continue  # no rules signal of the same windows, no history
        right = direction[calls] * found.return_bps[calls] > 0
        difference = blocks.mean(own - net) or Estimate(value=0.0)
        reports.append(
            Versus(
                name=name,
                calls=int(calls.sum()),
                hit_rate=float(right.mean()) if len(right) else None,
                net_bps=float(net.mean()),
                difference_bps=difference,
                verdict=_verdict(difference, len(own), blocks.count),
            )
        )
    return reports


def curves_of(decisions: Decisions, source: str) -> Curves | None:
    """The source before and after costs, and the baselines after costs; at most 240 points."""
    decisions = _calls(decisions)
    if not len(decisions.pair):
        return None
    found = decisions.outcomes
    exit_ms = found.entry_ms + found.horizon_ms
    series = {"after costs": decisions.net_bps, "before costs": decisions.gross_bps}
    for name, direction in _directions(decisions, source).items():
        if direction.any():
            series[name] = net_bps(found, direction)
    first_ms, last_ms = int(exit_ms.min()), int(exit_ms.max())
    slot_ms = max(1, -(-(last_ms - first_ms + 1) // _POINTS))
    slot = (exit_ms - first_ms) // slot_ms
    used = np.flatnonzero(np.bincount(slot))
    times = [min(first_ms + (int(k) + 1) * slot_ms - 1, last_ms) for k in used]
    curves = [
        Curve(name=name, total_bps=np.cumsum(np.bincount(slot, weights=gains))[used].tolist())
        for name, gains in series.items()
    ]
    return Curves(time_ms=times, curves=curves)


def _calls(decisions: Decisions) -> Decisions:
    return decisions.take(decisions.outcomes.direction != 0)


def _directions(decisions: Decisions, source: str) -> dict[str, np.ndarray]:
    flat = np.zeros(len(decisions.pair), dtype=np.int8)
    return {
        name: flat if column is None else getattr(decisions.outcomes, column)
        for name, column in _BASELINES.items()
        if name != source
    }


def _verdict(difference: Estimate, count: int, blocks: int) -> str:
    if count < FEWEST_CALLS or blocks < FEWEST_BLOCKS:
        return "too few"
    if not difference.excludes_zero:
        return "no difference told"
    return "source is better" if difference.value > 0 else "source is worse"
