"""Every way a provider can answer or not, through the real SDKs against the local server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ai.breaker import BreakerSettings
from ai.checkup import check_providers
from ai.contract import Outcome
from ai.prompt import SYSTEM
from ai.reply import REPLY_SCHEMA
from ai_analyzer_qwen import AIAnalyzer
from domain.events import Action
from simulator.ai_script import Behaviour
from simulator.ai_server import ScriptedAI
from tests.ai_samples import (
    CANARY,
    PROVIDERS,
    START_MS,
    WINDOW_MS,
    Outbox,
    analyzer_for,
    ask,
    records,
    running,
    settings_for,
    window,
)

MODELS = {"groq": "openai/gpt-oss-120b", "dashscope": "qwen-plus", "openai": "gpt-6-luna"}

# What a request meets → the outcome in the journal, and whether it is tried again (a repair).
EXPECTED: dict[Behaviour, tuple[Outcome, bool]] = {
    Behaviour.OK: (Outcome.ANSWERED, False),
    Behaviour.FENCED: (Outcome.ANSWERED, False),
    Behaviour.SCHEMA_MISSED: (Outcome.ANSWERED, False),
    Behaviour.RATE_LIMITED: (Outcome.RATE_LIMITED, False),
    Behaviour.RATE_LIMITED_DATE: (Outcome.RATE_LIMITED, False),
    Behaviour.RATE_LIMITED_RESET: (Outcome.RATE_LIMITED, False),
    Behaviour.RATE_LIMITED_SILENT: (Outcome.RATE_LIMITED, False),
    Behaviour.SERVER_ERROR: (Outcome.SERVER_ERROR, False),
    Behaviour.OVER_CAPACITY: (Outcome.SERVER_ERROR, False),
    Behaviour.HANG: (Outcome.TIMEOUT, False),
    Behaviour.DRIP: (Outcome.SLOW_REPLY, False),
    Behaviour.RESET: (Outcome.CONNECTION_RESET, False),
    Behaviour.CUT_OFF: (Outcome.CONNECTION_RESET, False),
    Behaviour.HALF_BODY: (Outcome.BROKEN_BODY, False),
    Behaviour.MEGABYTE: (Outcome.REPLY_TOO_LARGE, False),
    Behaviour.MEGABYTE_CHUNKED: (Outcome.REPLY_TOO_LARGE, False),
    Behaviour.REFUSED_KEY: (Outcome.UNAUTHORIZED, False),
    Behaviour.UNKNOWN_MODEL: (Outcome.UNKNOWN_MODEL, False),
    Behaviour.BAD_REQUEST: (Outcome.BAD_REQUEST, False),
    Behaviour.SCHEMA_FAILED: (Outcome.SCHEMA_FAILED, True),
    Behaviour.CONTENT_REFUSED: (Outcome.CONTENT_FILTERED, True),
    Behaviour.CONTENT_FILTER: (Outcome.CONTENT_FILTERED, True),
    Behaviour.EMPTY_CHOICES: (Outcome.EMPTY_REPLY, True),
    Behaviour.EMPTY_TEXT: (Outcome.EMPTY_REPLY, True),
    Behaviour.TRUNCATED: (Outcome.TRUNCATED, True),
    Behaviour.PROSE: (Outcome.NOT_JSON, True),
    Behaviour.HALF_JSON: (Outcome.NOT_JSON, True),
    Behaviour.WRONG_SHAPE: (Outcome.WRONG_SHAPE, True),
    Behaviour.CONFIDENCE_7: (Outcome.OUT_OF_RANGE, True),
    Behaviour.CONTRADICTORY: (Outcome.CONTRADICTORY, True),
    Behaviour.INVENTED_FEATURE: (Outcome.INVENTED_NUMBER, True),
    Behaviour.INVENTED_VALUE: (Outcome.INVENTED_NUMBER, True),
    Behaviour.INVENTED_PROSE: (Outcome.INVENTED_NUMBER, True),
    Behaviour.WRONG_LEVEL: (Outcome.WRONG_LEVEL, True),
}


def one_model(server: ScriptedAI, provider: str, **changes: Any) -> Any:
    models = {provider: (MODELS[provider],)}
    return settings_for(server, only=(provider,), models=models, **changes)


# After these a provider or model is left alone for a while: each needs an analyzer of its own.
CLOSING = {behaviour for behaviour in EXPECTED if behaviour.value.startswith("rate_limited")} | {
    *(Behaviour.REFUSED_KEY, Behaviour.UNKNOWN_MODEL, Behaviour.BAD_REQUEST)
}
# These alone are to meet a deadline, so they need an analyzer with a short one.
SLOW = {Behaviour.HANG, Behaviour.DRIP}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_behaviour_has_its_own_outcome_in_journal_and_metrics(
    provider: str, tmp_path: Path
) -> None:
    assert set(EXPECTED) == set(Behaviour)
    found: dict[Behaviour, tuple[list[Outcome], int, int, int]] = {}

    async def meet(server: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox, number: int) -> None:
        behaviour = list(EXPECTED)[number]
        server.set_script(f"{provider}={behaviour.value}")
        metric = f"{provider}.{EXPECTED[behaviour][0].value}"
        before = (server.counts.total(), len(outbox.signals) - len(outbox.unavailable))
        counted = analyzer.statistics().get(metric) or 0
        analyzer.on_window(*window(number))
        await analyzer.settle()
        found[behaviour] = (
            [],
            server.counts.total() - before[0],
            len(outbox.signals) - len(outbox.unavailable) - before[1],
            int(analyzer.statistics()[metric] or 0) - int(counted),
        )

    async def scene() -> None:
        breaker = BreakerSettings(failures_to_open=1_000)
        async with ScriptedAI() as server:
            settings = one_model(server, provider, breaker=breaker)
            short = one_model(server, provider, breaker=breaker, attempt_deadline_s=0.6)
            outbox = Outbox()
            async with running(analyzer_for(settings, tmp_path, outbox)) as analyzer:
                for number, behaviour in enumerate(EXPECTED):
                    if behaviour not in CLOSING | SLOW:
                        await meet(server, analyzer, outbox, number)
            for number, behaviour in enumerate(EXPECTED):
                if behaviour in CLOSING | SLOW:
                    chosen = short if behaviour in SLOW else settings
                    async with running(analyzer_for(chosen, tmp_path, outbox)) as analyzer:
                        await meet(server, analyzer, outbox, number)

    asyncio.run(scene())
    for record in records(tmp_path):
        number = (record.window_end_ms - START_MS) // WINDOW_MS - 1
        found[list(EXPECTED)[number]][0].append(record.outcome)
    expected = {}
    for behaviour, (outcome, is_repaired) in EXPECTED.items():
        calls = 2 if is_repaired else 1  # the SDK's own retries would make more
        published = 1 if outcome is Outcome.ANSWERED else -1
        expected[behaviour] = ([outcome] * calls, calls, published, calls)
    assert found == expected


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_good_reply_becomes_a_signal_with_its_costs(provider: str, tmp_path: Path) -> None:
    async def scene() -> Outbox:
        async with ScriptedAI() as server:
            return (await ask(one_model(server, provider), tmp_path, [window()]))[0]

    signal = asyncio.run(scene()).signals[0]
    record = records(tmp_path)[0]
    assert (signal.source, signal.model, signal.template_version) == (
        provider,
        MODELS[provider],
        "flow-1",
    )
    assert signal.action is Action.BUY
    assert signal.evidence["net_flow_quote_z"] == pytest.approx(2.314)
    assert signal.invalidation is not None and signal.invalidation < (signal.price or 0)
    assert signal.window_end_ms <= signal.decided_at_ms
    assert signal.latency_ms == record.analysis_ms >= record.latency_ms > 0
    assert (signal.prompt_tokens or 0) > 500
    assert signal.cost_usd is not None and signal.cost_usd > 0
    assert signal.context_hash == record.context_hash
    assert record.prompt[0].content == SYSTEM
    assert (record.reply or "").startswith('{"action": "BUY"')


def test_each_provider_is_asked_in_its_own_dialect(tmp_path: Path) -> None:
    async def scene() -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
        async with ScriptedAI() as server:
            for provider in PROVIDERS:
                await ask(one_model(server, provider), tmp_path / provider, [window()])
            return {r.provider: (r.body, r.headers) for r in server.requests}

    asked = asyncio.run(scene())
    strict = {
        "type": "json_schema",
        "json_schema": {"name": "market_reading", "strict": True, "schema": dict(REPLY_SCHEMA)},
    }
    groq, dashscope, openai = (asked[name][0] for name in PROVIDERS)
    assert groq["response_format"] == openai["response_format"] == strict
    assert dashscope["response_format"] == {"type": "json_object"}
    assert groq["reasoning_effort"] == "low"
    assert groq["include_reasoning"] is False
    assert openai["reasoning_effort"] == "none"
    assert "temperature" not in openai
    assert groq["temperature"] == dashscope["temperature"] == 0.0
    assert dashscope["enable_thinking"] is False
    assert groq["max_completion_tokens"] and openai["max_completion_tokens"]
    assert dashscope["max_tokens"]
    for name in PROVIDERS:
        assert asked[name][0]["messages"] == groq["messages"]
        assert asked[name][1]["Authorization"] == f"Bearer {CANARY[name]}"
        assert asked[name][1]["Accept-Encoding"] == "identity"


def test_addresses_come_from_the_sdks_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> list[str]:
        async with ScriptedAI() as server:
            for name, url in server.urls.items():
                monkeypatch.setenv(f"{name.upper()}_BASE_URL", url)
            for provider in PROVIDERS:
                settings = settings_for(None, only=(provider,))
                await ask(settings, tmp_path / provider, [window()])
            return [request.provider for request in server.requests]

    assert asyncio.run(scene()) == list(PROVIDERS)


def test_any_openai_compatible_server_and_model_will_do(tmp_path: Path) -> None:
    """An unknown model: JSON mode, no strict schema, an unknown price."""

    async def scene() -> tuple[Outbox, dict[str, Any]]:
        async with ScriptedAI() as server:
            settings = settings_for(server, only=("openai",), models={"openai": ("llama3.2",)})
            outbox, _ = await ask(settings, tmp_path, [window()])
            return outbox, server.requests[0].body

    outbox, body = asyncio.run(scene())
    assert outbox.signals[0].model == "llama3.2"
    assert outbox.signals[0].cost_usd is None
    assert body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("behaviour", ["drip:60", "hang"])
def test_no_reply_however_slow_outlasts_the_attempt_s_deadline(
    provider: str, behaviour: str, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with ScriptedAI() as server:
            server.set_script(f"{provider}=ok,{behaviour}")
            settings = one_model(server, provider, attempt_deadline_s=0.5)
            async with running(analyzer_for(settings, tmp_path, Outbox())) as analyzer:
                analyzer.on_window(*window(0))
                await analyzer.settle()  # the SDK is loaded and connected
                analyzer.on_window(*window(1))
                await asyncio.wait_for(analyzer.settle(), 30)  # of the sixty it would take

    asyncio.run(scene())
    late = {"hang": Outcome.TIMEOUT, "drip:60": Outcome.SLOW_REPLY}[behaviour]
    assert records(tmp_path)[1].outcome is late


def test_a_megabyte_is_not_even_read(tmp_path: Path) -> None:
    async def scene() -> None:
        async with ScriptedAI() as server:
            server.set_script("groq=megabyte")
            await ask(one_model(server, "groq"), tmp_path, [window()])

    asyncio.run(scene())
    record = records(tmp_path)[0]
    assert "bytes announced" in (record.error or "")
    assert record.reply is None


@pytest.mark.parametrize(
    ("behaviour", "wanted"),
    [
        ("rate_limited:7", 7),
        ("rate_limited_date:40", pytest.approx(40, abs=10)),  # a date in whole seconds, read later
        ("rate_limited_reset:95", 95),
        ("rate_limited_silent", None),
    ],
)
@pytest.mark.parametrize("provider", ["groq", "dashscope"])  # openai's is made like groq's
def test_the_wait_a_provider_asks_for_is_in_the_journal(
    provider: str, behaviour: str, wanted: object, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with ScriptedAI() as server:
            server.set_script(f"{provider}={behaviour}")
            await ask(one_model(server, provider), tmp_path, [window()])

    asyncio.run(scene())
    assert records(tmp_path)[0].retry_after_s == wanted


def test_doctor_learns_keys_models_budget_and_one_live_call(tmp_path: Path) -> None:
    async def scene() -> Any:
        keys = {"openai": "another key than ours"}
        models = {"groq": ("openai/gpt-oss-20b",), "dashscope": ("qwen-plus", "qwen-max")}
        async with ScriptedAI(keys=keys, models=models) as server:
            server.set_script("dashscope=ok;groq=ok")
            settings = settings_for(server, daily_tokens=5_000, daily_usd=0.5)
            return await check_providers(settings, tmp_path, live=True), dict(server.counts)

    checks, counts = asyncio.run(scene())
    groq, dashscope, openai = checks
    assert (groq.outcome, groq.missing_models) == (Outcome.ANSWERED, ("openai/gpt-oss-120b",))
    assert groq.live_outcome is Outcome.UNKNOWN_MODEL
    assert (dashscope.outcome, dashscope.offered_count) == (Outcome.ANSWERED, 2)
    assert dashscope.missing_models == ()
    assert dashscope.live_outcome is Outcome.ANSWERED and dashscope.live_ms > 0
    assert (dashscope.tokens_left, dashscope.usd_left) == (5_000, 0.5)
    assert openai.live_outcome is Outcome.UNAUTHORIZED
    assert not any(key in repr(checks) for key in CANARY.values())
    assert counts == {"dashscope.ok": 1, "groq.unknown_model": 1, "openai.refused_key": 1}


def test_doctor_says_what_is_missing_without_asking_anybody(tmp_path: Path) -> None:
    settings = settings_for(None, only=())
    checks = asyncio.run(
        check_providers(settings_for(None, keys={}, only=PROVIDERS), tmp_path, live=True)
    )
    assert settings.providers == ()
    assert [check.outcome for check in checks] == [Outcome.NO_KEY] * 3
