"""Past data through ``BinanceConnector``, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time

import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from binance_api import BinanceConnector, close_binance_connection, connect_to_binance
from binance_api.connector_frames import OHLCV_COLUMNS, TICK_COLUMNS
from binance_api.connector_session import ConnectionClosed
from binance_api.errors import InvalidSymbol, Unreachable
from domain.market import Market
from tests.connector_exchange import (
    KEYS,
    MINUTE_MS,
    START_MS,
    ScriptedExchange,
    bar,
    config_of,
    minute_bars,
    simulated,
)
from tests.kline_samples import candle_table

pytestmark = pytest.mark.usefixtures("clean_environment")

HOUR_MS = 60 * MINUTE_MS
OHLCV_TYPES = {
    "timestamp": "datetime64[ms, UTC]",
    **dict.fromkeys(("open", "high", "low", "close", "volume", "quote_volume"), "float64"),
    "trade_count": "int64",
    "taker_buy_volume": "float64",
    "gap": "bool",
    "outlier": "bool",
}
TICK_TYPES = {
    "timestamp": "datetime64[ms, UTC]",
    "agg_trade_id": "int64",
    "price": "float64",
    "quantity": "float64",
    "is_buyer_maker": "bool",
    "gap": "bool",
    "outlier": "bool",
}


@pytest.fixture(scope="module")
def market():
    """A synthetic market whose clock stands at 00:00:00 of 2024-07-19."""
    with simulated(started=False, start_ms=START_MS + 30_000, seed=3) as exchange:
        yield exchange


@pytest.fixture
def conn(market):
    with BinanceConnector(config_of(market)) as connector:
        yield connector


def opens_of(frame: pd.DataFrame) -> list[int]:
    return (frame["timestamp"].astype("int64")).tolist()


def types_of(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(kind) for name, kind in frame.dtypes.items()}


# --- candles ---


def test_candles_come_in_the_global_schema_closed_ones_only_and_half_open(conn) -> None:
    frame = conn.collect("btcusdt", "1m", "2024-07-18T20:00", "2024-07-19 12:00")
    assert types_of(frame) == OHLCV_TYPES
    assert tuple(frame.columns) == OHLCV_COLUMNS
    # the one that opens at midnight is still open at 00:00:30
    assert opens_of(frame) == list(range(START_MS - 4 * HOUR_MS, START_MS, MINUTE_MS))
    assert not frame["gap"].any()
    assert frame.attrs["gaps"] == []
    part = conn.collect("BTCUSDT", "1m", START_MS - 5 * MINUTE_MS, START_MS - 3 * MINUTE_MS)
    assert opens_of(part) == [START_MS - 5 * MINUTE_MS, START_MS - 4 * MINUTE_MS]


def test_a_range_of_many_pages_is_whole_and_in_order(conn) -> None:
    start = START_MS - 40 * HOUR_MS
    frame = conn.collect("BTCUSDT", "1m", start, START_MS)
    assert opens_of(frame) == list(range(start, START_MS, MINUTE_MS))
    assert conn.statistics()["requests"] > 4


def test_limit_and_offset_page_through_the_same_rows(conn) -> None:
    dates = ("2024-07-18T10:00", "2024-07-19")
    whole = conn.collect("ETHUSDT", "1m", *dates)
    pages, offset = [], 0
    while len(page := conn.collect("ETHUSDT", "1m", *dates, limit=300, offset=offset)):
        pages.append(page)
        offset += 300
    assert [len(page) for page in pages] == [300, 300, 240]
    pd.testing.assert_frame_equal(pd.concat(pages, ignore_index=True), whole)


def test_without_dates_the_newest_closed_candles_come(conn) -> None:
    assert opens_of(conn.collect("BTCUSDT", "1m", limit=3)) == [
        START_MS - n * MINUTE_MS for n in (3, 2, 1)
    ]
    assert len(conn.collect("BTCUSDT", "1m")) == 500
    before = conn.collect("BTCUSDT", "1m", end_date="2024-07-18T12:00", limit=700)
    assert opens_of(before)[-1] == START_MS - 12 * HOUR_MS - MINUTE_MS
    assert len(before) == 700


def test_a_window_that_moves_on_sees_the_same_candles(conn) -> None:
    first = conn.collect("BTCUSDT", "5m", "2024-07-18T00:00", "2024-07-18T12:00")
    moved = conn.collect("BTCUSDT", "5m", "2024-07-18T06:00", "2024-07-18T18:00")
    columns = ["timestamp", "open", "close", "volume", "trade_count"]
    pd.testing.assert_frame_equal(
        first[columns].iloc[72:].reset_index(drop=True), moved[columns].iloc[:72]
    )


def test_longer_candles_are_made_of_the_shorter_ones(conn) -> None:
    dates = ("2024-07-18T00:00", "2024-07-19")
    minutes, hours = conn.collect("BTCUSDT", "1m", *dates), conn.collect("BTCUSDT", "1h", *dates)
    grouped = minutes.groupby(minutes["timestamp"].dt.floor("h"))
    assert hours["high"].tolist() == grouped["high"].max().tolist()
    assert hours["trade_count"].tolist() == grouped["trade_count"].sum().tolist()
    assert np.allclose(hours["volume"], grouped["volume"].sum())


def test_a_range_before_the_listing_or_after_now_is_empty_in_the_same_schema(conn) -> None:
    for dates in (("2019-01-01", "2019-02-01"), ("2031-01-01", None)):
        frame = conn.collect("BTCUSDT", "1h", *dates)
        assert len(frame) == 0
        assert types_of(frame) == OHLCV_TYPES
        assert frame.attrs["gaps"] == []


def test_before_the_first_candle_of_a_listing_nothing_is_missing(conn) -> None:
    frame = conn.collect("BTCUSDT", "1h", "2019-01-01", "2024-07-19")
    assert len(frame) > 60
    assert not frame["gap"].any()


def test_a_halted_market_ends_without_an_error_and_its_silence_is_a_gap() -> None:
    table = candle_table(("HALTUSDT",), 96)  # closed for a day since its last candle
    halted_ms = table.end_ms
    with (
        simulated(
            candles=table,
            start_ms=halted_ms + 24 * HOUR_MS,
            symbols=table.symbols,
            halted=("HALTUSDT",),
        ) as exchange,
        BinanceConnector(config_of(exchange)) as own,
    ):
        dates = (halted_ms - 2 * HOUR_MS, halted_ms + 6 * HOUR_MS)
        frame = own.collect("HALTUSDT", "15m", *dates)
        later = own.collect("HALTUSDT", "15m", halted_ms, dates[1])
    assert len(frame) == 8
    assert [gap["missing"] for gap in frame.attrs["gaps"]] == [24]
    assert len(later) == 0
    assert types_of(later) == OHLCV_TYPES


def test_an_unknown_symbol_is_named_with_the_exchanges_code(conn) -> None:
    with capture_logs() as lines, pytest.raises(InvalidSymbol) as refused:
        conn.collect("NOSUCH", "1m", limit=1)
    assert refused.value.code == -1121
    critical = [line for line in lines if line["log_level"] == "critical"]
    assert [(line["event"], line["code"]) for line in critical] == [("connector.failed", -1121)]


# --- holes, lost pages, odd numbers ---


def scripted(bars, trades=None, *, now_ms=START_MS + 30_000, prefix="/fapi/v1"):
    return ScriptedExchange(bars, trades, now_ms=now_ms).serving(prefix)


def test_missing_candles_are_marked_and_filled_only_when_asked() -> None:
    bars = minute_bars(START_MS - 10 * MINUTE_MS, 10)
    for n in (8, 7, 1):
        del bars[START_MS - n * MINUTE_MS]
    with scripted(bars) as exchange:
        dates = (START_MS - 10 * MINUTE_MS, START_MS)
        with BinanceConnector(config_of(exchange)) as conn, capture_logs() as lines:
            plain = conn.collect("BTCUSDT", "1m", *dates)
        with BinanceConnector(config_of(exchange), gap_params={"fill": True}) as conn:
            filled = conn.collect("BTCUSDT", "1m", *dates)
    assert len(plain) == 7
    assert plain["gap"].tolist() == [False, False, True, *[False] * 4]
    assert plain.attrs["gaps"] == [
        {"start": "2024-07-18T23:52:00.000Z", "end": "2024-07-18T23:54:00.000Z", "missing": 2},
        {"start": "2024-07-18T23:59:00.000Z", "end": "2024-07-19T00:00:00.000Z", "missing": 1},
    ]
    assert [line["missing"] for line in lines if line["event"] == "connector.gap"] == [2, 1]
    assert opens_of(filled) == list(
        range(START_MS - 10 * MINUTE_MS, START_MS - MINUTE_MS, MINUTE_MS)
    )
    assert np.flatnonzero(filled["gap"]).tolist() == [2, 3]
    assert filled["trade_count"].tolist() == [3, 3, 0, 0, 3, 3, 3, 3, 3]


def test_a_page_that_is_lost_is_asked_for_again() -> None:
    start = START_MS - 1_500 * MINUTE_MS
    lost = set()

    def lose(query) -> bool:
        key = query.get("startTime")
        is_first = key is not None and int(key) > start and key not in lost
        lost.add(key)
        return is_first

    with scripted(minute_bars(start, 1_500)) as exchange:
        exchange.lose = lose
        with BinanceConnector(config_of(exchange)) as conn:
            frame = conn.collect("BTCUSDT", "1m", start, START_MS)
    assert opens_of(frame) == list(range(start, START_MS, MINUTE_MS))
    assert len(lost) >= 3


def test_a_page_the_exchange_never_has_is_a_gap_and_the_rest_comes() -> None:
    bars = minute_bars(START_MS - 2_000 * MINUTE_MS, 2_000)
    for n in range(400, 1_400):
        del bars[START_MS - n * MINUTE_MS]
    with scripted(bars) as exchange, BinanceConnector(config_of(exchange)) as conn:
        frame = conn.collect("BTCUSDT", "1m", START_MS - 2_000 * MINUTE_MS, START_MS)
    assert len(frame) == 1_000
    assert [gap["missing"] for gap in frame.attrs["gaps"]] == [1_000]


def test_an_open_candle_is_left_out_by_the_exchanges_clock_wherever_it_stands() -> None:
    bars = minute_bars(START_MS - 3 * MINUTE_MS, 5)  # the last two have not closed at 00:00:30
    with scripted(bars) as exchange, BinanceConnector(config_of(exchange)) as conn:
        newest = conn.collect("BTCUSDT", "1m", limit=5)
        ranged = conn.collect("BTCUSDT", "1m", START_MS - 3 * MINUTE_MS)
    assert opens_of(newest) == opens_of(ranged) == [START_MS - n * MINUTE_MS for n in (3, 2, 1)]


def test_prices_with_eight_decimals_are_the_nearest_doubles() -> None:
    bars = {
        START_MS - MINUTE_MS: bar(START_MS - MINUTE_MS, price="0.00000123", volume="1.00000001")
    }
    trades = [
        {
            "a": 7,
            "p": "0.00001234",
            "q": "123456789.12345678",
            "f": 1,
            "l": 1,
            "T": START_MS,
            "m": True,
        }
    ]
    with (
        scripted(bars, trades, prefix="/api/v3") as exchange,
        BinanceConnector(config_of(exchange, market="spot")) as conn,
    ):
        frame = conn.collect("SHIBUSDT", "1m", limit=1)
        ticks = conn.collect("SHIBUSDT", "1m", data_type="tick", limit=1)
    assert frame[["close", "volume"]].to_numpy().tolist() == [[0.00000123, 1.00000001]]
    assert ticks[["price", "quantity"]].to_numpy().tolist() == [[0.00001234, 123456789.12345678]]


def test_weeks_begin_on_monday() -> None:
    week, monday = 7 * 24 * HOUR_MS, START_MS - 4 * 24 * HOUR_MS
    bars = {monday - n * week: bar(monday - n * week, step_ms=week) for n in range(6)}
    with scripted(bars) as exchange, BinanceConnector(config_of(exchange)) as conn:
        frame = conn.collect("BTCUSDT", "1w", "2024-06-12", "2024-07-20")
    assert frame["timestamp"].dt.day_name().unique().tolist() == ["Monday"]
    assert opens_of(frame) == [monday - n * week for n in (4, 3, 2, 1)]  # the fifth is still open
    assert not frame["gap"].any()


def test_outliers_are_marked_by_the_method_asked_for() -> None:
    bars = {
        at: bar(at, price=f"{100 + math.sin(i) + 30 * (i == 150):.4f}")
        for i, at in enumerate(range(START_MS - 200 * MINUTE_MS, START_MS, MINUTE_MS))
    }
    with scripted(bars) as exchange:
        for method in ("iqr", "zscore", "rolling"):
            with BinanceConnector(config_of(exchange), outlier_params={"method": method}) as conn:
                frame = conn.collect("BTCUSDT", "1m", START_MS - 200 * MINUTE_MS, START_MS)
            assert 150 in np.flatnonzero(frame["outlier"]).tolist()
            assert frame["outlier"].sum() <= 2  # the way there, and back


# --- ticks ---


def tick(number: int) -> dict:
    return {
        "a": number,
        "p": f"{100 + number % 5}.5",
        "q": "0.5",
        "f": number,
        "l": number,
        "T": START_MS - 10_000_000 + 1_000 * number,
        "m": number % 2 == 0,
    }


def test_ticks_are_paged_by_id_and_missing_ids_marked() -> None:
    trades = [tick(n) for n in range(5_000) if n not in (2_500, 2_501)]
    first, last = trades[100]["T"], trades[-1]["T"]
    with scripted({}, trades) as exchange, BinanceConnector(config_of(exchange)) as conn:
        frame = conn.collect("BTCUSDT", "1m", first, last, data_type="tick")
        page = conn.collect("BTCUSDT", "1m", first, last, data_type="tick", limit=50, offset=2_000)
        newest = conn.collect("BTCUSDT", "1m", data_type="tick", limit=2_300)
    assert types_of(frame) == TICK_TYPES
    assert tuple(frame.columns) == TICK_COLUMNS
    assert frame["agg_trade_id"].tolist() == [t["a"] for t in trades[100:-1]]
    assert frame.loc[frame["gap"], "agg_trade_id"].tolist() == [2_502]
    assert frame.attrs["gaps"] == [{"first_id": 2_500, "last_id": 2_501, "missing": 2}]
    assert page["agg_trade_id"].tolist() == frame["agg_trade_id"].tolist()[2_000:2_050]
    assert newest["agg_trade_id"].tolist() == [t["a"] for t in trades if t["a"] >= 2_700]


def test_ticks_of_the_simulated_exchange_are_those_of_its_tape(conn, market) -> None:
    frame = conn.collect("BTCUSDT", "1m", START_MS - HOUR_MS, START_MS, data_type="tick")
    tape = market.source.between("BTCUSDT", START_MS - HOUR_MS, START_MS).rows
    assert frame["agg_trade_id"].tolist() == tape["agg_trade_id"].tolist()
    assert opens_of(frame) == tape["transact_time_ms"].tolist()
    assert not frame["gap"].any()


def test_ticks_out_of_the_exchanges_reach_are_told_and_marked() -> None:
    now_ms = START_MS - 10_000_000 + 49 * HOUR_MS
    trades = [tick(n) for n in range(0, 50 * 3_600, 60)]
    with (
        scripted({}, trades, now_ms=now_ms) as exchange,
        capture_logs() as lines,
        BinanceConnector(config_of(exchange)) as conn,
    ):
        frame = conn.collect("BTCUSDT", "1m", trades[0]["T"], trades[70]["T"], data_type="tick")
    assert frame["agg_trade_id"].tolist()[0] == 3_600
    assert frame["gap"].tolist()[0]
    assert "connector.out_of_reach" in [line["event"] for line in lines]


# --- keys ---


def test_connect_is_true_without_keys_and_with_good_ones(market) -> None:
    for keys in ({}, KEYS):
        with BinanceConnector(config_of(market, **keys)) as conn:
            assert conn.connect() is True


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"api_key": "canary-key-1", "api_secret": "canary-secret-1"}, -2015),
        ({"api_key": "simulated-key", "api_secret": "canary-secret-1"}, -1022),
        ({"api_key": "not/a/key", "api_secret": "canary-secret-1"}, -2014),
    ],
)
def test_with_wrong_keys_connect_is_false_and_public_data_come_all_the_same(
    market, keys, code
) -> None:
    conn = BinanceConnector(config_of(market, **keys))
    with capture_logs() as lines:
        assert conn.connect() is False
        assert len(conn.collect("BTCUSDT", "1m", limit=2)) == 2
        shown = f"{lines} {conn!r} {conn.statistics()}"
    conn.close()
    refused = [line for line in lines if line["event"] == "connector.keys_refused"]
    assert [line["code"] for line in refused] == [code]
    assert "canary" not in shown


def test_keys_come_from_the_environment_where_the_config_has_none(
    market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINANCE_API_KEY", "simulated-key")
    monkeypatch.setenv("BINANCE_API_SECRET", "wrong")
    monkeypatch.setenv("BINANCE_REST_URL", market.rest_url)
    connection = connect_to_binance()
    assert not connection.is_ready
    close_binance_connection(connection)
    monkeypatch.setenv("BINANCE_API_SECRET", "simulated-secret")
    connection = connect_to_binance({"market": "um"})
    assert connection.is_ready
    close_binance_connection(connection)
    close_binance_connection(connection)
    close_binance_connection(None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"apikey": "canary"}, "unknown key apikey"),
        ({"api_key": "canary"}, "api_secret"),
        ({"api_key": 5, "api_secret": 6}, "must be text"),
        ({"market": "canary"}, "market"),
        ({"rest_url": "ws://canary"}, "rest_url"),
        ({"ws_url": "wss://host/canary"}, "ws_url"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"timeout_s": "canary"}, "timeout_s"),
    ],
)
def test_a_config_that_means_nothing_is_refused_without_showing_it(config, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        BinanceConnector(config)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("mode", ["", "live", "BATCH", None])
def test_a_mode_that_is_none_is_refused(mode) -> None:
    with pytest.raises(ValueError, match="mode must be one of batch, streaming, real-time"):
        BinanceConnector(mode=mode)


# --- limits and failures ---


def test_a_refusal_is_waited_out_and_the_backfill_goes_on_where_it_stood() -> None:
    start = START_MS - 3_000 * MINUTE_MS
    refusals = iter([418, 429])

    def refuse(query):
        if int(query.get("startTime", 0)) < start + 1_000 * MINUTE_MS:
            return None
        status = next(refusals, None)
        if status is None:
            return None
        body = {"code": -1003, "msg": "Too many requests."}
        return web.json_response(body, status=status, headers={"Retry-After": "1"})

    with scripted(minute_bars(start, 3_000)) as exchange:
        exchange.refuse = refuse
        with BinanceConnector(config_of(exchange)) as conn, capture_logs() as lines:
            frame = conn.collect("BTCUSDT", "1m", start, START_MS)
            limited = conn.statistics()["limited"]
    assert opens_of(frame) == list(range(start, START_MS, MINUTE_MS))
    assert limited >= 1
    waits = [line for line in lines if line["event"] == "connector.waiting"]
    assert waits
    assert all(line["until"].endswith("UTC") and line["seconds"] > 0 for line in waits)
    pages = [query["startTime"] for query in exchange.requests if "startTime" in query]
    assert len(pages) <= 6 + limited + 2  # what was there is not asked for again


def test_what_fails_for_a_moment_is_tried_again(tmp_path) -> None:
    failures = iter([500, 503])

    def refuse(_query):
        status = next(failures, None)
        return None if status is None else web.Response(status=status)

    with scripted(minute_bars(START_MS - 5 * MINUTE_MS, 5)) as exchange:
        exchange.refuse = refuse
        with BinanceConnector(config_of(exchange)) as conn:
            assert len(conn.collect("BTCUSDT", "1m", limit=5)) == 5
            assert conn.statistics()["retries"] == 2


def test_an_exchange_that_cannot_be_reached_is_a_critical_error() -> None:
    config = {"rest_url": "http://127.0.0.1:9", "timeout_s": 1}
    conn = BinanceConnector(config)
    with capture_logs() as lines:
        assert conn.connect() is False
        with pytest.raises(Unreachable):
            conn.collect("BTCUSDT", "1m", limit=1)
    conn.close()
    events = {line["event"]: line["log_level"] for line in lines}
    assert events["connector.not_connected"] == "error"
    assert events["connector.failed"] == "critical"


def test_the_rate_limit_of_the_config_is_kept() -> None:
    with (
        scripted(minute_bars(START_MS - 10 * MINUTE_MS, 10)) as exchange,
        BinanceConnector(config_of(exchange, rate_limit=1_200)) as conn,
    ):
        conn.collect("BTCUSDT", "1m", limit=2)
        assert conn.statistics()["limit"] == 1_200


# --- ends ---


def test_close_may_be_called_twice_from_any_thread_and_connect_opens_again(market) -> None:
    conn = BinanceConnector(config_of(market))
    conn.close()
    assert conn.connect()
    closers = [threading.Thread(target=conn.close) for _ in range(4)]
    for thread in closers:
        thread.start()
    for thread in closers:
        thread.join(10)
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"binance-connection", "binance-callbacks"}
    with pytest.raises(ConnectionClosed):
        conn.collect("BTCUSDT", "1m", limit=1)
    assert conn.connect()
    assert len(conn.collect("BTCUSDT", "1m", limit=1)) == 1
    conn.close()


def test_close_ends_a_collect_of_another_thread() -> None:
    with scripted(minute_bars(START_MS - 5 * MINUTE_MS, 5)) as exchange:
        headers = {"Retry-After": "60"}
        exchange.refuse = lambda _query: web.json_response(
            {"code": -1003, "msg": "no"}, status=418, headers=headers
        )
        conn = BinanceConnector(config_of(exchange))
        conn.connect()
        outcome = []

        def collect() -> None:
            try:
                conn.collect("BTCUSDT", "1m", limit=5)
            except ConnectionClosed as error:
                outcome.append(error)

        thread = threading.Thread(target=collect)
        thread.start()
        deadline = time.monotonic() + 10
        while not exchange.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        conn.close()
        thread.join(10)
    assert len(outcome) == 1


def test_it_works_while_the_callers_own_event_loop_runs(conn) -> None:
    async def notebook() -> int:
        return len(conn.collect("BTCUSDT", "1m", limit=4))  # blocks, as in a cell

    assert asyncio.run(notebook()) == 4


def test_nothing_is_written_to_disk(conn, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    conn.collect("BTCUSDT", "1m", limit=10)
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.suffix != ".json"] == []


def test_debug_tells_of_every_page(market) -> None:
    for debug, expected in ((True, 1), (False, 0)):
        with BinanceConnector(config_of(market), debug=debug) as conn, capture_logs() as lines:
            conn.collect("BTCUSDT", "1m", limit=3)
        assert sum(line["event"] == "connector.page" for line in lines) == expected


def test_spot_is_collected_like_futures() -> None:
    with (
        simulated(started=False, start_ms=START_MS, market=Market.SPOT) as exchange,
        BinanceConnector(config_of(exchange, market="spot", **KEYS)) as conn,
    ):
        assert conn.connect()
        frame = conn.collect("BTCUSDT", "1m", START_MS - HOUR_MS, START_MS)
        ticks = conn.collect("BTCUSDT", "1m", data_type="tick", limit=10)
    assert len(frame) == 60
    assert len(ticks) == 10
    assert json.dumps(frame.attrs) == '{"gaps": []}'
