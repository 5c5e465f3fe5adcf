from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest

from binance_api.connector_request import CollectRequest, collect_request

T_MS = 1_721_347_200_000  # 2024-07-19 00:00 UTC


def request(
    start=None,
    end=None,
    *,
    streaming=False,
    data_type="ohlcv",
    timeframe="1m",
    symbol="btcusdt",
    **options,
):
    return collect_request(
        symbol, timeframe, start, end, data_type, is_streaming=streaming, options=options
    )


@pytest.mark.parametrize(
    "start",
    [
        "2024-07-19",
        "20240719",
        " 2024-07-19T00:00 ",
        "2024-07-19 00:00:00",
        "2024-07-19T00:00:00Z",
        "2024-07-19T02:00:00+02:00",
        "2024-07-18T19:00:00.000-05:00",
        "20240719T000000Z",
        "2024-W29-5",
        dt.date(2024, 7, 19),
        dt.datetime(2024, 7, 19),  # noqa: DTZ001 - naive on purpose
        dt.datetime(2024, 7, 19, tzinfo=dt.UTC),
        dt.datetime(2024, 7, 19, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        pd.Timestamp("2024-07-19"),
        pd.Timestamp("2024-07-19 09:00", tz="Asia/Tokyo"),
        T_MS,
        np.int64(T_MS),
    ],
)
def test_a_date_may_be_written_in_any_usual_form_and_is_utc_without_a_zone(start) -> None:
    assert request(start).start_ms == T_MS


def test_a_month_is_its_first_moment() -> None:
    assert request("2024-07").start_ms == request("2024-07-01").start_ms


@pytest.mark.parametrize(
    ("start", "end"),
    [("2024-07-19", "2024-07-18"), ("2024-07-19", "2024-07-19"), (T_MS, T_MS)],
)
def test_an_inverted_or_empty_range_is_refused(start, end) -> None:
    with pytest.raises(ValueError, match="end_date must lie after start_date"):
        request(start, end)


@pytest.mark.parametrize("start", ["yesterday", "2024-13-01", "", "19/07/2024"])
def test_text_that_is_no_date_is_refused(start) -> None:
    with pytest.raises(ValueError, match="is no time"):
        request(start)


@pytest.mark.parametrize("start", [1.5, True, object()])
def test_what_is_no_date_at_all_is_refused(start) -> None:
    with pytest.raises(TypeError):
        request(start)


@pytest.mark.parametrize("timeframe", ["7m", "", "1H", "1s"])
def test_an_interval_the_exchange_lacks_is_refused_naming_those_it_has(timeframe: str) -> None:
    with pytest.raises(ValueError, match="there are 1m, 3m"):
        request(timeframe=timeframe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_type": "trades"}, "data_type"),
        ({"symbol": " "}, "symbol"),
        ({"limit": 0}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": True}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": 5}, "offset counts from start_date"),
        ({"streaming": True, "end": "2024-07-19"}, "no end_date"),
        ({"streaming": True, "poll_interval_s": 0}, "poll_interval_s"),
    ],
)
def test_other_values_that_cannot_be_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        request(**changes)


@pytest.mark.parametrize(
    ("streaming", "option"), [(False, "limite"), (True, "limit"), (False, "poll_interval_s")]
)
def test_an_argument_that_does_not_exist_in_the_mode_is_refused(streaming, option) -> None:
    with pytest.raises(TypeError, match=option):
        request(streaming=streaming, **{option: 3})


def test_a_request_has_its_symbol_in_upper_case_and_ticks_have_no_interval() -> None:
    found = request("2024-07-19", "2024-07-20", data_type="tick", limit=10, offset=5)
    assert found == CollectRequest(
        symbol="BTCUSDT",
        interval=None,
        start_ms=T_MS,
        end_ms=T_MS + 86_400_000,
        limit=10,
        offset=5,
        poll_s=2.0,
    )
