"""The whole bot with the scripted AI server: signals of models beside the rules', live and replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from config import Settings
from domain.events import AnalysisUnavailable, Signal, Topic
from event_bus import DropOldest
from lake.signal_store import signal_store
from market_orchestrator.market_orchestrator import EnhancedMarketBot, replay
from simulator.ai_server import ScriptedAI
from tests.ai_samples import CANARY
from tests.integration.live_recordings import MIDNIGHT_MS, record_synthetic

PATIENCE_S = 60.0
KEYS = {f"{name}_api_key": key for name, key in CANARY.items()}


def use(server: ScriptedAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the SDKs find the server as a user would."""
    for name, url in server.urls.items():
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", url)


def test_the_demo_s_signals_come_from_groq_then_dashscope_and_the_rules_outlive_both(
    tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        source="demo",
        data_dir=tmp_path / "data",
        headless=True,
        symbols="BTCUSDT",
        window_duration=1,
        window_lateness_ms=100,
        ai_min_interval_seconds=0,
        **KEYS,
    )

    async def scene() -> tuple[list[Signal], list[AnalysisUnavailable]]:
        signals: list[Signal] = []
        gone: list[AnalysisUnavailable] = []
        async with ScriptedAI() as server:
            use(server, clean_environment)
            bot = EnhancedMarketBot(settings)
            heard = bot.bus.subscribe(
                [Topic.SIGNAL, Topic.ANALYSIS_UNAVAILABLE], policy=DropOldest(10_000), name="test"
            )
            running = asyncio.ensure_future(bot.run())

            async def until(is_reached: Callable[[], object]) -> None:
                while not is_reached():
                    assert not running.done()
                    for envelope in heard.drain_nowait():
                        event = envelope.payload
                        if isinstance(event, Signal):
                            signals.append(event)
                        elif isinstance(event, AnalysisUnavailable):
                            gone.append(event)
                    await asyncio.sleep(0.02)

            def sources() -> set[str]:
                return {signal.source for signal in signals}

            try:
                async with asyncio.timeout(PATIENCE_S):
                    await until(lambda: {"groq", "rules"} <= sources())
                    server.set_script("groq=rate_limited:3600")
                    await until(lambda: "dashscope" in sources())
                    assert not gone
                    server.set_script("dashscope=server_error;openai=reset")
                    await until(lambda: gone)
                    known = len(signals)
                    await until(lambda: len(signals) >= known + 2)
                    assert {signal.source for signal in signals[known:]} == {"rules"}
            finally:
                running.cancel()
                await asyncio.wait({running})
        return signals, gone

    signals, gone = asyncio.run(scene())
    assert gone[0].attempts[0] == "groq: waiting"
    stored = signal_store(settings.paths.signals).read_rows()
    made = {signal.signal_id: signal for signal in signals}
    assert made.keys() <= {signal.signal_id for signal in stored}
    limited = next(signal for signal in signals if signal.source == "dashscope")
    assert limited.latency_ms < 12_000
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(key.encode() in written for key in CANARY.values())


def test_a_recording_replayed_with_recorded_answers_gives_identical_signals(
    tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    recording = record_synthetic(
        tmp_path / "day.ndjson.gz", length_s=42.0, start_ms=MIDNIGHT_MS - 20_000
    )

    async def run(name: str, **changes: object) -> list[Signal]:
        settings = Settings(
            source=f"replay:{recording}", data_dir=tmp_path / name, headless=True, **changes
        )
        assert await replay(settings, recording) == 0
        found = signal_store(settings.paths.signals).read_rows()
        return sorted(
            [signal for signal in found if signal.source != "rules"],
            key=lambda signal: (signal.window_end_ms, signal.symbol),
        )

    async def scene() -> tuple[list[Signal], list[Signal], int]:
        async with ScriptedAI() as server:
            use(server, clean_environment)
            server.set_script("groq=ok*2,prose,ok*3,reset,ok")
            made = await run("asked", ai="live", ai_min_interval_seconds=0, **KEYS)
            asked = len(server.requests)
            journal = tmp_path / "asked" / "ai"
            again = await run("again", ai="replay", ai_journal_dir=journal, **KEYS)
            assert len(server.requests) == asked
        return made, again, asked

    made, again, _ = asyncio.run(scene())
    assert len(made) >= 12
    assert {signal.source for signal in made} == {"groq", "dashscope"}
    assert msgspec.json.encode(again) == msgspec.json.encode(made)
