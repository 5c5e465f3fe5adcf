"""Runs the bot against the simulated exchange, and compares what it stored with the replay's rows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from config import Settings
from domain.events import ConnectionEvent, GapState, Topic
from domain.features import FeatureRow
from event_bus import DropOldest
from feature_store import FeatureStore
from lake.gap_ledger import Gap, read_gaps
from market_orchestrator.market_orchestrator import EnhancedMarketBot, LiveParts, replay
from simulator.faults import Fault
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings

EXACTLY_ONCE = (
    *("window_start_ms", "window_end_ms", "complete", "missing_trades", "trade_count"),
    *("fill_count", "first_agg_id", "last_agg_id", "open", "high", "low", "close", "vwap"),
    *("volume", "quote_volume", "buy_volume", "sell_volume", "delta", "cvd", "net_flow_quote"),
    *("flow_imbalance", "whale_buy_volume", "whale_sell_volume", "whale_delta", "whale_count"),
)
SYMBOLS = ("BTCUSDT", "ETHUSDT")
UNLIMITED_WEIGHT = 1_000_000  # the budget is of wall minutes, in which a fast market asks a lot
PATIENCE_S = 120.0  # costs nothing while tests pass; a busy machine may be slow
POLL_S = 0.1

type Rows = dict[tuple[str, int], FeatureRow]


def rows_of(folder: Path, symbols: Sequence[str] = SYMBOLS) -> Rows:
    """The highest revision of every stored window."""
    return keyed(FeatureStore(folder).read_rows(list(symbols)))


def keyed(rows: Sequence[FeatureRow]) -> Rows:
    return {(row.symbol, row.window_start_ms): row for row in rows}


def replayed(
    recording: Path, folder: Path, symbols: Sequence[str] = SYMBOLS, **given: object
) -> Rows:
    """The truth: the recording's rows as the replay makes them."""
    settings = Settings(source=f"replay:{recording}", data_dir=folder, headless=True, **given)
    assert asyncio.run(replay(settings, recording)) == 0
    return rows_of(folder, symbols)


class LiveRun:
    """A bot on a simulated exchange, while both run."""

    def __init__(
        self,
        exchange: SimulatedExchange,
        bot: EnhancedMarketBot,
        folder: Path,
        task: asyncio.Future[int],
    ) -> None:
        self.exchange = exchange
        self.bot = bot
        self.folder = folder
        self.task = task
        self.symbols = list(bot.settings.symbols)
        self._connections = bot.bus.subscribe(
            [Topic.CONNECTION], policy=DropOldest(100_000), name="test"
        )
        self._connection_events: list[ConnectionEvent] = []

    @property
    def connection_events(self) -> list[ConnectionEvent]:
        """Every state change of a socket so far."""
        for envelope in self._connections.drain_nowait():
            assert isinstance(envelope.payload, ConnectionEvent)
            self._connection_events.append(envelope.payload)
        return self._connection_events

    @property
    def parts(self) -> LiveParts:
        assert self.bot.parts is not None
        return self.bot.parts

    def rows(self) -> Rows:
        """Highest revisions, those not on disk yet included; blocks on the disk."""
        return keyed(self.parts.outputs.features.read_rows(self.symbols))

    async def until(
        self, condition: Callable[[LiveRun], bool], timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait for a condition (evaluated in a worker thread); fails when it stays untrue."""
        async with asyncio.timeout(timeout_s):
            wait_s = POLL_S
            while True:
                await asyncio.sleep(wait_s)
                assert not self.task.done(), f"the bot ended: {self.task}"
                begun = time.perf_counter()
                if self.bot.parts is not None and await asyncio.to_thread(condition, self):
                    return
                wait_s = max(POLL_S, 4 * (time.perf_counter() - begun))  # leave it to the bot

    async def until_equal(self, wanted: Rows, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the store agrees with ``wanted`` and no hole is open; else say what is amiss."""

        def amiss(run: LiveRun) -> list[object]:
            open_gaps = run.parts.storage._ledger.open_gaps(kind="trades")
            return [*open_gaps, *differences(wanted, run.rows())]

        try:
            await self.until(lambda run: not amiss(run), timeout_s)
        except TimeoutError:
            left = amiss(self)
            assert not left, "\n".join(map(str, left[:20]))


def settings_for(exchange: SimulatedExchange, folder: Path, **given: object) -> Settings:
    """Settings of a bot on this exchange."""
    values: dict[str, object] = {
        "data_dir": folder,
        "headless": True,
        "binance_ws_url": exchange.ws_url,
        "binance_rest_url": exchange.rest_url,
        "ws_backoff_cap": 0.5,
        "ws_max_reconnect_attempts": 0,
        "binance_rate_limit_weight": UNLIMITED_WEIGHT,
        "feature_flush_seconds": 1.0,
    }
    return Settings(**{**values, **given})


@contextlib.asynccontextmanager
async def serving(settings: SimulatorSettings) -> AsyncIterator[SimulatedExchange]:
    """A simulated exchange without a weight limit."""
    async with SimulatedExchange(_unlimited(settings)) as exchange:
        yield exchange


def _unlimited(settings: SimulatorSettings) -> SimulatorSettings:
    names = settings.__struct_fields__
    values = {name: getattr(settings, name) for name in names}
    return SimulatorSettings(**{**values, "weight_limit": UNLIMITED_WEIGHT})


@contextlib.asynccontextmanager
async def running(
    exchange: SimulatedExchange, folder: Path, **given: object
) -> AsyncIterator[LiveRun]:
    """A bot on this exchange; stopped as a signal stops it, at the end of the block."""
    bot = EnhancedMarketBot(settings_for(exchange, folder, **given))
    task = asyncio.ensure_future(bot.run())
    try:
        yield LiveRun(exchange, bot, folder, task)
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.done(), "the bot did not stop"
        if not task.cancelled():
            task.result()  # raises what ended the bot


async def run_live(
    recording: Path,
    folder: Path,
    *,
    until: Rows,
    faults: object = None,
    speed: float = 40.0,
    timeout_s: float = PATIENCE_S,
    **given: object,
) -> SimulatedExchange:
    """Run the bot until its store agrees with ``until``, or the time is over."""
    simulated = SimulatorSettings(recording=recording, speed=speed, faults=faults)  # type: ignore[arg-type]
    async with serving(simulated) as exchange, running(exchange, folder, **given) as run:
        await run.until_equal(until, timeout_s)
    return exchange


# --- what must hold afterwards ------------------------------------------------------------


def difference(wanted: FeatureRow, found: FeatureRow) -> list[str]:
    """Exactly-once columns in which two rows differ."""
    return [
        f"{name}: {getattr(wanted, name)} != {getattr(found, name)}"
        for name in EXACTLY_ONCE
        if getattr(wanted, name) != getattr(found, name)
    ]


def differences(wanted: Rows, found: Rows) -> list[str]:
    """Every window that is missing, differs, or lies where there should be none; one line each."""
    lines = []
    for key, row in sorted(wanted.items()):
        if key not in found:
            lines.append(f"{key}: missing")
        elif difference(row, found[key]):
            lines.append(f"{key}: {'; '.join(difference(row, found[key]))}")
    last_ms = max(start_ms for _, start_ms in wanted)
    extra = [key for key in sorted(found) if key not in wanted and key[1] <= last_ms]
    return lines + [f"{key}: not wanted" for key in extra]


def check_parity(folder: Path, truth: Rows) -> None:
    """The store equals the truth, holds every revision once, and no hole was left open."""
    unlike = differences(truth, rows_of(folder))
    assert not unlike, "\n".join(unlike[:20])
    repeated = repeated_revisions(folder)
    assert not repeated, repeated
    left = [gap for gap in trade_gaps(folder) if gap.state is not GapState.REPAIRED]
    assert not left, left


def repeated_revisions(folder: Path) -> list[tuple[object, ...]]:
    """Windows stored more than once with the same revision."""
    names = ("symbol", "window_start_ms", "revision")
    table = FeatureStore(folder).read(columns=names, latest_only=False)
    keys = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    return [key for key, count in Counter(keys).items() if count > 1]


def trade_gaps(folder: Path) -> list[Gap]:
    """The ledger's entries about trades."""
    return [gap for gap in read_gaps(folder / "gaps") if gap.kind == "trades"]


def describe(faults: Sequence[Fault]) -> str:
    """A plan in one line, for the message of a failed test."""
    return "; ".join(f"{f.at_ms} {f.kind.value} {f.mode or ''} {f.route or ''}" for f in faults)


def by_symbol(rows: Mapping[tuple[str, int], FeatureRow], symbol: str) -> list[FeatureRow]:
    """One symbol's rows in order of time."""
    return [row for key, row in sorted(rows.items()) if key[0] == symbol]
