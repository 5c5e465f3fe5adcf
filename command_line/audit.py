"""The ``audit`` verb: is what the lake holds whole?"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from audit.check_completeness import CompletenessReport
    from audit.check_stream import StreamReport
    from config import Settings

HOLES_EXIT_CODE = 4


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("what", choices=("completeness", "stream"), help="trades and klines, or the recording")
    add("--from", metavar="WHEN", help="first month (YYYY-MM), of stream: date (YYYY-MM-DD)")
    add("--to", metavar="WHEN", help="last month or date, inclusive")
    add(
        "--json",
        metavar="FILE",
        type=Path,
        help="where the report goes, default DATA_DIR/audit/WHAT-TIME.json",
    )
    add(
        "--rest-pages",
        metavar="N",
        type=int,
        default=5,
        help="completeness: compare so many pages of 1,000 trades a symbol with REST, 0: none",
    )
    add_settings(
        parser,
        first=("symbols", "market", "data_dir"),
        only=(
            *("log_level", "raw_data_dir", "binance_rest_url", "binance_spot_rest_url"),
            "binance_rate_limit_weight",
            "binance_rate_limit_concurrency",
            "binance_rate_limit_window_seconds",
        ),
    )


def _run(given: dict[str, Any]) -> int:
    what, target = given.pop("what"), given.pop("json", None)
    first, last = given.pop("from", None), given.pop("to", None)
    pages = given.pop("rest_pages")
    is_named = "symbols" in given
    settings = settings_of(given)
    if not settings.paths.root.is_dir():
        raise ConfigError(f"DATA_DIR (--data-dir): {settings.paths.root} does not exist")
    with logging_for(settings):
        report: CompletenessReport | StreamReport | None
        if what == "completeness":
            report = _completeness(settings, first, last, pages)
        else:
            report = _stream(settings, first, last)
        if report is None:  # stopped by a signal
            return 0
        print(report.text())
        default = settings.paths.root / "audit" / f"{what}-{_stamp()}.json"
        try:
            _write(report, target or default)
        except StorageError as error:  # a folder kept read-only can be audited all the same
            if target is not None:
                raise
            print(f"\nno report: {error}", file=sys.stderr)
    lacks_all = bool(report.unknown) and (is_named or len(report.unknown) == len(report.symbols))
    if lacks_all:
        print(f"nothing is known of {', '.join(report.unknown)} here", file=sys.stderr)
    return HOLES_EXIT_CODE if report.has_holes or lacks_all else 0


def _completeness(
    settings: Settings, first: str | None, last: str | None, pages: int
) -> CompletenessReport | None:
    from audit.check_completeness import check_completeness
    from binance_api.rest import RestClient

    reports: list[CompletenessReport] = []

    async def work() -> int:
        async with RestClient(settings.rest_settings) as rest:
            report = await check_completeness(
                settings.paths,
                settings.symbols,
                rest,
                first_month=first,
                last_month=last,
                rest_pages=pages,
                on_progress=_show,
            )
        reports.append(report)
        return 0

    run_loop(work())
    return reports[0] if reports else None


def _stream(settings: Settings, first: str | None, last: str | None) -> StreamReport:
    from audit.check_stream import check_stream

    return check_stream(
        settings.paths,
        settings.symbols,
        first_date=first,
        last_date=last,
        on_progress=_show,
    )


def _show(symbol: str, period: str, done: float) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{symbol} {period} {min(done, 1):4.0%} " + "\n" * (done >= 1))
        sys.stderr.flush()


def _write(report: CompletenessReport | StreamReport, path: Path) -> None:
    import msgspec

    from lake.atomic import write_atomic

    encoded = msgspec.json.encode(report, enc_hook=str)
    write_atomic(path, msgspec.json.format(encoded, indent=1) + b"\n", overwrite=True)
    print(f"\nreport: {path}")


def _stamp() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


VERB = Verb(
    about=(
        "Check that what the lake holds is whole, and certify every hour of it: whole, repaired "
        "(from what),\nor holed (what, why, until when it can be repaired). Exit code 4 when there "
        "are holes,\nor nothing is known of a symbol asked for."
    ),
    examples=(
        "python main.py audit completeness",
        "python main.py audit completeness --symbols ETHUSDT --from 2024-07 --to 2024-07",
        "python main.py audit stream --from 2026-11-20 --json stream.json",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
