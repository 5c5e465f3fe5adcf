"""The first question costs the loop no import: everything an SDK needs is there once it is prepared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
