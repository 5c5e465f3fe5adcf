"""The ``dashboard`` verb: the terminal dashboard of a bot that runs elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from command_line.running import run_loop
from command_line.terminal import terminal_of, wants_view
from command_line.verb import Parser, Verb
from domain.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8787"


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--attach",
        nargs="?",
        const=DEFAULT_URL,
        metavar="URL",
        help=f"address of the running bot, http://HOST:PORT [default {DEFAULT_URL}]; "
        "HTTP_TOKEN is sent where it is set",
    )
    parser.add_argument(
        "--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="default INFO"
    )


def _run(given: dict[str, Any]) -> int:
    url = _checked(given.get("attach") or DEFAULT_URL)
    with_view = wants_view()
    # No log line belongs on the dashboard's screen; warnings are among its events.
    nowhere = Path(os.devnull) if with_view and sys.stderr.isatty() else None
    from monitoring.logging import configure_logging, secrets_in

    secrets = secrets_in(os.environ)
    level = given.get("log_level", "INFO")
    with configure_logging(level, log_file=nowhere, secrets=secrets) as writer:
        return run_loop(_follow(url, writer, with_view=with_view))


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if parts.scheme not in {"http", "https", "ws", "wss"} or not is_address:
        raise ConfigError(f"--attach: {url} must look like {DEFAULT_URL}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{parts.netloc}"


async def _follow(url: str, writer: Any, *, with_view: bool) -> int:
    from dashboard.attach import Attachment
    from dashboard.watch import watch
    from event_bus import EventBus

    bus = EventBus()
    attachment = Attachment(bus, url, os.environ.get("HTTP_TOKEN") or None)
    terminal = None
    if with_view:
        mode = f"attached {urlsplit(url).netloc}"
        terminal = terminal_of(mode, lambda: list(writer.recent), lambda: attachment.trouble)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(attachment.run(), name="attach")
        tasks.create_task(watch(bus, terminal), name="view")
    return 0


VERB = Verb(
    about="The terminal dashboard of a running bot, in this terminal; the bot does not notice.",
    examples=(
        "python main.py dashboard --attach",
        "python main.py dashboard --attach http://127.0.0.1:8787",
        "HTTP_TOKEN=… python main.py dashboard --attach https://bot.example:8787",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
