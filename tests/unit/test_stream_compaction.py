from __future__ import annotations

import shutil

import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from domain.errors import StorageError
from lake import stream_merges
from lake.atomic import Step
from lake.part_files import date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_compaction import StreamCompaction, StreamCompactionSettings
from lake.stream_files import read_stream_file, stream_files
from tests.lake_fakes import DyingWriter, FullDisk, Killed
from tests.stream_samples import (
    NEW_DATE,
    OLD_DATE,
    depth,
    read_all,
    sources,
    stored_ids,
    trades,
    write,
)

CLOSED_MS = date_start_ms(NEW_DATE) + 2 * DAY_MS


@pytest.fixture
def paths(data_dir):
    return LakePaths.of(data_dir)


def names(paths, kind="trades", date=OLD_DATE):
    return sorted(path.name for path in paths.stream(kind, date).iterdir())


@pytest.mark.parametrize("kind", ["trades", "depth"])
def test_the_files_of_a_closed_day_become_one_with_the_same_rows(paths, kind):
    rows_of = trades if kind == "trades" else depth
    for start in (0, 10, 20):
        write(paths, rows_of(range(start, start + 10)), kind)
        write(paths, rows_of(range(start, start + 10), "AAAUSDT"), kind)
    before = read_all(paths, kind)
    (merged,) = StreamCompaction(paths).compact_due(CLOSED_MS)
    assert names(paths, kind) == [merged.name]
    assert read_all(paths, kind) == before
    table = read_stream_file(merged, kind)
    symbols = table.column("symbol").to_pylist()
    assert symbols == sorted(symbols)


def test_merging_again_changes_nothing(paths):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    compaction = StreamCompaction(paths)
    (merged,) = compaction.compact_due(CLOSED_MS)
    content = merged.read_bytes()
    assert compaction.compact_due(CLOSED_MS) == []
    assert merged.read_bytes() == content
    assert names(paths) == [merged.name]


def test_names_of_merged_files_are_those_of_the_contract(paths):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    (merged,) = StreamCompaction(paths).compact_due(CLOSED_MS)
    assert merged.name == "trades_20240718_235900_1.parquet"


def test_of_an_open_day_only_new_files_are_merged(paths):
    compaction = StreamCompaction(paths)
    open_ms = date_start_ms(OLD_DATE) + DAY_MS // 2
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    (first,) = compaction.compact_due(open_ms)
    assert compaction.compact_due(open_ms) == []
    for start in (20, 30):
        write(paths, trades(range(start, start + 10)))
    (second,) = compaction.compact_due(open_ms)
    assert set(names(paths)) == {first.name, second.name}
    (whole,) = compaction.compact_due(CLOSED_MS)
    assert names(paths) == [whole.name]
    assert stored_ids(paths) == list(range(40))


def test_a_day_is_closed_only_when_its_last_rows_can_be_on_disk(paths):
    compaction = StreamCompaction(paths, StreamCompactionSettings(closed_after_ms=600_000))
    midnight = date_start_ms(NEW_DATE)
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    compaction.compact_due(midnight + 1)
    write(paths, trades(range(20, 30)))
    assert compaction.compact_due(midnight + 599_999) == []
    assert compaction.compact_due(midnight + 600_000) != []


def test_a_streamed_row_wins_over_its_repair_and_rest_over_the_archive(paths):
    write(paths, trades(range(10), source="archive"))
    write(paths, trades(range(5), source="rest"))
    write(paths, trades(range(3), source="stream"))
    StreamCompaction(paths).compact_due(CLOSED_MS)
    found = sources(paths)
    assert stored_ids(paths) == list(range(10))
    assert [found[n] for n in range(10)] == ["stream"] * 3 + ["rest"] * 2 + ["archive"] * 5


def test_files_are_merged_up_to_a_size(paths):
    for start in range(0, 60, 10):
        write(paths, trades(range(start, start + 10)))
    size = stream_files(paths, "trades", OLD_DATE)[0].stat().st_size
    settings = StreamCompactionSettings(file_bytes=2 * size + size // 2)
    compaction = StreamCompaction(paths, settings)
    assert len(compaction.compact("trades", OLD_DATE)) == 3
    assert stored_ids(paths) == list(range(60))


def test_few_rows_in_memory_give_the_same_rows(paths):
    for start in range(0, 60, 10):
        write(paths, trades([*range(start, start + 10), 7]))
    settings = StreamCompactionSettings(trade_rows=3)
    StreamCompaction(paths, settings).compact_due(CLOSED_MS)
    assert stored_ids(paths) == list(range(60))
    assert len(names(paths)) == 1


def test_a_damaged_file_is_set_aside_and_the_rest_is_merged(paths):
    for start in (0, 10, 20):
        write(paths, trades(range(start, start + 10)))
    broken = stream_files(paths, "trades", OLD_DATE)[1]
    content = bytearray(broken.read_bytes())
    content[10:200] = bytes(190)
    broken.write_bytes(content)
    with capture_logs() as logs:
        StreamCompaction(paths).compact_due(CLOSED_MS)
    assert stored_ids(paths) == [*range(10), *range(20, 30)]
    (line,) = [entry for entry in logs if entry["event"] == "store.file_damaged"]
    assert line["path"] == str(broken)
    aside = paths.raw / "stream" / "damaged" / "trades" / OLD_DATE / f"{broken.name}.damaged"
    assert aside.exists()


def test_files_nobody_here_wrote_are_left_alone(paths):
    write(paths, trades(range(10)))
    write(paths, trades(range(10, 20)))
    foreign = paths.stream("trades", OLD_DATE) / "trades_copy.parquet"
    table = trades(range(40, 41))
    pq.write_table(table, foreign)
    StreamCompaction(paths).compact_due(CLOSED_MS)
    assert foreign.exists()
    assert stored_ids(paths) == [*range(20), 40]


def test_a_full_disk_leaves_all_as_it_was(paths):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    before = names(paths)
    disk = FullDisk()
    compaction = StreamCompaction(paths, hook=disk)
    with pytest.raises(StorageError, match="free some space"):
        compaction.compact_due(CLOSED_MS)
    assert names(paths) == before
    disk.is_full = False
    compaction.compact_due(CLOSED_MS)
    assert stored_ids(paths) == list(range(20))


def test_rows_are_read_once_while_a_merged_file_lies_beside_its_parts(paths):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    with pytest.raises(Killed):
        StreamCompaction(paths, hook=DyingWriter(5)).compact_due(CLOSED_MS)
    assert len(names(paths)) == 3
    assert stored_ids(paths) == list(range(20))
    assert StreamCompaction(paths).recover() == 2
    assert len(names(paths)) == 1
    assert stored_ids(paths) == list(range(20))


def test_a_name_given_again_is_another_file(paths):
    """A repair of the second in which a merged part began must not count as replaced."""
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    part = names(paths)[1]
    StreamCompaction(paths).compact_due(CLOSED_MS)
    (again,) = write(paths, trades([10, 45], "AAAUSDT", "rest"))
    assert again.name == part
    StreamCompaction(paths).recover()
    assert stored_ids(paths, "AAAUSDT") == [10, 45]


def test_parts_that_cannot_be_removed_stay_unread_through_later_merges(paths, monkeypatch):
    """As on Windows while a reader has them open."""
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    kept = stream_files(paths, "trades", OLD_DATE)
    copies = [path.with_suffix(".kept") for path in kept]
    for path, copy in zip(kept, copies, strict=True):
        shutil.copy(path, copy)
    compaction = StreamCompaction(paths)
    compaction.compact_due(CLOSED_MS)
    monkeypatch.setattr("lake.stream_compaction.remove_files", lambda _files, _hook: None)
    for path, copy in zip(kept, copies, strict=True):
        copy.rename(path)
    write(paths, trades(range(20, 30)))
    compaction.compact_due(CLOSED_MS)
    assert stored_ids(paths) == list(range(30))


def test_a_listing_waits_until_a_merge_between_two_looks_is_over(paths, monkeypatch):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    footer_of, calls = stream_merges.footer_of, []

    def merging(path):
        calls.append(path)
        if len(calls) == 1:
            StreamCompaction(paths).compact_due(CLOSED_MS)
        return footer_of(path)

    monkeypatch.setattr(stream_merges, "footer_of", merging)
    (merged,) = stream_files(paths, "trades", OLD_DATE)
    assert read_stream_file(merged, "trades").num_rows == 20


def test_temporaries_of_dead_writers_are_removed(paths):
    write(paths, trades(range(10)))
    left = paths.stream("trades", OLD_DATE) / ".trades_20240718_235900.parquet.999999999.ab-1.tmp"
    left.write_bytes(b"x")
    assert StreamCompaction(paths).recover() == 1
    assert not left.exists()


def test_each_step_of_a_merge_is_announced(paths):
    for start in (0, 10):
        write(paths, trades(range(start, start + 10)))
    writer = DyingWriter()
    StreamCompaction(paths, hook=writer).compact_due(CLOSED_MS)
    assert writer.steps[-3:] == [Step.FOLDER_SYNCED, Step.REMOVED, Step.REMOVED]
