"""What an analyst may know about a symbol at the end of one window: nothing later is in it.

Produced by the pipeline's context layer, stored flattened in the feature row, read by analysts.
Immutable and JSON-able; ``None`` is unknown, undefined or still warming up, never a guess.
"""

from __future__ import annotations

import enum

import msgspec

from domain.market import SCHEMA_VERSION


class Session(enum.StrEnum):
    """Trading session by the UTC hour in which a window starts."""

    ASIA = "asia"  # 22:00-08:00
    EUROPE = "europe"  # 08:00-13:00
    US = "us"  # 13:00-22:00


class VolatilityRegime(enum.StrEnum):
    """Volatility of the last 15 minutes against the day before them."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    EXTREME = "extreme"


class TrendRegime(enum.StrEnum):
    """Direction of the last 30 minutes against their own noise."""

    UP = "up"
    RANGE = "range"
    DOWN = "down"


class KeyLevels(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Price levels from the previous completed UTC day, in quote units.

    Classic pivots of its high, low and close; point of control and 70 % value area of its volume
    profile.
    """

    day_start_ms: int  # of the day they come from
    high: float
    low: float
    close: float
    pivot: float
    r1: float
    r2: float
    r3: float
    s1: float
    s2: float
    s3: float
    poc: float | None
    vah: float | None
    val: float | None


class MarketContext(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Context of one symbol at one window's end.

    Returns and distances are bps, prices quote units, ``volatility_1m`` the root mean square of
    one-minute log returns over 15 minutes, ``cvd_slope_5m`` base units per minute.
    """

    symbol: str
    window_start_ms: int
    window_end_ms: int
    complete: bool
    price: float | None  # last trade at or before the window's end
    session: Session
    volatility_regime: VolatilityRegime | None
    volatility_1m: float | None
    volatility_ratio: float | None  # volatility_1m over that of the day before
    trend_regime: TrendRegime | None
    trend_score: float | None  # sum of 30 one-minute returns over the root of their squares' sum
    return_1m_bps: float | None
    return_5m_bps: float | None
    return_15m_bps: float | None
    high_15m: float | None
    low_15m: float | None
    session_vwap: float | None  # since 00:00 UTC
    vwap_distance_bps: float | None
    session_high: float | None
    session_low: float | None
    session_coverage_ratio: float  # share of the time since 00:00 UTC behind the session's values
    cvd: float | None
    cvd_slope_5m: float | None
    cvd_divergence: int | None  # -1 bearish, 0 none, 1 bullish
    levels: KeyLevels | None
    resistance_distance_bps: float | None
    support_distance_bps: float | None
    history_windows: int
    schema_version: int = SCHEMA_VERSION
