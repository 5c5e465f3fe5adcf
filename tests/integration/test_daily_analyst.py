"""The models asked about a day: the daily rules' readings in, a signal of a day out, the rules untouched."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ai.daily import DAILY_SYSTEM, DAILY_VERSION, build_daily_prompt
from ai.settings import DEFAULT_MODELS
from domain.events import Signal
from ingestion.recommendation import Reading, recommend
from simulator.ai_script import Script, parse_script
from simulator.ai_server import USUAL_MODELS, ScriptedAI
from tests.ai_samples import START_MS, Outbox, analyzer_for, records, running, settings_for


def rules(**changes: Any) -> Signal:
    """What the rules make of an upward market."""
    values: dict[str, Any] = {
        "trends": {"1h": 1.51234, "4h": 0.8, "1d": 1.1},
        "price": 64_010.5,
        "volatility": 0.5,
        "volatility_day": 0.6,
        "atr_day": 1_800.25,
        "pivot": 63_500.0,
        "support": 62_000.0,
        "resistance": 66_000.0,
    }
    known = Reading(symbol="BTCUSDT", at_ms=START_MS, **(values | changes))
    return recommend(known, START_MS + 4_000)


def asked(script: str, folder: Path) -> tuple[Signal | None, Outbox]:
    outbox = Outbox()

    async def scene() -> Signal | None:
        async with (
            ScriptedAI(Script(parse_script(script))) as server,
            running(analyzer_for(settings_for(server), folder, outbox)) as analyzer,
        ):
            return await asyncio.wait_for(analyzer.recommend(rules()), 20)

    return asyncio.run(scene()), outbox


def test_the_model_sees_the_readings_and_not_what_the_rules_made_of_them() -> None:
    prompt = build_daily_prompt(rules())
    data = json.loads(prompt.messages[1].content)
    assert prompt.messages[0].content == DAILY_SYSTEM
    assert data["trend_1h"] == 1.512
    assert data["horizon_s"] == 86_400
    assert not {"action", "confidence", "score"} & data.keys()
    assert prompt == build_daily_prompt(rules())
    assert "support" not in json.loads(build_daily_prompt(rules(support=None)).messages[1].content)


def test_the_daily_template_changes_only_together_with_its_version() -> None:
    template = build_daily_prompt(rules()).template
    assert (template.version, template.hash) == (DAILY_VERSION, "f8ab07ba50feec3cdbb1a2fc0b181c95")


def test_the_answer_is_a_signal_of_a_day_beside_the_rules(tmp_path: Path) -> None:
    signal, outbox = asked("groq=ok", tmp_path)
    assert signal is not None
    assert (signal.source, signal.horizon_s) == ("groq:daily", 86_400)
    assert (signal.window_end_ms, signal.price) == (START_MS, 64_010.5)
    assert signal.template_version == DAILY_VERSION
    assert signal.evidence["trend_1h"] == 1.512
    assert outbox.signals == []  # the recommendation publishes it
    assert records(tmp_path)[0].template_version == DAILY_VERSION


def test_a_provider_that_is_limited_is_passed_over(tmp_path: Path) -> None:
    signal, _ = asked("groq=rate_limited:60;dashscope=ok", tmp_path)
    assert signal is not None
    assert signal.source == "dashscope:daily"


def test_with_all_down_there_is_no_signal_and_the_reason_is_published(tmp_path: Path) -> None:
    down = "groq=server_error;dashscope=server_error;openai=server_error"
    signal, outbox = asked(down, tmp_path)
    assert signal is None
    assert outbox.unavailable[0].symbol == "BTCUSDT"
    assert len(outbox.unavailable[0].attempts) >= 3


@pytest.mark.parametrize("name", sorted(DEFAULT_MODELS))
def test_the_local_server_lists_the_models_asked_by_default(name: str) -> None:
    assert USUAL_MODELS[name] == DEFAULT_MODELS[name]
