"""The ``ingest`` verb: closed klines of every timeframe, into daily files."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from typing import TYPE_CHECKING, Any

from command_line.recommending import RECOMMENDING, asking, daily_analyst, tell
from command_line.running import run_loop
from command_line.serving import SERVING, beside, monitoring
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from config import Settings
    from domain.times import When
    from event_bus import EventBus
    from ingestion.follow import Read
    from ingestion.ingest_run import IntervalReport
    from market_orchestrator.analyst import DailyAnalyst
    from monitoring.health import Readings
    from monitoring.logging import LogWriter

_DEFAULT_INTERVALS = ("15m", "30m", "1h", "4h", "1d", "1w")
_MOST_GAPS_SHOWN = 20


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--interval",
        metavar="NAMES",
        help=f"comma between two, default {','.join(_DEFAULT_INTERVALS)}",
    )
    add("--days", type=float, help="so many days back from the end, default 7")
    add("--from", dest="start", metavar="TIME", help="first time, UTC: 2024-07-01[T12:00]")
    add("--to", dest="end", metavar="TIME", help="end (exclusive), default now")
    add(
        "--again",
        action="store_true",
        help="ask again for candles the exchange did not have the last time",
    )
    add(
        "--schedule",
        action="store_true",
        help="keep running: ingest as candles close, curate, recommend once a day",
    )
    add_settings(
        parser,
        first=("symbols", "market", "data_dir"),
        only=(
            *("log_level", "raw_data_dir", "curated_data_dir"),
            *("binance_rest_url", "binance_spot_rest_url"),
            *("binance_rate_limit_weight", "binance_rate_limit_concurrency"),
            *("binance_rate_limit_window_seconds", "ingest_long_intervals"),
            *("event_broker", "events_keep", "health_check_interval", *SERVING, *RECOMMENDING),
        ),
    )


def _run(given: dict[str, Any]) -> int:
    intervals = interval_names(given.pop("interval", None))
    asked = {name: given.pop(name, None) for name in ("start", "end", "days")}
    asked |= {name: _time(name, asked[name]) for name in ("start", "end")}
    ask_again, is_scheduled = given.pop("again", False), given.pop("schedule", False)
    if is_scheduled and (ask_again or asked["start"] is not None or asked["end"] is not None):
        raise ConfigError("--schedule: goes with --interval and --days alone")
    settings = settings_of(given)
    with logging_for(settings) as writer:
        if is_scheduled:
            return _run_schedule(settings, intervals, asked["days"], writer)
        return run_loop(_ingest(settings, intervals, asked, ask_again=ask_again))


def interval_names(text: str | None) -> list[str]:
    """Intervals as given, or the usual six.

    Raises:
        ConfigError: The exchange has no such interval.
    """
    from domain.intervals import INTERVAL_MS

    names = _DEFAULT_INTERVALS if text is None else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in INTERVAL_MS:
            raise ConfigError(
                f"--interval: no interval {name!r}; there are {', '.join(INTERVAL_MS)}"
            )
    return list(dict.fromkeys(names))


def _time(name: str, text: str | None) -> When:
    from domain.times import time_ms

    try:
        return time_ms(text)
    except ValueError as error:
        raise ConfigError(f"--{'from' if name == 'start' else 'to'}: {error}") from None


async def _ingest(
    settings: Settings, intervals: list[str], asked: dict[str, Any], *, ask_again: bool
) -> int:
    from ingestion.ingestion import DataIngestion

    ingestion = DataIngestion(settings)
    try:
        with _symbols_named():
            reports = await ingestion.ingest(
                intervals, **asked, ask_again=ask_again, on_progress=_show
            )
    except ValueError as error:
        raise ConfigError(f"--from, --to, --days: {error}") from None
    _print(reports)
    return 0


@contextlib.contextmanager
def _symbols_named() -> Iterator[None]:
    """An unknown symbol is a wrong setting."""
    from binance_api.errors import InvalidSymbol

    try:
        yield
    except InvalidSymbol as error:
        raise ConfigError(f"SYMBOLS (--symbols): {error.msg}") from None


def _run_schedule(
    settings: Settings, intervals: list[str], days: float | None, writer: LogWriter
) -> int:
    from event_bus import EventBus
    from monitoring.heartbeat import Heartbeat

    bus = EventBus()
    reads: list[Read] = []
    analyst = daily_analyst(settings, bus)

    def read() -> Readings:
        values = reads[0]() if reads else {}
        if values and analyst is not None:
            values |= {f"ai.{name}": value for name, value in analyst.statistics().items()}
        return values

    serving = monitoring(settings, "ingest", read, writer=writer, bus=bus, progress=_progress)
    heartbeat = Heartbeat(bus, settings.health_check_interval, read)
    work = _follow(settings, intervals, days, bus, analyst, reads.append)
    return run_loop(beside(work, serving, heartbeat.run()))


async def _follow(
    settings: Settings,
    intervals: list[str],
    days: float | None,
    bus: EventBus,
    analyst: DailyAnalyst | None,
    started: Callable[[Read], None],
) -> int:
    from ingestion.follow import follow
    from market_orchestrator.exchange import open_exchange

    async with contextlib.AsyncExitStack() as stack:
        exchange = await open_exchange(settings, stack)
        if analyst is not None:
            await stack.enter_async_context(analyst.at_work())
        stack.enter_context(_symbols_named())
        return await follow(
            settings,
            intervals,
            exchange.rest,
            days=days,
            analyst=asking(analyst),
            publish=lambda signal: tell(bus, signal),
            started=started,
        )


def _progress(values: Readings) -> int:
    """Looks at the clock, and requests while a run lasts."""
    counts = [values.get(name) for name in ("schedule.looks", "rest.requests")]
    return sum(int(count) for count in counts if isinstance(count, int | float))


def _print(reports: Sequence[IntervalReport]) -> None:
    print(f"{'interval':<9}{'rows':>10}{'requests':>10}{'missing':>9}{'absent':>8}{'s':>8}")
    for report in reports:
        print(
            f"{report.interval:<9}{report.rows:>10,}{report.requests:>10,}{report.missing:>9,}"
            f"{report.absent:>8,}{report.elapsed_s:>8.1f}"
        )
    gaps = [gap for report in reports for gap in report.gaps]
    for gap in gaps[:_MOST_GAPS_SHOWN]:
        begins = dt.datetime.fromtimestamp(gap.start_ms / 1_000, dt.UTC)
        why = "; the exchange does not have them" if gap.at_exchange else ""
        print(
            f"gap: {gap.symbol} {gap.interval} {gap.bar_count} bars from "
            f"{begins:%Y-%m-%d %H:%M}{why}"
        )
    if len(gaps) > _MOST_GAPS_SHOWN:
        print(f"... and {len(gaps) - _MOST_GAPS_SHOWN} more gaps")


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        width = 30
        filled = "#" * (width * done // of)
        end = "\n" if done == of else ""
        sys.stderr.write(f"\r[{filled:<{width}}] {done} of {of} batches {end}")
        sys.stderr.flush()


VERB = Verb(
    about="Closed klines of every timeframe from the exchange into daily files; asks only for what is missing.",
    examples=(
        "python main.py ingest --interval 1h --days 7",
        "python main.py ingest --symbols BTCUSDT,ETHUSDT --from 2024-01-01 --to 2024-02-01",
        "python main.py ingest --market spot --interval 1m,1d",
        "python main.py ingest --schedule",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
