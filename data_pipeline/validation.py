"""Layer 1, Validation: a window's numbers must agree with each other.

``FlowMetrics`` → ``FlowMetrics`` or the reason of its rejection. The sums are exact, so this is a
guard and not a filter. What follows from other numbers (totals, ratios) is recomputed and logged
with both values; what would have to be invented (prices, counts, times) rejects the window.
"""

from __future__ import annotations

from decimal import Context, Decimal, InvalidOperation

import msgspec
import structlog

from domain.flow import FlowMetrics

log = structlog.get_logger()

_EXACT = Context(prec=100, traps=[InvalidOperation])
_QUOTIENT = Context(prec=50, traps=[InvalidOperation])
_ZERO = Decimal(0)
_ONE = Decimal(1)
_LARGEST = Decimal(10) ** 30
_SMALLEST_PRICE = _ONE / _LARGEST


class Validated(msgspec.Struct, frozen=True, gc=False):
    """Metrics that hold, and the names of the fields that had to be recomputed."""

    metrics: FlowMetrics
    corrected: tuple[str, ...] = ()


class Rejected(msgspec.Struct, frozen=True):
    """Why a window cannot be used."""

    reason: str


def validate(metrics: FlowMetrics, window_ms: int) -> Validated | Rejected:
    """Check one window's invariants, and correct its derived totals.

    Args:
        metrics: As the flow analyzer made it.
        window_ms: Window length in milliseconds.

    Returns:
        The metrics (corrected where ``corrected`` says so) or the reason of the rejection:
        ``time``, ``count``, ``not_finite``, ``out_of_range``, ``negative_volume``,
        ``price_missing``, ``silent_window_not_empty``, ``ohlc``, ``quote_volume`` or ``vwap``.
    """
    reason = _structural_fault(metrics, window_ms) or _price_fault(metrics)
    if reason is not None:
        return Rejected(reason)
    changes = _corrections(metrics)
    if changes:
        for field, value in changes.items():
            log.warning(
                "pipeline.corrected",
                symbol=metrics.symbol,
                window_start_ms=metrics.window_start_ms,
                field=field,
                was=str(getattr(metrics, field)),
                now=str(value),
            )
        metrics = msgspec.structs.replace(metrics, **changes)
    if not _quotes_match(metrics):
        return Rejected("quote_volume")
    if not _vwap_in_range(metrics):
        return Rejected("vwap")
    return Validated(metrics, tuple(changes)) if changes else Validated(metrics)


def _structural_fault(m: FlowMetrics, window_ms: int) -> str | None:
    if (
        m.window_end_ms - m.window_start_ms != window_ms
        or m.window_start_ms % window_ms
        or m.window_start_ms < 0
    ):
        return "time"
    if m.trade_count < 0 or m.fill_count < 0 or m.whale_count < 0 or m.whale_count > m.trade_count:
        return "count"
    sums = (m.buy_volume, m.sell_volume, m.quote_volume, m.cvd, m.net_flow_quote)
    for value in (
        *sums,
        m.volume,
        m.delta,
        m.whale_buy_volume,
        m.whale_sell_volume,
        m.flow_imbalance,
    ):
        if not value.is_finite():
            return "not_finite"
        if not -_LARGEST < value < _LARGEST:
            return "out_of_range"
    if m.buy_volume < 0 or m.sell_volume < 0 or m.quote_volume < 0:
        return "negative_volume"
    if m.whale_buy_volume < 0 or m.whale_sell_volume < 0:
        return "negative_volume"
    if m.trade_count == 0 and (m.buy_volume or m.sell_volume or m.quote_volume or m.fill_count):
        return "silent_window_not_empty"
    return None


def _price_fault(m: FlowMetrics) -> str | None:
    prices = (m.open, m.high, m.low, m.close)
    if m.trade_count == 0:
        given = any(price is not None for price in (*prices, m.vwap))
        return "silent_window_not_empty" if given else None
    if m.open is None or m.high is None or m.low is None or m.close is None:
        return "price_missing"
    if not (
        m.open.is_finite() and m.high.is_finite() and m.low.is_finite() and m.close.is_finite()
    ):
        return "not_finite"
    if m.low < _SMALLEST_PRICE or m.high > _LARGEST:
        return "out_of_range"
    if not (m.low <= m.open <= m.high and m.low <= m.close <= m.high):
        return "ohlc"
    return None


def _corrections(m: FlowMetrics) -> dict[str, Decimal]:
    changes: dict[str, Decimal] = {}
    volume = _EXACT.add(m.buy_volume, m.sell_volume)
    if volume != m.volume:
        changes["volume"] = volume
    delta = _EXACT.subtract(m.buy_volume, m.sell_volume)
    if delta != m.delta:
        changes["delta"] = delta
    whale_delta = _EXACT.subtract(m.whale_buy_volume, m.whale_sell_volume)
    if whale_delta != m.whale_delta:
        changes["whale_delta"] = whale_delta
    if changes or not -_ONE <= m.flow_imbalance <= _ONE:
        imbalance = _QUOTIENT.divide(delta, volume) if volume else _ZERO
        if imbalance != m.flow_imbalance:
            changes["flow_imbalance"] = imbalance
    if volume and not _vwap_in_range(m):
        vwap = _QUOTIENT.divide(m.quote_volume, volume)
        if vwap != m.vwap:
            changes["vwap"] = vwap
    return changes


def _quotes_match(m: FlowMetrics) -> bool:
    if m.low is None or m.high is None:
        return True
    least, most = _EXACT.multiply(m.low, m.volume), _EXACT.multiply(m.high, m.volume)
    return least <= m.quote_volume <= most


def _vwap_in_range(m: FlowMetrics) -> bool:
    if m.low is None or m.high is None:
        return True  # silent: there is no vwap
    return m.vwap is not None and m.vwap.is_finite() and m.low <= m.vwap <= m.high
