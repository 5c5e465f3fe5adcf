"""The ``repair`` verb: fill the recorder's holes once, without a recorder."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError, FolderInUse

if TYPE_CHECKING:
    from collectors.repair_once import RepairReport
    from config import Settings


def _add_arguments(parser: Parser) -> None:
    add_settings(
        parser,
        first=("market", "source", "data_dir"),
        only=(
            *(
                "log_level",
                "raw_data_dir",
                "binance_rate_limit_weight",
                "binance_rate_limit_concurrency",
                "binance_rate_limit_window_seconds",
                "binance_vision_url",
            ),
            *("binance_rest_url", "binance_spot_rest_url", "binance_ws_url", "binance_spot_ws_url"),
        ),
    )


def _run(given: dict[str, Any]) -> int:
    settings = settings_of(given)
    if settings.replay_path is not None:
        raise ConfigError("SOURCE (--source): a recording has no history to ask; use binance")
    with logging_for(settings):
        return run_loop(_repair(settings))


async def _repair(settings: Settings) -> int:
    from collectors.recording import ROLE
    from lake.source import is_claimed
    from lake.stream_files import stream_dates

    paths = settings.paths
    journal = paths.gaps / f"{ROLE}.jsonl"
    is_recorded = journal.exists() or bool(stream_dates(paths, "trades"))
    if not is_claimed(paths.root, settings.source_description) or not is_recorded:
        print(f"Nothing is recorded in {paths.root}.")
        return 0
    report = await _work_off(settings)
    print(report.text())
    return report.exit_code


async def _work_off(settings: Settings) -> RepairReport:
    from collectors.recording import ROLE, open_folder
    from collectors.repair_once import repair_once
    from lake.gap_ledger import GapLedger
    from market_orchestrator.exchange import archive_client, open_exchange

    paths = settings.paths
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(open_folder(paths, settings.source_description))
        except FolderInUse as error:
            who = str(error).partition(";")[0]
            raise FolderInUse(f"{who}, which repairs by itself") from None
        exchange = await open_exchange(settings, stack)
        archive = await stack.enter_async_context(archive_client(settings, exchange.rest_url))
        ledger = await asyncio.to_thread(GapLedger, paths.gaps, ROLE)
        return await repair_once(
            paths,
            ledger,
            exchange.rest,
            archive,
            market=settings.market,
            on_progress=_show_progress,
        )


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} missing trades settled ")
        sys.stderr.flush()


VERB = Verb(
    about=(
        "Fill the holes in recorded trades: from REST within its 48 hours, then from the archive's\n"
        "daily and monthly files. A running recorder does so by itself. Exit code 4: holes are left\n"
        "that may be repaired later, when the archive appears or the exchange can be reached."
    ),
    examples=(
        "python main.py repair",
        "python main.py repair --data-dir data",
        "python main.py repair --market spot",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
