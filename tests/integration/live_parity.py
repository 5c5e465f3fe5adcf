"""Runs the bot against the simulated exchange and compares what it stored with the replay's rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from config import Settings
from domain.features import FeatureRow
from feature_store import FeatureStore
from market_orchestrator.market_orchestrator import EnhancedMarketBot, replay
from simulator.faults import FaultPlan
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings

EXACTLY_ONCE = (
    *("window_start_ms", "window_end_ms", "complete", "missing_trades", "trade_count"),
    *("fill_count", "first_agg_id", "last_agg_id", "open", "high", "low", "close", "vwap"),
    *("volume", "quote_volume", "buy_volume", "sell_volume", "delta", "cvd", "net_flow_quote"),
    *("flow_imbalance", "whale_buy_volume", "whale_sell_volume", "whale_delta", "whale_count"),
)
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def rows_of(folder: Path, symbols: Sequence[str] = SYMBOLS) -> dict[tuple[str, int], FeatureRow]:
    """The highest revision of every stored window."""
    store = FeatureStore(folder)
    return {(r.symbol, r.window_start_ms): r for r in store.read_rows(list(symbols))}


def replayed(recording: Path, folder: Path) -> dict[tuple[str, int], FeatureRow]:
    """The truth: the recording's rows as the replay makes them."""
    settings = Settings(source=f"replay:{recording}", data_dir=folder, headless=True)
    assert asyncio.run(replay(settings, recording)) == 0
    return rows_of(folder)


def settings_for(exchange: SimulatedExchange, folder: Path, **given: object) -> Settings:
    """Settings of a bot on this exchange."""
    return Settings(
        data_dir=folder,
        headless=True,
        binance_ws_url=exchange.ws_url,
        binance_rest_url=exchange.rest_url,
        ws_backoff_cap=0.5,
        ws_max_reconnect_attempts=0,
        **given,
    )


async def run_live(
    recording: Path,
    folder: Path,
    *,
    until: dict[tuple[str, int], FeatureRow],
    faults: FaultPlan | str | None = None,
    speed: float = 40.0,
    redundancy: int = 1,
    market_ms: int | None = None,
    timeout_s: float = 60.0,
) -> SimulatedExchange:
    """Run the bot until its store agrees with ``until``, or the time is over."""
    exchange = SimulatedExchange(
        SimulatorSettings(recording=recording, speed=speed, faults=faults)
    )
    async with exchange:
        bot = EnhancedMarketBot(settings_for(exchange, folder, ws_redundancy=redundancy))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(bot.run())
            try:
                async with asyncio.timeout(timeout_s):
                    await settled(bot, folder, until)
            except TimeoutError:
                pass
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    return exchange


async def settled(
    bot: EnhancedMarketBot, folder: Path, until: dict[tuple[str, int], FeatureRow]
) -> None:
    """Wait until every wanted window is stored as wanted."""
    while True:
        await asyncio.sleep(0.5)
        parts = bot.parts
        if parts is None:
            continue
        rows = await asyncio.to_thread(parts.outputs.features.read_rows, list(SYMBOLS))
        found = {(r.symbol, r.window_start_ms): r for r in rows}
        if all(key in found and not difference(row, found[key]) for key, row in until.items()):
            return


def difference(wanted: FeatureRow, found: FeatureRow) -> list[str]:
    """Exactly-once columns in which two rows differ."""
    return [
        f"{name}: {getattr(wanted, name)} != {getattr(found, name)}"
        for name in EXACTLY_ONCE
        if getattr(wanted, name) != getattr(found, name)
    ]


def differences(
    wanted: dict[tuple[str, int], FeatureRow], found: dict[tuple[str, int], FeatureRow]
) -> list[str]:
    """Every window that is missing or differs, one line each."""
    lines = []
    for key, row in sorted(wanted.items()):
        if key not in found:
            lines.append(f"{key}: missing")
        elif difference(row, found[key]):
            lines.append(f"{key}: {'; '.join(difference(row, found[key]))}")
    return lines
