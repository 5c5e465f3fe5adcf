"""Candles served from tables: whole ones, holes, the open one, and scripted replies."""

import gzip

import msgspec
import numpy as np
import pytest

from domain.errors import ConfigError, SourceError
from simulator.candle_table import CandleTable
from simulator.rest_faults import ReplyScript, RestFault
from tests.kline_samples import DAY_MS, MONDAY_MS, candle_table, spec_of, table_rows

HEADER = "open_time,open,high,low,close,volume,close_time,quote_volume,count,tb,tq,ignore"
END_MS = MONDAY_MS + DAY_MS


def decoded(rows):
    return [msgspec.json.decode(row) for row in rows]


def rest_rows(table, interval, start_ms=None, end_ms=None, limit=1_500, now_ms=END_MS):
    return decoded(table.rest_rows("BTCUSDT", interval, limit, start_ms, end_ms, now_ms))


def test_longer_candles_are_built_from_the_shorter_ones():
    table = candle_table(("BTCUSDT",), 96)
    rows = table.rows("BTCUSDT")[:4]
    first = rest_rows(table, "1h")[0]
    assert first[:5] == [
        MONDAY_MS,
        *(
            f"{value / 100:.2f}"
            for value in (rows["open"][0], rows["high"].max(), rows["low"].min(), rows["close"][3])
        ),
    ]
    assert first[5] == f"{rows['volume'].sum() / 1_000:.3f}"
    assert (first[6], first[8]) == (MONDAY_MS + 3_599_999, int(rows["fills"].sum()))


def test_a_candle_with_a_part_missing_is_not_served_until_the_part_is_there():
    rows = table_rows(96, "15m")
    gone = np.isin(np.arange(96), [5, 6])
    table = CandleTable({"BTCUSDT": (rows[~gone], spec_of("BTCUSDT"))}, "15m")
    assert [row[0] for row in rest_rows(table, "1h", limit=3, start_ms=0)] == [
        MONDAY_MS + hour * 3_600_000 for hour in (0, 2, 3)
    ]
    table.add("BTCUSDT", rows[gone])
    assert len(rest_rows(table, "1h")) == 24
    np.testing.assert_array_equal(table.rows("BTCUSDT"), rows)


def test_the_open_candle_holds_what_closed_so_far_and_nothing_later():
    table = candle_table(("BTCUSDT",), 96)
    now_ms = MONDAY_MS + 2 * 3_600_000 + 1_900_000  # two quarters of the third hour have closed
    last = rest_rows(table, "1h", now_ms=now_ms)[-1]
    rows = table.rows("BTCUSDT")[8:10]
    assert (last[0], last[4]) == (MONDAY_MS + 2 * 3_600_000, f"{rows['close'][1] / 100:.2f}")
    assert last[6] > now_ms


def test_pages_go_forward_from_a_start_and_back_from_an_end():
    table = candle_table(("BTCUSDT",), 96)
    opens = [row[0] for row in rest_rows(table, "15m", start_ms=1, limit=3)]
    assert opens == [MONDAY_MS + at * 900_000 for at in range(3)]
    newest = [row[0] for row in rest_rows(table, "15m", limit=2)]
    assert newest == [END_MS - 1_800_000, END_MS - 900_000]
    until = [row[0] for row in rest_rows(table, "15m", end_ms=MONDAY_MS + 1_000_000, limit=1)]
    assert until == [MONDAY_MS + 900_000]


def test_files_of_the_archive_are_read_with_and_without_header_and_kept_exact(tmp_path):
    line = "{},0.00001234,0.00001240,0.00001230,0.00001236,289.641,{},0.00357,12,100.5,0.00124,0"
    texts = [
        line.format(MONDAY_MS + at * 60_000, MONDAY_MS + at * 60_000 + 59_999) for at in (1, 0)
    ]
    plain = tmp_path / "BTCUSDT-1m-2024-07.csv"
    plain.write_text("\n".join([HEADER, texts[0]]))
    packed = tmp_path / "BTCUSDT-1m-2024-06.csv.gz"
    packed.write_bytes(gzip.compress(texts[1].encode()))
    table = CandleTable.from_files([plain, packed])
    assert table.end_ms == MONDAY_MS + 120_000
    found = rest_rows(table, "1m")
    assert [row[0] for row in found] == [MONDAY_MS, MONDAY_MS + 60_000]
    assert found[0][1:6] == ["0.00001234", "0.00001240", "0.00001230", "0.00001236", "289.641"]
    assert float(found[0][7]) == 0.00357


def test_a_file_that_does_not_say_what_it_holds_is_refused(tmp_path):
    with pytest.raises(SourceError, match="must be named like"):
        CandleTable.from_files([tmp_path / "candles.csv"])
    with pytest.raises(SourceError, match="No such file"):
        CandleTable.from_files([tmp_path / "BTCUSDT-1m-2024-07.csv"])


def test_scripted_replies_act_by_endpoint_and_number():
    script = ReplyScript([RestFault(endpoint="klines", mode="empty", after=1, count=2)])
    acting = [script.next("klines") is not None for _ in range(5)]
    assert acting == [False, True, True, False, False]
    assert script.next("time") is None
    with pytest.raises(ConfigError, match="mode must be one of"):
        RestFault(endpoint="klines", mode="gone")
