"""The endpoints served and what each request weighs, per market.

Consumes a query → produces its weight.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Endpoint(msgspec.Struct, frozen=True):
    """One path below the prefix, with its weight on either market."""

    name: str
    um_weight: Callable[[dict[str, str]], int]
    spot_weight: Callable[[dict[str, str]], int]


def _fixed(weight: int) -> Callable[[dict[str, str]], int]:
    return lambda _query: weight


def _tiers(default: int, *tiers: tuple[int, int]) -> Callable[[dict[str, str]], int]:
    """Weight by ``limit``: the first tier that is large enough, else the last."""

    def weight(query: dict[str, str]) -> int:
        text = query.get("limit", "")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
        return next((cost for bound, cost in tiers if limit <= bound), tiers[-1][1])

    return weight


def _per_symbol(one: int, every: int) -> Callable[[dict[str, str]], int]:
    return lambda query: one if "symbol" in query else every


# https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api and
# https://developers.binance.com/docs/binance-spot-api-docs/rest-api ; klines tiers as measured
_UM_KLINES = _tiers(500, (100, 1), (500, 2), (1000, 5), (1500, 10))
_UM_DEPTH = _tiers(500, (50, 2), (100, 5), (500, 10), (1000, 20))
_SPOT_DEPTH = _tiers(100, (100, 5), (500, 25), (1000, 50), (5000, 250))
ENDPOINTS = (
    Endpoint("ping", _fixed(1), _fixed(1)),
    Endpoint("time", _fixed(1), _fixed(1)),
    Endpoint("exchangeInfo", _fixed(1), _fixed(20)),
    Endpoint("aggTrades", _fixed(20), _fixed(4)),
    Endpoint("klines", _UM_KLINES, _fixed(2)),
    Endpoint("depth", _UM_DEPTH, _SPOT_DEPTH),
    Endpoint("ticker/price", _per_symbol(1, 2), _per_symbol(2, 4)),
    Endpoint("ticker/24hr", _per_symbol(1, 40), _per_symbol(2, 80)),
)
ACCOUNT = Endpoint("account", _fixed(5), _fixed(20))
"""The one signed endpoint; futures have it below another version than the rest."""
