"""One symbol and day of the lake → its three files of a dataset. Pure but for reading and writing.

The same function runs here, in a process of its own or on a Dask worker. A day is read an hour at a
time, with the look-back before midnight from the day before; the feature table, which says that the day
is whole, is written last.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.market import Market
from domain.model_card import ImageGeometry
from lake.dataset_files import ImageWriter, write_columns, writing_images
from lake.hole_times import touching_holes
from lake.part_files import date_start_ms
from lake.paths import DAY_MS
from lake.storage import Storage
from microstructure.book_image import IMAGE_LOOK_BACK_MS, Images, bin_widths, book_images
from microstructure.book_tape import BookTape, Floats
from microstructure.erosion_image import EROSION_LOOK_BACK_MS, erosion_bin_widths, erosion_images
from microstructure.measures import (
    FEATURE_NAMES,
    LOOK_BACK_WINDOWS,
    day_bins,
    day_measures,
    features_of,
)
from microstructure.model_input import INPUT_VERSION
from microstructure.quote_path import STALE_MS, QuotePath, quote_path, trade_quote_path
from research.dataset import (
    FEATURES_SUFFIX,
    IMAGES_KEY,
    IMAGES_SUFFIX,
    QUOTES_KEY,
    QUOTES_SUFFIX,
    SOURCE_KEY,
    VERSION_KEY,
    day_facts,
)
from research.lake_day import LakeDay, day_of_lake, fetch_day

CHUNK_MS: Final = 3_600_000
BUILT: Final = "built"
SKIPPED: Final = "unchanged"
EMPTY: Final = "no trades"
FAILED: Final = "failed"

type Times = npt.NDArray[np.int64]


class DayTask(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. ``lake`` and ``out`` are paths or URIs; ``out`` is the dataset's folder."""

    lake: str
    out: str
    market: str
    symbol: str
    date: str
    window_ms: int
    geometry: ImageGeometry | None
    raw_dir: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.symbol} {self.date}"


class DayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a day."""

    symbol: str
    date: str
    status: str
    windows: int = 0
    valid: int = 0
    has_depth: bool = True
    seconds: float = 0.0
    reason: str = ""


class Stopped(Exception):
    """The run is to end; the day is left as it was."""


class _Chunk(msgspec.Struct, frozen=True, eq=False):
    """Rows of one stretch of the day, with the look-back before it."""

    start_ms: int
    end_ms: int
    trades: np.ndarray
    tape: BookTape


class _Day(msgspec.Struct, frozen=True, eq=False):
    """What is gathered of the day, chunk by chunk; of the books, the best level."""

    has_depth: bool
    begin_ms: list[int] = []  # one: since when the lake knows anything
    bins: list[np.ndarray] = []
    trades: list[np.ndarray] = []
    touch: list[BookTape] = []
    is_pictured: list[npt.NDArray[np.bool_]] = []
    bin_width: list[Floats] = []


def build_day(task: DayTask, is_stopping: Callable[[], bool] | None = None) -> DayReport:
    """Build a day's files unless they are there and made of the same.

    Args:
        task: Which day, from where, to where.
        is_stopping: Asked between hours.

    Raises:
        StorageError: A storage refused.
        Stopped: As asked.
    """
    started_s = time.monotonic()
    out, lake = Storage.of(task.out), Storage.of(task.lake)
    raw_dir = None if task.raw_dir is None else Path(task.raw_dir)
    place = (Market(task.market), task.symbol, task.date)
    with day_of_lake(lake, *place, raw_dir) as (day, fingerprint):
        if is_whole(out, task, fingerprint):
            return DayReport(symbol=task.symbol, date=task.date, status=SKIPPED)
        fetch_day(lake, day)
        report = _built(task, day, out, fingerprint, is_stopping or (lambda: False))
    return msgspec.structs.replace(report, seconds=time.monotonic() - started_s)


def is_whole(out: Storage, task: DayTask, fingerprint: str) -> bool:
    """Whether the day's files are there, of these inputs and this source."""
    facts = day_facts(out, task.symbol, task.date)
    if facts is None or facts.get(VERSION_KEY) != INPUT_VERSION:
        return False
    stem = f"{task.symbol}/{task.date}"
    needed = [QUOTES_SUFFIX] if task.geometry is None else [QUOTES_SUFFIX, IMAGES_SUFFIX]
    return facts.get(SOURCE_KEY) == fingerprint and all(out.exists(stem + n) for n in needed)


def _built(
    task: DayTask,
    day: LakeDay,
    out: Storage,
    fingerprint: str,
    is_stopping: Callable[[], bool],
) -> DayReport:
    if not day.has("trades"):
        return DayReport(symbol=task.symbol, date=task.date, status=EMPTY)
    start_ms, stem = date_start_ms(task.date), f"{task.symbol}/{task.date}"
    gathered = _Day(has_depth=day.has("depth"))
    images_sha256 = ""
    if task.geometry is None:
        _gather(task, day, gathered, None, is_stopping)
    else:
        with writing_images(out, stem + IMAGES_SUFFIX, task.geometry.shape) as writer:
            _gather(task, day, gathered, writer, is_stopping)
        images_sha256 = writer.sha256
    trades, touch = np.concatenate(gathered.trades), BookTape.joined(gathered.touch)
    span = (start_ms, start_ms + DAY_MS)
    path = quote_path(touch, *span) if gathered.has_depth else trade_quote_path(trades, *span)
    quotes_sha256 = write_columns(out, stem + QUOTES_SUFFIX, _quote_columns(path))
    table = _table(task, day.holes(), gathered, trades, touch, path)
    facts = {
        VERSION_KEY: INPUT_VERSION,
        SOURCE_KEY: fingerprint,
        IMAGES_KEY: images_sha256,
        QUOTES_KEY: quotes_sha256,
    }
    write_columns(out, stem + FEATURES_SUFFIX, table, facts)
    return DayReport(
        symbol=task.symbol,
        date=task.date,
        status=BUILT,
        windows=len(table["decision_ms"]),
        valid=int(table["is_valid"].sum()),
        has_depth=gathered.has_depth,
    )


def _gather(
    task: DayTask,
    day: LakeDay,
    gathered: _Day,
    writer: ImageWriter | None,
    is_stopping: Callable[[], bool],
) -> None:
    day_ms = date_start_ms(task.date)
    for chunk in _chunks(task, day):
        if is_stopping():
            raise Stopped(task.name)
        if not gathered.begin_ms:
            heads = (chunk.trades["transact_time_ms"][:1], chunk.tape.time_ms[:1])
            gathered.begin_ms.extend(sorted(np.concatenate(heads).tolist())[:1])
        tape = chunk.tape.between(chunk.start_ms, chunk.end_ms)
        gathered.touch.append(_touch(tape))
        if chunk.start_ms >= day_ms + DAY_MS:
            break
        starts = np.arange(chunk.start_ms, chunk.end_ms, task.window_ms, dtype=np.int64)
        times = np.maximum.accumulate(chunk.trades["transact_time_ms"])
        first, stop = np.searchsorted(times, [chunk.start_ms, chunk.end_ms]).tolist()
        trades = chunk.trades[first:stop]
        gathered.bins.append(day_bins(trades, tape, starts, task.window_ms))
        gathered.trades.append(trades)
        if writer is not None and task.geometry is not None and chunk.start_ms >= day_ms:
            decisions = starts + task.window_ms
            images = _images(chunk, decisions, task.geometry, gathered)
            writer.add(decisions, images[0], images[1])
            gathered.is_pictured.append(images[2])
            gathered.bin_width.append(_bin_widths(chunk, decisions, gathered))


def _images(chunk: _Chunk, decisions: Times, geometry: ImageGeometry, gathered: _Day) -> Images:
    if gathered.has_depth:
        return book_images(chunk.tape, chunk.trades, decisions, geometry)
    return erosion_images(chunk.trades, decisions, geometry)


def _bin_widths(chunk: _Chunk, decisions: Times, gathered: _Day) -> Floats:
    if gathered.has_depth:
        return bin_widths(chunk.tape, decisions)
    return erosion_bin_widths(chunk.trades, decisions)


def _chunks(task: DayTask, day: LakeDay) -> Iterator[_Chunk]:
    """The look-back before midnight, the day hour by hour, and the second after it."""
    day_ms = date_start_ms(task.date)
    end_ms = day_ms + DAY_MS
    step_ms = max(CHUNK_MS - CHUNK_MS % task.window_ms, task.window_ms)
    bounds = [day_ms - (LOOK_BACK_WINDOWS - 1) * task.window_ms, *range(day_ms, end_ms, step_ms)]
    bounds += [end_ms, end_ms + STALE_MS]
    trades = day.trades(bounds[0] - EROSION_LOOK_BACK_MS, bounds[0])
    books = day.books(bounds[0] - IMAGE_LOOK_BACK_MS, bounds[0])
    for first_ms, stop_ms in itertools.pairwise(bounds):
        kept = trades["transact_time_ms"] >= first_ms - EROSION_LOOK_BACK_MS
        trades = np.concatenate([trades[kept], day.trades(first_ms, stop_ms)])
        books = books.since(first_ms - IMAGE_LOOK_BACK_MS)
        books = books.followed_by(day.books(first_ms, stop_ms))
        yield _Chunk(first_ms, stop_ms, trades, books.tape)


def _touch(tape: BookTape) -> BookTape:
    """The best level alone, in memory of its own."""
    return BookTape.of_arrays(
        tape.time_ms.copy(),
        tape.bid_price[:, :1].copy(),
        tape.bid_size[:, :1].copy(),
        tape.ask_price[:, :1].copy(),
        tape.ask_size[:, :1].copy(),
        tape.is_break.copy(),
    )


def _quote_columns(path: QuotePath) -> dict[str, npt.NDArray[Any]]:
    return {"slot_ms": path.time_ms, "bid_price": path.bid_price, "ask_price": path.ask_price}


def _table(
    task: DayTask,
    holes: Times,
    gathered: _Day,
    trades: np.ndarray,
    touch: BookTape,
    path: QuotePath,
) -> dict[str, npt.NDArray[Any]]:
    """The columns of the feature table."""
    bins = np.concatenate(gathered.bins)
    day_ms = date_start_ms(task.date)
    first = int(np.searchsorted(bins["start_ms"], day_ms))
    starts = bins["start_ms"][first:]
    features = features_of(bins, task.window_ms)[first:]
    measures = day_measures(trades, touch, starts, task.window_ms)
    decisions = starts + task.window_ms
    slot = np.searchsorted(path.time_ms, decisions)
    bid, ask = path.bid_price[slot], path.ask_price[slot]
    look_back = decisions - LOOK_BACK_WINDOWS * task.window_ms
    is_valid = np.isfinite(bid + ask) & (look_back >= gathered.begin_ms[0])
    is_valid &= ~touching_holes(look_back, decisions, holes)
    breaks = touch.time_ms[touch.is_break]
    since = np.searchsorted(breaks, look_back)
    is_valid &= np.searchsorted(breaks, decisions) == since
    bin_width = np.full(len(decisions), np.nan)
    if gathered.is_pictured:
        bin_width = np.concatenate(gathered.bin_width)
        is_valid &= np.concatenate(gathered.is_pictured)
    return {
        "decision_ms": decisions,
        **{name: features[:, column] for column, name in enumerate(FEATURE_NAMES)},
        **measures,
        "mid_price": (bid + ask) / 2.0,
        "bid_price": bid,
        "ask_price": ask,
        "bin_width": bin_width,
        "is_valid": is_valid,
        "has_depth": np.full(len(decisions), gathered.has_depth),
    }
