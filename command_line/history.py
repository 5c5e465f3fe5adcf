"""The ``history`` verb: months of the public archive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from collectors.historical import HistorySettings
    from config import Settings


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--symbol", dest="symbols", metavar="SYMBOLS", help="the same as --symbols")
    add("--from", metavar="YYYY-MM", help="first month; default: the last three whole months")
    add("--to", metavar="YYYY-MM", help="last month, included; default: the last whole one")
    add("--kinds", default="aggTrades,klines", help="aggTrades, klines or both (default)")
    add(
        "--verify",
        action="store_true",
        default=False,
        help="look into files that are there and ask whether their archives were replaced",
    )
    add("--parallel", metavar="N", type=int, default=3, help="months at a time, default 3")
    add_settings(
        parser,
        first=("symbols", "market", "data_dir"),
        only=("log_level", "raw_data_dir", "binance_vision_url"),
    )


def _run(given: dict[str, Any]) -> int:
    first, last = given.pop("from", None), given.pop("to", None)
    kinds, verify, parallel = given.pop("kinds"), given.pop("verify"), given.pop("parallel")
    settings = settings_of(given)
    with logging_for(settings):
        from collectors.historical import HistorySettings, months_between

        if not 1 <= parallel <= 6:
            raise ConfigError(f"--parallel: must be 1 to 6, not {parallel}")
        wanted = HistorySettings(
            paths=settings.paths,
            market=settings.market,
            symbols=settings.symbols,
            kinds=_kinds(kinds),
            months=months_between(first, last, time.time_ns() // 1_000_000),
            verify=verify,
            months_at_a_time=parallel,
        )
        return run_loop(_collect(settings, wanted))


def _kinds(text: str) -> Any:
    from lake.historical_files import KINDS

    given = [name for part in text.split(",") if (name := part.strip().lower())]
    known = {kind.lower(): kind for kind in KINDS}
    for name in given:
        if name not in known:
            raise ConfigError(f"--kinds: {name!r} is none of {', '.join(KINDS)}")
    if not given:
        raise ConfigError(f"--kinds: name at least one of {', '.join(KINDS)}")
    return tuple(dict.fromkeys(known[name] for name in given))


async def _collect(settings: Settings, wanted: HistorySettings) -> int:
    from collectors.historical import collect_history
    from lake.source import claim_source
    from market_orchestrator.exchange import archive_client

    claim_source(settings.paths.root, settings.source_description)
    async with archive_client(settings) as client:
        report = await collect_history(wanted, client)
    print(report.text())
    return report.exit_code


VERB = Verb(
    about=(
        "Download months of aggTrades and 1m klines from the public archive as sorted, verified\n"
        "Parquet. Months that are there and whole are skipped; an interrupted run goes on."
    ),
    examples=(
        "python main.py history",
        "python main.py history --symbol btcusdt --from 2024-01 --to 2024-06",
        "python main.py history --kinds klines --from 2023-01",
        "python main.py history --verify",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
