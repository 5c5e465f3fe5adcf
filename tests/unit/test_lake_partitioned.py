from __future__ import annotations

import msgspec
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from domain.errors import StorageError
from domain.events import Action
from lake import part_files
from lake.atomic import Step
from lake.partitioned import PartitionedSettings, PartitionedStore
from lake.signal_store import signal_store
from tests.lake_fakes import (
    DAY_MS,
    START_MS,
    WINDOW_MS,
    DyingWriter,
    FullDisk,
    Killed,
    signal,
)

OLD_DATE, NEW_DATE = "2024-07-18", "2024-07-19"
MIDNIGHT_INDEX = 12


class Row(msgspec.Struct, frozen=True, kw_only=True):
    symbol: str
    at_ms: int
    revision: int = 0
    value: float | None = None


class WiderRow(msgspec.Struct, frozen=True, kw_only=True):
    symbol: str
    at_ms: int
    revision: int = 0
    value: float | None = None
    extra: str | None = None
    strict: int = 7


def store(folder, row_type=Row, **options):
    return PartitionedStore(
        folder / "rows",
        row_type,
        keys=("symbol", "at_ms"),
        time_column="at_ms",
        revision_column="revision",
        **options,
    )


def row(index=0, symbol="A", revision=0, value=None, row_type=Row):
    at_ms = START_MS + index * WINDOW_MS
    return row_type(symbol=symbol, at_ms=at_ms, revision=revision, value=value)


def values(table):
    return table.column("value").to_pylist()


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_batch_is_one_file_per_date_each_renamed_once(tmp_path):
    steps = DyingWriter()
    rows = [row(i, s) for i in range(24) for s in ("B", "A")]
    paths = store(tmp_path, hook=steps).write_batch(rows)
    assert [p.parent.name for p in paths] == [f"date={OLD_DATE}", f"date={NEW_DATE}"]
    assert steps.steps.count(Step.RENAMED) == 2
    assert [pq.read_metadata(p).num_rows for p in paths] == [24, 24]
    first = pq.read_table(paths[0], partitioning=None)
    assert first.column("symbol").to_pylist() == ["A"] * 12 + ["B"] * 12
    assert pq.read_metadata(paths[0]).row_group(0).column(1).compression == "ZSTD"


def test_the_highest_revision_wins_and_all_are_there_on_request(tmp_path):
    rows = store(tmp_path)
    rows.write_batch([row(0, value=1.0), row(1, value=2.0)])
    rows.write_batch([row(0, revision=2, value=3.0)])
    rows.write_batch([row(0, revision=1, value=4.0)])
    assert values(rows.read()) == [3.0, 2.0]
    assert values(rows.read(latest_only=False)) == [1.0, 4.0, 3.0, 2.0]


def test_ranges_symbols_and_columns(tmp_path):
    rows = store(tmp_path)
    rows.write_batch([row(i, s, value=float(i)) for i in range(24) for s in "ABC"])
    start = START_MS + 10 * WINDOW_MS
    found = rows.read("B", start, start + 4 * WINDOW_MS, ["value", "symbol"])
    assert found.column_names == ["value", "symbol"]
    assert values(found) == [10.0, 11.0, 12.0, 13.0]
    assert set(rows.read(["A", "C", "absent"]).column("symbol").to_pylist()) == {"A", "C"}
    assert rows.read("absent").num_rows == rows.read([]).num_rows == 0
    assert rows.read(end_ms=START_MS).num_rows == 0
    with pytest.raises(ValueError, match="no such column: nonsense"):
        rows.read(columns=["nonsense"])


def test_only_folders_and_row_groups_that_can_hold_the_rows_are_read(tmp_path, monkeypatch):
    rows = store(tmp_path)
    rows.write_batch([row(i, s) for i in range(24) for s in "AB"])
    rows.compact(NEW_DATE)
    read = []
    real = part_files.pq.ParquetFile.read_row_groups

    def counted(self, groups, **options):
        read.append(len(groups))
        return real(self, groups, **options)

    monkeypatch.setattr(part_files.pq.ParquetFile, "read_row_groups", counted)
    rows.read("A", START_MS, START_MS + WINDOW_MS)
    assert read == [1]
    rows.read("Z")
    rows.read("A", START_MS + DAY_MS)
    assert read == [1]


def test_a_store_without_files_is_empty(tmp_path):
    rows = store(tmp_path)
    assert rows.read().num_rows == 0
    assert rows.read_rows() == []
    assert rows.dates() == []
    assert rows.last_keys(["A"]) == {}
    assert rows.recover() == 0
    assert rows.compact_due(START_MS) == []
    assert rows.write_batch([]) == []


def test_rows_not_in_files_yet_are_read_as_the_newest(tmp_path):
    rows = store(tmp_path)
    rows.write_batch([row(0, value=1.0)])
    held = [row(0, value=2.0), row(1, value=3.0), row(0, "B", value=9.0)]
    assert values(rows.read("A", extra_rows=held)) == [2.0, 3.0]
    assert rows.read("A", columns=["value"], extra_rows=held).num_rows == 2


@pytest.mark.parametrize("is_compacted", [False, True])
def test_files_with_fewer_and_with_more_columns_are_read_together(tmp_path, is_compacted):
    narrow, wide = store(tmp_path), store(tmp_path, WiderRow)
    narrow.write_batch([row(0, value=1.0)])
    wide.write_batch([row(1, value=2.0, row_type=WiderRow)])
    if is_compacted:
        narrow.compact(OLD_DATE)  # an older version must not drop what it does not know
    assert values(narrow.read()) == [1.0, 2.0]
    assert narrow.read(columns=["strict"]).column(0).to_pylist() == [None, 7]
    assert wide.read().column("strict").to_pylist() == [None, 7]
    assert [r.strict for r in wide.read_rows()] == [7, 7]
    assert [r.extra for r in wide.read_rows()] == [None, None]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "garbage":
        content = b"not parquet at all" * 20
    elif how == "a flipped bit in the data":
        content[content.index(b"\x28\xb5\x2f\xfd") + 9] ^= 0x10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "a flipped bit in the data"])
@pytest.mark.parametrize("is_merging", [False, True])
def test_a_damaged_file_is_named_once_set_aside_and_the_rest_is_used(tmp_path, how, is_merging):
    rows = store(tmp_path)
    rows.write_batch([row(0, value=1.0)])
    (bad,) = rows.write_batch([row(i, value=2.0) for i in range(1, 9)])
    rows.write_batch([row(9, value=3.0)])
    damage(bad, how)
    with capture_logs() as logs:
        if is_merging:
            rows.compact(OLD_DATE)
        assert values(rows.read()) == [1.0, 3.0]
        assert values(rows.read()) == [1.0, 3.0]
    (entry,) = logs
    assert (entry["event"], entry["path"]) == ("store.file_damaged", str(bad))
    aside = tmp_path / "damaged" / "rows" / f"date={OLD_DATE}" / f"{bad.name}.damaged"
    assert aside.exists()
    assert not bad.exists()
    assert rows.statistics()["files_damaged"] == 1


def test_a_foreign_parquet_file_is_set_aside(tmp_path):
    rows = store(tmp_path)
    (path,) = rows.write_batch([row(0, value=1.0)])
    pq.write_table(
        pq.read_table(path, partitioning=None).select(["value"]), path.with_name("x.parquet")
    )
    with capture_logs() as logs:
        assert values(rows.read()) == [1.0]
    assert logs[0]["reason"] == "lacks at_ms, symbol"


def test_a_damaged_file_that_cannot_be_moved_is_left_out_and_named_once(tmp_path):
    rows = store(tmp_path)
    rows.write_batch([row(0, value=1.0)])
    (bad,) = rows.write_batch([row(1)])
    damage(bad, "truncated")
    (tmp_path / "damaged").write_text("in the way")
    with capture_logs() as logs:
        assert values(rows.read()) == values(rows.read()) == [1.0]
        assert rows.compact(OLD_DATE) is None
    assert len(logs) == 1
    assert bad.exists()


def test_a_file_the_system_refuses_is_an_error_not_damage(tmp_path, monkeypatch):
    rows = store(tmp_path)
    (path,) = rows.write_batch([row(0)])

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(part_files.pq, "ParquetFile", refuse)
    with pytest.raises(StorageError, match=f"cannot read {path}: Permission denied"):
        rows.read()
    assert path.exists()


def test_other_files_and_folders_are_left_alone(tmp_path):
    rows = store(tmp_path)
    (path,) = rows.write_batch([row(0, value=1.0)])
    for name in ("notes.txt", ".hidden.parquet", "_metadata.parquet"):
        path.with_name(name).write_text("x")
    (tmp_path / "rows" / "date=2024-7-1").mkdir()
    (tmp_path / "rows" / "date=backup").mkdir()
    assert values(rows.read()) == [1.0]
    assert rows.dates() == [OLD_DATE]
    assert rows.recover() == 0


def test_a_file_merged_away_while_reading_starts_the_read_again(tmp_path, monkeypatch):
    rows = store(tmp_path)
    for index in range(4):
        rows.write_batch([row(index, value=float(index))])
    real = part_files.read_file
    is_first = [True]

    def merge_first(path, schema, wanted):
        if is_first.pop() if is_first else False:
            store(tmp_path).compact(OLD_DATE)
        return real(path, schema, wanted)

    monkeypatch.setattr("lake.partitioned.read_file", merge_first)
    assert values(rows.read()) == [0.0, 1.0, 2.0, 3.0]


def test_a_listing_taken_while_files_are_merged_is_taken_again(tmp_path, monkeypatch):
    rows = store(tmp_path)
    rows.write_batch([row(0)])
    rows.write_batch([row(1)])
    real, calls = part_files.files_in, []

    def torn(folder, date):
        calls.append(date)
        before = real(folder, date)
        if len(calls) == 1:
            store(tmp_path).compact(OLD_DATE)
            return before[:1]
        return real(folder, date)

    monkeypatch.setattr(part_files, "files_in", torn)
    (merged,) = part_files.stable_files(rows.folder, [OLD_DATE])
    assert merged.name.startswith("merged-")


@pytest.mark.parametrize("merge_rows", [1, 30, 10_000])
def test_compaction_keeps_the_highest_revisions_sorted_whatever_fits_in_memory(
    tmp_path, merge_rows
):
    rows = store(tmp_path, settings=PartitionedSettings(merge_rows=merge_rows))
    for index in range(12):
        rows.write_batch([row(index, s, value=1.0) for s in "CAB"])
    rows.write_batch([row(5, "B", revision=1, value=2.0)])
    before = rows.read()
    merged = rows.compact(OLD_DATE)
    assert files(tmp_path) == [merged.name]
    assert pq.read_metadata(merged).num_rows == 36
    assert rows.read().equals(before)
    assert rows.read(latest_only=False).equals(before)
    assert rows.compact(OLD_DATE) is None
    assert pq.read_metadata(merged).num_row_groups == {1: 12, 30: 2, 10_000: 1}[merge_rows]


def test_closed_dates_become_one_file_and_the_open_one_an_additional_file_each_time(tmp_path):
    rows = store(tmp_path)
    now_ms = START_MS + 20 * WINDOW_MS  # in the new date
    for index in range(20):
        rows.write_batch([row(index)])
    assert len(rows.compact_due(now_ms)) == 2
    for index in range(20, 24):
        rows.write_batch([row(index)])
    assert len(rows.compact_due(now_ms)) == 1
    assert [n.partition("-")[0] for n in files(tmp_path)] == ["merged"] * 3
    assert rows.compact_due(now_ms) == []
    rows.write_batch([row(3, revision=1, value=5.0)])
    assert len(rows.compact_due(now_ms + DAY_MS)) == 2
    assert len(files(tmp_path)) == 2
    assert rows.read().num_rows == 24


@pytest.mark.parametrize("at", range(1, 9))
def test_a_merge_killed_at_any_step_loses_nothing_and_is_finished_at_start(tmp_path, at):
    rows = store(tmp_path)
    for index in range(3):
        rows.write_batch([row(index, value=1.0)])
    rows.write_batch([row(0, revision=1, value=2.0)])
    before = rows.read()
    steps = 5 + 4
    with pytest.raises(Killed):
        store(tmp_path, hook=DyingWriter(at)).compact(OLD_DATE)
    assert store(tmp_path).read().equals(before)
    again = store(tmp_path)
    removed = again.recover()
    assert again.read().equals(before)
    if at >= 4:  # the merged file was visible: what it replaces is gone now
        assert [n.partition("-")[0] for n in files(tmp_path)] == ["merged"]
        assert removed == steps - 5 - max(0, at - 5)
    else:
        assert len(files(tmp_path)) == 4 + 1  # this process lives: its temporary stays
    assert again.recover() == 0


def test_a_merge_without_room_changes_nothing(tmp_path):
    rows = store(tmp_path, hook=(disk := FullDisk(Step.SYNCED)))
    disk.is_full = False
    rows.write_batch([row(0)])
    rows.write_batch([row(1)])
    before = files(tmp_path)
    disk.is_full = True
    with pytest.raises(StorageError, match="No space left on device"):
        rows.compact(OLD_DATE)
    assert files(tmp_path) == before


def test_names_never_collide_across_processes_and_sort_by_time():
    names = [part_files.new_name("part") for _ in range(1000)]
    assert len(set(names)) == 1000
    assert sorted(names) == names


def test_last_keys_look_back_over_dates_and_skip_nulls(tmp_path):
    rows = store(tmp_path, WiderRow)
    wide = [row(i, row_type=WiderRow) for i in range(24)]
    rows.write_batch([wide[0], msgspec.structs.replace(wide[1], symbol="B"), wide[20]])
    assert rows.last_keys(["A", "B", "C"]) == {
        "A": (wide[20].at_ms, None),
        "B": (wide[1].at_ms, None),
    }
    held = [msgspec.structs.replace(wide[23], symbol="C")]
    assert rows.last_keys(["C"], extra_rows=held) == {"C": (wide[23].at_ms, None)}


def test_rows_that_cannot_be_stored_are_named_and_counted(tmp_path):
    rows = store(tmp_path)
    bad = Row(symbol="A", at_ms=START_MS, revision=None)
    with capture_logs() as logs:
        rows.write_batch([row(1), bad])
        assert rows.write_date(OLD_DATE, [bad]) is None
    assert {entry["event"] for entry in logs} == {"store.row_unstorable"}
    assert rows.statistics()["rows_rejected"] == 2
    assert rows.read().num_rows == 1


def test_signals_lie_by_the_date_of_their_windows_end_and_count_once(tmp_path):
    signals = signal_store(tmp_path / "signals")
    first, last = signal(0, action=Action.BUY), signal(MIDNIGHT_INDEX - 1)
    signals.extend([first, last])
    signals.flush()
    signals.append(first)
    assert signals.read_rows() == [first, last]
    assert sorted(p.name for p in (tmp_path / "signals").iterdir()) == [
        f"date={OLD_DATE}",
        f"date={NEW_DATE}",
    ]
    table = signals.read("BTCUSDT", columns=["action", "evidence"])
    assert table.column("action").to_pylist() == ["BUY", "HOLD"]
    assert msgspec.json.decode(table.column("evidence")[0].as_py()) == {"delta": 0.001, "ofi": None}
