"""python-binance delivering aggTrade messages to its reader; one run. Runs in .venv-bench.

``futures_multiplex_socket`` with the stream host overridden, on uvloop, with orjson (which it uses
where installed). Its queue is made unbounded: at its default of 100 it ends with an overflow here.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import time

import uvloop
from binance import AsyncClient, BinanceSocketManager


async def receive(url: str, count: int) -> dict:
    client = AsyncClient()
    manager = BinanceSocketManager(client, max_queue_size=10**9)
    manager.FSTREAM_URL = f"{url}/"
    async with manager.futures_multiplex_socket(["btcusdt@aggTrade"]) as stream:
        first = await stream.recv()
        if "data" not in first:
            raise SystemExit(f"no trade: {first}")
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(count - 1):
            message = await stream.recv()
            if "data" not in message:
                raise SystemExit(f"no trade: {message}")
        elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        names = ("python-binance", "websockets", "uvloop", "orjson")
        result = {
            "frames_per_s": (count - 1) / elapsed,
            "frames_per_cpu_s": (count - 1) / cpu,
            "frames": count,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in names},
        }
        print(json.dumps(result), flush=True)
        os._exit(0)  # its own orderly end waits for its reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    uvloop.install()
    asyncio.run(receive(given.url, given.count))


if __name__ == "__main__":
    main()
