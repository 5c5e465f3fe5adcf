"""Which months are asked for, and what is shown of them."""

from __future__ import annotations

import asyncio
import io

import pytest

from binance_api.errors import BadReply, Unreachable
from collectors.historical import HistoryReport, months_between
from collectors.historical_month import MonthOutcome, MonthState
from collectors.historical_progress import ProgressBars
from domain.errors import ConfigError
from lake.historical_files import AboutMonth
from lake.month_build import Month
from tests.vision_archives import at_ms

NOW_MS = at_ms(2025, 1, 15)


@pytest.mark.parametrize(
    ("first", "last", "months"),
    [
        (None, None, ("2024-10", "2024-11", "2024-12")),
        ("2024-11", None, ("2024-11", "2024-12")),
        (None, "2024-01", ("2023-11", "2023-12", "2024-01")),
        ("2024-12", "2025-01", ("2024-12", "2025-01")),
        ("2025-01", None, ("2025-01",)),
    ],
)
def test_months_default_to_the_last_three_whole_ones(first, last, months):
    assert months_between(first, last, NOW_MS) == months


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        ("2024-13", None, "--from"),
        ("july", None, "--from"),
        (None, "2024-1", "--to"),
        (None, "2025-02", "future"),
        ("2024-05", "2024-04", "after"),
        ("2016-05", "2024-04", "2017"),
        ("2025-03", None, "after"),
    ],
)
def test_months_that_make_no_sense_name_the_flag(first, last, text):
    with pytest.raises(ConfigError, match=text):
        months_between(first, last, NOW_MS)


def outcome(state, error=None, **fields):
    about = AboutMonth(
        symbol="BTCUSDT",
        kind="aggTrades",
        month="2024-12",
        parts=(),
        row_count=1_234_567,
        first_key=1,
        last_key=2,
        missing_count=7,
    )
    month = Month(symbol="BTCUSDT", kind="aggTrades", month="2024-12")
    return MonthOutcome(month=month, state=state, about=about, error=error, **fields)


def test_the_table_has_a_line_per_month_and_one_for_all():
    report = HistoryReport(
        (
            outcome(MonthState.PRESENT),
            outcome(MonthState.WHOLE, downloaded_bytes=12_345_678, note="2 daily files"),
            outcome(MonthState.WHOLE),
        )
    )
    head, first, second, _, total = report.text().splitlines()
    assert head.split() == [
        *("symbol", "kind", "month", "result", "rows", "missing", "downloaded"),
    ]
    assert first.split() == ["BTCUSDT", "aggTrades", "2024-12", "present", "1,234,567", "7"]
    assert second.endswith("12.3 MB  2 daily files")
    assert total == "3 months: 1 present, 2 whole"


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([None], 0),
        ([None, BadReply("x")], 1),
        ([BadReply("x"), Unreachable("x")], 3),
    ],
)
def test_the_exit_code_tells_out_of_reach_from_other_failures(errors, code):
    report = HistoryReport(tuple(outcome(MonthState.FAILED, error) for error in errors))
    assert report.exit_code == code


def test_there_is_a_bar_per_file_and_one_for_all():
    clock = iter([0.0, 12.0])
    bars = ProgressBars(4, io.StringIO(), lambda: next(clock))
    with bars.file("done"):
        pass
    with bars.file("BTCUSDT klines 2024-12") as bar:
        bar.show("2024-12", 5_000_000, 10_000_000)
        lines = bars.lines()
    assert lines == [
        "[############------------]  50%  BTCUSDT klines 2024-12  2024-12 5.0 MB",
        "[######------------------]  25%  1 of 4 months, 12 s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_drawn_below_the_log_on_a_terminal_alone():
    def drawn(stream):
        async def scenario():
            bars = ProgressBars(1, stream)
            with bars.file("BTCUSDT klines 2024-12"):
                task = asyncio.ensure_future(bars.run())
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(scenario())
        return stream.getvalue()

    text = drawn(Terminal())
    assert "BTCUSDT klines 2024-12  asking" in text
    assert "0 of 1 months" in text
    assert text.startswith("\r\x1b[J\n")  # an empty line is left for the log
    assert text.endswith("\r\x1b[J")
    assert drawn(io.StringIO()) == ""
