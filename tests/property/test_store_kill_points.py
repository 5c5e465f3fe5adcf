"""Whatever step a writer dies at, readers see whole files, nothing acknowledged is lost, none twice."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.events import GapState
from feature_store import FeatureStore, FeatureStoreSettings
from lake.gap_ledger import GapLedger
from lake.gap_ranges import Range, range_of
from tests.lake_fakes import START_MS, WINDOW_MS, DyingWriter, Killed, feature_row

SYMBOLS = ("BTCUSDT", "ETHUSDT")

appends = st.tuples(
    st.just("append"), st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 20)), max_size=6)
)
repairs = st.tuples(
    st.just("repair"),
    st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 20)), min_size=1, max_size=6),
)
operations = st.lists(
    st.one_of(
        appends,
        repairs,
        st.tuples(st.just("flush"), st.none()),
        st.tuples(st.just("compact"), st.sampled_from(["2024-07-18", "2024-07-19"])),
        st.tuples(st.just("compact due"), st.integers(0, 40)),
    ),
    max_size=8,
)


class WatchingWriter(DyingWriter):
    """Reads the folder as a stranger would, at every step (files never change: each once)."""

    def __init__(self, at, folder):
        super().__init__(at)
        self._folder = folder
        self._whole = set()

    def __call__(self, step, path):
        for file in set(self._folder.glob("date=*/*.parquet")) - self._whole:
            pq.ParquetFile(file).read(columns=["symbol"])
            self._whole.add(file)
        super().__call__(step, path)


class Model:
    """What must be read, and what may be read (in flight when the writer died)."""

    def __init__(self):
        self.durable = {}
        self.pending = {}
        self.revision = 0

    def rows(self, keys):
        self.revision += 1
        return [
            feature_row(index, symbol, self.revision, delta=float(self.revision))
            for symbol, index in dict.fromkeys(keys)
        ]


def key_of(row):
    return row.symbol, row.window_start_ms


def perform(store, model, name, argument):
    if name == "append":
        rows = model.rows(argument)
        store.extend(rows)
        model.pending.update((key_of(r), r) for r in rows)
    elif name == "repair":
        rows = model.rows(argument)
        model.pending.update((key_of(r), r) for r in rows if key_of(r) not in model.pending)
        store.write_batch(rows)
        model.durable.update((key_of(r), r) for r in rows)
        model.pending = {k: r for k, r in model.pending.items() if r.revision > _at(model, k)}
    elif name == "flush":
        store.flush()
        newer = {k: r for k, r in model.pending.items() if r.revision > _at(model, k)}
        model.durable.update(newer)
        model.pending = {}
    elif name == "compact":
        store.compact(argument)
    else:
        store.compact_due(START_MS + argument * WINDOW_MS)


def _at(model, key):
    return model.durable[key].revision if key in model.durable else -1


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    """Processes die here, not machines: the order of syncs is tested with the atomic writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@given(operations=operations, kill_at=st.integers(0, 40), merge_rows=st.sampled_from([1, 5, 1000]))
def test_no_kill_point_loses_or_doubles_rows(operations, kill_at, merge_rows):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        settings = FeatureStoreSettings(merge_rows=merge_rows)
        writer = WatchingWriter(kill_at, root / "features")
        store = FeatureStore(root, settings, hook=writer)
        model = Model()
        in_doubt = False
        for operation, argument in operations:
            try:
                perform(store, model, operation, argument)
            except Killed:
                in_doubt = True
                break
        for _ in range(2):  # before the next start tidies up, and after
            check(FeatureStore(root), model, in_doubt=in_doubt)
            FeatureStore(root).recover()
        # and the writer's own view, while it lives, includes what it holds
        if not in_doubt:
            seen = {key_of(r): r for r in store.read_rows()}
            assert seen == model.durable | {
                k: r for k, r in model.pending.items() if r.revision > _at(model, k)
            }


def check(store, model, *, in_doubt):
    rows = store.read_rows()
    assert rows == sorted(rows, key=key_of)
    found = {key_of(row): row for row in rows}
    assert len(found) == len(rows)
    for key, row in model.durable.items():
        assert key in found
        assert found[key] == row or (in_doubt and found[key].revision > row.revision)
    if not in_doubt:
        assert found == model.durable


ids = st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda t: (t[0], t[0] + t[1]))
changes = st.lists(
    st.tuples(
        st.sampled_from(["found", "found lost", "rest", "lost", "archive", "flush", "restart"]), ids
    ),
    max_size=20,
)


@given(changes)
def test_the_ledger_agrees_with_a_set_of_ids_through_any_changes_and_restarts(changes):
    with tempfile.TemporaryDirectory() as name:
        ledger = GapLedger(Path(name))
        states: dict[int, GapState] = {}
        for what, (first, last) in changes:
            numbers = range(first, last + 1)
            if what.startswith("found"):
                state = GapState.LOST if "lost" in what else GapState.OPEN
                ledger.found("trades", "A", first, last, cause="x", at_ns=1, state=state)
                missing = {GapState.OPEN, GapState.LOST}
                states.update((n, state) for n in numbers if states.get(n) not in missing)
            elif what in {"rest", "archive"}:
                ledger.resolve("trades", "A", first, last, GapState.REPAIRED, at_ns=2, by=what)
                states.update((n, GapState.REPAIRED) for n in numbers if n in states)
            elif what == "lost":
                ledger.resolve("trades", "A", first, last, GapState.LOST, at_ns=2)
                is_open = GapState.OPEN
                states.update((n, GapState.LOST) for n in numbers if states.get(n) is is_open)
            else:
                ledger.flush()
                ledger = GapLedger(Path(name)) if what == "restart" else ledger
        unresolved = [g for g in ledger.all() if g.state is not GapState.REPAIRED]
        listed = [(n, g.state) for g in unresolved for n in range(g.first_id, g.last_id + 1)]
        expected = [(n, s) for n, s in states.items() if s is not GapState.REPAIRED]
        assert sorted(listed) == sorted(expected)
        assert ledger.missing_count("A") == len(expected)


@given(ids, st.lists(ids, max_size=6))
def test_a_range_without_others_is_the_difference_of_their_sets(one, others):
    found = range_of(*one).without([range_of(*other) for other in others])
    expected = set(range(*one)) - {n for other in others for n in range(*other)}
    assert [n for part in found for n in range(part.start, int(part.end))] == sorted(expected)
    assert all(isinstance(part, Range) for part in found)
