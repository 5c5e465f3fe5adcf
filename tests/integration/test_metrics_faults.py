"""What ``/metrics`` says of a run with faults is what was injected."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from monitoring.http_server import HttpSettings
from monitoring.serving import Monitoring, MonitoringSettings, Sources, frames_received
from simulator.faults import Fault, FaultKind, FaultPlan
from simulator.settings import SimulatorSettings
from tests.integration.conftest import MarketOf
from tests.integration.live_parity import SYMBOLS, LiveRun, running, serving
from tests.monitoring_scene import until

LOST, MISSING = 5, 7
# A second and more lies between what ends a socket and what needs it again.
PLAN = FaultPlan(
    faults=(
        Fault(at_ms=6_000, kind=FaultKind.DISCONNECT, mode="1001", route="trades"),
        Fault(at_ms=16_000, kind=FaultKind.DISCONNECT, mode="1001", route="depth"),
        Fault(at_ms=24_000, kind=FaultKind.REST_LOST_TRADES, symbol="BTCUSDT", count=LOST),
        Fault(at_ms=32_000, kind=FaultKind.DISCONNECT, mode="abort", route="trades"),
        Fault(
            at_ms=52_000, kind=FaultKind.MISSING, route="trades", symbol="ETHUSDT", count=MISSING
        ),
        Fault(at_ms=60_000, kind=FaultKind.CORRUPTED, mode="html", route="depth", count=3),
    )
)

type Samples = dict[str, dict[tuple[str, ...], float]]


def samples_of(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix("orderflow_"), {})[labels] = sample.value
    return found


async def scraped(run: LiveRun, last_ms: int) -> Samples:
    """The metrics once every fault is behind and every hole settled."""
    settings = MonitoringSettings(http=HttpSettings(port=0))
    sources = Sources(read=run.bot.read, progress=frames_received, bus=run.bot.bus)
    monitoring = Monitoring(settings, sources)
    task = asyncio.ensure_future(monitoring.run())

    def is_settled(run: LiveRun) -> bool:
        rows = run.rows()
        has_all = all((symbol, last_ms) in rows for symbol in SYMBOLS)
        return has_all and not run.parts.storage._ledger.open_gaps(kind="trades")

    try:
        await until(lambda: monitoring.server is not None and monitoring.server.url)
        await run.until(is_settled)
        assert monitoring.server is not None
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{monitoring.server.url}/metrics") as reply,
        ):
            return samples_of(await reply.text())
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_metrics_agree_with_the_faults(market_of: MarketOf, data_dir: Path) -> None:
    market = market_of("synthetic")

    async def go() -> Samples:
        simulated = SimulatorSettings(recording=market.recording, speed=16.0, faults=PLAN)
        async with serving(simulated) as exchange, running(exchange, data_dir) as run:
            return await scraped(run, max(start_ms for _, start_ms in market.truth))

    found = asyncio.run(go())
    ended = found["feed_disconnects_total"]
    by_route = {
        r: sum(n for labels, n in ended.items() if r in labels) for r in ("trades", "depth")
    }
    assert by_route == {"trades": 2, "depth": 1}
    assert found["lost_trade_ids_total"][()] == LOST
    assert found["missing_trade_ids"][()] == 0
    assert found["repaired_trade_ids_total"][()] >= MISSING  # and those of the reconnects
    assert found["gaps"][("lost",)] >= 1
    assert found["gaps"][("open",)] == 0
    assert found["frames_rejected_total"][()] == 3
    assert found["rest_replies_total"][("/fapi/v1/aggTrades", "200")] >= 1
    closed = sum(found["window_events_total"].values())
    assert closed == found["events_published_total"][("window",)]
    assert found["windows_incomplete_total"][()] >= 1
    assert found["connection_events_total"][("trades", "disconnected")] >= 2
