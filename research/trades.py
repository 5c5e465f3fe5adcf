"""What acting on calls would have earned: at the bid and ask, after fees, late. Pure.

Day and calls → basis points per decision. A long enters at the ask of the first slot at or after
``t + latency`` and leaves at the bid a horizon later, a short the other way round.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from evaluation.blocks import Blocks, Estimate
from research.dataset import DayData

BPS: Final = 1e4

type Floats = npt.NDArray[np.float64]


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """What trades earned, in bps of their notional; ``break_even_fee_bps`` is per leg.

    ``timing_bps`` is the mid price's move after the fill, in the direction called, per decision, less
    that of the same calls at random moments: of a random walk it is zero, whatever the calls.
    ``sharpe`` is per block of time, not annualised; ``skew`` and ``kurtosis`` (non-excess) of it.
    """

    trades: int
    gross_bps: Estimate | None
    net_bps: Estimate | None
    break_even_fee_bps: float | None
    timing_bps: Estimate | None = None
    sharpe: float = 0.0
    periods: int = 0
    period_s: float = 0.0
    skew: float = 0.0
    kurtosis: float = 3.0


class Gains(msgspec.Struct, frozen=True, eq=False):
    """Basis points before fees of a long and a short at each row, NaN where a quote is missing."""

    long: Floats
    short: Floats


def gains_of(day: DayData, rows: npt.NDArray[np.intp], horizon_s: float, latency_ms: int) -> Gains:
    """Of a day's rows.

    Args:
        day: Its quote path.
        rows: Places in the day.
        horizon_s: How long a position is held.
        latency_ms: Between the decision and the fill.
    """
    first = day.decision_ms[rows] + latency_ms
    bid_in, ask_in = _quotes(day, first)
    bid_out, ask_out = _quotes(day, first + round(horizon_s * 1_000))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Gains(BPS * (bid_out / ask_in - 1.0), BPS * (1.0 - ask_out / bid_in))


def _quotes(day: DayData, time_ms: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Bid and ask of the first slot at or after the times."""
    if not len(day.quote_slot_ms):
        nothing = np.full(len(time_ms), np.nan)
        return nothing, nothing
    place = np.searchsorted(day.quote_slot_ms, time_ms, side="left")
    inside = place < len(day.quote_slot_ms)
    place = np.minimum(place, len(day.quote_slot_ms) - 1)
    return (
        np.where(inside, day.quote_bid[place], np.nan),
        np.where(inside, day.quote_ask[place], np.nan),
    )


def money_of(
    called: npt.NDArray[np.integer], gains: Gains, fee_bps: float, blocks: Blocks
) -> Money:
    """Of calls (0 short, 1 nothing, 2 long); those without a quote are no trades."""
    gross = np.where(called == 2, gains.long, np.where(called == 0, gains.short, np.nan))
    is_trade = np.isfinite(gross)
    gross = np.where(is_trade, gross, 0.0)
    net = np.where(is_trade, gross - 2.0 * fee_bps, 0.0)
    count = is_trade.astype(np.float64)
    earned = blocks.estimate(np.divide, gross, count)
    sums = blocks.sums(net)
    deviation = float(sums.std()) if len(sums) else 0.0
    z = (sums - sums.mean()) / deviation if deviation > 0.0 else np.zeros(1)
    return Money(
        trades=int(is_trade.sum()),
        gross_bps=earned,
        net_bps=blocks.estimate(np.divide, net, count),
        break_even_fee_bps=None if earned is None else earned.value / 2.0,
        timing_bps=timing_of(called, gains, blocks),
        sharpe=float(sums.mean()) / deviation if deviation > 0.0 else 0.0,
        periods=blocks.count,
        period_s=blocks.length_ms / 1_000.0,
        skew=float((z**3).mean()),
        kurtosis=float((z**4).mean()) if deviation > 0.0 else 3.0,
    )


def timing_of(called: npt.NDArray[np.integer], gains: Gains, blocks: Blocks) -> Estimate | None:
    """Whether moves that began after the decision went the way called: ``Money.timing_bps``.

    Scores of labels cannot tell: how much a market moves is known beforehand, and a smoothed label
    compares with past prices, so that a part of it has happened already.
    """
    move = (gains.long - gains.short) / 2.0  # half a spread each way: the mid's
    is_known = np.isfinite(move)
    side = np.where(is_known, np.asarray(called, np.float64) - 1.0, 0.0)
    move = np.where(is_known, move, 0.0)
    return blocks.estimate(
        lambda both, sides, moves, count: both / count - sides / count * (moves / count),
        *(side * move, side, move, is_known.astype(np.float64)),
    )
