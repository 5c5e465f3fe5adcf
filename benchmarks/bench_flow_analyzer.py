"""Cost of analysing windows: ours beside a plain loop over ``Decimal`` trades (sums alone).

Seeded trades, three sizes a user has: one busy symbol, 500 symbols at one boundary, one huge window.
All sides run in the same call, in turn; medians and ratios are printed with versions and machine.
``python -m benchmarks.bench_flow_analyzer [--json FILE] [--smoke]``
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np

from benchmarks.report import arguments, machine, publish, versions
from domain.flow import Origin, WindowBatch
from domain.market import TRADE_DTYPE
from flow_analyzer import TradeFlowAnalyzer, measure

DURATION_MS = 5000
SIZES = {
    "1 symbol x 300": (1, 300),
    "500 symbols x 50": (500, 50),
    "1 symbol x 100,000": (1, 100_000),
}
SMOKE = {"1 symbol x 300": (1, 300), "20 symbols x 50": (20, 50)}


def batch(rng: np.random.Generator, symbols: int, trades: int, number: int) -> WindowBatch:
    """Windows of a BTC-like perpetual: two price decimals, three of quantity, ties in time."""
    count = symbols * trades
    rows = np.zeros(count, TRADE_DTYPE)
    times = np.sort(rng.integers(0, DURATION_MS, (symbols, trades)), axis=1).reshape(-1)
    rows["symbol_index"] = np.repeat(np.arange(symbols), trades)
    rows["is_buyer_maker"] = rng.random(count) < 0.5
    rows["price_decimals"], rows["quantity_decimals"] = 2, 3
    rows["agg_trade_id"] = np.tile(np.arange(trades) + number * trades, symbols)
    rows["price"] = 6_000_000 + rng.integers(-500, 500, count)
    rows["quantity"] = np.maximum(rng.lognormal(3, 2, count), 1).astype(np.int64)
    rows["quantity_ex_rpi"] = rows["quantity"]
    rows["first_trade_id"] = 2 * rows["agg_trade_id"]
    rows["last_trade_id"] = rows["first_trade_id"] + 1
    rows["transact_time_ms"] = number * DURATION_MS + times // 20 * 20
    return WindowBatch(
        start_ms=number * DURATION_MS,
        end_ms=(number + 1) * DURATION_MS,
        symbol_index=list(range(symbols)),
        offsets=np.arange(symbols + 1) * trades,
        rows=rows,
        complete=[True] * symbols,
        missing_trades=[0] * symbols,
        origin=Origin.LIVE,
    )


def plain_trades(windows: WindowBatch) -> list[list[tuple[Decimal, Decimal, bool]]]:
    """The same trades as a loop would hold them; made outside the clock."""
    names = ("price", "price_decimals", "quantity", "quantity_decimals", "is_buyer_maker")
    columns = zip(*(windows.rows[name].tolist() for name in names), strict=True)
    trades = [(Decimal(p).scaleb(-pd), Decimal(q).scaleb(-qd), m) for p, pd, q, qd, m in columns]
    bounds = windows.offsets.tolist()
    return [trades[a:b] for a, b in itertools.pairwise(bounds)]


def decimal_loop(windows: list[list[tuple[Decimal, Decimal, bool]]]) -> list[Decimal]:
    """Volume, quote volume, delta, net flow, prices and whales of each window, one trade at a time."""
    with localcontext(prec=50):
        return [_decimal_sums(window) for window in windows]


def _decimal_sums(window: list[tuple[Decimal, Decimal, bool]]) -> Decimal:
    volume = quote = delta = net_flow = whales = Decimal(0)
    high = low = window[0][0]
    for price, quantity, is_sell in window:
        notional = price * quantity
        volume += quantity
        quote += notional
        delta += -quantity if is_sell else quantity
        net_flow += -notional if is_sell else notional
        whales += quantity if notional >= 100_000 else 0
        high, low = max(high, price), min(low, price)
    return delta


def rounds_of(symbols: int, trades: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; the analyzer has the rounds before in its history."""
    rng = np.random.default_rng(7)
    analyzer = TradeFlowAnalyzer([f"S{number}" for number in range(symbols)])
    history = max(rounds, 12)
    seconds: dict[str, list[float]] = {"analyze": [], "measure": [], "Decimal loop": []}
    for number in range(history + rounds):
        windows = batch(rng, symbols, trades, number)
        if number < history and trades * symbols < 100_000:
            analyzer.analyze(windows)
            continue
        plain = plain_trades(windows)
        deltas = [row.delta for row in _timed(analyzer.analyze, windows, seconds["analyze"])]
        _timed(measure, windows, seconds["measure"])
        if _timed(decimal_loop, plain, seconds["Decimal loop"]) != deltas:
            raise RuntimeError("the sides do not agree")
    return seconds


def _timed[A, R](function: Callable[[A], R], argument: A, seconds: list[float]) -> R:
    begun = time.perf_counter()
    result = function(argument)
    seconds.append(time.perf_counter() - begun)
    return result


def main() -> None:
    given = arguments(__doc__).parse_args()
    rounds = 2 if given.smoke else 30
    sizes: dict[str, dict[str, float]] = {}
    for name, (symbols, trades) in (SMOKE if given.smoke else SIZES).items():
        timings = rounds_of(symbols, trades, rounds)
        medians = {side: statistics.median(values) for side, values in timings.items()}
        sizes[name] = {
            **{f"{side}_us": round(median * 1e6, 1) for side, median in medians.items()},
            "analyze_ns_per_trade": round(medians["analyze"] / (symbols * trades) * 1e9, 1),
            "ratio_to_decimal_loop": round(medians["Decimal loop"] / medians["analyze"], 2),
        }
    result = {
        "benchmark": "flow_analyzer",
        "rounds": rounds,
        "sizes": sizes,
        "versions": versions(("numpy", "msgspec")),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
