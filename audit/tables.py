"""What the audits found, as text for a terminal. Pure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence

from audit.certificate import HOUR_MS, Hole, Hour, Repair, Status
from audit.month_scan import MonthAudit
from audit.rest_check import RestCheck
from audit.stream import Lag, StreamHour
from lake.file_sample import FileSample

_SAMPLE_WIDTH = 60


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under their headers; numbers to the right, ``None`` as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [headers, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if _is_number(text) else text.ljust(width)
            for text, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(text: str) -> bool:
    return text == "–" or text.replace(",", "").replace(".", "").lstrip("-").isdigit()


def months_table(months: Iterable[MonthAudit]) -> str:
    """One line per symbol and month."""
    headers = (
        *("symbol", "month", "trades", "missing", "holes", "doubled", "disordered"),
        *("minutes", "silent", "lost min.", "klines", "lost bars", "compared", "differ"),
    )
    return table(headers, map(_month_row, months))


def _month_row(m: MonthAudit) -> tuple[object, ...]:
    return (
        *(m.symbol, m.month, m.trades, m.missing_ids, m.missing_ranges),
        *(m.duplicated_ids, m.disordered_ids),
        *(m.minutes, m.zero_trade_minutes, m.missing_minutes),
        *(m.klines, m.missing_klines, m.compared_bars, m.differing_bars),
    )


def remarks(months: Iterable[MonthAudit], checks: Iterable[RestCheck]) -> list[str]:
    """What the table has no room for, a line each."""
    lines = []
    for m in months:
        name = f"{m.symbol} {m.month}"
        if m.sources:
            sources = ", ".join(f"{count:,} {source}" for source, count in m.sources.items())
            lines.append(f"{name}: trades by source: {sources}")
        if m.archive_duplicates or m.archive_disordered:
            lines.append(
                f"{name}: the archive had {m.archive_duplicates:,} rows twice and "
                f"{m.archive_disordered:,} out of order; put right when downloaded"
            )
        if m.klines is None and m.trades:
            lines.append(f"{name}: no official klines stored; bars rebuilt, none compared")
        lines += [
            f"{name}: {stamp(d.open_time_ms)} {d.column} is {d.rebuilt!r}, official {d.official!r}"
            for d in m.differences
        ]
    for c in checks:
        text = f"{c.symbol}: {c.compared:,} trades compared with REST"
        if c.compared:
            text += f", {c.missing:,} not stored, {c.differing:,} differ"
            text += "" if c.first_differing_id is None else f" (first: {c.first_differing_id})"
        lines.append(text + ("" if c.note is None else f"; {c.note}"))
    return lines


def stream_table(hours: Iterable[StreamHour]) -> str:
    """One line per symbol and hour."""
    headers = (
        *("symbol", "hour (UTC)", "trades", "of", "depth", "of at most", "pu breaks", "gaps"),
        *("trade lag p50/p95/p99/max ms", "depth lag p50/p95/p99/max ms"),
    )
    rows = (
        (
            *(h.symbol, stamp(h.start_ms), h.trades_found, h.trades_expected),
            *(h.depth_found, h.depth_expected, h.chain_breaks, h.gaps),
            *(_lag_text(h.trade_lag), _lag_text(h.depth_lag)),
        )
        for h in hours
    )
    return table(headers, rows)


def _lag_text(lag: Lag | None) -> str | None:
    if lag is None:
        return None
    return " / ".join(f"{value:,.1f}" for value in (lag.p50_ms, lag.p95_ms, lag.p99_ms, lag.max_ms))


def sample_text(kind: str, sample: FileSample) -> str:
    """Size, columns and first rows of a file."""
    lines = [
        f"latest {kind} file: {sample.path}",
        f"  {sample.size_bytes:,} bytes, {sample.row_count:,} rows",
        "  columns: " + ", ".join(f"{name} {kind}" for name, kind in sample.columns.items()),
    ]
    for row in sample.rows:
        cells = (f"{name}={_short(value)}" for name, value in row.items())
        lines.append("  sample: " + " ".join(cells))
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= _SAMPLE_WIDTH else text[: _SAMPLE_WIDTH - 1] + "…"


def certificate_text(hours: Sequence[Hour], holes: Sequence[Hole]) -> str:
    """Hours of one symbol that are alike and follow one another are one line; then each hole."""
    stretches = itertools.groupby(
        enumerate(hours),
        key=lambda found: (
            sorted(found[1].rows),
            found[1].status,
            found[1].repaired_from,
            found[1].holes,
            found[1].start_ms - found[0] * HOUR_MS,
        ),
    )
    rows = []
    for (kinds, status, sources, places, _), group in stretches:
        members = [hour for _, hour in group]
        what = ""
        if status is Status.HOLED:
            what = "hole " + ", ".join(f"#{place + 1}" for place in places)
        elif sources:
            what = "from " + ", ".join(sources)
        end_ms = members[-1].start_ms + HOUR_MS
        span = (stamp(members[0].start_ms), stamp(end_ms))
        of = ", ".join(kinds)
        rows.append((members[0].symbol, *span, len(members), of, status.value, what))
    text = table(("symbol", "from (UTC)", "to", "hours", "of", "are", ""), rows)
    lines = [f"hole #{place + 1}: {hole_text(hole)}" for place, hole in enumerate(holes)]
    return "\n".join([text, *lines])


def hole_text(hole: Hole) -> str:
    """What is missing, why, and until when it can be repaired; one line."""
    count = "an unknown number of" if hole.missing_count is None else f"{hole.missing_count:,}"
    what = {
        "trades": f"{count} trades",
        "depth": "depth frames",
        "klines": f"{count} bars",
    }[hole.kind]
    if hole.first_id is not None:
        what += f" (ids {hole.first_id} to {'?' if hole.last_id is None else hole.last_id})"
    until = stamp(hole.until_ms, "seconds") if hole.kind != "klines" else stamp(hole.until_ms)
    since = stamp(hole.from_ms, "seconds") if hole.kind != "klines" else stamp(hole.from_ms)
    return f"{hole.symbol} {what}, {since} to {until}: {hole.cause}; {_chances(hole)}"


def _chances(hole: Hole) -> str:
    if hole.repair is Repair.NOBODY:
        return "cannot be repaired"
    text = f"can be repaired from {'REST' if hole.repair is Repair.REST else 'the archive'}"
    if hole.repairable_until_ms is None:
        return text
    return f"{text} until {stamp(hole.repairable_until_ms)}"


def stamp(time_ms: int, precision: str = "minutes") -> str:
    """UTC, as ``2024-07-18 23:57`` or with seconds."""
    pattern = "%Y-%m-%d %H:%M" if precision == "minutes" else "%Y-%m-%d %H:%M:%S"
    return time.strftime(pattern, time.gmtime(time_ms // 1000))
