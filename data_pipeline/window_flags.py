"""Doubts about finished windows that may well be true: flags, never corrections or rejections.

``EnrichedWindow`` + the symbol's price history before it → bits of ``WindowSuspect``. What cannot be
true is the first layer's business (``validation``).
"""

from __future__ import annotations

import enum
from math import log

import msgspec
import numpy as np

from data_pipeline.enrich import EnrichedWindow
from data_pipeline.rolling import Ring
from microstructure.book import BPS

_MAD_TO_SIGMA = 0.6745  # Iglewicz & Hoaglin 1993: modified z-score
_LEAST_MAD_BPS = 1.0
_ENOUGH_RETURNS = 50


class WindowSuspect(enum.IntFlag):
    """Why a window is doubtful."""

    OPEN_JUMP = 1  # it opens far from the close before
    RETURN = 2  # its close-to-close return is an outlier in size


class WindowFlagSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the flags of finished windows.

    Attributes:
        open_jump_bps: distance of a window's open from the close before from which it is a jump, bps.
        return_z: modified z-score beyond which the size of a window's return is an outlier.
        return_bps: a return smaller than this is never an outlier, bps.
    """

    open_jump_bps: float = 20.0
    return_z: float = 10.0
    return_bps: float = 10.0


def window_flags(
    window: EnrichedWindow, prices: Ring, settings: WindowFlagSettings
) -> WindowSuspect | None:
    """Compare a window with the closes before it.

    Args:
        window: With trades, or there is nothing to compare.
        prices: Closes of the windows before, carried through silence, the newest last.
        settings: Thresholds.

    Returns:
        ``None`` in a silent window, and where the close of the window right before is unknown.
    """
    before, first, last = prices.at(0), window.open, window.close
    if before is None or first is None or last is None:
        return None
    found = WindowSuspect(0)
    limit = settings.open_jump_bps / BPS
    if abs(first / before - 1.0) > limit:
        found |= WindowSuspect.OPEN_JUMP
    move_bps = abs(BPS * log(last / before))
    if move_bps > settings.return_bps and _is_outlier(move_bps, prices, settings.return_z):
        found |= WindowSuspect.RETURN
    return found


def _is_outlier(move_bps: float, prices: Ring, limit_z: float) -> bool:
    """Against the sizes of past returns that were not zero: silent windows have none of their own."""
    past = np.abs(BPS * np.diff(np.log(prices.last(prices.size))))
    past = past[past > 0.0]  # False for NaN
    if len(past) < _ENOUGH_RETURNS:
        return False
    median = float(np.median(past))
    spread = max(float(np.median(np.abs(past - median))), _LEAST_MAD_BPS)
    return _MAD_TO_SIGMA * (move_bps - median) / spread > limit_z
