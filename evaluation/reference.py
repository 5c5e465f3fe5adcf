"""What the market did anyway: base rates and the flat band, per symbol and horizon.

Consumes moves from all windows of the days that have signals, produces shares of up, flat and down.
A move is *flat* within half the mean absolute move of its symbol and horizon (the labels' rule of
DEFINITIONS 7, ``α = mean|ℓ| / 2``); directions are judged without a band.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from evaluation.forward_returns import Outcomes

_SAMPLES_PER_PAIR: Final = 200_000
_FEWEST_A_DAY: Final = 200
_PAIRS_AT_FULL_DENSITY: Final = 50
_STEP_BITS: Final = 21  # a week of 1-second windows fits, twice: trades have keys of their own


class MarketSamples:
    """Gathers moves by symbol and horizon.

    Args:
        day_count: Days that will be added; bounds how many samples a day may give.
    """

    def __init__(self, day_count: int) -> None:
        self._per_day = max(_FEWEST_A_DAY, _SAMPLES_PER_PAIR // max(1, day_count))
        self._found: dict[int, list[np.ndarray]] = {}

    def stride(self, windows_per_day: int, pair_count: int) -> int:
        """Every how many windows to look, with so many pairs of symbol and horizon on a day."""
        wanted = max(_FEWEST_A_DAY, self._per_day * _PAIRS_AT_FULL_DENSITY // max(1, pair_count))
        return max(1, windows_per_day // min(wanted, self._per_day))

    def add(self, symbol: int, steps: int, moves_bps: np.ndarray) -> None:
        """Moves over ``steps`` windows of the symbol with this code."""
        self._found.setdefault((symbol << _STEP_BITS) + steps, []).append(moves_bps)

    def moves(self, key: int) -> np.ndarray:
        """float64[k] of one pair."""
        return np.concatenate(self._found.get(key, [np.empty(0)]))


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per pair of symbol and horizon; the last axis of ``classes`` is up, flat, down.

    ``rises`` and ``falls`` are shares of moves above and below zero, ``scale_bps`` the mean
    absolute move, ``flat_bps`` half of it, ``classes`` the shares beyond and within it.
    """

    rises: np.ndarray
    falls: np.ndarray
    scale_bps: np.ndarray
    classes: np.ndarray

    @property
    def flat_bps(self) -> np.ndarray:
        """Half-width of the flat band."""
        return self.scale_bps / 2.0


def pairs_of(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """The keys of the pairs that occur, ascending, and int64[n]: which of them each signal has."""
    keys = (outcomes.symbol.astype(np.int64) << _STEP_BITS) + outcomes.steps
    return np.unique(keys, return_inverse=True)


def reference_of(
    samples: MarketSamples, keys: np.ndarray, pair: np.ndarray, return_bps: np.ndarray
) -> Reference:
    """Base rates of the pairs; where the market left no sample, those of the signals themselves."""
    columns: dict[str, list[float]] = {"rises": [], "falls": [], "scale_bps": []}
    classes = []
    for index, key in enumerate(keys):
        moves = samples.moves(int(key))
        if not len(moves):
            moves = return_bps[pair == index]
        size = np.abs(moves)
        columns["rises"].append(float((moves > 0).mean()))
        columns["falls"].append(float((moves < 0).mean()))
        columns["scale_bps"].append(float(size.mean()))
        band = float(size.mean()) / 2.0
        up, down = float((moves > band).mean()), float((moves < -band).mean())
        classes.append((up, 1.0 - up - down, down))
    arrays = {name: np.array(values) for name, values in columns.items()}
    return Reference(**arrays, classes=np.array(classes).reshape(-1, 3))
