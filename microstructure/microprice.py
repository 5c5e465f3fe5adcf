"""Stoikov's microprice: the mid plus the move that queue imbalance and spread announce. Pure.

Past quotes → a table of adjustments per state (imbalance bucket × spread in ticks) → adjusted mids.
Stoikov (2018), "The Micro-Price: A High Frequency Estimator of Future Prices", Quantitative Finance.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from microstructure.book_tape import BookTape

type Floats = npt.NDArray[np.float64]

IMBALANCE_BUCKETS: Final = 10
SPREADS: Final = 2
MOVES_TICKS: Final = (-1.0, -0.5, 0.5, 1.0)
_MOST_TERMS: Final = 10_000
_TINY: Final = 1e-13


class MicropriceTable(msgspec.Struct, frozen=True, eq=False):
    """Adjustments of the mid.

    Attributes:
        adjustments_ticks: float64[spreads, buckets]; 0 for a state without data.
        tick: Quote units per tick.
        transitions: Pairs of quotes that the table was estimated from.
    """

    adjustments_ticks: Floats
    tick: float
    transitions: int

    def microprices(self, tape: BookTape) -> Floats:
        """Microprice of each snapshot, quote units; NaN where the book is not two-sided.

        A spread wider than the table's has no adjustment.
        """
        spreads, buckets = self.adjustments_ticks.shape
        quotes, mid = tape.quotes, tape.mid_price
        state = _states(quotes, self.tick, buckets, spreads)
        flat = np.append(self.adjustments_ticks.reshape(-1), 0.0)
        moved: Floats = mid + flat[state] * self.tick
        return moved


def adjustments(stay: Floats, move: Floats, arrive: Floats, sizes: Floats) -> Floats:
    """``G* = Σ_k B^k·G¹`` with ``G¹ = (1 − Q)⁻¹·R¹·K`` and ``B = (1 − Q)⁻¹·R²``.

    B is stochastic, so that ``1 − B`` has no inverse: the series is summed. It converges for
    symmetrised matrices, whose moves up and down weigh the same.

    Args:
        stay: float64[s, s], Q: the next state, the mid unmoved.
        move: float64[s, k], R¹: the mid moves by each of ``sizes``.
        arrive: float64[s, s], R²: the next state, the mid moved.
        sizes: float64[k], K.

    Returns:
        float64[s] in the unit of ``sizes``; 0 for states that no move can follow.
    """
    moving = _can_move(stay, move)
    result = np.zeros(len(stay))
    if not moving.any():
        return result
    inner = np.eye(int(moving.sum())) - stay[np.ix_(moving, moving)]
    first = np.linalg.solve(inner, move[moving] @ sizes)
    step = np.linalg.solve(inner, arrive[np.ix_(moving, moving)])
    total, term = first.copy(), first
    for _ in range(_MOST_TERMS):
        term = step @ term
        total += term
        if np.abs(term).max() <= _TINY * max(1.0, float(np.abs(total).max())):
            break
    result[moving] = total
    return result


def estimate(
    tape: BookTape, tick: float, *, buckets: int = IMBALANCE_BUCKETS, spreads: int = SPREADS
) -> MicropriceTable:
    """Estimate the table from past snapshots, each one an event.

    Every transition is counted a second time with bids and asks exchanged. Left out: transitions over
    a break, of spreads wider than ``spreads`` ticks, and of moves over one tick.
    """
    quotes, mid = tape.quotes, tape.mid_price
    state = _states(quotes, tick, buckets, spreads)
    moved = np.rint(np.diff(mid, prepend=np.nan) / tick * 2.0) / 2.0
    before, after, moved = state[:-1], state[1:], moved[1:]
    outside = buckets * spreads
    usable = (before < outside) & (after < outside) & ~tape.is_break[1:] & (np.abs(moved) <= 1.0)
    before, after, moved = before[usable], after[usable], moved[usable]
    mirror = _mirrored(buckets, spreads)
    source = np.concatenate([before, mirror[before]])
    target = np.concatenate([after, mirror[after]])
    size = np.concatenate([moved, -moved])
    moves = np.array(MOVES_TICKS)
    jumps = size != 0.0
    stay = _counts(source[~jumps], target[~jumps], (outside, outside))
    arrive = _counts(source[jumps], target[jumps], (outside, outside))
    move = _counts(source[jumps], np.searchsorted(moves, size[jumps]), (outside, len(moves)))
    seen = np.maximum(np.bincount(source, minlength=outside), 1)[:, None]
    table = adjustments(stay / seen, move / seen, arrive / seen, moves)
    return MicropriceTable(table.reshape(spreads, buckets), tick, len(before))


def _states(quotes: Floats, tick: float, buckets: int, spreads: int) -> npt.NDArray[np.intp]:
    """State of each quote, ``buckets · spreads`` for one that has none."""
    bid, bid_size, ask, ask_size = quotes.T
    with np.errstate(invalid="ignore"):
        share = bid_size / (bid_size + ask_size)
        wide = np.rint((ask - bid) / tick)
        known = (wide >= 1.0) & (wide <= spreads)
    bucket = np.minimum(np.where(known, share, 0.0) * buckets, buckets - 1).astype(np.intp)
    row = np.where(known, wide - 1.0, 0.0).astype(np.intp)
    return np.where(known, row * buckets + bucket, buckets * spreads)


def _mirrored(buckets: int, spreads: int) -> npt.NDArray[np.intp]:
    """The state of a state's book with bids and asks exchanged."""
    states = np.arange(buckets * spreads).reshape(spreads, buckets)
    mirrored: npt.NDArray[np.intp] = states[:, ::-1].reshape(-1)
    return mirrored


def _counts(
    rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], shape: tuple[int, int]
) -> Floats:
    flat = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64)


def _can_move(stay: Floats, move: Floats) -> npt.NDArray[np.bool_]:
    """States that a move can follow, at once or through others."""
    moving = move.sum(axis=1) > 0.0
    for _ in range(len(stay)):
        wider = moving | ((stay > 0.0) @ moving)
        if (wider == moving).all():
            break
        moving = wider
    result: npt.NDArray[np.bool_] = moving
    return result
