"""What the exchange said, in the field's terms: one immutable value per message, and trades as columns.

Consumes nothing, produces the types every other part exchanges. Prices and quantities are exact:
``Decimal`` in single values, ``mantissa / 10**decimals`` in columns.
"""

from __future__ import annotations

import enum
from decimal import Decimal

import msgspec
import numpy as np

SCHEMA_VERSION = 1


class Side(enum.StrEnum):
    """Side of the aggressor (the taker)."""

    BUY = "BUY"
    SELL = "SELL"


class Market(enum.StrEnum):
    """A market of the exchange: USDⓈ-M futures or spot."""

    UM = "um"
    SPOT = "spot"


class AggTrade(msgspec.Struct, frozen=True, gc=False):
    """One aggregate trade: fills of one price and side (futures: within 100 ms).

    ``event_time_ms``, ``receive_time_ns`` and ``quantity_ex_rpi`` are ``None`` where the source
    (REST, archive) does not carry them.
    """

    symbol: str
    agg_trade_id: int
    price: Decimal
    quantity: Decimal
    first_trade_id: int
    last_trade_id: int
    transact_time_ms: int
    aggressor_side: Side
    event_time_ms: int | None = None
    receive_time_ns: int | None = None
    quantity_ex_rpi: Decimal | None = None


class DepthSnapshot(msgspec.Struct, frozen=True, gc=False):
    """The top of one book, best level first; levels are ``(price, quantity)``, nearest doubles.

    ``prev_final_update_id`` and ``transact_time_ms`` are the exchange's ``pu`` and ``T``; spot
    partial depth has neither, there the receive time stands in for the times and ids chain trivially.
    """

    symbol: str
    event_time_ms: int
    transact_time_ms: int
    receive_time_ns: int
    first_update_id: int
    final_update_id: int
    prev_final_update_id: int | None
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


class DepthTop(msgspec.Struct, frozen=True, gc=False):
    """One depth frame with only its best levels read: ``(price, quantity)``, None on an empty side.

    ``payload`` is the frame as received, which holds the other levels; the rest as in ``DepthSnapshot``.
    """

    symbol: str
    event_time_ms: int
    transact_time_ms: int
    receive_time_ns: int
    first_update_id: int
    final_update_id: int
    prev_final_update_id: int | None
    bid: tuple[float, float] | None
    ask: tuple[float, float] | None
    payload: bytes


class Kline(msgspec.Struct, frozen=True, gc=False):
    """One closed candle; prices and volumes as exact decimals."""

    symbol: str
    interval: str
    open_time_ms: int
    close_time_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal


NO_VALUE = -1
"""Stands for "absent" in the integer columns of ``TRADE_DTYPE`` that may lack a value."""

TRADE_DTYPE = np.dtype(
    [
        ("symbol_index", np.int32),  # position in the run's symbol list
        ("is_buyer_maker", np.bool_),  # True: the aggressor sold
        ("price_decimals", np.uint8),
        ("quantity_decimals", np.uint8),
        ("suspect", np.uint8),  # bit set of data_validator.Suspect
        ("agg_trade_id", np.int64),
        ("price", np.int64),  # exact: price / 10**price_decimals
        ("quantity", np.int64),  # exact: quantity / 10**quantity_decimals
        ("quantity_ex_rpi", np.int64),  # same decimals; NO_VALUE before 2025-12-31 and from REST
        ("first_trade_id", np.int64),
        ("last_trade_id", np.int64),
        ("transact_time_ms", np.int64),
        ("event_time_ms", np.int64),  # NO_VALUE from REST
        ("receive_time_ns", np.int64),  # NO_VALUE from REST
    ]
)
"""One aggregate trade per row. Arrays of this dtype are the currency of the hot path."""
