"""Curation of years of 15-minute bars, all columns: ours beside the same indicators in plain pandas.

Seeded bars of one symbol, in memory, both sides in the same call and in turn; the columns are
compared before anything is timed. Medians and their ratio are printed with versions and machine;
pandas without the levels (pivots, profile, support, resistance) as well, for it vectorises the rest.
``python -m benchmarks.bench_curation [--json FILE] [--smoke]``
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import arguments, machine, publish, versions
from ingestion.curated_bars import CurationSettings, curate
from lake.kline_files import Columns

DAY_MS = 86_400_000
BAR_MS = 900_000
YEARS, SMOKE_YEARS = 5, 0.5
SETTINGS = CurationSettings()
BARS = SETTINGS.volatility_bars("15m")
PIVOTS = ("pivot", "r1", "r2", "r3", "s1", "s2", "s3")


def seeded_bars(count: int) -> Columns:
    """A random walk with a day's rhythm of volume."""
    source = np.random.default_rng(1)
    times = 1_577_836_800_000 + np.arange(count, dtype=np.int64) * BAR_MS
    close = 30_000 * np.exp(np.cumsum(source.normal(0, 0.002, count)))
    opened = np.roll(close, 1)
    opened[0] = 30_000
    high = np.maximum(opened, close) * (1 + source.exponential(0.0007, count))
    low = np.minimum(opened, close) * (1 - source.exponential(0.0007, count))
    volume = source.lognormal(5, 1, count)
    bought = volume * source.random(count)
    middle = (high + low) / 2
    return {
        "open_time_ms": times,
        "open": opened,
        "high": high,
        "low": low,
        "close": close,
        "volume": volume,
        "close_time_ms": times + BAR_MS - 1,
        "quote_volume": volume * middle,
        "trade_count": source.integers(1, 9_000, count),
        "taker_buy_volume": bought,
        "taker_buy_quote_volume": bought * middle,
    }


def ours(raw: Columns) -> Columns:
    """All curated columns."""
    return curate(raw, "15m", int(raw["open_time_ms"][0]), SETTINGS)[0]


# --- plain pandas ---


def plain_pandas(raw: Columns, *, with_levels: bool = True) -> pd.DataFrame:
    """The same columns as pandas' own operations give them; levels, which have none, day by day."""
    f = pd.DataFrame(raw).sort_values("open_time_ms").drop_duplicates("open_time_ms")
    prices = f[["open", "high", "low", "close"]]
    sound = np.isfinite(f).all(axis=1) & (prices > 0).all(axis=1)
    sound &= f.high >= prices.max(axis=1)
    sound &= f.low <= prices.min(axis=1)
    sound &= (f.volume >= 0) & (f.taker_buy_volume <= f.volume * (1 + 1e-9))
    f = f[sound].reset_index(drop=True)
    day = pd.to_datetime(f.open_time_ms, unit="ms").dt.floor("D")
    step = f.open_time_ms.diff() // BAR_MS
    f["missing_before"] = (step - 1).fillna(0).astype("int64")
    f["vwap"] = f.quote_volume / f.volume
    f["suspect"] = (
        ((f.vwap > f.high * 1.0001) | (f.vwap < f.low * 0.9999)) * 1
        + ((f.trade_count == 0) & ((f.volume > 0) | (f.high > f.low))) * 2
        + ((f.open / f.close.shift() - 1).abs() > 20e-4) * 4
    )
    f["delta"] = 2 * f.taker_buy_volume - f.volume
    f["return_simple"] = f.close.pct_change().where(step == 1)
    f["return_log"] = (f.close / f.close.shift()).apply(np.log).where(step == 1)
    before = f.close.shift()
    ranges = [f.high - f.low, (f.high - before).abs(), (f.low - before).abs()]
    f["true_range"] = pd.concat(ranges, axis=1).max(axis=1)
    f["atr"] = _atr(f.true_range)
    squares = f.return_log**2
    rolling = squares.rolling(BARS, min_periods=20)
    f["realized_volatility"] = np.sqrt(rolling.mean() * (365 * 96))
    by_day = f.groupby(day)
    f["day_open"] = by_day.open.transform("first")
    f["day_high"], f["day_low"] = by_day.high.cummax(), by_day.low.cummin()
    f["day_volume"] = by_day.volume.cumsum()
    f["day_quote_volume"] = by_day.quote_volume.cumsum()
    f["day_vwap"] = f.day_quote_volume / f.day_volume
    if not with_levels:
        return f
    levels = _day_levels(f, day)
    f = f.join(levels.shift().reindex(day).reset_index(drop=True))
    f["support"], f["resistance"] = _support_and_resistance(f, day)
    return f


def _atr(ranges: pd.Series) -> pd.Series:
    """Wilder's, seeded with a mean as TA-Lib does it."""
    seeded = ranges.copy()
    seeded.iloc[:14] = np.nan
    seeded.iloc[14] = ranges.iloc[1:15].mean()
    return seeded.ewm(alpha=1 / 14, adjust=False).mean()


def _day_levels(f: pd.DataFrame, day: pd.Series) -> pd.DataFrame:
    days = f.groupby(day).agg(
        high=("high", "max"), low=("low", "min"), close=("close", "last"), bars=("close", "size"),
    )  # fmt: skip
    pivot = (days.high + days.low + days.close) / 3
    width = days.high - days.low
    levels = pd.DataFrame(
        {
            "pivot": pivot,
            "r1": 2 * pivot - days.low,
            "r2": pivot + width,
            "r3": days.high + 2 * (pivot - days.low),
            "s1": 2 * pivot - days.high,
            "s2": pivot - width,
            "s3": days.low - 2 * (days.high - pivot),
        }
    )
    profiles = f.groupby(day)[["vwap", "volume", "atr"]].apply(_profile)
    return levels.join(profiles).where(days.bars >= 0.95 * 96)


def _profile(part: pd.DataFrame) -> pd.Series:
    atr = part.atr.iloc[-1]
    span = part.vwap.max() - part.vwap.min()
    width = max(0.0 if np.isnan(atr) else atr / 50, span / 4_095)
    bins = np.floor(part.vwap / width).astype("int64")
    volumes = part.volume.groupby(bins).sum()
    volumes = volumes.reindex(range(bins.min(), bins.max() + 1), fill_value=0.0)
    poc: int = int(str(volumes.idxmax()))
    low = high = poc
    covered, total = volumes[poc], volumes.sum()
    while covered < 0.7 * total and (low > volumes.index[0] or high < volumes.index[-1]):
        above, below = volumes.get(high + 1, -1.0), volumes.get(low - 1, -1.0)
        if above >= below:
            high, covered = high + 1, covered + above
        else:
            low, covered = low - 1, covered + below
    return pd.Series({n: (i + 0.5) * width for n, i in (("poc", poc), ("vah", high), ("val", low))})


def _support_and_resistance(f: pd.DataFrame, day: pd.Series) -> tuple[pd.Series, pd.Series]:
    parts = []
    for prices, sign in ((f.high, 1.0), (f.low, -1.0)):
        values = prices * sign
        before = values.shift().rolling(5).max()
        after = values[::-1].shift().rolling(5).max()[::-1]
        parts.append(prices[(before < values) & (after <= values)])
    swings = pd.concat(parts).sort_index(kind="stable")
    support, resistance = pd.Series(np.nan, f.index), pd.Series(np.nan, f.index)
    for rows in f.groupby(day).groups.values():
        begin = rows[0]
        atr = f.atr[begin - 1] if begin else np.nan
        known = swings[(swings.index > begin - SETTINGS.level_bars) & (swings.index < begin - 5)]
        if known.empty or np.isnan(atr):
            continue
        recency = pd.Series(1 - (begin - known.index) / SETTINGS.level_bars, known.index)
        levels = pd.DataFrame({"price": known.to_numpy(), "weight": recency.to_numpy()})
        levels = levels.sort_values("price", kind="stable")
        cluster = (levels.price.diff() > 0.25 * atr).cumsum()
        weighed = (levels.price * levels.weight).groupby(cluster).sum()
        strength = levels.weight.groupby(cluster).sum()
        level = (weighed / strength).to_numpy()
        close = f.close[rows].to_numpy()[:, None]
        for out, on_side in ((support, level < close), (resistance, level > close)):
            best = np.where(on_side, strength.to_numpy(), -np.inf).argmax(axis=1)
            out[rows] = np.where(on_side.any(axis=1), level[best], np.nan)
    return support, resistance


# --- both ---


def compare(raw: Columns) -> int:
    """Check that both sides give the same columns; returns how many."""
    mine, theirs = ours(raw), plain_pandas(raw)
    for name, values in mine.items():
        np.testing.assert_allclose(
            values, theirs[name].to_numpy(), rtol=1e-6, equal_nan=True, err_msg=name
        )
    return len(mine)


def timed(work: Callable[[Columns], Any], raw: Columns) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work(raw)
    return time.perf_counter() - begun


def main() -> None:
    given = arguments(__doc__).parse_args()
    raw = seeded_bars(int((SMOKE_YEARS if given.smoke else YEARS) * 365 * 96))
    columns = compare(raw)
    without = functools.partial(plain_pandas, with_levels=False)
    sides: tuple[Callable[[Columns], Any], ...] = (ours, plain_pandas, without)
    rounds = [[timed(side, raw) for side in sides] for _ in range(2 if given.smoke else 3)]
    mine, theirs, vectorised = (statistics.median(times) for times in zip(*rounds, strict=True))
    publish(
        {
            "benchmark": "curation",
            "bars": len(raw["close"]),
            "columns": columns,
            "ours_s": round(mine, 4),
            "pandas_s": round(theirs, 4),
            "pandas_without_levels_s": round(vectorised, 4),
            "ours_share_of_pandas": round(mine / theirs, 4),
            "ours_bars_per_s": round(len(raw["close"]) / mine),
            "runs_s": [[round(seconds, 4) for seconds in times] for times in rounds],
            "versions": versions(("numpy", "pandas")),
            "machine": machine(),
        },
        given,
    )


if __name__ == "__main__":
    main()
