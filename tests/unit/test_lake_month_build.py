"""A month's file: what is in it, what it says of itself, and that it is whole or as it was."""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from domain.errors import StorageError
from domain.market import Market
from lake import archive_csv, month_run
from lake.archive_csv import UnreadableArchive
from lake.atomic import Step
from lake.historical_files import (
    about_month,
    check_month,
    is_whole,
    month_bounds_ms,
    month_path,
    months_of,
    read_month,
)
from lake.month_build import Month, build_month
from lake.part_files import DamagedFile
from lake.paths import LakePaths
from simulator.vision_faults import VisionFaultKind
from simulator.vision_tables import ArchiveName, Content, make_archive
from tests.lake_fakes import DyingWriter, FullDisk, Killed
from tests.vision_archives import (
    SYMBOL,
    source_of,
    stored,
    table_of_trades,
    true_trades,
    zipped,
)

MONTH = Month(symbol=SYMBOL, kind="aggTrades", month="2024-06")


@pytest.fixture(scope="module")
def trades():
    return table_of_trades()


@pytest.fixture
def paths(tmp_path):
    return LakePaths.of(tmp_path / "data")


@pytest.fixture
def archive(trades, tmp_path):
    def make(period="2024-06", *faults, lost=(), data="aggTrades"):
        name = ArchiveName(data, SYMBOL, period, "1m" if data == "klines" else "")
        content = Content(frozenset(faults), frozenset(lost))
        path = tmp_path / f"{name.file_name}.zip"
        path.write_bytes(make_archive(trades, Market.UM, name, content).data)
        return source_of(path, period)

    return make


@pytest.fixture
def build(paths, tmp_path):
    def make(*sources, month=MONTH, **options):
        return build_month(paths, month, sources, work=tmp_path / "work", **options)

    return make


@pytest.mark.parametrize("group_rows", [100, 1 << 19])
def test_a_month_holds_every_trade_once_in_order(
    paths, archive, build, trades, monkeypatch, group_rows
):
    monkeypatch.setattr(month_run, "ROW_GROUP_ROWS", group_rows)
    monkeypatch.setattr(archive_csv, "_BLOCK_BYTES", group_rows * 10)
    monkeypatch.setattr(archive_csv, "_READ_BYTES", 1_000)
    about = build(archive())
    check_month(month_path(paths, SYMBOL, "aggTrades", "2024-06"))
    assert stored(paths, "2024-06").equals(true_trades(trades, "2024-06"))
    assert about.is_complete
    assert (about.missing_count, about.duplicate_count, about.disordered_count) == (0, 0, 0)


def test_doubled_and_shuffled_rows_are_put_right_and_counted(
    paths, archive, build, trades, monkeypatch
):
    monkeypatch.setattr(month_run, "ROW_GROUP_ROWS", 100)
    about = build(archive("2024-06", VisionFaultKind.SHUFFLED, VisionFaultKind.DOUBLED))
    assert stored(paths, "2024-06").equals(true_trades(trades, "2024-06"))
    assert about.duplicate_count > 0
    assert about.disordered_count > 0
    assert about.conflict_count == 0


def test_a_lost_day_is_doubtful_until_its_daily_archive_is_worked_in(paths, archive, build, trades):
    about = build(archive(lost=(5, 6)))
    assert not about.is_complete
    assert set(about.doubtful_days) >= {"2024-06-05", "2024-06-06"}
    assert about.missing_count > 0
    days = [archive(day) for day in about.doubtful_days]
    patched = build(*days, base=about)
    assert patched.is_complete
    assert patched.missing_count == 0
    assert [part.period for part in patched.parts] == ["2024-06", *about.doubtful_days]
    assert stored(paths, "2024-06").equals(true_trades(trades, "2024-06"))


def test_daily_archives_alone_make_a_month_that_waits_for_the_others(paths, archive, build, trades):
    first = build(archive("2024-06-01"), archive("2024-06-02"))
    assert len(first.doubtful_days) == 28
    second = build(archive("2024-06-03"), base=first)
    assert len(second.doubtful_days) == 27
    until = month_bounds_ms("2024-06")[0] + 3 * 86_400_000
    truth = true_trades(trades, "2024-06")
    count = sum(time < until for time in truth["transact_time_ms"].to_pylist())
    assert stored(paths, "2024-06").equals(truth.slice(0, count))


def test_days_the_archive_will_never_have_complete_a_month(archive, build):
    about = build(archive(lost=(5,)))
    settled = build(base=about, absent_days=about.doubtful_days)
    assert settled.is_complete
    assert settled.absent_days == about.doubtful_days
    assert settled.missing_count == about.missing_count


def test_contradicting_rows_keep_the_first_and_are_counted(tmp_path, build, paths):
    line = "7,{},1,7,7,1718000000000,true"
    path = zipped(tmp_path / "a.zip", [line.format("1.5"), line.format("1.6")])
    about = build(source_of(path, "2024-06"))
    assert (about.row_count, about.conflict_count) == (1, 1)
    assert stored(paths, "2024-06")["price"].to_pylist() == [1.5]


def test_klines_of_a_month_have_all_minutes(paths, archive, build):
    month = Month(symbol=SYMBOL, kind="klines", month="2024-06")
    about = build(archive(data="klines"), month=month)
    assert about.is_complete
    assert about.row_count == 30 * 1_440
    opens = stored(paths, "2024-06", "klines")["open_time_ms"].to_pylist()
    assert opens == list(range(*month_bounds_ms("2024-06"), 60_000))


def test_a_kline_month_without_its_last_minute_is_doubtful(tmp_path, build):
    month = Month(symbol=SYMBOL, kind="klines", month="2024-06")
    start_ms, end_ms = month_bounds_ms("2024-06")
    lines = (f"{t},1,1,1,1,0,{t + 59_999},0,0,0,0,0" for t in range(start_ms, end_ms, 60_000))
    path = zipped(tmp_path / "k.zip", list(lines)[:-1])
    about = build(source_of(path, "2024-06"), month=month)
    assert about.doubtful_days == ("2024-06-30",)


def test_the_file_names_its_sources_and_their_checksums(paths, archive, build):
    source = archive()
    build(source)
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"source"].decode() == source.url
    assert metadata[b"sha256"].decode() == source.sha256
    assert metadata[b"checksum"].decode() == f"{source.sha256}  {source.path.name}"
    assert about_month(path).parts[0].sha256 == source.sha256
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    assert months_of(paths, "btcusdt", "aggTrades") == ["2024-06"]


def test_pandas_polars_and_duckdb_read_the_same_rows(paths, archive, build, trades):
    build(archive())
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    truth = true_trades(trades, "2024-06")
    assert pl.read_parquet(path).to_arrow().cast(truth.schema).equals(truth)
    assert pd.read_parquet(path)["price"].tolist() == truth["price"].to_pylist()
    query = f"select price, is_buyer_maker from read_parquet('{path}')"  # noqa: S608
    expected = truth.select(["price", "is_buyer_maker"]).to_pylist()
    assert [{"price": p, "is_buyer_maker": m} for p, m in duckdb.sql(query).fetchall()] == expected


def test_reading_takes_the_columns_and_times_asked_for(paths, archive, build, trades, monkeypatch):
    monkeypatch.setattr(month_run, "ROW_GROUP_ROWS", 64)
    build(archive())
    truth = true_trades(trades, "2024-06")
    times = truth["transact_time_ms"].to_pylist()
    found = stored(
        paths,
        "2024-06",
        columns=["agg_trade_id", "price"],
        start_ms=times[100],
        end_ms=times[200],
        use_threads=True,
    )
    assert found.equals(truth.slice(100, 100).select(["agg_trade_id", "price"]))
    assert stored(paths, "2024-07").num_rows == 0


@pytest.mark.parametrize("step", range(1, 4))
def test_a_writer_that_dies_leaves_the_old_file_or_the_new_one(paths, archive, build, trades, step):
    before = build(archive(lost=(5,)))
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    with pytest.raises(Killed):
        build(archive("2024-06-05"), base=before, hook=DyingWriter(step))
    check_month(path)
    about = about_month(path)
    assert about.missing_count in (0, before.missing_count)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    build(archive(), archive("2024-06-05"))
    assert stored(paths, "2024-06").equals(true_trades(trades, "2024-06"))


def test_a_full_disk_is_one_error_and_changes_nothing(paths, archive, build, tmp_path):
    before = build(archive())
    with pytest.raises(StorageError, match="No space left"):
        build(archive(lost=(5,)), hook=FullDisk(Step.SYNCED))
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    assert about_month(path) == before
    assert list((tmp_path / "work").iterdir()) == []


def test_work_that_is_called_off_changes_nothing(paths, archive, build, tmp_path):
    class Enough(Exception):
        pass

    def check():
        raise Enough

    with pytest.raises(Enough):
        build(archive(), check=check)
    assert not month_path(paths, SYMBOL, "aggTrades", "2024-06").exists()
    assert list((tmp_path / "work").iterdir()) == []


def test_an_archive_of_another_time_is_refused(archive, build):
    with pytest.raises(UnreadableArchive, match="another time"):
        build(archive("2024-05"))


def test_a_file_someone_damaged_is_not_whole(paths, archive, build):
    build(archive())
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    assert is_whole(path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 3] ^= 0xFF
    path.write_bytes(bytes(middle))
    with pytest.raises(DamagedFile):
        check_month(path)
    path.write_bytes(whole[:-20])
    assert not is_whole(path)
    with pytest.raises(DamagedFile):
        read_month(paths, SYMBOL, "aggTrades", "2024-06")
    path.unlink()
    assert not is_whole(path)


def test_a_file_that_is_not_ours_does_not_count_as_whole(paths, build, archive):
    build(archive())
    path = month_path(paths, SYMBOL, "aggTrades", "2024-06")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert not is_whole(path)
