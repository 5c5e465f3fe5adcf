"""The rules analyst: one deterministic reading of a feature row, the baseline for every other one.

``FeatureRow`` + ``MarketContext`` → ``Signal``, HOLD included. Seven terms between −1 (down) and 1
(up) are weighted into a score; what is unknown contributes nothing. The probabilities are a fixed
mapping of the score, not calibrated on outcomes. Same input, same signal, whenever it is asked.

Term (weight)       Reading
trend (0.20)        tanh(trend_score / 2): drift of the last 30 minutes against its noise
flow (0.20)         tanh(net_flow_quote_z / 3): aggressive buying unusual for the last half hour
book (0.20)         book_imbalance over 5 levels at the window's end
ofi (0.15)          tanh(ofi_z / 3): quotes added and taken during the window
whales (0.10)       whale_delta / volume; nothing when no whale traded
divergence (0.075)  cvd_divergence: a new price extreme that the flow did not follow
absorption (0.075)  −sign(delta) · tanh(absorption / 3) where absorption > 0: flow that moved the
                    price less than it should have met resting interest of the other side
"""

from __future__ import annotations

import hashlib
from math import copysign, exp, sqrt, tanh

import msgspec

from domain.context import MarketContext
from domain.events import Action, Signal
from domain.features import FeatureRow

MODEL = "rules-1"
SOURCE = "rules"

_WEIGHTS = {
    "trend": 0.2,
    "flow": 0.2,
    "book": 0.2,
    "ofi": 0.15,
    "whales": 0.1,
    "divergence": 0.075,
    "absorption": 0.075,
}
_ENCODER = msgspec.json.Encoder(order="deterministic")


class RulesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a score becomes probabilities, an action and a price at which it is void.

    ``(p_up, p_flat, p_down)`` is the softmax of ``(gain · score, flat_bias, −gain · score)``, so
    BUY or SELL are the likeliest from ``|score| = flat_bias / gain`` (0.2) on. The invalidation
    lies beyond the 15-minute extreme against the position, but between one and three times
    ``invalidation_sigmas`` standard deviations of the horizon away.

    Attributes:
        horizon_s: time a signal looks ahead, s.
        gain: how sharply the score turns into probabilities.
        flat_bias: weight of "flat": BUY or SELL from a score of flat_bias / gain on.
        invalidation_sigmas: least distance of the invalidation price, deviations of the horizon.
    """

    horizon_s: int = 60
    gain: float = 2.0
    flat_bias: float = 0.4
    invalidation_sigmas: float = 2.0


class RulesAnalyst:
    """Reads feature rows; keeps nothing between them but counts."""

    def __init__(self, settings: RulesSettings | None = None) -> None:
        self._settings = settings or RulesSettings()
        self._counts = dict.fromkeys(Action, 0)

    def analyze(self, row: FeatureRow, context: MarketContext, decided_at_ms: int) -> Signal:
        """Read one window.

        Args:
            row: The window's features. Where it is not ``complete``, the terms of its own trades
                (flow, whales, divergence, absorption) count as unknown.
            context: Of the same window.
            decided_at_ms: When the decision is made, UTC; only recorded.
        """
        terms = _terms(row, context)
        score = sum([_WEIGHTS[name] * value for name, value in terms.items() if value is not None])
        p_up, p_flat, p_down = self._probabilities(score)
        action, confidence = Action.HOLD, p_flat
        if p_up > p_flat and p_up > p_down:
            action, confidence = Action.BUY, p_up
        elif p_down > p_flat and p_down > p_up:
            action, confidence = Action.SELL, p_down
        self._counts[action] += 1
        evidence = _evidence(row, context)
        price = context.price
        return Signal(
            signal_id=f"{SOURCE}:{MODEL}:{row.symbol}:{row.window_end_ms}",
            symbol=row.symbol,
            window_end_ms=row.window_end_ms,
            decided_at_ms=decided_at_ms,
            price=price,
            action=action,
            confidence=confidence,
            p_up=p_up,
            p_flat=p_flat,
            p_down=p_down,
            horizon_s=self._settings.horizon_s,
            rationale=self._rationale(action, score, terms),
            evidence=evidence,
            invalidation=self._invalidation(action, price, context, row.spread_bps),
            source=SOURCE,
            model=MODEL,
            template_version=MODEL,
            context_hash=_hash(evidence, context),
        )

    def statistics(self) -> dict[str, int | float | str | None]:
        """Signals given, by action."""
        return {action.value.lower(): count for action, count in self._counts.items()}

    def _probabilities(self, score: float) -> tuple[float, float, float]:
        up = exp(self._settings.gain * score)
        flat = exp(self._settings.flat_bias)
        total = up + flat + 1.0 / up
        return up / total, flat / total, 1.0 / up / total

    def _rationale(self, action: Action, score: float, terms: dict[str, float | None]) -> str:
        known = [(name, _WEIGHTS[name] * value) for name, value in terms.items() if value]
        known.sort(key=lambda term: -abs(term[1]))
        text = f"{action.value} at score {score:+.2f}"
        if known:
            text += ": " + ", ".join([f"{name} {value:+.2f}" for name, value in known])
        unknown = [name for name, value in terms.items() if value is None]
        border = self._settings.flat_bias / self._settings.gain
        distance = abs(abs(score) - border)
        if unknown and sum([_WEIGHTS[name] for name in unknown]) >= distance:
            text += f"; unknown and could change it: {', '.join(unknown)}"
        return text

    def _invalidation(
        self,
        action: Action,
        price: float | None,
        context: MarketContext,
        spread_bps: float | None,
    ) -> float | None:
        if action is Action.HOLD or price is None:
            return None
        is_buy = action is Action.BUY
        swing = context.low_15m if is_buy else context.high_15m
        minutes = self._settings.horizon_s / 60.0
        sigma = (context.volatility_1m or 0.0) * sqrt(minutes)
        near = price * max(self._settings.invalidation_sigmas * sigma, (spread_bps or 0.0) * 2e-4)
        if near <= 0.0:  # volatility still unknown: the swing alone, if it is on the right side
            is_beyond = swing is not None and (swing < price if is_buy else swing > price)
            return swing if is_beyond else None
        distance = near if swing is None else abs(price - swing)
        distance = min(max(distance, near), 3.0 * near)
        level = price - distance if is_buy else price + distance
        return level if level > 0.0 else None


def _terms(row: FeatureRow, context: MarketContext) -> dict[str, float | None]:
    trend, ofi_z, imbalance = context.trend_score, row.ofi_z, row.book_imbalance
    flow = whales = divergence = absorption = None
    if row.complete:
        flow, divergence = row.net_flow_quote_z, context.cvd_divergence
        whales = row.whale_delta / row.volume if row.volume > 0.0 else 0.0
        absorption = row.absorption
    return {
        "trend": None if trend is None else tanh(trend / 2.0),
        "flow": None if flow is None else tanh(flow / 3.0),
        "book": imbalance,
        "ofi": None if ofi_z is None else tanh(ofi_z / 3.0),
        "whales": None if whales is None else max(-1.0, min(1.0, whales)),
        "divergence": None if divergence is None else float(divergence),
        "absorption": None if absorption is None else _absorbed(absorption, row.delta),
    }


def _absorbed(absorption: float, delta: float) -> float:
    if absorption <= 0.0 or delta == 0.0:
        return 0.0
    return -copysign(tanh(absorption / 3.0), delta)


def _evidence(row: FeatureRow, context: MarketContext) -> dict[str, float | None]:
    divergence = context.cvd_divergence
    return {
        "price": context.price,
        "trend_score": context.trend_score,
        "net_flow_quote_z": row.net_flow_quote_z,
        "book_imbalance": row.book_imbalance,
        "ofi_z": row.ofi_z,
        "whale_delta": row.whale_delta,
        "volume": row.volume,
        "cvd_divergence": None if divergence is None else float(divergence),
        "absorption": row.absorption,
        "delta": row.delta,
        "volatility_1m": context.volatility_1m,
        "spread_bps": row.spread_bps,
        "high_15m": context.high_15m,
        "low_15m": context.low_15m,
    }


def _hash(evidence: dict[str, float | None], context: MarketContext) -> str:
    payload = _ENCODER.encode((evidence, context))
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
