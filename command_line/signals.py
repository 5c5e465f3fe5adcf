"""The ``signals`` verb: past signals against what the market then did."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError
from domain.market import Market

if TYPE_CHECKING:
    from config import Settings
    from evaluation.report import Report, ReportOptions

TAKER_FEE_BPS = {Market.UM: 5.0, Market.SPOT: 10.0}  # lowest tier, without discounts


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--symbols", help="only these, comma between two; default: all that have signals")
    add_settings(parser, first=("market", "data_dir"), only=("log_level",), without=("symbols",))
    add("--from", dest="start", metavar="TIME", help="first day or time, UTC: 2026-11-01[T08:30]")
    add("--to", dest="end", metavar="TIME", help="last day (included), or time (excluded), UTC")
    add("--fee-bps", metavar="BPS", help="taker fee of one leg, default 5 on um, 10 on spot")
    add("--json", metavar="FILE", type=Path, help="also write every number as JSON")
    add("--html", metavar="FILE", type=Path, help="also write a page with plots")


def _run(given: dict[str, Any]) -> int:
    own = {n: given.pop(n, None) for n in ("start", "end", "fee_bps", "json", "html")}
    settings = settings_of(given)
    options = _options(settings, own, only_named="symbols" in given)
    for name in ("json", "html"):
        _check_target(f"--{name}", own[name])
    if "data_dir" in given and not settings.data_root.is_dir():
        raise ConfigError(f"DATA_DIR (--data-dir): {settings.data_root} does not exist")
    with logging_for(settings):
        report = _report(settings, options)
        if not report.signals:
            print(_nothing(settings))
        else:
            from evaluation.text_report import render_text

            print(render_text(report, shutil.get_terminal_size((110, 24)).columns), end="")
        _write(report, own["json"], own["html"])
    return 0


def _options(settings: Settings, own: dict[str, Any], *, only_named: bool) -> ReportOptions:
    from evaluation.report import ReportOptions

    start_ms = _time("--from", own["start"], is_end=False)
    end_ms = _time("--to", own["end"], is_end=True)
    if start_ms is not None and end_ms is not None and start_ms >= end_ms:
        raise ConfigError("--to: lies before --from")
    return ReportOptions(
        fee_bps=_fee(own["fee_bps"], settings.market),
        symbols=settings.symbols if only_named else None,
        start_ms=start_ms,
        end_ms=end_ms,
    )


def _fee(text: str | None, market: Market) -> float:
    if text is None:
        return TAKER_FEE_BPS[market]
    try:
        fee = float(text)
    except ValueError:
        fee = -1.0
    if not 0.0 <= fee <= 1_000.0:
        raise ConfigError("--fee-bps: must be a number from 0 to 1000")
    return fee


def _time(flag: str, text: str | None, *, is_end: bool) -> int | None:
    """A day or time in ms; a day as the end means all of it."""
    if text is None:
        return None
    is_day = re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) is not None
    try:
        at = dt.datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=dt.UTC)
        if is_day and is_end:
            at += dt.timedelta(days=1)
        return round(at.timestamp() * 1_000)
    except (ValueError, OverflowError):
        raise ConfigError(f"{flag}: must be a day or time such as 2026-11-01T08:30") from None


def _check_target(flag: str, path: Path | None) -> None:
    """A report takes a while: a place that cannot take it is named before."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        reason = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"{flag}: {path} {reason}")


def _report(settings: Settings, options: ReportOptions) -> Report:
    from evaluation.kline_prices import KlinePrices
    from evaluation.report import build_report
    from evaluation.trade_prices import TradePrices
    from feature_store import FeatureStore
    from lake.signal_store import signal_store

    paths = settings.paths
    return build_report(
        FeatureStore(paths.root),
        signal_store(paths.signals),
        options,
        KlinePrices(paths),
        TradePrices(paths),
    )


def _nothing(settings: Settings) -> str:
    """Why there is nothing to show, and which folders beside would have something."""
    folder = settings.paths.signals
    candidates = [Path("data"), Path("data-demo"), *sorted(Path("data-replay").glob("*"))]
    others = [
        str(path)
        for path in candidates
        if path.resolve() != settings.data_root.resolve() and (path / "signals").is_dir()
    ]
    hint = f"; --data-dir can be {' or '.join(others)}" if others else ""
    return f"no signals of these symbols and times in {folder}{hint}"


def _write(report: Report, json_path: Path | None, html_path: Path | None) -> None:
    import msgspec

    from evaluation.html_report import render_html
    from lake.atomic import write_atomic

    if json_path is not None:
        content = msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
        write_atomic(json_path, content, overwrite=True)
    if html_path is not None:
        write_atomic(html_path, render_html(report).encode(), overwrite=True)


VERB = Verb(
    about="Report on past signals against what the market then did: hits, money, calibration.",
    examples=(
        "python main.py signals --data-dir data-demo",
        "python main.py signals --from 2026-11-01 --to 2026-11-07 --symbols BTCUSDT",
        "python main.py signals --html signals.html --json signals.json",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
