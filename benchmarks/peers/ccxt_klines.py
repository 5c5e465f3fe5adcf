"""ccxt taking all klines of a server in pages, into arrays of exact types. Runs in .venv-bench."""

import argparse
import importlib.metadata
import json
import platform
import time

import ccxt
import numpy as np

MARKET = {
    "id": "BTCUSDT", "symbol": "BTC/USDT:USDT", "base": "BTC", "quote": "USDT", "settle": "USDT",
    "type": "swap", "spot": False, "swap": True, "future": False, "option": False, "contract": True,
    "linear": True, "inverse": False, "active": True, "contractSize": 1,
    "precision": {"price": 0.1, "amount": 0.001}, "limits": {}, "info": {},
}  # fmt: skip


def take(exchange: ccxt.Exchange, start_ms: int, count: int, limit: int) -> dict:
    rows, since = [], start_ms
    while since < start_ms + 60_000 * count:
        page = exchange.fetch_ohlcv("BTC/USDT:USDT", "1m", since, limit)
        rows += page
        since = page[-1][0] + 60_000
    table = np.array(rows, np.float64)
    names = ("open", "high", "low", "close", "volume")
    return {
        "open_time_ms": table[:, 0].astype(np.int64),
        **{name: table[:, i] for i, name in enumerate(names, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "count", "limit", "start"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    exchange = ccxt.binanceusdm({"enableRateLimit": False})
    exchange.urls["api"]["fapiPublic"] = f"http://127.0.0.1:{given.port}/fapi/v1"
    exchange.set_markets([MARKET])
    take(exchange, given.start, min(given.count, 3 * given.limit), given.limit)
    began, began_cpu = time.perf_counter(), time.process_time()
    columns = take(exchange, given.start, given.count, given.limit)
    elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    result = {
        "rows_per_s": len(columns["close"]) / elapsed,
        "rows_per_cpu_s": len(columns["close"]) / cpu,
        "rows": len(columns["close"]),
        "close_sum": float(columns["close"].sum()),
        "versions": {
            "python": platform.python_version(),
            "ccxt": importlib.metadata.version("ccxt"),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
