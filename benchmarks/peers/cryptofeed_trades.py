"""cryptofeed delivering trades to a callback; one run. Runs in .venv-bench, imports nothing of ours.

The feed's address check wants ``wss://``; the local server speaks plain ``ws://``, so the address is
put in after the check. Symbols are given, not asked for. Everything else is as its users run it:
``FeedHandler`` with its own uvloop, one ``async`` callback.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time

from cryptofeed import FeedHandler
from cryptofeed.connection import WebsocketEndpoint
from cryptofeed.defines import BINANCE_FUTURES, PERPETUAL, TRADES
from cryptofeed.exchanges import BinanceFutures
from cryptofeed.symbols import Symbols

SYMBOL = "BTC-USDT-PERP"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    count, seen, began, began_cpu = given.count, 0, 0.0, 0.0

    class LocalFutures(BinanceFutures):
        websocket_endpoints = (WebsocketEndpoint("wss://local", options={"compression": None}),)

        def connect(self):
            connections = super().connect()
            for connection, *_ in connections:
                connection.address = connection.address.replace("wss://local", given.url)
            return connections

    async def on_trade(_trade, _receipt_timestamp):
        nonlocal seen, began, began_cpu
        seen += 1
        if seen == 1:
            began, began_cpu = time.perf_counter(), time.process_time()
        elif seen == count:
            elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
            result = {
                "frames_per_s": (count - 1) / elapsed,
                "frames_per_cpu_s": (count - 1) / cpu,
                "frames": count,
                "versions": {"python": platform.python_version()}
                | {
                    n: importlib.metadata.version(n) for n in ("cryptofeed", "websockets", "uvloop")
                },
            }
            print(json.dumps(result), flush=True)
            os._exit(0)  # its own orderly end takes seconds

    Symbols.set(
        BINANCE_FUTURES,
        {SYMBOL: "BTCUSDT"},
        {"tick_size": {SYMBOL: "0.1"}, "instrument_type": {SYMBOL: PERPETUAL}},
    )
    handler = FeedHandler(config={"log": {"disabled": True}, "uvloop": True})
    feed = LocalFutures(symbols=[SYMBOL], channels=[TRADES], callbacks={TRADES: on_trade})
    handler.add_feed(feed)
    handler.run()


if __name__ == "__main__":
    main()
