"""Measures beside a model's features: toxicity, impact, spreads, variance and noise, arrivals.

A day's trades and book of one symbol → columns per window. They are estimated every five minutes from
the half hour before (VPIN: after every bucket) and hold until the next estimate: a window's row never
knows what came after its end. NaN is undefined. ``MEASURE_NAMES`` are no model inputs.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from microstructure import hawkes
from microstructure.book import BPS
from microstructure.book_tape import BookTape
from microstructure.impact_regression import impact_fit
from microstructure.liquidity import amihud, roll_spread
from microstructure.noise import noise_ratio, noise_variance, pre_averaged_variance, two_scales
from microstructure.trade_cost import (
    SweepCosts,
    Sweeps,
    median_of,
    sweep_costs,
    sweeps_of,
    weighted_mean,
)
from microstructure.trade_rows import prices_and_quantities
from microstructure.volatility import annualised_volatility, jump_test, realized_variance
from microstructure.vpin import volume_buckets, vpin

type Floats = npt.NDArray[np.float64]
type Values = dict[str, float | None]

MEASURE_NAMES: Final = (
    *("vpin", "kyle_lambda", "kyle_t", "kyle_r2", "amihud", "roll_spread_bps"),
    *("effective_spread_bps", "effective_spread_weighted_bps", "realized_spread_bps"),
    *(
        "price_impact_bps",
        "stale_quote_share",
        "realized_volatility",
        "tsrv",
        "preaveraged_variance",
    ),
    *("noise_ratio", "bipower_variance", "jump_z", "hawkes_branching", "hawkes_base_rate"),
)
EVERY_MS: Final = 300_000
SPAN_MS: Final = 1_800_000
COST_HORIZON_MS: Final = 5000
HAWKES_EVENTS: Final = 3000
_SECOND_MS: Final = 1000
_MINUTE_S: Final = 60
_SPAN_S: Final = SPAN_MS // _SECOND_MS
_HOUR_MS: Final = 3_600_000
_BUCKETS_PER_HOUR: Final = 50


class _Day(msgspec.Struct, frozen=True, eq=False):
    """A span's data on a grid of seconds from ``first_ms`` on, and its sweeps.

    ``mid`` holds the mid at the end of each second, NaN where no snapshot came in it.
    """

    first_ms: int
    mid: Floats
    signed_base: Floats
    quote: Floats
    sweeps: Sweeps
    costs: SweepCosts


def day_measures(
    trades: np.ndarray,
    books: BookTape,
    starts_ms: npt.NDArray[np.int64],
    window_ms: int,
    *,
    bucket_volume: float | None = None,
) -> dict[str, Floats]:
    """Columns of ``MEASURE_NAMES``, one value per window.

    Args:
        trades: ``TRADE_DTYPE`` rows of one symbol, ascending by id.
        books: Snapshots of the symbol; may be empty.
        starts_ms: int64[n], ascending.
        window_ms: Length of the windows.
        bucket_volume: Of VPIN, base units; by default a fiftieth of the first whole hour's volume,
            the measure then starts behind that hour.

    Returns:
        float64[n] per name.
    """
    ends_ms = np.asarray(starts_ms, dtype=np.int64) + window_ms
    columns = {name: np.full(len(ends_ms), np.nan) for name in MEASURE_NAMES}
    if not len(ends_ms) or not len(trades):
        return columns
    begin_ms = int(ends_ms[0]) - window_ms
    columns["vpin"] = _vpin(trades, ends_ms, begin_ms, bucket_volume)
    day = _prepared(trades, books, begin_ms, int(ends_ms[-1]))
    first_ms = -(-(begin_ms + SPAN_MS) // EVERY_MS) * EVERY_MS
    for at_ms in range(first_ms, int(ends_ms[-1]) + 1, EVERY_MS):
        rows = slice(*np.searchsorted(ends_ms, [at_ms, at_ms + EVERY_MS]).tolist())
        for name, value in _estimates(day, at_ms).items():
            columns[name][rows] = np.nan if value is None else value
    return columns


def _vpin(
    trades: np.ndarray, ends_ms: npt.NDArray[np.int64], begin_ms: int, bucket_volume: float | None
) -> Floats:
    times = trades["transact_time_ms"]
    _, quantity = prices_and_quantities(trades)
    values = np.full(len(ends_ms), np.nan)
    if bucket_volume is None:
        hour_ms = -(-begin_ms // _HOUR_MS) * _HOUR_MS
        is_past = (times >= hour_ms) & (times < hour_ms + _HOUR_MS)
        bucket_volume = float(quantity[is_past].sum()) / _BUCKETS_PER_HOUR
        known_from_ms = hour_ms + _HOUR_MS
    else:
        known_from_ms = begin_ms
    if bucket_volume <= 0.0:
        return values
    buckets, filled_by = volume_buckets(quantity, ~trades["is_buyer_maker"], bucket_volume)
    toxicity = vpin(buckets)
    if not len(toxicity):
        return values
    known_ms = np.maximum.accumulate(times[filled_by])[-len(toxicity) :]
    place = np.searchsorted(known_ms, ends_ms, side="left") - 1
    is_known = (place >= 0) & (ends_ms >= known_from_ms)
    values[is_known] = toxicity[place[is_known]]
    return values


def _prepared(trades: np.ndarray, books: BookTape, begin_ms: int, end_ms: int) -> _Day:
    first_ms = begin_ms // _SECOND_MS * _SECOND_MS
    seconds = -(-(end_ms - first_ms) // _SECOND_MS)
    mid = np.full(seconds, np.nan)
    rows = np.flatnonzero(books.is_two_sided)
    second = (books.time_ms[rows] - first_ms) // _SECOND_MS
    inside = (second >= 0) & (second < seconds)
    mid[second[inside]] = books.mid_price[rows[inside]]  # of equal seconds the last one stays
    traded = (trades["transact_time_ms"] - first_ms) // _SECOND_MS
    trades = trades[(traded >= 0) & (traded < seconds)]
    traded = traded[(traded >= 0) & (traded < seconds)]
    price, quantity = prices_and_quantities(trades)
    signed = np.where(trades["is_buyer_maker"], -quantity, quantity)
    sweeps = sweeps_of(trades)
    return _Day(
        first_ms=first_ms,
        mid=mid,
        signed_base=np.bincount(traded, weights=signed, minlength=seconds),
        quote=np.bincount(traded, weights=price * quantity, minlength=seconds),
        sweeps=sweeps,
        costs=sweep_costs(sweeps, books, COST_HORIZON_MS),
    )


def _estimates(day: _Day, at_ms: int) -> Values:
    """All measures from the half hour before ``at_ms``."""
    stop = (at_ms - day.first_ms) // _SECOND_MS
    seconds = slice(max(0, stop - _SPAN_S), stop)
    times = day.sweeps.time_ms
    first, last = np.searchsorted(times, [at_ms - SPAN_MS, at_ms]).tolist()
    mid = day.mid[seconds]
    values = _impact(mid, day.signed_base[seconds], day.quote[seconds])
    values |= _costs(day, slice(first, last), at_ms)
    values |= _variances(mid)
    values |= _arrivals(times[max(first, last - HAWKES_EVENTS) : last])
    return values


def _impact(mid: Floats, signed_base: Floats, quote: Floats) -> Values:
    fit = impact_fit(np.diff(mid), signed_base[1:])
    minutes = len(mid) // _MINUTE_S
    closes = mid[-minutes * _MINUTE_S :][_MINUTE_S - 1 :: _MINUTE_S]
    volumes = quote[-minutes * _MINUTE_S :].reshape(minutes, _MINUTE_S).sum(axis=1)
    return {
        "kyle_lambda": fit.slope if fit else None,
        "kyle_t": fit.t if fit else None,
        "kyle_r2": fit.r2 if fit else None,
        "amihud": amihud(np.diff(np.log(closes)), volumes[1:]),
    }


def _costs(day: _Day, rows: slice, at_ms: int) -> Values:
    sweeps, costs = day.sweeps, day.costs
    quantity, effective = sweeps.quantity[rows], costs.effective_bps[rows]
    is_later_known = sweeps.time_ms[rows] + COST_HORIZON_MS <= at_ms
    known = ~np.isnan(effective)
    prices = sweeps.price[rows]
    bounce = roll_spread(prices) if len(prices) >= 100 else None
    return {
        "roll_spread_bps": None if bounce is None else BPS * bounce / float(prices.mean()),
        "effective_spread_bps": median_of(effective),
        "effective_spread_weighted_bps": weighted_mean(effective, quantity),
        "realized_spread_bps": median_of(costs.realized_bps[rows][is_later_known]),
        "price_impact_bps": median_of(costs.impact_bps[rows][is_later_known]),
        "stale_quote_share": float(costs.is_stale[rows][known].mean()) if known.any() else None,
    }


def _variances(mid: Floats) -> Values:
    """Variances of the half hour; undefined where a second of it has no mid."""
    names = ("realized_volatility", "tsrv", "preaveraged_variance", "noise_ratio")
    if np.isnan(mid).any() or len(mid) < 2 * _MINUTE_S:
        return dict.fromkeys((*names, "bipower_variance", "jump_z"))
    logs = np.log(mid)
    variance, scales = realized_variance(logs), two_scales(logs)
    jumps = jump_test(logs[::_MINUTE_S])
    noise = noise_variance(scales).corrected if scales else None
    integrated = scales.adjusted if scales else None
    share = None
    if noise is not None and integrated is not None:
        share = noise_ratio(noise, integrated, len(logs) - 1)
    return {
        "realized_volatility": annualised_volatility(variance or 0.0, len(logs) - 1, 1.0),
        "tsrv": integrated,
        "preaveraged_variance": pre_averaged_variance(logs),
        "noise_ratio": share,
        "bipower_variance": jumps.bipower if jumps else None,
        "jump_z": jumps.z if jumps else None,
    }


def _arrivals(times_ms: npt.NDArray[np.int64]) -> Values:
    unique = np.unique(times_ms)
    found = None
    if len(unique) > 1:
        times_s = (unique - unique[0]) / 1000.0
        found = hawkes.fit(times_s, float(times_s[-1]) + 0.001)
    return {
        "hawkes_branching": found.branching_ratio if found else None,
        "hawkes_base_rate": found.mu if found else None,
    }
