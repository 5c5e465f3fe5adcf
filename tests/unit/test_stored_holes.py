"""Holes between stored trades that nobody entered: found when files were damaged or removed."""

from __future__ import annotations

import time

from collectors.stored_holes import CAUSE, enter_stored_holes
from domain.events import GapState
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.stream_files import stream_dates, stream_files
from tests.stream_samples import trades, write

DAY = "2024-07-18"


def known(ledger: GapLedger) -> list[tuple[str, int | None, int | None]]:
    return [(gap.symbol, gap.first_id, gap.last_id) for gap in ledger.unresolved("trades")]


def test_the_rows_of_a_damaged_file_are_entered_once(tmp_path):
    paths = LakePaths.of(tmp_path)
    for ids in (range(1, 11), range(11, 21), range(21, 31)):
        write(paths, trades(ids))
    files = [
        file
        for date in stream_dates(paths, "trades")
        for file in stream_files(paths, "trades", date)
    ]
    damaged = files[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    ledger = GapLedger(paths.gaps, "recorder")
    entered = enter_stored_holes(paths, ledger, at_ns=time.time_ns())
    assert known(ledger) == [("BTCUSDT", 11, 20)]
    assert [(gap.cause, gap.state) for gap in entered] == [(CAUSE, GapState.OPEN)]
    assert entered[0].from_ms is not None
    assert entered[0].until_ms is not None
    assert entered[0].from_ms < entered[0].until_ms
    assert enter_stored_holes(paths, ledger, at_ns=time.time_ns()) == []


def test_whole_files_have_no_hole(tmp_path):
    paths = LakePaths.of(tmp_path)
    write(paths, trades(range(1, 11)))
    write(paths, trades(range(11, 21)))
    ledger = GapLedger(paths.gaps, "recorder")
    assert enter_stored_holes(paths, ledger, at_ns=1) == []
    assert known(ledger) == []
