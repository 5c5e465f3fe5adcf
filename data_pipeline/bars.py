"""One-minute returns of one symbol, and what they say: volatility and trend regime.

Prices at bar ends (from windows or klines) → readings. A bar nobody saw has no return, and neither
has the next one. Bars are UTC-aligned multiples of the window length, one minute unless windows are
longer or do not divide it.
"""

from __future__ import annotations

from math import log, sqrt

import msgspec
import numpy as np

from data_pipeline.rolling import MISSING, Ring
from domain.context import TrendRegime, VolatilityRegime

MINUTE_MS = 60_000


class BarSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Look-backs in bars, their warm-up, and the regimes' borders.

    Attributes:
        volatility_bars: one-minute bars behind volatility_1m.
        volatility_minimum: returns needed among them.
        reference_bars: one-minute bars before those, which they are compared with.
        reference_minimum: returns needed among them.
        low_ratio: volatility_ratio below which the regime is low.
        high_ratio: from which it is high.
        extreme_ratio: from which it is extreme.
        trend_bars: one-minute bars behind trend_score.
        trend_minimum: returns needed among them.
        trend_score: size of trend_score from which the regime is up or down.
    """

    volatility_bars: int = 15
    volatility_minimum: int = 10
    reference_bars: int = 1440
    reference_minimum: int = 60
    low_ratio: float = 0.6
    high_ratio: float = 1.6
    extreme_ratio: float = 3.0
    trend_bars: int = 30
    trend_minimum: int = 20
    trend_score: float = 1.5


class BarReading(msgspec.Struct, frozen=True, gc=False):
    """State after the last finished bar; ``None`` while warming up."""

    volatility_1m: float | None = None
    volatility_ratio: float | None = None
    volatility_regime: VolatilityRegime | None = None
    trend_score: float | None = None
    trend_regime: TrendRegime | None = None


class BarHistory:
    """Rolling bar returns of one symbol.

    ``volatility_1m`` = √(mean r²) of the last 15 returns; its ratio is taken to the same over the
    1440 before. ``trend_score`` = Σr / √Σr² of the last 30: a standard normal under a random walk.
    """

    __slots__ = (
        "_bar_ms",
        "_close",
        "_end_ms",
        "_prepared",
        "_recent",
        "_reference",
        "_reference_next",
        "_settings",
        "reading",
    )

    def __init__(self, window_ms: int, settings: BarSettings) -> None:
        self._bar_ms = window_ms * -(-MINUTE_MS // window_ms)
        self._settings = settings
        self._recent = Ring(max(settings.volatility_bars, settings.trend_bars))
        self._reference = np.full(settings.reference_bars, MISSING)
        self._reference_next = 0
        self._end_ms = -1  # end of the last finished bar
        self._close: float | None = None  # its closing price
        self._prepared: tuple[float | None] | None = None  # of the next reading, see ``prepare``
        self.reading = BarReading()

    @property
    def takes_klines(self) -> bool:
        """Whether one-minute klines are bars of this history."""
        return self._bar_ms == MINUTE_MS

    @property
    def capacity(self) -> int:
        """Bars after which nothing older matters."""
        return len(self._reference) + self._recent.size + 1

    def observe(self, end_ms: int, price: float | None) -> None:
        """Take the last price at ``end_ms``; only times on the bar grid after the last one count."""
        if end_ms % self._bar_ms or end_ms <= self._end_ms:
            return
        self.push(end_ms, price)
        self.reading = self._read()

    def prepare(self) -> None:
        """Look through the day before the next bar: only which bar leaves the recent ones counts."""
        if self._prepared is None:
            self._reference[self._reference_next] = self._leaving()
            self._prepared = (self._reference_volatility(),)

    def push(self, end_ms: int, price: float | None) -> None:
        """As ``observe`` for a time on the grid, without a new reading (see ``refresh``)."""
        if self._end_ms >= 0:
            missed = (end_ms - self._end_ms) // self._bar_ms - 1
            if missed:
                self._prepared = None
                self._skip(missed)
        known = price is not None and self._close is not None
        self._append(log(price / self._close) if known else MISSING)  # type: ignore[operator]
        self._end_ms, self._close = end_ms, price

    def refresh(self) -> None:
        """Compute the reading after a series of ``push``."""
        self._prepared = None
        self.reading = self._read()

    def _skip(self, missed: int) -> None:
        self._close = None
        if missed >= len(self._reference) + self._recent.size:
            self._reference.fill(MISSING)
            self._recent.skip(self._recent.size)
            return
        for _ in range(missed):
            self._append(MISSING)

    def _append(self, value: float) -> None:
        self._reference[self._reference_next] = self._leaving()
        self._reference_next = (self._reference_next + 1) % len(self._reference)
        self._recent.push(value)

    def _leaving(self) -> float:
        leaving = self._recent.at(self._settings.volatility_bars - 1)
        return MISSING if leaving is None else leaving

    def _reference_volatility(self) -> float | None:
        return _root_mean_square(self._reference, self._settings.reference_minimum)

    def _read(self) -> BarReading:
        settings = self._settings
        volatility = _root_mean_square(
            self._recent.last(settings.volatility_bars), settings.volatility_minimum
        )
        prepared, self._prepared = self._prepared, None
        reference = self._reference_volatility() if prepared is None else prepared[0]
        ratio = volatility / reference if volatility is not None and reference else None
        score = self._trend_score()
        return BarReading(
            volatility,
            ratio,
            None if ratio is None else self._volatility_regime(ratio),
            score,
            None if score is None else self._trend_regime(score),
        )

    def _trend_score(self) -> float | None:
        returns = self._recent.last(self._settings.trend_bars)
        returns = returns[~np.isnan(returns)]
        if len(returns) < self._settings.trend_minimum:
            return None
        noise = sqrt(float(returns @ returns))
        return float(returns.sum()) / noise if noise > 0.0 else 0.0

    def _volatility_regime(self, ratio: float) -> VolatilityRegime:
        if ratio >= self._settings.extreme_ratio:
            return VolatilityRegime.EXTREME
        if ratio >= self._settings.high_ratio:
            return VolatilityRegime.HIGH
        return VolatilityRegime.LOW if ratio < self._settings.low_ratio else VolatilityRegime.NORMAL

    def _trend_regime(self, score: float) -> TrendRegime:
        if abs(score) < self._settings.trend_score:
            return TrendRegime.RANGE
        return TrendRegime.UP if score > 0.0 else TrendRegime.DOWN


def _root_mean_square(returns: np.ndarray, minimum: int) -> float | None:
    present = returns[~np.isnan(returns)]
    if len(present) < minimum:
        return None
    return sqrt(float(present @ present) / len(present))
