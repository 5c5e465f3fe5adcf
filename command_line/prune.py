"""The ``prune`` verb: delete what is older than the user wants to keep."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import StorageError

if TYPE_CHECKING:
    from config import Settings
    from lake.retention import Expired, RetentionSettings

KINDS = ("stream_trades", "stream_depth", "historical", "features", "signals", "quarantine")


def _add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", default=False, help="only say what would go"
    )
    add_settings(
        parser,
        first=("market", "data_dir", *(f"retention_days_{kind}" for kind in KINDS)),
        only=("log_level", "raw_data_dir"),
    )


def _run(given: dict[str, Any]) -> int:
    is_dry = given.pop("dry_run")
    settings = settings_of(given)
    with logging_for(settings):
        return _prune(settings, is_dry=is_dry)


def _prune(settings: Settings, *, is_dry: bool) -> int:
    from lake.gap_ledger import read_gaps
    from lake.retention import finish_pruning, plan_retention, prune

    wanted = _retention(settings)
    paths = settings.paths
    expired = plan_retention(
        paths, wanted, read_gaps(paths.gaps), now_ms=time.time_ns() // 1_000_000
    )
    _print_table(expired, wanted)
    going = [item for item in expired if item.kept_because is None]
    size = _size(sum(item.size_bytes for item in going))
    if is_dry:
        print(f"{len(going)} would go, {size}; nothing was deleted (--dry-run).")
        return 0
    finish_pruning(paths)
    gone, failures = prune(going)
    print(f"{len(gone)} deleted, {_size(sum(item.size_bytes for item in gone))}.")
    if failures:
        raise StorageError(f"{failures} of {len(going)} could not be deleted; the log names them")
    return 0


def _retention(settings: Settings) -> RetentionSettings:
    from lake.retention import RetentionSettings

    return RetentionSettings(
        **{kind: getattr(settings, f"retention_days_{kind}") for kind in KINDS}
    )


def _print_table(expired: Iterable[Expired], wanted: RetentionSettings) -> None:
    kept = [kind for kind in KINDS if not getattr(wanted, kind)]
    if len(kept) == len(KINDS):
        print("Nothing is ever deleted: no RETENTION_DAYS_* is set.")
        return
    print(f"{'kind':<15}{'day or month':<32}{'files':>7}{'size':>12}  stays because")
    for item in expired:
        why = item.kept_because or ""
        line = f"{item.kind:<15}{item.name:<32}{item.file_count:>7,}{_size(item.size_bytes):>12}"
        print(f"{line}  {why}".rstrip())


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1_048_576:,.1f} MiB"


VERB = Verb(
    about=(
        "Delete days of each kind that are older than its RETENTION_DAYS_*; off unless set. Never\n"
        "today, never a day with holes that can still be repaired, never the newest days there are."
    ),
    examples=(
        "python main.py prune --dry-run",
        "python main.py prune --retention-days-stream-depth 30",
        "RETENTION_DAYS_FEATURES=365 python main.py prune --data-dir data",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
