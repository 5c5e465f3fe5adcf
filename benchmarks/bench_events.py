"""What 50 clients of /events cost the bot: processor time and loop delay, 5 of them stalled.

A process publishes what ten symbols publish (a window, a feature row and a signal each, one burst a
second: five times the usual rate) and serves /events; the clients are a process of their own. In turn
without and with clients; the difference is what they cost.
``python -m benchmarks.bench_events [--json FILE] [--smoke]``
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import aiohttp

from benchmarks.report import arguments, cores, machine, process, publish, versions
from config import Settings
from domain.events import Topic
from event_bus import DropOldest, Envelope, EventBus
from market_orchestrator.market_orchestrator import EnhancedMarketBot
from monitoring.http_server import HttpSettings
from monitoring.logging import configure_logging
from monitoring.serving import Monitoring, MonitoringSettings, Sources, frames_received

CLIENTS, STALLED, SYMBOLS = 50, 5, 10
_DEMO_S = 6.0
_PATIENCE_S = 100.0


async def samples(folder: Path) -> list[Envelope]:
    """One window, feature row and signal as a demo publishes them."""
    bot = EnhancedMarketBot(
        Settings(source="demo", data_dir=folder, window_duration=1, http_port="off")
    )
    found: dict[Topic, Envelope] = {}
    topics = (Topic.WINDOW, Topic.FEATURES, Topic.SIGNAL)
    with bot.bus.subscribe(topics, policy=DropOldest(10_000), name="bench") as subscription:
        running = asyncio.ensure_future(bot.run())
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.sleep(_DEMO_S)
            while len(found) < len(topics) and not running.done():
                await asyncio.sleep(0.05)
                found |= {event.topic: event for event in subscription.drain_nowait()}
        running.cancel()
        await asyncio.wait({running})
    return [found[topic] for topic in topics]


async def serve(seconds: float, clients: int) -> None:
    """The bot's side: prints its address, then what it took."""
    with TemporaryDirectory() as folder, configure_logging("ERROR"):
        payloads = await samples(Path(folder) / "data")
        bus = EventBus()
        settings = MonitoringSettings(
            http=HttpSettings(port=0), events_folder=Path(folder), events_keep=2_000
        )
        monitoring = Monitoring(settings, Sources(read=dict, progress=frames_received, bus=bus))
        task = asyncio.ensure_future(monitoring.run())
        while monitoring.server is None or monitoring.server.url is None:
            await asyncio.sleep(0.01)
        print(json.dumps({"url": monitoring.server.url}), flush=True)
        while monitoring.read()["socket.clients"] != clients:
            await asyncio.sleep(0.05)
        begun, used = time.monotonic(), _processor_s()
        worst, events = await _publish(bus, payloads, seconds)
        share = (_processor_s() - used) / (time.monotonic() - begun)
        values = monitoring.read()
        print(
            json.dumps(
                {
                    "core_pct": round(100 * share, 2),
                    "worst_loop_delay_ms": round(worst * 1_000, 1),
                    "events": events,
                    "dropped": bus.statistics()["dropped_count"],
                    "sent": values["socket.sent"],
                    "clients": values["socket.clients"],
                }
            ),
            flush=True,
        )
        bus.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _publish(bus: EventBus, payloads: list[Envelope], seconds: float) -> tuple[float, int]:
    worst, events, begun = 0.0, 0, time.monotonic()
    due = begun
    while time.monotonic() < begun + seconds:
        if time.monotonic() >= due:
            due += 1.0
            for _ in range(SYMBOLS):
                for envelope in payloads:
                    bus.publish(envelope.topic, envelope.payload)
                    events += 1
        before = time.monotonic()
        await asyncio.sleep(0.005)
        worst = max(worst, time.monotonic() - before - 0.005)
    return worst, events


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def follow(url: str) -> None:
    """The clients' side; ended by its parent."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), read_bufsize=1_024
    ) as session:
        clients = [await session.ws_connect(f"{url}/events") for _ in range(CLIENTS)]
        readers = [asyncio.ensure_future(_read(client)) for client in clients[STALLED:]]
        for client in clients[:STALLED]:
            # Nothing is taken from the socket any more; aiohttp offers no public way to its transport.
            connection = client._response.connection  # noqa: SLF001
            assert connection is not None
            cast("asyncio.ReadTransport", connection.transport).pause_reading()
        await asyncio.gather(*readers)


async def _read(client: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in client:
        pass


def measure(seconds: float, clients: int) -> dict:
    ours, theirs = cores()
    me = [sys.executable, "-m", "benchmarks.bench_events"]
    with process([*me, "--serve", str(seconds), "--clients", str(clients)], ours) as bot:
        assert bot.stdout is not None
        url = json.loads(bot.stdout.readline())["url"]
        if not clients:
            return json.loads(bot.stdout.readline())
        with process([*me, "--follow", url], theirs):
            found = json.loads(bot.stdout.readline())
            if found["clients"] < clients - STALLED:
                raise RuntimeError(f"only {found['clients']} clients stayed")
            return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--serve", type=float)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--follow")
    given = parser.parse_args()
    if given.serve is not None or given.follow is not None:
        work = follow(given.follow) if given.follow else serve(given.serve, given.clients)
        if sys.platform == "win32":
            asyncio.run(work)
        else:
            import uvloop  # noqa: PLC0415

            uvloop.run(work)
        return
    seconds, rounds = (3.0, 1) if given.smoke else (20.0, 3)
    runs: dict[str, list[dict]] = {"without clients": [], "with clients": []}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(measure(seconds, CLIENTS if name == "with clients" else 0))
    core = {n: statistics.median(r["core_pct"] for r in found) for n, found in runs.items()}
    publish(
        {
            "benchmark": "events",
            "clients": CLIENTS,
            "stalled": STALLED,
            "events_per_s": SYMBOLS * 3,
            "runs": runs,
            "core_pct": core,
            "cost_of_clients_core_pct": round(core["with clients"] - core["without clients"], 2),
            "dropped": sum(run["dropped"] for found in runs.values() for run in found),
            "versions": versions(),
            "machine": machine(),
        },
        given,
    )


if __name__ == "__main__":
    main()
