"""The ``replay`` verb: a recording through the same code as live data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings

_LIVE_ONLY = (
    *("ws_ping_interval", "ws_max_reconnect_attempts", "ws_backoff_cap", "ws_redundancy"),
    *("ws_rotation_minute", "health_check_interval", "binance_rate_limit_weight"),
    *("binance_ws_url", "binance_rest_url", "binance_spot_ws_url", "binance_spot_rest_url"),
)


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a recording (.ndjson or .ndjson.gz)")
    add_settings(
        parser,
        first=("symbols", "market", "headless", "data_dir"),
        without=("source", "duration", *_LIVE_ONLY),
    )


def _run(given: dict[str, Any]) -> int:
    path = given.pop("path")
    try:
        settings = settings_of({**given, "source": f"replay:{path}"})
    except ConfigError as error:
        if not str(error).startswith("SOURCE "):
            raise
        reason = "is a folder, not a recording" if Path(path).exists() else "does not exist"
        raise ConfigError(f"PATH: {path} {reason}") from None
    return replay_with(settings, Path(path))


def replay_with(settings: Settings, path: Path) -> int:
    """Replay one recording under these settings."""
    with logging_for(settings):
        from market_orchestrator.market_orchestrator import replay

        return run_loop(replay(settings, path))


VERB = Verb(
    about="Put a recording through the same code as live data; deterministic.",
    examples=(
        "python main.py replay recordings/day.ndjson.gz",
        "python main.py replay recordings/day.ndjson.gz --symbols BTCUSDT --data-dir replayed",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
