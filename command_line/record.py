"""The ``record`` verb: depth and trades of many symbols to Parquet, nothing lost that is not named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.serving import SERVING, beside, monitoring
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from collectors.recorder_run import RecordRun, RecordSettings
    from config import Settings

OPTIONS = ("symbols", "market", "source", "duration", "data_dir")
CONCERNED = (
    *("log_level", "raw_data_dir", "disk_warn_mib", "disk_stop_mib"),
    *("stream_flush_interval_seconds", "stream_flush_max_items", "stream_flush_max_bytes"),
    *("stream_journal_sync_ms", "ws_ping_interval", "ws_max_reconnect_attempts"),
    *(
        "ws_backoff_cap",
        "ws_redundancy",
        "ws_rotation_minute",
        "binance_rate_limit_weight",
        "binance_rate_limit_concurrency",
        "binance_rate_limit_window_seconds",
    ),
    *("binance_ws_url", "binance_rest_url", "binance_spot_ws_url", "binance_spot_rest_url"),
    *("binance_vision_url", "log_file", "log_file_mib", "log_files_keep", *SERVING),
)


def _add_arguments(parser: Parser) -> None:
    add_settings(parser, first=OPTIONS, only=CONCERNED)


def _run(given: dict[str, Any]) -> int:
    settings = settings_of(given)
    if settings.replay_path is not None:
        raise ConfigError("SOURCE (--source): a recording is recorded already; use binance or demo")
    with logging_for(settings) as writer:
        runs: list[RecordRun] = []
        serving = monitoring(
            settings, "record", lambda: runs[0].statistics() if runs else {}, writer=writer
        )
        return run_loop(beside(_record(settings, runs.append), serving))


async def _record(settings: Settings, started: Callable[[RecordRun], None]) -> int:
    from collectors.recorder_run import RecordRun
    from collectors.recording import open_folder
    from market_orchestrator.exchange import archive_client, open_exchange

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(open_folder(settings.paths, settings.source_description))
        exchange = await open_exchange(settings, stack)
        archive = await stack.enter_async_context(archive_client(settings, exchange.rest_url))
        wanted = _run_settings(settings, exchange.ws_url)
        run = RecordRun(wanted, settings.paths, exchange.rest, archive)
        started(run)
        return await run.run()


def _run_settings(settings: Settings, ws_url: str) -> RecordSettings:
    from collectors.recorder_run import RecordSettings
    from market_orchestrator.exchange import connection_settings
    from market_orchestrator.recording import recording_settings
    from monitoring.disk import DiskSettings

    return RecordSettings(
        recording=recording_settings(settings),
        connection=connection_settings(settings, ws_url),
        disk=DiskSettings(warn_mib=settings.disk_warn_mib, stop_mib=settings.disk_stop_mib),
        duration_s=settings.duration,
    )


VERB = Verb(
    about=(
        "Record depth and trades of many symbols as Parquet: a journal between two flushes, holes "
        "named and repaired."
    ),
    examples=(
        "python main.py record --source demo --duration 60",
        "python main.py record --symbols BTCUSDT,ETHUSDT --data-dir data",
        "STREAM_FLUSH_MAX_ITEMS=500000 python main.py record --symbols BTCUSDT,ETHUSDT,SOLUSDT",
        "python -m collectors.stream --market spot --symbols SOLUSDT",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
