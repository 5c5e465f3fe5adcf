"""The ``doctor`` verb: everything a run needs, checked."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of

if TYPE_CHECKING:
    from config import Settings


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--live", action="store_true", help="also make one minimal call per AI provider (it costs)"
    )
    add_settings(
        parser,
        first=("symbols", "market", "source", "data_dir"),
        without=("duration", "headless"),
    )


def _run(given: dict[str, Any]) -> int:
    live = given.pop("live", False)
    settings = settings_of(given)
    with logging_for(settings):
        return run_loop(_examine(settings, live=live))


async def _examine(settings: Settings, *, live: bool) -> int:
    import msgspec

    from market_orchestrator.analyst import ai_settings
    from market_orchestrator.exchange import hosts
    from monitoring.ai_findings import check_analyst
    from monitoring.doctor import Examined, examine

    async with contextlib.AsyncExitStack() as stack:
        ws_url, rest_url = await hosts(settings, stack)
        examined = Examined(
            market=settings.market,
            symbols=settings.symbols,
            data_root=settings.data_root,
            source=settings.source_description,
            ws_url=ws_url,
            rest=msgspec.structs.replace(settings.rest_settings, base_url=rest_url),
            uses_exchange=settings.replay_path is None,
        )
        more = check_analyst(ai_settings(settings), settings.paths.analyst_calls, live=live)
        return await examine(examined, functools.partial(print, flush=True), more)


VERB = Verb(
    about="Check everything a run needs and say what to do about each failure.",
    examples=(
        "python main.py doctor",
        "python main.py doctor --live",
        "python main.py doctor --market spot --symbols SOLUSDT",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
