"""The daily recommendation: one reading of the curated bars of several timeframes per symbol.

Curated bars of 1h, 4h and 1d → ``Signal`` with a horizon of one day, HOLD included. Deterministic;
docs/reference.md has the rules. An AI analyst, where one is given, is asked about the same reading
and its signal stands beside this one, never in its place.

Term (weight)            Reading
trend of 1h, 4h, 1d      tanh(z / 1.5), z = ln(C / C₋ₙ) / (σ √n) over a day (24 bars), a week (42) and
(0.25, 0.30, 0.25)       20 days; σ of a bar from the realized volatility of 30 days
pivot (0.10)             tanh((price - pivot of the previous day) / ATR of a day)
room (0.10)              (R - 2P + S) / (R - S): more room up to resistance than down to support

The sum is damped by min(1, volatility of 30 days / volatility of the last day): after an outburst
less is known. The probabilities are a fixed mapping of the score, not calibrated on outcomes.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import structlog

from domain.events import Action, Signal
from domain.intervals import DAY_MS, INTERVAL_MS
from ingestion.indicators import YEAR_S
from lake.kline_files import Columns, read_curated
from lake.paths import LakePaths
from lake.signal_store import signal_store

log = structlog.get_logger()

SOURCE: Final = "rules:daily"
MODEL: Final = "daily-1"
HORIZON_S: Final = 86_400

_TREND_BARS: Final = {"1h": 24, "4h": 42, "1d": 20}
_WEIGHTS: Final = {"trend_1h": 0.25, "trend_4h": 0.3, "trend_1d": 0.25, "pivot": 0.1, "room": 0.1}
_GAIN: Final = 2.0  # as the rules analyst's: BUY or SELL from |score| = 0.2 on
_FLAT_BIAS: Final = 0.4
_STALE_MS: Final = 2 * 3_600_000  # an older last hour is no basis for today
_NAMES: Final = (
    *("open_time_ms", "close_time_ms", "close", "return_log", "atr", "realized_volatility"),
    *("pivot", "support", "resistance"),
)
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the curated bars of one symbol say at one time; ``None`` is unknown.

    Attributes:
        symbol: Whose.
        at_ms: Every bar used closed by then.
        price: Last close of 1h.
        trends: Timeframe → drift over its look-back in standard deviations.
        volatility: Annualised, of 30 days of 1h returns.
        volatility_day: Annualised, of the last day's.
        atr_day: Average true range of a day, quote units.
        pivot, support, resistance: Prices; support and resistance of 4h.
    """

    symbol: str
    at_ms: int
    price: float
    trends: dict[str, float | None]
    volatility: float | None
    volatility_day: float | None
    atr_day: float | None
    pivot: float | None
    support: float | None
    resistance: float | None


type Analyst = Callable[[Reading, Signal], Awaitable[Signal | None]]
"""Asked about a reading and what the rules made of it; ``None``: no answer. Bounds its own time."""


def read_bars(symbol: str, bars: Mapping[str, Columns], at_ms: int) -> Reading | str:
    """The reading of one symbol, or why there is none.

    Args:
        symbol: Whose bars they are.
        bars: Interval → curated columns, in time order.
        at_ms: Later bars are left out.
    """
    known = {
        name: {c: values[columns["close_time_ms"] < at_ms] for c, values in columns.items()}
        for name, columns in bars.items()
    }
    hours = known.get("1h")
    if hours is None or not len(hours["close"]):
        return "no curated 1h bars"
    if hours["close_time_ms"][-1] < at_ms - _STALE_MS:
        return "the last curated 1h bar is too old"
    trends = {name: _trend(known.get(name), name, count) for name, count in _TREND_BARS.items()}
    if all(trend is None for trend in trends.values()):
        return "no timeframe has bars enough for its trend"
    return Reading(
        symbol=symbol,
        at_ms=at_ms,
        price=float(hours["close"][-1]),
        trends=trends,
        volatility=_last(hours, "realized_volatility"),
        volatility_day=_day_volatility(hours),
        atr_day=_last(known.get("1d"), "atr"),
        pivot=_last(hours, "pivot"),
        support=_last(known.get("4h"), "support"),
        resistance=_last(known.get("4h"), "resistance"),
    )


def recommend(reading: Reading, decided_at_ms: int) -> Signal:
    """What the rules make of a reading."""
    terms = _terms(reading)
    damping = 1.0
    if reading.volatility and reading.volatility_day:
        damping = min(1.0, reading.volatility / reading.volatility_day)
    known = {name: value for name, value in terms.items() if value is not None}
    score = damping * sum(_WEIGHTS[name] * value for name, value in known.items())
    up, flat = math.exp(_GAIN * score), math.exp(_FLAT_BIAS)
    total = up + flat + 1.0 / up
    chances = {Action.BUY: up / total, Action.HOLD: flat / total, Action.SELL: 1.0 / up / total}
    action = max((Action.HOLD, Action.BUY, Action.SELL), key=lambda choice: chances[choice])
    evidence = _evidence(reading, damping)
    return Signal(
        signal_id=f"{SOURCE}:{MODEL}:{reading.symbol}:{reading.at_ms}",
        symbol=reading.symbol,
        window_end_ms=reading.at_ms,
        decided_at_ms=decided_at_ms,
        price=reading.price,
        action=action,
        confidence=chances[action],
        p_up=chances[Action.BUY],
        p_flat=chances[Action.HOLD],
        p_down=chances[Action.SELL],
        horizon_s=HORIZON_S,
        rationale=_rationale(action, score, damping, terms),
        evidence=evidence,
        invalidation=_invalidation(action, reading),
        source=SOURCE,
        model=MODEL,
        template_version=MODEL,
        context_hash=hashlib.blake2b(_ENCODER.encode(reading), digest_size=16).hexdigest(),
    )


class DailyRecommendation:
    """Reads the curated files, recommends, and stores the signals.

    Args:
        paths: The data folder.
        symbols: Whose bars to read.
        analyst: Also asked, if given.
        publish: Told each new signal, the rules' first.
    """

    def __init__(
        self,
        paths: LakePaths,
        symbols: Sequence[str],
        *,
        analyst: Analyst | None = None,
        publish: Callable[[Signal], None] = lambda _signal: None,
    ) -> None:
        self._paths = paths
        self._symbols = tuple(symbols)
        self._analyst = analyst
        self._publish = publish

    async def recommend(self, at_ms: int, decided_at_ms: int) -> list[Signal]:
        """Recommend for every symbol; what was recommended for this time before is left alone.

        Args:
            at_ms: Bars that close later are left out.
            decided_at_ms: The exchange's time.

        Raises:
            StorageError: The disk refused.
        """
        store = signal_store(self._paths.signals)
        stored = await asyncio.to_thread(store.read_rows, self._symbols, at_ms, at_ms + 1)
        done = {row.symbol for row in stored if row.source == SOURCE}
        readings = await asyncio.to_thread(self._readings, at_ms)
        signals: list[Signal] = []
        for symbol in self._symbols:
            reading = readings[symbol]
            if symbol in done:
                continue
            if isinstance(reading, str):
                log.warning("recommendation.unavailable", symbol=symbol, reason=reading)
                continue
            signals.append(recommend(reading, decided_at_ms))
            if self._analyst is not None:
                answer = await self._analyst(reading, signals[-1])
                signals += [] if answer is None else [answer]
        if signals:
            await asyncio.to_thread(store.write_batch, signals)
        for signal in signals:
            log.info(
                "recommendation.made",
                symbol=signal.symbol,
                source=signal.source,
                action=signal.action.value,
                confidence=round(signal.confidence, 3),
            )
            self._publish(signal)
        return signals

    def newest_ms(self) -> int | None:
        """Close of the newest curated 1h bar of any of the symbols; ``None`` without any."""
        hours = read_curated(self._paths, "1h", self._symbols, ("close_time_ms",), last_days=8)
        closes = [int(columns["close_time_ms"][-1]) + 1 for columns in hours.values()]
        return max(closes, default=None)

    def _readings(self, at_ms: int) -> dict[str, Reading | str]:
        bars: dict[str, dict[str, Columns]] = {symbol: {} for symbol in self._symbols}
        for interval, count in _TREND_BARS.items():
            start_ms = at_ms - (count + 2) * INTERVAL_MS[interval] - DAY_MS
            found = read_curated(
                self._paths, interval, self._symbols, _NAMES, start_ms=start_ms, end_ms=at_ms
            )
            for symbol, columns in found.items():
                bars[symbol][interval] = columns
        return {symbol: read_bars(symbol, bars[symbol], at_ms) for symbol in self._symbols}


# --- the rules ---


def _trend(bars: Columns | None, interval: str, count: int) -> float | None:
    """Drift over ``count`` bars in standard deviations; unknown where a bar or σ is missing."""
    volatility = _last(bars, "realized_volatility")
    if bars is None or not volatility:
        return None
    times, close = bars["open_time_ms"], bars["close"]
    at = int(np.searchsorted(times, times[-1] - count * INTERVAL_MS[interval]))
    if times[at] != times[-1] - count * INTERVAL_MS[interval]:
        return None
    sigma = volatility * math.sqrt(INTERVAL_MS[interval] / 1_000 / YEAR_S)
    return math.log(close[-1] / close[at]) / (sigma * math.sqrt(count))


def _day_volatility(hours: Columns) -> float | None:
    recent = hours["return_log"][hours["open_time_ms"] > hours["open_time_ms"][-1] - DAY_MS]
    recent = recent[~np.isnan(recent)]
    if len(recent) < 20:
        return None
    per_year = YEAR_S / (INTERVAL_MS["1h"] / 1_000)
    return math.sqrt(float(np.mean(recent**2)) * per_year)


def _last(bars: Columns | None, name: str) -> float | None:
    if bars is None or not len(bars[name]) or np.isnan(bars[name][-1]):
        return None
    return float(bars[name][-1])


def _terms(reading: Reading) -> dict[str, float | None]:
    terms: dict[str, float | None] = {
        f"trend_{name}": None if trend is None else math.tanh(trend / 1.5)
        for name, trend in reading.trends.items()
    }
    price, low, high = reading.price, reading.support, reading.resistance
    terms["pivot"] = terms["room"] = None
    if reading.pivot is not None and reading.atr_day:
        terms["pivot"] = math.tanh((price - reading.pivot) / reading.atr_day)
    if low is not None and high is not None and low < price < high:
        terms["room"] = (high - 2.0 * price + low) / (high - low)
    return terms


def _invalidation(action: Action, reading: Reading) -> float | None:
    """Beyond support or resistance, but between half and twice a day's range away."""
    if action is Action.HOLD or not reading.atr_day:
        return None
    sign = 1.0 if action is Action.BUY else -1.0
    level = reading.support if action is Action.BUY else reading.resistance
    distance = reading.atr_day if level is None else sign * (reading.price - level)
    distance = min(max(distance, 0.5 * reading.atr_day), 2.0 * reading.atr_day)
    price = reading.price - sign * distance
    return price if price > 0.0 else None


def _rationale(
    action: Action, score: float, damping: float, terms: Mapping[str, float | None]
) -> str:
    parts = [(name, _WEIGHTS[name] * value) for name, value in terms.items() if value is not None]
    parts.sort(key=lambda part: -abs(part[1]))
    text = f"{action.value} at score {score:+.2f}: "
    text += ", ".join(f"{name} {value:+.2f}" for name, value in parts)
    if damping < 1.0:
        text += f"; damped to {damping:.2f} by the last day's volatility"
    unknown = [name for name, value in terms.items() if value is None]
    return text + (f"; unknown: {', '.join(unknown)}" if unknown else "")


def _evidence(reading: Reading, damping: float) -> dict[str, float | None]:
    return {
        "price": reading.price,
        **{f"trend_{name}": trend for name, trend in reading.trends.items()},
        "volatility": reading.volatility,
        "volatility_day": reading.volatility_day,
        "damping": damping,
        "atr_day": reading.atr_day,
        "pivot": reading.pivot,
        "support": reading.support,
        "resistance": reading.resistance,
    }
