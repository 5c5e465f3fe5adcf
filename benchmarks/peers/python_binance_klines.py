"""python-binance taking all klines of a server in pages, into arrays of exact types. Runs in .venv-bench."""

import argparse
import importlib.metadata
import json
import platform
import time

import numpy as np
from binance import Client

NAMES = (
    "open_time_ms", "open", "high", "low", "close", "volume", "close_time_ms", "quote_volume",
    "trade_count", "taker_buy_volume", "taker_buy_quote_volume",
)  # fmt: skip
INTEGERS = {"open_time_ms", "close_time_ms", "trade_count"}


def take(client: Client, start_ms: int, count: int, limit: int) -> dict:
    rows, since = [], start_ms
    while since < start_ms + 60_000 * count:
        page = client.futures_klines(symbol="BTCUSDT", interval="1m", startTime=since, limit=limit)
        rows += page
        since = page[-1][0] + 60_000
    return {
        name: np.array(values, np.int64 if name in INTEGERS else np.float64)
        for name, values in zip(NAMES, zip(*rows, strict=True), strict=False)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "count", "limit", "start"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    client = Client(ping=False)
    client.FUTURES_URL = f"http://127.0.0.1:{given.port}/fapi"
    take(client, given.start, min(given.count, 3 * given.limit), given.limit)
    began, began_cpu = time.perf_counter(), time.process_time()
    columns = take(client, given.start, given.count, given.limit)
    elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    names = ("python-binance", "requests", "orjson")
    result = {
        "rows_per_s": len(columns["close"]) / elapsed,
        "rows_per_cpu_s": len(columns["close"]) / cpu,
        "rows": len(columns["close"]),
        "close_sum": float(columns["close"].sum()),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in names},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
