"""URLs, stream names and weights, against the exchange's documented tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api.endpoints import (
    DEFAULT_WS_BASE,
    MAX_STREAMS_PER_CONNECTION,
    Endpoint,
    Route,
    StreamKind,
    max_limit,
    request_weight,
    rest_path,
    stream_name,
    stream_url,
    symbol_of,
)
from domain.market import Market


def test_stream_names_are_lower_case_and_lead_back_to_the_symbol():
    assert stream_name(StreamKind.AGG_TRADE, "BTCUSDT") == "btcusdt@aggTrade"
    assert stream_name(StreamKind.DEPTH20, "BTCUSDT") == "btcusdt@depth20@100ms"
    for kind in StreamKind:
        assert symbol_of(stream_name(kind, "1000PEPEUSDT")) == "1000PEPEUSDT"


def test_futures_trades_and_depth_have_different_routes():
    base = DEFAULT_WS_BASE[Market.UM]
    trades = stream_url(Market.UM, base, Route.TRADES, ["btcusdt@aggTrade", "ethusdt@aggTrade"])
    depth = stream_url(Market.UM, base + "/", Route.DEPTH, ["btcusdt@depth20@100ms"])
    assert trades == (
        "wss://fstream.binance.com/market/stream?streams=btcusdt@aggTrade/ethusdt@aggTrade"
    )
    assert depth == "wss://fstream.binance.com/public/stream?streams=btcusdt@depth20@100ms"


@pytest.mark.parametrize("route", Route)
def test_spot_has_one_path_for_all_streams(route):
    url = stream_url(Market.SPOT, "wss://stream.binance.com:9443", route, ["a@aggTrade"])
    assert url == "wss://stream.binance.com:9443/stream?streams=a@aggTrade"


@pytest.mark.parametrize("count", [0, MAX_STREAMS_PER_CONNECTION + 1])
def test_a_socket_cannot_carry_no_stream_or_too_many(count):
    with pytest.raises(ValueError, match="1 to 1024"):
        stream_url(Market.UM, "wss://x", Route.TRADES, ["s"] * count)


def test_rest_paths_name_the_market():
    assert rest_path(Market.UM, Endpoint.TICKER_24HR) == "/fapi/v1/ticker/24hr"
    assert rest_path(Market.SPOT, Endpoint.KLINES) == "/api/v3/klines"


@pytest.mark.parametrize(
    ("market", "endpoint", "limit", "weight"),
    [
        (Market.UM, Endpoint.KLINES, 100, 1),
        (Market.UM, Endpoint.KLINES, 101, 2),
        (Market.UM, Endpoint.KLINES, 500, 2),
        (Market.UM, Endpoint.KLINES, 1_000, 5),
        (Market.UM, Endpoint.KLINES, 1_001, 10),
        (Market.UM, Endpoint.DEPTH, 50, 2),
        (Market.UM, Endpoint.DEPTH, 1_000, 20),
        (Market.UM, Endpoint.AGG_TRADES, 1, 20),
        (Market.UM, Endpoint.PING, None, 1),
        (Market.SPOT, Endpoint.AGG_TRADES, 1_000, 4),
        (Market.SPOT, Endpoint.KLINES, 1_000, 2),
        (Market.SPOT, Endpoint.DEPTH, 101, 25),
        (Market.SPOT, Endpoint.EXCHANGE_INFO, None, 20),
    ],
)
def test_weights_are_the_documented_ones(market, endpoint, limit, weight):
    assert request_weight(market, endpoint, limit) == weight


@given(
    market=st.sampled_from(Market),
    endpoint=st.sampled_from([Endpoint.KLINES, Endpoint.DEPTH, Endpoint.AGG_TRADES]),
    data=st.data(),
)
def test_a_larger_limit_never_costs_less(market, endpoint, data):
    largest = max_limit(market, endpoint)
    assert largest is not None
    low, high = sorted(data.draw(st.lists(st.integers(1, largest), min_size=2, max_size=2)))
    assert request_weight(market, endpoint, low) <= request_weight(market, endpoint, high)


@pytest.mark.parametrize("market", Market)
@pytest.mark.parametrize("endpoint", Endpoint)
def test_every_endpoint_has_a_weight_and_refuses_a_limit_out_of_range(market, endpoint):
    largest = max_limit(market, endpoint)
    assert request_weight(market, endpoint, largest) >= 1
    for wrong in [1] if largest is None else [None, 0, largest + 1]:
        with pytest.raises(ValueError, match="limit"):
            request_weight(market, endpoint, wrong)
