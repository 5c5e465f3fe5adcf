"""An exchange at some time, and a recording with holes, for the tests of repairs."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
from pathlib import Path

from binance_api.rest import RestClient, RestSettings
from binance_api.vision import VisionClient
from binance_api.weight_budget import WeightBudgetSettings
from collectors.repair import RecorderRepair, RepairSettings
from domain.events import GapState
from domain.market import Market
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.stream_files import stream_dates, stream_files, trade_table
from simulator.faults import FaultPlan
from simulator.server import SimulatedExchange, SimulatorSettings

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NOON_MS = calendar.timegm((2024, 7, 19, 12, 0, 0)) * 1_000
MIDNIGHT_MS = NOON_MS - 12 * HOUR_MS
SYMBOL = "BTCUSDT"
LOST, OPEN, REPAIRED, EXPIRED = (
    GapState.LOST,
    GapState.OPEN,
    GapState.REPAIRED,
    GapState.EXPIRED,
)
HOLE = (MIDNIGHT_MS + HOUR_MS, MIDNIGHT_MS + 3 * HOUR_MS)


class Scene:
    """An exchange at some time, a data folder, and repairs of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = LakePaths.of(folder / "data")
        self.ledger = GapLedger(self.paths.gaps, "recorder")
        self.now_s = 0.0  # monotonic
        self.exchange: SimulatedExchange
        self.rest: RestClient
        self.vision: VisionClient

    @contextlib.asynccontextmanager
    async def at(self, now_ms=NOON_MS, *faults, symbols=(SYMBOL, "ETHUSDT"), **options):
        """The exchange at this time; the same trades at any time."""
        simulated = SimulatorSettings(
            start_ms=now_ms,
            rate_multiplier=0.02,
            symbols=symbols,
            faults=FaultPlan(vision=faults),
            **options,
        )
        async with SimulatedExchange(simulated) as self.exchange:
            budget = WeightBudgetSettings(folder=self.folder)
            rest = RestSettings(
                base_url=self.exchange.rest_url, budget=budget, max_attempts=1, deadline_s=60.0
            )
            vision = RestSettings(base_url=self.exchange.vision_url, max_attempts=1)
            async with RestClient(rest) as self.rest, VisionClient(vision) as self.vision:
                yield self

    def trades(self, start_ms, end_ms, symbol=SYMBOL):
        return self.exchange.source.between(symbol, start_ms, end_ms).rows

    def lack(self, rows, symbol=SYMBOL, **fields):
        """Enter a hole: all of these trades but the first and last are missing."""
        ids, times = rows["agg_trade_id"].tolist(), rows["transact_time_ms"].tolist()
        values = {
            "cause": "lost connection",
            "at_ns": 1,
            "from_ms": times[0],
            "until_ms": times[-1],
            "repairable_until_ms": times[-1] + 48 * HOUR_MS,
        }
        self.ledger.found("trades", symbol, ids[1], ids[-2], **(values | fields))
        self.ledger.flush()
        return ids[1:-1]

    def repair(self, *, hook=lambda _step, _path: None, settings=None, **options):
        return RecorderRepair(
            self.paths,
            self.ledger,
            self.rest,
            self.vision,
            settings or RepairSettings(grace_s=0.0),
            market=Market.UM,
            market_ms=self.exchange.clock.now_ms,
            wall_ns=lambda: 2,
            monotonic=lambda: self.now_s,
            hook=hook,
            **options,
        )

    def restart(self):
        """What another process finds."""
        self.ledger = GapLedger(self.paths.gaps, "recorder")

    def states(self, symbol=SYMBOL):
        gaps = [gap for gap in self.ledger.all() if gap.symbol == symbol]
        return [(g.first_id, g.last_id, g.state, g.repaired_by) for g in gaps]

    def files(self):
        dates = stream_dates(self.paths, "trades")
        return [path for date in dates for path in stream_files(self.paths, "trades", date)]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 150))


def expected_rows(rows, source, symbol=SYMBOL):
    rows = rows.copy()
    rows["symbol_index"] = 0
    for name in ("event_time_ms", "receive_time_ns", "quantity_ex_rpi"):
        rows[name] = -1
    return trade_table(rows, [symbol], source).to_pylist()


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
