"""When questions are asked, what becomes of them, and what a replay makes of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from pydantic import SecretStr

from ai.budget import FILE_NAME
from ai.contract import Outcome
from ai.journal import calls_file
from ai.settings import AIMode, AISettings
from ai_analyzer_qwen import AIAnalyzer
from domain.events import Signal
from simulator.ai_server import ScriptedAI
from tests.ai_samples import (
    CANARY,
    START_MS,
    WINDOW_MS,
    Outbox,
    analyzer_for,
    ask,
    needs_full_disk,
    records,
    running,
    settings_for,
    window,
)

EVENTFUL: dict[str, Any] = {"absorption": 3.0}
GROQ = ("groq",)


def play(
    scene: Callable[[ScriptedAI, AIAnalyzer, Outbox], Any], folder: Path, **changes: Any
) -> Outbox:
    """Run a scene with an analyzer of groq at the local server."""
    own = ("now_ms", "is_healthy", "wall_ns", "quiet_moment")
    options = {k: changes.pop(k) for k in own if k in changes}

    async def run() -> Outbox:
        async with ScriptedAI() as server:
            outbox = Outbox()
            settings = settings_for(server, **({"only": GROQ} | changes))
            async with running(analyzer_for(settings, folder, outbox, **options)) as analyzer:
                await asyncio.wait_for(scene(server, analyzer, outbox), 60)
            return outbox

    return asyncio.run(run())


def asked_windows(folder: Path) -> list[int]:
    return [(r.window_end_ms - START_MS) // WINDOW_MS - 1 for r in records(folder)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"complete": False}, "incomplete"),
        ({"origin": "recovered"}, "not_live"),
        ({"origin": "revised"}, "not_live"),
        ({"price": None}, "without_price"),
        ({"depth_frames": 0}, "without_depth"),
        ({"spread_bps": None}, "without_depth"),
    ],
)
def test_nothing_is_asked_about_data_that_cannot_be_trusted(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        analyzer.on_window(*window(0, **changes))
        await analyzer.settle()
        assert not server.requests
        assert analyzer.statistics()[f"not_asked_{why}"] == 1

    play(scene, tmp_path)


def test_nothing_is_asked_while_the_connection_is_unhealthy(tmp_path: Path) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        for symbol in ("BTCUSDT", "ETHUSDT"):
            analyzer.on_window(*window(0, symbol=symbol))
        await analyzer.settle()
        assert len(server.requests) == 1
        assert analyzer.statistics()["not_asked_unhealthy"] == 1

    play(scene, tmp_path, is_healthy=lambda symbol: symbol == "ETHUSDT")


def test_nothing_is_asked_about_a_context_that_grew_old(tmp_path: Path) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        analyzer.on_window(*window(0))
        await analyzer.settle()
        assert not server.requests
        assert analyzer.statistics()["not_asked_too_old"] == 1

    play(scene, tmp_path, now_ms=lambda: START_MS + WINDOW_MS + 15_001)


def test_without_an_event_nothing_is_asked_and_with_one_at_most_once_an_interval(
    tmp_path: Path,
) -> None:
    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, __: Outbox) -> None:
        for number in range(30):
            is_eventful = number in {2, 5, 6, 20}
            analyzer.on_window(*window(number, absorption=3.0 if is_eventful else 0.0))
            await analyzer.settle()

    play(scene, tmp_path, min_interval_s=60.0)
    assert asked_windows(tmp_path) == [2, 20]
    assert records(tmp_path)[0].events == ("absorption",)


def test_what_happens_within_the_interval_is_asked_about_if_it_lasts(tmp_path: Path) -> None:
    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, __: Outbox) -> None:
        for number in range(30):
            lasting = 1 if number >= 5 else 0
            analyzer.on_window(
                *window(number, absorption=3.0 if number == 0 else 0.0, cvd_divergence=lasting)
            )
            await analyzer.settle()

    play(scene, tmp_path, min_interval_s=60.0)
    assert asked_windows(tmp_path) == [0, 12]
    assert records(tmp_path)[1].events == ("cvd_divergence",)


def test_an_interval_of_nothing_asks_about_every_window(tmp_path: Path) -> None:
    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, __: Outbox) -> None:
        for number in range(5):
            analyzer.on_window(*window(number, absorption=0.0))
            await analyzer.settle()

    play(scene, tmp_path)
    assert asked_windows(tmp_path) == [0, 1, 2, 3, 4]


def test_while_a_provider_is_slow_the_newest_context_replaces_the_waiting_one(
    tmp_path: Path,
) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        server.set_script("groq=ok,ok:0.3,ok")
        analyzer.on_window(*window(0))
        await analyzer.settle()
        analyzer.on_window(*window(1))
        while len(server.requests) < 2:
            await asyncio.sleep(0.005)
        for number in range(2, 9):
            analyzer.on_window(*window(number))
        await analyzer.settle()
        assert analyzer.statistics()["replaced_by_newer"] == 6

    play(
        scene,
        tmp_path,
        now_ms=lambda: START_MS + 9 * WINDOW_MS,
        max_context_age_s=60.0,
    )
    assert asked_windows(tmp_path) == [0, 1, 8]


def test_a_question_still_waiting_is_dropped_when_the_data_go_stale(tmp_path: Path) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        server.set_script("groq=ok:0.2")
        analyzer.on_window(*window(0))
        while not server.requests:
            await asyncio.sleep(0.005)
        analyzer.on_window(*window(1))
        analyzer.on_window(*window(2, complete=False))
        await analyzer.settle()

    play(scene, tmp_path)
    assert asked_windows(tmp_path) == [0]


def test_one_symbol_s_slow_answer_does_not_hold_up_another_s(tmp_path: Path) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        server.set_script("groq=ok,hang,ok")
        analyzer.on_window(*window(0))
        await analyzer.settle()
        analyzer.on_window(*window(1))
        while len(server.requests) < 2:
            await asyncio.sleep(0.005)
        analyzer.on_window(*window(1, symbol="ETHUSDT"))
        while len(outbox.signals) < 2:
            await asyncio.sleep(0.005)
        assert outbox.signals[1].symbol == "ETHUSDT"
        while analyzer.statistics()["in_flight"] != 1:  # the other one's goes on
            await asyncio.sleep(0.005)

    play(scene, tmp_path)


def test_every_call_waits_for_a_quiet_moment(tmp_path: Path) -> None:
    quiet, waits = asyncio.Event(), []

    async def quiet_moment() -> None:
        waits.append(quiet.is_set())
        await quiet.wait()

    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        server.set_script("groq=half_json,ok")  # the first reply is sent back once
        analyzer.on_window(*window(0))
        await asyncio.sleep(0.2)
        assert server.counts.total() == 0
        quiet.set()
        await analyzer.settle()
        assert len(outbox.signals) == 1

    play(scene, tmp_path, quiet_moment=quiet_moment)
    assert waits == [False, True]


def test_the_loop_is_free_while_a_reply_drips_in(tmp_path: Path) -> None:
    """Between two of its bytes everything else has its turn; nothing waits for the reply."""

    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        server.set_script("groq=drip:5")
        analyzer.on_window(*window(0))
        while not server.requests:
            await asyncio.sleep(0.005)
        for _turn in range(50):
            assert analyzer.statistics()["in_flight"] == 1
            await asyncio.sleep(0.001)

    play(scene, tmp_path)


def test_a_replayed_day_gives_identical_signals_at_no_cost(tmp_path: Path) -> None:
    live_folder, folder = tmp_path / "live", tmp_path / "replay"
    day = [
        window(n, absorption=float(n % 4), delta=n / 3, symbol=s)
        for n in range(12)
        for s in ("BTCUSDT", "ETHUSDT")
    ]

    async def scene() -> tuple[list[Signal], int]:
        async with ScriptedAI() as server:
            server.set_script("groq=ok*3,prose,ok*2,reset,ok")
            live, _ = await ask(settings_for(server, only=("groq", "dashscope")), live_folder, day)
            return live.signals, len(server.requests)

    made, _ = asyncio.run(scene())
    again = Outbox()
    settings = AISettings(mode=AIMode.REPLAY, replay_folder=live_folder)
    for _ in range(2):
        again = Outbox()
        analyzer = analyzer_for(settings, folder, again)
        for row, context in day:
            analyzer.on_window(row, context)
        asyncio.run(asyncio.wait_for(analyzer.settle(), 5))
        assert analyzer.statistics()["replayed"] == len(made)
    assert len(made) == 24
    assert again.signals == made
    assert msgspec.json.encode(again.signals) == msgspec.json.encode(made)
    assert not folder.exists()  # nothing was asked, nothing spent
    assert len({signal.signal_id for signal in made}) == len(made)
    assert {signal.source for signal in made} == {"groq", "dashscope"}


def test_a_replay_of_other_data_says_so_instead_of_giving_the_old_answer(tmp_path: Path) -> None:
    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, __: Outbox) -> None:
        analyzer.on_window(*window(0))
        await analyzer.settle()

    play(scene, tmp_path)
    outbox = Outbox()
    analyzer = analyzer_for(AISettings(mode=AIMode.REPLAY), tmp_path, outbox)
    analyzer.on_window(*window(0, delta=-99.0))
    analyzer.on_window(*window(1))
    assert not outbox.signals
    assert [gone.reason for gone in outbox.unavailable] == ["context_changed"]


@pytest.mark.parametrize("mode", [AIMode.OFF, AIMode.RULES])
def test_switched_off_it_asks_nobody_and_says_nothing(mode: AIMode, tmp_path: Path) -> None:
    async def scene() -> tuple[Outbox, int]:
        async with ScriptedAI() as server:
            outbox, _ = await ask(settings_for(server, mode=mode), tmp_path / "ai", [window()])
            return outbox, len(server.requests)

    outbox, asked = asyncio.run(scene())
    assert (asked, outbox.signals, outbox.unavailable, outbox.alerts) == (0, [], [], [])
    assert not (tmp_path / "ai").exists()


def test_without_any_key_that_is_said_once_per_symbol(tmp_path: Path) -> None:
    windows = [window(n, symbol=s) for n in range(3) for s in ("BTCUSDT", "ETHUSDT")]
    for keys in ({}, {"groq": SecretStr("  ")}):
        folder = tmp_path / str(len(keys))
        outbox, analyzer = asyncio.run(ask(AISettings(keys=keys), folder, windows))
        assert [gone.reason for gone in outbox.unavailable] == ["no_key", "no_key"]
        assert [record.outcome for record in records(folder)] == [Outcome.NO_KEY] * 2
        assert not outbox.signals
        assert analyzer.statistics()["unavailable"] == 2


def test_only_providers_with_a_key_are_asked(tmp_path: Path) -> None:
    async def scene() -> list[str]:
        async with ScriptedAI() as server:
            keys = {"openai": SecretStr(f" {CANARY['openai']}\n"), "groq": SecretStr("")}
            await ask(settings_for(server, keys=keys), tmp_path, [window()])
            assert server.requests[0].headers["Authorization"] == f"Bearer {CANARY['openai']}"
            return [request.provider for request in server.requests]

    assert asyncio.run(scene()) == ["openai"]


def test_a_key_that_cannot_be_sent_never_gets_to_an_sdk(tmp_path: Path) -> None:
    keys = {"groq": SecretStr("gsk\x00canary clé")}
    outbox, analyzer = asyncio.run(ask(AISettings(keys=keys), tmp_path, [window()]))
    assert [alert.name for alert in outbox.alerts] == ["ai.key_refused"]
    assert analyzer.statistics()["groq.bad_key"] == 1
    assert "canary" not in repr(outbox.alerts)


def test_no_child_process_and_no_argument_carries_a_key(tmp_path: Path) -> None:
    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, _: Outbox) -> None:
        server.set_script("groq=ok:0.1")
        analyzer.on_window(*window(0))
        while not server.requests:
            await asyncio.sleep(0.005)
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            assert CANARY["groq"] not in " ".join(process.cmdline())

    play(scene, tmp_path)


@needs_full_disk
def test_a_full_disk_stops_no_analysis_and_is_told_once(tmp_path: Path) -> None:
    calls_file(tmp_path, START_MS).symlink_to("/dev/full")

    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        analyzer.on_window(*window(0))
        await analyzer.settle()
        (tmp_path / FILE_NAME).unlink()
        (tmp_path / FILE_NAME).symlink_to("/dev/full")
        for number in range(1, 5):
            analyzer.on_window(*window(number))
            await analyzer.settle()
        assert len(outbox.signals) == 5
        while not analyzer.statistics()["journal_failed_writes"]:
            await asyncio.sleep(0.005)
        assert analyzer.statistics()["ledger_failed_writes"]

    outbox = play(scene, tmp_path)
    assert {alert.name for alert in outbox.alerts} == {"ai.journal_failed", "ai.ledger_failed"}
    assert len(outbox.alerts) == len({alert.message for alert in outbox.alerts}) <= 3


def test_a_clock_that_is_set_is_noted_and_changes_no_deadline(tmp_path: Path) -> None:
    ahead_ns = 0

    async def scene(server: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        nonlocal ahead_ns
        server.set_script("groq=ok:0.1")
        analyzer.on_window(*window(0))
        while not server.requests:
            await asyncio.sleep(0.005)
        ahead_ns = 3_600 * 24 * 10**9  # while a question is under way
        await analyzer.settle()
        analyzer.on_window(*window(1))
        await analyzer.settle()
        ahead_ns = 0
        analyzer.on_window(*window(2))
        await analyzer.settle()
        assert len(outbox.signals) == 3
        assert analyzer.statistics()["clock_jump"] == 2
        assert analyzer.statistics()["groq.state"] == "closed"

    play(scene, tmp_path, wall_ns=lambda: time.time_ns() + ahead_ns)
    outcomes = [record.outcome for record in records(tmp_path)]
    assert outcomes.count(Outcome.CLOCK_JUMP) == 2
    assert all(record.latency_ms < 60_000 for record in records(tmp_path))


def test_a_defect_in_one_analysis_harms_no_other(tmp_path: Path) -> None:
    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        row, context = window(0)
        odd = msgspec.structs.replace(context, session="no session")
        analyzer.on_window(row, odd)
        await analyzer.settle()
        analyzer.on_window(*window(1))
        await analyzer.settle()
        assert [gone.reason for gone in outbox.unavailable] == ["failed"]
        assert len(outbox.signals) == 1
        assert analyzer.statistics()["defects"] == 1

    play(scene, tmp_path)


def test_a_provider_without_its_sdk_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "groq", None)

    async def scene(_: ScriptedAI, analyzer: AIAnalyzer, outbox: Outbox) -> None:
        analyzer.on_window(*window(0))
        await analyzer.settle()
        assert outbox.signals[0].source == "dashscope"
        assert [alert.name for alert in outbox.alerts] == ["ai.sdk_missing"]

    play(scene, tmp_path, only=("groq", "dashscope"))


def test_an_unknown_provider_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'grok'"):
        analyzer_for(AISettings(providers=("grok",)), tmp_path, Outbox())


def test_no_sdk_is_imported_without_a_key(repository: Path, tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from tests.ai_samples import ask, window
from ai.settings import AISettings
asyncio.run(ask(AISettings(), Path({str(tmp_path)!r}), [window()]))
print(sorted({{"groq", "openai", "dashscope", "httpx", "httpx2"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_simulate_serves_the_providers_and_takes_a_new_script_while_it_runs(
    repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "main.py", "simulate", "--ai", "groq=rate_limited:9"]

    async def scene(urls: dict[str, str]) -> tuple[Outbox, Outbox]:
        settings = settings_for(None, only=GROQ, base_urls={"groq": urls["groq"]})
        first, _ = await ask(settings, tmp_path / "1", [window()])
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{urls['groq']}/script", data="groq=ok") as reply:
                assert reply.status == 200
            async with session.post(f"{urls['groq']}/script", data="groq=nonsense") as reply:
                assert reply.status == 400
        return first, (await ask(settings, tmp_path / "2", [window()]))[0]

    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            first, second = asyncio.run(scene(urls))
        finally:
            process.terminate()
            process.wait(20)
    assert set(urls) == {"ws", "rest", "vision", "groq", "dashscope", "openai"}
    assert first.unavailable[0].reason == "rate_limited"
    assert second.signals[0].source == "groq"
