"""What may be deleted because it is older than the user wants to keep it, and deleting it.

Consumes the tree, the days to keep per kind and the ledgers' gaps, produces a plan (what would go,
what stays and why) and carries it out. Off unless set. Never today, never a day whose holes can still
be repaired, and never the newest days there are, whatever the clock says.
"""

from __future__ import annotations

import calendar
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from domain.events import GapState
from lake.atomic import TEMPORARY_SUFFIX, Step, StepHook, no_hook, sync_folder
from lake.gap_ledger import Gap
from lake.part_files import DATE_PREFIX, FILE_SUFFIX, date_of, date_start_ms
from lake.paths import DAY_MS, LakePaths

log = structlog.get_logger()

_PRUNED: Final = ".pruned"


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Days to keep of each kind; 0 keeps all.

    Attributes:
        stream_trades: Recorded trades.
        stream_depth: Recorded books.
        historical: Months of the archive, by their last day.
        features: Feature rows.
        signals: Signals.
        quarantine: Rejected input.
    """

    stream_trades: int = 0
    stream_depth: int = 0
    historical: int = 0
    features: int = 0
    signals: int = 0
    quarantine: int = 0


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """A day or month that is older than is to be kept.

    Attributes:
        kind: Name in ``RetentionSettings``.
        name: The date, or symbol, kind and month.
        path: Folder or file.
        size_bytes: Of its files.
        file_count: How many there are.
        kept_because: Why it stays all the same; ``None``: it goes.
    """

    kind: str
    name: str
    path: Path
    size_bytes: int
    file_count: int
    kept_because: str | None = None


class _Unit(msgspec.Struct, frozen=True):
    """What is kept or deleted as a whole: a folder or file and the days it holds."""

    name: str
    path: Path
    first_day: int  # days since 1970-01-01
    last_day: int


def plan_retention(
    paths: LakePaths, settings: RetentionSettings, gaps: Iterable[Gap], *, now_ms: int
) -> list[Expired]:
    """What is older than is to be kept, oldest first within each kind. Changes nothing. Blocks.

    Days count back from today or from the newest day there is of a kind, whichever is earlier: a
    clock that jumps ahead, or a recorder long off, deletes nothing of the last days recorded.

    Args:
        paths: The tree.
        settings: Days to keep.
        gaps: Of all ledgers.
        now_ms: Wall clock, UTC.
    """
    held = [_days_of(gap, now_ms) for gap in gaps if _is_repairable(gap, now_ms)]
    found = []
    for kind, list_units in _LISTS.items():
        keep_days = getattr(settings, kind)
        units = sorted(list_units(paths), key=lambda unit: (unit.last_day, unit.name))
        if keep_days < 1 or not units:
            continue
        newest_day = min(units[-1].last_day, now_ms // DAY_MS)
        found += [
            _expired(kind, unit, held) for unit in units if unit.last_day <= newest_day - keep_days
        ]
    return found


def prune(expired: Iterable[Expired], *, hook: StepHook = no_hook) -> tuple[list[Expired], int]:
    """Delete what is not kept; what cannot be deleted is named in the log and left. Blocks.

    A folder is hidden by one rename before its files go, so that no reader sees part of a day.

    Returns:
        What is gone, and how many deletions failed.
    """
    gone, failures = [], 0
    for item in expired:
        if item.kept_because is not None:
            continue
        try:
            _delete(item.path, hook)
        except OSError as error:
            failures += 1
            log.error("retention.not_deleted", path=str(item.path), error=error.strerror)
            continue
        log.info("retention.deleted", path=str(item.path), bytes=item.size_bytes)
        gone.append(item)
    return gone, failures


def finish_pruning(paths: LakePaths, *, hook: StepHook = no_hook) -> int:
    """Delete folders that a dead process had hidden.

    Returns:
        How many there were.
    """
    hidden = [path for folder in _day_folders(paths) for path in folder.glob(f".*{_PRUNED}")]
    for path in hidden:
        with contextlib.suppress(OSError):
            _empty(path, hook)
    return len(hidden)


# --- what there is ---


def _day_folders(paths: LakePaths) -> tuple[Path, ...]:
    stream = paths.raw / "stream"
    return stream / "trades", stream / "depth", paths.features, paths.signals


def _days(folder: Path, *, prefix: str = "", suffix: str = "") -> Iterator[_Unit]:
    for path in _children(folder):
        date = path.name.removeprefix(prefix).removesuffix(suffix)
        if path.name == f"{prefix}{date}{suffix}" and (day := _day_of(date)) is not None:
            yield _Unit(date, path, day, day)


def _months(folder: Path) -> Iterator[_Unit]:
    for symbol in _children(folder):
        for path in _children(symbol):
            kind, _, month = path.name.removesuffix(FILE_SUFFIX).partition("_")
            first_day = _day_of(f"{month}-01")
            if first_day is None or path.suffix != FILE_SUFFIX:
                continue
            length = calendar.monthrange(int(month[:4]), int(month[5:]))[1]
            name = f"{symbol.name} {kind} {month}"
            yield _Unit(name, path, first_day, first_day + length - 1)


_LISTS: Final[dict[str, Callable[[LakePaths], Iterator[_Unit]]]] = {
    "stream_trades": lambda paths: _days(paths.raw / "stream" / "trades"),
    "stream_depth": lambda paths: _days(paths.raw / "stream" / "depth"),
    "historical": lambda paths: _months(paths.raw / "historical"),
    "features": lambda paths: _days(paths.features, prefix=DATE_PREFIX),
    "signals": lambda paths: _days(paths.signals, prefix=DATE_PREFIX),
    "quarantine": lambda paths: _days(paths.quarantine, suffix=".jsonl"),
}


def _children(folder: Path) -> list[Path]:
    """What lies in a folder; links lead elsewhere and are left alone."""
    try:
        return [path for path in folder.iterdir() if not path.is_symlink()]
    except OSError:
        return []


def _day_of(date: str) -> int | None:
    try:
        start_ms = date_start_ms(date)
    except ValueError:
        return None
    return start_ms // DAY_MS if date_of(start_ms) == date else None


# --- what stays ---


def _is_repairable(gap: Gap, now_ms: int) -> bool:
    if gap.state is GapState.EXPIRED:  # the archive's turn, until then
        return gap.repairable_until_ms is not None and gap.repairable_until_ms > now_ms
    return gap.state is GapState.OPEN


def _days_of(gap: Gap, now_ms: int) -> tuple[int, int]:
    known = [ms for ms in (gap.from_ms, gap.until_ms) if ms is not None]
    first_ms = min(known, default=gap.found_at_ns // 1_000_000)
    last_ms = now_ms if gap.until_ms is None else gap.until_ms
    return first_ms // DAY_MS, last_ms // DAY_MS


def _expired(kind: str, unit: _Unit, held: Sequence[tuple[int, int]]) -> Expired:
    open_count = sum(first <= unit.last_day and last >= unit.first_day for first, last in held)
    sizes = list(_sizes(unit.path))
    return Expired(
        kind=kind,
        name=unit.name,
        path=unit.path,
        size_bytes=sum(sizes),
        file_count=len(sizes),
        kept_because=f"open repairs: {open_count}" if open_count else None,
    )


def _sizes(path: Path) -> Iterator[int]:
    for file in (path,) if path.is_file() else _children(path):
        with contextlib.suppress(OSError):
            yield file.stat().st_size


# --- deleting ---


def _delete(path: Path, hook: StepHook) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        hook(Step.REMOVED, path)
        return
    hidden = path.with_name(f".{path.name}{_PRUNED}")
    if hidden.exists():  # of a prune that died, before rows of that day came again
        _empty(hidden, hook)
    path.rename(hidden)
    hook(Step.RENAMED, path)
    sync_folder(path.parent)
    _empty(hidden, hook)


def _empty(hidden: Path, hook: StepHook) -> None:
    """Delete our files and the folder; somebody else's files come to light again."""
    for file in _children(hidden):
        if file.suffix in {FILE_SUFFIX, TEMPORARY_SUFFIX}:
            file.unlink(missing_ok=True)
            hook(Step.REMOVED, file)
    if any(hidden.iterdir()):
        log.warning("retention.foreign_files", folder=str(hidden))
        hidden.rename(hidden.with_name(hidden.name.removeprefix(".").removesuffix(_PRUNED)))
    else:
        hidden.rmdir()
