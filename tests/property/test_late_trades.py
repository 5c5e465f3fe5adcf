"""A missing trade may come late over a socket while repair fetches it: it is stored exactly once."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from binance_api.decode import decode_trades
from binance_api.endpoints import Route
from collectors.repair import RecorderRepair, RepairSettings
from collectors.stored_holes import enter_stored_holes, recorded_before
from domain.errors import StorageError
from domain.market import NO_VALUE, Market
from lake.atomic import Step
from lake.paths import LakePaths
from lake.stream_files import read_stream_file, stream_dates, stream_files
from tests.recorder_frames import START_MS, STEP_MS, SYMBOL, batch_of, recorder_of, trade_frame

STOPPED_AT = Step.SYNCED  # the file of repaired rows has no name yet
PATIENCE_S = 20.0


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


class Reply(msgspec.Struct, frozen=True):
    value: np.ndarray
    rejected_count: int = 0


class History:
    """All trades there were; a reply comes when the gate is open."""

    def __init__(self):
        self.next = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def agg_trades(self, symbol, *, from_id=None, limit=1_000, **_options):
        self.asked += 1
        await self.gate.wait()
        ids = range(from_id, min(from_id + limit, self.next))
        frames = [trade_frame(number) for number in ids]
        rows = decode_trades(frames, [0] * len(frames), {symbol: 0}).rows
        for name in ("event_time_ms", "receive_time_ns", "quantity_ex_rpi"):
            rows[name] = NO_VALUE
        return Reply(rows)


class Hook:
    """Stops the writer of repaired rows in mid-write, or fails it."""

    def __init__(self):
        self.is_failing = False
        self.is_stopping = False
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, step, path):
        if step is STOPPED_AT and self.is_stopping:
            self.reached.set()
            self.go_on.wait(PATIENCE_S)
        if step is Step.RENAMED and self.is_failing:  # it is stored, and its writer does not know
            raise StorageError(f"cannot write {path}: no space")


class Life:
    """One process: a recorder and its repair."""

    def __init__(self, paths, history):
        self.paths, self.history, self.hook = paths, history, Hook()
        self.recorder = recorder_of(paths)
        self.work: asyncio.Task[None] | None = None

    async def open(self):
        await self.recorder.open()
        ledger = self.recorder._ledger
        self.repair = RecorderRepair(
            *(self.paths, ledger, self.history, None),
            RepairSettings(grace_s=0.0),
            market=Market.UM,
            market_ms=lambda: START_MS + STEP_MS * self.history.next,
            wall_ns=lambda: 2,
            monotonic=lambda: 0.0,
            claims=self.recorder.claims,
            recorded=[SYMBOL],
            hook=self.hook,
        )
        self.before = recorded_before(self.paths, ledger, [SYMBOL])

    def find_damage(self):
        found = enter_stored_holes(self.paths, self.recorder._ledger, self.before, at_ns=3)
        assert found == []
        self.repair.doubt(found)

    async def ask(self):
        """A request is on its way; until it is answered nothing of it is decided."""
        if self.work is None:
            self.history.gate.clear()
            asked = self.history.asked
            self.work = asyncio.ensure_future(self.repair.work_off())
            while not self.work.done() and self.history.asked == asked:
                await asyncio.sleep(0)

    async def answer(self, late=(), *, fails=False):
        """The reply comes; ``late`` over a socket while its rows are written."""
        await self.ask()
        hook, work = self.hook, self.work
        assert work is not None
        hook.is_failing, hook.is_stopping = fails, bool(late)
        hook.reached.clear()
        hook.go_on.clear()
        self.history.gate.set()
        if late:
            while not work.done() and not hook.reached.is_set():
                await asyncio.sleep(0.001)
            self.frames(late)
            hook.go_on.set()
        await asyncio.wait([work], timeout=PATIENCE_S)
        if not fails:
            work.result()
        else:
            assert isinstance(work.exception(), StorageError | None)
        hook.is_failing = hook.is_stopping = False
        self.work = None

    def frames(self, numbers, **changed):
        frames = [trade_frame(number, **changed) for number in numbers]
        if frames:
            self.recorder.on_frames(batch_of(Route.TRADES, frames))

    async def die(self):
        """What was synced is in the journal, what was asked for comes to nothing."""
        await self.recorder.sync()
        if self.work is not None:
            self.work.cancel()
            await asyncio.wait([self.work])
        self.recorder.holes.flush()
        self.recorder._thread.close()
        await self.recorder._journal.close()
        self.recorder._frame_journal.close()


def stored(paths):
    return [
        number
        for date in stream_dates(paths, "trades")
        for path in stream_files(paths, "trades", date)
        for number in read_stream_file(path, "trades").column("agg_trade_id").to_pylist()
    ]


async def play(paths, operations):
    history = History()
    life = Life(paths, history)
    await life.open()
    late: list[int] = []  # sent, and not delivered yet

    def some(share):
        """Any of the trades that are late; each may come twice."""
        return [number for i, number in enumerate(late[-24:]) if share >> (i % 6) & 1]

    for name, number in operations:
        if name == "frames":
            life.frames(range(history.next, history.next + number))
            history.next += number
        elif name == "skipped":
            late += range(history.next, history.next + number)
            history.next += number
        elif name == "late":
            life.frames(some(number))
        elif name == "contradicted":
            life.frames(some(number), q="9.999")
        elif name == "enter":
            life.recorder.holes.enter(0.0)
        elif name == "flush":
            await life.recorder.flush()
        elif name == "ask":
            await life.ask()
        elif name == "answer":
            await life.answer(some(number))
        elif name == "fail":
            await life.answer(some(number), fails=True)
        elif name == "find damage":
            life.find_damage()
        else:
            await life.die()
            life = Life(paths, history)
            await life.open()
        check(paths)
    await end(life, history)
    check(paths)
    return history.next


async def end(life, history):
    life.frames([history.next])
    history.next += 1
    await life.recorder.flush()
    await life.answer()
    await life.answer()
    await life.recorder.finish()
    life.find_damage()
    assert life.recorder._ledger.unresolved("trades") == []


def check(paths):
    assert [n for n, count in Counter(stored(paths)).items() if count > 1] == []


def run(operations):
    with tempfile.TemporaryDirectory() as name:
        paths = LakePaths.of(Path(name))
        first = ("frames", 1)  # nothing before the first trade is missing
        count = asyncio.run(asyncio.wait_for(play(paths, [first, *operations]), 60))
        assert sorted(stored(paths)) == list(range(count))


SHARE = st.integers(1, 63)
OPERATIONS = st.one_of(
    st.tuples(st.just("frames"), st.integers(1, 4)),
    st.tuples(st.just("skipped"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["late", "late", "answer", "fail"]), SHARE),
    st.tuples(
        st.sampled_from(["enter", "flush", "ask", "ask", "find damage", "restart"]), st.just(0)
    ),
)
HOLE = [("skipped", 4), ("frames", 2), ("enter", 0)]


@given(operations=st.lists(OPERATIONS, max_size=20))
@example(operations=[*HOLE, ("answer", 0), ("late", 1), ("enter", 0), ("answer", 0)])
@example(operations=[*HOLE, ("answer", 2), ("enter", 0), ("answer", 0)])
@example(operations=[*HOLE, ("ask", 0), ("late", 3), ("answer", 0)])
@example(operations=[*HOLE, ("fail", 2), ("late", 63), ("answer", 0)])
@example(operations=[*HOLE, ("flush", 0), ("answer", 0), ("late", 2), ("restart", 0)])
def test_a_trade_that_comes_late_is_stored_once(operations):
    run(operations)
