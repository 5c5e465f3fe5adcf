"""The historical downloader: months of aggTrades and 1m klines out of the public archive.

Consumes ``HistorySettings`` → brings ``raw/historical/SYMBOL/…`` up to what the archive has, three
months at a time, and reports what became of each month. Run: ``python -m collectors.historical``.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TextIO

import msgspec
import structlog

from binance_api.errors import Banned, ExchangeError, Forbidden, Unreachable
from binance_api.vision import VisionClient
from collectors.historical_month import MonthCollector, MonthOutcome, MonthState
from collectors.historical_progress import ProgressBars
from domain.errors import ConfigError
from domain.market import Market
from lake.atomic import StepHook, ensure_folder, no_hook
from lake.historical_files import KINDS, HistoryKind, month_bounds_ms
from lake.lock import FolderLock
from lake.month_build import Month
from lake.paths import LakePaths

log = structlog.get_logger()

MONTHS_AT_A_TIME: Final = 3
DEFAULT_MONTHS: Final = 3
FIRST_YEAR: Final = 2017  # the exchange opened in July
_FAILURES_IN_A_ROW: Final = 3
_LEFTOVER_AGE_S: Final = 14 * 86_400.0


class HistorySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to have.

    Args:
        paths: The tree.
        market: Whose archive.
        symbols: In any case.
        kinds: ``aggTrades``, ``klines`` or both.
        months: ``YYYY-MM``, oldest first.
        verify: Look into files that are there and ask whether their archives were replaced.
        months_at_a_time: Months downloaded side by side.
    """

    paths: LakePaths
    symbols: tuple[str, ...]
    months: tuple[str, ...]
    market: Market = Market.UM
    kinds: tuple[HistoryKind, ...] = KINDS
    verify: bool = False
    months_at_a_time: int = MONTHS_AT_A_TIME


class HistoryReport(msgspec.Struct, frozen=True):
    """What became of every month, in the order asked for."""

    outcomes: tuple[MonthOutcome, ...]

    @property
    def exit_code(self) -> int:
        """0 also where nothing is published; 3: the archive was out of reach; else 1."""
        errors = [outcome.error for outcome in self.outcomes if outcome.error is not None]
        if any(error.exit_code == Unreachable.exit_code for error in errors):
            return Unreachable.exit_code
        return 1 if errors else 0

    def text(self) -> str:
        """A table, one line per month, and a line for all."""
        rows = [
            ("symbol", "kind", "month", "result", "rows", "missing", "downloaded", ""),
            *(_row(outcome) for outcome in self.outcomes),
        ]
        widths = [max(len(row[place]) for row in rows) for place in range(7)]
        lines = []
        for row in rows:
            texts = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
            texts += [cell.rjust(width) for cell, width in zip(row[4:7], widths[4:], strict=True)]
            lines.append("  ".join((*texts, row[7])).rstrip())
        states = Counter(outcome.state for outcome in self.outcomes)
        total = ", ".join(f"{states[state]} {state}" for state in MonthState if states[state])
        count = len(self.outcomes)
        return "\n".join((*lines, f"{count} month{'s' * (count != 1)}: {total}"))


def _row(outcome: MonthOutcome) -> tuple[str, ...]:
    month, about = outcome.month, outcome.about
    size = outcome.downloaded_bytes
    return (
        *(month.symbol, month.kind, month.month, outcome.state.value),
        f"{about.row_count:,}" if about else "",
        f"{about.missing_count:,}" if about else "",
        f"{size / 1e6:,.1f} MB" if size else "",
        str(outcome.error) if outcome.error else outcome.note,
    )


def months_between(first: str | None, last: str | None, now_ms: int) -> tuple[str, ...]:
    """Months from ``first`` to ``last``, both included.

    Args:
        first: ``YYYY-MM``; ``None``: so that there are ``DEFAULT_MONTHS``.
        last: ``YYYY-MM``; ``None``: the last whole month.
        now_ms: Wall clock, ms.

    Raises:
        ConfigError: Not a month, in the future, or out of order.
    """
    today = time.gmtime(now_ms // 1_000)
    this_month = today.tm_year * 12 + today.tm_mon - 1
    end = this_month - 1 if last is None else _month_number("to", last)
    begin = end - DEFAULT_MONTHS + 1 if first is None else _month_number("from", first)
    if last is None:
        end = max(end, min(begin, this_month))  # --from this month: what there is of it
    if end > this_month:
        raise ConfigError(f"--to: {last} lies in the future")
    if begin > end:
        raise ConfigError(f"--from: {first} is after {last or 'this month'}")
    return tuple(f"{n // 12:04d}-{n % 12 + 1:02d}" for n in range(begin, end + 1))


def _month_number(flag: str, text: str) -> int:
    try:
        month_bounds_ms(text)
    except ValueError as error:
        raise ConfigError(f"--{flag}: {error}") from None
    if int(text[:4]) < FIRST_YEAR:
        raise ConfigError(f"--{flag}: the archive begins in {FIRST_YEAR}, not in {text}")
    return int(text[:4]) * 12 + int(text[5:]) - 1


async def collect_history(
    settings: HistorySettings,
    client: VisionClient,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    hook: StepHook = no_hook,
    stream: TextIO | None = None,
) -> HistoryReport:
    """Have the months; what was there and whole is left alone.

    Args:
        settings: What to have.
        client: The archive, open.
        now_ms: Wall clock, ms.
        hook: See ``lake.atomic.StepHook``.
        stream: Where progress is drawn if it is a terminal; ``None``: stderr.

    Raises:
        ConfigError: The archive has nothing of a symbol at all.
        DataFolderError: Another download works in this folder.
        StorageError: The disk refused.
    """
    months = [
        Month(symbol=symbol.upper(), kind=kind, month=month)
        for symbol, kind, month in itertools.product(
            settings.symbols, settings.kinds, settings.months
        )
    ]
    bars = ProgressBars(len(months), stream)
    collector = MonthCollector(
        settings.paths, settings.market, client, verify=settings.verify, now_ms=now_ms, hook=hook
    )
    with FolderLock(settings.paths.root, "history"), collector:
        await asyncio.to_thread(_clear_leftovers, collector)
        run = _Run(months, collector, bars)
        async with asyncio.TaskGroup() as group:
            drawing = group.create_task(bars.run(), name="history.progress")
            await run.all_months(settings.months_at_a_time)
            drawing.cancel()
        report = HistoryReport(tuple(run.outcome_of(month) for month in months))
        await _refuse_unknown(report, collector)
    return report


class _Run:
    """Works the months off, some at a time."""

    def __init__(
        self, months: Sequence[Month], collector: MonthCollector, bars: ProgressBars
    ) -> None:
        self._waiting: Iterator[Month] = iter(months)
        self._collector = collector
        self._bars = bars
        self._outcomes: dict[Month, MonthOutcome] = {}
        self._failures_in_a_row = 0

    async def all_months(self, at_a_time: int) -> None:
        """Returns when all are done, or the archive proved to be out of reach."""
        async with asyncio.TaskGroup() as group:
            for number in range(at_a_time):
                group.create_task(self._some(), name=f"history.worker-{number}")

    def outcome_of(self, month: Month) -> MonthOutcome:
        """What became of a month."""
        untried = MonthOutcome(month=month, state=MonthState.NOT_TRIED)
        return self._outcomes.get(month, untried)

    async def _some(self) -> None:
        for month in self._waiting:
            with self._bars.file(month.name) as bar:
                try:
                    outcome = await self._collector.collect(month, bar)
                except* ExchangeError as group:
                    outcome = self._failed(month, _first(group))
                else:
                    self._failures_in_a_row = 0
            self._outcomes[month] = outcome
            if self._is_hopeless(outcome):
                return

    def _failed(self, month: Month, error: ExchangeError) -> MonthOutcome:
        self._failures_in_a_row += 1
        log.error("history.month_failed", month=month.name, reason=str(error))
        return MonthOutcome(month=month, state=MonthState.FAILED, error=error)

    def _is_hopeless(self, outcome: MonthOutcome) -> bool:
        """Whether asking for more months would only meet the same failure."""
        if isinstance(outcome.error, Banned | Forbidden):
            self._failures_in_a_row = _FAILURES_IN_A_ROW
        return self._failures_in_a_row >= _FAILURES_IN_A_ROW


def _first(group: BaseExceptionGroup[ExchangeError]) -> ExchangeError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, ExchangeError)  # noqa: S101 - the group holds nothing else
    return found


async def _refuse_unknown(report: HistoryReport, collector: MonthCollector) -> None:
    """A symbol without any month is a mistake, unless the archive has it in these days."""
    states: dict[str, set[MonthState]] = {}
    for outcome in report.outcomes:
        states.setdefault(outcome.month.symbol, set()).add(outcome.state)
    for symbol, found in states.items():
        if found == {MonthState.NOT_PUBLISHED} and not await collector.is_known(symbol):
            raise ConfigError(
                f"SYMBOLS (--symbols): the archive has nothing of {symbol}, neither in the months "
                "asked for nor of the last days; check the name, or --market"
            )


def _clear_leftovers(collector: MonthCollector) -> None:
    """Remove working files of dead runs; downloads wait two weeks to be taken up again."""
    ensure_folder(collector.work)
    oldest_s = time.time() - _LEFTOVER_AGE_S
    for path in [path for path in collector.work.iterdir() if path.is_file()]:
        if path.suffix == ".run" or path.stat().st_mtime < oldest_s:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    import sys

    from main import main

    sys.exit(main(["history", *sys.argv[1:]]))
