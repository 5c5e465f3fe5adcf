"""Absorption: flow that moved the mid less than flow of that size usually does.

``EnrichedWindow`` of one symbol in time order → σ, positive where resting orders took the flow.
Volume is what met the visible book (without RPI fills), prices are mids. Definition and source:
docs/reference.md.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from data_pipeline.enrich import BookShape, EnrichedWindow
from domain.flow import FlowMetrics
from microstructure.price_impact import PriceImpact

_SECOND_MS = 1000


class AbsorptionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the price impact that a window's flow is compared with.

    Attributes:
        lookback_s: look-back of the price impact behind absorption, s.
        minimum_bars: 1-second bars with trades needed in it before the first score.
    """

    lookback_s: int = 600
    minimum_bars: int = 100


class Absorption:
    """Scores windows of one symbol against the 1-second bars before them, and learns theirs.

    Bars are the seconds with trades; a bar's mid is its last price less half the spread on the
    aggressor's side, the spread being that of the window's last snapshot. The window's own move is
    that between the last snapshots of it and of the one before. Nothing is learnt from an
    incomplete window or one without a book, and no move is counted across it.
    """

    __slots__ = ("_end_ms", "_impact", "_last_mid", "_lookback_s", "_mid", "_window_ms")

    def __init__(self, symbol: str, window_ms: int, settings: AbsorptionSettings) -> None:
        self._window_ms = window_ms
        self._lookback_s = settings.lookback_s
        self._impact = PriceImpact(settings.minimum_bars, phase=crc32(symbol.encode()))
        self._end_ms = -1
        self._mid: float | None = None  # of the book at the end of the window before
        self._last_mid: float | None = None  # of the last bar

    def score(self, window: EnrichedWindow) -> float | None:
        """Score a window, later than all before; ``None`` while warming up or without a book."""
        metrics, shape = window.metrics, window.shape
        if metrics.window_start_ms != self._end_ms:
            self._mid = self._last_mid = None
        self._end_ms = metrics.window_end_ms
        if shape is None or not self._is_usable(metrics):
            self._mid = self._last_mid = None
            return None
        self._impact.expire(metrics.window_start_ms - _SECOND_MS * self._lookback_s)
        move = None if self._mid is None else shape.mid_price - self._mid
        self._mid = shape.mid_price
        flows = metrics.second_flows
        return self._impact.residual(sum(flows), move, len(flows))

    def learn(self, window: EnrichedWindow) -> None:
        """Take in the bars of the window scored last."""
        if window.shape is not None and self._is_usable(window.metrics):
            self._learn(window.metrics, window.shape)

    def _is_usable(self, metrics: FlowMetrics) -> bool:
        return metrics.complete and len(metrics.second_flows) * _SECOND_MS == self._window_ms

    def _learn(self, metrics: FlowMetrics, shape: BookShape) -> None:
        # A plain loop: for the five seconds of a window three times as fast as lists of bars.
        n = sx = sy = sxx = sxy = syy = 0.0
        half_spread = 0.5 * (shape.ask_price - shape.bid_price)
        first = max(0, len(metrics.second_flows) - self._lookback_s)
        before = self._last_mid
        for x, price, side in zip(
            metrics.second_flows[first:],
            metrics.second_closes[first:],
            metrics.second_sides[first:],
            strict=True,
        ):
            if price is None:
                continue
            mid = price - side * half_spread
            if before is not None:
                y = mid - before
                n += 1.0
                sx += x
                sy += y
                sxx += x * x
                sxy += x * y
                syy += y * y
            before = mid
        self._last_mid = before
        self._impact.push(metrics.window_end_ms, (n, sx, sy, sxx, sxy, syy))
