"""The ``simulate`` verb: serve the exchange until cancelled.

Consumes ``SimulatorSettings`` → produces one JSON line with the base URLs on stdout, then logs.
"""

from __future__ import annotations

import asyncio

import msgspec

from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings

__all__ = ["SimulatorSettings", "serve"]


async def serve(settings: SimulatorSettings) -> int:
    """Serve until the task is cancelled.

    Args:
        settings: What to serve.

    Returns:
        The exit code, should serving ever end by itself.

    Raises:
        SourceError: The recording cannot be read.
        ConfigError: The fault plan or the port cannot be used.
    """
    async with SimulatedExchange(settings) as exchange:
        urls = {"ws": exchange.ws_url, "rest": exchange.rest_url, "vision": exchange.vision_url}
        print(msgspec.json.encode(urls).decode(), flush=True)
        await asyncio.Event().wait()
    return 0
