"""The ``curate`` verb: ingested klines, checked and with indicators and levels."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from command_line.ingest import interval_names
from command_line.recommending import RECOMMENDING, asking, daily_analyst
from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of

if TYPE_CHECKING:
    from config import Settings

_DAY_MS = 86_400_000


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--interval",
        metavar="NAMES",
        help="comma between two, default 15m,30m,1h,4h,1d,1w",
    )
    parser.add_argument("--rebuild", action="store_true", help="compute everything again")
    parser.add_argument(
        "--recommend",
        action="store_true",
        help="then give the daily recommendation, as of the newest curated hour",
    )
    add_settings(
        parser,
        first=("market", "data_dir"),
        only=("symbols", "log_level", "raw_data_dir", "curated_data_dir", *RECOMMENDING),
    )


def _run(given: dict[str, Any]) -> int:
    from ingestion.curation import DataCuration

    names = interval_names(given.pop("interval", None))
    rebuild, recommends = given.pop("rebuild", False), given.pop("recommend", False)
    settings = settings_of(given)
    with logging_for(settings):
        curation = DataCuration(settings)
        for name in names:
            report = curation.curate_timeframe(name, rebuild=rebuild, on_progress=_show)
            print(report, flush=True)
        if recommends:
            return run_loop(_recommend(settings))
    return 0


async def _recommend(settings: Settings) -> int:
    from event_bus import EventBus
    from ingestion.recommendation import DailyRecommendation

    analyst = daily_analyst(settings, EventBus())  # nobody listens to one run
    recommendation = DailyRecommendation(settings.paths, settings.symbols, analyst=asking(analyst))
    at_ms = recommendation.newest_ms()
    if at_ms is None:
        print("no curated 1h bars to recommend from")
        return 0
    now_ms = time.time_ns() // 1_000_000
    # Old data (a market of the past, served again) date the decision themselves.
    decided_ms = now_ms if at_ms <= now_ms < at_ms + _DAY_MS else at_ms
    async with contextlib.AsyncExitStack() as stack:
        if analyst is not None:
            await stack.enter_async_context(analyst.at_work())
        signals = await recommendation.recommend(at_ms, decided_ms)
    for signal in signals:
        print(f"{signal.symbol} ({signal.source}): {signal.rationale}")
    if not signals:
        print("nothing new to recommend; the log says why")
    return 0


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {of} days " + ("\n" if done == of else ""))
        sys.stderr.flush()


VERB = Verb(
    about="Ingested klines, checked, with VWAP, ATR, volatility, returns and key levels.",
    examples=(
        "python main.py curate",
        "python main.py curate --interval 1h,4h",
        "python main.py curate --interval 15m --rebuild --data-dir data",
        "python main.py curate --recommend",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
