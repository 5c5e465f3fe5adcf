"""The ``ingest`` verb: closed klines of every timeframe, into daily files."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings

DEFAULT_INTERVALS = ("15m", "30m", "1h", "4h", "1d", "1w")
_DEFAULT_DAYS = 7


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--interval",
        metavar="NAMES",
        help=f"comma between two, default {','.join(DEFAULT_INTERVALS)}",
    )
    add("--days", type=float, help=f"so many days back from now, default {_DEFAULT_DAYS}")
    add(
        "--from",
        dest="start",
        metavar="TIME",
        help="first time, UTC: 2024-07-01 or 2024-07-01T12:00",
    )
    add("--to", dest="end", metavar="TIME", help="end (exclusive), default now")
    add_settings(
        parser,
        first=("symbols", "market", "data_dir"),
        only=(
            *("log_level", "raw_data_dir", "binance_rest_url", "binance_spot_rest_url"),
            "binance_rate_limit_weight",
        ),
    )


def _run(given: dict[str, Any]) -> int:
    from domain.intervals import INTERVAL_MS

    intervals = given.pop("interval", ",".join(DEFAULT_INTERVALS)).split(",")
    for name in intervals:
        if name not in INTERVAL_MS:
            raise ConfigError(
                f"--interval: no interval {name!r}; there are {', '.join(INTERVAL_MS)}"
            )
    start, end = _range(given)
    settings = settings_of(given)
    with logging_for(settings):
        return run_loop(_ingest(settings, intervals, start, end))


def _range(given: dict[str, Any]) -> tuple[str, str]:
    """Start and end as ISO text.

    Raises:
        ConfigError: options that exclude each other, or are no times.
    """
    now = dt.datetime.now(dt.UTC)
    if "days" in given and "start" in given:
        raise ConfigError("--days and --from exclude each other")
    days = given.pop("days", _DEFAULT_DAYS)
    if days <= 0:
        raise ConfigError("--days: must be more than 0")
    start = given.pop("start", (now - dt.timedelta(days=days)).isoformat())
    end = given.pop("end", now.isoformat())
    for flag, text in (("--from", start), ("--to", end)):
        try:
            dt.datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"{flag}: {text!r} is no time, write it as 2024-07-18") from None
    return start, end


async def _ingest(settings: Settings, intervals: list[str], start: str, end: str) -> int:
    from ingestion.ingestion import DataIngestion
    from lake.lock import FolderLock

    with FolderLock(settings.paths.root, "ingestion"):
        try:
            reports = await DataIngestion(settings).ingest(intervals, start, end, on_progress=_show)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    print(f"{'interval':<9}{'rows':>10}{'requests':>10}{'absent':>8}{'gaps':>6}{'s':>8}")
    for report in reports:
        print(
            f"{report.interval:<9}{report.rows:>10,}{report.requests:>10,}{report.absent:>8,}"
            f"{len(report.gaps):>6,}{report.elapsed_s:>8.1f}"
        )
    for report in reports:
        for gap in report.gaps:
            begins = dt.datetime.fromtimestamp(gap.start_ms / 1_000, dt.UTC)
            print(
                f"gap: {gap.symbol} {gap.interval} {gap.bar_count} bars from {begins:%Y-%m-%d %H:%M}"
            )
    return 0


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        width = 30
        filled = "#" * (width * done // of)
        sys.stderr.write(
            f"\r[{filled:<{width}}] {done} of {of} pages " + ("\n" if done == of else "")
        )
        sys.stderr.flush()


VERB = Verb(
    about="Closed klines of every timeframe from the exchange into daily files; asks only for what is missing.",
    examples=(
        "python main.py ingest --interval 1h --days 7",
        "python main.py ingest --symbols BTCUSDT,ETHUSDT --from 2024-01-01 --to 2024-02-01",
        "python main.py ingest --market spot --interval 1m,1d",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
