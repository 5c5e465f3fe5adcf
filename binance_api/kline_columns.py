"""A reply of klines (bytes) → numpy columns in one go, without an object per candle. Pure.

Every page has one layout: take its digits and dots away and the same text is left for each candle.
One comparison therefore checks the whole syntax, and the numbers are one flat list. A reply of any
other layout goes through the exact decoder of single candles. Floats are the nearest doubles.
https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Kline-Candlestick-Data
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from binance_api.rest_replies import decode_klines
from domain.market import Kline

type KlineColumns = dict[str, np.ndarray]
"""``KLINE_COLUMNS`` in this order: int64 for times (ms) and counts, float64 for the rest."""

KLINE_COLUMNS: Final = (
    *("open_time_ms", "open", "high", "low", "close", "volume", "close_time_ms", "quote_volume"),
    *("trade_count", "taker_buy_volume", "taker_buy_quote_volume"),
)
_INTEGERS: Final = frozenset({"open_time_ms", "close_time_ms", "trade_count"})
_ROW: Final = b'[,"","","","","",,"",,"","",""]'  # the last one is the field to ignore
_ROW_NUMBERS: Final = 12
_LARGEST: Final = 1e40  # as in ``rest_replies``
_MAX_ROWS: Final = 100_000

_numbers = msgspec.json.Decoder(list[float])


def decode_kline_columns(body: bytes) -> KlineColumns:
    """Columns of the candles in the order sent, the open one included if it was sent.

    Raises:
        ValueError: The body is no array of candles.
    """
    table = _usual_layout(body)
    if table is None:
        return columns_of(decode_klines(body, "", ""))
    return {
        name: values.astype(np.int64) if name in _INTEGERS else values
        for name, values in zip(KLINE_COLUMNS, table, strict=False)
    }


def columns_of(bars: Sequence[Kline]) -> KlineColumns:
    """Candles as columns: each number the nearest double of the exact one."""
    return {
        name: np.array(
            [getattr(bar, name) for bar in bars], np.int64 if name in _INTEGERS else np.float64
        )
        for name in KLINE_COLUMNS
    }


def empty_columns() -> KlineColumns:
    """No candle."""
    return columns_of(())


def joined(pieces: Sequence[KlineColumns]) -> KlineColumns:
    """Pieces one after the other."""
    if not pieces:
        return empty_columns()
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in KLINE_COLUMNS}


def _usual_layout(body: bytes) -> np.ndarray | None:
    """All numbers as float64[12, n]; ``None`` if the layout is another one."""
    marks = body.translate(None, b"0123456789.")
    count = len(marks) // (len(_ROW) + 1)
    if not 0 < count <= _MAX_ROWS or marks != b"[" + b",".join([_ROW] * count) + b"]":
        return None
    try:
        numbers = array("d", _numbers.decode(b"[" + body.translate(None, b'[]"') + b"]"))
    except msgspec.DecodeError:
        return None
    values = np.frombuffer(numbers, np.float64)
    if len(values) != count * _ROW_NUMBERS or not (values < _LARGEST).all():
        return None
    table = np.ascontiguousarray(values.reshape(count, _ROW_NUMBERS).T)
    whole = table[[KLINE_COLUMNS.index(name) for name in sorted(_INTEGERS)]]
    return table if (whole == np.floor(whole)).all() else None
