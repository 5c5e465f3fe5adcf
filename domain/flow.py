"""Windows and what was measured in them.

``WindowBatch`` carries the trades of every symbol whose window ended at one boundary; the flow
analyzer turns it into one ``FlowMetrics`` per symbol; the book accumulator adds a ``BookWindow``.
"""

from __future__ import annotations

import enum
from decimal import Decimal

import msgspec
import numpy as np

from domain.market import SCHEMA_VERSION, DepthSnapshot, Side


class Origin(enum.StrEnum):
    """How a window came to be: live, rebuilt after an outage, or emitted again with new content."""

    LIVE = "live"
    RECOVERED = "recovered"
    REVISED = "revised"


class WindowBatch(msgspec.Struct, frozen=True):
    """The windows ``[start_ms, end_ms)`` of several symbols, closed together.

    ``rows`` is ``TRADE_DTYPE`` sorted by (position in ``symbol_index``, ``agg_trade_id``); the
    trades of window i are ``rows[offsets[i]:offsets[i + 1]]`` (empty for a silent window).
    """

    start_ms: int
    end_ms: int
    symbol_index: list[int]
    offsets: np.ndarray  # int64[n + 1]
    rows: np.ndarray  # TRADE_DTYPE
    complete: list[bool]
    missing_trades: list[int | None]  # None: extent unknown
    origin: Origin


class WhalePrint(msgspec.Struct, frozen=True, gc=False):
    """One whale's trade: an aggTrade on futures, on spot a sweep (its total, and its last price)."""

    transact_time_ms: int
    aggressor_side: Side
    price: Decimal
    quantity: Decimal


class TradeSums(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one window's trades alone say, exact.

    Volumes, ``delta`` and whale volumes are base units; names with ``quote`` are quote units. Empty
    window: sums 0, ``flow_imbalance`` 0, prices and ratios None. Formulas: docs/reference.md.
    """

    trade_count: int
    fill_count: int
    first_agg_id: int | None
    last_agg_id: int | None
    open: Decimal | None
    high: Decimal | None
    low: Decimal | None
    close: Decimal | None
    vwap: Decimal | None
    volume: Decimal
    quote_volume: Decimal
    buy_volume: Decimal
    sell_volume: Decimal
    delta: Decimal
    net_flow_quote: Decimal
    flow_imbalance: Decimal  # (buy - sell) / (buy + sell), 50 digits
    whale_buy_volume: Decimal
    whale_sell_volume: Decimal
    whale_delta: Decimal
    whale_count: int
    suspect_count: int
    participant_volume: tuple[Decimal, ...]  # base volume per notional bucket, smallest first
    participant_delta: tuple[Decimal, ...]


class FlowMetrics(TradeSums, frozen=True, kw_only=True, gc=False):
    """Order flow of one symbol in one window: its sums, and what they are beside the past.

    ``cvd`` is base units; names with ``quote`` or ``notional`` are quote units.
    """

    symbol: str
    window_start_ms: int
    window_end_ms: int
    origin: Origin
    complete: bool
    missing_trades: int | None
    cvd: Decimal
    cvd_anchor_ms: int
    cvd_complete: bool
    # --- rolling and statistical measures (finite look-backs; None while warming up) ---
    burst_count: int
    net_flow_quote_1m: Decimal | None
    net_flow_quote_5m: Decimal | None
    net_flow_quote_15m: Decimal | None
    whale_threshold_quantile_notional: float | None  # rolling-quantile sweep threshold
    whale_quantile_count: int | None
    whale_quantile_delta: Decimal | None
    sweep_count: int
    max_sweep_notional: float | None
    trade_notional_q50: float | None
    trade_notional_q90: float | None
    trade_notional_q99: float | None
    trade_notional_max: float | None
    hill_alpha: float | None
    trade_notional_gini: float | None = None  # 0: all of one size, towards 1: a few hold everything
    round_lot_ratio: float | None = None  # share of trades that are whole round lots
    arrival_z: float | None
    second_closes: tuple[float | None, ...]  # last price of each second of the window
    second_sides: tuple[int, ...] = ()  # aggressor sign of that trade, 0 without one
    second_flows: tuple[float, ...] = ()  # its signed volume without RPI fills, base units
    schema_version: int = SCHEMA_VERSION


class BookWindow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The order book over one window. ``ofi`` is level 1, base units; None without two snapshots."""

    symbol: str
    window_start_ms: int
    window_end_ms: int
    depth_frames: int
    ofi: float | None
    ofi_restarts: int
    last: DepthSnapshot | None
