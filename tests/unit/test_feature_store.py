from __future__ import annotations

import subprocess
import sys
import threading
from decimal import Decimal

import duckdb
import msgspec
import pandas as pd
import polars as pl
import pytest

from domain.errors import StorageError
from domain.features import FeatureRow
from feature_store import FeatureStore, FeatureStoreSettings
from lake.cvd_chain import WindowSpan
from tests.lake_fakes import START_MS, WINDOW_MS, FullDisk, feature_row

OLD_DATE, NEW_DATE = "2024-07-18", "2024-07-19"


def rows_of(count, symbol="BTCUSDT", **fields):
    return [feature_row(i, symbol, **fields) for i in range(count)]


def start(index):
    return START_MS + index * WINDOW_MS


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


def test_rows_are_read_before_and_after_they_are_flushed(store, tmp_path):
    rows = rows_of(24) + rows_of(24, "ETHUSDT")
    store.extend(rows)
    assert store.read_rows() == rows
    assert store.statistics()["rows_pending"] == 48
    assert not (tmp_path / "features").exists()
    assert store.flush() == 48
    assert store.flush() == 0
    assert store.read_rows() == FeatureStore(tmp_path).read_rows() == rows
    assert store.statistics()["rows_pending"] == 0


def test_a_repair_is_one_file_per_date(store):
    store.write_batch(rows_of(24))
    assert len(list(store.folder.rglob("*.parquet"))) == 2


def test_a_full_disk_keeps_the_rows_readable_and_the_next_flush_writes_them(tmp_path):
    disk = FullDisk()
    store = FeatureStore(tmp_path, hook=disk)
    rows = rows_of(24)
    store.extend(rows[:20])
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device"):
        store.flush()
    store.extend(rows[20:])
    assert store.read_rows() == rows
    assert store.statistics()["failed_flushes"] == 1
    disk.is_full = False
    assert store.flush() == 24
    assert FeatureStore(tmp_path).read_rows() == rows


def test_of_a_flush_that_fails_at_the_second_date_the_first_is_not_written_again(tmp_path):
    disk = FullDisk()
    disk.is_full = False
    store = FeatureStore(
        tmp_path, hook=lambda step, path: NEW_DATE in str(path) and disk(step, path)
    )
    store.extend(rows_of(24))
    disk.is_full = True
    with pytest.raises(StorageError):
        store.flush()
    assert store.statistics()["rows_pending"] == 12
    disk.is_full = False
    assert store.flush() == 12
    assert FeatureStore(tmp_path).read(latest_only=False).num_rows == 24


def test_rows_beyond_the_bound_are_refused_while_the_disk_refuses(tmp_path):
    store = FeatureStore(tmp_path, FeatureStoreSettings(max_pending_rows=3))
    store.extend(rows_of(3))
    with pytest.raises(StorageError, match="3 rows wait to be written"):
        store.append(feature_row(3))
    store.flush()
    store.append(feature_row(3))


def test_recent_rows_are_the_highest_revisions_in_order(store):
    store.write_batch(rows_of(24))
    store.write_batch([feature_row(13, revision=1, delta=5.0)])
    store.append(feature_row(14, revision=1, delta=6.0))
    recent = store.scan_recent("BTCUSDT", start(12))
    assert [r.window_start_ms for r in recent] == [start(i) for i in range(12, 24)]
    assert [r.delta for r in recent[:4]] == [0.001, 5.0, 6.0, 0.001]
    assert store.pending("BTCUSDT")[0].revision == 1
    assert store.pending("ETHUSDT") == []


def test_the_last_row_and_id_of_each_symbol(store):
    store.write_batch(rows_of(10))
    store.write_batch([feature_row(9, revision=1, delta=5.0)])
    store.write_batch([feature_row(i, "ETHUSDT", last_agg_id=None) for i in range(20)])
    store.write_batch([feature_row(3, "ETHUSDT", revision=1)])
    last = store.last_rows(["BTCUSDT", "ETHUSDT", "XRPUSDT"])
    assert {s: r.window_start_ms for s, r in last.items()} == {
        "BTCUSDT": start(9),
        "ETHUSDT": start(19),
    }
    assert store.last_row("BTCUSDT").delta == 5.0
    assert store.last_known_ids(["BTCUSDT", "ETHUSDT"]) == {"BTCUSDT": 99, "ETHUSDT": 39}
    store.append(feature_row(30))
    assert store.last_window("BTCUSDT") == store.last_row("BTCUSDT").window_start_ms == start(30)
    assert store.last_known_id("BTCUSDT") == 309
    assert store.last_row("XRPUSDT") is store.last_window("XRPUSDT") is None
    assert store.last_known_id("XRPUSDT") is None


def test_as_of_gives_the_window_that_had_ended(store):
    store.write_batch(rows_of(24)[:20])
    store.extend(rows_of(24)[20:])
    assert store.as_of("BTCUSDT", start(3)).window_start_ms == start(2)
    assert store.as_of("BTCUSDT", start(4) - 1).window_start_ms == start(2)
    assert store.as_of("BTCUSDT", start(12)).window_start_ms == start(11)
    assert store.as_of("BTCUSDT", start(13) - 1).window_start_ms == start(11)
    assert store.as_of("BTCUSDT", start(10_000_000)).window_start_ms == start(23)
    assert store.as_of("BTCUSDT", start(1) - 1) is None
    assert store.as_of("ETHUSDT", start(12)) is None


def test_a_whole_chain_over_midnight_has_no_breaks(store):
    store.write_batch(rows_of(20))
    store.extend(rows_of(36)[20:])
    report = store.find_breaks("BTCUSDT", 0, WINDOW_MS)
    assert report.is_whole
    assert (report.first_ms, report.last_ms) == (start(0), start(35))
    assert store.find_breaks("BTCUSDT", start(30), WINDOW_MS).first_ms == start(30)


def test_missing_incomplete_and_broken_windows_are_told_apart(store):
    rows = {i: feature_row(i) for i in range(36)}
    del rows[4], rows[5], rows[20]
    rows[8] = feature_row(8, complete=False)
    rows[10] = msgspec.structs.replace(rows[10], delta=0.002)
    rows[30] = msgspec.structs.replace(rows[30], cvd=rows[30].cvd + 1)
    rows[33] = feature_row(33, cvd_complete=False)
    store.write_batch(rows.values())
    store.write_batch(rows_of(36, "ETHUSDT"))
    reports = store.find_all_breaks(["XRPUSDT", "BTCUSDT", "ETHUSDT"], 0, WINDOW_MS)
    report = reports["BTCUSDT"]
    assert report.missing == (WindowSpan(start(4), start(6)), WindowSpan(start(20), start(21)))
    assert report.incomplete == (start(8),)
    assert report.broken == (start(10), start(30), start(31))
    assert report.cvd_incomplete == (start(33),)
    assert not report.is_whole
    assert reports["ETHUSDT"].is_whole
    assert reports["XRPUSDT"].first_ms is None
    assert reports["XRPUSDT"].is_whole


@pytest.mark.parametrize(
    ("index", "fields"),
    [
        (0, {"cvd": 0.002}),  # the first window of a store starts at its own delta
        (12, {"cvd": 0.013}),  # carried over midnight
        (12, {"cvd_anchor_ms": START_MS}),  # midnight without a new anchor
        (20, {"cvd_anchor_ms": START_MS + 20 * WINDOW_MS, "cvd": 0.001}),  # restarted at zero
        (5, {"cvd_anchor_ms": START_MS + 6 * WINDOW_MS}),  # anchored in the future
    ],
)
def test_anchors_are_part_of_the_chain(store, index, fields):
    rows = rows_of(24)
    rows[index] = msgspec.structs.replace(rows[index], **fields)
    store.write_batch(rows)
    assert start(index) in store.find_breaks("BTCUSDT", 0, WINDOW_MS).broken


@pytest.mark.parametrize("scale", [1e-8, 0.1, 1.0, 1e12])
def test_sums_that_doubles_get_wrong_are_right_as_decimals(store, scale):
    delta, cvd, rows = Decimal(repr(scale)) * 7, Decimal(0), []
    for index in range(12):
        cvd += delta
        rows.append(feature_row(index, delta=float(delta), cvd=float(cvd)))
    store.write_batch(rows)
    assert store.find_breaks("BTCUSDT", 0, WINDOW_MS).broken == ()
    off = msgspec.structs.replace(
        rows[11], revision=1, cvd=float(cvd + Decimal(repr(scale)) / 1000)
    )
    store.write_batch([off])
    assert store.find_breaks("BTCUSDT", 0, WINDOW_MS).broken == (start(11),)


def test_compaction_of_what_is_due(store):
    for index in range(10, 16):
        store.write_batch([feature_row(index)])
    before = store.read()
    assert store.compact(OLD_DATE).parent.name == f"date={OLD_DATE}"
    assert len(store.compact_due(start(16))) == 1
    assert store.read().equals(before)
    assert store.recover() == 0


@pytest.fixture
def published(store):
    """A folder as other people's tools see it: revisions, parts, a merge, a damaged file aside."""
    store.write_batch(rows_of(24))
    store.write_batch([feature_row(13, revision=1, delta=5.0)])
    store.write_batch([feature_row(14, revision=1, delta=6.0)])
    (bad,) = store._partitioned.write_batch([feature_row(23, "ZZZ")])
    bad.write_bytes(b"junk")
    store.read()
    (bad.parent / f".{bad.name}.1.x.tmp").write_bytes(b"half")
    return store


def check(deltas):
    assert len(deltas) == 24
    assert deltas[12:16] == [0.001, 5.0, 6.0, 0.001]


def test_pandas_reads_the_folder(published):
    frame = pd.read_parquet(published.folder)
    latest = frame.sort_values("revision").drop_duplicates(
        ["symbol", "window_start_ms"], keep="last"
    )
    check(latest.sort_values("window_start_ms")["delta"].tolist())
    assert set(frame["date"]) == {OLD_DATE, NEW_DATE}


def test_polars_reads_the_folder(published):
    latest = (
        pl.scan_parquet(f"{published.folder}/**/*.parquet", hive_partitioning=True)
        .filter(pl.col("date").cast(pl.String) >= OLD_DATE)
        .sort("revision")
        .unique(["symbol", "window_start_ms"], keep="last")
        .sort("window_start_ms")
        .collect()
    )
    check(latest["delta"].to_list())


def test_duckdb_reads_the_folder(published):
    with duckdb.connect() as connection:
        found = connection.execute(
            """
            SELECT delta
            FROM read_parquet($files, hive_partitioning = true, union_by_name = true)
            WHERE date >= '2024-07-18'
            QUALIFY row_number() OVER (PARTITION BY symbol, window_start_ms
                                       ORDER BY revision DESC) = 1
            ORDER BY window_start_ms
            """,
            {"files": f"{published.folder}/**/*.parquet"},
        ).fetchall()
    check([delta for (delta,) in found])


def test_frames_of_the_store_itself(published):
    published.append(feature_row(24, ofi=None))
    frame = published.to_pandas("BTCUSDT", columns=["window_start_ms", "delta", "complete"])
    check(frame["delta"].tolist()[:24])
    polars = published.to_polars(start_ms=start(24))
    assert polars["window_start_ms"].to_list() == [start(24)]
    assert polars["ofi"].to_list() == [None]


def test_floats_come_back_to_the_last_bit(store):
    row = feature_row(
        volume=0.1 + 0.2, cvd=-1e-17, delta=5e-324, quote_volume=1.7976931348623157e308
    )
    store.write_batch([row])
    assert store.read_rows() == [row]


def test_every_field_of_the_row_is_a_column_in_order(store):
    assert store.read().column_names == [f.name for f in msgspec.structs.fields(FeatureRow)]


def test_neither_pandas_nor_polars_is_loaded_by_living_with_the_store(tmp_path, repository):
    program = """
import sys
from pathlib import Path
from feature_store import FeatureStore
from lake import atomic, gap_ledger, lock, quarantine, signal_store, source
from tests.lake_fakes import feature_row, signal
root = Path(sys.argv[1])
store = FeatureStore(root)
assert store.read().num_rows == 0 and store.recover() == 0
for start in (0, 12):
    store.extend(feature_row(i, s) for i in range(start, start + 12) for s in ("BTCUSDT", "ETHUSDT"))
    store.last_rows(["BTCUSDT"])
    store.flush()
    store.write_batch([feature_row(5, revision=1, ofi=None)])
store.compact_due(feature_row(10 ** 6).window_start_ms)
assert store.last_known_ids(["BTCUSDT", "XRPUSDT"]) == {"BTCUSDT": 239}
assert store.as_of("ETHUSDT", feature_row(20).window_end_ms) == feature_row(20, "ETHUSDT")
assert store.find_breaks("BTCUSDT", 0, 5000).is_whole
assert len(store.scan_recent("BTCUSDT", 0)) == 24
signals = signal_store.signal_store(root / "signals")
signals.append(signal())
signals.flush()
assert signals.read_rows() == [signal()]
loaded = {"pandas", "polars", "duckdb", "pyarrow.dataset"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=repository, check=True, timeout=50
    )


def test_appending_flushing_compacting_and_reading_at_once_neither_loses_nor_doubles(tmp_path):
    store = FeatureStore(tmp_path)
    count, failures, done = 240, [], threading.Event()
    appended = [0]

    def guarded(work):
        def loop():
            try:
                while not done.is_set():
                    work()
            except Exception as error:  # noqa: BLE001 - reported by the test
                failures.append(error)

        return threading.Thread(target=loop)

    def read_all():
        at_least = appended[0]
        starts = store.read(columns=["window_start_ms"]).column(0).to_pylist()
        assert starts == [start(i) for i in range(len(starts))]
        assert len(starts) >= at_least

    threads = [
        guarded(store.flush),
        guarded(read_all),
        guarded(lambda: store.compact_due(start(300))),
    ]
    for thread in threads:
        thread.start()
    for index in range(count):
        store.append(feature_row(index))
        appended[0] = index + 1
        if index % 20 == 0:
            store.read(columns=["symbol"])
    done.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    store.flush()
    assert FeatureStore(tmp_path).read_rows() == rows_of(count)
