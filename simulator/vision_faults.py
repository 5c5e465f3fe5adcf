"""What can be wrong with the archive: scripted, by file and by how often.

Consumes a fault plan's ``vision`` entries → answers, per archive, which of them act.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from domain.errors import ConfigError


class VisionFaultKind(enum.StrEnum):
    """Faults of the content come first, then faults of publishing, then of sending."""

    HEADER = "header"  # a header where this market's files have none, or none where they have one
    SHUFFLED = "shuffled"  # rows in another order, here and there
    DOUBLED = "doubled"  # some rows twice
    LOST_DAYS = "lost_days"  # a monthly file lacks ``days``
    CUT_ARCHIVE = "cut_archive"  # the zip lacks its end, and its CHECKSUM is that of the torso
    ABSENT = "absent"  # never published
    LATE = "late"  # published ``delay_ms`` later
    WRONG_CHECKSUM = "wrong_checksum"  # CHECKSUM is of another file, ``count`` times
    REPLACED = "replaced"  # a first edition that lacks rows, then the second; mode says when
    CUT = "cut"  # sending breaks off in the middle, ``count`` times
    STALL = "stall"  # sending falls silent in the middle for ``delay_ms``, ``count`` times
    HTML = "html"  # a web page with status 200, ``count`` times
    UNAVAILABLE = "unavailable"  # status 503, ``count`` times


REPLACED_MODES = ("later", "between")
"""After the first CHECKSUM and download, or between the two."""


class VisionFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault.

    Args:
        kind: What is wrong.
        mode: ``replaced``: see ``REPLACED_MODES``; None takes the first.
        data: ``aggTrades`` or ``klines``; None both.
        symbol: Only this symbol's archives; None all.
        span: ``monthly`` or ``daily``; None both.
        period: Only periods that begin so, such as ``2024-07``; empty: all.
        days: ``lost_days``: days of the month, from 1.
        count: How often it acts on one archive, where the kind counts; 0: always.
        delay_ms: How late (market ms), or how long silent (wall ms).
    """

    kind: VisionFaultKind
    mode: str | None = None
    data: Literal["aggTrades", "klines"] | None = None
    symbol: str | None = None
    span: Literal["monthly", "daily"] | None = None
    period: str = ""
    days: tuple[int, ...] = ()
    count: int = 1
    delay_ms: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything, naming the field."""
        if self.mode is not None and (
            self.kind is not VisionFaultKind.REPLACED or self.mode not in REPLACED_MODES
        ):
            raise ConfigError(f"fault {self.kind}: mode must be one of {', '.join(REPLACED_MODES)}")
        if self.count < 0 or self.delay_ms < 0:
            raise ConfigError(f"fault {self.kind}: times and counts must not be negative")
        if self.kind is VisionFaultKind.LOST_DAYS and not self.days:
            raise ConfigError("fault lost_days: days must name at least one day of the month")
        if self.kind in (VisionFaultKind.LATE, VisionFaultKind.STALL) and not self.delay_ms:
            raise ConfigError(f"fault {self.kind}: delay_ms must be at least 1")

    def concerns(self, data: str, symbol: str, period: str) -> bool:
        """Whether an archive is one of those meant."""
        span = "daily" if len(period) > len("2024-07") else "monthly"
        return (
            self.data in (None, data)
            and self.symbol in (None, symbol)
            and self.span in (None, span)
            and period.startswith(self.period)
            and (self.kind is not VisionFaultKind.LOST_DAYS or span == "monthly")
        )


def random_vision_faults(
    seed: int,
    months: Sequence[str],
    *,
    kinds: Sequence[VisionFaultKind] = tuple(VisionFaultKind),
    stall_ms: int = 300,
) -> tuple[VisionFault, ...]:
    """One to three faults for each month, the same for the same arguments.

    Only what a client can recover from: what is absent, late or torn is so for the monthly files,
    and the daily ones of that month are there.

    Args:
        seed: Any integer.
        months: ``YYYY-MM``.
        kinds: Kinds to draw from.
        stall_ms: Length of a silence, wall ms.
    """
    source = random.Random(seed)
    return tuple(
        _random_fault(source, kind, month, stall_ms)
        for month in months
        for kind in source.sample(list(kinds), source.randint(1, min(3, len(kinds))))
    )


def _random_fault(
    source: random.Random, kind: VisionFaultKind, month: str, stall_ms: int
) -> VisionFault:
    is_monthly = kind in (
        VisionFaultKind.ABSENT,
        VisionFaultKind.LATE,
        VisionFaultKind.CUT_ARCHIVE,
        VisionFaultKind.LOST_DAYS,
    )
    is_lost = kind is VisionFaultKind.LOST_DAYS
    delays = {VisionFaultKind.LATE: 10_000 * 86_400_000, VisionFaultKind.STALL: stall_ms}
    return VisionFault(
        kind=kind,
        mode=source.choice(REPLACED_MODES) if kind is VisionFaultKind.REPLACED else None,
        data=source.choice((None, "aggTrades", "klines")),
        span="monthly" if is_monthly else None,
        period=month,
        days=tuple(sorted(source.sample(range(1, 29), source.randint(1, 3)))) if is_lost else (),
        delay_ms=delays.get(kind, 0),
    )
