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
_SPLIT = 1_000_000_000


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
    out[f"{name}_high"] = np.add.reduceat(quote // _SPLIT, first)
    out[f"{name}_low"] = np.add.reduceat(quote % _SPLIT, first)


def kline_rows(minutes: np.ndarray, spec: SymbolSpec, interval: str) -> list[str]:
    """REST rows (JSON arrays as text) of one interval; a silent candle repeats the last close.

    Layout: https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Kline-Candlestick-Data
    """
    if not len(minutes):
        return []
    bucket = open_times_ms(minutes["open_time_ms"], interval)
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    last = np.append(first[1:], len(minutes))
    out: list[str] = []
    expected = int(bucket[0])
    close = 0
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        opened = int(bucket[begin])
        while expected < opened:
            out.append(_silent_row(expected, close, spec, interval))
            expected = next_open_ms(expected, interval)
        out.append(_row(minutes[begin:end], opened, spec, interval))
        close = int(minutes["close"][end - 1])
        expected = next_open_ms(opened, interval)
    return out


def _row(part: np.ndarray, opened: int, spec: SymbolSpec, interval: str) -> str:
    def price(value: int) -> str:
        return decimal_text(int(value), spec.price_decimals)

    def quantity(value: int) -> str:
        return decimal_text(int(value), spec.quantity_decimals)

    def quote(name: str) -> str:
        total = int(part[f"{name}_high"].sum()) * _SPLIT + int(part[f"{name}_low"].sum())
        return decimal_text(total, spec.price_decimals + spec.quantity_decimals)

    closes = next_open_ms(opened, interval) - 1
    return (
        f'[{opened},"{price(part["open"][0])}","{price(part["high"].max())}",'
        f'"{price(part["low"].min())}","{price(part["close"][-1])}",'
        f'"{quantity(part["volume"].sum())}",{closes},"{quote("quote")}",'
        f'{int(part["fills"].sum())},"{quantity(part["taker_buy_volume"].sum())}",'
        f'"{quote("taker_quote")}","0"]'
    )


def _silent_row(opened: int, close: int, spec: SymbolSpec, interval: str) -> str:
    price = decimal_text(close, spec.price_decimals)
    zero = decimal_text(0, spec.quantity_decimals)
    quote = decimal_text(0, spec.price_decimals + spec.quantity_decimals)
    closes = next_open_ms(opened, interval) - 1
    prices = f'"{price}","{price}","{price}","{price}"'
    return f'[{opened},{prices},"{zero}",{closes},"{quote}",0,"{zero}","{quote}","0"]'
