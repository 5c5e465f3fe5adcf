"""Layer 3, Context: what came before a window and where it stands in its day.

``WindowSample`` → ``MarketContext``. Rolling memory of one symbol, bounded and time-true: windows
that never came age every look-back by their length. Nothing after the window's end is used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import log

import msgspec
import numpy as np

from data_pipeline.bars import BarHistory, BarSettings
from data_pipeline.enrich import EnrichedWindow
from data_pipeline.rolling import MISSING, Ring
from data_pipeline.sessions import SessionSettings, SessionTracker
from data_pipeline.walls import WallSettings, WallTracker
from domain.context import KeyLevels, MarketContext, Session
from domain.features import FeatureRow
from domain.market import Kline
from microstructure.book import BPS

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
_INFINITY = float("inf")
_SESSIONS = [Session.ASIA] * 8 + [Session.EUROPE] * 5 + [Session.US] * 9 + [Session.ASIA] * 2


class ContextSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the context's parts. The look-backs in the columns' names are fixed."""

    bars: BarSettings = BarSettings()
    session: SessionSettings = SessionSettings()
    walls: WallSettings = WallSettings()


class WindowSample(msgspec.Struct, frozen=True, gc=False):
    """What the memories keep of one window, fresh from layer 2 or read back from the store."""

    start_ms: int
    end_ms: int
    complete: bool
    prices: tuple[float, float, float] | None  # high, low, close
    volume: float
    quote_volume: float
    delta: float
    net_flow_quote: float
    trade_count: int
    ofi: float | None
    spread_bps: float | None
    realized_vol: float | None


def sample_of_window(window: EnrichedWindow) -> WindowSample:
    """The sample of a window that was just measured."""
    metrics, book, shape = window.metrics, window.book, window.shape
    high, low, close = window.high, window.low, window.close
    return WindowSample(
        metrics.window_start_ms,
        metrics.window_end_ms,
        metrics.complete,
        None if high is None or low is None or close is None else (high, low, close),
        window.volume,
        window.quote_volume,
        window.delta,
        window.net_flow_quote,
        metrics.trade_count,
        book.ofi if book is not None else None,
        shape.spread_bps if shape is not None else None,
        window.realized_vol,
    )


def sample_of_row(row: FeatureRow) -> WindowSample:
    """The sample of a stored window."""
    high, low, close = row.high, row.low, row.close
    return WindowSample(
        row.window_start_ms,
        row.window_end_ms,
        row.complete,
        None if high is None or low is None or close is None else (high, low, close),
        row.volume,
        row.quote_volume,
        row.delta,
        row.net_flow_quote,
        row.trade_count,
        row.ofi,
        row.spread_bps,
        row.realized_vol,
    )


def session_of(at_ms: int) -> Session:
    """Trading session of a UTC time in milliseconds."""
    return _SESSIONS[at_ms // HOUR_MS % 24]


class SymbolHistory:
    """Context memory of one symbol.

    Warm-up: ``return_*`` need a price that long ago (a window's close; after ``warm`` the close of
    the last whole minute before it), ``high_15m`` and ``low_15m`` one window, ``cvd_slope_5m`` and
    ``cvd_divergence`` 5 and 15 minutes of windows without a hole.
    """

    def __init__(self, window_ms: int, settings: ContextSettings) -> None:
        self._window_ms = window_ms
        self._count_1m = _windows(1, window_ms)
        self._count_5m = _windows(5, window_ms)
        self._count_15m = _windows(15, window_ms)
        self.bars = BarHistory(window_ms, settings.bars)
        self.session = SessionTracker(settings.session)
        self.last_end_ms = -1
        self.price: float | None = None  # last trade seen
        self.contiguous = 0  # windows since the last hole
        self.prices = Ring(self._count_15m + 1)  # at window ends, carried through silence
        self.highs = Ring(self._count_15m, -_INFINITY)
        self.lows = Ring(self._count_15m, _INFINITY)
        self.flows = Ring(self._count_15m + 1)  # running sum of delta; has no anchor of its own
        self._flow = 0.0
        self._slope_weights = _slope_weights(self._count_5m, window_ms)
        self.walls = WallTracker(settings.walls)

    def observe(self, sample: WindowSample) -> None:
        """Take one window, later than all before."""
        start_ms, end_ms, prices = sample.start_ms, sample.end_ms, sample.prices
        self.age_to(start_ms)
        if prices is None:
            self.highs.push(-_INFINITY)
            self.lows.push(_INFINITY)
        else:
            self.highs.push(prices[0])
            self.lows.push(prices[1])
            self.price = prices[2]
        self.prices.push(MISSING if self.price is None else self.price)
        self._flow += sample.delta
        self.flows.push(self._flow)
        self.contiguous += 1
        self.last_end_ms = end_ms
        self.bars.observe(end_ms, self.price)
        self.session.observe(start_ms, end_ms, prices, sample.volume, sample.quote_volume)

    def age_to(self, start_ms: int) -> None:
        """Age the look-backs by the windows missing before ``start_ms``."""
        missed = (start_ms - self.last_end_ms) // self._window_ms if self.last_end_ms >= 0 else 0
        if missed > 0:
            self.contiguous = 0
            for ring in (self.prices, self.highs, self.lows, self.flows):
                ring.skip(missed)
            if missed >= self._count_15m:
                self.price = None  # too old to stand for "now"
            self.last_end_ms = start_ms

    def context(
        self,
        symbol: str,
        start_ms: int,
        *,
        complete: bool,
        cvd: float | None,
    ) -> MarketContext:
        """Read the memory at the end of the window observed last."""
        price, reading, session = self.price, self.bars.reading, self.session
        end_ms = start_ms + self._window_ms
        levels, vwap = session.levels, session.vwap
        above, below = _level_distances(levels, price)
        high, low = (
            float(np.maximum.reduce(self.highs.last(self._count_15m))),  # half the price of max()
            float(np.minimum.reduce(self.lows.last(self._count_15m))),
        )
        return MarketContext(
            symbol=symbol,
            window_start_ms=start_ms,
            window_end_ms=end_ms,
            complete=complete,
            price=price,
            session=session_of(start_ms),
            volatility_regime=reading.volatility_regime,
            volatility_1m=reading.volatility_1m,
            volatility_ratio=reading.volatility_ratio,
            trend_regime=reading.trend_regime,
            trend_score=reading.trend_score,
            return_1m_bps=self._return_bps(self._count_1m),
            return_5m_bps=self._return_bps(self._count_5m),
            return_15m_bps=self._return_bps(self._count_15m),
            high_15m=high if high > -_INFINITY else None,
            low_15m=low if low < _INFINITY else None,
            session_vwap=vwap,
            vwap_distance_bps=BPS * log(price / vwap) if price and vwap else None,
            session_high=session.today.high,
            session_low=session.today.low,
            session_coverage_ratio=session.coverage_ratio(end_ms),
            cvd=cvd,
            cvd_slope_5m=self._cvd_slope(),
            cvd_divergence=self._cvd_divergence(),
            levels=levels,
            resistance_distance_bps=above,
            support_distance_bps=below,
            history_windows=self.contiguous,
        )

    def warm(self, klines: Sequence[Kline], samples: Sequence[WindowSample]) -> None:
        """Fill an empty memory from closed klines and stored windows, each in time order.

        Klines give the day's totals and levels and the one-minute returns; samples the windows,
        and the day where klines are missing. Where only klines know a price, the look-back for
        returns holds the close of the last whole minute before.
        """
        self.session.observe_klines(klines)
        if self.bars.takes_klines:
            for kline in klines[-self.bars.capacity :]:
                self.bars.push(kline.close_time_ms + 1, float(kline.close))
            self.bars.refresh()
        for sample in samples:
            self.observe(sample)
        if klines:
            self._fill_prices(klines)

    def _fill_prices(self, klines: Sequence[Kline]) -> None:
        kline_end_ms = klines[-1].close_time_ms + 1
        end_ms = kline_end_ms - kline_end_ms % self._window_ms
        if self.last_end_ms < 0:
            self.last_end_ms = end_ms
        if end_ms >= self.last_end_ms:
            self.age_to(end_ms)
            self.price = float(klines[-1].close)
        oldest_ms = self.last_end_ms - (self.prices.size - 1) * self._window_ms
        recent = [k for k in klines if k.close_time_ms >= oldest_ms - MINUTE_MS]
        ends = [k.close_time_ms + 1 for k in recent]
        values = []
        for at_ms in range(oldest_ms, self.last_end_ms + 1, self._window_ms):
            index = bisect_right(ends, at_ms) - 1
            known = index >= 0 and at_ms - ends[index] < MINUTE_MS
            values.append(float(recent[index].close) if known else MISSING)
        self.prices.fill_missing(values)

    def _return_bps(self, windows: int) -> float | None:
        before = self.prices.at(windows)
        return BPS * log(self.price / before) if self.price and before else None

    def _cvd_slope(self) -> float | None:
        if self.contiguous < self._count_5m:
            return None
        return float(self._slope_weights @ self.flows.last(self._count_5m))

    def _cvd_divergence(self) -> int | None:
        count = self._count_15m
        if self.contiguous <= count or self.price is None:
            return None
        prices = self.prices.last(count + 1)
        flows = self.flows.last(count + 1)
        past, price, flow = prices[:-1], prices[-1], flows[-1]
        highest = int(past.argmax())  # a missing price (NaN) would be found first
        if np.isnan(past[highest]):
            return None
        if price > past[highest]:
            return -1 if flow < flows[highest] else 0
        lowest = int(past.argmin())
        if price < past[lowest]:
            return 1 if flow > flows[lowest] else 0
        return 0


def _windows(minutes: int, window_ms: int) -> int:
    return max(1, round(minutes * MINUTE_MS / window_ms))


def _slope_weights(count: int, window_ms: int) -> np.ndarray:
    """Weights whose product with ``count`` equidistant values is their OLS slope per minute."""
    if count < 2:
        return np.zeros(count)
    steps = np.arange(count) - (count - 1) / 2.0
    slope: np.ndarray = steps / (steps @ steps) * (MINUTE_MS / window_ms)
    return slope


def _level_distances(
    levels: KeyLevels | None, price: float | None
) -> tuple[float | None, float | None]:
    """Distances in bps to the nearest level above the price, and to the nearest at or below it."""
    if levels is None or price is None:
        return None, None
    known = (
        levels.high, levels.low, levels.close, levels.pivot, levels.r1, levels.r2, levels.r3,
        levels.s1, levels.s2, levels.s3, levels.poc, levels.vah, levels.val,
    )  # fmt: skip
    above, below = _INFINITY, 0.0
    for level in known:
        if level is None or level <= 0.0:
            continue
        if level > price:
            above = min(above, level)
        else:
            below = max(below, level)
    return (
        BPS * log(above / price) if above < _INFINITY else None,
        BPS * log(price / below) if below > 0.0 else None,
    )
