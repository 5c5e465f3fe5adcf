"""What the market did after each signal: entry, exit, forward return and cost.

Consumes signal columns and prices, produces ``Outcomes``. Nothing is entered before the decision and
its latency: the entry window is the first that starts at or after both and is never the window the
signal was made from; it is left after ``ceil(horizon / window)`` more windows. Prices are those at
the two windows' ends (mid quote, else last trade; ``trade_prices`` puts trades in their place), costs
the fees of both legs and half the spread at either end of these windows (DEFINITIONS: taker in, taker
out). Funding and slippage beyond the best quote are left out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, Self

import msgspec
import numpy as np

from evaluation.baselines import cvd_sign, momentum_sign, rules_direction
from evaluation.prices import SymbolPrices
from evaluation.signal_columns import SignalColumns

MAX_HORIZON_S: Final = 7 * 86_400


class Status(enum.IntEnum):
    """Why a signal counts or not."""

    SCORED = 0
    PENDING = 1
    BAD_HORIZON = 2
    NO_WINDOWS = 3
    HOLE = 4
    NO_PRICE = 5


class PricedBy(enum.IntEnum):
    """Whose prices score a signal, the most exact first."""

    TRADES = 0
    WINDOWS = 1
    KLINES = 2


STATUS_TEXT: Final[Mapping[Status, str]] = {
    Status.SCORED: "scored",
    Status.PENDING: "horizon not over yet",
    Status.BAD_HORIZON: "horizon not between 1 s and 7 days",
    Status.NO_WINDOWS: "symbol without stored windows or trades",
    Status.HOLE: "windows or trades missing between entry and exit",
    Status.NO_PRICE: "no quote and no trade at entry or exit",
}


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """Signals and what followed; one entry per signal.

    ``ready_ms``: at no trade before it anything is entered. ``entry_ms`` is the start of the entry
    window and ``entry_end_ms`` its end (0 where not scored), of trades the entry itself; ``steps`` the
    horizon in windows, ``return_bps`` the market's move (not the signal's gain; NaN where not scored),
    ``cost_bps`` of a round trip. ``priced_by`` is of signals that are scored.
    ``momentum``, ``cvd`` and ``rules`` are the directions of the baselines at the same moment.
    """

    symbol: np.ndarray
    source: np.ndarray
    model: np.ndarray
    template: np.ndarray
    window_end_ms: np.ndarray
    direction: np.ndarray
    confidence: np.ndarray
    p_up: np.ndarray
    p_flat: np.ndarray
    p_down: np.ndarray
    cost_usd: np.ndarray
    status: np.ndarray
    priced_by: np.ndarray
    ready_ms: np.ndarray
    entry_ms: np.ndarray
    entry_end_ms: np.ndarray
    horizon_ms: np.ndarray
    steps: np.ndarray
    return_bps: np.ndarray
    cost_bps: np.ndarray
    has_spread: np.ndarray
    momentum: np.ndarray
    cvd: np.ndarray
    rules: np.ndarray

    def __len__(self) -> int:
        return len(self.status)

    def take(self, rows: np.ndarray) -> Self:
        """Some of them, by index or mask."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return type(self)(**{name: getattr(self, name)[rows] for name in self.__struct_fields__})

    def replaced(self, rows: np.ndarray, by: Self) -> Self:
        """With other outcomes at these indices."""
        copy = self.copied()
        for name in self.__struct_fields__:
            getattr(copy, name)[rows] = getattr(by, name)
        return copy

    def copied(self) -> Self:
        """The same in arrays of its own."""
        return type(self)(**{name: getattr(self, name).copy() for name in self.__struct_fields__})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of them, in order."""
        names = cls.__struct_fields__
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


class _Timing(msgspec.Struct, frozen=True):
    """Grid positions of one symbol's signals."""

    known: np.ndarray  # the signal's own window, the last it could know
    entry: np.ndarray
    exit: np.ndarray
    steps: np.ndarray


def entry_from_ms(signals: SignalColumns) -> np.ndarray:
    """int64[n]: before this nothing may be entered, UTC."""
    latency_ms = np.ceil(np.nan_to_num(np.maximum(signals.latency_ms, 0.0), posinf=1e12))
    ready_ms = signals.decided_at_ms + latency_ms.astype(np.int64)
    from_ms: np.ndarray = np.maximum(ready_ms, signals.window_end_ms)
    return from_ms


def steps_of(horizon_s: np.ndarray, window_ms: int) -> np.ndarray:
    """int64[n]: windows from entry to exit, at least 1."""
    bounded = np.clip(horizon_s, 1, MAX_HORIZON_S)
    steps: np.ndarray = -(-bounded * 1_000 // window_ms)
    return steps


def outcomes_of(
    signals: SignalColumns,
    prices: Mapping[int, SymbolPrices],
    *,
    fee_bps: float,
    rules_source: int | None,
    priced_by: PricedBy = PricedBy.WINDOWS,
) -> Outcomes:
    """Score the signals of one day.

    Args:
        signals: Sorted by symbol.
        prices: By symbol code; must reach from each signal's look-back (one horizon before it) to
            its exit, as far as the store has windows.
        fee_bps: Of one leg, in 1e-4 of the notional.
        rules_source: Code of the source ``rules``, whose directions are a baseline; None: absent.
        priced_by: What ``prices`` are.
    """
    count = len(signals)
    columns: dict[str, np.ndarray] = {
        "status": np.full(count, Status.NO_WINDOWS, dtype=np.int8),
        "priced_by": np.full(count, priced_by, dtype=np.int8),
        "entry_ms": np.zeros(count, dtype=np.int64),
        "entry_end_ms": np.zeros(count, dtype=np.int64),
        "steps": np.zeros(count, dtype=np.int32),
        "return_bps": np.full(count, np.nan),
        "cost_bps": np.full(count, 2.0 * fee_bps),
        "has_spread": np.zeros(count, dtype=np.bool_),
        "momentum": np.zeros(count, dtype=np.int8),
        "cvd": np.zeros(count, dtype=np.int8),
    }
    bad_horizon = (signals.horizon_s < 1) | (signals.horizon_s > MAX_HORIZON_S)
    columns["status"][bad_horizon] = Status.BAD_HORIZON
    for code in np.unique(signals.symbol):
        found = prices.get(int(code))
        rows = np.flatnonzero((signals.symbol == code) & ~bad_horizon)
        if found is not None and len(rows):
            _score_symbol(signals, found, rows, columns)
    carried = {
        name: getattr(signals, name)
        for name in Outcomes.__struct_fields__
        if name in SignalColumns.__struct_fields__
    }
    return Outcomes(
        **carried,
        **columns,
        # a trade of the same ms as the decision may have come before it
        ready_ms=np.maximum(entry_from_ms(signals), signals.decided_at_ms + 1),
        horizon_ms=np.clip(signals.horizon_s, 1, MAX_HORIZON_S) * 1_000,
        rules=rules_direction(signals, rules_source),
    )


def _score_symbol(
    signals: SignalColumns,
    prices: SymbolPrices,
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
) -> None:
    timing = _timing(signals, prices, rows)
    moved = prices.move_bps(timing.entry, timing.exit)
    exit_ms = prices.first_ms + timing.exit * prices.window_ms
    status = np.select(
        [
            exit_ms > prices.last_start_ms,
            prices.has_holes(timing.entry, timing.exit),
            np.isnan(moved),
        ],
        [Status.PENDING, Status.HOLE, Status.NO_PRICE],
        Status.SCORED,
    )
    is_scored = status == Status.SCORED
    columns["status"][rows] = status
    columns["steps"][rows] = timing.steps
    columns["momentum"][rows] = momentum_sign(prices, timing.known, timing.steps)
    columns["cvd"][rows] = cvd_sign(prices, timing.known, timing.steps)
    spread, columns["has_spread"][rows] = _spreads(prices, timing.entry, timing.exit)
    columns["cost_bps"][rows] += spread
    scored = rows[is_scored]
    columns["entry_ms"][scored] = prices.first_ms + timing.entry[is_scored] * prices.window_ms
    columns["entry_end_ms"][scored] = columns["entry_ms"][scored] + prices.window_ms
    columns["return_bps"][scored] = moved[is_scored]


def _timing(signals: SignalColumns, prices: SymbolPrices, rows: np.ndarray) -> _Timing:
    window_ms = prices.window_ms
    steps = steps_of(signals.horizon_s[rows], window_ms)
    entry = -((prices.first_ms - entry_from_ms(signals)[rows]) // window_ms)
    known = (signals.window_end_ms[rows] - prices.first_ms) // window_ms - 1
    return _Timing(known, entry, entry + steps, steps)


def _spreads(
    prices: SymbolPrices, entry: np.ndarray, leave: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Half the spread of both ends in bps, and whether both were known.

    An end without a book (a recovered window) counts with the median spread of the days around;
    without any, as zero.
    """
    place = np.stack([entry, leave])
    inside = (place >= 0) & (place < len(prices))
    ends = np.where(inside, prices.spread_bps[np.where(inside, place, 0)], np.nan)
    is_known = ~np.isnan(ends).any(axis=0)
    if not is_known.all():
        known = prices.spread_bps[~np.isnan(prices.spread_bps)]
        ends = np.where(np.isnan(ends), np.median(known) if len(known) else 0.0, ends)
    return 0.5 * ends.sum(axis=0), is_known


def market_returns(
    prices: SymbolPrices, from_ms: int, to_ms: int, steps: int, stride: int
) -> np.ndarray:
    """float64[k]: moves over ``steps`` windows from every ``stride``-th window between two times.

    What a trader without any signal would have met: the base rate's material. Windows with holes
    on the way are left out, as they are for signals.
    """
    first = max(0, -((prices.first_ms - from_ms) // prices.window_ms))
    until = min(len(prices), -((prices.first_ms - to_ms) // prices.window_ms))
    entry = np.arange(first, until, stride)
    leave = entry + steps
    moved = prices.move_bps(entry, leave)
    found: np.ndarray = moved[~prices.has_holes(entry, leave) & ~np.isnan(moved)]
    return found
