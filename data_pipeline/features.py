"""Layer 4, Features: one flat, versioned row per window.

``EnrichedWindow`` + ``MarketContext`` + the z-scores' memory → ``FeatureRow``. z-scores compare a
window with complete past windows only, itself excluded. No NaN or infinity leaves this layer.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from math import isfinite
from operator import itemgetter
from zlib import crc32

import msgspec

from data_pipeline.context import WindowSample
from data_pipeline.enrich import EnrichedWindow
from data_pipeline.rolling import MISSING, RollingMoments
from data_pipeline.walls import Walls
from domain.context import MarketContext
from domain.features import FeatureRow
from domain.flow import FlowMetrics


class FeatureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the z-scores.

    Attributes:
        zscore_lookback_s: their look-back, s.
        zscore_minimum_windows: windows with a value needed in it before the first score.
    """

    zscore_lookback_s: int = 1800
    zscore_minimum_windows: int = 60


class ZScores(msgspec.Struct, frozen=True, gc=False):
    """Standard scores of one window; ``None`` while warming up or where the past does not vary."""

    delta: float | None
    volume: float | None
    net_flow_quote: float | None
    trade_count: float | None
    ofi: float | None
    spread_bps: float | None
    realized_vol: float | None


class ZScoreHistory:
    """Rolling mean and deviation of seven measures of one symbol.

    Windows that were incomplete or never came age the look-back without being counted in it.
    """

    __slots__ = ("_last_end_ms", "_minimum", "_moments", "_window_ms")

    def __init__(self, symbol: str, window_ms: int, settings: FeatureSettings) -> None:
        size = max(2, settings.zscore_lookback_s * 1000 // window_ms)
        phase = crc32(symbol.encode())
        self._window_ms = window_ms
        self._minimum = min(settings.zscore_minimum_windows, size)
        self._moments = tuple(RollingMoments(size, phase + 53 * index) for index in range(7))
        self._last_end_ms = -1

    def score(self, sample: WindowSample) -> ZScores:
        """Score a window against the past, without remembering it."""
        self._age_to(sample.start_ms)
        minimum = self._minimum
        delta, volume, net_flow, count, ofi, spread, vol = self._moments
        return ZScores(
            delta.z_score(sample.delta, minimum),
            volume.z_score(sample.volume, minimum),
            net_flow.z_score(sample.net_flow_quote, minimum),
            count.z_score(sample.trade_count, minimum),
            ofi.z_score(sample.ofi, minimum),
            spread.z_score(sample.spread_bps, minimum),
            vol.z_score(sample.realized_vol, minimum),
        )

    def remember(self, sample: WindowSample) -> None:
        """Add a window to the past."""
        self._age_to(sample.start_ms)
        self._last_end_ms = sample.end_ms
        delta, volume, net_flow, count, ofi, spread, vol = self._moments
        if sample.complete:
            delta.push(sample.delta)
            volume.push(sample.volume)
            net_flow.push(sample.net_flow_quote)
            count.push(float(sample.trade_count))
        else:  # partial sums would bias the past
            for moments in (delta, volume, net_flow, count):
                moments.push(MISSING)
        vol.push(MISSING if sample.realized_vol is None else sample.realized_vol)
        ofi.push(MISSING if sample.ofi is None else sample.ofi)
        spread.push(MISSING if sample.spread_bps is None else sample.spread_bps)

    def _age_to(self, start_ms: int) -> None:
        if self._last_end_ms < 0 or start_ms <= self._last_end_ms:
            return
        missed = (start_ms - self._last_end_ms) // self._window_ms
        for moments in self._moments:
            moments.skip(missed)
        self._last_end_ms = start_ms


def build_row(
    window: EnrichedWindow,
    context: MarketContext,
    scores: ZScores,
    walls: Walls,
    absorption: float | None,
    suspect: int | None,
    revision: int,
) -> tuple[FeatureRow, int]:
    """Lay one window out flat.

    Returns:
        The row, and how many optional values had to be dropped because they were not finite (a
        fault upstream: none is expected).
    """
    row = _row(window, context, scores, walls, absorption, suspect, revision)
    faults = _not_finite(row)
    if faults:
        row = msgspec.structs.replace(row, **dict.fromkeys(faults))
    return row, len(faults)


def _row(
    window: EnrichedWindow,
    context: MarketContext,
    scores: ZScores,
    walls: Walls,
    absorption: float | None,
    suspect: int | None,
    revision: int,
) -> FeatureRow:
    # By position, in the columns' order: 135 keywords cost msgspec 15-25 µs, positions 0.4 µs.
    m: FlowMetrics = window.metrics
    book, s = window.book, window.shape
    levels = context.levels
    bids, asks = (s.bids, s.asks) if s else (None, None)
    bid_wall, ask_wall = walls.bid, walls.ask
    return FeatureRow(
        m.symbol,
        m.window_start_ms,
        m.window_end_ms,
        revision,
        m.complete,
        m.missing_trades,
        m.trade_count,
        m.fill_count,
        m.first_agg_id,
        m.last_agg_id,
        window.open,
        window.high,
        window.low,
        window.close,
        window.vwap,
        window.volume,
        window.quote_volume,
        float(m.buy_volume),
        float(m.sell_volume),
        window.delta,
        float(m.cvd),
        window.net_flow_quote,
        float(m.flow_imbalance),
        float(m.whale_buy_volume),
        float(m.whale_sell_volume),
        float(m.whale_delta),
        m.whale_count,
        m.burst_count,
        m.suspect_count,
        m.cvd_anchor_ms,
        m.cvd_complete,
        window.realized_vol,
        s.spread_bps if s else None,
        s.microprice if s else None,
        s.imbalance_5 if s else None,  # book_imbalance
        book.ofi if book else None,
        book.depth_frames if book else 0,
        m.origin.value,
        book.ofi_restarts if book else None,
        s.mid_price if s else None,
        s.bid_price if s else None,
        s.bid_size if s else None,
        s.ask_price if s else None,
        s.ask_size if s else None,
        s.imbalance_1 if s else None,  # book_imbalance_1
        s.imbalance_10 if s else None,  # book_imbalance_10
        s.imbalance_20 if s else None,  # book_imbalance_20
        bids.within[0] if bids else None,  # depth_bid_1bps_quote
        bids.within[1] if bids else None,  # depth_bid_5bps_quote
        bids.within[2] if bids else None,  # depth_bid_10bps_quote
        bids.within[3] if bids else None,  # depth_bid_25bps_quote
        asks.within[0] if asks else None,  # depth_ask_1bps_quote
        asks.within[1] if asks else None,  # depth_ask_5bps_quote
        asks.within[2] if asks else None,  # depth_ask_10bps_quote
        asks.within[3] if asks else None,  # depth_ask_25bps_quote
        bids.total if bids else None,  # depth_bid_quote
        asks.total if asks else None,  # depth_ask_quote
        bids.reach_bps if bids else None,  # depth_bid_reach_bps
        asks.reach_bps if asks else None,  # depth_ask_reach_bps
        bid_wall.price if bid_wall else None,  # bid_wall_price
        bid_wall.size if bid_wall else None,  # bid_wall_size
        bid_wall.distance_bps if bid_wall else None,  # bid_wall_distance_bps
        walls.bid_age_s,  # bid_wall_age_s
        ask_wall.price if ask_wall else None,  # ask_wall_price
        ask_wall.size if ask_wall else None,  # ask_wall_size
        ask_wall.distance_bps if ask_wall else None,  # ask_wall_distance_bps
        walls.ask_age_s,  # ask_wall_age_s
        _float(m.net_flow_quote_1m),
        _float(m.net_flow_quote_5m),
        _float(m.net_flow_quote_15m),
        m.whale_threshold_quantile_notional,
        m.whale_quantile_count,
        _float(m.whale_quantile_delta),
        m.sweep_count,
        m.max_sweep_notional,
        m.trade_notional_q50,
        m.trade_notional_q90,
        m.trade_notional_q99,
        m.trade_notional_max,
        m.hill_alpha,
        tuple(map(float, m.participant_volume)),
        tuple(map(float, m.participant_delta)),
        m.arrival_z,
        absorption,
        context.price,
        context.session.value,
        _value(context.volatility_regime),
        context.volatility_1m,
        context.volatility_ratio,
        _value(context.trend_regime),
        context.trend_score,
        context.return_1m_bps,
        context.return_5m_bps,
        context.return_15m_bps,
        context.high_15m,
        context.low_15m,
        context.session_vwap,
        context.vwap_distance_bps,
        context.session_high,
        context.session_low,
        context.session_coverage_ratio,
        context.cvd_slope_5m,
        context.cvd_divergence,
        levels.high if levels else None,  # previous_high
        levels.low if levels else None,  # previous_low
        levels.close if levels else None,  # previous_close
        levels.pivot if levels else None,
        levels.r1 if levels else None,  # pivot_r1
        levels.r2 if levels else None,  # pivot_r2
        levels.r3 if levels else None,  # pivot_r3
        levels.s1 if levels else None,  # pivot_s1
        levels.s2 if levels else None,  # pivot_s2
        levels.s3 if levels else None,  # pivot_s3
        levels.poc if levels else None,  # profile_poc
        levels.vah if levels else None,  # profile_vah
        levels.val if levels else None,  # profile_val
        context.resistance_distance_bps,
        context.support_distance_bps,
        context.history_windows,
        scores.delta,  # delta_z
        scores.volume,  # volume_z
        scores.net_flow_quote,  # net_flow_quote_z
        scores.trade_count,  # trade_count_z
        scores.ofi,  # ofi_z
        scores.spread_bps,  # spread_bps_z
        scores.realized_vol,  # realized_vol_z
        m.trade_notional_gini,
        m.round_lot_ratio,
        None if suspect is None else int(suspect),  # window_suspect
    )


def _places_of_floats() -> list[int]:
    fields = msgspec.structs.fields(FeatureRow)
    return [k for k, field in enumerate(fields) if field.type in (float, float | None)]


_floats = itemgetter(*_places_of_floats())


def _not_finite(row: FeatureRow) -> list[str]:
    values = msgspec.structs.astuple(row)
    if isfinite(sum(filter(None, _floats(values)))):
        return []
    names = FeatureRow.__struct_fields__
    return [
        name
        for name, value in zip(names, values, strict=True)
        if isinstance(value, float) and not isfinite(value)
    ]


def _value(member: StrEnum | None) -> str | None:
    return None if member is None else member.value


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
