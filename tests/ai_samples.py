"""Windows, contexts, settings and collectors for the tests of the AI analyst."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from ai.journal import CallRecord
from ai.prompt import Prompt, build_prompt
from ai.settings import AISettings
from ai_analyzer_qwen import AIAnalyzer
from domain.context import KeyLevels, MarketContext, Session, TrendRegime, VolatilityRegime
from domain.events import Alert, AnalysisUnavailable, Signal
from domain.features import FeatureRow
from simulator.ai_server import ScriptedAI

WINDOW_MS = 5_000
START_MS = 1_721_347_200_000  # 2024-07-19 00:00 UTC
CANARY = {
    "groq": "gsk-canary-7f3a91c2d4",
    "dashscope": "sk-canary-58b0e6aa17",
    "openai": "canary~%key$93ce10",
}
PROVIDERS = ("groq", "dashscope", "openai")
needs_full_disk = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="a device that is always full is needed"
)

_ROW: dict[str, Any] = {
    "symbol": "BTCUSDT",
    "window_start_ms": START_MS,
    "window_end_ms": START_MS + WINDOW_MS,
    "revision": 0,
    "complete": True,
    "missing_trades": 0,
    "trade_count": 311,
    "fill_count": 702,
    "first_agg_id": 1,
    "last_agg_id": 311,
    "open": 64000.1,
    "high": 64012.9,
    "low": 63998.0,
    "close": 64010.5,
    "vwap": 64005.2,
    "volume": 18.372,
    "quote_volume": 1175903.4,
    "buy_volume": 12.1,
    "sell_volume": 6.272,
    "delta": 5.828,
    "cvd": -131.77,
    "net_flow_quote": 373022.3,
    "flow_imbalance": 0.31722,
    "whale_buy_volume": 3.2,
    "whale_sell_volume": 0.0,
    "whale_delta": 3.2,
    "whale_count": 2,
    "burst_count": 0,
    "suspect_count": 0,
    "cvd_anchor_ms": START_MS,
    "cvd_complete": True,
    "realized_vol": 0.00012345,
    "spread_bps": 0.0156,
    "microprice": 64010.4731,
    "book_imbalance": 0.45678,
    "ofi": 7.25,
    "depth_frames": 50,
    "origin": "live",
    "net_flow_quote_z": 2.3145,
    "delta_z": 2.1,
    "ofi_z": 1.25,
    "absorption": 0.4,
}
_LEVELS = KeyLevels(
    day_start_ms=START_MS - 86_400_000,
    high=65120.0,
    low=63218.4,
    close=63980.0,
    pivot=64106.1333333,
    r1=64993.9,
    r2=66007.7,
    r3=66895.5,
    s1=63092.3,
    s2=62204.5,
    s3=61190.7,
    poc=64055.0,
    vah=64600.0,
    val=63550.0,
)
_CONTEXT: dict[str, Any] = {
    "symbol": "BTCUSDT",
    "window_start_ms": START_MS,
    "window_end_ms": START_MS + WINDOW_MS,
    "complete": True,
    "price": 64010.5,
    "session": Session.ASIA,
    "volatility_regime": VolatilityRegime.NORMAL,
    "volatility_1m": 0.000412345,
    "volatility_ratio": 1.1,
    "trend_regime": TrendRegime.UP,
    "trend_score": 1.7,
    "return_1m_bps": 4.2123,
    "return_5m_bps": -1.0,
    "return_15m_bps": 12.5,
    "high_15m": 64020.0,
    "low_15m": 63900.0,
    "session_vwap": 63990.8,
    "vwap_distance_bps": 3.08,
    "session_high": 64020.0,
    "session_low": 63850.2,
    "session_coverage_ratio": 1.0,
    "cvd": -131.77,
    "cvd_slope_5m": 2.4,
    "cvd_divergence": 0,
    "levels": _LEVELS,
    "resistance_distance_bps": 14.93,
    "support_distance_bps": 47.64,
    "history_windows": 400,
}
_CONTEXT_ONLY = {"price", "cvd_divergence", "levels"}


def window(
    number: int = 0, symbol: str = "BTCUSDT", **changes: Any
) -> tuple[FeatureRow, MarketContext]:
    """Window ``number`` of a symbol; changes go to the row, the context, or both."""
    start = START_MS + number * WINDOW_MS
    where = {"symbol": symbol, "window_start_ms": start, "window_end_ms": start + WINDOW_MS}
    row = {k: v for k, v in changes.items() if k in FeatureRow.__struct_fields__}
    context = {k: v for k, v in changes.items() if k in MarketContext.__struct_fields__}
    return FeatureRow(**(_ROW | where | row)), MarketContext(**(_CONTEXT | where | context))


def prompt_of(number: int = 0, **changes: Any) -> Prompt:
    return build_prompt(*window(number, **changes))


class Outbox:
    """What an analyzer published."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []
        self.unavailable: list[AnalysisUnavailable] = []
        self.alerts: list[Alert] = []


def settings_for(server: ScriptedAI | None, **changes: Any) -> AISettings:
    """All three providers at the local server, every window asks; deadlines that nothing meets."""
    chosen = changes.pop("only", PROVIDERS)
    values: dict[str, Any] = {
        "providers": chosen,
        "keys": {name: SecretStr(CANARY[name]) for name in chosen},
        "base_urls": {} if server is None else dict(server.urls),
        "min_interval_s": 0.0,
        "deadline_s": 60.0,
        "attempt_deadline_s": 20.0,
        "daily_tokens": None,
        "daily_usd": None,
    }
    return AISettings(**(values | changes))


def analyzer_for(settings: AISettings, folder: Path, outbox: Outbox, **changes: Any) -> AIAnalyzer:
    values: dict[str, Any] = {
        "now_ms": lambda: START_MS + WINDOW_MS,
        "publish_signal": outbox.signals.append,
        "publish_unavailable": outbox.unavailable.append,
        "publish_alert": outbox.alerts.append,
    }
    return AIAnalyzer(settings, folder, **(values | changes))


@asynccontextmanager
async def running(analyzer: AIAnalyzer) -> AsyncIterator[AIAnalyzer]:
    """The analyzer at work; cancelled at the end."""
    task = asyncio.create_task(analyzer.run())
    await asyncio.sleep(0)  # it has begun, and so will end in order
    try:
        yield analyzer
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


async def ask(
    settings: AISettings,
    folder: Path,
    windows: Iterable[tuple[FeatureRow, MarketContext]],
    **changes: Any,
) -> tuple[Outbox, AIAnalyzer]:
    """Put each window to an analyzer of its own run, one after the other."""
    outbox = Outbox()
    async with running(analyzer_for(settings, folder, outbox, **changes)) as analyzer:
        for row, context in windows:
            analyzer.on_window(row, context)
            await asyncio.wait_for(analyzer.settle(), 60)
    return outbox, analyzer


def records(folder: Path) -> list[CallRecord]:
    """The journal, all days."""
    lines = [
        line
        for path in sorted(folder.glob("calls-*.jsonl"))
        for line in path.read_bytes().split(b"\n")
    ]
    return [msgspec.json.decode(line, type=CallRecord) for line in lines if line]
