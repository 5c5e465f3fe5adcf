"""Days of the synthetic market: how many trades each minute has, and where the price is at its ends.

Consumes seed, symbol and day → produces per-minute counts and log prices, each a pure function of
these three. A day has a fixed number of trades, so ids are consecutive over midnight.
"""

from __future__ import annotations

import functools
import zlib

import msgspec
import numpy as np

from simulator.frames import SymbolSpec

MINUTES = 1440
_DAYS_REMEMBERED = 120  # older daily shocks have faded to 0.97**120 = 3 %
_FADING = 0.97
_DAY_SIGMA = 0.025
_COMMON_SHARE = 0.7  # correlation with the market factor


class Character(msgspec.Struct, frozen=True, kw_only=True):
    """What makes one symbol differ from another.

    ``trades_per_day`` is exact; sizes are quote notionals of sweeps: the median, and sigma of the
    logarithm (DEFINITIONS anchors: 1.9k, 40k and 438k at q50, q90, q99, which is one log-normal).
    ``planted_edge``, 0 to 1, makes the price a random walk that the book foretells so strongly
    (``synthetic_edge``); ``None`` is the usual market.
    """

    spec: SymbolSpec
    price: float
    annual_volatility: float
    trades_per_day: int
    sweep_median_notional: float
    sweep_sigma: float
    best_size_notional: float
    planted_edge: float | None = None


def generator(*key: int | str) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.PCG64(numbers))


def character(
    seed: int, symbol: str, rate_multiplier: float, planted_edge: float | None = None
) -> Character:
    """Plausible parameters of any symbol; BTC and ETH as they were in 2024."""
    if symbol.startswith("BTC"):
        price, decimals, tick, places, vol, rate, median = 65_000.0, 2, 10, 3, 0.55, 9.0, 1_900.0
    elif symbol.startswith("ETH"):
        price, decimals, tick, places, vol, rate, median = 3_400.0, 2, 1, 3, 0.70, 9.0, 1_500.0
    else:
        source = generator(seed, "character", symbol)
        price = float(10 ** source.uniform(-1.0, 2.3))
        # a tick is 1 to 10 basis points of a hundredth: 4 to 5 significant digits
        decimals = max(2, 4 - int(np.floor(np.log10(price))))
        tick, places = 1, 0 if price < 5 else 1
        vol, rate = source.uniform(0.8, 1.3), source.uniform(0.3, 2.5)
        median = source.uniform(200.0, 700.0)
    spec = SymbolSpec(
        symbol=symbol,
        price_decimals=decimals,
        tick_mantissa=tick,
        quantity_decimals=places,
        step_mantissa=1,
    )
    return Character(
        spec=spec,
        price=price,
        annual_volatility=vol,
        trades_per_day=max(MINUTES, round(rate * rate_multiplier * 86_400)),
        sweep_median_notional=median,
        sweep_sigma=2.35 if median > 1_000 else 1.9,
        best_size_notional=median * 120,
        planted_edge=planted_edge,
    )


class Day(msgspec.Struct, frozen=True):
    """One UTC day: trades per minute and before each minute, and log prices at the 1,441 ends.

    ``sigma`` is the standard deviation that each minute's log price was drawn with.
    """

    counts: np.ndarray  # int64[1440]
    before: np.ndarray  # int64[1441], 0 first
    log_price: np.ndarray  # float64[1441]
    activity: np.ndarray  # float64[1440], mean near 1
    sigma: np.ndarray  # float64[1440]


def autoregressive(shocks: np.ndarray, memory: float) -> np.ndarray:
    """A stationary AR(1) of unit variance."""
    out = np.empty_like(shocks)
    state = shocks[0]
    innovation = np.sqrt(1 - memory**2)
    for index, shock in enumerate(shocks.tolist()):
        state = state * memory + shock * innovation if index else shock
        out[index] = state
    return out


@functools.lru_cache(maxsize=256)
def _activity(seed: int, name: str, day: int) -> np.ndarray:
    """Log-normal activity per minute with a mild daily season (US and EU hours are busier)."""
    slow = autoregressive(generator(seed, "activity", name, day).standard_normal(MINUTES), 0.97)
    hour = np.arange(MINUTES) / 60
    season = 0.25 * np.exp(-(((hour - 14.5) / 3.5) ** 2)) - 0.05
    level: np.ndarray = np.exp(0.45 * slow + season - 0.1)
    return level


@functools.lru_cache(maxsize=1024)
def _day_level(seed: int, name: str, day: int) -> float:
    """Log price at 00:00 relative to the long-run level: shocks of the days before, fading."""
    shocks = [_day_shock(seed, name, day - back) for back in range(_DAYS_REMEMBERED)]
    weights = _FADING ** np.arange(_DAYS_REMEMBERED)
    return float(np.dot(shocks, weights)) * _DAY_SIGMA


@functools.lru_cache(maxsize=8192)
def _day_shock(seed: int, name: str, day: int) -> float:
    return float(generator(seed, "day", name, day).standard_normal())


@functools.lru_cache(maxsize=64)
def _walk(seed: int, name: str, day: int) -> np.ndarray:
    """Unit-variance minute shocks scaled by activity: a random walk whose volatility clusters."""
    shocks = generator(seed, "walk", name, day).standard_normal(MINUTES)
    shocks = shocks * np.sqrt(_activity(seed, name, day))
    return np.concatenate(([0.0], np.cumsum(shocks)))


def _log_path(seed: int, name: str, day: int, minute_sigma: float) -> np.ndarray:
    """Log price at the minute ends, tied to the day levels at both ends (a bridge)."""
    begin, end = _day_level(seed, name, day), _day_level(seed, name, day + 1)
    walk = _walk(seed, name, day) * minute_sigma
    share = np.linspace(0.0, 1.0, MINUTES + 1)
    path: np.ndarray = begin + (end - begin) * share + walk - walk[-1] * share
    return path


@functools.lru_cache(maxsize=512)
def make_day(seed: int, who: Character, day: int) -> Day:
    """A day of one symbol, a pure function of its arguments."""
    symbol = who.spec.symbol
    own_activity, common_activity = _activity(seed, symbol, day), _activity(seed, "*", day)
    activity = np.sqrt(own_activity * common_activity)
    weights = activity / activity.sum()
    counts = generator(seed, "count", symbol, day).multinomial(who.trades_per_day, weights)
    minute_sigma = who.annual_volatility / np.sqrt(365 * MINUTES)
    own = _log_path(seed, symbol, day, minute_sigma) * np.sqrt(1 - _COMMON_SHARE**2)
    common = _log_path(seed, "*", day, minute_sigma) * _COMMON_SHARE
    log_price = np.log(who.price) + own + common
    before = np.concatenate(([0], np.cumsum(counts)))
    shares = (1 - _COMMON_SHARE**2) * own_activity + _COMMON_SHARE**2 * common_activity
    sigma = minute_sigma * np.sqrt(shares)
    return Day(counts.astype(np.int64), before.astype(np.int64), log_price, activity, sigma)
