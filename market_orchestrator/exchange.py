"""How a run reaches the exchange: hosts, the REST client, the archive, the behaviour of sockets.

Settings → clients that end with a stack. The only place where the settings become them; the demo's
exchange is started here and stands in for all three.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from binance_api.request_runner import RestSettings
from binance_api.rest import RestClient
from binance_api.vision import VisionClient
from binance_api.weight_budget import WeightBudgetSettings
from config import DEMO_SEED, Settings
from market_orchestrator.connection.contract import ConnectionSettings

_ARCHIVE_TIMEOUT_S = 30.0


class Exchange(msgspec.Struct, frozen=True):
    """The hosts, and the REST client, which is open."""

    ws_url: str
    rest_url: str
    rest: RestClient


async def open_exchange(settings: Settings, stack: AsyncExitStack) -> Exchange:
    """Start the demo's exchange if it is wanted, and open the REST client; both end with ``stack``."""
    ws_url, rest_url = await hosts(settings, stack)
    wanted = msgspec.structs.replace(settings.rest_settings, base_url=rest_url)
    if settings.source == "demo":  # its port passes by, and so should its budget
        folder = stack.enter_context(TemporaryDirectory(prefix="orderflow-demo-"))
        wanted = msgspec.structs.replace(wanted, budget=WeightBudgetSettings(folder=Path(folder)))
    return Exchange(ws_url, rest_url, await stack.enter_async_context(RestClient(wanted)))


async def hosts(settings: Settings, stack: AsyncExitStack) -> tuple[str, str]:
    """WebSocket and REST hosts; of the demo's exchange, which ends with ``stack``."""
    if settings.source != "demo":
        return settings.ws_url, settings.rest_url
    # Only the demo needs the exchange's code.
    from simulator.server import SimulatedExchange  # noqa: PLC0415
    from simulator.settings import SimulatorSettings  # noqa: PLC0415

    demo = SimulatorSettings(market=settings.market, symbols=settings.symbols, seed=DEMO_SEED)
    exchange = await stack.enter_async_context(SimulatedExchange(demo))
    return exchange.ws_url, exchange.rest_url


def archive_client(settings: Settings, rest_url: str | None = None) -> VisionClient:
    """The public archive; the demo's exchange serves one as well, at its REST host."""
    base_url = rest_url if settings.source == "demo" else settings.binance_vision_url
    return VisionClient(
        RestSettings(
            market=settings.market, base_url=base_url, request_timeout_s=_ARCHIVE_TIMEOUT_S
        )
    )


def connection_settings(settings: Settings, ws_url: str) -> ConnectionSettings:
    """How the sockets of a run behave."""
    return ConnectionSettings(
        market=settings.market,
        ws_base=ws_url,
        redundancy=settings.ws_redundancy,
        ping_interval_s=settings.ws_ping_interval,
        max_reconnect_attempts=settings.ws_max_reconnect_attempts,
        backoff_cap_s=settings.ws_backoff_cap,
        rotation_minute=settings.ws_rotation_minute,
    )
