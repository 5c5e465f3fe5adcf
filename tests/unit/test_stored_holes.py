"""Holes between stored trades that nobody entered: found when files were damaged or removed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec

from collectors.stored_holes import CAUSE, Recorded, enter_stored_holes, recorded_before
from domain.events import GapState
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.stream_files import stream_dates, stream_files
from tests.recorder_frames import record, trades_of
from tests.stream_samples import trades, write

SYMBOL = "BTCUSDT"
EVERYTHING = Recorded({}, ())


def files(paths: LakePaths) -> list[Path]:
    return [
        file
        for date in stream_dates(paths, "trades")
        for file in stream_files(paths, "trades", date)
    ]


def known(ledger: GapLedger) -> list[tuple[str, int | None, int | None]]:
    return [(gap.symbol, gap.first_id, gap.last_id) for gap in ledger.unresolved("trades")]


def test_the_rows_of_a_damaged_file_are_entered_once(tmp_path):
    paths = LakePaths.of(tmp_path)
    for ids in (range(1, 11), range(11, 21), range(21, 31)):
        write(paths, trades(ids))
    damaged = files(paths)[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    ledger = GapLedger(paths.gaps, "recorder")
    entered = enter_stored_holes(paths, ledger, EVERYTHING, at_ns=time.time_ns())
    assert known(ledger) == [("BTCUSDT", 11, 20)]
    assert [(gap.cause, gap.state) for gap in entered] == [(CAUSE, GapState.OPEN)]
    assert entered[0].from_ms is not None
    assert entered[0].until_ms is not None
    assert entered[0].from_ms < entered[0].until_ms
    assert enter_stored_holes(paths, ledger, EVERYTHING, at_ns=time.time_ns()) == []


def test_whole_files_have_no_hole(tmp_path):
    paths = LakePaths.of(tmp_path)
    write(paths, trades(range(1, 11)))
    write(paths, trades(range(11, 21)))
    ledger = GapLedger(paths.gaps, "recorder")
    assert enter_stored_holes(paths, ledger, EVERYTHING, at_ns=1) == []
    assert known(ledger) == []


def test_what_the_newest_file_held_is_entered_at_once(tmp_path):
    """Nothing is stored behind it, but the recorder knows how far it had come."""
    paths = LakePaths.of(tmp_path)
    record(paths, trades_of(range(1, 11)))
    record(paths, trades_of(range(11, 21)))
    newest = files(paths)[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    ledger = GapLedger(paths.gaps, "recorder")
    (gap,) = enter_stored_holes(paths, ledger, recorded_before(paths, ledger), at_ns=1)
    assert (gap.symbol, gap.first_id, gap.last_id, gap.cause) == (SYMBOL, 11, 20, CAUSE)


def test_what_is_recorded_or_repaired_meanwhile_is_no_hole(tmp_path):
    """Files are read while a recorder writes rows around others that it still holds in memory."""
    paths = LakePaths.of(tmp_path)
    write(paths, trades(range(1, 11)))
    write(paths, trades(range(21, 31)))
    ledger = GapLedger(paths.gaps, "recorder")
    ledger.found("trades", SYMBOL, 11, 20, cause="lost connection", at_ns=1)
    before = recorded_before(paths, ledger, running=["ETHUSDT"])
    before = msgspec.structs.replace(before, until={**before.until, SYMBOL: (30, 0)})
    ledger.resolve("trades", SYMBOL, 11, 20, GapState.REPAIRED, at_ns=2, by="rest")
    write(paths, trades(range(41, 51)))
    write(paths, trades([1, 5], symbol="ETHUSDT"))
    assert enter_stored_holes(paths, ledger, before, at_ns=3) == []
    assert known(ledger) == []


def test_days_that_were_deleted_are_no_hole(tmp_path):
    paths = LakePaths.of(tmp_path)
    for first in (1, 61, 61 + 86_400):
        write(paths, trades(range(first, first + 10)))
    shutil.rmtree(paths.stream("trades", "2024-07-19"))
    ledger = GapLedger(paths.gaps, "recorder")
    assert stream_dates(paths, "trades") == ["2024-07-18", "2024-07-20"]
    assert enter_stored_holes(paths, ledger, EVERYTHING, at_ns=1) == []
