"""Candles from trades, exactly: minutes first, every other interval from minutes.

Consumes a ``Tape`` → produces minute rows in scaled integers and the REST rows of any interval.
Sums are int64 of scaled integers; a float never enters.
"""

from __future__ import annotations

import numpy as np

from domain.intervals import MINUTE_MS, next_open_ms, open_times_ms
from simulator.frames import SymbolSpec, Tape, decimal_text

MINUTE_DTYPE = np.dtype(
    [
        ("open_time_ms", np.int64),
        ("open", np.int64),  # price and quantity mantissas at the spec's decimals
        ("high", np.int64),
        ("low", np.int64),
        ("close", np.int64),
        ("volume", np.int64),
        ("taker_buy_volume", np.int64),
        ("fills", np.int64),
        # quote volumes are split so that a month of BTC cannot overflow int64
        ("quote_high", np.int64),
        ("quote_low", np.int64),
        ("taker_quote_high", np.int64),
        ("taker_quote_low", np.int64),
    ]
)
SPLIT = 1_000_000_000
_SUMMED = (
    *("volume", "taker_buy_volume", "fills"),
    *("quote_high", "quote_low", "taker_quote_high", "taker_quote_low"),
)


def _scaled(values: np.ndarray, decimals: np.ndarray, target: int) -> np.ndarray:
    power = np.power(10, target - decimals.astype(np.int64))
    scaled: np.ndarray = values * power
    return scaled


def minute_rows(tape: Tape, spec: SymbolSpec) -> np.ndarray:
    """Minute candles of a tape; minutes without a trade are left out.

    Returns:
        MINUTE_DTYPE[m], ascending.
    """
    if not len(tape):
        return np.empty(0, MINUTE_DTYPE)
    rows = tape.rows
    price = _scaled(rows["price"], rows["price_decimals"], spec.price_decimals)
    quantity = _scaled(rows["quantity"], rows["quantity_decimals"], spec.quantity_decimals)
    minute = rows["transact_time_ms"] // MINUTE_MS
    first = np.flatnonzero(np.diff(minute, prepend=minute[0] - 1))
    last = np.append(first[1:], len(rows)) - 1
    bought = ~rows["is_buyer_maker"]
    quote = price * quantity
    if int(price.max()) * int(quantity.max()) >= 2**62:  # eight decimals each, as on spot
        quote = price.astype(object) * quantity.astype(object)
    out = np.zeros(len(first), MINUTE_DTYPE)
    out["open_time_ms"] = minute[first] * MINUTE_MS
    out["open"], out["close"] = price[first], price[last]
    out["high"] = np.maximum.reduceat(price, first)
    out["low"] = np.minimum.reduceat(price, first)
    out["volume"] = np.add.reduceat(quantity, first)
    out["taker_buy_volume"] = np.add.reduceat(quantity * bought, first)
    out["fills"] = np.add.reduceat(rows["last_trade_id"] - rows["first_trade_id"] + 1, first)
    _split_sum(out, "quote", quote, first)
    _split_sum(out, "taker_quote", quote * bought, first)
    return out


def _split_sum(out: np.ndarray, name: str, quote: np.ndarray, first: np.ndarray) -> None:
    out[f"{name}_high"] = np.add.reduceat(quote // SPLIT, first)
    out[f"{name}_low"] = np.add.reduceat(quote % SPLIT, first)


def aggregated(minutes: np.ndarray, interval: str) -> np.ndarray:
    """Longer candles from shorter ones: MINUTE_DTYPE, one row per candle that has any."""
    if not len(minutes):
        return minutes
    bucket = open_times_ms(minutes["open_time_ms"], interval)
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    last = np.append(first[1:], len(minutes)) - 1
    out = np.zeros(len(first), MINUTE_DTYPE)
    out["open_time_ms"] = bucket[first]
    out["open"], out["close"] = minutes["open"][first], minutes["close"][last]
    out["high"] = np.maximum.reduceat(minutes["high"], first)
    out["low"] = np.minimum.reduceat(minutes["low"], first)
    for name in _SUMMED:
        out[name] = np.add.reduceat(minutes[name], first)
    return out


def kline_rows(minutes: np.ndarray, spec: SymbolSpec, interval: str) -> list[str]:
    """REST rows (JSON arrays as text) of one interval; a silent candle repeats the last close.

    Layout: https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Kline-Candlestick-Data
    """
    found = aggregated(minutes, interval)
    if not len(found):
        return []
    out: list[str] = []
    expected, close = int(found["open_time_ms"][0]), 0
    opens, closes = found["open_time_ms"].tolist(), found["close"].tolist()
    for opened, last, row in zip(opens, closes, rows_of(found, spec, interval), strict=True):
        while expected < opened:
            out.append(_silent_row(expected, close, spec, interval))
            expected = next_open_ms(expected, interval)
        out.append(row)
        close = last
        expected = next_open_ms(opened, interval)
    return out


def rows_of(found: np.ndarray, spec: SymbolSpec, interval: str) -> list[str]:
    """REST rows of candles as they are, MINUTE_DTYPE[n]."""
    price, size = spec.price_decimals, spec.quantity_decimals
    quote = price + size
    out = []
    columns = [found[name].tolist() for name in MINUTE_DTYPE.names or ()]
    for at, op, hi, lo, cl, volume, bought, fills, qh, ql, th, tl in zip(*columns, strict=True):
        out.append(
            f'[{at},"{decimal_text(op, price)}","{decimal_text(hi, price)}",'
            f'"{decimal_text(lo, price)}","{decimal_text(cl, price)}",'
            f'"{decimal_text(volume, size)}",{next_open_ms(at, interval) - 1},'
            f'"{decimal_text(qh * SPLIT + ql, quote)}",{fills},'
            f'"{decimal_text(bought, size)}","{decimal_text(th * SPLIT + tl, quote)}","0"]'
        )
    return out


def _silent_row(opened: int, close: int, spec: SymbolSpec, interval: str) -> str:
    price = decimal_text(close, spec.price_decimals)
    zero = decimal_text(0, spec.quantity_decimals)
    quote = decimal_text(0, spec.price_decimals + spec.quantity_decimals)
    closes = next_open_ms(opened, interval) - 1
    prices = f'"{price}","{price}","{price}","{price}"'
    return f'[{opened},{prices},"{zero}",{closes},"{quote}",0,"{zero}","{quote}","0"]'
