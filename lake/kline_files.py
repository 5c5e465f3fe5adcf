"""Ingested and curated klines on disk: one file per interval and UTC day of the open time.

Consumes columns (name → numpy array of equal length) → produces snappy Parquet, written whole or
not at all, and the columns again. NaN is null in the file. A day is written again as a whole, so
that ingesting twice changes nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domain.errors import StorageError
from lake.atomic import StepHook, no_hook, write_atomic
from lake.columns import fixed_array, numpy_of, string_array, strings_of
from lake.historical_files import KLINE_SCHEMA
from lake.part_files import DamagedFile, date_of, date_start_ms, read_failure
from lake.paths import DAY_MS, LakePaths

type Columns = dict[str, np.ndarray]

RAW_COLUMNS: Final = tuple(KLINE_SCHEMA.names)
TIME_COLUMN: Final = "open_time_ms"
_INTEGER_NAMES: Final = ("trade_count", "missing_before", "suspect")  # besides the times
_RAW_NAME: Final = re.compile(r"(?P<symbol>.+)_(?P<interval>[^_]+)_(?P<date>\d{8})\.parquet")
_CURATED_NAME: Final = re.compile(r"(?P<interval>[^_]+)_curated_(?P<date>\d{8})\.parquet")


def raw_path(paths: LakePaths, symbol: str, interval: str, date: str) -> Path:
    """File of one symbol's bars that open on one UTC date (``YYYY-MM-DD``)."""
    return paths.klines(interval) / f"{symbol}_{interval}_{date.replace('-', '')}.parquet"


def curated_path(paths: LakePaths, interval: str, date: str) -> Path:
    """File of all symbols' curated bars that open on one UTC date (``YYYY-MM-DD``)."""
    return paths.curated / f"{interval}_curated_{date.replace('-', '')}.parquet"


def raw_dates(paths: LakePaths, interval: str) -> dict[str, list[str]]:
    """Symbol → dates (``YYYY-MM-DD``) that have a file, oldest first."""
    found: dict[str, list[str]] = {}
    for parts in _matching(paths.klines(interval), _RAW_NAME):
        if parts["interval"] == interval:
            found.setdefault(parts["symbol"], []).append(_dashed(parts["date"]))
    return {symbol: sorted(found[symbol]) for symbol in sorted(found)}


def curated_dates(paths: LakePaths, interval: str) -> list[str]:
    """Dates that have curated bars of an interval, oldest first."""
    named = _matching(paths.curated, _CURATED_NAME)
    return sorted(_dashed(parts["date"]) for parts in named if parts["interval"] == interval)


def write_bars(
    path: Path,
    columns: Mapping[str, np.ndarray | Sequence[str]],
    metadata: Mapping[str, str],
    *,
    hook: StepHook = no_hook,
) -> None:
    """Write one day's bars, replacing what was there.

    Args:
        path: ``raw_path`` or ``curated_path``.
        columns: Integers, floats (NaN: null) or text, all of one length.
        metadata: The file's key-value metadata.
        hook: See ``lake.atomic.StepHook``.

    Raises:
        StorageError: The disk refused; the old file is still there.
    """
    arrays = {name: _array(values) for name, values in columns.items()}
    schema = pa.schema({name: array.type for name, array in arrays.items()})
    table = pa.Table.from_arrays(
        list(arrays.values()),
        schema=schema.with_metadata({k.encode(): v.encode() for k, v in metadata.items()}),
    )
    sink = pa.BufferOutputStream()
    texts = [name for name, array in arrays.items() if pa.types.is_string(array.type)]
    dictionaries: Any = texts or False  # a list of columns or a bool; its stubs know the bool alone
    # Dictionaries and bounds of a day's floats cost half the time and an eighth of the size.
    pq.write_table(
        table,
        sink,
        compression="snappy",
        use_dictionary=dictionaries,
        write_statistics=[name for name in arrays if name in (*texts, TIME_COLUMN)],
    )
    write_atomic(path, memoryview(sink.getvalue()), overwrite=True, hook=hook)


def read_bars(path: Path, names: Sequence[str]) -> Columns:
    """Read columns of one file; text comes as an object array.

    Raises:
        FileNotFoundError: There is none.
        DamagedFile: Its content cannot be read, or lacks a column.
        StorageError: The system refused.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            missing = sorted(set(names) - set(file.schema_arrow.names))
            if missing:
                raise DamagedFile(path, f"lacks {', '.join(missing)}")
            table = file.read(list(names), use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
    return {name: _values(table.column(name)) for name in names}


def read_metadata(path: Path) -> dict[str, str]:
    """The file's key-value metadata; empty if it cannot be read."""
    try:
        return read_summary(path)[1]
    except (FileNotFoundError, DamagedFile, StorageError):
        return {}


def read_summary(path: Path) -> tuple[int, dict[str, str]]:
    """How many rows a file holds, and its key-value metadata; reads no column.

    Raises:
        FileNotFoundError: There is none.
        DamagedFile: It is no Parquet file.
        StorageError: The system refused.
    """
    try:
        footer = pq.read_metadata(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
    texts = {key.decode(): text.decode() for key, text in (footer.metadata or {}).items()}
    return footer.num_rows, texts


def read_raw(
    paths: LakePaths, symbol: str, interval: str, start_ms: int, end_ms: int
) -> tuple[Columns, list[DamagedFile]]:
    """A symbol's bars with ``start_ms <= open_time_ms < end_ms``, and the files nobody can read.

    Returns:
        ``RAW_COLUMNS`` in time order, and what is damaged (the rest is read).
    """
    pieces, damaged = [], []
    for day_ms in range(start_ms - start_ms % DAY_MS, end_ms, DAY_MS):
        try:
            pieces.append(
                read_bars(raw_path(paths, symbol, interval, date_of(day_ms)), RAW_COLUMNS)
            )
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            damaged.append(error)
    return within(joined(pieces, RAW_COLUMNS), start_ms, end_ms), damaged


def read_curated(
    paths: LakePaths,
    interval: str,
    symbols: Sequence[str],
    names: Sequence[str],
    *,
    start_ms: int = 0,
    end_ms: int | None = None,
    last_days: int | None = None,
) -> dict[str, Columns]:
    """Curated bars by symbol, in time order; symbols without any are absent, damaged files skipped.

    Args:
        paths: The data folder.
        interval: Of the bars.
        symbols: Whose.
        names: Columns besides ``symbol``.
        start_ms, end_ms: Of the open time; ``None``: to the end.
        last_days: Only the newest so many files.
    """
    dates = [
        date
        for date in curated_dates(paths, interval)
        if date_start_ms(date) + DAY_MS > start_ms
        and (end_ms is None or date_start_ms(date) < end_ms)
    ]
    pieces: dict[str, list[Columns]] = {}
    wanted = list(dict.fromkeys((TIME_COLUMN, *names)))
    for date in dates if last_days is None else dates[-last_days:]:
        try:
            day = read_bars(curated_path(paths, interval, date), ["symbol", *wanted])
        except (FileNotFoundError, DamagedFile):
            continue
        of = day.pop("symbol")
        for symbol in symbols:
            rows = of == symbol
            if rows.any():
                pieces.setdefault(symbol, []).append({n: v[rows] for n, v in day.items()})
    latest_ms = np.iinfo(np.int64).max if end_ms is None else end_ms
    found = {s: within(joined(parts, wanted), start_ms, latest_ms) for s, parts in pieces.items()}
    return {symbol: columns for symbol, columns in found.items() if len(columns[TIME_COLUMN])}


def joined(pieces: Sequence[Columns], names: Sequence[str]) -> Columns:
    """Pieces one after the other; empty numeric columns if there are none."""
    if not pieces:
        return {name: np.empty(0, _numeric_dtype(name)) for name in names}
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def within(columns: Columns, start_ms: int, end_ms: int) -> Columns:
    """The rows with ``start_ms <= open_time_ms < end_ms``."""
    times = columns[TIME_COLUMN]
    keep = (times >= start_ms) & (times < end_ms)
    return columns if keep.all() else {name: values[keep] for name, values in columns.items()}


def by_day(columns: Columns) -> Iterator[tuple[str, Columns]]:
    """The rows of each UTC date of ``open_time_ms``; sorted input."""
    days = columns[TIME_COLUMN] // DAY_MS
    edges = np.flatnonzero(np.diff(days)) + 1
    bounds = [0, *edges.tolist(), len(days)]
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            day = date_of(int(days[begin]) * DAY_MS)
            yield day, {name: values[begin:end] for name, values in columns.items()}


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[dict[str, str]]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None and _is_date(_dashed(match["date"])):
            yield match.groupdict()


def _dashed(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}"


def _is_date(date: str) -> bool:
    try:
        date_start_ms(date)
    except ValueError:
        return False
    return True


def _numeric_dtype(name: str) -> type:
    is_integer = name.endswith("_ms") or name in _INTEGER_NAMES
    return np.int64 if is_integer else np.float64


def _array(values: np.ndarray | Sequence[str]) -> pa.Array[Any]:
    if not isinstance(values, np.ndarray) or values.dtype == object:
        return string_array([str(text).encode() for text in values])
    if values.dtype == np.float64:
        present = ~np.isnan(values)
        whole = None if present.all() else present
        return fixed_array(pa.float64(), np.ascontiguousarray(values), len(values), whole)
    if values.dtype == np.bool_:
        bits = np.packbits(values, bitorder="little")
        return fixed_array(pa.bool_(), bits, len(values), None)
    integers = np.ascontiguousarray(values, dtype=np.int64)
    return fixed_array(pa.int64(), integers, len(values), None)


def _values(column: pa.ChunkedArray[Any]) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        return np.array(strings_of(column), dtype=object)
    return numpy_of(column)
