"""Scores, calibration, scaling, trades and verdicts of models, on arrays."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from domain.errors import ConfigError
from domain.model_card import ImageGeometry
from evaluation.blocks import Blocks, Estimate
from research.calibration import Calibration, fit_calibration, softmax
from research.dataset import DayData
from research.evaluate import Against, verdict
from research.metrics import confusion, macro_f1, macro_f1_gain, matthews, score
from research.presets import PRESETS, preset_of
from research.scaling import ScaleFit
from research.trades import Gains, Money, gains_of, money_of, timing_of
from research.trials import Trial, deflated_sharpe, log_trial, trials_of

NO_MONEY = Money(trades=0, gross_bps=None, net_bps=None, break_even_fee_bps=None)


@pytest.fixture(scope="module")
def vectors(recordings_dir: Path) -> dict[str, dict]:
    listed = json.loads((recordings_dir.parent / "vectors.json").read_text())["vectors"]
    return {vector["id"]: vector for vector in listed}


def test_vector_macro_f1_mcc(vectors):
    vector = vectors["macro_f1_mcc"]
    table = np.array(vector["inputs"]["confusion_rows_true"], float)
    assert float(macro_f1(table)) == pytest.approx(vector["expected"]["macro_f1"], abs=1e-9)
    assert float(matthews(table)) == pytest.approx(vector["expected"]["mcc"], abs=1e-9)
    rows, columns = np.nonzero(table)
    outcome = np.repeat(rows, table[rows, columns].astype(int))
    called = np.repeat(columns, table[rows, columns].astype(int))
    assert np.array_equal(confusion(outcome, called), table)


def test_vector_brier_multiclass(vectors):
    vector = vectors["brier_multiclass"]
    shares, outcome = np.array(vector["inputs"]["p"]), np.array(vector["inputs"]["y"])
    found = score(outcome, shares, np.full(3, 1 / 3), one_block(3))
    assert found.brier.value == pytest.approx(vector["expected"]["brier"], abs=1e-9)
    reference = vector["expected"]["uniform_reference"]
    assert found.brier_skill.value == pytest.approx(1.0 - 0.66 / reference, abs=1e-9)


def test_vector_deflated_sharpe(vectors):
    given, expected = vectors["deflated_sharpe"]["inputs"], vectors["deflated_sharpe"]["expected"]
    spread = np.sqrt(given["var_sr_annual"] / given["periods"])
    trials = [trial(spread if k % 2 else -spread) for k in range(given["N"])]
    money = Money(
        trades=1,
        gross_bps=None,
        net_bps=None,
        break_even_fee_bps=None,
        sharpe=expected["sr_daily"],
        periods=given["T"],
        skew=given["skew"],
        kurtosis=given["kurt"],
    )
    assert deflated_sharpe(money, trials) == pytest.approx(expected["dsr"], abs=1e-6)


def test_calls_at_random_score_as_chance_and_always_flat_has_no_skill():
    random = np.random.default_rng(5)
    outcome, shares = random.integers(3, size=3_000), random.dirichlet([1, 1, 1], 3_000)
    blocks = Blocks.of(np.arange(3_000) * 5_000, np.full(3_000, 60_000))
    found = score(outcome, shares, np.full(3, 1 / 3), blocks)
    assert found.chance.low < 0.0 < found.chance.high
    assert found.mcc.low < 0.0 < found.mcc.high
    flat = np.tile([0.0, 1.0, 0.0], (3_000, 1))
    always = score(outcome, flat, np.full(3, 1 / 3), blocks)
    assert always.mcc.value == 0.0
    assert always.chance.value == pytest.approx(0.0, abs=1e-12)
    assert macro_f1_gain(outcome, shares, shares, blocks).value == 0.0


def test_a_model_is_not_called_better_where_an_interval_covers_zero():
    sure, open_ = Estimate(value=0.2, low=0.1, high=0.3), Estimate(value=0.2, low=-0.1, high=0.4)
    earns = msgspec.structs.replace(NO_MONEY, timing_bps=sure)
    assert verdict(scores_of(sure, sure), earns, [against("a", sure)])[:2] == (True, True)
    has_skill, is_better, words = verdict(
        scores_of(sure, sure), earns, [against("a", sure), against("b", open_)]
    )
    assert (has_skill, is_better) == (True, False)
    assert "better than b:" in words
    for gains in ((open_, sure), (sure, open_), (None, sure)):
        assert verdict(scores_of(*gains), earns, [against("a", sure)])[:2] == (False, False)
    for timing in (open_, None):
        money = msgspec.structs.replace(NO_MONEY, timing_bps=timing)
        has_skill, _, words = verdict(scores_of(sure, sure), money, [against("a", sure)])
        assert not has_skill
        assert "random moments" in words


def test_calibration_finds_the_temperature_and_bias_of_distorted_logits():
    random = np.random.default_rng(7)
    logits = random.normal(size=(20_000, 3)) * 2.0
    true = softmax(logits / 2.0 + np.array([0.5, 0.0, -0.5]))
    outcome = (true.cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1)
    found = fit_calibration(logits, outcome)
    assert found.temperature_inverse == pytest.approx(0.5, abs=0.03)
    assert found.bias[0] - found.bias[2] == pytest.approx(1.0, abs=0.08)
    assert np.abs(found.probabilities(logits) - true).max() < 0.03
    assert fit_calibration(logits[:5], outcome[:5]) == Calibration()
    turned = fit_calibration(-logits, outcome)
    assert (
        turned.temperature_inverse == 0.0
    )  # a model that is wrong says nothing; it is not inverted


def test_scales_and_histograms_know_nan_and_constants():
    fit = ScaleFit(("a", "constant", "never"), 2)
    features = np.zeros((1_000, 3), np.float32)
    features[:, 0] = np.arange(1_000)
    features[:100, 0] = np.nan
    features[:, 1], features[:, 2] = 7.0, np.nan
    fit.add("2024-07-01", features, np.full((2, 1, 2, 3, 3), 2.0, np.float16))
    scale = fit.scale()
    assert scale.feature_mean[:2].tolist() == [549.5, 7.0]
    assert scale.feature_scale[1:].tolist() == [1.0, 1.0]
    assert scale.image_scale.tolist() == [2.0, 2.0]
    first, constant, never = fit.histograms()
    assert first.undefined_share == pytest.approx(0.1)
    assert len(first.edges) == 9
    assert np.allclose(first.shares, 0.1, atol=0.002)
    assert constant.shares == (0.0, 1.0)
    assert (never.edges, never.undefined_share) == ((), 1.0)
    assert fit.dates == {"2024-07-01"}


def test_trades_cross_the_spread_late_and_pay_fees():
    slots = 100 * np.arange(1, 101, dtype=np.int64)
    bid = 100.0 + slots / 1_000.0
    day = day_of(decision_ms=[1_000, 2_000, 9_000], slot_ms=slots, bid=bid, ask=bid + 0.1)
    gains = gains_of(day, np.arange(3), 5.0, 250)
    # Decided at 1.00 s, bought at 1.3 s (101.3 + 0.1), sold at 6.3 s (106.3).
    assert gains.long[0] == pytest.approx(1e4 * (106.3 / 101.4 - 1.0))
    assert gains.short[0] == pytest.approx(1e4 * (1.0 - 106.4 / 101.3))
    assert np.isnan(gains.long[2])  # no quote when it would leave
    money = money_of(np.array([2, 1, 2]), gains, 5.0, one_block(3))
    assert money.trades == 1
    assert money.net_bps.value == pytest.approx(money.gross_bps.value - 10.0)
    assert money.break_even_fee_bps == pytest.approx(money.gross_bps.value / 2.0)
    assert money_of(np.ones(3, int), gains, 5.0, one_block(3)).net_bps is None
    empty = Gains(np.full(3, np.nan), np.full(3, np.nan))
    assert money_of(np.full(3, 2), empty, 5.0, one_block(3)).trades == 0


def test_only_calls_that_foretell_the_price_are_well_timed():
    random = np.random.default_rng(11)
    moves, calm = random.normal(size=4_000), random.random(4_000) < 0.5
    moves[calm] /= 10.0  # known beforehand: says how far, not whither
    gains = Gains(moves + 0.5 - 0.1, -moves - 0.5 - 0.1)  # a drift, and the spread
    blocks = Blocks.of(np.arange(4_000) * 5_000, np.full(4_000, 10_000))
    bold = np.where(calm, 1, random.choice([0, 2], 4_000))
    for blind in (random.integers(3, size=4_000), np.full(4_000, 2), bold):
        timing = timing_of(blind, gains, blocks)
        assert timing.low <= 1e-12 <= timing.high + 1e-9
    noisy = moves + random.normal(size=4_000) * 2.0
    knowing = timing_of(np.where(noisy > 0, 2, 0), gains, blocks)
    assert 0.0 < knowing.low < knowing.value < np.abs(moves).mean()
    lost = Gains(np.full(4_000, np.nan), gains.short)
    assert timing_of(bold, lost, blocks) is None


def test_every_trial_is_kept_and_a_torn_line_is_none(tmp_path):
    assert trials_of(tmp_path) == []
    log_trial(tmp_path, trial(0.1))
    log_trial(tmp_path, trial(0.2))
    with (tmp_path / "trials.jsonl").open("ab") as file:
        file.write(b'{"name": "cut')
    assert [found.sharpe for found in trials_of(tmp_path)] == [0.1, 0.2]


def test_presets_fit_the_usual_images_and_name_what_does_not():
    for preset in PRESETS.values():
        preset.check(ImageGeometry())
    with pytest.raises(ConfigError, match="multiples"):
        preset_of("tiny").check(ImageGeometry(height=30))
    with pytest.raises(ConfigError, match="has none"):
        preset_of("cnn_lstm").check(None)
    with pytest.raises(ConfigError, match="there are tiny"):
        preset_of("huge")


def one_block(count: int) -> Blocks:
    return Blocks(np.zeros(count, np.int64), 1, 1)


def trial(sharpe: float) -> Trial:
    return Trial(
        name="x",
        at_ms=0,
        preset="tiny",
        label="smooth",
        horizon_s=60,
        seed=1,
        sharpe=sharpe,
        period_s=120.0,
    )


def scores_of(chance: Estimate | None, skill: Estimate | None):
    base = score(np.array([0, 1]), np.full((2, 3), 1 / 3), np.full(3, 1 / 3), one_block(2))
    return msgspec.structs.replace(base, chance=chance, brier_skill=skill)


def against(name: str, gain: Estimate) -> Against:
    return Against(name=name, scores=scores_of(None, None), macro_f1_gain=gain, money=NO_MONEY)


def day_of(decision_ms, slot_ms, bid, ask) -> DayData:
    count = len(decision_ms)
    return DayData(
        symbol="BTCUSDT",
        date="2024-07-01",
        decision_ms=np.array(decision_ms, np.int64),
        features=np.zeros((count, 0), np.float32),
        feature_names=(),
        mid_price=np.full(count, np.nan),
        bid_price=np.full(count, np.nan),
        ask_price=np.full(count, np.nan),
        is_valid=np.ones(count, np.bool_),
        quote_slot_ms=slot_ms,
        quote_bid=bid,
        quote_ask=ask,
    )
