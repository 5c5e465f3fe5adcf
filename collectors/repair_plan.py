"""Whose turn a hole is: REST, the daily archive, the monthly one, or nobody's any more. Pure.

Consumes ledger entries and the exchange's time, produces what to ask for and when it is permanent.
"""

from __future__ import annotations

import calendar
import enum
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from domain.events import GapState
from lake.gap_ledger import Gap
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS
from lake.repaired_rows import Missing, Span

DAILY_AFTER_MS: Final = 8 * 3_600_000
"""A day's archive appears about 08:30 UTC of the next day, often later: not asked for earlier."""
MONTHLY_AFTER_MS: Final = DAY_MS
ARCHIVE_PATIENCE_MS: Final = 45 * DAY_MS
"""An archive that is not there so long after the end of its month will never be."""

_NO_END: Final = 2**62


class Turn(enum.StrEnum):
    """Who is asked next for a hole."""

    REST = "rest"
    ARCHIVE = "archive"
    NOBODY = "nobody"  # repaired, permanent, or its extent is not known yet


def turn_of(gap: Gap) -> Turn:
    """Who is asked next for an entry of the recorder's ledger."""
    if gap.kind != "trades":
        return Turn.NOBODY
    if gap.state is GapState.OPEN:
        return Turn.REST
    return Turn.ARCHIVE if gap.state is GapState.EXPIRED else Turn.NOBODY


def has_extent(gap: Gap) -> bool:
    """Whether its end is known, in ids or time."""
    return gap.last_id is not None if gap.first_id is not None else gap.until_ms is not None


def is_beyond_rest(gap: Gap, now_ms: int, reach_ms: int | None) -> bool:
    """Whether REST, which reaches back so far (``None``: to the beginning), has nothing of it."""
    if reach_ms is None or gap.until_ms is None:
        return False
    return gap.until_ms <= now_ms - reach_ms


def archive_until_ms(until_ms: int) -> int:
    """Exchange time at which the archive is given up for trades up to ``until_ms``."""
    return month_end_ms(date_of(until_ms)[:7]) + ARCHIVE_PATIENCE_MS


def month_end_ms(month: str) -> int:
    """End of ``YYYY-MM``, exclusive."""
    year, number = int(month[:4]), int(month[5:])
    days = calendar.monthrange(year, number)[1]
    return date_start_ms(f"{month}-01") + days * DAY_MS


def period_end_ms(period: str) -> int:
    """End of ``YYYY-MM-DD`` or ``YYYY-MM``, exclusive."""
    is_day = len(period) > len("YYYY-MM")
    return date_start_ms(period) + DAY_MS if is_day else month_end_ms(period)


def published_from_ms(period: str) -> int:
    """Exchange time from which asking for the archive of a period makes sense."""
    is_day = len(period) > len("YYYY-MM")
    return period_end_ms(period) + (DAILY_AFTER_MS if is_day else MONTHLY_AFTER_MS)


def days_of(gap: Gap) -> list[str]:
    """UTC dates a hole touches, oldest first; of one without a time, the date it was found at."""
    known = [ms for ms in (gap.from_ms, gap.until_ms) if ms is not None]
    known = known or [gap.found_at_ns // 1_000_000]
    first, last = min(known) // DAY_MS, max(known) // DAY_MS
    return [date_of(day * DAY_MS) for day in range(first, last + 1)]


class Work(msgspec.Struct, frozen=True):
    """One archive to look into, and the holes it may fill."""

    symbol: str
    period: str
    gaps: tuple[Gap, ...]


def archive_work(gaps: Iterable[Gap], *, monthly: bool) -> list[Work]:
    """The archives that may fill these holes, oldest first.

    Args:
        gaps: Whose turn is the archive's.
        monthly: Months instead of days.
    """
    wanted: dict[tuple[str, str], list[Gap]] = {}
    for gap in gaps:
        days = days_of(gap)
        for period in sorted({day[:7] for day in days} if monthly else days):
            wanted.setdefault((period, gap.symbol), []).append(gap)
    return [
        Work(symbol, period, tuple(found)) for (period, symbol), found in sorted(wanted.items())
    ]


def missing_of(gaps: Iterable[Gap]) -> Missing:
    """What these holes of one symbol lack, in ids or times."""
    gaps = list(gaps)
    return Missing(
        tuple(sorted(_ids_of(gaps))),
        tuple(
            sorted(
                (gap.from_ms or 0, gap.until_ms - 1)
                for gap in gaps
                if gap.first_id is None and gap.until_ms is not None
            )
        ),
    )


def _ids_of(gaps: Iterable[Gap]) -> Iterator[Span]:
    for gap in gaps:
        if gap.first_id is not None:
            yield gap.first_id, _NO_END if gap.last_id is None else gap.last_id


def retry_s(failures: int, first_s: float, cap_s: float) -> float:
    """Wait after so many failures in a row: doubles, up to a cap."""
    return min(cap_s, first_s * 2.0 ** min(failures - 1, 20))
