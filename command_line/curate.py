"""The ``curate`` verb: ingested klines, checked and with indicators and levels."""

from __future__ import annotations

import sys
from typing import Any

from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

_DEFAULT_INTERVALS = ("15m", "30m", "1h", "4h", "1d", "1w")


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--interval",
        metavar="NAMES",
        help=f"comma between two, default {','.join(_DEFAULT_INTERVALS)}",
    )
    parser.add_argument("--rebuild", action="store_true", help="compute everything again")
    add_settings(
        parser,
        first=("market", "data_dir"),
        only=("log_level", "raw_data_dir", "curated_data_dir"),
    )


def _run(given: dict[str, Any]) -> int:
    from domain.intervals import INTERVAL_MS
    from ingestion.curation import DataCuration
    from lake.lock import FolderLock

    names = given.pop("interval", ",".join(_DEFAULT_INTERVALS)).split(",")
    rebuild = given.pop("rebuild", False)
    for name in names:
        if name not in INTERVAL_MS:
            raise ConfigError(
                f"--interval: no interval {name!r}; there are {', '.join(INTERVAL_MS)}"
            )
    settings = settings_of(given)
    with logging_for(settings), FolderLock(settings.paths.root, "curation"):
        curation = DataCuration(settings)
        for name in names:
            report = curation.curate_timeframe(name, rebuild=rebuild, on_progress=_show)
            print(report, flush=True)
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
    ),
    add_arguments=_add_arguments,
    run=_run,
)
