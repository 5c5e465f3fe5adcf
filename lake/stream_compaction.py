"""Merges the small stream files of a date into few, whatever step the merging dies at.

Consumes the files of one kind and date, produces files of at most about ``file_bytes``, written as all
stream files are and merged as all stores are (``lake.compaction``). A row that several files have (a
repair and the late original) stays once: as it was streamed rather than as it was asked for later.
"""

from __future__ import annotations

import calendar
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import msgspec
import numpy as np
import pyarrow as pa
import structlog

from domain.errors import StorageError
from lake.atomic import StepHook, no_hook, remove_leftovers
from lake.columns import index_array, numpy_of, strings_of
from lake.compaction import MergeMethod, merge_into, remove_files
from lake.part_files import REPLACES_KEY, DamagedFile, date_start_ms, set_aside
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import (
    ROW_GROUP_ROWS,
    TIME_COLUMN,
    Kind,
    free_name,
    open_stream_writer,
    read_stream_file,
    sorted_table,
    stream_dates,
    symbol_codes,
)
from lake.stream_merges import Footer, footers_in, split_replaced

log = structlog.get_logger()

KINDS: Final[tuple[Kind, ...]] = get_args(Kind.__value__)
SOURCES_BY_WORTH: Final = ("stream", "rest", "archive")
"""Only streamed rows have an event time, a receive time and the quantity without RPI orders."""

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "trades": ("agg_trade_id",),
    "depth": ("transact_time_ms", "final_update_id", "event_time_ms", "receive_time_ns"),
}
_OUR_NAME: Final = re.compile(r"(?:trades|depth)_(\d{8}_\d{6})(?:_\d+)?\.parquet")
_ATTEMPTS: Final = 20


class StreamCompactionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How much is merged at a time.

    Attributes:
        file_bytes: Files are merged up to about this size.
        trade_rows: Trades held in memory at a time, about 500 bytes each while they are sorted.
        depth_rows: Depth snapshots held in memory at a time, about 6 KiB each.
        closed_after_ms: A date is closed so long after its end (exchange time): the last rows of
            the day are on disk by then.
    """

    file_bytes: int = 256 * 1_024 * 1_024
    trade_rows: int = 131_072
    depth_rows: int = 16_384
    closed_after_ms: int = 600_000


class StreamCompaction:
    """Merges below one tree; one instance writes there at a time. All calls block.

    Args:
        paths: The tree.
        settings: See ``StreamCompactionSettings``.
        hook: See ``lake.atomic.StepHook``.
    """

    def __init__(
        self,
        paths: LakePaths,
        settings: StreamCompactionSettings | None = None,
        *,
        hook: StepHook = no_hook,
    ) -> None:
        self._paths = paths
        self._settings = settings or StreamCompactionSettings()
        self._hook = hook
        self._merging = threading.Lock()
        self._unreadable: set[Path] = set()
        self._counts = dict.fromkeys(("merges", "files_merged", "files_damaged"), 0)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Merges, files they took over, files set aside as damaged."""
        return dict(self._counts)

    def recover(self) -> int:
        """Finish what a dead process left: temporaries, and files that merged ones replace.

        Returns:
            How many files were removed.
        """
        with self._merging:
            return sum(
                self._finish(kind, date)
                for kind in KINDS
                for date in stream_dates(self._paths, kind)
            )

    def compact_due(self, now_ms: int) -> list[Path]:
        """Merge closed dates, and of open ones what was not merged yet. Call it hourly.

        Args:
            now_ms: Exchange time, UTC.

        Returns:
            The merged files.

        Raises:
            StorageError: The disk refused; what was merged stays merged.
        """
        merged = []
        for kind in KINDS:
            for date in stream_dates(self._paths, kind):
                end_ms = date_start_ms(date) + DAY_MS
                is_open = end_ms + self._settings.closed_after_ms > now_ms
                merged += self.compact(kind, date, parts_only=is_open)
        return merged

    def compact(self, kind: Kind, date: str, *, parts_only: bool = False) -> list[Path]:
        """Merge the files of one kind and date.

        Args:
            kind: ``"trades"`` or ``"depth"``.
            date: ``YYYY-MM-DD``.
            parts_only: Leave files that are merges already.

        Returns:
            The merged files; empty if there was nothing to merge.

        Raises:
            StorageError: The disk refused; what was merged stays merged.
        """
        with self._merging:
            self._finish(kind, date)
            merged = []
            for group in self._groups(kind, date, parts_only=parts_only):
                path = self._merge(kind, group)
                if path is not None:
                    merged.append(path)
            return merged

    def _finish(self, kind: Kind, date: str) -> int:
        folder = self._paths.stream(kind, date)
        removed = remove_leftovers(folder)
        replaced = split_replaced(footers_in(folder, _is_of(kind)))[1]
        remove_files([footer.path for footer in replaced], self._hook)
        return removed + len(replaced)

    def _groups(self, kind: Kind, date: str, *, parts_only: bool) -> list[list[Footer]]:
        """Neighbours in time that fit into one file; none of a single file."""
        groups: list[list[Footer]] = []
        held_bytes = 0
        for footer in split_replaced(footers_in(self._paths.stream(kind, date), _is_of(kind)))[0]:
            if footer.token is None or _named_ms(footer.path) is None:
                continue  # not written here
            if footer.path in self._unreadable or (parts_only and footer.is_merged):
                continue
            size_bytes = _size_bytes(footer.path)
            if not groups or held_bytes + size_bytes > self._settings.file_bytes:
                groups.append([])
                held_bytes = 0
            groups[-1].append(footer)
            held_bytes += size_bytes
        return [group for group in groups if len(group) > 1]

    def _merge(self, kind: Kind, group: list[Footer]) -> Path | None:
        for _ in range(_ATTEMPTS):
            if len(group) < 2:
                return None
            try:
                path = self._merge_once(kind, group)
            except FileExistsError:  # the recorder took the name meanwhile
                continue
            except FileNotFoundError:  # pruned, or set aside by a reader
                group = [footer for footer in group if footer.path.exists()]
                continue
            except DamagedFile as damaged:
                self._set_aside(kind, damaged)
                group = [footer for footer in group if footer.path != damaged.path]
                continue
            self._counts["merges"] += 1
            self._counts["files_merged"] += len(group)
            log.info("stream.merged", kind=kind, file=str(path), files=len(group))
            return path
        raise StorageError(f"cannot merge {group[0].path.parent}: its files keep changing")

    def _merge_once(self, kind: Kind, group: Sequence[Footer]) -> Path:
        files = [footer.path for footer in group]
        metadata = {REPLACES_KEY.decode(): msgspec.json.encode(sorted(_replaced(group))).decode()}
        target = free_name(files[0].parent, kind, min(_named_ms(path) or 0 for path in files))
        method = MergeMethod(
            times_ms=lambda path: _times_of(path, kind),
            read=lambda path, start_ms, end_ms: read_stream_file(
                path, kind, start_ms=start_ms, end_ms=end_ms
            ),
            settle=lambda table: unique_rows(kind, table),
            open_writer=lambda handle: open_stream_writer(handle, kind, metadata),
            row_group_rows=ROW_GROUP_ROWS[kind],
        )
        rows = self._settings.trade_rows if kind == "trades" else self._settings.depth_rows
        merge_into(target, files, method, merge_rows=rows, hook=self._hook)
        return target

    def _set_aside(self, kind: Kind, damaged: DamagedFile) -> None:
        self._counts["files_damaged"] += 1
        if not set_aside(self._paths.stream(kind, damaged.path.parent.name).parent, damaged):
            self._unreadable.add(damaged.path)


def unique_rows(kind: Kind, table: pa.Table) -> pa.Table:
    """In the order of stream files, and of rows that are the same one the worthiest."""
    table = sorted_table(kind, table)
    if table.num_rows < 2:
        return table
    codes, _ = symbol_codes(table)
    is_same = codes[1:] == codes[:-1]
    for name in _KEYS[kind]:
        values = numpy_of(table.column(name))
        is_same &= values[1:] == values[:-1]
    if not is_same.any():
        return table
    run = np.concatenate(([0], np.cumsum(~is_same)))
    order = np.lexsort([_worth(table), run]) if kind == "trades" else np.arange(len(run))
    first_of_run = np.searchsorted(run[order], np.arange(run[-1] + 1))
    return table.take(index_array(order[first_of_run]))


def _worth(table: pa.Table) -> np.ndarray:
    """int[n], the lower the better: where each trade came from."""
    column = table.column("source").unify_dictionaries().combine_chunks()
    assert isinstance(column, pa.DictionaryArray)  # noqa: S101 - by the schema
    rank = [SOURCES_BY_WORTH.index(name) for name in strings_of(column.dictionary)]
    worth: np.ndarray = np.array(rank)[numpy_of(column.indices)]
    return worth


def _replaced(group: Sequence[Footer]) -> set[str]:
    """Tokens of these files, and of files they replace: the removal of one may have failed."""
    tokens = {footer.token for footer in group if footer.token is not None}
    return tokens.union(*(footer.replaces for footer in group))


def _times_of(path: Path, kind: Kind) -> np.ndarray:
    return numpy_of(read_stream_file(path, kind, columns=[TIME_COLUMN]).column(0))


def _named_ms(path: Path) -> int | None:
    """Time of a file's first row, to the second, as its name says; ``None`` if we never named it."""
    found = _OUR_NAME.fullmatch(path.name)
    try:
        return calendar.timegm(time.strptime(found[1], "%Y%m%d_%H%M%S")) * 1_000 if found else None
    except ValueError:
        return None


def _is_of(kind: Kind) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{kind}_")


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
