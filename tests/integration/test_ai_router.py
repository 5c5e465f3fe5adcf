"""Providers in order: who is asked next, when, and when no more."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ai.breaker import BreakerSettings
from ai.contract import Outcome
from simulator.ai_server import ScriptedAI
from tests.ai_samples import (
    CANARY,
    PROVIDERS,
    START_MS,
    Outbox,
    analyzer_for,
    ask,
    records,
    running,
    settings_for,
    window,
)

BEGUN_NS = time.monotonic_ns()


def at_noon_ns() -> int:
    """A clock whose day does not end while a test runs."""
    return (START_MS + 43_200_000) * 1_000_000 + time.monotonic_ns() - BEGUN_NS


def play(script: str, folder: Path, count: int = 1, **changes: Any) -> tuple[Outbox, list[str]]:
    """Put ``count`` windows to a server that follows a script; the requests, as "provider/model"."""

    async def scene() -> tuple[Outbox, list[str]]:
        server_options = {
            k: changes.pop(k) for k in ("server_keys", "server_models") if k in changes
        }
        async with ScriptedAI(
            keys=server_options.get("server_keys"), models=server_options.get("server_models")
        ) as server:
            server.set_script(script)
            settings = settings_for(server, **({"only": ("groq", "dashscope")} | changes))
            windows = [window(n) for n in range(count)]
            outbox, _ = await ask(settings, folder, windows, wall_ns=at_noon_ns)
            return outbox, [f"{r.provider}/{r.body['model']}" for r in server.requests]

    return asyncio.run(scene())


GROQ, GROQ_SMALL = "groq/openai/gpt-oss-120b", "groq/openai/gpt-oss-20b"
QWEN, LUNA = "dashscope/qwen-plus", "openai/gpt-6-luna"


def test_the_first_provider_that_works_is_the_only_one_asked(tmp_path: Path) -> None:
    outbox, asked = play("", tmp_path, count=3)
    assert asked == [GROQ] * 3
    assert [signal.source for signal in outbox.signals] == ["groq"] * 3


def test_the_order_is_configurable(tmp_path: Path) -> None:
    _, asked = play("openai=server_error", tmp_path, only=("openai", "groq"))
    assert asked == [LUNA, GROQ]


def test_a_429_sends_the_same_question_on_and_closes_the_provider_for_as_long_as_it_asked(
    tmp_path: Path,
) -> None:
    outbox, asked = play("groq=ok,rate_limited:3600", tmp_path, count=4)
    assert asked == [GROQ, GROQ, QWEN, QWEN, QWEN]
    assert [signal.source for signal in outbox.signals] == ["groq"] + ["dashscope"] * 3
    assert not outbox.unavailable


def test_a_provider_that_was_closed_is_asked_again_when_its_wait_is_over(tmp_path: Path) -> None:
    _, asked = play("groq=rate_limited:0,ok", tmp_path, count=2)
    assert asked == [GROQ, QWEN, GROQ]


def test_a_provider_that_hangs_leaves_time_for_all_the_others(tmp_path: Path) -> None:
    outbox, asked = play(
        "groq=hang;dashscope=drip:60",
        tmp_path,
        only=PROVIDERS,
        deadline_s=3.0,
        attempt_deadline_s=3.0,
    )
    assert asked == [GROQ, QWEN, LUNA]
    assert outbox.signals[0].source == "openai"


def test_all_down_is_said_with_every_attempt_and_never_a_signal(tmp_path: Path) -> None:
    outbox, asked = play("groq=server_error;dashscope=reset;openai=prose", tmp_path, only=PROVIDERS)
    assert asked == [GROQ, GROQ_SMALL, QWEN, LUNA, LUNA]
    assert not outbox.signals
    assert outbox.unavailable[0].reason == "all_failed"
    assert outbox.unavailable[0].attempts == (
        f"{GROQ}: server_error",
        f"{GROQ_SMALL}: server_error",
        f"{QWEN}: connection_reset",
        f"{LUNA}: not_json",
        f"{LUNA}: not_json",
    )
    assert [record.attempt for record in records(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_bad_reply_is_sent_back_once_with_our_reason(tmp_path: Path) -> None:
    outbox, asked = play("groq=confidence_7,ok", tmp_path)
    assert asked == [GROQ, GROQ]
    assert outbox.signals[0].source == "groq"
    first, second = records(tmp_path)
    assert (first.is_repair, second.is_repair) == (False, True)
    assert second.prompt[:2] == first.prompt
    assert second.prompt[2].content.startswith(
        "The reply was rejected: confidence is not between 0 and 1."
    )
    assert first.prompt_hash != second.prompt_hash
    assert second.analysis_ms > first.analysis_ms


def test_after_one_repair_the_next_provider_is_asked(tmp_path: Path) -> None:
    outbox, asked = play("groq=invented_value", tmp_path)
    assert asked == [GROQ, GROQ, QWEN]
    assert outbox.signals[0].source == "dashscope"


def test_an_unknown_model_is_never_asked_for_again_and_the_next_one_is(tmp_path: Path) -> None:
    outbox, asked = play(
        "", tmp_path, count=2, server_models={"groq": ("openai/gpt-oss-20b", "other")}
    )
    assert asked == [GROQ, GROQ_SMALL, GROQ_SMALL]
    assert [alert.name for alert in outbox.alerts] == ["ai.model_unknown"]
    assert "openai/gpt-oss-120b" in outbox.alerts[0].message


def test_a_provider_that_knows_none_of_its_models_is_left_alone(tmp_path: Path) -> None:
    _, asked = play("", tmp_path, count=3, only=("groq",), server_models={"groq": ()})
    assert asked == [GROQ, GROQ_SMALL]


def test_a_refused_key_disables_the_provider_until_a_restart_with_one_alert(
    tmp_path: Path,
) -> None:
    outbox, asked = play("", tmp_path, count=3, server_keys={"groq": "another"})
    assert asked == [GROQ, QWEN, QWEN, QWEN]
    assert [alert.name for alert in outbox.alerts] == ["ai.key_refused"]
    assert outbox.alerts[0].severity == "warning"
    _, asked = play("", tmp_path / "restarted")
    assert asked == [GROQ]


def test_a_request_refused_as_such_goes_to_the_next_model_and_is_not_repeated(
    tmp_path: Path,
) -> None:
    _, asked = play("groq=bad_request,ok", tmp_path, count=2)
    assert asked == [GROQ, GROQ_SMALL, GROQ_SMALL]


def test_failures_in_a_row_open_the_breaker_and_one_probe_closes_it(tmp_path: Path) -> None:
    breaker = BreakerSettings(failures_to_open=2, open_s=3_600.0)
    waited_s = 0.0
    settings: dict[str, Any] = {
        "breaker": breaker,
        "only": ("groq", "dashscope"),
        "models": {"groq": ("openai/gpt-oss-120b",), "dashscope": ("qwen-plus",)},
    }

    def monotonic() -> float:
        return time.monotonic() + waited_s

    async def scene() -> tuple[list[str], dict[str, Any]]:
        nonlocal waited_s
        async with ScriptedAI() as server:
            server.set_script("groq=reset*2,ok")
            chosen = settings_for(server, **settings)
            async with running(
                analyzer_for(chosen, tmp_path, Outbox(), monotonic=monotonic)
            ) as analyzer:
                for number in range(4):
                    analyzer.on_window(*window(number))
                    await analyzer.settle()
                opened = analyzer.statistics()
                waited_s = 3_600.0
                analyzer.on_window(*window(4))
                await analyzer.settle()
            return [r.provider for r in server.requests], opened

    asked, opened = asyncio.run(scene())
    assert opened["groq.state"] == "open"
    assert opened["groq.breaker_open"] == 2
    assert asked == ["groq", "dashscope", "groq", "dashscope", "dashscope", "dashscope", "groq"]


def test_a_half_open_breaker_sends_one_of_several_questions(tmp_path: Path) -> None:
    async def scene() -> list[str]:
        async with ScriptedAI() as server:
            server.set_script("groq=reset,ok:0.2")
            settings = settings_for(
                server,
                only=("groq", "dashscope"),
                breaker=BreakerSettings(failures_to_open=1, open_s=0.05),
                parallel=4,
                models={"groq": ("openai/gpt-oss-120b",), "dashscope": ("qwen-plus",)},
            )
            async with running(analyzer_for(settings, tmp_path, Outbox())) as analyzer:
                analyzer.on_window(*window(0))
                await analyzer.settle()
                await asyncio.sleep(0.1)
                server.requests.clear()
                for symbol in ("AUSDT", "BUSDT", "CUSDT", "DUSDT"):
                    analyzer.on_window(*window(1, symbol=symbol))
                await analyzer.settle()
            return sorted(request.provider for request in server.requests)

    assert asyncio.run(scene()) == ["dashscope", "dashscope", "dashscope", "groq"]


def test_the_day_s_tokens_run_out_across_restarts(tmp_path: Path) -> None:
    limits = {"only": ("groq",), "daily_tokens": 4_500}
    first, asked = play("", tmp_path, count=4, **limits)
    assert 1 <= len(asked) < 4
    assert first.unavailable[0].reason == "budget_spent"
    assert [alert.name for alert in first.alerts] == ["ai.budget_spent"]
    second, asked = play("", tmp_path, count=2, **limits)
    assert asked == []
    assert [gone.reason for gone in second.unavailable] == ["budget_spent"] * 2


def test_a_provider_whose_budget_is_spent_gives_way_to_the_next(tmp_path: Path) -> None:
    outbox, asked = play("", tmp_path, only=PROVIDERS, daily_usd=0.0011)
    # groq's reservation of 1,600 output tokens costs more than that, qwen-plus still more
    assert asked == [LUNA]
    assert outbox.signals[0].source == "openai"


def test_an_unknown_price_counts_as_a_high_one_where_dollars_are_bounded(tmp_path: Path) -> None:
    models = {"openai": ("llama3.2",)}
    outbox, asked = play("", tmp_path, only=("openai",), models=models, daily_usd=0.01)
    assert asked == []
    assert outbox.unavailable[0].reason == "budget_spent"


def test_refused_calls_cost_nothing_and_unanswered_ones_their_reservation(tmp_path: Path) -> None:
    def spent(script: str, name: str, **changes: Any) -> int:
        async def scene() -> int:
            async with ScriptedAI() as server:
                server.set_script(script)
                settings = settings_for(server, only=("openai",), daily_tokens=10_000, **changes)
                folder = tmp_path / name
                _, analyzer = await ask(settings, folder, [window()], wall_ns=at_noon_ns)
                return int(analyzer.statistics()["openai.tokens_today"] or 0)

        return asyncio.run(scene())

    assert spent("openai=rate_limited", "refused") == 0
    assert spent("openai=server_error", "down") == 0
    answered = spent("openai=ok", "answered")
    hung = spent("openai=hang", "hung", attempt_deadline_s=0.5)
    assert 0 < answered < hung


def test_being_stopped_counts_against_nobody_and_is_in_the_journal(tmp_path: Path) -> None:
    async def scene() -> tuple[dict[str, Any], Outbox]:
        async with ScriptedAI() as server:
            server.set_script("groq=hang")
            outbox = Outbox()
            settings = settings_for(
                server, only=("groq",), breaker=BreakerSettings(failures_to_open=1)
            )
            analyzer = analyzer_for(settings, tmp_path, outbox)
            async with running(analyzer):
                analyzer.on_window(*window())
                while not server.requests:
                    await asyncio.sleep(0.01)
            return analyzer.statistics(), outbox

    statistics, outbox = asyncio.run(scene())
    assert statistics["groq.state"] == "closed"
    assert statistics["groq.cancelled"] == 1
    assert [record.outcome for record in records(tmp_path)] == [Outcome.CANCELLED]
    assert not outbox.signals and not outbox.unavailable


def test_it_can_be_stopped_at_every_moment_of_an_analysis(tmp_path: Path) -> None:
    async def scene(steps: int) -> bool:
        async with ScriptedAI() as server:
            server.set_script("groq=prose,ok")
            folder = tmp_path / str(steps)
            analyzer = analyzer_for(settings_for(server, only=("groq",)), folder, Outbox())
            task = asyncio.create_task(analyzer.run())
            analyzer.on_window(*window())
            for _ in range(steps):
                await asyncio.sleep(0)
                if analyzer.statistics().get("answered"):
                    break
            is_over = bool(analyzer.statistics().get("answered"))
            task.cancel()
            await asyncio.wait({task}, timeout=10)
            assert task.cancelled()
            assert analyzer.statistics()["groq.state"] == "closed"
            assert analyzer.statistics()["journal_pending"] == 0
            assert not analyzer.statistics().get("defects")
            return is_over

    async def all_of_it() -> None:
        steps = 0
        while not await scene(steps):
            steps = steps + 1 + steps // 2

    asyncio.run(all_of_it())


@pytest.mark.parametrize("behaviour", ["refused_key", "ok", "hang", "bad_request", "reset"])
def test_no_key_gets_out_of_the_requests(
    behaviour: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    script = ";".join(f"{name}={behaviour}" for name in CANARY)

    async def scene() -> tuple[Outbox, Any]:
        async with ScriptedAI() as server:
            server.set_script(script)
            settings = settings_for(server, attempt_deadline_s=0.2)
            outbox, analyzer = await ask(settings, tmp_path, [window()])
            seen = (settings, [settings.provider_settings(name) for name in CANARY])
            return outbox, (repr(seen), repr(analyzer.statistics()))

    outbox, shown = asyncio.run(scene())
    output = capfd.readouterr()
    published = repr((outbox.signals, outbox.unavailable, outbox.alerts))
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert written
    texts = (output.out, output.err, caplog.text, published, written, *shown)
    for key in CANARY.values():
        for text in texts:
            assert key not in text
            assert repr(key)[1:-1] not in text
