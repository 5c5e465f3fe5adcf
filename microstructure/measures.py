"""The features of a model, one row per window of one symbol: the same code live and offline."""

from __future__ import annotations

from typing import Final

FEATURE_NAMES: Final = (
    *("flow_imbalance_1", "flow_imbalance_3", "flow_imbalance_12", "flow_imbalance_60"),
    *("delta_scaled", "net_flow_scaled_12", "trade_count_z", "volume_log_ratio"),
    *("ofi_1", "ofi_3", "ofi_12", "mlofi_1", "mlofi_3", "mlofi_12", "integrated_ofi"),
    *("queue_imbalance_1", "queue_imbalance_5", "queue_imbalance_10", "queue_imbalance_20"),
    *("queue_imbalance_mean", "spread_bps", "microprice_offset_bps"),
    *("bid_slope", "ask_slope", "slope_asymmetry"),
    *("depth_asymmetry_02bps", "depth_asymmetry_1bps", "depth_asymmetry_5bps"),
    *("mid_return_bps_1", "mid_return_bps_3", "mid_return_bps_12", "mid_return_bps_60"),
    *("volatility_bps_1", "volatility_bps_12", "volatility_bps_60"),
    *("trade_return_bps_1", "trade_return_bps_12"),
    *("toxicity_12", "toxicity_60", "kyle_lambda_60", "whale_share_12", "time_sin", "time_cos"),
)
LOOK_BACK_WINDOWS: Final = 61
LOOK_BACK_MS: Final = LOOK_BACK_WINDOWS * 5000
