from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from audit.certificate import Repair, Status
from audit.check_stream import StreamReport, check_stream
from audit.stream import audit_recording, latest_files
from domain.events import GapState
from lake.paths import LakePaths
from tests.lake_months import (
    HOUR_MS,
    MONTH_MS,
    SYMBOL,
    archive,
    ledger_of,
    store,
    store_depth,
    trade_lines,
    trades,
)

MAIN = Path(__file__).resolve().parents[2] / "main.py"
DATE = "2024-07-01"
LATER_MS = MONTH_MS + 24 * HOUR_MS


@pytest.fixture
def paths(data_dir: Path) -> LakePaths:
    return LakePaths.of(data_dir)


def store_book(paths: LakePaths, start_ms: int, count: int, *, first_u: int = 1_000) -> None:
    """``count`` snapshots 100 ms apart whose chain begins after ``first_u``."""
    finals = [first_u + 10 * (n + 1) for n in range(count)]
    times = [start_ms + 100 * n for n in range(count)]
    store_depth(paths, times, finals, [final - 10 for final in finals])


def test_frames_of_each_hour_are_counted_against_what_was_to_be_expected(paths: LakePaths) -> None:
    rows = trades([*range(1, 3_001), *range(3_101, 5_401)])
    store(paths, rows)
    store(paths, trades(range(3_101, 3_111)), "rest")  # the same once more
    store_book(paths, MONTH_MS + 30 * 60_000, 36_000)
    found = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS)
    first, second = found.hours
    assert (first.trades_found, first.trades_expected) == (3_500, 3_600)
    assert (second.trades_found, second.trades_expected) == (1_800, 1_800)
    assert first.sources == {"stream": 3_500}
    assert [hour.depth_found for hour in found.hours] == [18_000, 18_000]
    assert [hour.depth_expected for hour in found.hours] == [18_000, 18_000]
    assert [hour.status for hour in found.certificate] == [Status.HOLED, Status.WHOLE]
    (hole,) = found.holes
    assert (hole.kind, hole.first_id, hole.last_id) == ("trades", 3_001, 3_100)


def test_lags_are_receipt_minus_event_time(paths: LakePaths) -> None:
    rows = trades(range(1, 101))
    rows["receive_time_ns"] = (rows["event_time_ms"] + rows["agg_trade_id"] - 51) * 1_000_000
    store(paths, rows)
    store_book(paths, MONTH_MS, 10)
    (hour,) = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS).hours
    assert hour.trade_lag is not None
    assert hour.depth_lag is not None
    assert (hour.trade_lag.p50_ms, hour.trade_lag.max_ms) == (-0.5, 49.0)
    assert (hour.depth_lag.p50_ms, hour.depth_lag.max_ms) == (20.0, 20.0)


def test_repaired_trades_have_no_lag(paths: LakePaths) -> None:
    store(paths, trades(range(1, 101)), "rest")
    found = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS)
    assert found.hours[0].trade_lag is None
    assert [(hour.status, hour.repaired_from) for hour in found.certificate] == [
        (Status.REPAIRED, ["rest"])
    ]


def test_a_broken_chain_is_a_hole_in_the_depth_with_the_ledgers_cause(paths: LakePaths) -> None:
    store_book(paths, MONTH_MS, 100)
    store_book(paths, MONTH_MS + 20_000, 100, first_u=9_000)
    store_book(paths, MONTH_MS + 2 * HOUR_MS, 100, first_u=20_000)
    ledger = ledger_of(paths)
    ledger.found(
        "depth",
        SYMBOL,
        None,
        None,
        cause="disconnected",
        at_ns=1,
        from_ms=MONTH_MS + 9_900,
        until_ms=MONTH_MS + 20_000,
        state=GapState.LOST,
    )
    ledger.flush()
    found = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS)
    assert [hour.chain_breaks for hour in found.hours] == [1, 0, 1]
    assert [hour.gaps for hour in found.hours] == [1, 0, 0]
    assert [(hole.cause, hole.from_ms, hole.until_ms, hole.repair) for hole in found.holes] == [
        ("disconnected", MONTH_MS + 9_900, MONTH_MS + 20_000, Repair.NOBODY),
        ("not in the ledger", MONTH_MS + 29_900, MONTH_MS + 2 * HOUR_MS, Repair.NOBODY),
    ]
    assert [hour.holes for hour in found.certificate] == [[0, 1], [1], [1]]


def test_a_depth_gap_no_frame_shows_is_taken_from_the_ledger(paths: LakePaths) -> None:
    store_book(paths, MONTH_MS, 100)
    ledger = ledger_of(paths)
    ledger.found(
        "depth",
        SYMBOL,
        None,
        None,
        cause="faulty level",
        at_ns=1,
        from_ms=MONTH_MS + 4_000,
        until_ms=MONTH_MS + 4_100,
        state=GapState.LOST,
    )
    ledger.flush()
    (hole,) = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS).holes
    assert hole.cause == "faulty level"


def test_the_archives_months_do_not_hide_what_the_recorder_missed(paths: LakePaths) -> None:
    store(paths, trades([1, 2, 3, 7, 8]))
    archive(paths, "aggTrades", trade_lines(trades(range(1, 9))))
    found = audit_recording(paths, SYMBOL, [DATE], now_ms=LATER_MS)
    assert [(hole.first_id, hole.last_id) for hole in found.holes] == [(4, 6)]


def test_hours_are_audited_over_midnight_without_a_false_break(paths: LakePaths) -> None:
    midnight_ms = MONTH_MS + 24 * HOUR_MS
    store(paths, trades(range(1, 101), start_ms=midnight_ms - 50_000))
    store_book(paths, midnight_ms - 5_000, 100)
    dates = [DATE, "2024-07-02"]
    found = audit_recording(paths, SYMBOL, dates, now_ms=midnight_ms + HOUR_MS)
    assert found.holes == []
    assert [hour.depth_found for hour in found.hours] == [50, 50]
    assert [hour.status for hour in found.certificate] == [Status.WHOLE, Status.WHOLE]


def test_the_latest_file_is_shown_with_size_columns_and_sample(paths: LakePaths) -> None:
    store(paths, trades(range(1, 11)))
    (newest,) = store(paths, trades(range(11, 14)))
    store_book(paths, MONTH_MS, 2)
    found = latest_files(paths)
    assert found["trades"].path == newest
    assert found["trades"].size_bytes == newest.stat().st_size
    assert found["trades"].row_count == 3
    assert found["trades"].columns["price"] == "double"
    assert [row["agg_trade_id"] for row in found["trades"].rows] == ["11", "12", "13"]
    assert found["depth"].rows[0]["bids"] == "[[59999.9, 1.0]]"


def test_a_damaged_latest_file_does_not_stop_the_audit(paths: LakePaths) -> None:
    store(paths, trades(range(1, 11)))
    (newest,) = store(paths, trades(range(11, 14)))
    newest.write_bytes(b"no Parquet")
    report = check_stream(paths, [SYMBOL], now_ms=LATER_MS)
    assert report.latest["trades"].row_count == 10
    assert report.symbols[0].hours[0].trades_found == 10


def test_only_the_dates_asked_for_are_audited(paths: LakePaths) -> None:
    store(paths, trades(range(1, 73), every_ms=HOUR_MS))

    def hours_of(report: StreamReport) -> int:
        return len(report.symbols[0].hours)

    assert hours_of(check_stream(paths, [SYMBOL], now_ms=LATER_MS * 2)) == 72
    one = check_stream(paths, [SYMBOL], first_date="2024-07-02", last_date="2024-07-02")
    assert hours_of(one) == 24
    assert one.has_holes is False


def test_the_command_prints_tables_writes_json_and_exits_4_when_there_are_holes(
    paths: LakePaths, data_dir: Path
) -> None:
    store(paths, trades([*range(1, 50), *range(60, 100)]))
    store_book(paths, MONTH_MS, 100)
    done = subprocess.run(
        [sys.executable, "-m", "audit.check_stream", "--data-dir", str(data_dir)],
        cwd=MAIN.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "latest trades file:" in done.stdout
    assert "can be repaired from the archive" in done.stdout
    assert "nothing is recorded of ETHUSDT" in done.stdout
    (report,) = (data_dir / "audit").glob("stream-*.json")
    found = msgspec.json.decode(report.read_bytes())
    assert found["symbols"][0]["certificate"][0]["status"] == "holed"


def test_an_empty_folder_is_no_hole(data_dir: Path) -> None:
    report = check_stream(LakePaths.of(data_dir), [SYMBOL])
    assert report.has_holes is False
    assert report.text() == "nothing is recorded here"
