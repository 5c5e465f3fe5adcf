"""Wherever a recorder dies, each durable frame is readable once, and what was lost is named."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake.atomic import Step
from lake.frame_journal import segments_in
from lake.gap_ledger import read_gaps
from lake.part_files import date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_compaction import StreamCompaction
from lake.stream_files import read_stream_file, stream_dates, stream_files
from tests.lake_fakes import DyingWriter, Killed
from tests.recorder_frames import START_MS, STEP_MS, books_of, recorder_of, trades_of

CLOSED_MS = date_start_ms("2024-07-19") + 3 * DAY_MS
operation = st.one_of(
    st.tuples(st.just("frames"), st.integers(1, 30)),
    st.tuples(st.just("frames"), st.integers(1, 30)),
    st.tuples(st.just("not sent"), st.integers(1, 3)),
    st.tuples(st.just("sync"), st.none()),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("compact"), st.none()),
)
life = st.tuples(st.lists(operation, max_size=8), st.integers(0, 60))
"""What one process does, and the step at which it dies (0: it stops cleanly)."""


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    """What a machine that dies would lose is cut off by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


class Power(DyingWriter):
    """Dies at a step, and knows what the disk has for certain."""

    def __init__(self, at):
        super().__init__(at)
        self.synced: dict[Path, int] = {}

    def __call__(self, step, path):
        if path.suffix == ".journal" and step is Step.SYNCED:
            self.synced[path] = path.stat().st_size
        super().__call__(step, path)

    def cut(self, share):
        """A power cut: of what was written and not synced, any part may be gone."""
        for _, path in segments_in(next(iter(self.synced)).parent if self.synced else Path("-")):
            size, safe = path.stat().st_size, self.synced.get(path)
            if safe is not None and size > safe:
                os.truncate(path, safe + int((size - safe) * share))


class Market:
    """What the exchange sent, and how much of it is certain to be durable."""

    def __init__(self):
        self.next = 0
        self.sent: list[int] = []
        self.unsynced: list[int] = []
        self.durable: list[int] = []

    def frames(self, count):
        numbers = list(range(self.next, self.next + count))
        self.next += count
        self.sent += numbers
        self.unsynced += numbers
        return numbers

    def synced(self):
        self.durable += self.unsynced
        self.unsynced = []


async def live(paths, market, operations, power):
    recorder = None
    try:
        recorder = recorder_of(paths, hook=power)
        compaction = StreamCompaction(paths, hook=power)
        compaction.recover()
        await recorder.open()
        for name, argument in operations:
            if name == "frames":
                numbers = market.frames(argument)
                recorder.on_frames(trades_of(numbers))
                recorder.on_frames(books_of(numbers))
            elif name == "not sent":
                market.next += argument
            elif name == "sync":
                await recorder.sync()
                market.synced()
            elif name == "flush":
                await recorder.flush()
                market.synced()
            else:
                compaction.compact_due(CLOSED_MS)
        if power.at == 0:
            await recorder.finish()
            market.synced()
    except Killed:
        pass
    finally:
        if recorder is not None:
            recorder._thread.close()
            recorder._journal._thread.close()
            recorder._frame_journal.close()


@given(lives=st.lists(life, min_size=1, max_size=4), share=st.floats(0, 1))
@example(lives=[([("frames", 5), ("flush", None), ("frames", 5)], 9)], share=0.5)
def test_no_kill_point_loses_or_doubles_frames(lives, share):
    with tempfile.TemporaryDirectory() as name:
        paths = LakePaths.of(Path(name))
        market = Market()
        for operations, kill_at in lives:
            power = Power(kill_at)
            asyncio.run(live(paths, market, operations, power))
            power.cut(share)
            market.unsynced = []  # may be there, or not
            check_files(paths, market)
        market.next += 1
        asyncio.run(live(paths, market, [("frames", 1)], Power(0)))  # shows what is missing before
        check_files(paths, market)
        check_whole(paths, market)


def numbers_of(paths, kind):
    column = "agg_trade_id" if kind == "trades" else "first_update_id"
    return [
        number if kind == "trades" else number // 10
        for date in stream_dates(paths, kind)
        for path in stream_files(paths, kind, date)
        for number in read_stream_file(path, kind).column(column).to_pylist()
    ]


def check_files(paths, market):
    """At every moment: whole files, nothing twice, nothing that was not sent."""
    for kind in ("trades", "depth"):
        found = numbers_of(paths, kind)
        assert [n for n, count in Counter(found).items() if count > 1] == []
        assert set(found) <= set(market.sent)
        assert list(paths.raw.rglob("*.damaged")) == []


def check_whole(paths, market):
    """After the next start: what was durable is in Parquet, what is not there is named."""
    trades, books = set(numbers_of(paths, "trades")), set(numbers_of(paths, "depth"))
    assert set(market.durable) <= trades
    assert set(market.durable) <= books
    lost_trades = set(range(min(trades), market.next)) - trades
    lost_books = set(range(min(books), market.next)) - books
    gaps = read_gaps(paths.gaps, "recorder")
    named = [n for g in gaps if g.kind == "trades" for n in range(g.first_id, g.last_id + 1)]
    assert sorted(named) == sorted(lost_trades)
    spans = [(g.from_ms, g.until_ms) for g in gaps if g.kind == "depth"]
    for number in lost_books:
        at_ms = START_MS + STEP_MS * number
        assert any(from_ms < at_ms < until_ms for from_ms, until_ms in spans), number
    for number in books:
        at_ms = START_MS + STEP_MS * number
        assert not any(from_ms < at_ms < until_ms for from_ms, until_ms in spans), number


SCENARIO = [
    ("frames", 40),
    ("sync", None),
    ("frames", 30),  # over midnight
    ("flush", None),
    ("not sent", 2),
    ("frames", 5),
    ("flush", None),
    ("frames", 5),
    ("sync", None),
    ("compact", None),
]


def steps_of(operations):
    with tempfile.TemporaryDirectory() as name:
        counting = Power(0)
        asyncio.run(live(LakePaths.of(Path(name)), Market(), operations, counting))
        return len(counting.steps)


@pytest.mark.parametrize(
    "stride", [9, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(1_200)])]
)
def test_dying_at_every_step_of_a_life_and_of_the_recovery(stride):
    for step in range(1, steps_of(SCENARIO) + 1, stride):
        with tempfile.TemporaryDirectory() as name:
            paths, market = LakePaths.of(Path(name)), Market()
            for operations, kill_at in ((SCENARIO, step), ([], 1 + step % 9)):
                power = Power(kill_at)
                asyncio.run(live(paths, market, operations, power))
                power.cut(share=(step % 3) / 2)
                market.unsynced = []
                check_files(paths, market)
            asyncio.run(live(paths, market, [("frames", 1)], Power(0)))
            check_whole(paths, market)
