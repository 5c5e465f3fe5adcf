"""Whatever step a merge of stream files dies at, readers see every durable row, each once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.part_files import date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_compaction import StreamCompaction, StreamCompactionSettings
from lake.stream_files import stream_dates, stream_files
from tests.lake_fakes import DyingWriter, Killed
from tests.stream_samples import NEW_DATE, OLD_DATE, depth, read_all, trades, write

PER_FILE = 8  # rows of a file; 60 rows before midnight
OPEN_MS = date_start_ms(OLD_DATE) + DAY_MS // 2
CLOSED_MS = date_start_ms(NEW_DATE) + 3 * DAY_MS

operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2)),  # how many files
        st.tuples(st.just("compact due"), st.sampled_from([OPEN_MS, CLOSED_MS])),
        st.tuples(st.just("compact"), st.sampled_from([OLD_DATE, NEW_DATE])),
        st.tuples(st.just("recover"), st.none()),
    ),
    min_size=2,
    max_size=8,
)
settings_of_memory = st.sampled_from(
    [
        StreamCompactionSettings(),
        StreamCompactionSettings(trade_rows=5, depth_rows=5),
        StreamCompactionSettings(file_bytes=6_000),
    ]
)


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    """Processes die here, not machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


class Model:
    def __init__(self, paths, kind, writer):
        self.paths, self.kind, self.writer = paths, kind, writer
        self.durable: list[int] = []
        self.in_flight: list[int] = []
        self.next_number = 40  # the third file lies across midnight

    def perform(self, name, argument, compaction):
        if name == "write":
            for _ in range(argument):
                self._write()
        elif name == "compact due":
            compaction.compact_due(argument)
        elif name == "compact":
            compaction.compact(self.kind, argument)
        else:
            compaction.recover()

    def _write(self):
        """One file at a time, so that at most one is in doubt; across midnight two."""
        numbers = range(self.next_number, self.next_number + PER_FILE)
        self.in_flight = list(numbers)
        self.next_number += PER_FILE
        rows = trades(numbers) if self.kind == "trades" else depth(numbers)
        write(self.paths, rows, self.kind, hook=self.writer)
        self.durable += self.in_flight
        self.in_flight = []

    def check(self):
        rows = read_all(self.paths, self.kind)
        key = "agg_trade_id" if self.kind == "trades" else "final_update_id"
        found = [row[key] if key == "agg_trade_id" else row[key] // 10 for row in rows]
        assert len(found) == len(set(found))
        assert set(self.durable) <= set(found) <= {*self.durable, *self.in_flight}


@given(
    operations=operations,
    kill_at=st.integers(0, 60),
    settings=settings_of_memory,
    kind=st.sampled_from(["trades", "depth"]),
)
def test_no_kill_point_of_a_merge_loses_or_doubles_rows(operations, kill_at, settings, kind):
    with tempfile.TemporaryDirectory() as name:
        paths = LakePaths.of(Path(name))
        writer = DyingWriter(kill_at)
        model = Model(paths, kind, writer)
        compaction = StreamCompaction(paths, settings, hook=writer)
        for operation, argument in operations:
            try:
                model.perform(operation, argument, compaction)
            except Killed:
                break
            model.check()
        model.check()  # before the next start tidies up
        again = StreamCompaction(paths, settings)
        again.recover()
        model.check()
        again.compact_due(CLOSED_MS)
        model.check()
        for date in stream_dates(paths, kind):  # and everything is whole and tidy
            left = [p.name for p in paths.stream(kind, date).glob("[!.]*")]
            assert sorted(left) == [p.name for p in stream_files(paths, kind, date)]


def test_every_single_step_of_a_merge_of_three_files_may_be_the_last(tmp_path):
    steps = 0
    for kill_at in range(1, 100):
        paths = LakePaths.of(tmp_path / str(kill_at))
        for start in (0, 10, 20):
            write(paths, trades(range(start, start + 10)))
        writer = DyingWriter(kill_at)
        try:
            StreamCompaction(paths, hook=writer).compact_due(CLOSED_MS)
        except Killed:
            steps += 1
        else:
            break
        for _ in range(2):
            ids = [row["agg_trade_id"] for row in read_all(paths)]
            assert ids == list(range(30))
            StreamCompaction(paths).recover()
        StreamCompaction(paths).compact_due(CLOSED_MS)
        assert len(stream_files(paths, "trades", OLD_DATE)) == 1
    assert steps == 8  # created, written, synced, renamed, folder synced, three removed
