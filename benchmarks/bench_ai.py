"""What the AI analyst costs: router and validation per answer, its import, and window timing beside it.

1. A call through a provider's SDK alone, and the whole way from a closed window to its signal (prompt,
   ledger on disk, router, check, journal), in turn, against the scripted server in another process.
2. Importing the analyst without a key, and what the SDKs would cost.
3. The whole bot on a paced exchange, in turn: ``--ai off``, a provider that hangs (with the deadlines
   of the product, and with one that no run outlasts), one whose answer drips in for a minute; every
   window may be asked about; how long after its end each window's features are published.

``python -m benchmarks.bench_ai [--smoke] [--json FILE]``
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import SecretStr

from ai.prompt import build_prompt
from ai.providers import build_provider
from ai.reply import REPLY_SCHEMA
from ai.settings import DEFAULT_MODELS, AISettings
from ai_analyzer_qwen import AIAnalyzer
from benchmarks.paced_exchange import running_exchange
from benchmarks.report import (
    arguments,
    cores,
    machine,
    process,
    publish,
    run_json,
    spread,
    versions,
)
from domain.events import Signal
from tests.ai_samples import START_MS, WINDOW_MS, window

PROVIDERS = ("groq", "dashscope", "openai")

SYMBOLS = 20
TRADES_PER_S = 400.0
DEPTH_PER_S = 200.0
# What the provider does in a mode, and whether its calls may take as long as they like.
MODES = {
    "off": ("", False),
    "hang": ("hang", False),
    "hang_on": ("hang", True),
    "drip": ("drip:60", True),
}

_IMPORT = """
import json, sys, time
began = time.perf_counter()
import {modules}
took = time.perf_counter() - began
sdks = sorted({{"groq", "openai", "dashscope", "httpx", "httpx2"}} & set(sys.modules))
print(json.dumps({{"seconds": took, "sdks": sdks}}))
"""


@contextmanager
def scripted_server(script: str, core: int | None) -> Iterator[Mapping[str, str]]:
    """The addresses of a scripted AI server in a process of its own."""
    command = [sys.executable, "main.py", "simulate", "--ai", script]
    with process(command, core) as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())


async def overhead(urls: Mapping[str, str], provider: str, calls: int) -> dict[str, Any]:
    """Milliseconds of the SDK's call alone and of the whole way, in turn."""
    settings = AISettings(
        providers=(provider,),
        keys={provider: SecretStr("benchmark-key")},
        base_urls=urls,
        min_interval_s=0.0,
        daily_tokens=None,
        daily_usd=None,
    )
    own = settings.provider_settings(provider)
    assert own is not None
    alone = build_provider(own)
    await asyncio.to_thread(alone.prepare)
    answered: asyncio.Queue[Signal] = asyncio.Queue()
    sdk_ms, whole_ms, prompt_us = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        analyzer = AIAnalyzer(
            settings,
            Path(folder),
            now_ms=lambda: START_MS + WINDOW_MS,
            publish_signal=answered.put_nowait,
            publish_unavailable=lambda event: sys.exit(f"no answer: {event}"),
            publish_alert=lambda _: None,
        )
        running = asyncio.ensure_future(analyzer.run())
        for number in range(calls + 5):
            row, context = window(number, delta=number / 7)
            began = time.perf_counter()
            prompt = build_prompt(row, context)
            prompt_us.append((time.perf_counter() - began) * 1e6)
            began = time.perf_counter()
            await alone.complete(DEFAULT_MODELS[provider][0], prompt.messages, REPLY_SCHEMA)
            sdk_ms.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            analyzer.on_window(row, context)
            await answered.get()
            whole_ms.append((time.perf_counter() - began) * 1e3)
            await analyzer.settle()
        running.cancel()
        await asyncio.wait({running})
        await alone.close()
    added = [whole - sdk for whole, sdk in zip(whole_ms, sdk_ms, strict=True)][5:]
    return {
        "sdk_call_ms": spread(sdk_ms[5:], 3),
        "window_to_signal_ms": spread(whole_ms[5:], 3),
        "added_ms": spread(added, 3),
        "prompt_us": spread(prompt_us[5:], 1),
    }


def import_cost(rounds: int) -> dict[str, Any]:
    """Seconds to import the analyst, with what it brought along; and the SDKs."""
    found: dict[str, Any] = {}
    for name, modules in (("analyst", "ai_analyzer_qwen"), ("sdks", ", ".join(PROVIDERS))):
        command = [sys.executable, "-c", _IMPORT.format(modules=modules)]
        runs = [run_json(command, None, timeout_s=300) for _ in range(rounds)]
        found[f"{name}_s"] = spread([run["seconds"] for run in runs], 3)
        found[f"{name}_imports"] = runs[0]["sdks"]
    return found


def timing(
    mode: str,
    port: int,
    warm_up_s: float,
    seconds: float,
    own_cores: tuple[int | None, int | None],
) -> Any:
    """One run of the bot in one of ``MODES``."""
    script, is_patient = MODES[mode]
    bot_core, other_core = own_cores
    command = [sys.executable, "-m", "benchmarks.observed_bot", "--port", str(port)]
    command += ["--symbols", str(SYMBOLS), "--warm-up", str(warm_up_s)]
    command += ["--seconds", str(seconds), "--raw"]
    variables = {"WINDOW_DURATION": "1", "AI": "off"}
    with scripted_server(f"groq={script}" if script else "", other_core) as urls:
        if script:
            variables |= {
                "AI": "live",
                "GROQ_API_KEY": "benchmark-key",
                "GROQ_BASE_URL": urls["groq"],
                "AI_MIN_INTERVAL_SECONDS": "0",
            }
        if is_patient:
            variables |= {"AI_DEADLINE_SECONDS": "600", "AI_ATTEMPT_DEADLINE_SECONDS": "600"}
        with _environment(variables):
            run = run_json(command, bot_core, timeout_s=seconds + 300)
        with urllib.request.urlopen(f"{urls['groq']}/counts", timeout=60) as reply:
            run["questions"] = sum(json.load(reply).values())
    return run


def window_timing(warm_up_s: float, seconds: float, rounds: int) -> dict[str, Any]:
    """p99 of publication after a window's end, by mode, and its ratio to ``--ai off``.

    Over the windows of all runs of a mode: those of one boundary are late together, so a run of a
    minute has not more than one boundary beyond its p99. Intervals: 95 %, boundaries drawn anew.
    """
    modes = list(MODES)
    runs: dict[str, list[Any]] = {mode: [] for mode in modes}
    own_cores = cores()
    with running_exchange(SYMBOLS, TRADES_PER_S, DEPTH_PER_S, own_cores[1]) as port:
        for number in range(rounds):
            for mode in modes[number % len(modes) :] + modes[: number % len(modes)]:
                runs[mode].append(timing(mode, port, warm_up_s, seconds, own_cores))
    found: dict[str, Any] = {"window_s": 1, "symbols": SYMBOLS, "seconds_per_run": seconds}
    random = np.random.default_rng(7)
    draws = {mode: _drawn_p99s(runs[mode], random) for mode in modes}
    for mode in modes:
        windows = [ms for run in runs[mode] for boundary in run["boundaries_ms"] for ms in boundary]
        p50, p99 = np.quantile(windows, [0.5, 0.99]).tolist()
        found[mode] = {
            "boundaries": sum(len(run["boundaries_ms"]) for run in runs[mode]),
            "window_p50_ms": round(p50, 3),
            "window_p99_ms": round(p99, 3),
            "p99_ms_by_run": [run["window_ms"]["p99"] for run in runs[mode]],
            "loop_lag_p99_ms": spread([run["loop_lag_ms"]["p99"] for run in runs[mode]], 3),
            "questions": [run["questions"] for run in runs[mode]],
        }
    for mode in modes[1:]:
        ratios = np.quantile(draws[mode] / draws["off"], [0.025, 0.975]).tolist()
        ratio = found[mode]["window_p99_ms"] / found["off"]["window_p99_ms"]
        found[mode]["p99_ratio_to_off"] = round(ratio, 3)
        found[mode]["p99_ratio_interval"] = [round(ratio, 3) for ratio in ratios]
    return found


def _drawn_p99s(
    runs: list[Any], random: np.random.Generator, draws: int = 1_000
) -> NDArray[np.float64]:
    """p99 of the windows of as many boundaries as there were, drawn with replacement."""
    boundaries = [np.array(boundary) for run in runs for boundary in run["boundaries_ms"]]
    return np.array(
        [
            np.quantile(np.concatenate([boundaries[k] for k in drawn]), 0.99)
            for drawn in random.integers(0, len(boundaries), (draws, len(boundaries)))
        ]
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    given = arguments(__doc__).parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    calls, rounds = (20, 1) if given.smoke else (300, 3)
    warm_up_s, seconds = (3.0, 3.0) if given.smoke else (10.0, 120.0)  # the SDK is loaded meanwhile
    with scripted_server("", cores()[1]) as urls:
        by_provider = {name: asyncio.run(overhead(urls, name, calls)) for name in PROVIDERS}
    result = {
        "benchmark": "ai",
        "calls": calls,
        "overhead": by_provider,
        "import": import_cost(1 if given.smoke else 5),
        "window_timing": window_timing(warm_up_s, seconds, rounds),
        "versions": versions(("groq", "dashscope", "openai", "pydantic", "msgspec", "uvloop")),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
