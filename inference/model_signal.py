"""A model's prediction as a signal: the likeliest class is the action."""

from __future__ import annotations

import math
from typing import Final

from domain.events import Action, Signal
from domain.model_card import SMOOTH, ModelCard
from inference.model import Prediction

EVIDENCE: Final = (
    *("spread_bps", "ofi_1", "ofi_12", "queue_imbalance_5", "microprice_offset_bps"),
    *("flow_imbalance_1", "flow_imbalance_12", "mid_return_bps_12", "volatility_bps_12"),
)
_ACTIONS: Final = (Action.SELL, Action.HOLD, Action.BUY)


def model_signal(
    card: ModelCard,
    found: Prediction,
    *,
    price: float | None,
    decided_at_ms: int,
    latency_ms: float,
) -> Signal:
    """The signal of source ``model:NAME``.

    Args:
        card: Of the model.
        found: What it says.
        price: Last price of the window.
        decided_at_ms: By the exchange's clock.
        latency_ms: From the window's close to the answer.
    """
    shares = (found.p_down, found.p_flat, found.p_up)
    likeliest = max(range(3), key=shares.__getitem__)
    action = _ACTIONS[likeliest]
    evidence: dict[str, float | None] = {"price": price}
    for name in EVIDENCE:
        value = found.features[name]
        evidence[name] = None if math.isnan(value) else value
    return Signal(
        signal_id=f"model:{card.name}:{found.symbol}:{found.decision_ms}",
        symbol=found.symbol,
        window_end_ms=found.decision_ms,
        decided_at_ms=decided_at_ms,
        price=price,
        action=action,
        confidence=shares[likeliest],
        p_up=found.p_up,
        p_flat=found.p_flat,
        p_down=found.p_down,
        horizon_s=card.horizon_s,
        rationale=(
            f"{action.value}: up {found.p_up:.0%}, flat {found.p_flat:.0%}, down "
            f"{found.p_down:.0%} within {card.horizon_s} s"
        ),
        evidence=evidence,
        invalidation=_invalidation(card, action, price, found.symbol),
        source=f"model:{card.name}",
        model=card.model_sha256[:12],
        template_version=card.input_version,
        latency_ms=latency_ms,
        context_hash=found.input_hash,
    )


def _invalidation(
    card: ModelCard, action: Action, price: float | None, symbol: str
) -> float | None:
    """Where a smoothed move of the other class begins; unknown for barriers, whose width varies."""
    if action is Action.HOLD or price is None or card.label != SMOOTH:
        return None
    distance = price * card.thresholds[symbol]
    return price - distance if action is Action.BUY else price + distance
