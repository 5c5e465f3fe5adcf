"""Rows in any order become one run: sorted, unique, the first of equal keys kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import month_run, month_sort
from lake.historical_files import AGG_TRADE_SCHEMA, LAYOUTS
from lake.month_run import RunWriter
from lake.month_sort import MonthSorter
from tests.vision_archives import shuffled_ids

LAYOUT = LAYOUTS["aggTrades"]


def rows(ids, price=1.0):
    count = len(ids)
    prices = price if isinstance(price, list) else [price] * count
    columns = [ids, prices, [1.0] * count, ids, ids, ids, [True] * count]
    return pa.record_batch([pa.array(c) for c in columns], names=AGG_TRADE_SCHEMA.names).cast(
        AGG_TRADE_SCHEMA
    )


def sort(folder: Path, batches, base=None):
    with MonthSorter(folder / "m", LAYOUT, base) as sorter:
        for batch in batches:
            sorter.add(batch)
        with sorter.sorted_run(lambda: None) as run:
            pass
        return pq.read_table(run.path), sorter


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(month_sort, "PIECE_ROWS", 50)
    monkeypatch.setattr(month_sort, "_SMALLEST_BATCH", 7)
    monkeypatch.setattr(month_sort, "MERGED_ROWS", 20)
    monkeypatch.setattr(month_run, "ROW_GROUP_ROWS", 60)


def test_sorted_rows_go_straight_through(tmp_path):
    found, sorter = sort(tmp_path, [rows([1, 2, 3]), rows([4, 9])])
    assert found["agg_trade_id"].to_pylist() == [1, 2, 3, 4, 9]
    assert (sorter.late_count, sorter.duplicate_count) == (0, 0)


@pytest.mark.usefixtures("small_pieces")
def test_a_shuffled_file_larger_than_memory_allows_is_sorted(tmp_path):
    ids = shuffled_ids(5, 3_000).tolist()
    found, sorter = sort(tmp_path, [rows(ids[at : at + 111]) for at in range(0, 3_000, 111)])
    assert found["agg_trade_id"].to_pylist() == list(range(3_000))
    assert sorter.duplicate_count == 0
    assert list(tmp_path.iterdir()) == []


@given(
    ids=st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12),
    piece_rows=st.integers(1, 40),
    base=st.sets(st.integers(0, 60), max_size=20),
)
def test_any_order_and_repetition_is_sorted_unique_with_the_first_kept(ids, piece_rows, base):
    with tempfile.TemporaryDirectory() as text, pytest.MonkeyPatch.context() as patch:
        folder = Path(text)
        patch.setattr(month_sort, "PIECE_ROWS", piece_rows)
        patch.setattr(month_sort, "_SMALLEST_BATCH", 5)
        patch.setattr(month_sort, "MERGED_ROWS", 10)
        patch.setattr(month_run, "ROW_GROUP_ROWS", 16)
        base_path = None
        expected = {}
        if base:
            base_path = folder / "base.parquet"
            with RunWriter(base_path, LAYOUT) as writer:
                writer.append(rows(sorted(base), price=0.5))
            expected = dict.fromkeys(base, 0.5)
        batches = []
        for number, some in enumerate(ids):
            prices = [float(number * 100 + place) for place in range(len(some))]
            batches.append(rows(some, prices))
            for key, price in zip(some, prices, strict=True):
                expected.setdefault(key, price)
        found, sorter = sort(folder, batches, base_path)
        pairs = zip(found["agg_trade_id"].to_pylist(), found["price"].to_pylist(), strict=True)
        assert list(pairs) == sorted(expected.items())
        given_count = len(base) + sum(len(some) for some in ids)
        assert sorter.duplicate_count == given_count - len(expected)


def test_equal_rows_are_duplicates_and_others_contradictions(tmp_path):
    _, sorter = sort(tmp_path, [rows([1, 2, 3]), rows([2, 3], price=[1.0, 7.0])])
    assert (sorter.duplicate_count, sorter.conflict_count) == (2, 1)


@pytest.mark.usefixtures("small_pieces")
def test_what_ends_the_sorting_leaves_no_working_files(tmp_path):
    class Enough(Exception):
        pass

    def check():
        raise Enough

    def work():
        with MonthSorter(tmp_path / "m", LAYOUT) as sorter:
            sorter.add(rows(list(range(200, 0, -1))))
            sorter.sorted_run(check)

    with pytest.raises(Enough):
        work()
    assert list(tmp_path.iterdir()) == []


def test_holes_are_counted_and_their_days_named(tmp_path):
    day = 86_400_000
    with RunWriter(tmp_path / "r", LAYOUT) as run:
        start = 19_905 * day  # 2024-07-01
        ids, times = [1, 2, 5, 6], [start, start + 5, start + 2 * day, start + 31 * day - 1]
        columns = [ids, [1.0] * 4, [1.0] * 4, ids, ids, times, [True] * 4]
        names = AGG_TRADE_SCHEMA.names
        run.append(pa.record_batch([pa.array(c) for c in columns], names=names))
    assert run.continuity.missing_count == 2
    assert run.continuity.doubtful_days("2024-07") == ["2024-07-01", "2024-07-02", "2024-07-03"]
