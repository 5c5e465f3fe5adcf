from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from domain.events import GapState
from lake.atomic import Step
from lake.gap_ledger import GapLedger
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.retention import RetentionSettings, finish_pruning, plan_retention, prune
from tests.lake_fakes import DyingWriter, Killed

NOW_MS = date_start_ms("2024-07-19") + 12 * 3_600_000
DATES = ["2024-07-15", "2024-07-16", "2024-07-17", "2024-07-18", "2024-07-19"]
KINDS = ("stream_trades", "stream_depth", "features", "signals", "quarantine")


@pytest.fixture
def paths(data_dir):
    return LakePaths.of(data_dir)


def place(paths, kind, date):
    return {
        "stream_trades": paths.stream("trades", date),
        "stream_depth": paths.stream("depth", date),
        "features": paths.features / f"date={date}",
        "signals": paths.signals / f"date={date}",
        "quarantine": paths.quarantine / f"{date}.jsonl",
    }[kind]


def fill(paths, kind="stream_trades", dates=DATES):
    for date in dates:
        path = place(paths, kind, date)
        file = path if path.suffix else path / "rows.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 10)


def going(plan):
    return [item.name for item in plan if item.kept_because is None]


def plan(paths, now_ms=NOW_MS, gaps=(), **days):
    return plan_retention(paths, RetentionSettings(**days), gaps, now_ms=now_ms)


def test_nothing_goes_unless_it_is_set(paths):
    for kind in KINDS:
        fill(paths, kind)
    assert plan(paths) == []


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_the_days_set_are_kept_and_today_counts(paths, kind):
    fill(paths, kind)
    found = plan(paths, **{kind: 2})
    assert going(found) == DATES[:3]
    assert {(item.kind, item.size_bytes, item.file_count) for item in found} == {(kind, 10, 1)}
    assert prune(found) == (found, 0)
    assert [date for date in DATES if place(paths, kind, date).exists()] == DATES[3:]
    assert plan(paths, **{kind: 2}) == []


def test_today_stays_whatever_is_set(paths):
    fill(paths)
    assert going(plan(paths, stream_trades=1)) == DATES[:4]


@pytest.mark.parametrize("years", [1, 100])
def test_a_clock_that_jumps_ahead_deletes_nothing_of_the_last_days(paths, years):
    fill(paths)
    jumped_ms = NOW_MS + years * 365 * DAY_MS
    assert going(plan(paths, jumped_ms, stream_trades=3)) == DATES[:2]


def test_a_clock_that_jumps_back_deletes_nothing(paths):
    fill(paths)
    assert plan(paths, 0, stream_trades=1) == []


def test_a_month_goes_when_its_last_day_is_old_enough(paths):
    folder = paths.historical("BTCUSDT")
    folder.mkdir(parents=True)
    for month in ("2024-04", "2024-05", "2024-06"):
        (folder / f"aggTrades_{month}.parquet").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    found = plan(paths, historical=30)  # back from the newest day there is: June 30
    assert going(found) == ["BTCUSDT aggTrades 2024-04", "BTCUSDT aggTrades 2024-05"]
    assert going(plan(paths, historical=31)) == ["BTCUSDT aggTrades 2024-04"]
    prune(found)
    assert sorted(path.name for path in folder.iterdir()) == [
        "aggTrades_2024-06.parquet",
        "notes.txt",
    ]


@pytest.mark.parametrize("state", list(GapState))
def test_a_day_with_holes_that_can_still_be_repaired_stays(paths, tmp_path, state):
    fill(paths)
    ledger = GapLedger(tmp_path)
    start_ms = date_start_ms("2024-07-16")
    ledger.found(
        *("trades", "BTCUSDT", 5, 9),
        cause="x",
        at_ns=1,
        from_ms=start_ms + 1_000,
        until_ms=start_ms + DAY_MS + 1_000,  # the next day as well
        repairable_until_ms=NOW_MS + 1,
        state=state,
    )
    found = plan(paths, gaps=ledger.all(), stream_trades=1)
    is_repairable = state in {GapState.OPEN, GapState.EXPIRED}
    assert going(found) == (["2024-07-15", "2024-07-18"] if is_repairable else DATES[:4])
    kept = [item for item in found if item.kept_because is not None]
    assert [item.kept_because for item in kept] == ["open repairs: 1"] * len(kept)
    prune(found)
    assert place(paths, "stream_trades", "2024-07-16").exists() is is_repairable


def test_a_hole_the_archive_is_given_up_for_holds_no_day(paths, tmp_path):
    fill(paths)
    ledger = GapLedger(tmp_path)
    at_ms = date_start_ms("2024-07-16")
    ledger.found(
        *("trades", "BTCUSDT", 5, 9),
        cause="x",
        at_ns=1,
        from_ms=at_ms,
        until_ms=at_ms,
        repairable_until_ms=NOW_MS - 1,
        state=GapState.EXPIRED,
    )
    assert going(plan(paths, gaps=ledger.all(), stream_trades=1)) == DATES[:4]


def test_a_hole_without_an_end_holds_all_days_since(paths, tmp_path):
    fill(paths)
    ledger = GapLedger(tmp_path)
    from_ms = date_start_ms("2024-07-17")
    ledger.found("trades", "BTCUSDT", 5, None, cause="x", at_ns=1, from_ms=from_ms)
    assert going(plan(paths, gaps=ledger.all(), stream_trades=1)) == DATES[:2]


def test_each_step_of_a_deletion_may_be_its_last(paths):
    for kill_at in range(1, 10):
        fill(paths)
        found = plan(paths, stream_trades=4)
        folder = place(paths, "stream_trades", DATES[0])
        (folder / "more.parquet").write_bytes(b"x")
        writer = DyingWriter(kill_at)
        try:
            prune(found, hook=writer)
        except Killed:
            assert not folder.exists()  # hidden by one rename: never part of a day
            assert finish_pruning(paths) == 1
            assert not list(folder.parent.glob(".*"))
        else:
            assert kill_at == 4  # renamed, two files
            return


def test_somebody_elses_files_stay(paths):
    fill(paths)
    folder = place(paths, "stream_trades", DATES[0])
    (folder / "notes.txt").write_text("mine")
    prune(plan(paths, stream_trades=1))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_link_to_a_folder_elsewhere_is_left_alone(paths, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.parquet").write_bytes(b"x")
    fill(paths)
    place(paths, "stream_trades", "2024-07-01").symlink_to(elsewhere)
    assert going(plan(paths, stream_trades=4)) == [DATES[0]]


def test_a_deletion_the_system_refuses_is_named_and_the_others_go_on(paths):
    fill(paths)

    def refuse(step, path):
        if step is Step.RENAMED and path.name == DATES[0]:
            raise PermissionError(13, "Permission denied")

    with capture_logs() as logs:
        gone, failures = prune(plan(paths, stream_trades=2), hook=refuse)
    assert ([item.name for item in gone], failures) == (DATES[1:3], 1)
    (line,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert line["error"] == "Permission denied"


def test_names_that_are_no_dates_are_left_alone(paths):
    fill(paths, dates=["2024-13-01", "old", date_of(NOW_MS), "2024-07-01"])
    assert going(plan(paths, stream_trades=1)) == ["2024-07-01"]
