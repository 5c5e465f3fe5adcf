"""Microstructure kernels beside the same measures in pandas, and a day of windows to features.

A seeded day of one symbol: trades and snapshots of 20 levels. Both sides run in the same call, in turn,
and must agree; medians and ratios are printed with versions and machine. Both get columns that lie
together in memory, made outside the clock; the day is measured on rows of levels, as they are read.
``python -m benchmarks.bench_kernels [--json FILE] [--smoke]``
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import arguments, machine, publish, versions
from microstructure.book_shape import book_slopes, queue_imbalances
from microstructure.book_tape import BookTape
from microstructure.measures import FEATURE_NAMES, day_bins, day_measures, features_of
from microstructure.ofi import level_events
from microstructure.trade_cost import median_of, sweep_costs, sweeps_of, weighted_mean
from microstructure.trade_rows import prices_and_quantities
from microstructure.volatility import signature
from microstructure.vpin import volume_buckets, vpin
from tests.book_tapes import START_MS, tape_of, trades_of

WINDOW_MS = 5000
DAY = (864_000, 1_500_000)
SMOKE = (12_000, 20_000)
OFI_LEVELS = 10
MOST_WINDOWS = 2000  # pandas takes a covariance per window
STEPS = (1, 5, 10, 60, 300)  # seconds

type Sides = dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]


def book_frame(tape: BookTape) -> pd.DataFrame:
    """The levels as pandas users hold them: one column per side, level and value."""
    columns = {}
    for side, price, size in (
        ("bid", tape.bid_price, tape.bid_size),
        ("ask", tape.ask_price, tape.ask_size),
    ):
        for level in range(tape.levels):
            columns[f"{side}_price_{level}"] = price[:, level]
            columns[f"{side}_size_{level}"] = size[:, level]
    index = pd.to_datetime(tape.time_ms, unit="ms")
    return pd.DataFrame(columns, index=index).copy()


def pandas_ofi(book: pd.DataFrame, levels: int, window: str) -> np.ndarray:
    """Order flow of each level, summed per window."""
    flows = {}
    for level in range(levels):
        bid, bid_size = book[f"bid_price_{level}"], book[f"bid_size_{level}"]
        ask, ask_size = book[f"ask_price_{level}"], book[f"ask_size_{level}"]
        bids = bid_size.where(bid >= bid.shift(), 0) - bid_size.shift().where(bid <= bid.shift(), 0)
        asks = ask_size.where(ask <= ask.shift(), 0) - ask_size.shift().where(ask >= ask.shift(), 0)
        flows[level] = bids - asks
    return pd.DataFrame(flows).iloc[1:].resample(window).sum().to_numpy()


def our_ofi(tape: BookTape, levels: int) -> np.ndarray:
    """The same from a tape."""
    events = level_events(tape, levels)[1:]
    window = (tape.time_ms[1:] - START_MS) // WINDOW_MS
    columns = [np.bincount(window, weights=events[:, level]) for level in range(levels)]
    return np.stack(columns, axis=1)


def pandas_imbalance(book: pd.DataFrame, levels: int) -> np.ndarray:
    bid = book[[f"bid_size_{level}" for level in range(levels)]].sum(axis=1)
    ask = book[[f"ask_size_{level}" for level in range(levels)]].sum(axis=1)
    return ((bid - ask) / (bid + ask)).to_numpy()


def pandas_slope(book: pd.DataFrame, levels: int) -> np.ndarray:
    mid = (book["bid_price_0"] + book["ask_price_0"]) / 2
    names = range(levels)
    prices = book[[f"bid_price_{level}" for level in names]]
    depth = book[[f"bid_size_{level}" for level in names]].cumsum(axis=1)
    distance = prices.rsub(mid, axis=0).abs().div(mid, axis=0) * 1e4
    distance.columns = depth.columns
    return ((distance * depth).sum(axis=1) / (distance**2).sum(axis=1)).to_numpy()


def pandas_vpin(trades: pd.DataFrame, volume: float, count: int) -> np.ndarray:
    """Buckets by a loop over rows, as published notebooks have it: trades are split over buckets."""
    buckets: list[float] = []
    filled = bought = 0.0
    rows: Iterable[Any] = trades.itertuples(index=False)
    for row in rows:
        quantity = row.quantity
        while quantity >= volume - filled:
            room = volume - filled
            bought += room if row.is_buy else 0.0
            buckets.append(abs(2.0 * bought - volume))
            quantity -= room
            filled = bought = 0.0
        filled += quantity
        bought += quantity if row.is_buy else 0.0
    return pd.Series(buckets).rolling(count).mean().dropna().to_numpy() / volume


def pandas_signature(mid: pd.Series) -> np.ndarray:
    """Mean realized variance over all offsets of each step."""
    logs, values = np.log(mid), []
    count = len(logs) - 1
    for step in STEPS:
        squares = [logs.iloc[offset::step].diff().dropna() ** 2 for offset in range(step)]
        values.append(pd.concat(squares).mean() * count / step)
    return np.array(values)


def pandas_effective_spread(trades: pd.DataFrame, book: pd.DataFrame) -> np.ndarray:
    """Median and volume-weighted cost of sweeps against the quote before, without a touch proxy."""
    start = (trades["time"].diff() != pd.Timedelta(0)) | trades["is_buy"].diff().fillna(value=True)
    paid = trades.assign(notional=trades["price"] * trades["quantity"])
    sweeps = paid.groupby(start.cumsum()).agg(
        time=("time", "first"),
        is_buy=("is_buy", "first"),
        quantity=("quantity", "sum"),
        notional=("notional", "sum"),
    )
    mids = ((book["bid_price_0"] + book["ask_price_0"]) / 2).rename("mid").rename_axis("time")
    matched = pd.merge_asof(sweeps, mids.reset_index(), on="time", allow_exact_matches=False)
    price = matched["notional"] / matched["quantity"]
    cost = 2e4 * (price - matched["mid"]) / matched["mid"]
    cost = cost.where(matched["is_buy"], -cost)
    weighted = (cost * matched["quantity"]).sum() / matched["quantity"][cost.notna()].sum()
    return np.array([len(matched), cost.median(), weighted])


def our_effective_spread(trades: np.ndarray, tape: BookTape) -> np.ndarray:
    """Costs with touch proxy, realized spread and impact; of the shared part the count is compared."""
    sweeps = sweeps_of(trades)
    costs = sweep_costs(sweeps, tape, WINDOW_MS).effective_bps
    return np.array([len(costs), median_of(costs), weighted_mean(costs, sweeps.quantity)])


def pandas_integrated(flows: pd.DataFrame) -> np.ndarray:
    """First components of the 60 windows before each, a covariance at a time."""
    values = np.full(len(flows), np.nan)
    for place in range(60, len(flows)):
        covariance = flows.iloc[place - 60 : place].cov()
        first = np.linalg.eigh(covariance.to_numpy())[1][:, -1]
        first = first if first.sum() >= 0.0 else -first
        values[place] = (flows.iloc[place] * first).sum() / np.abs(first).sum()
    return values


def our_integrated(bins: np.ndarray) -> np.ndarray:
    """The same, together with all the other features."""
    column = FEATURE_NAMES.index("integrated_ofi")
    return features_of(bins, WINDOW_MS)[:, column].astype(np.float64)


def sides_of(tape: BookTape, trades: np.ndarray) -> Sides:
    """Measure → (ours, pandas), both without arguments."""
    book = book_frame(tape)
    sides = (tape.bid_price, tape.bid_size, tape.ask_price, tape.ask_size)
    bid, bid_size, ask, ask_size = map(np.asfortranarray, sides)
    tape = BookTape.of_arrays(tape.time_ms, bid, bid_size, ask, ask_size)
    price, quantity = prices_and_quantities(trades)
    is_buy = ~trades["is_buyer_maker"]
    frame = pd.DataFrame({"price": price, "quantity": quantity, "is_buy": is_buy})
    frame["time"] = pd.to_datetime(trades["transact_time_ms"], unit="ms")
    span_ms = int(tape.time_ms[-1]) - START_MS
    starts = START_MS + WINDOW_MS * np.arange(min(span_ms // WINDOW_MS, MOST_WINDOWS))
    bins = day_bins(trades, tape, starts, WINDOW_MS)
    flows = pd.DataFrame(bins["mlofi"] / (bins["depth"] / bins["depth_cells"])[:, None])
    volume = float(quantity.sum()) / 500.5
    seconds = tape.mid_price[::10].copy()
    mid = pd.Series(seconds)

    def slopes() -> np.ndarray:
        return book_slopes(tape.bid_price, tape.bid_size, tape.mid_price)

    def signatures() -> np.ndarray:
        return np.array(signature(np.log(seconds), STEPS), dtype=np.float64)

    def buckets() -> np.ndarray:
        return vpin(volume_buckets(quantity, is_buy, volume)[0])

    window = f"{WINDOW_MS}ms"
    return {
        "OFI, level 1": (lambda: our_ofi(tape, 1), lambda: pandas_ofi(book, 1, window)),
        "OFI, 10 levels": (
            lambda: our_ofi(tape, OFI_LEVELS),
            lambda: pandas_ofi(book, OFI_LEVELS, window),
        ),
        "queue imbalance, 10 levels": (
            lambda: queue_imbalances(tape.bid_size, tape.ask_size, 10),
            lambda: pandas_imbalance(book, 10),
        ),
        "book slope, 20 levels": (slopes, lambda: pandas_slope(book, 20)),
        "VPIN": (buckets, lambda: pandas_vpin(frame, volume, 50)),
        "sweeps and effective spread": (
            lambda: our_effective_spread(trades, tape),
            lambda: pandas_effective_spread(frame, book),
        ),
        f"integrated OFI, {len(bins)} windows (ours: all features)": (
            lambda: our_integrated(bins),
            lambda: pandas_integrated(flows),
        ),
        "signature plot": (signatures, lambda: pandas_signature(mid)),
    }


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def kernels(sides: Sides, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of both sides in turn."""
    found = {}
    for name, (ours, pandas) in sides.items():
        pairs = []
        for _ in range(rounds):
            (mine, left), (theirs, right) = timed(ours), timed(pandas)
            if name.startswith("sweeps"):  # the costs differ by the touch proxy
                left, right = left[:1], right[:1]
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
            pairs.append((mine, theirs))
        mine = statistics.median(pair[0] for pair in pairs)
        theirs = statistics.median(pair[1] for pair in pairs)
        found[name] = {
            "ms": round(mine * 1e3, 2),
            "pandas_ms": round(theirs * 1e3, 2),
            "ratio": round(theirs / mine, 1),
        }
    return found


def day(tape: BookTape, trades: np.ndarray, snapshots: int, rounds: int) -> dict[str, Any]:
    """Seconds from trades and book to bins, features and further measures."""
    starts = START_MS + WINDOW_MS * np.arange(snapshots * 100 // WINDOW_MS)
    steps: dict[str, list[float]] = {"bins": [], "features": [], "measures": []}
    for _ in range(rounds):
        seconds, bins = timed(lambda: day_bins(trades, tape, starts, WINDOW_MS))
        steps["bins"].append(seconds)
        steps["features"].append(timed(partial(features_of, bins, WINDOW_MS))[0])
        steps["measures"].append(timed(lambda: day_measures(trades, tape, starts, WINDOW_MS))[0])
    return {
        "trades": len(trades),
        "snapshots": len(tape),
        "features": len(FEATURE_NAMES),
        **{f"{name}_s": round(statistics.median(each), 2) for name, each in steps.items()},
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    given = arguments(__doc__).parse_args()
    snapshots, count = SMOKE if given.smoke else DAY
    tape, trades = tape_of(1, snapshots), trades_of(2, count, snapshots * 100)
    rounds = 1 if given.smoke else 3
    whole = day(tape, trades, snapshots, rounds)
    result = {
        "benchmark": "kernels",
        "rounds": rounds,
        "day": whole,
        "kernels": kernels(sides_of(tape, trades), rounds),
        "versions": versions(("numpy", "pandas")),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
