"""The ``simulate`` verb: serve the exchange, and the AI providers where asked for, until cancelled.

Consumes ``SimulatorSettings`` → produces one JSON line with the base URLs on stdout, then logs.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from simulator.ai_script import Script, parse_script
from simulator.ai_server import ScriptedAI
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings

__all__ = ["SimulatorSettings", "serve"]


async def serve(settings: SimulatorSettings, ai_script: str | None = None) -> int:
    """Serve until the task is cancelled.

    Args:
        settings: What to serve.
        ai_script: Serve the AI providers as well, following this script ("": they answer well);
            ``None``: do not. Their addresses are added to the line on stdout.

    Returns:
        The exit code, should serving ever end by itself.

    Raises:
        SourceError: The recording cannot be read.
        ConfigError: The fault plan, the script or the port cannot be used.
    """
    script = None if ai_script is None else Script(parse_script(ai_script))
    async with contextlib.AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(SimulatedExchange(settings))
        urls = {"ws": exchange.ws_url, "rest": exchange.rest_url, "vision": exchange.vision_url}
        if script is not None:
            urls |= (await stack.enter_async_context(ScriptedAI(script))).urls
        print(msgspec.json.encode(urls).decode(), flush=True)
        await asyncio.Event().wait()
    return 0
