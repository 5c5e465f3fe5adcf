"""Archives as the exchange publishes them → rows in the lake's columns."""

from __future__ import annotations

import zipfile
from decimal import Decimal

import pyarrow as pa
import pytest

from lake import archive_csv
from lake.archive_csv import UnreadableArchive, agg_trade_batches, kline_batches
from lake.historical_files import AGG_TRADE_SCHEMA, KLINE_SCHEMA
from tests.vision_archives import HEADER, zipped

UM = [
    "26129,0.01633102,4.70443515,27781,27781,1498793709153,true",
    "26130,0.1,3,27782,27790,1498793709200,false",
]
SPOT_MS = "26129,0.01633102,4.70443515,27781,27781,1498793709153,True,True"
SPOT_US = "26129,0.01633102,4.70443515,27781,27781,1735689600123456,False,True"
KLINE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore"
)
KLINE = "1720000000000,1.5,1.7,1.4,1.6,10.5,1720000059999,16.2,33,4.5,7.1,0"


def table(batches, schema=AGG_TRADE_SCHEMA):
    return pa.Table.from_batches(list(batches), schema=schema)


@pytest.mark.parametrize("head", [[], [HEADER]], ids=["without header", "with header"])
def test_futures_trades_are_read_with_and_without_a_header(tmp_path, head):
    rows = table(agg_trade_batches(zipped(tmp_path / "a.zip", [*head, *UM]))).to_pylist()
    assert rows[0] == {
        "agg_trade_id": 26129,
        "price": float(Decimal("0.01633102")),
        "quantity": float(Decimal("4.70443515")),
        "first_trade_id": 27781,
        "last_trade_id": 27781,
        "transact_time_ms": 1498793709153,
        "is_buyer_maker": True,
    }
    assert [row["agg_trade_id"] for row in rows] == [26129, 26130]


def test_spot_has_one_more_column_and_other_booleans(tmp_path):
    found = table(agg_trade_batches(zipped(tmp_path / "a.zip", [SPOT_MS]))).to_pylist()
    assert found[0]["is_buyer_maker"] is True
    assert found[0]["transact_time_ms"] == 1498793709153


def test_microseconds_are_told_by_their_magnitude(tmp_path):
    found = table(agg_trade_batches(zipped(tmp_path / "a.zip", [SPOT_US]))).to_pylist()
    assert found[0]["transact_time_ms"] == 1735689600123
    assert found[0]["is_buyer_maker"] is False


@pytest.mark.parametrize("head", [[], [KLINE_HEADER]], ids=["without header", "with header"])
def test_klines_are_read_with_and_without_a_header(tmp_path, head):
    path = zipped(tmp_path / "k.zip", [*head, KLINE])
    assert list(table(kline_batches(path), KLINE_SCHEMA).to_pylist()[0].values()) == [
        *(1720000000000, 1.5, 1.7, 1.4, 1.6, 10.5, 1720000059999, 16.2, 33, 4.5, 7.1),
    ]


def test_klines_in_microseconds_close_in_the_right_millisecond(tmp_path):
    line = KLINE.replace("1720000000000", "1736000000000000").replace(
        "1720000059999", "1736000059999999"
    )
    row = table(kline_batches(zipped(tmp_path / "k.zip", [line])), KLINE_SCHEMA).to_pylist()[0]
    assert (row["open_time_ms"], row["close_time_ms"]) == (1736000000000, 1736000059999)


def test_prices_are_the_nearest_doubles_whatever_their_decimals(tmp_path):
    texts = ["83091.70", "0.00000001", "99999999.99999999", "0.1", "123456.789012345678"]
    lines = [f"{i},{text},{text},1,1,1498793709153,true" for i, text in enumerate(texts)]
    found = table(agg_trade_batches(zipped(tmp_path / "a.zip", lines)))
    assert found["price"].to_pylist() == [float(text) for text in texts]


def test_many_blocks_give_the_same_rows_as_one(tmp_path, monkeypatch):
    lines = [f"{i},{i}.5,{i},1,1,{1498793709153 + i},true" for i in range(5_000)]
    path = zipped(tmp_path / "a.zip", [HEADER, *lines])
    whole = table(agg_trade_batches(path))
    monkeypatch.setattr(archive_csv, "_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(archive_csv, "_READ_BYTES", 700)
    assert table(agg_trade_batches(path)).equals(whole)
    assert whole["agg_trade_id"].to_pylist() == list(range(5_000))


def test_progress_reaches_the_size_of_the_zip(tmp_path):
    seen = []
    path = zipped(tmp_path / "a.zip", [f"{i},1,1,1,1,1498793709153,true" for i in range(50_000)])
    list(agg_trade_batches(path, lambda done, every: seen.append((done, every))))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_archive_without_rows_has_none(tmp_path):
    assert list(agg_trade_batches(zipped(tmp_path / "a.zip", [HEADER]))) == []
    assert list(agg_trade_batches(zipped(tmp_path / "b.zip", []))) == []


def test_a_reader_that_stops_early_leaves_nothing_behind(tmp_path):
    path = zipped(tmp_path / "a.zip", [f"{i},1,1,1,1,1498793709153,true" for i in range(200_000)])
    batches = agg_trade_batches(path)
    next(batches)
    batches.close()
    path.unlink()


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))


def _cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _web_page(path):
    path.write_text("<html>sign in</html>")


@pytest.mark.parametrize("damage", [_flip, _cut, _web_page])
def test_a_damaged_zip_is_named(tmp_path, damage):
    lines = [f"{i},{i * 7919 % 104_729},{i},1,1,1498793709153,true" for i in range(50_000)]
    path = zipped(tmp_path / "a.zip", lines)
    damage(path)
    with pytest.raises(UnreadableArchive, match=r"a\.zip: "):
        list(agg_trade_batches(path))


@pytest.mark.parametrize(
    "lines",
    [
        ["1,2,3"],
        ["1,2,3,4,5,6,true,True,9"],
        ["a,price", "not,numbers"],
        ["1,abc,3,4,5,1498793709153,true"],
        ["1,2.5,3,4,5,1498793709153,true", "2,2.5"],
        [*UM, "3,1.0,,4,5,1498793709153,true"],
    ],
)
def test_another_table_is_refused_rather_than_guessed(tmp_path, lines):
    with pytest.raises(UnreadableArchive):
        list(agg_trade_batches(zipped(tmp_path / "a.zip", lines)))


def test_two_files_in_a_zip_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", UM)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y.csv", "1\n")
    with pytest.raises(UnreadableArchive, match="2 files"):
        list(agg_trade_batches(path))
