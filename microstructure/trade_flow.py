"""Exact trade flow of windows that closed together, all symbols in one pass. Pure, no history.

Consumes a ``WindowBatch`` → produces one ``WindowSums`` per window, and the columns that rolling
measures build on. Every sum has the digits ``Decimal`` arithmetic would give. The caller promises
positive prices and quantities, ids ascending within a window, and times inside it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal, localcontext

import msgspec
import numpy as np
from numpy.typing import NDArray

from domain.flow import TradeSums, WindowBatch
from domain.market import NO_VALUE
from microstructure.scaled_trades import (
    EXACT,
    Exact,
    Floats,
    Ints,
    Mask,
    ScaledTrades,
    scale_trades,
)

QUOTIENT = Context(prec=50)
"""Ratios (VWAP, imbalance) are rounded once, to 50 significant digits."""

SECOND_MS = 1000
ZERO = Decimal(0)
_INT64_MAX = 2**63 - 1


class WhaleUnit(enum.StrEnum):
    """What is compared with the whale threshold: one aggTrade, or a sweep (same time and side)."""

    AGG_TRADE = "agg_trade"
    SWEEP = "sweep"


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed notional thresholds, quote units, ``>=`` is above; ``participant_edges`` ascending."""

    whale_notional: Decimal
    whale_unit: WhaleUnit
    participant_edges: tuple[Decimal, ...]


class WindowSums(TradeSums, frozen=True, kw_only=True, gc=False):
    """The sums of one symbol's window."""

    symbol_index: int


class Sweeps(msgspec.Struct, frozen=True):
    """Sweeps (aggTrades of one window with the same time and side), by window, then first id."""

    window: Ints  # position among the filled windows
    quote: Exact  # notional, in the window's quote unit
    notional: Floats  # notional, quote units
    volume: Exact  # in the window's quantity unit
    is_sell: Mask


class Seconds(msgspec.Struct, frozen=True):
    """Per-second columns, shape (filled windows, seconds the window touches).

    The first and last second are partial where a window does not begin or end on a second.
    """

    count: Ints  # aggTrades
    flow: Floats  # signed volume that met the visible book (no RPI fills), base units
    close: Floats  # last price by id, NaN without a trade
    side: NDArray[np.int8]  # aggressor sign of that trade, 0 without one


class FlowColumns(msgspec.Struct, frozen=True):
    """One batch, measured. "Filled" windows are those with trades, in batch order."""

    sums: list[WindowSums]  # of every window
    filled: list[int]  # positions of the filled windows in the batch
    trades: ScaledTrades
    sweeps: Sweeps
    seconds: Seconds


def measure_columns(batch: WindowBatch, thresholds: Thresholds) -> FlowColumns | None:
    """Measures the windows of a batch.

    Args:
        batch: Windows closed together; ``rows`` sorted by (window, ``agg_trade_id``).
        thresholds: Fixed notional thresholds.

    Returns:
        One ``WindowSums`` per entry of ``batch.symbol_index`` in its order, with the columns;
        None when no window has a trade.
    """
    lengths = batch.offsets[1:] - batch.offsets[:-1]
    filled = lengths.nonzero()[0]
    if filled.size == 0:
        return None
    first = batch.offsets[0]
    rows = batch.rows[first : batch.offsets[-1]]
    trades = scale_trades(rows, batch.offsets[filled] - first, lengths[filled])
    time_ms = np.ascontiguousarray(rows["transact_time_ms"])
    sweeps = _sweeps(batch, trades, time_ms)
    places = filled.tolist()
    with localcontext(EXACT):
        measured = iter(
            _window_sums(
                [batch.symbol_index[place] for place in places], rows, trades, sweeps, thresholds
            )
        )
    sums = [
        next(measured) if length else silent_sums(index, thresholds)
        for index, length in zip(batch.symbol_index, lengths.tolist(), strict=True)
    ]
    return FlowColumns(sums, places, trades, sweeps, _seconds(batch, rows, trades, time_ms))


def silent_sums(symbol_index: int, thresholds: Thresholds) -> WindowSums:
    """A window without trades: sums and imbalance 0, prices and ratios None."""
    nothing = (ZERO,) * (len(thresholds.participant_edges) + 1)
    return WindowSums(
        symbol_index=symbol_index,
        trade_count=0,
        fill_count=0,
        first_agg_id=None,
        last_agg_id=None,
        open=None,
        high=None,
        low=None,
        close=None,
        vwap=None,
        volume=ZERO,
        quote_volume=ZERO,
        buy_volume=ZERO,
        sell_volume=ZERO,
        delta=ZERO,
        net_flow_quote=ZERO,
        flow_imbalance=ZERO,
        whale_buy_volume=ZERO,
        whale_sell_volume=ZERO,
        whale_delta=ZERO,
        whale_count=0,
        suspect_count=0,
        participant_volume=nothing,
        participant_delta=nothing,
    )


def second_count(start_ms: int, end_ms: int) -> int:
    """How many seconds of the clock the interval ``[start_ms, end_ms)`` touches."""
    return -(-end_ms // SECOND_MS) - start_ms // SECOND_MS


def split_flow(
    chosen: Ints, window: Ints, volume: Exact, is_sell: Mask, windows: int
) -> tuple[list[int], list[int], list[int]]:
    """Buy volume, sell volume and count, per window, of the chosen trades or sweeps, exact."""
    if chosen.size == 0:
        return [0] * windows, [0] * windows, [0] * windows
    table = np.zeros(2 * windows, dtype=volume.dtype)
    np.add.at(table, 2 * window[chosen] + is_sell[chosen], volume[chosen])
    count: list[int] = np.bincount(window[chosen], minlength=windows).tolist()
    return table[::2].tolist(), table[1::2].tolist(), count


def _window_sums(
    symbol_index: list[int],
    rows: np.ndarray,
    trades: ScaledTrades,
    sweeps: Sweeps,
    thresholds: Thresholds,
) -> list[WindowSums]:
    """The sums of the filled windows; runs in the ``EXACT`` context."""
    starts, last = trades.starts, trades.starts + trades.counts - 1
    price, quantity, quote = trades.price, trades.quantity, trades.quote
    signed = quantity * trades.sign
    volumes, deltas = np.add.reduceat(quantity, starts), np.add.reduceat(signed, starts)
    ids = rows["agg_trade_id"]
    fills = np.add.reduceat(rows["last_trade_id"] - rows["first_trade_id"], starts) + trades.counts
    price_units, quantity_units = trades.price_units(), trades.quantity_units()
    quote_units = [p * q for p, q in zip(price_units, quantity_units, strict=True)]
    columns = zip(
        symbol_index,
        trades.counts.tolist(),
        fills.tolist(),
        ids[starts].tolist(),
        ids[last].tolist(),
        _decimals(price[starts], price_units),
        _decimals(np.maximum.reduceat(price, starts), price_units),
        _decimals(np.minimum.reduceat(price, starts), price_units),
        _decimals(price[last], price_units),
        _decimals(volumes, quantity_units),
        _decimals(deltas, quantity_units),
        _decimals((volumes + deltas) // 2, quantity_units),
        _decimals((volumes - deltas) // 2, quantity_units),
        _decimals(np.add.reduceat(quote, starts), quote_units),
        _decimals(np.add.reduceat(signed * price, starts), quote_units),
        zip(*_whale_flow(trades, sweeps, thresholds), strict=True),
        _suspects(rows["suspect"], starts),
        zip(*_participants(trades, thresholds.participant_edges), strict=True),
        quantity_units,
        strict=True,
    )
    return [
        WindowSums(
            symbol_index=index,
            trade_count=trade_count,
            fill_count=fill_count,
            first_agg_id=first_id,
            last_agg_id=last_id,
            open=open_price,
            high=high,
            low=low,
            close=close,
            vwap=QUOTIENT.divide(quote_volume, volume),
            volume=volume,
            quote_volume=quote_volume,
            buy_volume=buy_volume,
            sell_volume=sell_volume,
            delta=delta,
            net_flow_quote=net_flow,
            flow_imbalance=QUOTIENT.divide(delta, volume),
            whale_buy_volume=whale_buy * step,
            whale_sell_volume=whale_sell * step,
            whale_delta=(whale_buy - whale_sell) * step,
            whale_count=whale_count,
            suspect_count=suspects,
            participant_volume=tuple([value * step for value in bucket_volumes]),
            participant_delta=tuple([value * step for value in bucket_deltas]),
        )
        for (
            index, trade_count, fill_count, first_id, last_id, open_price, high, low, close,
            volume, delta, buy_volume, sell_volume, quote_volume, net_flow,
            (whale_buy, whale_sell, whale_count), suspects, (bucket_volumes, bucket_deltas), step,
        ) in columns
    ]  # fmt: skip


def _decimals(mantissas: Exact, units: Sequence[Decimal]) -> list[Decimal]:
    return [value * step for value, step in zip(mantissas.tolist(), units, strict=True)]


def _suspects(suspect: np.ndarray, starts: Ints) -> list[int]:
    marked = suspect != 0
    if not marked.any():
        return [0] * starts.size
    counts: list[int] = np.add.reduceat(marked, starts, dtype=np.int64).tolist()
    return counts


def _whale_flow(
    trades: ScaledTrades, sweeps: Sweeps, thresholds: Thresholds
) -> tuple[list[int], list[int], list[int]]:
    """Buy volume, sell volume and count per window above the fixed threshold."""
    windows, limits = trades.starts.size, _limits(trades, thresholds.whale_notional)
    if thresholds.whale_unit is WhaleUnit.SWEEP:
        chosen = (sweeps.quote >= _per_row(limits, sweeps.window)).nonzero()[0]
        return split_flow(chosen, sweeps.window, sweeps.volume, sweeps.is_sell, windows)
    chosen = (trades.quote >= _per_row(limits, trades.window)).nonzero()[0]
    return split_flow(chosen, trades.window, trades.quantity, trades.is_sell, windows)


def _participants(
    trades: ScaledTrades, edges: tuple[Decimal, ...]
) -> tuple[list[list[int]], list[list[int]]]:
    """Volume and delta per window and notional bucket, smallest bucket first."""
    bucket = np.zeros(trades.window.size, dtype=np.uint8)
    for edge in edges:
        bucket += trades.quote >= _per_row(_limits(trades, edge), trades.window)
    bucket += bucket
    bucket += trades.is_sell
    buckets, windows = len(edges) + 1, trades.starts.size
    key = trades.window * (2 * buckets)
    key += bucket
    table = np.zeros((windows, buckets, 2), dtype=trades.quantity.dtype)
    np.add.at(table.reshape(-1), key, trades.quantity)
    bought, sold = table[:, :, 0], table[:, :, 1]
    return (bought + sold).tolist(), (bought - sold).tolist()


def _limits(trades: ScaledTrades, threshold: Decimal) -> list[int]:
    """The smallest ``quote`` mantissa at or above a notional threshold, per window."""
    most = None if trades.is_wide else _INT64_MAX
    return [_limit(threshold, decimals, most) for decimals in trades.quote_decimals()]


@functools.lru_cache(maxsize=4096)
def _limit(threshold: Decimal, decimals: int, most: int | None) -> int:
    limit = int(threshold.scaleb(decimals, EXACT).to_integral_value(ROUND_CEILING, EXACT))
    return limit if most is None else min(limit, most)


def _per_row(limits: list[int], window: Ints) -> Exact | int:
    """The limit of each row's window; one number where all windows have the same."""
    if limits.count(limits[0]) == len(limits):
        return limits[0]
    return np.array(limits, dtype=np.int64 if max(limits) <= _INT64_MAX else object)[window]


def _sweeps(batch: WindowBatch, trades: ScaledTrades, time_ms: Ints) -> Sweeps:
    """Groups trades by window, time and side, whether or not they are adjacent."""
    is_sell = trades.is_sell
    key = trades.window * (batch.end_ms - batch.start_ms)
    key += time_ms
    buys, sells = (~is_sell).nonzero()[0], is_sell.nonzero()[0]
    if (key[1:] >= key[:-1]).all():
        order = np.concatenate((buys, sells))
    else:
        order = np.lexsort((key, is_sell))
    bought = buys.size
    key = key[order]
    begins = np.empty(key.size, dtype=np.bool_)
    begins[0] = True
    np.not_equal(key[1:], key[:-1], out=begins[1:])
    begins[bought : bought + 1] = True
    heads = begins.nonzero()[0]
    first = order[heads]
    by_id = _ranks(first, key.size)
    window = trades.window[first[by_id]]
    quote = np.add.reduceat(trades.quote[order], heads)[by_id]
    return Sweeps(
        window=window,
        quote=quote,
        notional=quote.astype(np.float64) / trades.quote_divisor()[window],
        volume=np.add.reduceat(trades.quantity[order], heads)[by_id],
        is_sell=(heads >= bought)[by_id],
    )


def _ranks(rows: Ints, size: int) -> Ints:
    """``argsort`` of distinct row numbers below ``size``, in linear time."""
    position = np.full(size, -1, dtype=np.int64)
    position[rows] = np.arange(rows.size)
    return position[position >= 0]


def _seconds(batch: WindowBatch, rows: np.ndarray, trades: ScaledTrades, time_ms: Ints) -> Seconds:
    width = second_count(batch.start_ms, batch.end_ms)
    shape = (trades.starts.size, width)
    size = shape[0] * width
    key = (time_ms - batch.start_ms // SECOND_MS * SECOND_MS) // SECOND_MS
    key += trades.window * width
    signed = trades.quantity.astype(np.float64)
    signed *= trades.sign
    _leave_rpi_out(signed, rows)
    flow = np.bincount(key, weights=signed, minlength=size).reshape(shape)
    flow /= trades.quantity_divisor()[:, np.newaxis]
    close, side = np.full(size, np.nan), np.zeros(size, np.int8)
    close[key] = trades.price_float  # the last of equal keys stays: ids ascend
    side[key] = trades.sign
    return Seconds(
        count=np.bincount(key, minlength=size).reshape(shape),
        flow=flow,
        close=close.reshape(shape),
        side=side.reshape(shape),
    )


def _leave_rpi_out(signed: Floats, rows: np.ndarray) -> None:
    """Scales each trade to the part that retail price improvement orders, no depth shows, left."""
    quantity, visible = rows["quantity"], rows["quantity_ex_rpi"]
    differs = visible != quantity
    if differs.any():
        places = (differs & (visible != NO_VALUE)).nonzero()[0]
        signed[places] *= visible[places] / quantity[places]
