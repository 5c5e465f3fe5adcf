"""The ``replay`` verb: a recording, or recorded days, through the same code as live data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError
from lake.source import read_source

if TYPE_CHECKING:
    from config import Settings

_LIVE_ONLY = (
    *("ws_ping_interval", "ws_max_reconnect_attempts", "ws_backoff_cap", "ws_redundancy"),
    *("ws_rotation_minute", "health_check_interval", "binance_rate_limit_weight"),
    *("binance_ws_url", "binance_rest_url", "binance_spot_ws_url", "binance_spot_rest_url"),
)


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a recording (.ndjson or .ndjson.gz), or recorded days: a data folder, its raw/stream, "
        "or one day's folder in there",
    )
    add_settings(
        parser,
        first=("symbols", "market", "headless", "data_dir", "model_dir"),
        without=("source", "duration", *_LIVE_ONLY),
    )


def _run(given: dict[str, Any]) -> int:
    path = given.pop("path")
    try:
        settings = settings_of({**given, "source": f"replay:{path}"})
    except ConfigError as error:
        if not str(error).startswith("SOURCE "):
            raise
        reason = "is a folder, not a recording, and holds no raw/stream"
        reason = reason if Path(path).exists() else "does not exist"
        raise ConfigError(f"PATH: {path} {reason}") from None
    return replay_with(settings, settings.replay_path or Path(path))


def replay_with(settings: Settings, path: Path) -> int:
    """Replay one recording under these settings.

    Raises:
        ConfigError: recorded days are of another market.
    """
    if path.is_dir():
        _check_market(settings, path)
    with logging_for(settings):
        from market_orchestrator.market_orchestrator import replay

        return run_loop(replay(settings, path))


def _check_market(settings: Settings, days: Path) -> None:
    """Refuse recorded days whose data folder says that it is of another market."""
    place = days.resolve()
    stream = place if place.name == "stream" else place.parents[1]
    market = read_source(stream.parents[1]).get("market", settings.market.value)
    if market != settings.market.value:
        raise ConfigError(f"MARKET (--market): {days} holds frames of market {market}")


VERB = Verb(
    about="Put a recording through the same code as live data; deterministic.",
    examples=(
        "python main.py replay recordings/day.ndjson.gz",
        "python main.py replay recordings/day.ndjson.gz --symbols BTCUSDT --data-dir replayed",
        "python main.py replay data",
        "python main.py replay data --model data/models/tiny-60s --data-dir judged",
        "python main.py replay data/raw/stream/trades/2024-07-19",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
