"""What a live run does with the windows of a boundary, and in which order."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from binance_api.endpoints import Route
from domain.events import FeaturesEvent, Signal, Topic
from event_bus import DropOldest, EventBus
from feature_store import FeatureStore
from lake.gap_ledger import GapLedger
from lake.quarantine import Quarantine
from lake.signal_store import signal_store
from market_orchestrator.live_tasks import analyse_windows, spare_the_collector
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from market_orchestrator.outputs import Outputs
from market_orchestrator.storage import Storage, StorageSettings
from market_orchestrator.windows import WindowSettings
from rules_analyst import RulesAnalyst
from tests.trade_frames import START_MS, Print, depth_frame, rows_of

D = 5_000  # ms, a window
SYMBOLS = ("S0USDT", "S1USDT", "S2USDT")


class Bench:
    """Three symbols whose windows close one by one; the clock is that of the trades."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = START_MS * 1_000_000
        settings = MarketFlowSettings(symbols=SYMBOLS, windows=WindowSettings(batch_symbols=1))
        self.flow = MarketFlow(
            settings,
            monotonic_ns=lambda: self.now_ns,
            wall_ns=lambda: self.now_ns,
            repairable=False,
        )
        bus = EventBus()
        self._events = bus.subscribe(
            (Topic.FEATURES, Topic.SIGNAL), policy=DropOldest(1_000), name="test"
        )
        self.outputs = Outputs(
            bus,
            FeatureStore(folder),
            signal_store(folder / "signals"),
            RulesAnalyst(),
            lambda: self.now_ns,
        )
        self.storage = Storage(
            self.flow,
            self.outputs,
            Quarantine(folder / "quarantine"),
            GapLedger(folder / "gaps"),
            StorageSettings(),
            monotonic=lambda: self.now_ns / 1e9,
            wall_ns=lambda: self.now_ns,
        )
        self.flow.builder.begin(START_MS)
        for index, sequence in enumerate(self.flow.validator.sequences):
            sequence.resume(0, START_MS - 1)
            self.flow.builder.insert_head(index, rows_of([]), proven=True)

    def trade(self, offset_ms: int, number: int) -> None:
        """One trade of every symbol."""
        self.now_ns = (START_MS + offset_ms + 100) * 1_000_000
        prints = [Print(number, START_MS + offset_ms, symbol_index=i) for i in range(3)]
        self.flow.on_trades(rows_of(prints), authoritative=False)

    async def analyse(self) -> None:
        await analyse_windows(self.flow, self.outputs, self.storage)

    def published(self) -> list[tuple[str, str, int]]:
        """What came over the bus since the last call: kind, symbol, window end from the start."""
        found = []
        for envelope in self._events.drain_nowait():
            payload = envelope.payload
            if isinstance(payload, FeaturesEvent):
                end_ms = payload.row.window_end_ms - START_MS
                found.append(("features", payload.row.symbol, end_ms))
            elif isinstance(payload, Signal):
                found.append(("signal", payload.symbol, payload.window_end_ms - START_MS))
        return found


def of_boundary(end_ms: int) -> list[tuple[str, str, int]]:
    return [(kind, symbol, end_ms) for kind in ("features", "signal") for symbol in SYMBOLS]


def test_all_windows_of_a_boundary_come_before_what_is_said_of_any(tmp_path: Path) -> None:
    async def work() -> list[tuple[str, str, int]]:
        bench = Bench(tmp_path)
        for number in range(1, 8):
            bench.trade(1_000 * number, number)
        bench.trade(3 * D, 8)  # closes two boundaries at once
        await bench.analyse()
        return bench.published()

    assert asyncio.run(work()) == of_boundary(D) + of_boundary(2 * D)


def test_what_windows_teach_is_learnt_after_all_of_a_boundary_were_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> list[tuple[str, int]]:
        bench = Bench(tmp_path)
        seen: list[tuple[str, int]] = []
        learn_more, judge = bench.flow.pipeline.learn_more, bench.outputs.judge

        def learning() -> None:
            seen.append(("learn", len(bench.flow.pipeline.unlearnt)))
            learn_more()

        def judging() -> None:
            judge()
            seen.append(("judge", len(bench.flow.pipeline.unlearnt)))

        monkeypatch.setattr(bench.flow.pipeline, "learn_more", learning)
        monkeypatch.setattr(bench.outputs, "judge", judging)
        bench.trade(1_000, 1)
        bench.trade(D + 500, 2)
        await bench.analyse()
        return seen

    judged, learnt = [("judge", 3)] * 3, [("learn", left) for left in (3, 2, 1)]
    assert asyncio.run(work()) == judged + learnt


def test_a_boundary_that_closes_meanwhile_waits_until_the_one_before_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market_orchestrator.live_tasks._SLICE_S", 0.0)  # others come after each

    async def work() -> list[tuple[str, str, int]]:
        bench = Bench(tmp_path)
        bench.trade(1_000, 1)
        bench.trade(D + 500, 2)
        analysing = asyncio.create_task(bench.analyse())
        await asyncio.sleep(0)
        bench.trade(2 * D + 500, 3)
        await analysing
        return bench.published()

    assert asyncio.run(work()) == of_boundary(D) + of_boundary(2 * D)


def test_a_stop_between_two_slices_loses_no_window_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market_orchestrator.live_tasks._SLICE_S", 0.0)

    async def stopped_after(turns: int) -> list[tuple[str, str, int]]:
        bench = Bench(tmp_path / str(turns))
        bench.trade(1_000, 1)
        bench.trade(D + 500, 2)
        analysing = asyncio.create_task(bench.analyse())
        for _ in range(turns):
            await asyncio.sleep(0)
        analysing.cancel()
        await asyncio.wait({analysing})
        await bench.analyse()  # as a stopping run does
        return bench.published()

    for turns in range(12):
        assert asyncio.run(stopped_after(turns)) == of_boundary(D)


def test_trades_are_awaited_where_the_next_may_prove_a_boundary(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    found = []
    for number, offset_ms in enumerate((1_000, D + 115, D + 125, D + 150, D + 160), 1):
        bench.trade(offset_ms, number)  # which the exchange sends 100 ms later
        found.append(bench.flow.awaits_trades())
    assert found == [False, False, True, False, False]
    assert bench.flow.live


def test_the_last_books_of_a_boundary_are_read_before_it_closes(tmp_path: Path) -> None:
    async def work() -> int:
        bench = Bench(tmp_path)
        for number, offset_ms in enumerate((D - 100, D)):
            frames = [
                depth_frame(symbol, T=START_MS + offset_ms, u=20 + number, pu=19 + number)
                for symbol in SYMBOLS
            ]
            bench.flow.on_frames(Route.DEPTH, 1, frames, [bench.now_ns] * len(frames))
        waiting = len(bench.flow.books.unread)
        await bench.analyse()
        assert not bench.flow.books.unread
        return waiting

    assert asyncio.run(work()) == len(SYMBOLS)


def test_what_a_run_holds_for_good_is_hidden_from_full_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("market_orchestrator.live_tasks._SETTLED_S", 0.0)
    held = [[number] for number in range(1_000)]
    before = gc.get_freeze_count()
    try:
        asyncio.run(spare_the_collector())
        assert gc.get_freeze_count() >= before + len(held)
    finally:
        gc.unfreeze()
