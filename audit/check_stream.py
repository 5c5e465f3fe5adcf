"""``audit stream``: what the recorder wrote, hour by hour.

Consumes a data folder, produces a ``StreamReport``; also ``python -m audit.check_stream``.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from audit.stream import SymbolStream, audit_recording, latest_files
from audit.tables import certificate_text, sample_text, stream_table
from domain.errors import ConfigError
from lake.file_sample import FileSample
from lake.part_files import date_start_ms
from lake.paths import LakePaths
from lake.stream_files import stream_dates

DEFAULT_DATES = 7
"""Without --from: the last so many recorded dates."""


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of ``audit stream``; certificates count in their symbol's ``holes``, from 0."""

    audit: str = "stream"
    latest: dict[str, FileSample]
    symbols: list[SymbolStream]
    has_holes: bool
    schema_version: int = 1

    @property
    def unknown(self) -> list[str]:
        """Symbols of which nothing is recorded and nothing is named as missing."""
        return [one.symbol for one in self.symbols if not one.certificate and not one.holes]

    def text(self) -> str:
        """Tables for a terminal."""
        if not self.latest:
            return "nothing is recorded here"
        parts = [sample_text(kind, sample) for kind, sample in self.latest.items()]
        parts.append(stream_table(hour for symbol in self.symbols for hour in symbol.hours))
        parts += [
            f"completeness certificate of {symbol.symbol}\n"
            + certificate_text(symbol.certificate, symbol.holes)
            if symbol.certificate
            else f"nothing is recorded of {symbol.symbol}"
            for symbol in self.symbols
        ]
        return "\n\n".join(parts)


def check_stream(
    paths: LakePaths,
    symbols: Sequence[str],
    *,
    first_date: str | None = None,
    last_date: str | None = None,
    now_ms: int | None = None,
    on_progress: Callable[[str, str, float], None] = lambda _symbol, _date, _done: None,
) -> StreamReport:
    """Audit what is recorded of some symbols. Blocks.

    Args:
        paths: The tree.
        symbols: In upper case.
        first_date: ``YYYY-MM-DD``; ``None``: the last seven recorded dates.
        last_date: Inclusive; ``None``: to the last recorded one.
        now_ms: Exchange time; ``None``: the wall clock.
        on_progress: Called with symbol, date and its share that is done (0-1).

    Raises:
        ConfigError: A date that is none.
        StorageError: The system refused to read a file.
    """
    for name, date in (("--from", first_date), ("--to", last_date)):
        if date is not None:
            try:
                date_start_ms(date)
            except ValueError:
                raise ConfigError(f"{name}: {date!r} is no date, write it as 2024-07-18") from None
    stored = sorted({*stream_dates(paths, "trades"), *stream_dates(paths, "depth")})
    dates = [d for d in stored if last_date is None or d <= last_date]
    dates = dates[-DEFAULT_DATES:] if first_date is None else [d for d in dates if d >= first_date]
    latest = latest_files(paths)
    found = [
        audit_recording(
            paths,
            symbol,
            dates,
            now_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms,
            on_progress=functools.partial(on_progress, symbol),
        )
        for symbol in symbols
    ]
    return StreamReport(
        latest={str(kind): sample for kind, sample in latest.items()},
        symbols=found,
        has_holes=any(symbol.holes for symbol in found),
    )


if __name__ == "__main__":
    from main import main

    sys.exit(main(["audit", "stream", *sys.argv[1:]]))
