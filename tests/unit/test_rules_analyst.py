from __future__ import annotations

from math import exp, tanh
from typing import Any

import msgspec
import pytest

from data_pipeline.pipeline import DataPipeline, PipelineSettings
from domain.context import MarketContext
from domain.events import Action, Signal
from domain.features import FeatureRow
from rules_analyst import MODEL, RulesAnalyst
from tests.pipeline_samples import DAY, WINDOW_MS, book_window, metrics

CONTEXT_ONLY = {"trend_score", "cvd_divergence", "volatility_1m", "high_15m", "low_15m", "price"}
NEUTRAL: dict[str, Any] = {
    "trend_score": 0.0,
    "cvd_divergence": 0,
    "volatility_1m": 0.001,
    "high_15m": 100.15,
    "low_15m": 99.5,
    "price": 100.0,
    "net_flow_quote_z": 0.0,
    "ofi_z": 0.0,
    "book_imbalance": 0.0,
    "absorption": 0.0,
    "whale_delta": 0.0,
    "spread_bps": 1.0,
}


def _inputs(**changes: Any) -> tuple[FeatureRow, MarketContext]:
    result = DataPipeline(PipelineSettings()).process(metrics(), book_window(DAY))
    assert result.row is not None
    values = NEUTRAL | changes
    known = set(MarketContext.__struct_fields__)
    context = {k: v for k, v in values.items() if k in CONTEXT_ONLY and k in known}
    row = {k: v for k, v in values.items() if k in FeatureRow.__struct_fields__}
    return (
        msgspec.structs.replace(result.row, **row),
        msgspec.structs.replace(result.context, **context),
    )


def _signal(**changes: Any) -> Signal:
    return RulesAnalyst().analyze(*_inputs(**changes), decided_at_ms=DAY + 6000)


def test_a_neutral_window_is_a_hold_with_the_documented_probabilities() -> None:
    signal = _signal()
    flat = exp(0.4)
    assert signal.action is Action.HOLD
    assert signal.p_flat == pytest.approx(flat / (flat + 2))
    assert signal.p_up == signal.p_down == pytest.approx(1 / (flat + 2))
    assert signal.confidence == signal.p_flat
    assert signal.invalidation is None
    assert (signal.source, signal.model, signal.horizon_s) == ("rules", MODEL, 60)
    assert (signal.window_end_ms, signal.decided_at_ms) == (DAY + WINDOW_MS, DAY + 6000)


@pytest.mark.parametrize(
    ("name", "value", "contribution"),
    [
        ("trend_score", 2.0, 0.2 * tanh(1.0)),
        ("net_flow_quote_z", -3.0, -0.2 * tanh(1.0)),
        ("book_imbalance", 0.5, 0.1),
        ("ofi_z", 3.0, 0.15 * tanh(1.0)),
        ("whale_delta", 2.0, 0.1 * 0.5),  # of a volume of 4
        ("cvd_divergence", -1, -0.075),
        ("absorption", 3.0, -0.075 * tanh(1.0)),  # buying was absorbed
        ("absorption", -3.0, 0.0),
    ],
)
def test_each_term_moves_the_score_by_its_weight(
    name: str, value: float, contribution: float
) -> None:
    signal = _signal(**{name: value})
    up, flat = exp(2 * contribution), exp(0.4)
    assert signal.p_up == pytest.approx(up / (up + flat + 1 / up))


def test_absorbed_selling_reads_as_support() -> None:
    signal = _signal(absorption=3.0, delta=-2.0)
    assert signal.p_up is not None
    assert signal.p_down is not None
    assert signal.p_up > signal.p_down


def test_agreeing_terms_make_a_buy_and_their_opposites_the_mirrored_sell() -> None:
    terms = {"trend_score": 3.0, "net_flow_quote_z": 2.0, "book_imbalance": 0.6, "ofi_z": 1.0}
    buy = _signal(**terms)
    sell = _signal(**{name: -value for name, value in terms.items()})
    assert (buy.action, sell.action) == (Action.BUY, Action.SELL)
    assert buy.confidence == buy.p_up == pytest.approx(sell.confidence)
    assert buy.p_down == pytest.approx(sell.p_up)
    assert buy.rationale.startswith("BUY at score +0.47: ")
    assert "trend +0.18, book +0.12" in buy.rationale


def test_invalidation_is_the_swing_held_between_one_and_three_distances() -> None:
    terms = {"trend_score": 9.0, "net_flow_quote_z": 9.0, "book_imbalance": 1.0}
    near = 100.0 * 2 * 0.001
    assert _signal(**terms, low_15m=99.7).invalidation == pytest.approx(99.7)
    assert _signal(**terms, low_15m=99.99).invalidation == pytest.approx(100.0 - near)
    assert _signal(**terms, low_15m=90.0).invalidation == pytest.approx(100.0 - 3 * near)
    down = {name: -value for name, value in terms.items()}
    assert _signal(**down, high_15m=100.3).invalidation == pytest.approx(100.3)


def test_invalidation_needs_volatility_or_a_swing_on_the_right_side() -> None:
    terms = {"trend_score": 9.0, "net_flow_quote_z": 9.0, "book_imbalance": 1.0}
    blind = {"volatility_1m": None, "spread_bps": None}
    assert _signal(**terms, **blind, low_15m=99.0).invalidation == 99.0
    assert _signal(**terms, **blind, low_15m=100.0).invalidation is None
    assert _signal(**terms, **blind, low_15m=None).invalidation is None
    assert _signal(**terms, price=None).invalidation is None


def test_what_is_unknown_contributes_nothing_and_is_named_when_it_could_decide() -> None:
    signal = _signal(net_flow_quote_z=None, trend_score=None)
    assert signal.p_up == signal.p_down
    assert signal.rationale.endswith("unknown and could change it: trend, flow")
    minor = _signal(absorption=None)
    assert "unknown" not in minor.rationale
    assert minor.evidence["absorption"] is None


def test_an_incomplete_windows_own_trades_are_not_read() -> None:
    told = {"net_flow_quote_z": 9.0, "whale_delta": 4.0, "cvd_divergence": 1, "absorption": -9.0}
    signal = _signal(**told, complete=False, missing_trades=5)
    assert signal.action is Action.HOLD
    assert signal.p_up == signal.p_down


def test_the_same_window_gives_the_same_signal() -> None:
    first, second = _signal(ofi_z=1.0), _signal(ofi_z=1.0)
    assert first == second
    assert first.signal_id == f"rules:rules-1:BTCUSDT:{DAY + WINDOW_MS}"


def test_the_hash_depends_on_evidence_and_context_but_not_on_the_clock() -> None:
    row, context = _inputs()
    analyst = RulesAnalyst()
    base = analyst.analyze(row, context, 1).context_hash
    assert analyst.analyze(row, context, 2).context_hash == base
    assert _signal(ofi_z=0.1).context_hash != base
    other = msgspec.structs.replace(context, return_1m_bps=1.0)
    assert analyst.analyze(row, other, 1).context_hash != base


def test_evidence_holds_every_number_the_terms_are_made_of() -> None:
    signal = _signal(trend_score=1.5)
    assert signal.evidence["trend_score"] == 1.5
    assert {"net_flow_quote_z", "book_imbalance", "ofi_z", "whale_delta"} <= set(signal.evidence)
    assert msgspec.json.decode(msgspec.json.encode(signal), type=Signal) == signal


def test_signals_are_counted_by_action() -> None:
    analyst = RulesAnalyst()
    analyst.analyze(*_inputs(), decided_at_ms=0)
    assert analyst.statistics() == {"buy": 0, "sell": 0, "hold": 1}
