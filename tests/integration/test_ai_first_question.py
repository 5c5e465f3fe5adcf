"""The first question costs the loop no import: everything an SDK needs is there once it is prepared."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import structlog
from pydantic import SecretStr

from ai.providers import ProviderSettings, build_provider
from tests.ai_samples import PROVIDERS

_SCRIPT = """
import asyncio, sys, tempfile
from pathlib import Path
from ai.providers import build_provider
from simulator.ai_server import ScriptedAI
from tests.ai_samples import Outbox, analyzer_for, running, settings_for, window

async def main(provider):
    async with ScriptedAI() as server:
        settings, outbox = settings_for(server, only=(provider,)), Outbox()
        await asyncio.to_thread(build_provider(settings.provider_settings(provider)).prepare)
        before = set(sys.modules)
        with tempfile.TemporaryDirectory() as folder:
            async with running(analyzer_for(settings, Path(folder), outbox)) as analyzer:
                analyzer.on_window(*window(0))
                await analyzer.settle()
                assert len(outbox.signals) == 1, outbox
                print(sorted(set(sys.modules) - before))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_first_question_imports_nothing(provider: str, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, provider],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_program_that_runs_under_anyio_can_prepare() -> None:
    key = SecretStr("no-real-key")
    settings = ProviderSettings(name="groq", key=key, models=("any",), base_url="http://[::1]:9")
    with structlog.testing.capture_logs() as logs:
        anyio.run(asyncio.to_thread, build_provider(settings).prepare)
    assert logs == []


def test_a_provider_is_usable_where_nothing_can_be_loaded_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(anyio, "run", refused)
    key = SecretStr("no-real-key")
    settings = ProviderSettings(name="groq", key=key, models=("any",), base_url="http://[::1]:9")
    with structlog.testing.capture_logs() as logs:
        build_provider(settings).prepare()
    assert [entry["event"] for entry in logs] == ["ai.not_loaded_ahead"]
