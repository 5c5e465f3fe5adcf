"""Curated files: what they hold, what is left out, and when they are computed again."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from config import Settings
from domain.errors import FolderInUse
from ingestion import DataCuration
from ingestion.curated_bars import CurationSettings, clean, curate
from ingestion.curation import CURATED_COLUMNS
from lake.kline_files import curated_path, raw_path, read_bars
from lake.lock import FolderLock
from lake.part_files import date_start_ms
from tests.kline_samples import DAY_MS, MONDAY_MS, bars, contents, rows_where, store_bars

SMALL = CurationSettings(atr_period=14, volatility_days=1, level_bars=60)


@pytest.fixture
def settings(clean_environment, data_dir):
    return Settings(data_dir=data_dir)


def read(settings, interval, date):
    path = curated_path(settings.paths, interval, date)
    return read_bars(path, ["symbol", *CURATED_COLUMNS])


def test_a_day_holds_all_symbols_in_order_and_every_column(settings):
    for symbol, seed in (("ETHUSDT", 2), ("BTCUSDT", 1)):
        store_bars(settings.paths, symbol, "1h", bars(72, "1h", seed=seed))
    report = DataCuration(settings, SMALL).curate_timeframe("1h")
    assert (report.rows, report.days, report.symbols) == (144, 3, ("BTCUSDT", "ETHUSDT"))
    day = read(settings, "1h", "2024-07-03")
    assert day["symbol"].tolist() == ["BTCUSDT"] * 24 + ["ETHUSDT"] * 24
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert (np.diff(day["open_time_ms"][day["symbol"] == symbol]) == 3_600_000).all()
    file = pq.ParquetFile(curated_path(settings.paths, "1h", "2024-07-03"))
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    for name in ("vwap", "atr", "realized_volatility", "return_log", "return_simple", "pivot"):
        assert not np.isnan(day[name]).any(), name


def test_each_column_follows_its_formula(settings):
    series = bars(96, "1h")
    found, _ = curate(series, "1h", MONDAY_MS, SMALL)
    np.testing.assert_array_equal(found["vwap"], series["quote_volume"] / series["volume"])
    np.testing.assert_array_equal(found["delta"], 2 * series["taker_buy_volume"] - series["volume"])
    day = slice(24, 48)
    assert found["day_open"][47] == series["open"][24]
    assert found["day_high"][47] == series["high"][day].max()
    assert found["day_low"][47] == series["low"][day].min()
    assert found["day_volume"][47] == pytest.approx(series["volume"][day].sum())
    high, low, close = series["high"][day].max(), series["low"][day].min(), series["close"][47]
    assert found["pivot"][48] == found["pivot"][71] == (high + low + close) / 3
    assert np.isnan(found["pivot"][:24]).all()  # no day before it


def test_a_day_that_lacks_bars_leaves_no_levels():
    series = rows_where(bars(72, "1h"), ~np.isin(np.arange(72), [30, 31]))
    found, _ = curate(series, "1h", MONDAY_MS, SMALL)
    last = found["open_time_ms"] >= MONDAY_MS + 2 * DAY_MS
    assert np.isnan(found["pivot"][last]).all()
    after = np.flatnonzero(found["missing_before"])
    assert found["missing_before"][after].tolist() == [2]
    assert np.isnan(found["return_log"][after]).all()


def test_bars_that_cannot_be_true_are_left_out_and_counted():
    series = bars(40, "1h")
    broken = {name: values.copy() for name, values in series.items()}
    broken["high"][3] = broken["low"][3] - 1
    broken["close"][5] = np.nan
    broken["volume"][7] = -1.0
    broken["taker_buy_volume"][9] = broken["volume"][9] * 2
    broken["open_time_ms"][11] += 1
    broken["open_time_ms"][13] = broken["open_time_ms"][12]
    kept, counts = clean(broken, "1h")
    reasons = ("duplicate", "grid", "not_finite", "negative", "ohlc", "taker_volume")
    assert counts == dict.fromkeys(reasons, 1)
    assert len(kept["close"]) == 34


def test_rows_in_any_order_and_twice_give_the_same_bars():
    series = bars(60, "1h")
    order = np.random.default_rng(5).permutation(np.concatenate([np.arange(60), np.arange(60)]))
    kept, counts = clean(rows_where(series, order), "1h")
    assert counts == {"duplicate": 60}
    for name, values in series.items():
        np.testing.assert_array_equal(kept[name], values)


def test_odd_bars_are_flagged_and_kept():
    series = bars(40, "1h")
    series["open"][1:] = series["close"][:-1]
    series["high"] = np.maximum(series["high"], series["open"])
    series["low"] = np.minimum(series["low"], series["open"])
    series["quote_volume"][3] *= 1.5
    series["trade_count"][5] = 0
    series["open"][7] *= 1.01
    series["high"][7] = max(series["high"][7], series["open"][7])
    found, rejected = curate(series, "1h", MONDAY_MS, SMALL)
    assert rejected == {}
    assert {at: int(bits) for at, bits in enumerate(found["suspect"]) if bits} == {3: 1, 5: 2, 7: 4}


def test_a_silent_bar_is_a_bar():
    series = bars(40, "1h")
    for name in ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"):
        series[name][20] = 0.0
    series["trade_count"][20] = 0
    price = series["close"][19]
    for name in ("open", "high", "low", "close"):
        series[name][20] = price
    found, rejected = curate(series, "1h", MONDAY_MS, SMALL)
    assert (len(found["close"]), rejected) == (40, {})
    assert np.isnan(found["vwap"][20])
    assert (found["suspect"][20], found["return_log"][20]) == (0, 0.0)


def test_curating_again_writes_nothing(settings):
    store_bars(settings.paths, "BTCUSDT", "1h", bars(72, "1h"))
    DataCuration(settings, SMALL).curate_timeframe("1h")
    before = contents(settings.paths.curated)
    assert DataCuration(settings, SMALL).curate_timeframe("1h").days == 0
    assert contents(settings.paths.curated) == before


def test_a_new_day_touches_that_day_alone(settings):
    series = bars(24 * 6, "1h")
    early = series["open_time_ms"] < MONDAY_MS + 5 * DAY_MS
    store_bars(settings.paths, "BTCUSDT", "1h", rows_where(series, early))
    DataCuration(settings, SMALL).curate_timeframe("1h")
    before = contents(settings.paths.curated)
    store_bars(settings.paths, "BTCUSDT", "1h", rows_where(series, ~early))
    assert DataCuration(settings, SMALL).curate_timeframe("1h").days == 1
    after = contents(settings.paths.curated)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["1h_curated_20240706.parquet"]


def test_another_look_back_computes_everything_again(settings):
    store_bars(settings.paths, "BTCUSDT", "1h", bars(72, "1h"))
    DataCuration(settings, SMALL).curate_timeframe("1h")
    assert DataCuration(settings).curate_timeframe("1h").days == 3


def test_a_day_of_absent_candles_is_not_computed_again_and_again(settings):
    series = bars(72, "1h")
    gone = (np.arange(72) >= 24) & (np.arange(72) < 48)
    absent = tuple(series["open_time_ms"][gone].tolist())
    store_bars(settings.paths, "BTCUSDT", "1h", rows_where(series, ~gone), absent)
    assert DataCuration(settings, SMALL).curate_timeframe("1h").rows == 48
    assert DataCuration(settings, SMALL).curate_timeframe("1h").days == 0


def test_a_curation_cut_short_after_a_backfill_is_finished_by_the_next_one(settings, monkeypatch):
    series = bars(24 * 5, "1h")
    late = rows_where(series, np.arange(120) >= 24)
    store_bars(settings.paths, "BTCUSDT", "1h", late)
    DataCuration(settings, SMALL).curate_timeframe("1h")
    store_bars(settings.paths, "BTCUSDT", "1h", rows_where(series, np.arange(120) < 24))

    class CutShort(Exception):
        pass

    def stop(_done, _of):
        raise CutShort

    monkeypatch.setattr("ingestion.curation.CHUNK_DAYS", 1)
    with pytest.raises(CutShort):
        DataCuration(settings, SMALL).curate_timeframe("1h", on_progress=stop)
    assert DataCuration(settings, SMALL).curate_timeframe("1h").days == 4
    whole, _ = curate(series, "1h", MONDAY_MS, SMALL)
    day = read(settings, "1h", "2024-07-05")
    np.testing.assert_array_equal(day["atr"], whole["atr"][-24:])


def test_a_damaged_raw_file_is_set_aside_and_the_rest_curated(settings):
    store_bars(settings.paths, "BTCUSDT", "1h", bars(72, "1h"))
    path = raw_path(settings.paths, "BTCUSDT", "1h", "2024-07-02")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    report = DataCuration(settings, SMALL).curate_timeframe("1h")
    assert report.rows == 48
    assert not path.exists()
    assert DataCuration(settings, SMALL).curate_timeframe("1h").rows == 24  # 3 July, without 2 July


def test_an_unknown_interval_is_refused_and_two_curations_exclude_each_other(settings):
    with pytest.raises(ValueError, match="unknown interval '7m'"):
        DataCuration(settings).curate_timeframe("7m")
    with FolderLock(settings.paths.root, "curation"), pytest.raises(FolderInUse):
        DataCuration(settings).curate_timeframe("1h")


def test_the_report_reads_as_a_line(settings):
    assert "python main.py ingest --interval 1h" in str(
        DataCuration(settings).curate_timeframe("1h")
    )
    store_bars(settings.paths, "BTCUSDT", "1h", bars(48, "1h"))
    assert str(DataCuration(settings).curate_timeframe("1h")).startswith(
        "1h: 48 rows in 2 files of BTCUSDT, "
    )
    assert date_start_ms("2024-07-01") == MONDAY_MS
