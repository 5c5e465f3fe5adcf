"""Days of the lake → a dataset: which days, where they are built, and what became of them.

``BuildSettings`` → ``DayReport`` per symbol and day as they finish. Days are independent: processes on
this machine, or a Dask scheduler's workers (``research.dask_run``), run the same ``build_day``. A
worker that dies takes nothing with it but its own day, which is tried once more, alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import structlog

from domain.errors import ConfigError
from domain.market import Market
from domain.model_card import ImageGeometry
from lake.atomic import remove_leftovers
from lake.historical_files import months_of
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.storage import Storage
from lake.stream_files import stream_dates
from microstructure.book_image import LONGEST_SPAN_MS
from microstructure.image_grid import check_geometry
from microstructure.measures import FEATURE_NAMES, MEASURE_NAMES
from microstructure.model_input import INPUT_VERSION
from research.dataset import DatasetInfo, read_info, write_info
from research.day_task import FAILED, DayReport, DayTask, Stopped, build_day

log = structlog.get_logger()

type OnStart = Callable[[], None]
"""Runs first in every worker process: sets up its log. Importable by name."""


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. ``lake`` is a data folder or its URI, ``out`` the dataset's."""

    lake: str
    out: str
    market: Market
    symbols: tuple[str, ...]
    dates: tuple[str, ...]
    window_ms: int
    geometry: ImageGeometry | None
    raw_dir: str | None = None


def dates_between(first: str, last: str) -> tuple[str, ...]:
    """All dates from ``first`` to ``last``, both included.

    Raises:
        ConfigError: One is no date, or they are the wrong way round.
    """
    bounds = []
    for flag, text in (("--from", first), ("--to", last)):
        try:
            at_ms = date_start_ms(text)
        except ValueError:
            raise ConfigError(f"{flag}: {text!r} is no day, write it as 2024-07-18") from None
        bounds.append(at_ms)
    if bounds[0] > bounds[1]:
        raise ConfigError("--to: lies before --from")
    return tuple(date_of(at_ms) for at_ms in range(bounds[0], bounds[1] + 1, DAY_MS))


def plan(settings: BuildSettings) -> list[DayTask]:
    """The tasks, after ``dataset.json`` was written or found to agree.

    Raises:
        ConfigError: The lake has none of these days, the dataset is another one, or an address or
            a size cannot be.
        StorageError: A storage refused.
    """
    lake, out = _storage("--lake", settings.lake), _storage("--out", settings.out)
    if settings.geometry is not None:
        try:
            check_geometry(settings.geometry, LONGEST_SPAN_MS)
        except ValueError as error:
            raise ConfigError(f"images: {error}") from error
    dates = settings.dates
    if lake.is_local:
        dates = _stored_dates(settings, lake)
    _agree(settings, out)
    if out.is_local:
        for symbol in settings.symbols:
            remove_leftovers(out.path(symbol))
    return [
        DayTask(
            lake=settings.lake,
            out=settings.out,
            market=settings.market.value,
            symbol=symbol,
            date=date,
            window_ms=settings.window_ms,
            geometry=settings.geometry,
            raw_dir=settings.raw_dir,
        )
        for symbol in settings.symbols
        for date in dates
    ]


def _storage(flag: str, uri: str) -> Storage:
    try:
        return Storage.of(uri)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _stored_dates(settings: BuildSettings, lake: Storage) -> tuple[str, ...]:
    """Those of the wanted dates that have files."""
    raw = None if settings.raw_dir is None else Path(settings.raw_dir)
    paths = LakePaths.of(Path(lake.root), settings.market, raw=raw)
    recorded = set(stream_dates(paths, "trades"))
    months = {m for symbol in settings.symbols for m in months_of(paths, symbol, "aggTrades")}
    found = tuple(d for d in settings.dates if d in recorded or d[:7] in months)
    if not found:
        raise ConfigError(
            f"--from, --to: {paths.raw} has none of these days; it has {_known(recorded, months)}"
        )
    return found


def _known(recorded: set[str], months: set[str]) -> str:
    parts = []
    if recorded:
        parts.append(f"recorded days from {min(recorded)} to {max(recorded)}")
    if months:
        parts.append(f"months of the archive from {min(months)} to {max(months)}")
    return " and ".join(parts) or "none at all"


def _agree(settings: BuildSettings, out: Storage) -> None:
    info = DatasetInfo(
        input_version=INPUT_VERSION,
        feature_names=FEATURE_NAMES,
        measure_names=MEASURE_NAMES,
        geometry=settings.geometry,
        market=settings.market.value,
        window_ms=settings.window_ms,
        source=settings.lake,
    )
    found = read_info(out)
    if found is None or found.input_version != INPUT_VERSION:  # older days are built anew
        write_info(out, info)
        return
    for name in ("market", "window_ms", "geometry", "feature_names"):
        if getattr(found, name) != getattr(info, name):
            raise ConfigError(
                f"--name: {settings.out} was built with another {name}; choose another name"
            )


def run_here(
    tasks: Sequence[DayTask], workers: int, on_start: OnStart | None = None
) -> Iterator[DayReport]:
    """Build days on this machine, yielding reports as they finish.

    Args:
        tasks: Days.
        workers: Processes; 1: in this one.
        on_start: See ``OnStart``.
    """
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            yield attempt(task)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each worker: they are as many as the cores
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    suspects: list[DayTask] = []

    def pool(size: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            size, mp_context=context, initializer=_start_worker, initargs=(stop, on_start)
        )

    waiting = list(reversed(tasks))
    while waiting:
        with pool(workers) as running, _stopping_first(stop):
            yield from _run_pool(running, workers, waiting, suspects)
    for task in suspects:
        with pool(1) as running, _stopping_first(stop):
            yield from _run_alone(running, task)


@contextlib.contextmanager
def _stopping_first(stop: Event) -> Iterator[None]:
    """Whatever ends the block before its time, the workers hear of it before anybody waits for them."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _run_pool(
    pool: ProcessPoolExecutor, workers: int, waiting: list[DayTask], suspects: list[DayTask]
) -> Iterator[DayReport]:
    """Until all are done or a worker died; whoever was at work then is suspect."""
    running: dict[Future[DayReport], DayTask] = {}
    is_broken = False
    while running or (waiting and not is_broken):
        while waiting and len(running) < workers and not is_broken:
            try:
                running[pool.submit(attempt, waiting[-1])] = waiting[-1]
                waiting.pop()
            except BrokenProcessPool:
                is_broken = True
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                yield future.result()
            except BrokenProcessPool:
                is_broken = True
                log.warning("features.worker_died", symbol=task.symbol, date=task.date)
                suspects.append(task)


def _run_alone(pool: ProcessPoolExecutor, task: DayTask) -> Iterator[DayReport]:
    try:
        report = pool.submit(attempt, task).result()
    except BrokenProcessPool:
        report = failure(task, "the process that built it died twice (out of memory?)")
    yield report


def attempt(task: DayTask) -> DayReport:
    """Build a day; what goes wrong with it is a report, and the others go on."""
    try:
        return build_day(task, _is_stopping)
    except Stopped:
        return failure(task, "stopped")
    except Exception as error:  # noqa: BLE001 - one day must not end the others; it is named
        return failure(task, f"{type(error).__name__}: {error}")


def failure(task: DayTask, reason: str) -> DayReport:
    """The report of a day that could not be built."""
    text = " ".join(reason.split())
    return DayReport(symbol=task.symbol, date=task.date, status=FAILED, reason=text)


_stop_event: Event | None = None


def _is_stopping() -> bool:
    return _stop_event is not None and _stop_event.is_set()


def _start_worker(stop: Event, on_start: OnStart | None) -> None:
    """A worker leaves when told to, or when its parent is gone; Ctrl-C is the parent's."""
    global _stop_event  # noqa: PLW0603 - one per worker process
    _stop_event = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    if on_start is not None:
        on_start()


def _leave_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
