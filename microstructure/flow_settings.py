"""What the flow analyzer can be told: thresholds and look-backs, checked when they are made."""

from __future__ import annotations

import itertools
from decimal import Decimal

import msgspec

from microstructure.flow_history import BurstSettings
from microstructure.trade_flow import Thresholds, WhaleUnit

_MOST_EDGES = 100


class FlowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds and look-backs; notionals in quote units.

    ``whale_unit`` is ``AGG_TRADE`` on futures, where an aggTrade joins fills of 100 ms, and
    ``SWEEP`` on spot, where one taker order gives one aggTrade per price.

    Attributes:
        whale_notional: a trade of at least this notional is a whale's.
        whale_unit: what a trade is for that.
        participant_edges: notionals that separate the buckets of participant_*, ascending.
        whale_quantile: quantile of past sweeps that whale_threshold_quantile_notional is (0-1).
        whale_quantile_sweeps: past sweeps it is taken over.
        whale_quantile_minimum: sweeps needed before the first one.
        whale_quantile_floor: least value it can take, quote units.
        size_trades: past trades behind trade_notional_q* and _gini, hill_alpha and round_lot_ratio.
        size_minimum: trades needed before the first of them.
        round_lot_steps: quantity steps that make a round lot.
        burst: of the arrival bursts.
    """

    whale_notional: Decimal = Decimal(100_000)
    whale_unit: WhaleUnit = WhaleUnit.AGG_TRADE
    participant_edges: tuple[Decimal, ...] = (
        Decimal(1_000),
        Decimal(10_000),
        Decimal(100_000),
        Decimal(1_000_000),
    )
    whale_quantile: float = 0.99
    whale_quantile_sweeps: int = 5000
    whale_quantile_minimum: int = 500
    whale_quantile_floor: float = 0.0
    size_trades: int = 500
    size_minimum: int = 100
    round_lot_steps: int = 100
    burst: BurstSettings = BurstSettings()

    def __post_init__(self) -> None:
        edges = self.participant_edges
        if any(low >= high for low, high in itertools.pairwise(edges)):
            message = f"participant_edges must ascend: {', '.join(map(str, edges))}"
            raise ValueError(message)
        if len(edges) > _MOST_EDGES:
            raise ValueError(f"participant_edges: at most {_MOST_EDGES}, not {len(edges)}")
        if not 0.0 < self.whale_quantile < 1.0:
            raise ValueError(f"whale_quantile must lie between 0 and 1: {self.whale_quantile}")
        if not 1 <= self.whale_quantile_minimum <= self.whale_quantile_sweeps:
            raise ValueError("whale_quantile_minimum must lie between 1 and whale_quantile_sweeps")
        if not 1 <= self.size_minimum <= self.size_trades:
            raise ValueError("size_minimum must lie between 1 and size_trades")
        if self.round_lot_steps < 1 or self.burst.half_life_s <= 0.0 or self.burst.limit <= 0.0:
            raise ValueError("round_lot_steps, half_life_s and limit of burst must be positive")

    def thresholds(self) -> Thresholds:
        """The fixed thresholds among them."""
        return Thresholds(
            whale_notional=self.whale_notional,
            whale_unit=self.whale_unit,
            participant_edges=self.participant_edges,
        )
