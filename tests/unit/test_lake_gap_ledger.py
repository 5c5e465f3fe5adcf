from __future__ import annotations

import pytest

from domain.errors import StorageError
from domain.events import GapState
from lake import journal
from lake.gap_ledger import GapLedger, read_gaps
from tests.lake_fakes import DyingWriter, Killed

LOST, OPEN, REPAIRED, EXPIRED = (
    GapState.LOST,
    GapState.OPEN,
    GapState.REPAIRED,
    GapState.EXPIRED,
)


def found(ledger, first, last, symbol="BTCUSDT", **fields):
    values = {"cause": "missing ids", "at_ns": 1, "from_ms": 1000, "until_ms": 2000}
    return ledger.found("trades", symbol, first, last, **(values | fields))


def repaired(ledger, first, last, state=REPAIRED, by="rest"):
    return ledger.resolve("trades", "BTCUSDT", first, last, state, at_ns=2, by=by)


def ranges(gaps):
    return [(gap.first_id, gap.last_id, gap.state) for gap in gaps]


def sorted_ranges(ledger):
    return sorted(ranges(ledger.all()), key=lambda entry: entry[0])


def test_a_found_range_is_open_with_everything_known_about_it(tmp_path):
    ledger = GapLedger(tmp_path)
    (gap,) = found(ledger, 10, 19, repairable_until_ms=9000)
    assert ledger.open_gaps() == ledger.open_gaps("BTCUSDT", "trades") == [gap]
    assert (gap.missing_count, gap.cause, gap.from_ms, gap.repairable_until_ms) == (
        *(10, "missing ids"),
        *(1000, 9000),
    )
    assert ledger.open_gaps("ETHUSDT") == ledger.open_gaps(kind="depth") == []
    assert ledger.missing_count("BTCUSDT") == 10


def test_what_is_known_to_be_missing_is_not_added_again(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    assert found(ledger, 10, 19) == []
    assert ranges(found(ledger, 5, 25)) == [(5, 9, OPEN), (20, 25, OPEN)]
    assert ledger.missing_count("BTCUSDT") == 21
    repaired(ledger, 10, 19, LOST, by=None)
    assert found(ledger, 12, 13) == []


def test_a_repaired_range_found_missing_again_is_a_new_gap(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    repaired(ledger, 10, 19)
    assert ranges(found(ledger, 15, 16)) == [(15, 16, OPEN)]


def test_a_range_repaired_in_the_middle_is_split(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    changed = repaired(ledger, 13, 15)
    assert sorted(ranges(changed)) == [(10, 12, OPEN), (13, 15, REPAIRED), (16, 19, OPEN)]
    assert len({gap.gap_id for gap in ledger.all()}) == 3
    assert ledger.missing_count("BTCUSDT") == 7
    assert {gap.repaired_by for gap in ledger.all()} == {None, "rest"}


def test_repair_by_pages_grows_one_entry(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 0, 4999)
    for first in range(0, 4000, 1000):
        repaired(ledger, first, first + 999)
    assert sorted_ranges(ledger) == [(0, 3999, REPAIRED), (4000, 4999, OPEN)]


def test_one_reply_may_repair_several_gaps_and_only_those_of_its_symbol(tmp_path):
    ledger = GapLedger(tmp_path)
    for first in (10, 20, 30):
        found(ledger, first, first + 4)
    found(ledger, 10, 14, symbol="ETHUSDT")
    repaired(ledger, 12, 31)
    assert sorted_ranges(ledger) == [
        *((10, 11, OPEN), (10, 14, OPEN), (12, 14, REPAIRED)),
        *((20, 24, REPAIRED), (30, 31, REPAIRED), (32, 34, OPEN)),
    ]


def test_an_unknown_extent_ends_when_its_end_is_found(tmp_path):
    ledger = GapLedger(tmp_path)
    (gap,) = found(ledger, 10, None, until_ms=None)
    assert gap.missing_count is None
    assert ledger.missing_count("BTCUSDT") == 0
    assert found(ledger, 10, None) == []
    (ended,) = found(ledger, 10, 42, until_ms=7000)
    assert (ended.gap_id, ended.first_id, ended.last_id, ended.until_ms) == (
        *(gap.gap_id, 10),
        *(42, 7000),
    )


def test_an_unknown_extent_is_repaired_from_below(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, None)
    repaired(ledger, 10, 99)
    assert sorted_ranges(ledger) == [(10, 99, REPAIRED), (100, None, OPEN)]
    repaired(ledger, 100, None)
    assert ledger.open_gaps() == []


def test_gaps_without_ids_are_known_by_time(tmp_path):
    ledger = GapLedger(tmp_path)
    ledger.found(
        "depth", "BTCUSDT", None, None, cause="pu", at_ns=1, from_ms=5, until_ms=9, state=LOST
    )
    assert (
        ledger.found("depth", "BTCUSDT", None, None, cause="pu", at_ns=1, from_ms=6, until_ms=8)
        == []
    )
    ledger.found(
        "trades", "BTCUSDT", None, None, cause="socket", at_ns=1, from_ms=100, until_ms=None
    )
    ledger.resolve("trades", "BTCUSDT", 100, 150, REPAIRED, at_ns=2, by="rest", is_time=True)
    assert [(g.kind, g.from_ms, g.until_ms, g.state) for g in ledger.all()] == [
        ("depth", 5, 9, LOST),
        ("trades", 150, None, OPEN),
        ("trades", 100, 150, REPAIRED),
    ]
    repaired(ledger, 0, None)
    assert len(ledger.open_gaps()) == 1


def test_gaps_expire_in_exchange_time_and_the_archive_may_still_repair_them(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19, repairable_until_ms=500)
    found(ledger, 30, 39, repairable_until_ms=None)
    assert ledger.expire(500, at_ns=3) == []
    assert ranges(ledger.expire(501, at_ns=3)) == [(10, 19, EXPIRED)]
    assert repaired(ledger, 10, 19, LOST) == []
    assert ranges(repaired(ledger, 10, 19, by="archive")) == [(10, 19, REPAIRED)]


def test_a_restart_finds_the_gaps_of_before_and_gives_new_numbers(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    repaired(ledger, 12, 13)
    assert ledger.flush() == 2
    assert ledger.flush() == 0
    again = GapLedger(tmp_path)
    assert again.all() == ledger.all()
    assert len((tmp_path / "bot.jsonl").read_bytes().splitlines()) == 3
    (new,) = found(again, 50, 59)
    assert new.gap_id > max(gap.gap_id for gap in ledger.all())


def test_roles_have_journals_of_their_own_and_readers_see_all(tmp_path):
    bot, recorder = GapLedger(tmp_path, "bot"), GapLedger(tmp_path, "recorder")
    found(bot, 10, 19)
    found(recorder, 30, 39)
    bot.flush()
    recorder.flush()
    assert ranges(read_gaps(tmp_path)) == [(10, 19, OPEN), (30, 39, OPEN)]
    assert read_gaps(tmp_path / "absent") == []


def test_every_cut_of_the_journal_keeps_whole_changes(tmp_path):
    ledger = GapLedger(tmp_path)
    states = [ledger.all()]
    for change in (lambda: found(ledger, 10, 19), lambda: repaired(ledger, 12, 13)):
        change()
        ledger.flush()
        states.append(ledger.all())
    content = (tmp_path / "bot.jsonl").read_bytes()
    ends = {i + step for i, byte in enumerate(content) if byte == 10 for step in (-1, 0, 1, 2)}
    for length in sorted({*range(0, len(content), 37), *ends}):
        folder = tmp_path / "cut"
        folder.mkdir(exist_ok=True)
        (folder / "bot.jsonl").write_bytes(content[:length])
        assert GapLedger(folder).all() == states[content[:length].count(b"\n")]


def test_lines_damaged_by_others_are_dropped_and_the_file_is_kept_beside(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    found(ledger, 30, 39)
    ledger.flush()
    first, second = (tmp_path / "bot.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "bot.jsonl").write_bytes(first + b"\xff\x00garbage\n" + second)
    again = GapLedger(tmp_path)
    assert again.all() == ledger.all()
    (copy,) = tmp_path.glob("*.damaged")
    assert b"garbage" in copy.read_bytes()
    assert GapLedger(tmp_path).all() == ledger.all()


@pytest.mark.parametrize("at", range(1, 6))
def test_a_compaction_killed_at_any_step_keeps_everything(tmp_path, at):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    repaired(ledger, 10, 19)
    ledger.flush()
    with pytest.raises(Killed):
        GapLedger(tmp_path, hook=DyingWriter(at))
    assert GapLedger(tmp_path).all() == ledger.all()


def test_a_full_disk_keeps_the_changes_for_the_next_flush(tmp_path, monkeypatch):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    with monkeypatch.context() as patch:

        def refuse(*_args):
            raise OSError(28, "No space left on device")

        patch.setattr(journal.os, "fsync", refuse)
        with pytest.raises(StorageError, match=r"cannot write .*bot.jsonl: No space left"):
            ledger.flush()
    assert (tmp_path / "bot.jsonl").read_bytes() == b""
    assert ledger.statistics() == {
        "gaps_open": 1,
        "gaps_repaired": 0,
        "gaps_lost": 0,
        "gaps_expired": 0,
        "changes_pending": 1,
    }
    assert ledger.flush() == 1
    assert read_gaps(tmp_path) == ledger.all()


def test_what_rest_could_not_give_may_become_permanent_only_when_told(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    repaired(ledger, 10, 19, EXPIRED, by=None)
    assert repaired(ledger, 10, 19, LOST, by=None) == []
    changed = ledger.resolve("trades", "BTCUSDT", 12, 14, LOST, at_ns=3, of=[OPEN, EXPIRED])
    assert sorted(ranges(changed)) == [(10, 11, EXPIRED), (12, 14, LOST), (15, 19, EXPIRED)]


def test_a_new_state_may_have_another_deadline(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19, repairable_until_ms=5_000)
    ledger.resolve("trades", "BTCUSDT", 10, 14, EXPIRED, at_ns=2, repairable_until_ms=9_000)
    deadlines = {gap.first_id: gap.repairable_until_ms for gap in ledger.all()}
    assert deadlines == {10: 9_000, 15: 5_000}


def test_what_is_left_of_a_hole_knows_its_times_from_the_trades_beside_it(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 29, from_ms=1_000, until_ms=2_000)
    ledger.resolve("trades", "BTCUSDT", 15, 19, REPAIRED, at_ns=2, times_ms=(1_400, 1_500))
    times = {gap.first_id: (gap.from_ms, gap.until_ms) for gap in ledger.all()}
    assert times == {10: (1_000, 1_400), 15: (1_400, 1_500), 20: (1_500, 2_000)}
    ledger.resolve("trades", "BTCUSDT", 20, 24, LOST, at_ns=3, times_ms=(1_500, 1_700))
    times = {gap.first_id: (gap.from_ms, gap.until_ms) for gap in ledger.all()}
    assert times[20] == (1_500, 1_700)
    assert times[25] == (1_700, 2_000)


def test_unresolved_gaps_of_a_kind_are_listed_whatever_their_state(tmp_path):
    ledger = GapLedger(tmp_path)
    found(ledger, 10, 19)
    found(ledger, 30, 39, symbol="ETHUSDT", state=LOST)
    found(ledger, 50, 59)
    ledger.found("depth", "BTCUSDT", None, None, cause="x", at_ns=1, from_ms=1, until_ms=2)
    repaired(ledger, 10, 14)
    assert ranges(ledger.unresolved("trades")) == [(15, 19, OPEN), (30, 39, LOST), (50, 59, OPEN)]
    assert len(ledger.unresolved("depth")) == 1
