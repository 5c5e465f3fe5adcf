"""Every URL, route, stream name, limit and request weight of the exchange, each with its source.

Pure functions of (market, kind, symbol, limit). Nothing else in the product spells a Binance path.
Futures: https://developers.binance.com/docs/derivatives/usds-margined-futures (below: ``UM``);
spot: https://developers.binance.com/docs/binance-spot-api-docs (below: ``SPOT``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from domain.market import Market

DEFAULT_WS_BASE: Final[Mapping[Market, str]] = {
    Market.UM: "wss://fstream.binance.com",  # UM/websocket-market-streams/Connect
    Market.SPOT: "wss://stream.binance.com:9443",  # SPOT/web-socket-streams
}
DEFAULT_REST_BASE: Final[Mapping[Market, str]] = {
    Market.UM: "https://fapi.binance.com",  # UM/general-info
    Market.SPOT: "https://api.binance.com",  # SPOT/rest-api/general-api-information
}
DEFAULT_VISION_BASE: Final = "https://data.binance.vision"  # github.com/binance/binance-public-data

VISION_PREFIX: Final[Mapping[Market, str]] = {
    Market.UM: "/data/futures/um",
    Market.SPOT: "/data/spot",
}

MAX_STREAMS_PER_CONNECTION: Final = 1_024
"""Streams of one socket; one more closes it with code 1008. UM/websocket-market-streams/Connect."""

CONNECTION_LIFETIME_S: Final = 86_400
"""Seconds after which the exchange cuts a socket. UM/websocket-market-streams/Connect."""

INBOUND_MESSAGES_PER_S: Final = 5
"""Messages a client may send on one socket: spot 5, futures 10. SPOT/web-socket-streams."""


AGG_TRADES_REACH_MS: Final = 48 * 3_600_000
"""How far back futures aggTrades go, ms. UM/market-data/rest-api/Compressed-Aggregate-Trades-List."""

WEIGHT_LIMIT_PER_MINUTE: Final[Mapping[Market, int]] = {Market.UM: 2_400, Market.SPOT: 6_000}
"""Request weight of one address and clock minute. UM/general-info, SPOT/rest-api/limits; the reply
of exchangeInfo (``rateLimits``) states the current value."""

USED_WEIGHT_HEADER: Final = "X-MBX-USED-WEIGHT-1M"
"""Weight used in this minute by this address, on every weighted reply. UM/general-info."""

LONGEST_BAN_S: Final = 3 * 86_400
"""Bans (418) last 2 minutes to 3 days. UM/general-info."""

SHORTEST_BAN_S: Final = 120


class StreamKind(enum.StrEnum):
    """The streams the bot uses."""

    AGG_TRADE = "aggTrade"
    DEPTH20 = "depth20@100ms"  # futures: ``@250ms`` is acknowledged and delivers nothing (measured)


class Route(enum.StrEnum):
    """One family of sockets each: futures serves trades and depth on two different paths."""

    TRADES = "trades"
    DEPTH = "depth"


class Endpoint(enum.StrEnum):
    """The REST endpoints the product uses, same names in both markets."""

    PING = "ping"
    TIME = "time"
    EXCHANGE_INFO = "exchangeInfo"
    AGG_TRADES = "aggTrades"
    KLINES = "klines"
    DEPTH = "depth"
    TICKER_PRICE = "ticker/price"
    TICKER_24HR = "ticker/24hr"
    ACCOUNT = "account"  # signed; used to find out whether the keys are good


# Since 2026-03-06 futures streams are routed; the unrouted paths still connect and acknowledge but
# deliver no aggTrade. UM/websocket-market-streams/Important-WebSocket-Change-Notice
_UM_ROUTE_PATH: Final[Mapping[Route, str]] = {Route.TRADES: "/market", Route.DEPTH: "/public"}
_BOOK_EVENTS: Final = ("depth", "bookTicker")
_REST_PREFIX: Final[Mapping[Market, str]] = {Market.UM: "/fapi/v1/", Market.SPOT: "/api/v3/"}
_UM_ACCOUNT_PATH: Final = "/fapi/v2/account"  # UM/account/rest-api/Account-Information-V2

# (largest limit, weight), ascending. UM/market-data/rest-api/Kline-Candlestick-Data (upper bounds
# measured: a limit of exactly 100, 500 or 1000 still costs the lower weight), …/Order-Book;
# SPOT/rest-api/market-data-endpoints
_UM_KLINES: Final = ((100, 1), (500, 2), (1_000, 5), (1_500, 10))
_UM_DEPTH: Final = ((50, 2), (100, 5), (500, 10), (1_000, 20))
_SPOT_DEPTH: Final = ((100, 5), (500, 25), (1_000, 50), (5_000, 250))
_TIERS: Final[Mapping[tuple[Market, Endpoint], tuple[tuple[int, int], ...]]] = {
    (Market.UM, Endpoint.KLINES): _UM_KLINES,
    (Market.UM, Endpoint.DEPTH): _UM_DEPTH,
    (Market.UM, Endpoint.AGG_TRADES): ((1_000, 20),),
    (Market.SPOT, Endpoint.KLINES): ((1_000, 2),),
    (Market.SPOT, Endpoint.DEPTH): _SPOT_DEPTH,
    (Market.SPOT, Endpoint.AGG_TRADES): ((1_000, 4),),
}
# For one symbol where the endpoint takes one. UM/market-data/rest-api, SPOT/rest-api
_FIXED_WEIGHT: Final[Mapping[tuple[Market, Endpoint], int]] = {
    (Market.UM, Endpoint.PING): 1,
    (Market.UM, Endpoint.TIME): 1,
    (Market.UM, Endpoint.EXCHANGE_INFO): 1,
    (Market.UM, Endpoint.TICKER_PRICE): 1,
    (Market.UM, Endpoint.TICKER_24HR): 1,
    (Market.UM, Endpoint.ACCOUNT): 5,
    (Market.SPOT, Endpoint.PING): 1,
    (Market.SPOT, Endpoint.TIME): 1,
    (Market.SPOT, Endpoint.EXCHANGE_INFO): 20,
    (Market.SPOT, Endpoint.TICKER_PRICE): 2,
    (Market.SPOT, Endpoint.TICKER_24HR): 2,
    (Market.SPOT, Endpoint.ACCOUNT): 20,
}

UM_DEPTH_LIMITS: Final = (5, 10, 20, 50, 100, 500, 1_000)
"""The only limits futures depth accepts. UM/market-data/rest-api/Order-Book."""


@lru_cache(maxsize=8_192)
def stream_name(kind: StreamKind, symbol: str) -> str:
    """``(AGG_TRADE, "BTCUSDT")`` → ``"btcusdt@aggTrade"``; symbols are lower case in stream names."""
    return f"{symbol.lower()}@{kind.value}"


def kline_stream_name(symbol: str, interval: str) -> str:
    """``("BTCUSDT", "1m")`` → ``"btcusdt@kline_1m"``."""
    return f"{symbol.lower()}@kline_{interval}"


def route_of(stream: str) -> Route:
    """The route that serves ``stream``: books on one, everything else on the other."""
    return Route.DEPTH if stream.partition("@")[2].startswith(_BOOK_EVENTS) else Route.TRADES


@lru_cache(maxsize=8_192)
def symbol_of(stream: str) -> str:
    """``"btcusdt@aggTrade"`` → ``"BTCUSDT"``."""
    return stream.partition("@")[0].upper()


def stream_url(market: Market, ws_base: str, route: Route, streams: Sequence[str]) -> str:
    """URL of a combined-stream socket.

    Args:
        market: Futures are routed by stream family, spot has one path for all.
        ws_base: Scheme and host, such as ``wss://fstream.binance.com``.
        route: Which family the streams belong to.
        streams: Names as ``stream_name`` writes them; at least one, at most
            ``MAX_STREAMS_PER_CONNECTION``.

    Raises:
        ValueError: No stream, or more than a socket may carry.
    """
    if not 1 <= len(streams) <= MAX_STREAMS_PER_CONNECTION:
        raise ValueError(
            f"a socket carries 1 to {MAX_STREAMS_PER_CONNECTION} streams, not {len(streams)}"
        )
    path = _UM_ROUTE_PATH[route] if market is Market.UM else ""
    return f"{ws_base.rstrip('/')}{path}/stream?streams={'/'.join(streams)}"


def rest_path(market: Market, endpoint: Endpoint) -> str:
    """``(UM, KLINES)`` → ``"/fapi/v1/klines"``."""
    if market is Market.UM and endpoint is Endpoint.ACCOUNT:
        return _UM_ACCOUNT_PATH
    return f"{_REST_PREFIX[market]}{endpoint.value}"


def max_limit(market: Market, endpoint: Endpoint) -> int | None:
    """Largest ``limit`` of an endpoint; ``None`` where there is no such parameter."""
    tiers = _TIERS.get((market, endpoint))
    return tiers[-1][0] if tiers else None


def request_weight(market: Market, endpoint: Endpoint, limit: int | None = None) -> int:
    """Weight of one request, for one symbol.

    Args:
        market: The market asked.
        endpoint: What is asked.
        limit: The ``limit`` sent; needed exactly where ``max_limit`` is not ``None``.

    Raises:
        ValueError: The limit is missing, superfluous or out of range.
    """
    tiers = _TIERS.get((market, endpoint))
    if tiers is None:
        if limit is not None:
            raise ValueError(f"{endpoint.value} takes no limit")
        return _FIXED_WEIGHT[market, endpoint]
    if limit is None or not 1 <= limit <= tiers[-1][0]:
        raise ValueError(f"limit of {endpoint.value} must be 1 to {tiers[-1][0]}, not {limit}")
    return next(weight for bound, weight in tiers if limit <= bound)
