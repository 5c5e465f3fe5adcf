"""Holes are asked for, filled, lost or expired, and whatever happens to them is published."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from binance_api.endpoints import AGG_TRADES_REACH_MS
from binance_api.errors import ExchangeError
from domain.events import GapEvent, GapState
from domain.flow import Origin
from market_orchestrator.gap_repair import GapRepairer, GapRepairSettings
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from tests.trade_frames import START_MS, FakeHistory, ManualClock, Print, rows_of
from tests.window_bench import D, Window, windows_of

Scenario = Callable[["Bench"], Awaitable[None]]


class Bench:
    """A flow, a repairer and a history; time moves only by ``after``."""

    def __init__(self, prints: Sequence[Print], *, symbols: int = 1, **settings: Any) -> None:
        names = tuple(f"S{i}USDT" for i in range(symbols))
        self.clock = ManualClock()
        self.flow = MarketFlow(
            MarketFlowSettings(symbols=names), monotonic_ns=self.clock, repairable=True
        )
        self.history = FakeHistory(prints)
        self.events: list[GapEvent] = []
        self.repairer = GapRepairer(
            self.flow,
            self.history,
            self.events.append,
            GapRepairSettings(**settings),
            monotonic_ns=self.clock,
            wall_ns=lambda: 1,
        )

    def begin(self, *, last_id: int = 0) -> None:
        """The first window starts at START_MS, the trade before it is known."""
        self.flow.builder.begin(START_MS)
        for index, sequence in enumerate(self.flow.validator.sequences):
            sequence.resume(last_id, START_MS - 1)
            self.flow.builder.insert_head(index, rows_of([]), proven=True)

    def receive(self, *prints: Print) -> None:
        self.flow.on_trades(rows_of(prints), authoritative=False)

    async def after(self, seconds: float = 0.0) -> None:
        """Let time pass and the repairer do what there is to do."""
        self.clock.advance(seconds)
        self.flow.close()
        self.repairer.wake()
        for _ in range(40):
            await asyncio.sleep(0)

    def windows(self, index: int = 0) -> dict[int, Window]:
        """Number → latest revision of a symbol's windows."""
        found: dict[int, Window] = {}
        for batch in [*self.flow.live, *self.flow.revised]:
            if index in batch.symbol_index:
                found[(batch.start_ms - START_MS) // D] = windows_of(batch)[index]
        return found

    def published(self) -> list[tuple[GapState, int | None, int | None]]:
        return [(event.state, event.first_id, event.last_id) for event in self.events]


def play(bench: Bench, scenario: Scenario) -> None:
    """Run a scenario beside the repairer."""

    async def run() -> None:
        task = asyncio.create_task(bench.repairer.run())
        try:
            async with asyncio.timeout(20):
                await scenario(bench)
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def at(agg_trade_id: int, offset_ms: int, symbol_index: int = 0) -> Print:
    return Print(agg_trade_id, START_MS + offset_ms, symbol_index=symbol_index)


def market(count: int = 100, step_ms: int = 100) -> list[Print]:
    """Ids from 1 on."""
    return [at(1 + i, i * step_ms) for i in range(count)]


def open_repaired(first_id: int, last_id: int) -> list[tuple[GapState, int, int]]:
    return [(GapState.OPEN, first_id, last_id), (GapState.REPAIRED, first_id, last_id)]


# --- holes --------------------------------------------------------------------------------


def test_a_hole_is_asked_for_once_it_is_older_than_the_grace() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(*bench.history.prints[:10], *bench.history.prints[13:])
        await bench.after(0.049)
        assert not bench.history.requests
        await bench.after(0.001)
        assert bench.history.requests == [("S0USDT", 11, 4)]  # one more: proof of being past it
        assert bench.published() == open_repaired(11, 13)
        assert bench.windows()[0] == Window(START_MS, True, 0, tuple(range(1, 51)))
        assert bench.repairer.statistics()["repaired_ids"] == 3

    play(Bench(market(), grace_ms=50), scenario)


def test_a_late_trade_within_the_grace_costs_no_request() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0), at(3, 20))
        await bench.after(0.04)
        bench.receive(at(2, 10))
        await bench.after(1)
        assert not bench.history.requests

    play(Bench(market()), scenario)


def test_the_events_of_a_hole_tell_its_time_and_until_when_it_can_be_repaired() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0), at(4, 300))
        await bench.after(0.1)
        opened, repaired = bench.events
        assert (opened.kind, opened.symbol, opened.cause) == (
            "trades", "S0USDT", "lost connection"
        )  # fmt: skip
        assert (opened.from_ms, opened.until_ms) == (START_MS, START_MS + 300)
        assert opened.repairable_until_ms == START_MS + 300 + AGG_TRADES_REACH_MS
        assert (repaired.from_ms, repaired.until_ms) == (START_MS, START_MS + 300)

    play(Bench(market()), scenario)


def test_a_hole_of_several_pages_is_filled_page_by_page() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0), bench.history.prints[-1])
        for _ in range(6):
            await bench.after(0.1)
        asked = [(first, limit) for _, first, limit in bench.history.requests]
        assert asked == [(2, 1_000), (1_002, 1_000), (2_002, 499)]
        assert bench.published() == open_repaired(2, 2_499)
        assert not bench.flow.validator.sequences[0].missing

    play(Bench(market(2_500, step_ms=10)), scenario)


def test_ids_absent_from_enough_replies_are_lost() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.absent = {2, 3}
        bench.begin()
        bench.receive(at(1, 0), at(4, 300), at(70, 6_900))
        bench.receive(*market()[4:69])
        await bench.after(0.05)
        assert len(bench.history.requests) == 1
        assert not any(gap.lost for gap in bench.flow.validator.sequences[0].missing)
        await bench.after(0.1)
        assert len(bench.history.requests) == 1  # not yet again
        await bench.after(0.1)
        assert len(bench.history.requests) == 2
        assert bench.published() == [(GapState.OPEN, 2, 3), (GapState.LOST, 2, 3)]
        assert bench.windows()[0] == Window(
            START_MS, False, 2, (1, 4, *range(5, 51))
        )  # at once: nothing to wait for any more
        assert bench.repairer.statistics()["lost_ids"] == 2
        await bench.after(100)
        assert len(bench.history.requests) == 2

    play(Bench(market(), retry_s=0.2), scenario)


def test_a_hole_partly_filled_and_partly_lost_is_published_in_exact_ranges() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.absent = {5, 6}
        bench.begin()
        bench.receive(at(1, 0), at(10, 900))
        await bench.after(0.1)
        await bench.after(1)
        assert sorted(bench.published()) == sorted(
            [
                (GapState.OPEN, 2, 9),
                (GapState.REPAIRED, 2, 4),
                (GapState.LOST, 5, 6),
                (GapState.REPAIRED, 7, 9),
            ]
        )
        assert bench.repairer.statistics()["repaired_ids"] == 6

    play(Bench(market()), scenario)


def test_a_history_behind_the_stream_is_asked_ever_more_rarely_and_nothing_is_lost() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.visible_id = 1
        bench.begin()
        bench.receive(at(1, 0), at(4, 300))
        asked_at: list[float] = []
        started = bench.clock.now_ns
        for _ in range(200):
            before = len(bench.history.requests)
            await bench.after(0.05)
            if len(bench.history.requests) > before:
                asked_at.append(round((bench.clock.now_ns - started) / 1e9, 2))
        assert asked_at == [0.05, 0.25, 0.65, 1.45, 3.05, 6.25]
        assert [gap.lost for gap in bench.flow.validator.sequences[0].missing] == [False]
        bench.history.visible_id = None
        await bench.after(10)
        assert bench.published() == open_repaired(2, 3)

    play(Bench(market(), retry_s=0.2, retry_cap_s=30.0), scenario)


def test_the_waits_are_short_again_after_a_success() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.visible_id = 1
        bench.begin()
        bench.receive(at(1, 0), at(3, 200))
        for _ in range(5):
            await bench.after(10)
        bench.history.visible_id = None
        await bench.after(10)
        bench.history.visible_id = 3
        bench.receive(at(5, 400))
        await bench.after(0.05)
        count = len(bench.history.requests)
        await bench.after(0.2)
        assert len(bench.history.requests) == count + 1

    play(Bench(market(), retry_s=0.2), scenario)


def test_a_failing_request_is_counted_tried_again_later_and_hinders_no_other_symbol() -> None:
    async def scenario(bench: Bench) -> None:
        def fail_for_the_first() -> None:
            if bench.history.requests[-1][0] == "S0USDT":
                raise ExchangeError("down")

        bench.history.before_reply = fail_for_the_first
        bench.begin()
        bench.receive(at(1, 0), at(3, 200), at(1, 0, 1), at(3, 200, 1))
        await bench.after(0.05)
        missing = [len(s.missing) for s in bench.flow.validator.sequences]
        assert missing == [1, 0]
        assert bench.repairer.statistics()["failures"] == 1
        bench.history.before_reply = None
        await bench.after(0.2)
        assert not bench.flow.validator.sequences[0].missing

    play(Bench(market(), symbols=2), scenario)


def test_a_repair_after_the_window_was_emitted_revises_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.visible_id = 1
        bench.begin()
        bench.receive(at(1, 0), at(3, 200), at(4, 6_000))
        for _ in range(4):
            await bench.after(1)
        assert bench.windows()[0] == Window(START_MS, False, 1, (1, 3))
        bench.history.visible_id = None
        await bench.after(10)
        assert bench.windows()[0] == Window(START_MS, True, 0, (1, 2, 3), Origin.REVISED)

    play(Bench([at(1, 0), at(2, 100), at(3, 200), at(4, 6_000)]), scenario)


def test_a_hole_out_of_reach_expires_without_a_request() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0), at(4, 300))
        bench.flow.builder.prove(START_MS + 301 + AGG_TRADES_REACH_MS)
        bench.clock.advance(0.05)
        bench.repairer.wake()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not bench.history.requests
        assert bench.published() == [(GapState.OPEN, 2, 3), (GapState.EXPIRED, 2, 3)]
        assert bench.repairer.statistics()["expired_ids"] == 2

    play(Bench(market()), scenario)


# --- disputed ids -------------------------------------------------------------------------


def test_the_history_decides_between_copies_that_contradict_each_other() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0), at(2, 100)._replace(price=7), at(2, 100), at(3, 7_000))
        await bench.after()
        assert bench.history.requests == [("S0USDT", 2, 1)]
        assert not bench.flow.validator.sequences[0].disputed
        (rejection,) = bench.flow.take_rejections()
        assert rejection.symbol == "S0USDT"
        revised = [b for b in bench.flow.revised if b.start_ms == START_MS]
        assert revised[-1].rows["price"].tolist() == [6_400_010, 6_400_010]

    play(Bench([at(1, 0), at(2, 100), at(3, 7_000)]), scenario)


def test_a_disputed_id_the_history_does_not_have_yet_stays_disputed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.visible_id = 1
        bench.begin()
        bench.receive(at(1, 0), at(2, 100)._replace(price=7), at(2, 100))
        await bench.after()
        assert bench.flow.validator.sequences[0].disputed == {2}
        bench.history.visible_id = None
        await bench.after(1)
        assert not bench.flow.validator.sequences[0].disputed

    play(Bench(market()), scenario)


# --- outages ------------------------------------------------------------------------------


def test_after_an_outage_the_history_tells_what_was_traded_meanwhile() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(*bench.history.prints[:30])
        bench.flow.builder.lose_coverage()
        bench.repairer.route_changed(up=False)
        await bench.after(5)
        assert not bench.history.requests
        bench.repairer.route_changed(up=True)
        await bench.after()
        assert bench.history.requests == [("S0USDT", 31, 1_000)]
        assert not bench.flow.builder.uncovered()
        assert bench.windows()[0] == Window(START_MS, True, 0, tuple(range(1, 51)))
        assert not bench.events  # nothing was ever missing

    play(Bench(market()), scenario)


def test_a_long_outage_is_read_to_its_end() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0))
        bench.flow.builder.lose_coverage()
        bench.repairer.route_changed(up=True)
        await bench.after()
        asked = [first for _, first, _ in bench.history.requests]
        assert asked == [2, 1_002, 2_002]
        assert bench.flow.validator.sequences[0].max_id == 2_500
        assert not bench.flow.builder.uncovered()

    play(Bench(market(2_500, step_ms=10)), scenario)


def test_an_answer_asked_for_before_the_route_fell_again_proves_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.receive(at(1, 0))
        bench.flow.builder.lose_coverage()
        bench.history.gate = asyncio.Event()
        bench.repairer.route_changed(up=True)
        await bench.after()
        bench.flow.builder.lose_coverage()
        bench.repairer.route_changed(up=False)
        bench.history.gate.set()
        await bench.after()
        assert bench.flow.builder.uncovered() == [0]
        bench.repairer.route_changed(up=True)
        await bench.after()
        assert not bench.flow.builder.uncovered()

    play(Bench([at(1, 0)]), scenario)


# --- the first window ---------------------------------------------------------------------


def test_the_first_window_is_completed_from_the_history() -> None:
    async def scenario(bench: Bench) -> None:
        bench.repairer.route_changed(up=True)
        bench.receive(*bench.history.prints[40:])
        await bench.after()
        assert not bench.flow.builder.heads()
        assert bench.windows()[0] == Window(START_MS, True, 0, tuple(range(10, 60)))

    prints = [at(i, (i - 10) * 100) for i in range(100)]
    play(Bench(prints), scenario)


def test_a_first_window_the_history_cannot_complete_is_incomplete_by_an_unknown_number() -> None:
    async def scenario(bench: Bench) -> None:
        bench.history.first_id = 30
        bench.repairer.route_changed(up=True)
        bench.receive(*bench.history.prints[40:])
        await bench.after()
        assert bench.windows()[0] == Window(START_MS, False, None, tuple(range(30, 51)))

    play(Bench(market()), scenario)


def test_a_symbol_without_a_trade_is_proven_silent_by_its_latest_one() -> None:
    async def scenario(bench: Bench) -> None:
        bench.repairer.route_changed(up=True)
        bench.receive(at(50, 0, 1), at(51, 4_000, 1))
        bench.receive(at(52, 5_400, 1))
        await bench.after(1.9)
        assert 0 in bench.flow.builder.heads()
        await bench.after(0.2)
        assert 0 not in bench.flow.builder.heads()
        assert bench.flow.validator.sequences[0].max_id == 7
        await bench.after()
        assert bench.windows(0)[0] == Window(START_MS, True, 0, ())

    play(Bench([at(7, -60_000)], symbols=2, head_wait_ms=2_000), scenario)


def test_a_symbol_that_never_traded_is_proven_silent() -> None:
    async def scenario(bench: Bench) -> None:
        bench.flow.builder.begin(START_MS)
        bench.repairer.route_changed(up=True)
        await bench.after(2.1)
        assert not bench.flow.builder.heads()

    play(Bench([]), scenario)


def test_a_latest_trade_within_the_first_window_is_taken_and_completed_backwards() -> None:
    async def scenario(bench: Bench) -> None:
        bench.flow.builder.begin(START_MS)
        bench.repairer.route_changed(up=True)
        await bench.after(2.1)
        await bench.after(0.1)
        assert not bench.flow.builder.heads()
        bench.flow.builder.prove(START_MS + 6_000)
        await bench.after()
        assert bench.windows()[0] == Window(START_MS, True, 0, (1, 2))

    play(Bench([at(0, -100), at(1, 100), at(2, 200)]), scenario)


def test_nothing_is_asked_while_the_route_is_down() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(at(5, 100))
        await bench.after(10)
        assert not bench.history.requests

    play(Bench(market()), scenario)


def test_no_more_symbols_are_served_at_once_than_allowed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        bench.history.gate = asyncio.Event()
        for index in range(5):
            bench.receive(at(1, 0, index), at(3, 200, index))
        await bench.after(0.1)
        assert len(bench.history.requests) == 2
        assert bench.repairer.statistics()["busy_symbols"] == 5
        bench.history.gate.set()
        await bench.after(0.1)
        assert not any(s.missing for s in bench.flow.validator.sequences)

    play(Bench(market(), symbols=5, concurrency=2), scenario)
