"""The features of a model, one row per window of one symbol: the same code live and offline.

``BINS_DTYPE`` rows of consecutive windows → float32[n, F], NaN where undefined. A feature looks back
at most ``LOOK_BACK_WINDOWS`` windows, the own one included, and across no missing window. Sums over
windows run from the newest to the oldest, so that the last row of the last ``LOOK_BACK_WINDOWS`` rows
has the bits that it has within a whole day. ``_k`` in a name: over the last k windows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from microstructure.book import BPS
from microstructure.day_measures import MEASURE_NAMES, day_measures
from microstructure.ofi import integrated_ofi, principal_weights
from microstructure.window_bins import BINS_DTYPE, OFI_LEVELS, day_bins, window_bins

__all__ = [
    "BINS_DTYPE",
    "FEATURE_NAMES",
    "LOOK_BACK_MS",
    "LOOK_BACK_WINDOWS",
    "MEASURE_NAMES",
    "day_bins",
    "day_measures",
    "features_of",
    "window_bins",
]

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
WINDOW_MS: Final = 5000
LONGEST: Final = 60
LOOK_BACK_WINDOWS: Final = LONGEST + 1
"""Windows that the newest feature row needs: a return over 60 windows starts at the one before."""
LOOK_BACK_MS: Final = LOOK_BACK_WINDOWS * WINDOW_MS
"""The longest look-back with the usual windows of five seconds."""
_DAY_MS: Final = 86_400_000
_LEAST_COUNT_SD: Final = 1.0
_ROUNDING: Final = 1e-12  # share of a sum of squares below which its variance is rounding

type Floats = npt.NDArray[np.float64]


def features_of(bins: np.ndarray, window_ms: int = WINDOW_MS) -> npt.NDArray[np.float32]:
    """Features of consecutive windows.

    Args:
        bins: ``BINS_DTYPE`` rows of one symbol, ascending; windows may be missing.
        window_ms: Length of the windows.

    Returns:
        float32[n, F], columns as in ``FEATURE_NAMES``. Rows whose look-back is not whole hold NaN in
        the features that need it.
    """
    windows = _Windows(bins, window_ms)
    columns: dict[str, Floats] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        columns |= _flow(windows)
        columns |= _order_flow(windows)
        columns |= _book(bins)
        columns |= _prices(windows)
        columns |= _impact(windows)
        columns |= _time_of_day(bins, window_ms)
    features = np.stack([columns[name] for name in FEATURE_NAMES], axis=1).astype(np.float32)
    features[~np.isfinite(features)] = np.nan
    return features


class _Windows:
    """Rows of windows and sums over the last of them; NaN where windows are missing."""

    def __init__(self, bins: np.ndarray, window_ms: int) -> None:
        self.bins = bins
        starts = bins["start_ms"]
        place = np.arange(len(bins))
        first = np.zeros(len(bins), np.int64)
        first[1:] = np.where(starts[1:] - starts[:-1] != window_ms, place[1:], 0)
        self._reach = place - np.maximum.accumulate(first)
        self.base = bins["buy_base"] + bins["sell_base"]
        self.quote = bins["buy_quote"] + bins["sell_quote"]
        self.delta = bins["buy_base"] - bins["sell_base"]
        self.net_flow = bins["buy_quote"] - bins["sell_quote"]

    def total(self, column: npt.NDArray[np.float64 | np.int64], count: int) -> Floats:
        """Sum over the last ``count`` windows; columns of one or more dimensions."""
        total = column.astype(np.float64)
        for shift in range(1, min(count, len(column))):
            total[shift:] += column[:-shift]
        total[self._reach < count - 1] = np.nan
        return total

    def before(self, column: npt.NDArray[np.float64 | np.int64], shift: int) -> Floats:
        """The value ``shift`` windows ago."""
        earlier = np.full(column.shape, np.nan)
        if shift < len(column):
            earlier[shift:] = column[:-shift]
        earlier[self._reach < shift] = np.nan
        return earlier

    def centred(self, left: Floats, right: Floats, count: int) -> Floats:
        """Σ (x − x̄)(y − ȳ) over the last ``count`` windows."""
        left_mean, right_mean = self.total(left, count) / count, self.total(right, count) / count
        total = (left - left_mean) * (right - right_mean)
        for shift in range(1, min(count, len(left))):
            x, y = left[:-shift] - left_mean[shift:], right[:-shift] - right_mean[shift:]
            total[shift:] += x * y
        return total


def _flow(windows: _Windows) -> dict[str, Floats]:
    bins = windows.bins
    columns = {}
    for count in (1, 3, 12, LONGEST):
        base = windows.total(windows.base, count)
        share = windows.total(windows.delta, count) / base
        columns[f"flow_imbalance_{count}"] = np.where(base == 0.0, 0.0, share)
    mean_base = windows.total(windows.base, LONGEST) / LONGEST
    mean_quote = windows.total(windows.quote, LONGEST) / LONGEST
    columns["delta_scaled"] = windows.delta / mean_base
    columns["net_flow_scaled_12"] = windows.total(windows.net_flow, 12) / 12.0 / mean_quote
    columns["volume_log_ratio"] = np.log(windows.quote / mean_quote)
    trades = bins["trades"].astype(np.float64)
    mean = windows.before(windows.total(trades, LONGEST), 1) / LONGEST
    squares = windows.before(windows.centred(trades, trades, LONGEST), 1)
    deviation = np.maximum(np.sqrt(squares / (LONGEST - 1)), _LEAST_COUNT_SD)
    columns["trade_count_z"] = (trades - mean) / deviation
    for count in (12, LONGEST):
        moved = windows.total(np.abs(windows.delta), count)
        columns[f"toxicity_{count}"] = moved / windows.total(windows.base, count)
    whales = windows.total(bins["whale_quote"], 12)
    columns["whale_share_12"] = whales / windows.total(windows.quote, 12)
    return columns


def _order_flow(windows: _Windows) -> dict[str, Floats]:
    bins = windows.bins
    touch = np.where(bins["ofi_events"] > 0, bins["ofi"], np.nan)
    columns = {}
    for count in (1, 3, 12):
        snapshots = windows.total(bins["snapshots"], count)
        touch_depth = windows.total(bins["touch_depth"], count) / snapshots
        columns[f"ofi_{count}"] = windows.total(touch, count) / count / touch_depth
        depth = windows.total(bins["depth"], count) / windows.total(bins["depth_cells"], count)
        levels = windows.total(bins["mlofi"], count)
        columns[f"mlofi_{count}"] = _mean_of_levels(levels) / count / depth
    scaled = bins["mlofi"] / (bins["depth"] / bins["depth_cells"])[:, None]
    weights = _past_weights(windows, scaled)
    columns["integrated_ofi"] = integrated_ofi(scaled, weights)
    return columns


def _mean_of_levels(levels: Floats) -> Floats:
    total, known = np.zeros(len(levels)), np.zeros(len(levels))
    for level in range(levels.shape[1]):
        is_known = ~np.isnan(levels[:, level])
        total += np.where(is_known, levels[:, level], 0.0)
        known += is_known
    return np.where(known > 0, total / known, np.nan)


def _past_weights(windows: _Windows, scaled: Floats) -> Floats:
    """Weights of the levels from the 60 windows before each."""
    mean = windows.total(scaled, LONGEST) / LONGEST
    covariance = np.zeros((len(scaled), OFI_LEVELS, OFI_LEVELS))
    for shift in range(min(LONGEST, len(scaled))):
        past = scaled[: len(scaled) - shift] - mean[shift:]
        covariance[shift:] += past[:, :, None] * past[:, None, :]
    return principal_weights(windows.before(covariance / (LONGEST - 1), 1))


def _book(bins: np.ndarray) -> dict[str, Floats]:
    last = ("spread_bps", "microprice_offset_bps", "bid_slope", "ask_slope", "slope_asymmetry")
    columns = {name: bins[name] for name in last}
    columns["queue_imbalance_mean"] = bins["imbalance_sum"] / bins["snapshots"]
    for place, levels in enumerate((1, 5, 10, 20)):
        columns[f"queue_imbalance_{levels}"] = bins["queue_imbalance"][:, place]
    for place, band in enumerate(("02bps", "1bps", "5bps")):
        columns[f"depth_asymmetry_{band}"] = bins["depth_asymmetry"][:, place]
    return columns


def _prices(windows: _Windows) -> dict[str, Floats]:
    bins = windows.bins
    columns = {}
    for count in (1, 3, 12, LONGEST):
        earlier = windows.before(bins["mid_price"], count)
        columns[f"mid_return_bps_{count}"] = BPS * np.log(bins["mid_price"] / earlier)
    for count in (1, 12):
        earlier = windows.before(bins["last_price"], count)
        columns[f"trade_return_bps_{count}"] = BPS * np.log(bins["last_price"] / earlier)
    variance = np.where(bins["returns"] > 0, bins["variance"], np.nan)
    for count in (1, 12, LONGEST):
        mean = windows.total(variance, count) / count
        columns[f"volatility_bps_{count}"] = BPS * np.sqrt(mean)
    return columns


def _impact(windows: _Windows) -> dict[str, Floats]:
    """Kyle's λ over windows: bps of the mid per usual volume of a window, bought net."""
    mid = windows.bins["mid_price"]
    moves = BPS * np.log(mid / windows.before(mid, 1))
    variance = windows.centred(windows.net_flow, windows.net_flow, LONGEST)
    slope = windows.centred(windows.net_flow, moves, LONGEST) / variance
    usual = windows.total(windows.quote, LONGEST) / LONGEST
    squares = windows.total(windows.net_flow * windows.net_flow, LONGEST)
    return {"kyle_lambda_60": np.where(variance > _ROUNDING * squares, slope * usual, np.nan)}


def _time_of_day(bins: np.ndarray, window_ms: int) -> dict[str, Floats]:
    angle = 2.0 * np.pi * ((bins["start_ms"] + window_ms) % _DAY_MS) / _DAY_MS
    return {"time_sin": np.sin(angle), "time_cos": np.cos(angle)}
