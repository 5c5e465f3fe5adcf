"""What takers pay: effective spread, realized spread and price impact of sweeps. Pure.

Trade rows and quotes → per sweep costs in bps of the mid, and their median and volume-weighted mean.
Quotes are taken strictly from before a sweep; where they are old, the sweep's first fill stands for
the touch, as quotes lag behind trades just when the touch is swept.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from microstructure.book import BPS
from microstructure.book_tape import BookTape
from microstructure.trade_rows import prices_and_quantities

type Floats = npt.NDArray[np.float64]

STALE_QUOTE_MS: Final = 50
LONGEST_QUOTE_AGE_MS: Final = 1000


class Sweeps(msgspec.Struct, frozen=True, eq=False):
    """Consecutive trades of one time and side joined, as columns.

    ``sign`` is +1 for buyers, −1 for sellers; ``price`` the mean paid, ``first_price`` that of the
    first fill; quantities in base units.
    """

    time_ms: npt.NDArray[np.int64]
    sign: Floats
    price: Floats
    first_price: Floats
    quantity: Floats


class SweepCosts(msgspec.Struct, frozen=True, eq=False):
    """Costs of each sweep, bps of the mid before it; NaN where a quote is missing.

    ``effective = realized + impact``; ``is_stale`` marks quotes older than ``STALE_QUOTE_MS``.
    """

    effective_bps: Floats
    realized_bps: Floats
    impact_bps: Floats
    is_stale: npt.NDArray[np.bool_]


def sweeps_of(trades: np.ndarray) -> Sweeps:
    """Join the trades of one sweep: neighbours of the same time and aggressor side."""
    price, quantity = prices_and_quantities(trades)
    times, is_sell = trades["transact_time_ms"], trades["is_buyer_maker"]
    starts = np.ones(len(trades), np.bool_)
    starts[1:] = (times[1:] != times[:-1]) | (is_sell[1:] != is_sell[:-1])
    of_sweep = np.cumsum(starts) - 1
    total = np.bincount(of_sweep, weights=quantity)
    notional = np.bincount(of_sweep, weights=price * quantity)
    sign = np.where(is_sell[starts], -1.0, 1.0)
    return Sweeps(times[starts], sign, notional / total, price[starts], total)


def spread_parts(
    sign: Floats, price: Floats, mid: Floats, mid_later: Floats
) -> tuple[Floats, Floats, Floats]:
    """Effective spread ``2D(P − M)``, realized spread ``2D(P − M_h)`` and impact ``2D(M_h − M)``.

    Lee & Ready (1991), Huang & Stoll (1996); the first is the sum of the others. Units of the prices.
    """
    return (
        2.0 * sign * (price - mid),
        2.0 * sign * (price - mid_later),
        2.0 * sign * (mid_later - mid),
    )


def sweep_costs(sweeps: Sweeps, tape: BookTape, horizon_ms: int) -> SweepCosts:
    """Costs against the quotes of a tape.

    Args:
        sweeps: Of the same symbol.
        tape: Snapshots; a quote older than a second counts as missing, and so does one on the other
            side of a break.
        horizon_ms: When the mid is read again for the realized spread; sweeps too near to the tape's
            end have no such mid.
    """
    at = np.flatnonzero(tape.is_two_sided)
    if not len(at):
        unknown = np.full(len(sweeps.time_ms), np.nan)
        return SweepCosts(unknown, unknown, unknown, np.zeros(len(unknown), np.bool_))
    now, age = _quote_before(tape, at, sweeps.time_ms)
    later_ms = sweeps.time_ms + horizon_ms
    later, _ = _quote_before(tape, at, later_ms)
    half = (tape.ask_price[now, 0] - tape.bid_price[now, 0]) / 2.0
    quoted = (tape.ask_price[now, 0] + tape.bid_price[now, 0]) / 2.0
    is_stale = age > STALE_QUOTE_MS
    mid = np.where(is_stale, sweeps.first_price - sweeps.sign * half, quoted)
    mid_later = (tape.ask_price[later, 0] + tape.bid_price[later, 0]) / 2.0
    mid[(now < 0) | (age > LONGEST_QUOTE_AGE_MS)] = np.nan
    chain = np.cumsum(tape.is_break)
    is_unknown = (later < 0) | (later_ms > tape.time_ms[-1])
    mid_later[is_unknown | (chain[later] != chain[now])] = np.nan
    parts = spread_parts(sweeps.sign, sweeps.price, mid, mid_later)
    effective, realized, impact = (BPS * part / mid for part in parts)
    return SweepCosts(effective, realized, impact, is_stale)


def _quote_before(
    tape: BookTape, at: npt.NDArray[np.intp], times: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Row of the last two-sided snapshot strictly before each time, -1 for none, and its age."""
    place = np.searchsorted(tape.time_ms[at], times, side="left") - 1
    rows = np.where(place >= 0, at[place], -1)
    return rows, times - tape.time_ms[rows]


def median_of(costs: Floats) -> float | None:
    """Median of what is known; None where nothing is."""
    known = costs[~np.isnan(costs)]
    return float(np.median(known)) if len(known) else None


def weighted_mean(costs: Floats, quantities: Floats) -> float | None:
    """Volume-weighted mean of what is known; None where nothing is."""
    known = ~np.isnan(costs)
    weight = float(quantities[known].sum())
    return float(costs[known] @ quantities[known]) / weight if weight > 0.0 else None
