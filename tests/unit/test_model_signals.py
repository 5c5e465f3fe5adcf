"""A model beside the flow: what it fails at is told, and the market data go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from binance_api.endpoints import Route
from domain.errors import ModelError
from domain.events import AnalysisUnavailable, Topic
from domain.market import Market
from event_bus import DropOldest, EventBus
from feature_store import FeatureStore
from inference.model import Model, Prediction
from lake.signal_store import signal_store
from market_orchestrator.market_flow import ClosedWindow, MarketFlow, MarketFlowSettings
from market_orchestrator.model_signals import ModelAnalyst
from market_orchestrator.outputs import Outputs
from microstructure.measures import FEATURE_NAMES
from tests.model_cards import card_of
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

NS = START_MS * 1_000_000


def frame(number: int, **changes: Any) -> bytes:
    """The ``number``-th depth frame of a chain, as compact as the exchange sends it."""
    ids: dict[str, Any] = {"U": 10 * number + 1, "u": 10 * number + 10, "pu": 10 * number}
    sent = depth_frame(T=START_MS + 100 * number, E=START_MS + 100 * number, **(ids | changes))
    return json.dumps(json.loads(sent), separators=(",", ":")).encode()


class ScriptedModel:
    """Answers what it is told to, window by window, and remembers what it was shown."""

    symbols = ("BTCUSDT",)
    card = card_of()

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.books: list[bool] = []

    def add_book(self, _book: object, *, chain_broken: bool) -> None:
        self.books.append(chain_broken)

    def add_window(self, *_: object, **__: object) -> None:
        """Not looked at."""

    def predict(self, symbol: str, start_ms: int) -> Prediction | str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Prediction(
            symbol=symbol,
            decision_ms=start_ms + 5_000,
            p_down=0.2,
            p_flat=0.3,
            p_up=0.5,
            features=dict.fromkeys(FEATURE_NAMES, 1.0),
            input_hash="h",
        )

    def statistics(self) -> dict[str, Any]:
        return {}


class Scene:
    """A flow with a model, its outputs and their bus."""

    def __init__(self, folder: Path, model: ScriptedModel) -> None:
        settings = MarketFlowSettings(symbols=("BTCUSDT",))
        self.flow = MarketFlow(settings, monotonic_ns=lambda: 0, repairable=False)
        self.bus = EventBus()
        self.gone = self.bus.subscribe(
            [Topic.ANALYSIS_UNAVAILABLE], policy=DropOldest(9), name="test"
        )
        self.outputs = Outputs(
            self.bus, FeatureStore(folder), signal_store(folder / "signals"), None, lambda: NS
        )
        self.analyst = ModelAnalyst(
            cast("Model", model),
            self.flow,
            self.outputs,
            self.bus,
            market=Market.UM,
        )

    def windows(self, count: int) -> list[ClosedWindow]:
        times = range(START_MS, START_MS + 5_000 * count + 1_000, 500)
        trades = [agg_trade_frame(a=i, T=at_ms, E=at_ms) for i, at_ms in enumerate(times)]
        self.flow.on_frames(Route.TRADES, 2, trades, [NS] * len(trades))
        return [c for batch in list(self.flow.live) for c in self.flow.analyse(batch)]

    def told(self) -> list[str]:
        payloads = [envelope.payload for envelope in self.gone.drain_nowait()]
        return [p.reason for p in payloads if isinstance(p, AnalysisUnavailable)]


def test_a_refused_input_is_unavailable_and_the_next_window_is_answered(data_dir: Path) -> None:
    async def scene() -> None:
        here = Scene(data_dir, ScriptedModel(ModelError("no such input"), "fine"))
        with capture_logs() as logs:
            for closed in here.windows(2):
                here.analyst.ask(closed)
                here.analyst.settle()
        assert here.told() == ["model:m: no such input"]
        assert [entry["event"] for entry in logs if "model" in entry["event"]] == ["model.failed"]
        found = here.analyst.statistics()
        assert (found["asked"], found["answered"], found["failed"]) == (2, 1, 1)
        assert [s.source for s in here.outputs.signals.pending()] == ["model:m"]

    asyncio.run(scene())


@pytest.mark.parametrize("first", [ValueError("a defect"), "overtaken"])
def test_of_waiting_questions_the_newest_is_answered_and_a_defect_ends_nothing(
    data_dir: Path, first: object
) -> None:
    async def scene() -> None:
        here = Scene(data_dir, ScriptedModel(first, "fine"))
        older, newer, newest = here.windows(3)
        task = asyncio.create_task(here.analyst.run())
        here.analyst.ask(older)
        here.analyst.ask(newer)
        async with asyncio.timeout(20):
            while (
                sum(map(int, (here.analyst.statistics()[k] or 0 for k in ("answered", "failed"))))
                < 1
            ):
                await asyncio.sleep(0.01)
            here.analyst.ask(newest)
            while not here.analyst.statistics()["answered"]:
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        assert here.analyst.statistics()["overtaken"] == 1

    asyncio.run(scene())


def test_a_frame_that_cannot_be_read_breaks_the_chain_for_the_next(data_dir: Path) -> None:
    async def scene() -> None:
        model = ScriptedModel()
        here = Scene(data_dir, model)
        frames = [frame(0), frame(1, b=[["64000.00", "1.5"], ["x", "2"]]), frame(2), frame(3)]
        here.flow.on_frames(Route.DEPTH, 1, frames, [NS] * len(frames))
        here.analyst.settle()
        assert model.books == [False, True, False]
        assert here.analyst.statistics()["unreadable_books"] == 1

    asyncio.run(scene())
