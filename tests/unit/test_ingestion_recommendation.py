"""The daily recommendation: documented rules, nothing from the future, stored once, scored."""

import asyncio
import shutil

import numpy as np
import pytest
import structlog

import main
from config import Settings
from domain.events import Action, Signal
from ingestion import DataCuration
from ingestion.recommendation import (
    HORIZON_S,
    SOURCE,
    DailyRecommendation,
    Reading,
    read_bars,
    recommend,
)
from lake.signal_store import signal_store
from tests.kline_samples import DAY_MS, MONDAY_MS, bars, columns_of_rows, store_bars, table_rows

DAYS = 28
START_MS = MONDAY_MS - 25 * DAY_MS
NOON_MS = MONDAY_MS + DAY_MS // 2


def reading(**changes):
    values = {
        "symbol": "BTCUSDT",
        "at_ms": NOON_MS,
        "price": 100.0,
        "trends": {"1h": 1.5, "4h": 1.5, "1d": 1.5},
        "volatility": 0.5,
        "volatility_day": 0.5,
        "atr_day": 4.0,
        "pivot": 98.0,
        "support": 97.0,
        "resistance": 108.0,
    }
    return Reading(**{**values, **changes})


def test_the_score_is_the_documented_sum():
    found = recommend(reading(), NOON_MS + 5)
    trend = 0.8 * np.tanh(1.0)
    score = trend + 0.1 * np.tanh(0.5) + 0.1 * (108 - 200 + 97) / 11
    up, flat = np.exp(2 * score), np.exp(0.4)
    assert found.p_up == pytest.approx(up / (up + flat + 1 / up))
    assert (found.action, found.confidence) == (Action.BUY, found.p_up)
    assert (found.horizon_s, found.source) == (HORIZON_S, SOURCE)
    assert (found.window_end_ms, found.decided_at_ms) == (NOON_MS, NOON_MS + 5)
    assert found.invalidation == 97.0
    assert found.p_up + found.p_flat + found.p_down == pytest.approx(1.0)


def test_it_is_symmetric_and_holds_when_nothing_speaks():
    down = recommend(
        reading(
            trends={"1h": -1.5, "4h": -1.5, "1d": -1.5}, pivot=102.0, support=92.0, resistance=103.0
        ),
        NOON_MS,
    )
    up = recommend(reading(), NOON_MS)
    assert down.action is Action.SELL
    assert down.p_down == pytest.approx(up.p_up)
    assert down.invalidation == 103.0
    still = recommend(reading(trends=dict.fromkeys(("1h", "4h", "1d"), 0.0), pivot=100.0), NOON_MS)
    assert (still.action, still.invalidation) == (Action.HOLD, None)


def test_an_outburst_of_volatility_damps_the_score():
    calm, wild = recommend(reading(), 0), recommend(reading(volatility_day=2.0), 0)
    assert wild.evidence["damping"] == 0.25
    assert wild.confidence < calm.confidence


@pytest.mark.parametrize(
    ("support", "expected"), [(99.9, 98.0), (97.0, 97.0), (50.0, 92.0), (None, 96.0)]
)
def test_the_invalidation_lies_half_to_twice_a_days_range_away(support, expected):
    assert recommend(reading(support=support), 0).invalidation == pytest.approx(expected)


def test_what_is_unknown_contributes_nothing_and_is_named():
    found = recommend(
        reading(trends={"1h": None, "4h": 1.5, "1d": None}, pivot=None, support=None), NOON_MS
    )
    assert "unknown: trend_1h, trend_1d, pivot, room" in found.rationale


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Four weeks of three timeframes, curated once."""
    folder = tmp_path_factory.mktemp("curated")
    made = Settings(data_dir=folder, _env_file=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _descriptor: None)
        for interval, a_day in (("1h", 24), ("4h", 6), ("1d", 1)):
            series = bars(DAYS * a_day, interval, start_ms=START_MS, seed=9)
            store_bars(made.paths, "BTCUSDT", interval, series)
            DataCuration(made).curate_timeframe(interval)
    return folder


@pytest.fixture
def settings(clean_environment, data_dir, curated):
    shutil.copytree(curated, data_dir)
    return Settings(data_dir=data_dir)


def recommended(settings, at_ms=NOON_MS, **options):
    made = DailyRecommendation(settings.paths, ("BTCUSDT",), **options)
    return asyncio.run(made.recommend(at_ms, at_ms + 4_000))


def test_it_knows_nothing_of_bars_that_close_later(settings):
    before = recommended(settings)
    (store := signal_store(settings.paths.signals)).partitioned.dates()
    assert store.read_rows("BTCUSDT") == before
    for path in settings.paths.signals.rglob("*.parquet"):
        path.unlink()
    last_day = [p for p in settings.paths.curated.iterdir() if p.name > "1d_curated_20240701"]
    for path in last_day:
        if path.name.endswith(("20240702.parquet", "20240703.parquet")):
            path.unlink()
    assert recommended(settings) == before
    assert before[0].evidence["trend_1h"] is not None
    assert before[0].evidence["trend_1d"] is not None


def test_the_trend_of_an_hour_timeframe_is_its_drift_in_standard_deviations(settings):
    (signal,) = recommended(settings)
    rows = table_rows(DAYS * 24, "1h", start_ms=START_MS, seed=9)
    close = columns_of_rows(rows, "1h")["close"]
    last = int((NOON_MS - START_MS) // 3_600_000) - 1
    returns = np.diff(np.log(close[: last + 1]))[-720:]
    sigma = np.sqrt(np.mean(returns**2))
    expected = np.log(close[last] / close[last - 24]) / (sigma * np.sqrt(24))
    assert signal.evidence["trend_1h"] == pytest.approx(expected)
    assert signal.price == close[last]


def test_the_same_day_is_recommended_once(settings):
    assert len(recommended(settings)) == 1
    assert recommended(settings) == []
    assert len(recommended(settings, NOON_MS + DAY_MS)) == 1
    assert len(signal_store(settings.paths.signals).read_rows("BTCUSDT")) == 2


def test_an_analyst_is_asked_and_its_signal_stands_beside_the_rules(settings):
    asked, published = [], []

    async def analyst(seen: Reading, rules: Signal) -> Signal:
        import msgspec  # noqa: PLC0415

        asked.append(seen)
        return msgspec.structs.replace(rules, signal_id="other", source="groq:daily")

    found = recommended(settings, analyst=analyst, publish=published.append)
    assert [signal.source for signal in found] == [SOURCE, "groq:daily"]
    assert published == found
    assert asked[0].symbol == "BTCUSDT"
    assert len(signal_store(settings.paths.signals).read_rows("BTCUSDT")) == 2


def test_an_analyst_without_an_answer_leaves_the_rules_alone(settings):
    async def analyst(_seen: Reading, _rules: Signal) -> None:
        return None

    assert [signal.source for signal in recommended(settings, analyst=analyst)] == [SOURCE]


def test_stale_or_absent_bars_give_no_recommendation_and_the_reason(settings):
    with structlog.testing.capture_logs() as logs:
        assert recommended(settings, NOON_MS + 30 * DAY_MS) == []
    assert logs[-1]["event"] == "recommendation.unavailable"
    assert logs[-1]["reason"] == "no curated 1h bars"
    assert read_bars("BTCUSDT", {}, 0) == "no curated 1h bars"


def test_the_verb_recommends_and_the_report_scores_it_from_the_klines(settings, capsys):
    arguments = ["--data-dir", str(settings.data_root), "--log-level", "ERROR"]
    assert (
        main.main(["curate", "--interval", "1h", "--recommend", "--symbols", "BTCUSDT", *arguments])
        == 0
    )
    assert "BTCUSDT (rules:daily): " in capsys.readouterr().out
    recommended(settings)
    assert main.main(["signals", "--data-dir", str(settings.data_root)]) == 0
    shown = capsys.readouterr().out
    assert "rules:daily" in shown
    assert "scored 1 " in shown or "1 scored" in shown
