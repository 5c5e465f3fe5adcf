"""The feature row: one per symbol, window and revision. Its fields ARE the stored columns, in order.

The contract's columns come first (documented in docs/reference.md); further ones are added at the
end. ``None`` is undefined or still warming up (never NaN). Floats are the nearest double of the
exact value. Suffixes: ``_bps`` basis points, ``_quote``/``_notional`` quote units, ``_z`` standard
deviations; other sizes and flows are base units, other prices quote units.
"""

from __future__ import annotations

import msgspec

FEATURE_SCHEMA_VERSION = 1


class FeatureRow(msgspec.Struct, frozen=True, gc=False):
    """One row of the feature store. Units in docs/reference.md."""

    symbol: str
    window_start_ms: int
    window_end_ms: int
    revision: int
    complete: bool
    missing_trades: int | None
    trade_count: int
    fill_count: int
    first_agg_id: int | None
    last_agg_id: int | None
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    vwap: float | None
    volume: float
    quote_volume: float
    buy_volume: float
    sell_volume: float
    delta: float
    cvd: float
    net_flow_quote: float
    flow_imbalance: float
    whale_buy_volume: float
    whale_sell_volume: float
    whale_delta: float
    whale_count: int
    burst_count: int
    suspect_count: int
    cvd_anchor_ms: int
    cvd_complete: bool
    realized_vol: float | None
    spread_bps: float | None
    microprice: float | None
    book_imbalance: float | None
    ofi: float | None
    depth_frames: int
    origin: str  # live | recovered | revised
    # --- further columns; None where undefined or warming up ---
    # the book at the last snapshot; imbalances as book_imbalance (5 levels), over 1, 10, 20 levels
    ofi_restarts: int | None = None
    mid_price: float | None = None
    bid_price: float | None = None
    bid_size: float | None = None
    ask_price: float | None = None
    ask_size: float | None = None
    book_imbalance_1: float | None = None
    book_imbalance_10: float | None = None
    book_imbalance_20: float | None = None
    # resting notional within a distance of the mid; a lower bound where the reach is shorter
    depth_bid_1bps_quote: float | None = None
    depth_bid_5bps_quote: float | None = None
    depth_bid_10bps_quote: float | None = None
    depth_bid_25bps_quote: float | None = None
    depth_ask_1bps_quote: float | None = None
    depth_ask_5bps_quote: float | None = None
    depth_ask_10bps_quote: float | None = None
    depth_ask_25bps_quote: float | None = None
    depth_bid_quote: float | None = None  # all levels of the snapshot
    depth_ask_quote: float | None = None
    depth_bid_reach_bps: float | None = None  # distance of the snapshot's last level
    depth_ask_reach_bps: float | None = None
    bid_wall_price: float | None = None
    bid_wall_size: float | None = None
    bid_wall_distance_bps: float | None = None
    bid_wall_age_s: float | None = None  # in the last snapshots; 3 s at least
    ask_wall_price: float | None = None
    ask_wall_size: float | None = None
    ask_wall_distance_bps: float | None = None
    ask_wall_age_s: float | None = None
    # flow over longer look-backs and its distribution, from the flow analyzer
    net_flow_quote_1m: float | None = None
    net_flow_quote_5m: float | None = None
    net_flow_quote_15m: float | None = None
    whale_threshold_quantile_notional: float | None = None
    whale_quantile_count: int | None = None
    whale_quantile_delta: float | None = None
    sweep_count: int | None = None
    max_sweep_notional: float | None = None
    trade_notional_q50: float | None = None
    trade_notional_q90: float | None = None
    trade_notional_q99: float | None = None
    trade_notional_max: float | None = None
    hill_alpha: float | None = None
    participant_volume: tuple[float, ...] = ()  # per notional bucket, smallest first
    participant_delta: tuple[float, ...] = ()
    arrival_z: float | None = None
    absorption: float | None = None
    # context at the window's end; see domain.context.MarketContext
    price: float | None = None  # last trade, carried through silent windows
    session: str | None = None
    volatility_regime: str | None = None
    volatility_1m: float | None = None
    volatility_ratio: float | None = None
    trend_regime: str | None = None
    trend_score: float | None = None
    return_1m_bps: float | None = None
    return_5m_bps: float | None = None
    return_15m_bps: float | None = None
    high_15m: float | None = None
    low_15m: float | None = None
    session_vwap: float | None = None
    vwap_distance_bps: float | None = None
    session_high: float | None = None
    session_low: float | None = None
    session_coverage_ratio: float | None = None
    cvd_slope_5m: float | None = None  # base units per minute
    cvd_divergence: int | None = None  # -1 bearish, 0 none, 1 bullish
    previous_high: float | None = None  # the previous UTC day
    previous_low: float | None = None
    previous_close: float | None = None
    pivot: float | None = None
    pivot_r1: float | None = None
    pivot_r2: float | None = None
    pivot_r3: float | None = None
    pivot_s1: float | None = None
    pivot_s2: float | None = None
    pivot_s3: float | None = None
    profile_poc: float | None = None
    profile_vah: float | None = None
    profile_val: float | None = None
    resistance_distance_bps: float | None = None  # to the nearest level above the price
    support_distance_bps: float | None = None  # to the nearest level at or below it
    history_windows: int | None = None  # windows without a hole behind the look-backs, this one too
    # z-scores against past windows only
    delta_z: float | None = None
    volume_z: float | None = None
    net_flow_quote_z: float | None = None
    trade_count_z: float | None = None
    ofi_z: float | None = None
    spread_bps_z: float | None = None
    realized_vol_z: float | None = None
    trade_notional_gini: float | None = None
    round_lot_ratio: float | None = None
    window_suspect: int | None = None  # bits: 1 open far from the close before, 2 return an outlier
    schema_version: int = FEATURE_SCHEMA_VERSION
