"""The two large REST replies: exchangeInfo and the 24-hour ticker.

Consumes symbol grids and minute candles → produces JSON text in the venue's layout.
https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Exchange-Information
"""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal

import msgspec
import numpy as np

from domain.market import Market
from simulator.frames import SymbolSpec, decimal_text

_QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "TUSD", "BTC", "ETH", "BNB")


def split_symbol(symbol: str) -> tuple[str, str]:
    """Base and quote asset of a symbol name."""
    for quote in _QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol.removesuffix(quote), quote
    return symbol, "USDT"


def exchange_info(
    specs: list[SymbolSpec],
    now_ms: int,
    market: Market,
    limit: int,
    halted: Collection[str] = (),
) -> str:
    """The reply of ``exchangeInfo`` for these symbols."""
    weight = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1}
    rows = [_spot_symbol(spec) if market is Market.SPOT else _um_symbol(spec) for spec in specs]
    for row in rows:
        if row["symbol"] in halted:
            row["status"] = "BREAK" if market is Market.SPOT else "SETTLING"
    reply: dict[str, object] = {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [{**weight, "limit": limit}],
        "exchangeFilters": [],
        "symbols": rows,
    }
    if market is Market.UM:
        reply["futuresType"] = "U_MARGINED"
        reply["assets"] = []
    return msgspec.json.encode(reply).decode()


def _filters(spec: SymbolSpec, notional: dict[str, str]) -> list[dict[str, str]]:
    lot = {"minQty": spec.step_size, "maxQty": "10000000", "stepSize": spec.step_size}
    price = {"minPrice": spec.tick_size, "maxPrice": "100000000", "tickSize": spec.tick_size}
    return [
        {"filterType": "PRICE_FILTER", **price},
        {"filterType": "LOT_SIZE", **lot},
        {"filterType": "MARKET_LOT_SIZE", **lot},
        notional,
    ]


def _um_symbol(spec: SymbolSpec) -> dict[str, object]:
    base, quote = split_symbol(spec.symbol)
    return {
        "symbol": spec.symbol,
        "pair": spec.symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": quote,
        "pricePrecision": spec.price_decimals,
        "quantityPrecision": spec.quantity_decimals,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "filters": _filters(spec, {"filterType": "MIN_NOTIONAL", "notional": "5"}),
        "orderTypes": ["LIMIT", "MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
    }


def _spot_symbol(spec: SymbolSpec) -> dict[str, object]:
    base, quote = split_symbol(spec.symbol)
    return {
        "symbol": spec.symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": _filters(spec, {"filterType": "NOTIONAL", "minNotional": "5.00000000"}),
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def day_ticker(
    symbol: str, minutes: np.ndarray, last: np.void, spec: SymbolSpec, now_ms: int
) -> str:
    """The reply of ``ticker/24hr``: the last 24 hours in minute candles, to the last trade."""
    places = spec.price_decimals + spec.quantity_decimals

    def price(mantissa: int) -> Decimal:
        return Decimal(int(mantissa)).scaleb(-spec.price_decimals)

    volume = Decimal(int(minutes["volume"].sum())).scaleb(-spec.quantity_decimals)
    quote_sum = int(minutes["quote_high"].sum()) * 1_000_000_000 + int(minutes["quote_low"].sum())
    quote_volume = Decimal(quote_sum).scaleb(-places)
    opened, close = price(minutes["open"][0]), price(minutes["close"][-1])
    values: dict[str, object] = {
        "symbol": symbol,
        "priceChange": str(close - opened),
        "priceChangePercent": f"{(close - opened) / opened * 100:.3f}",
        "weightedAvgPrice": f"{quote_volume / volume:.{spec.price_decimals}f}",
        "lastPrice": str(close),
        "lastQty": decimal_text(int(last["quantity"]), int(last["quantity_decimals"])),
        "openPrice": str(opened),
        "highPrice": str(price(minutes["high"].max())),
        "lowPrice": str(price(minutes["low"].min())),
        "volume": str(volume),
        "quoteVolume": f"{quote_volume:.2f}",
        "openTime": int(minutes["open_time_ms"][0]),
        "closeTime": now_ms,
        "firstId": int(last["last_trade_id"]) - int(minutes["fills"].sum()) + 1,
        "lastId": int(last["last_trade_id"]),
        "count": int(minutes["fills"].sum()),
    }
    return msgspec.json.encode(values).decode()
