"""What a dead recorder left in its journal → Parquet and ledger, each frame once. Blocks.

Consumes segments in order, as if their frames arrived now; produces the positions after them. Nothing is
removed here: whoever goes on removes the segments once a new one says where they ended. Until then
recovery can die and be repeated at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from binance_api.endpoints import Route
from collectors.recorder_files import Batch, StreamWriter
from collectors.recorder_holes import HoleBook
from collectors.recorder_rows import Position, StreamRows
from collectors.trade_claims import TradeClaims
from domain.market import Market
from lake.atomic import StepHook
from lake.frame_journal import JournalRecord, read_segment, segments_in
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.quarantine import Quarantine

log = structlog.get_logger()


class JournalState(msgspec.Struct, frozen=True):
    """How a segment begins: whose frames it holds, and where the ones before it ended."""

    symbols: list[str]
    positions: dict[str, Position]


class Outage(msgspec.Struct, frozen=True):
    """A note between frames: all sockets of a route were lost."""

    route: Route
    cause: str


class Recovered(msgspec.Struct, frozen=True):
    """What the segments left by a dead process came to."""

    segments: list[int]
    positions: dict[str, Position]
    frame_count: int
    cut_bytes: int


def recover(
    folder: Path,
    paths: LakePaths,
    market: Market,
    ledger: GapLedger,
    quarantine: Quarantine,
    *,
    wall_ns: Callable[[], int],
    hook: StepHook,
) -> Recovered:
    """Work off all segments.

    Args:
        folder: Of the journal.
        paths: Where Parquet goes.
        market: Whose frames they are.
        ledger: Gets the holes.
        quarantine: Gets rejected input.
        wall_ns: Stamped on holes.
        hook: See ``lake.atomic.StepHook``.

    Raises:
        StorageError: The disk refused; call again.
    """
    left = segments_in(folder)
    positions: dict[str, Position] = {}
    rows: StreamRows | None = None
    frame_count = cut_bytes = 0
    for number, path in left:
        segment = read_segment(path)
        cut_bytes += segment.cut_bytes
        if segment.damaged_bytes:
            log.error("recorder.journal_damaged", path=str(path), bytes=segment.damaged_bytes)
        state = _state_of(segment.records)
        if state is not None and (rows is None or rows.symbols != state.symbols):
            positions = {**state.positions, **positions}
            rows = _rows_after(positions, state.symbols, market, wall_ns)
            rows.keep_late = TradeClaims(ledger, wall_ns).take_recovered
        if rows is None:  # died while the first segment of all was begun
            continue
        _replay(segment.records, rows)
        batch = Batch.of(number, rows.take(), is_suspect=True)
        writer = StreamWriter(paths, rows.symbols, market, hook=hook)
        writer.write(batch)
        for top in batch.faulty:
            rows.depth_fault(top)
        holes = HoleBook(rows, ledger, quarantine, wall_ns=wall_ns)
        holes.enter_recovered()
        holes.flush()
        positions.update(rows.positions())
        frame_count += batch.frame_count
        if batch.frame_count or segment.cut_bytes:
            log.warning(
                "recorder.journal_recovered",
                segment=path.name,
                frames=batch.frame_count,
                cut_bytes=segment.cut_bytes,
                **writer.statistics(),
            )
    return Recovered([number for number, _ in left], positions, frame_count, cut_bytes)


def positions_at(folder: Path) -> dict[str, Position]:
    """How far recording had come when the oldest segment began: all before is in Parquet. Blocks.

    Raises:
        StorageError: The disk refused.
    """
    for _, path in segments_in(folder)[:1]:
        state = _state_of(read_segment(path).records)
        if state is not None:
            return state.positions
    return {}


def _rows_after(
    positions: Mapping[str, Position],
    symbols: Sequence[str],
    market: Market,
    wall_ns: Callable[[], int],
) -> StreamRows:
    rows = StreamRows(symbols, market, monotonic_ns=time.monotonic_ns, wall_ns=wall_ns)
    rows.resume(positions)
    return rows


def _state_of(records: Sequence[JournalRecord]) -> JournalState | None:
    for record in records[:1]:
        if record.is_note:
            try:
                return msgspec.json.decode(record.payloads[0], type=JournalState)
            except msgspec.ValidationError:  # the first record is gone, this is another note
                return None
    return None


def _replay(records: Iterable[JournalRecord], rows: StreamRows) -> None:
    for record in records:
        if not record.is_note:
            rows.on_frames(Route(record.route), record.payloads, record.receive_time_ns)
            continue
        try:
            outage = msgspec.json.decode(record.payloads[0], type=Outage)
        except msgspec.ValidationError:
            continue  # how the segment begins
        rows.note_outage(outage.route, outage.cause)
