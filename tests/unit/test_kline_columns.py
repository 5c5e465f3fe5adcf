from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api.kline_columns import KLINE_COLUMNS, columns_of, decode_kline_columns, joined
from binance_api.rest_replies import decode_klines
from lake.kline_files import RAW_COLUMNS

ROW = [
    *(1_721_347_200_000, "63974.0", "64000.10", "63900.00", "63950.5", "289.641"),
    *(1_721_347_259_999, "18523000.12345", 4711, "100.25", "6411000.5", "0"),
]


def body_of(rows: list[list], *, spaced: bool = False) -> bytes:
    return json.dumps(rows, separators=None if spaced else (",", ":")).encode()


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
        for name in KLINE_COLUMNS
    )


def test_columns_are_those_of_the_lake_with_exact_types() -> None:
    columns = decode_kline_columns(body_of([ROW, ROW]))
    assert tuple(columns) == RAW_COLUMNS
    for name, values in columns.items():
        is_integer = name.endswith("_ms") or name == "trade_count"
        assert values.dtype == (np.int64 if is_integer else np.float64)
        assert values.flags.c_contiguous or len(values) == 1
    assert columns["volume"].tolist() == [289.641, 289.641]


numbers = st.decimals(0, 10**12, allow_nan=False, allow_infinity=False, places=8).map(
    lambda value: f"{value:f}"
)


@given(st.lists(st.lists(numbers, min_size=8, max_size=8), min_size=1, max_size=20))
def test_every_number_is_the_nearest_double_of_the_exact_one(values: list[list[str]]) -> None:
    rows = [
        [1_721_347_200_000 + i, *v[:5], 1_721_347_259_999 + i, v[5], i, v[6], v[7], "0"]
        for i, v in enumerate(values)
    ]
    exact = decode_klines(body_of(rows), "X", "1m")
    columns = decode_kline_columns(body_of(rows))
    assert same(columns, columns_of(exact))
    assert columns["open"].tolist() == [float(bar.open) for bar in exact]


@pytest.mark.parametrize("rows", [[ROW], [ROW[:11]], [[*ROW, "more"]], []])
def test_another_layout_is_read_all_the_same(rows: list[list]) -> None:
    for spaced in (False, True):
        body = body_of(rows, spaced=spaced)
        assert same(decode_kline_columns(body), columns_of(decode_klines(body, "", "")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b"[[1]]",
        b'[[1,"","2","3","4","5",6,"7",8,"9","10","0"]]',
        b'[[1,"1.2.3","2","3","4","5",6,"7",8,"9","10","0"]]',
        b'[[1,"NaN","2","3","4","5",6,"7",8,"9","10","0"]]',
        b'[[1,"%s","2","3","4","5",6,"7",8,"9","10","0"]]' % (b"9" * 60),
        b'[[1.5,"1","2","3","4","5",6,"7",8,"9","10","0"],]',
    ],
)
def test_what_is_no_candle_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_kline_columns(body)


def test_a_time_that_is_no_whole_number_is_refused() -> None:
    row = [1_721_347_200_000.5, *ROW[1:]]
    with pytest.raises(ValueError):
        decode_kline_columns(body_of([row]))


@given(st.binary(max_size=300))
def test_any_bytes_give_columns_or_a_value_error(body: bytes) -> None:
    try:
        columns = decode_kline_columns(body)
    except (ValueError, RecursionError):
        return
    assert tuple(columns) == KLINE_COLUMNS


def test_pieces_are_joined_in_order() -> None:
    one, other = decode_kline_columns(body_of([ROW])), decode_kline_columns(body_of([ROW, ROW]))
    assert len(joined([one, other])["close"]) == 3
    assert joined([])["open_time_ms"].dtype == np.int64
