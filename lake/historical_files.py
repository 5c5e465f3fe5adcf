"""The archive's months on disk: their place, columns, what each file says of itself, and reading.

Consumes ``raw/historical/SYMBOL/{klines,aggTrades}_YYYY-MM.parquet`` → produces Arrow tables sorted
and unique by ``KEY``. Every file carries an ``AboutMonth`` (which archives its rows come from, with
their checksums); a file without one, or that cannot be read, is not whole.
"""

from __future__ import annotations

import calendar
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domain.intervals import DAY_MS, MINUTE_MS
from lake.columns import mask_array, numpy_of
from lake.part_files import DamagedFile, RowRange, empty_table, read_failure, wanted_groups
from lake.paths import LakePaths

type HistoryKind = Literal["aggTrades", "klines"]

KINDS: Final[tuple[HistoryKind, ...]] = ("aggTrades", "klines")
ABOUT_KEY: Final = b"orderflow.month"

_AGG_TRADE_COLUMNS: list[pa.Field[Any]] = [
    pa.field("agg_trade_id", pa.int64()),
    pa.field("price", pa.float64()),
    pa.field("quantity", pa.float64()),
    pa.field("first_trade_id", pa.int64()),
    pa.field("last_trade_id", pa.int64()),
    pa.field("transact_time_ms", pa.int64()),
    pa.field("is_buyer_maker", pa.bool_()),
]
_KLINE_COLUMNS: list[pa.Field[Any]] = [
    pa.field("open_time_ms", pa.int64()),
    pa.field("open", pa.float64()),
    pa.field("high", pa.float64()),
    pa.field("low", pa.float64()),
    pa.field("close", pa.float64()),
    pa.field("volume", pa.float64()),
    pa.field("close_time_ms", pa.int64()),
    pa.field("quote_volume", pa.float64()),
    pa.field("trade_count", pa.int64()),
    pa.field("taker_buy_volume", pa.float64()),
    pa.field("taker_buy_quote_volume", pa.float64()),
]
AGG_TRADE_SCHEMA: Final = pa.schema(_AGG_TRADE_COLUMNS)
KLINE_SCHEMA: Final = pa.schema(_KLINE_COLUMNS)


class KindLayout(msgspec.Struct, frozen=True):
    """How the rows of one kind are keyed.

    Attributes:
        schema: The columns, in order.
        key: Column the rows are sorted and unique by.
        step: Distance of neighbouring keys when nothing is missing.
        time_column: Column with the row's time, ms.
    """

    schema: pa.Schema
    key: str
    step: int
    time_column: str


LAYOUTS: Final[dict[HistoryKind, KindLayout]] = {
    "aggTrades": KindLayout(AGG_TRADE_SCHEMA, "agg_trade_id", 1, "transact_time_ms"),
    "klines": KindLayout(KLINE_SCHEMA, "open_time_ms", MINUTE_MS, "open_time_ms"),
}


class ArchivePart(msgspec.Struct, frozen=True, kw_only=True):
    """One archive whose rows are in the file. ``period`` is ``YYYY-MM`` or ``YYYY-MM-DD``."""

    period: str
    url: str
    sha256: str
    row_count: int


class AboutMonth(msgspec.Struct, frozen=True, kw_only=True):
    """What a month's file says of itself.

    Attributes:
        symbol, kind, month: What it holds.
        parts: The archives, in the order they were worked in.
        row_count: Rows in the file.
        first_key, last_key: Lowest and highest id or open time; ``None`` in a file without rows.
        duplicate_count: Rows left out because their key was there already.
        conflict_count: Those of them whose other columns differed (the first row was kept).
        disordered_count: Rows that came after a row with a higher key.
        missing_count: Keys that lie between the first and the last and are not there.
        doubtful_days: Days that lack rows and whose daily archive has not been worked in.
        absent_days: Days without rows that the archive does not have either, for good.
        is_complete: Nothing the archive may still give is missing.
    """

    symbol: str
    kind: HistoryKind
    month: str
    parts: tuple[ArchivePart, ...]
    row_count: int
    first_key: int | None
    last_key: int | None
    duplicate_count: int = 0
    conflict_count: int = 0
    disordered_count: int = 0
    missing_count: int = 0
    doubtful_days: tuple[str, ...] = ()
    absent_days: tuple[str, ...] = ()
    is_complete: bool = False

    def part(self, period: str) -> ArchivePart | None:
        """The part of a month or day, if it is in the file."""
        return next((part for part in self.parts if part.period == period), None)


def month_path(paths: LakePaths, symbol: str, kind: HistoryKind, month: str) -> Path:
    """Where a month lies."""
    return paths.historical(symbol.upper()) / f"{kind}_{month}.parquet"


_NAME: Final = re.compile(r"(aggTrades|klines)_(\d{4}-\d{2})\.parquet")


def months_of(paths: LakePaths, symbol: str, kind: HistoryKind) -> list[str]:
    """The months of one symbol and kind that have a file, oldest first."""
    with contextlib.suppress(OSError):
        found = (_NAME.fullmatch(p.name) for p in paths.historical(symbol.upper()).iterdir())
        return sorted(match[2] for match in found if match and match[1] == kind)
    return []


def month_bounds_ms(month: str) -> tuple[int, int]:
    """Start and end (exclusive) of ``YYYY-MM``, UTC ms.

    Raises:
        ValueError: Not a month.
    """
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise ValueError(f"{month!r} is no month, write it as 2024-07")
    year, number = int(month[:4]), int(month[5:])
    start_ms = calendar.timegm((year, number, 1, 0, 0, 0)) * 1_000
    return start_ms, start_ms + calendar.monthrange(year, number)[1] * DAY_MS


def days_of(month: str) -> list[str]:
    """All days of a month, ``YYYY-MM-DD``."""
    start_ms, end_ms = month_bounds_ms(month)
    return [f"{month}-{day:02d}" for day in range(1, (end_ms - start_ms) // DAY_MS + 1)]


def about_month(path: Path) -> AboutMonth | None:
    """What a file says of itself; ``None`` if it is not there.

    Reads the footer alone.

    Raises:
        DamagedFile: It is there and is no month's file.
        StorageError: The system refused.
    """
    try:
        metadata = pq.read_metadata(path)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
    try:
        about = msgspec.json.decode((metadata.metadata or {})[ABOUT_KEY], type=AboutMonth)
    except (KeyError, msgspec.MsgspecError) as error:
        raise DamagedFile(path, "does not say what it holds") from error
    if about.row_count != metadata.num_rows:
        raise DamagedFile(path, f"has {metadata.num_rows} rows instead of {about.row_count}")
    return about


def is_whole(path: Path) -> bool:
    """Whether a month's file is there, readable as far as its footer says, and complete."""
    try:
        about = about_month(path)
    except DamagedFile:
        return False
    return about is not None and about.is_complete


def check_month(path: Path, check: Callable[[], None] = lambda: None) -> None:
    """Read every page of a file and compare checksums, row count and order.

    Args:
        path: The file.
        check: Called between batches; what it raises ends the reading.

    Raises:
        DamagedFile: It is not what it says.
        StorageError: The system refused.
    """
    about = about_month(path)
    if about is None:
        raise DamagedFile(path, "is not there")
    layout = LAYOUTS[about.kind]
    last = None
    for batch in month_batches(path, layout.schema.names):
        check()
        keys = numpy_of(batch.column(layout.key))
        before = keys[:1] - 1 if last is None else last
        if (np.diff(keys, prepend=before) <= 0).any():
            raise DamagedFile(path, f"is not sorted by {layout.key}")
        last = keys[-1:] if len(keys) else last


def month_batches(
    path: Path, columns: Sequence[str], batch_rows: int = 1 << 16
) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, a few at a time; page checksums are verified.

    Raises:
        DamagedFile: Its content cannot be read.
        StorageError: The system refused.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            yield from file.iter_batches(
                batch_size=batch_rows, columns=list(columns), use_threads=False
            )
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error


def read_month(
    paths: LakePaths,
    symbol: str,
    kind: HistoryKind,
    month: str,
    *,
    columns: Sequence[str] | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    use_threads: bool = False,
) -> pa.Table:
    """Rows of one month with ``start_ms <= time < end_ms``; row groups outside are not read.

    Args:
        paths: The tree.
        symbol: In any case.
        kind: ``aggTrades`` or ``klines``.
        month: ``YYYY-MM``.
        columns: Names out of the kind's schema; ``None``: all.
        start_ms: First time; ``None``: from the beginning.
        end_ms: End of the time range; ``None``: to the end.
        use_threads: Decode columns side by side.

    Returns:
        A table in schema order; empty if the month has no file.

    Raises:
        DamagedFile: The file cannot be read; the caller sets it aside.
        StorageError: The system refused.
    """
    layout = LAYOUTS[kind]
    wanted = [name for name in layout.schema.names if columns is None or name in columns]
    path = month_path(paths, symbol, kind, month)
    schema = pa.schema([layout.schema.field(name) for name in wanted])
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            rows = RowRange.of(layout.time_column, None, start_ms, end_ms)
            groups = wanted_groups(file, rows)
            names = list(dict.fromkeys([*wanted, layout.time_column]))
            table = file.read_row_groups(groups, columns=names, use_threads=use_threads)
    except FileNotFoundError:
        return empty_table(schema)
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
    return _within(table, layout.time_column, start_ms, end_ms).select(wanted).cast(schema)


def _within(
    table: pa.Table, time_column: str, start_ms: int | None, end_ms: int | None
) -> pa.Table:
    if start_ms is None and end_ms is None:
        return table
    times = numpy_of(table.column(time_column))
    keep = np.ones(len(times), np.bool_)
    if start_ms is not None:
        keep &= times >= start_ms
    if end_ms is not None:
        keep &= times < end_ms
    return table if keep.all() else table.filter(mask_array(keep))
