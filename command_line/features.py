"""The ``features`` verb: days of the lake into datasets for models, and pictures of their images."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings
    from domain.model_card import ImageGeometry
    from research.build import BuildSettings
    from research.dataset import Dataset, DayData
    from research.day_task import DayReport
    from research.picture import Shown

_SIZES: Final = ("frames", "height", "width", "slot_ms")
_OWN: Final = (
    *("from", "to", "name", "workers", "scheduler", "out", "lake", "no_images", *_SIZES),
    *("at", "count", "dataset"),
)


def _add_arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(
        dest="action", metavar="build|show", required=True, parser_class=Parser
    )
    build = actions.add_parser("build", help="features, images and quotes of days", **_format())
    add = build.add_argument
    _add_common(build)
    add("--from", metavar="YYYY-MM-DD", help="first day, UTC; default: the newest day there is")
    add("--to", metavar="YYYY-MM-DD", help="last day, included; default: the same as --from")
    add(
        "--out", metavar="URI", help="folder of datasets, path or s3://…; default: below --data-dir"
    )
    add("--lake", metavar="URI", help="data folder to read, path or s3://…; default: --data-dir")
    add("--workers", metavar="N", type=int, help="processes; default: one per core")
    add("--scheduler", metavar="URL", help="Dask scheduler, tcp://host:port, instead of processes")
    add("--no-images", action="store_true", default=False, help="features and quotes alone")
    add("--frames", metavar="N", type=int, help="frames of an image, default 16")
    add("--height", metavar="N", type=int, help="price bins of an image, even, default 32")
    add("--width", metavar="N", type=int, help="slots per frame, default 8")
    add("--slot-ms", metavar="MS", type=int, help="length of a slot, default 100")
    show = actions.add_parser("show", help="a book image and a strip of them as PNG", **_format())
    add = show.add_argument
    _add_common(show)
    add("--at", metavar="TIME", help="decision time, UTC: 2026-11-01T08:30; default: the first one")
    add("--count", metavar="N", type=int, default=8, help="images of the strip, default 8")
    add("--out", metavar="FILE", help="the PNG, default SYMBOL-TIME.png")
    add(
        "--dataset", metavar="URI", help="folder of the dataset, instead of --name below --data-dir"
    )
    for action in (build, show):
        add_settings(
            action,
            first=("symbols", "market", "data_dir"),
            only=("log_level", "raw_data_dir", "window_duration"),
        )


def _format() -> dict[str, Any]:
    import argparse

    return {
        "argument_default": argparse.SUPPRESS,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": "\n".join(["examples:", *(f"  {example}" for example in VERB.examples)]),
        "allow_abbrev": False,
    }


def _add_common(parser: Any) -> None:
    add = parser.add_argument
    add("--symbol", dest="symbols", metavar="SYMBOLS", help="the same as --symbols")
    add("--name", default="default", help="of the dataset, default default")


def _run(given: dict[str, Any]) -> int:
    own: dict[str, Any] = {n: given.pop(n) for n in (*_OWN, "action") if n in given}
    settings = settings_of(given)
    with logging_for(settings):
        return _show(settings, own) if own["action"] == "show" else _build(settings, own)


def _build(settings: Settings, own: dict[str, Any]) -> int:
    from research.build import plan, run_here

    wanted = _wanted(settings, own)
    workers = own.get("workers", os.cpu_count() or 1)
    if not 1 <= workers <= 256:
        raise ConfigError(f"--workers: must be 1 to 256, not {workers}")
    tasks = plan(wanted)
    if "scheduler" in own:
        from research.dask_run import run_on_dask

        reports = run_on_dask(tasks, own["scheduler"])
    else:
        reports = run_here(tasks, min(workers, len(tasks)), start_worker_log)
    done: list[DayReport] = []
    try:
        _follow(reports, len(tasks), done)
    except KeyboardInterrupt:
        print(f"stopped after {len(done)} of {len(tasks)} days; the same command goes on")
        return 0
    print(_summary(done))
    return _exit_code(wanted, done)


def _wanted(settings: Settings, own: dict[str, Any]) -> BuildSettings:
    from research.build import BuildSettings, dates_between

    lake = own.get("lake", str(settings.data_root))
    first = own.get("from") or _newest_day(settings, own)
    raw = settings.raw_data_dir if "lake" not in own else None
    return BuildSettings(
        lake=lake,
        out=_dataset(settings, own, own.get("out")),
        market=settings.market,
        symbols=settings.symbols,
        dates=dates_between(first, own.get("to", first)),
        window_ms=settings.window_duration * 1000,
        geometry=None if own.get("no_images") else _geometry(own),
        raw_dir=None if raw is None else str(raw),
    )


def _newest_day(settings: Settings, own: dict[str, Any]) -> str:
    from lake.stream_files import stream_dates

    dates = [] if "lake" in own else stream_dates(settings.paths, "trades")
    if not dates:
        raise ConfigError("--from: name the first day, there is no recorded one to take")
    return dates[-1]


def _dataset(settings: Settings, own: dict[str, Any], folder: str | None) -> str:
    name = own["name"]
    if not name or name[0] in "._-" or not all(c.isalnum() or c in "._-" for c in name):
        raise ConfigError(f"--name: letters, digits and ._- only, not {name!r}")
    base = str(settings.paths.root / "datasets") if folder is None else folder
    head, mark, query = base.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


def _geometry(own: dict[str, Any]) -> ImageGeometry:
    from domain.model_card import ImageGeometry

    return ImageGeometry(**{name: own[name] for name in _SIZES if name in own})


def start_worker_log() -> None:
    """The log of a worker process: to stderr, like the parent's."""
    from command_line.verb import writing_logs

    writing_logs("INFO")


def _follow(reports: Iterable[DayReport], total: int, done: list[DayReport]) -> None:
    """Take reports as they come, with a bar on a terminal and a log line each."""
    import structlog

    log = structlog.get_logger()
    started_s = time.monotonic()
    is_shown = sys.stderr.isatty()
    _draw(is_shown, done, total, started_s)
    for report in reports:
        done.append(report)
        about = {"symbol": report.symbol, "date": report.date}
        if report.reason:
            log.error("features.day_failed", **about, reason=report.reason)
        else:
            log.info("features.day_done", **about, status=report.status, valid=report.valid)
        _draw(is_shown, done, total, started_s)
    if is_shown:
        sys.stderr.write("\r\x1b[J")


def _draw(is_shown: bool, done: list[DayReport], total: int, started_s: float) -> None:  # noqa: FBT001
    if not is_shown:
        return
    from collectors.historical_progress import bar

    ratio = len(done) / total
    elapsed_s = int(time.monotonic() - started_s)
    text = f"{bar(ratio)} {ratio:4.0%}  {len(done)} of {total} days, {elapsed_s} s"
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[J{text[:width]}")
    sys.stderr.flush()


def _summary(done: list[DayReport]) -> str:
    lines = [f"{'symbol':<12}{'day':<12}{'result':<11}{'windows':>8}{'valid':>8}{'s':>7}  note"]
    for report in sorted(done, key=lambda report: (report.symbol, report.date)):
        note = report.reason or ("" if report.has_depth else "from trades alone")
        lines.append(
            f"{report.symbol:<12}{report.date:<12}{report.status:<11}{report.windows:>8,}"
            f"{report.valid:>8,}{report.seconds:>7.1f}  {note}".rstrip()
        )
    return "\n".join(lines)


def _exit_code(wanted: BuildSettings, done: list[DayReport]) -> int:
    from research.day_task import EMPTY, FAILED

    if any(report.status == FAILED for report in done):
        return 1
    if all(report.status == EMPTY for report in done):
        symbols = ", ".join(wanted.symbols)
        raise ConfigError(f"--symbols: {wanted.lake} has no trades of {symbols} on these days")
    return 0


def _show(settings: Settings, own: dict[str, Any]) -> int:
    from domain.times import time_ms
    from lake.atomic import write_atomic
    from research.dataset import Dataset
    from research.picture import moment, render, shown_rows

    count = own["count"]
    if not 1 <= count <= 32:
        raise ConfigError(f"--count: must be 1 to 32, not {count}")
    try:
        at_ms = time_ms(own.get("at"))
    except ValueError as error:
        raise ConfigError(f"--at: {error}") from error
    dataset = Dataset.open(own.get("dataset") or _dataset(settings, own, None))
    symbol = settings.symbols[0]
    day = dataset.day(symbol, _day_of(dataset.dates(symbol), at_ms, symbol))
    rows = shown_rows(day, at_ms, count)
    shown = _shown(dataset, day, rows)
    name = f"{symbol}-{moment(int(day.decision_ms[rows[-1]])):%Y%m%dT%H%M%S}.png"
    target = Path(own.get("out", name))
    write_atomic(target, render(shown), overwrite=True)
    print(target)
    return 0


def _shown(dataset: Dataset, day: DayData, rows: Any) -> Shown:
    from research.picture import Shown, pixels_of

    if dataset.info.geometry is None:
        raise ConfigError("--name: this dataset has no images; build one without --no-images")
    widths = dataset.columns(day.symbol, day.date, ["bin_width"])["bin_width"]
    return Shown(day, dataset.info.geometry, rows, pixels_of(day, rows), widths[rows])


def _day_of(dates: tuple[str, ...], at_ms: int | None, symbol: str) -> str:
    """The day whose windows end at a time; a day's last window ends at midnight."""
    from lake.part_files import date_of

    if not dates:
        raise ConfigError(f"--symbol: the dataset has no days of {symbol}")
    if at_ms is None:
        return dates[0]
    date = date_of(at_ms - 1)
    if date not in dates:
        raise ConfigError(f"--at: the dataset has no {date}, but {dates[0]} to {dates[-1]}")
    return date


VERB = Verb(
    about=(
        "Days of the lake as datasets for models: features, book images and quotes, one task per\n"
        "symbol and day. Days that are there and unchanged are skipped. show: images as PNG."
    ),
    examples=(
        "python main.py features build --symbol BTCUSDT --from 2026-11-01 --to 2026-11-07",
        "python main.py features build --symbol BTCUSDT,ETHUSDT --from 2026-11-01 --workers 4",
        "python main.py features build --from 2026-11-01 --scheduler tcp://10.0.0.5:8786 \\",
        "    --lake s3://lake/data --out s3://lake/datasets",
        "python main.py features show --symbol BTCUSDT --at 2026-11-01T08:30 --out picture.png",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
