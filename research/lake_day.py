"""One symbol's day out of the lake: what it is made of, its trades and books, and its holes.

A lake (a folder, or one far away whose files are fetched first) → ``TRADE_DTYPE`` rows and ``BookTape``,
recorded, repaired and historical trades as one sequence.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

import lake
from domain.market import Market
from lake.columns import numpy_of
from lake.hole_times import hole_times
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS
from lake.sequence import Rows
from lake.storage import Storage, StoredFile
from market_orchestrator.replay_rows import trade_rows
from microstructure.book_tape import BookTape, Floats

LEVELS: Final = 20
LONG_HOLE_S: Final = 900.0
_BOOK_COLUMNS: Final = (
    *("transact_time_ms", "final_update_id", "prev_final_update_id", "bids", "asks"),
)


class Books(msgspec.Struct, frozen=True, eq=False):
    """Snapshots, and the update ids at their ends; -1 where there is none."""

    tape: BookTape
    before: int = -1  # the first snapshot's predecessor
    final: int = -1  # of the last snapshot

    def followed_by(self, later: Books) -> Books:
        """Both, with a break between them where the ids do not join."""
        if not len(later.tape) or not len(self.tape):
            return later if len(later.tape) else self
        tape = BookTape.joined([self.tape, later.tape])
        tape.is_break[len(self.tape)] = later.before >= 0 and later.before != self.final
        return Books(tape, self.before, later.final)

    def since(self, start_ms: int) -> Books:
        """Snapshots with ``T >= start_ms``."""
        first = int(np.searchsorted(self.tape.time_ms, start_ms))
        return Books(self.tape.slice(first, len(self.tape)), -1, self.final)


class LakeDay(msgspec.Struct, frozen=True, kw_only=True):
    """Where a symbol's day is read from.

    Attributes:
        data_dir: The data folder, on this machine.
        market: Of the lake.
        symbol: Upper case.
        date: UTC, ``YYYY-MM-DD``.
        raw_dir: Replaces the ``raw`` subtree.
    """

    data_dir: Path
    market: Market
    symbol: str
    date: str
    raw_dir: Path | None = None

    def trades(self, start_ms: int, end_ms: int) -> np.ndarray:
        """``TRADE_DTYPE`` rows with ``start_ms <= T < end_ms``, ascending by id.

        Raises:
            StorageError: The system refused to read a file.
        """
        table = lake.read("trades", self.symbol, start_ms, end_ms, **self._place())
        return trade_rows(table, {self.symbol: 0})

    def books(self, start_ms: int, end_ms: int) -> Books:
        """Snapshots with ``start_ms <= T < end_ms``.

        Raises:
            StorageError: The system refused to read a file.
        """
        columns = list(_BOOK_COLUMNS)
        place = self._place()
        return books_of(lake.read("depth", self.symbol, start_ms, end_ms, columns=columns, **place))

    def has(self, kind: Literal["trades", "depth"]) -> bool:
        """Whether the day itself has any rows.

        Raises:
            StorageError: The system refused to read a file.
        """
        start_ms = date_start_ms(self.date)
        columns = ["transact_time_ms"]
        place = self._place()
        table = lake.read(kind, self.symbol, start_ms, start_ms + DAY_MS, columns=columns, **place)
        return bool(table.num_rows)

    def holes(self) -> npt.NDArray[np.int64]:
        """Holes of more than 15 minutes around the day, as ``lake.hole_times`` gives them."""
        return hole_times(self._gaps(), longer_than_s=LONG_HOLE_S)

    def fingerprint(self, files: list[StoredFile]) -> str:
        """What the day is made of: changes when a file or an entry of the gap ledger does."""
        parts = [[(file.name, file.size_bytes) for file in files], self._gaps()]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def _gaps(self) -> list[Any]:
        start_ms = date_start_ms(self.date)
        return lake.gaps(
            self.symbol,
            start_ms - DAY_MS,
            start_ms + DAY_MS,
            data_dir=self.data_dir,
            market=self.market,
        )

    def _place(self) -> dict[str, Any]:
        return {"data_dir": self.data_dir, "market": self.market, "raw_dir": self.raw_dir}


def day_files(storage: Storage, market: Market, symbol: str, date: str) -> list[StoredFile]:
    """The files that can hold rows of a day or of the look-back before it.

    Args:
        storage: The data folder.
        market: Its trees other than USDⓈ-M lie in a folder of their own.
        symbol: Upper case.
        date: UTC.

    Raises:
        StorageError: The storage refused.
    """
    tree = "raw" if market is Market.UM else f"{market.value}/raw"
    start_ms = date_start_ms(date)
    dates = [date_of(start_ms - DAY_MS), date]
    found = [
        file
        for kind in ("trades", "depth")
        for day in dates
        for file in storage.files(f"{tree}/stream/{kind}/{day}")
    ]
    months = {f"aggTrades_{day[:7]}.parquet" for day in dates}
    folder = f"{tree}/historical/{symbol}"
    found += [f for f in storage.files(folder) if f.name.rpartition("/")[2] in months]
    return [f for f in found if f.name.endswith(".parquet") and "/." not in f.name]


@contextlib.contextmanager
def day_of_lake(
    storage: Storage, market: Market, symbol: str, date: str, raw_dir: Path | None = None
) -> Iterator[tuple[LakeDay, str]]:
    """A day to read from, with its fingerprint; files that are far away are fetched when read.

    Raises:
        StorageError: The storage refused.
    """
    if storage.is_local:
        day = LakeDay(
            data_dir=Path(storage.root), market=market, symbol=symbol, date=date, raw_dir=raw_dir
        )
        raw = storage if raw_dir is None else Storage.of(raw_dir.parent)
        yield day, day.fingerprint(day_files(raw, market, symbol, date))
        return
    files = day_files(storage, market, symbol, date)
    ledger = "gaps/recorder.jsonl" if market is Market.UM else f"{market.value}/gaps/recorder.jsonl"
    with tempfile.TemporaryDirectory(prefix="orderflow-lake-") as folder:
        storage.fetch([ledger], Path(folder))
        day = LakeDay(data_dir=Path(folder), market=market, symbol=symbol, date=date)
        yield day, day.fingerprint(files)


def fetch_day(storage: Storage, day: LakeDay) -> None:
    """Bring the files of a day that is far away; those of this machine are there.

    Raises:
        StorageError: The storage or the disk refused.
    """
    if not storage.is_local:
        files = day_files(storage, day.market, day.symbol, day.date)
        storage.fetch([file.name for file in files], day.data_dir)


def books_of(table: Rows) -> Books:
    """Depth rows in order of time as a tape of 20 levels; the first row begins a chain."""
    if not table.num_rows:
        return Books(BookTape.empty(LEVELS))
    final = numpy_of(table.column("final_update_id"))
    previous: Any = table.column("prev_final_update_id")
    before = numpy_of(previous.fill_null(-1))
    is_break = np.zeros(len(final), np.bool_)
    is_break[1:] = (before[1:] != final[:-1]) & (before[1:] >= 0)
    bid_price, bid_size = _levels(table.column("bids"), len(final))
    ask_price, ask_size = _levels(table.column("asks"), len(final))
    times = numpy_of(table.column("transact_time_ms"))
    tape = BookTape.of_arrays(times, bid_price, bid_size, ask_price, ask_size, is_break)
    return Books(tape, int(before[0]), int(final[-1]))


def _levels(column: Any, count: int) -> tuple[Floats, Floats]:
    """A column of ``[[price, size], …]`` as two float64[n, 20]; NaN where a level is absent."""
    prices, sizes = np.empty((count, LEVELS)), np.empty((count, LEVELS))
    first = 0
    for chunk in column.chunks:
        bounds = numpy_of(chunk.values.offsets)[numpy_of(chunk.offsets)] // 2
        pairs = numpy_of(chunk.values.values).reshape(-1, 2)[bounds[0] : bounds[-1]]
        rows = slice(first, first + len(chunk))
        first += len(chunk)
        depth = np.diff(bounds)
        if (depth == LEVELS).all():
            prices[rows] = pairs[:, 0].reshape(-1, LEVELS)
            sizes[rows] = pairs[:, 1].reshape(-1, LEVELS)
            continue
        prices[rows], sizes[rows] = np.nan, np.nan
        row = np.repeat(np.arange(len(depth)), depth)
        level = np.arange(len(pairs)) - np.repeat(bounds[:-1] - bounds[0], depth)
        shown = level < LEVELS
        prices[rows][row[shown], level[shown]] = pairs[shown, 0]
        sizes[rows][row[shown], level[shown]] = pairs[shown, 1]
    return prices, sizes
