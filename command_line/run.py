"""The ``run`` verb: the live bot, and the view beside it."""

from __future__ import annotations

import sys
from typing import Any

from command_line.alerting import alerted, alerting
from command_line.replay import replay_with
from command_line.running import run_loop
from command_line.serving import beside, monitoring
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

RUN_OPTIONS = (
    "symbols",
    "market",
    "source",
    "duration",
    "headless",
    "record",
    "data_dir",
    "model_dir",
)


def _add_arguments(parser: Parser) -> None:
    add_settings(parser, first=RUN_OPTIONS)


def _run(given: dict[str, Any]) -> int:
    settings = settings_of(given)
    if settings.replay_path is not None:
        if settings.duration is not None:
            raise ConfigError("DURATION (--duration): a replay ends where its recording ends")
        return replay_with(settings, settings.replay_path)
    from command_line.terminal import terminal_of, wants_view
    from dashboard.watch import watch

    with_view = not settings.headless and wants_view()
    with logging_for(settings, to_file=with_view and sys.stderr.isatty()) as writer:
        from market_orchestrator.market_orchestrator import EnhancedMarketBot

        bot = EnhancedMarketBot(settings)
        alerts = alerting(settings, bot.bus)
        source = "demo" if settings.source == "demo" else "live"
        mode = f"{source} {settings.market.value}"
        terminal = None
        if with_view:
            terminal = terminal_of(mode, lambda: list(writer.recent), symbols=settings.symbols)
        serving = monitoring(
            settings, "run", bot.read, bus=bot.bus, writer=writer, others={"alerts": alerts}
        )
        work = beside(bot.run(), watch(bot.bus, terminal), serving, after=bot.opened)
        return run_loop(alerted(work, alerts))


VERB = Verb(
    about="The live bot: connect, close exact windows, store features, publish signals.",
    examples=(
        "python main.py run --source demo --duration 60",
        "python main.py run --symbols BTCUSDT,ETHUSDT --data-dir data",
        "python main.py run --record --symbols BTCUSDT,ETHUSDT",
        "python main.py run --symbols BTCUSDT --model data/models/tiny-60s",
        "python main.py run --market spot --symbols SOLUSDT --headless",
        "python main.py run --source replay:recordings/day.ndjson.gz",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
