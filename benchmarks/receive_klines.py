"""Our REST client taking all klines of the server in pages, into columns; one run."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.kline_exchange import START_MS, STEP_MS
from binance_api.connector_history import History
from binance_api.kline_columns import KlineColumns, joined
from binance_api.rest import RestClient, RestSettings
from binance_api.weight_budget import WeightBudgetSettings
from domain.market import Market

NEVER_SPENT = 9_000_000


async def sequential(client: RestClient, count: int, limit: int) -> KlineColumns:
    """Page after page, as the peers do it."""
    pieces, start_ms = [], START_MS
    while start_ms < START_MS + STEP_MS * count:
        page = (await client.kline_columns("BTCUSDT", "1m", start_ms, None, limit)).value
        pieces.append(page)
        start_ms = int(page["open_time_ms"][-1]) + STEP_MS
    return joined(pieces)


async def concurrent(client: RestClient, count: int, limit: int) -> KlineColumns:
    """As ``BinanceConnector`` does it."""
    history = History(client, Market.UM, 6)
    history.page_bars = limit
    end_ms = START_MS + STEP_MS * count
    return await history.bars_between("BTCUSDT", "1m", START_MS, end_ms, end_ms)


async def measure(given: argparse.Namespace, folder: Path) -> dict:
    way = concurrent if given.concurrent else sequential
    settings = RestSettings(
        base_url=f"http://127.0.0.1:{given.port}",
        weight_limit=NEVER_SPENT,
        budget=WeightBudgetSettings(folder=folder),
    )
    async with RestClient(settings) as client:
        await way(client, min(given.count, 3 * given.limit), given.limit)
        began, began_cpu = time.perf_counter(), time.process_time()
        columns = await way(client, given.count, given.limit)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {
        "rows_per_s": len(columns["close"]) / elapsed,
        "rows_per_cpu_s": len(columns["close"]) / cpu,
        "rows": len(columns["close"]),
        "close_sum": float(columns["close"].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--concurrent", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(uvloop.run(measure(given, Path(folder)))))


if __name__ == "__main__":
    main()
