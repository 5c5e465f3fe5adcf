from __future__ import annotations

import enum
import math
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from domain.events import Signal
from domain.features import FeatureRow
from lake.columns import index_array, mask_array, numpy_of, rows_of, string_array, table_of
from lake.part_files import conform
from lake.revisions import sort_latest
from lake.schemas import read_schema, written_schema
from tests.lake_fakes import feature_row, signal


class Kind(enum.StrEnum):
    GOOD = "good"


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    ratio: float
    flag: bool
    name: str
    kind: Kind
    cost: Decimal
    levels: tuple[float, ...]
    notes: dict[str, float | None]
    maybe_count: int | None
    maybe_ratio: float | None
    maybe_flag: bool | None
    maybe_name: str | None
    maybe_kind: Kind | None
    maybe_cost: Decimal | None
    maybe_levels: tuple[float, ...] | None
    maybe_notes: list[str] | None
    version: int = 3


FULL = Everything(
    count=2**62,
    ratio=0.1,
    flag=True,
    name="naïve ✓",
    kind=Kind.GOOD,
    cost=Decimal("0.00012"),
    levels=(1.5, 2.5),
    notes={"a": 1.0, "b": None},
    maybe_count=-1,
    maybe_ratio=math.inf,
    maybe_flag=False,
    maybe_name="",
    maybe_kind=Kind.GOOD,
    maybe_cost=Decimal(1),
    maybe_levels=(),
    maybe_notes=["x"],
)
SPARSE = msgspec.structs.replace(
    FULL, **{f.name: None for f in msgspec.structs.fields(Everything) if "maybe" in f.name}
)


def there_and_back(rows, row_type):
    table, rejected = table_of(rows, row_type)
    assert rejected == []
    found, skipped = rows_of(conform(table, read_schema(row_type)), row_type)
    assert skipped == 0
    return found


def test_the_schema_follows_the_annotations():
    schema = written_schema(Everything)
    assert [str(field.type) for field in schema][:8] == [
        *("int64", "double", "bool", "string", "string", "double"),
        *("list<item: double>", "string"),
    ]
    assert {f.name for f in schema if f.nullable} == {
        f.name for f in msgspec.structs.fields(Everything) if "maybe" in f.name
    }


@pytest.mark.parametrize("count", [1, 7, 249, 250, 251, 777])
def test_rows_survive_being_columns(count):
    rows = [FULL if i % 3 else SPARSE for i in range(count)]
    assert there_and_back(rows, Everything) == rows


def test_feature_rows_and_signals_survive_being_columns():
    rows = [feature_row(0), feature_row(1, open=None, first_agg_id=None, session="asia")]
    assert there_and_back(rows, FeatureRow) == rows
    signals = [signal(0), signal(1, cost_usd=Decimal("0.00213"), p_up=0.3)]
    assert there_and_back(signals, Signal) == signals


def test_columns_agree_with_pyarrows_own_conversion():
    rows = [FULL, SPARSE, FULL]
    table, _ = table_of(rows, Everything)
    for name in ("count", "maybe_ratio", "maybe_flag", "maybe_name", "levels"):
        values = [getattr(row, name) for row in rows]
        assert (
            table.column(name).to_pylist()
            == pa.array(values, table.schema.field(name).type).to_pylist()
        )
    table.validate(full=True)


def test_nan_becomes_null_where_null_is_allowed():
    table, _ = table_of([feature_row(ofi=math.nan)], FeatureRow)
    assert table.column("ofi").to_pylist() == [None]


@pytest.mark.parametrize(
    "fields",
    [
        {"delta": math.nan},
        {"delta": None},
        {"complete": None},
        {"symbol": None},
        {"symbol": 5},
        {"trade_count": None},
        {"trade_count": 1.5},
        {"trade_count": 2**63},
        {"participant_volume": None},
        {"participant_volume": ("x",)},
        {"vwap": "high"},
    ],
)
def test_a_row_that_cannot_be_stored_is_named_and_the_others_are_stored(fields):
    rows = [feature_row(0), feature_row(1, **fields), feature_row(2)]
    table, rejected = table_of(rows, FeatureRow)
    assert table.column("window_start_ms").to_pylist() == [
        rows[0].window_start_ms,
        rows[2].window_start_ms,
    ]
    ((row, reason),) = rejected
    assert row is rows[1]
    assert reason.startswith(f"FeatureRow.{next(iter(fields))}: ")


def test_rows_lacking_what_is_required_today_are_left_out_and_defaults_filled_in():
    table, _ = table_of([FULL, FULL], Everything)
    schema = read_schema(Everything)
    lacking_default = conform(table.drop_columns(["version"]), schema)
    assert rows_of(lacking_default, Everything) == ([FULL, FULL], 0)
    lacking_required = conform(table.drop_columns(["count"]), schema)
    assert rows_of(lacking_required, Everything) == ([], 2)


@pytest.mark.parametrize("values", [[1.5, None, 2.5], [None, None], [], [0.0]])
def test_numbers_come_out_as_numpy_with_nan_for_null(values):
    column = pa.chunked_array([pa.array(values, pa.float64()).slice(k) for k in range(2)])
    expected = [math.nan if v is None else v for v in values + values[1:]]
    np.testing.assert_array_equal(numpy_of(column), expected)


def test_sliced_booleans_come_out_as_numpy():
    values = [True, None, False, True, True, False, True, True, False, True]
    for start in range(10):
        part = pa.array(values).slice(start, 5)
        assert numpy_of(part).tolist() == [bool(v) for v in values[start : start + 5]]


def test_small_builders():
    assert mask_array(np.array([True, False, True])).to_pylist() == [True, False, True]
    assert index_array(np.array([2, 0], dtype=np.uint64)).to_pylist() == [2, 0]
    assert string_array([b"a", "é".encode()]).to_pylist() == ["a", "é"]


def test_the_last_read_of_equal_revisions_stays():
    table = pa.table({"k": ["b", "a", "a", "a"], "r": [0, 1, 0, 1], "v": [1, 2, 3, 4]})
    latest = sort_latest(table, ["k"], "r")
    assert latest.column("v").to_pylist() == [4, 1]
    every = sort_latest(table, ["k"], "r", latest_only=False)
    assert every.column("v").to_pylist() == [3, 2, 4, 1]
    assert sort_latest(table.slice(0, 0), ["k"], "r").num_rows == 0
