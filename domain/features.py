"""The feature row: one per symbol, window and revision. Its fields ARE the stored columns, in order.

The contract's columns come first (documented in docs/reference.md); further ones are added at the
end. ``None`` is undefined (never NaN). Floats are the nearest double of the exact value.
"""

from __future__ import annotations

import msgspec

FEATURE_SCHEMA_VERSION = 1


class FeatureRow(msgspec.Struct, frozen=True, kw_only=True):
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
    # --- further columns are added here by data_pipeline ---
    schema_version: int = FEATURE_SCHEMA_VERSION
