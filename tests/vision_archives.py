"""Archives on disk, and what is true of them, for the tests of the history."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import hashlib
import zipfile
from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from binance_api.request_runner import RestSettings
from binance_api.vision import VisionClient
from domain.market import Market
from lake.historical_files import AGG_TRADE_SCHEMA, HistoryKind, read_month
from lake.month_build import ArchiveSource
from lake.paths import LakePaths
from simulator.faults import FaultPlan
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings
from simulator.trade_table import TradeTable
from simulator.vision_faults import VisionFault

HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
SYMBOL = "BTCUSDT"
SILENCE_S = 0.5


def at_ms(year: int, month: int, day: int, hour: int = 0) -> int:
    return calendar.timegm((year, month, day, hour, 0, 0)) * 1_000


def zipped(path: Path, lines: Iterable[str], *, member: str = "x.csv") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, "".join(f"{line}\n" for line in lines))
    return path


def source_of(path: Path, period: str) -> ArchiveSource:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ArchiveSource(path=path, period=period, url=f"https://x/{path.name}", sha256=sha256)


def table_of_trades(
    first: tuple[int, int, int] = (2024, 5, 1),
    end: tuple[int, int, int] = (2024, 8, 1),
    per_day: float = 80,
    seed: int = 3,
) -> TradeTable:
    return TradeTable.random(seed, (SYMBOL,), at_ms(*first), at_ms(*end), per_day=per_day)


def true_trades(table: TradeTable, month: str) -> pa.Table:
    """What a month's file must hold, from the trades themselves."""
    year, number = int(month[:4]), int(month[5:])
    following = at_ms(year + number // 12, number % 12 + 1, 1)
    rows = table.between(SYMBOL, at_ms(year, number, 1), following).rows

    def exact(name: str) -> list[float]:
        pairs = zip(rows[name].tolist(), rows[f"{name}_decimals"].tolist(), strict=True)
        return [float(Decimal(mantissa).scaleb(-decimals)) for mantissa, decimals in pairs]

    names = AGG_TRADE_SCHEMA.names
    columns = {n: exact(n) if n in ("price", "quantity") else rows[n].tolist() for n in names}
    return pa.table(columns, schema=AGG_TRADE_SCHEMA)


def stored(paths: LakePaths, month: str, kind: HistoryKind = "aggTrades", **wanted) -> pa.Table:
    return read_month(paths, SYMBOL, kind, month, **wanted)


@contextlib.asynccontextmanager
async def served(
    table: TradeTable,
    now_ms: int,
    faults: Iterable[VisionFault] = (),
    market: Market = Market.UM,
) -> AsyncIterator[tuple[SimulatedExchange, VisionClient]]:
    """The archive of a table at a time, and a client of it that is soon impatient."""
    settings = SimulatorSettings(
        market=market, archive=table, start_ms=now_ms, faults=FaultPlan(vision=tuple(faults))
    )
    async with SimulatedExchange(settings) as exchange:
        rest = RestSettings(
            market=market,
            base_url=exchange.vision_url,
            request_timeout_s=SILENCE_S,
            backoff_base_s=0.01,
        )
        async with VisionClient(rest) as client:
            yield exchange, client


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 150))


def shuffled_ids(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
