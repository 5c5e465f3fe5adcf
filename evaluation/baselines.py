"""What a signal must beat: directions anyone could have had at the same moment for nothing.

Consumes prices up to the signal's own window (never later), produces directions: +1, −1 or 0 for no
position. *Always flat* is 0; *momentum* is the sign of the move over one horizon before; *CVD* the
sign of bought minus sold over it; *rules* what the rules analyst said of the same window.
"""

from __future__ import annotations

import numpy as np

from evaluation.prices import SymbolPrices
from evaluation.signal_columns import SignalColumns


def momentum_sign(prices: SymbolPrices, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """int8[n]: sign of the move over ``steps`` windows up to the end of window ``known``."""
    moved = prices.move_bps(known - steps, known)
    return _sign(np.where(prices.has_holes(known - steps, known), np.nan, moved))


def cvd_sign(prices: SymbolPrices, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """int8[n]: sign of the summed delta of the ``steps`` windows that end with ``known``."""
    has_holes = prices.has_holes(known - steps + 1, known)
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(prices.delta))])
    low, high = np.clip(known - steps + 1, 0, len(prices)), np.clip(known + 1, 0, len(prices))
    # a difference of sums carries their rounding: what is smaller than that is no direction
    net = total[high] - total[low]
    rounding = 1e-12 * np.maximum(np.abs(total[high]), np.abs(total[low]))
    return _sign(np.where(has_holes | (np.abs(net) <= rounding), np.nan, net))


def rules_direction(signals: SignalColumns, rules_source: int | None) -> np.ndarray:
    """int8[n]: direction of the rules' signal of the same symbol and window; 0 where there is none."""
    directions = np.zeros(len(signals), dtype=np.int8)
    if rules_source is None:
        return directions
    keys = signals.window_end_ms * np.int64(1 + int(signals.symbol.max())) + signals.symbol
    rules = np.flatnonzero(signals.source == rules_source)
    rules = rules[np.argsort(keys[rules], kind="stable")]
    if not len(rules):
        return directions
    position = np.searchsorted(keys[rules], keys, side="right") - 1
    match = rules[np.maximum(position, 0)]
    directions[:] = np.where(keys[match] == keys, signals.direction[match], 0)
    return directions


def _sign(values: np.ndarray) -> np.ndarray:
    signs: np.ndarray = np.sign(np.nan_to_num(values)).astype(np.int8)
    return signs
