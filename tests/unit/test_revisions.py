"""Rebuilt windows worked into stored ones, and the CVD carried on to midnight."""

from __future__ import annotations

import random
from collections.abc import Iterable
from decimal import Decimal

import msgspec
import numpy as np
import pytest

from domain.features import FeatureRow
from lake.cvd_chain import ChainColumns, check_chain
from market_orchestrator.revisions import (
    OWN_TRADE_COLUMNS,
    CvdState,
    cascade,
    exact,
    state_after,
)
from tests.lake_fakes import START_MS, WINDOW_MS, feature_row

MIDNIGHT = 12  # the number of the first window after midnight; window 0 starts at 23:59


def stored(count: int) -> list[FeatureRow]:
    """Windows 0 … count - 1; each bought 0.001."""
    return [feature_row(i) for i in range(count)]


def number_of(row: FeatureRow) -> int:
    return (row.window_start_ms - START_MS) // WINDOW_MS


def rebuilt(*rows: FeatureRow) -> dict[int, FeatureRow]:
    return {row.window_start_ms: row for row in rows}


def merged(rows: Iterable[FeatureRow], changed: Iterable[FeatureRow]) -> list[FeatureRow]:
    """What a reader sees: the highest revision of each window."""
    latest = {row.window_start_ms: row for row in rows}
    latest |= {row.window_start_ms: row for row in changed}
    return [latest[start] for start in sorted(latest)]


def test_rows_that_add_up_are_left_alone() -> None:
    rows = stored(20)
    changed, state = cascade(rows, {}, None)
    assert changed == []
    assert state == state_after(rows[-1])


def test_a_rebuilt_window_equal_to_the_stored_one_changes_nothing() -> None:
    rows = stored(5)
    twin = msgspec.structs.replace(rows[2], cvd=99.0, origin="recovered", spread_bps=None, ofi=None)
    assert cascade(rows, rebuilt(twin), None)[0] == []


def test_a_changed_window_moves_the_cvd_of_every_later_one_up_to_midnight() -> None:
    rows = stored(MIDNIGHT + 3)
    changed, _ = cascade(rows[4:], rebuilt(feature_row(4, delta=0.101)), state_after(rows[3]))
    assert [number_of(row) for row in changed] == list(range(4, MIDNIGHT))
    assert [row.cvd for row in changed] == [0.105 + i / 1000 for i in range(MIDNIGHT - 4)]
    assert {(row.revision, row.origin) for row in changed} == {(1, "revised")}


def test_revisions_count_on_from_the_stored_one() -> None:
    rows = [feature_row(i, revision=i) for i in range(4)]
    changed, _ = cascade(rows, rebuilt(feature_row(0, delta=0.002)), None)
    assert [row.revision for row in changed] == [1, 2, 3, 4]


def test_a_change_that_leaves_the_delta_alone_revises_only_its_own_window() -> None:
    rows = stored(6)
    changed, _ = cascade(rows, rebuilt(feature_row(2, trade_count=3)), None)
    assert [(number_of(row), row.trade_count) for row in changed] == [(2, 3)]


def test_a_window_that_was_missing_is_added_as_it_is_and_the_rest_moved() -> None:
    gap = [*stored(3), *(feature_row(i, cvd=(i - 0.0) / 1000) for i in range(4, 7))]
    new = feature_row(3, origin="recovered", cvd=0.0, cvd_anchor_ms=1)
    changed, _ = cascade(gap, rebuilt(new), None)
    assert [number_of(row) for row in changed] == [3, 4, 5, 6]
    assert (changed[0].revision, changed[0].origin) == (0, "recovered")
    assert changed[0].cvd == 0.004
    assert changed[0].cvd_anchor_ms == START_MS
    assert merged(gap, changed)[-1].cvd == 0.007


def test_what_a_rebuilding_cannot_know_is_kept() -> None:
    old = feature_row(0, spread_bps=0.7, microprice=64001.5, depth_frames=49, burst_count=2)
    new = feature_row(
        0, trade_count=9, volume=5.0, spread_bps=None, microprice=None, depth_frames=0
    )
    (changed,), _ = cascade([old], rebuilt(new), None)
    assert (changed.trade_count, changed.volume) == (9, 5.0)
    assert (changed.spread_bps, changed.microprice) == (0.7, 64001.5)
    assert (changed.depth_frames, changed.burst_count) == (49, 2)


def test_the_columns_a_rebuilding_replaces_exist_and_are_no_cvd_or_book_columns() -> None:
    names = set(FeatureRow.__struct_fields__)
    assert set(OWN_TRADE_COLUMNS) < names
    kept = {"cvd", "cvd_anchor_ms", "cvd_complete", "revision", "origin", "ofi", "spread_bps"}
    assert not kept & set(OWN_TRADE_COLUMNS)


def test_a_source_that_knows_less_does_not_take_trades_away() -> None:
    rows = [feature_row(0, trade_count=5, complete=False, missing_trades=1, cvd_complete=False)]
    poorer = feature_row(0, trade_count=3, complete=False, missing_trades=3, delta=0.0)
    assert cascade(rows, rebuilt(poorer), None)[0] == []
    complete = feature_row(0, trade_count=4)
    (changed,), _ = cascade(rows, rebuilt(complete), None)
    assert (changed.trade_count, changed.complete, changed.cvd_complete) == (4, True, True)


# --- completeness of the CVD --------------------------------------------------------------


def test_an_incomplete_window_makes_the_cvd_incomplete_until_midnight() -> None:
    hole = feature_row(3, complete=False, missing_trades=2)
    changed, _ = cascade(stored(MIDNIGHT + 2), rebuilt(hole), None)
    assert [number_of(row) for row in changed] == list(range(3, MIDNIGHT))
    assert not any(row.cvd_complete for row in changed)
    assert [row.complete for row in changed] == [False] + [True] * (MIDNIGHT - 4)


def test_repairing_the_only_hole_makes_the_cvd_complete_again() -> None:
    rows = [
        feature_row(i, complete=i != 3, missing_trades=2 * (i == 3), cvd_complete=i < 3)
        for i in range(MIDNIGHT)
    ]
    changed, state = cascade(rows, rebuilt(feature_row(3)), None)
    assert [number_of(row) for row in changed] == list(range(3, MIDNIGHT))
    assert all(row.cvd_complete for row in changed)
    assert state is not None
    assert state.complete


def test_a_second_hole_keeps_the_cvd_incomplete_after_the_first_is_repaired() -> None:
    rows = [feature_row(i, complete=i not in {2, 5}, cvd_complete=i < 2) for i in range(MIDNIGHT)]
    changed, _ = cascade(rows, rebuilt(feature_row(2)), None)
    assert [number_of(row) for row in changed if row.cvd_complete] == [2, 3, 4]


def test_a_window_not_stored_at_all_makes_the_cvd_incomplete() -> None:
    rows = [feature_row(i) for i in (0, 1, 3, 4)]
    changed, _ = cascade(rows, {}, None)
    assert [(number_of(row), row.cvd_complete) for row in changed] == [(3, False), (4, False)]


# --- anchors ------------------------------------------------------------------------------


def test_the_cvd_starts_at_zero_with_the_first_window_of_a_store() -> None:
    changed, state = cascade([], rebuilt(feature_row(5, cvd=7.0, cvd_complete=False)), None)
    assert [(row.cvd, row.cvd_complete) for row in changed] == [(0.001, True)]
    assert changed[0].cvd_anchor_ms == START_MS + 5 * WINDOW_MS
    assert state == CvdState(
        START_MS + 5 * WINDOW_MS, Decimal("0.001"), changed[0].cvd_anchor_ms, True
    )


def test_windows_recovered_before_the_first_stored_one_move_the_anchor() -> None:
    first = START_MS + 2 * WINDOW_MS
    rows = [feature_row(i, cvd=(i - 1) / 1000, cvd_anchor_ms=first) for i in (2, 3)]
    changed, _ = cascade(rows, rebuilt(feature_row(0), feature_row(1)), None)
    assert [(number_of(row), row.cvd) for row in changed] == [
        (0, 0.001), (1, 0.002), (2, 0.003), (3, 0.004)
    ]  # fmt: skip
    assert {row.cvd_anchor_ms for row in changed} == {START_MS}


def test_the_cvd_starts_again_at_midnight_whatever_was_before() -> None:
    before = CvdState(START_MS + 11 * WINDOW_MS, Decimal(-55), START_MS, complete=False)
    rows = [feature_row(MIDNIGHT), feature_row(MIDNIGHT + 1)]
    changed, state = cascade(rows, {}, before)
    assert changed == []
    midnight_ms = START_MS + MIDNIGHT * WINDOW_MS
    assert state == CvdState(midnight_ms + WINDOW_MS, Decimal("0.002"), midnight_ms, complete=True)


def test_a_day_whose_first_window_is_missing_has_no_complete_cvd() -> None:
    before = state_after(feature_row(MIDNIGHT - 1))
    changed, _ = cascade([], rebuilt(feature_row(MIDNIGHT + 2)), before)
    assert [row.cvd_complete for row in changed] == [False]
    assert changed[0].cvd_anchor_ms == START_MS + MIDNIGHT * WINDOW_MS


# --- exactness ----------------------------------------------------------------------------


def test_sums_are_those_of_the_decimals_not_of_their_doubles() -> None:
    rows = [feature_row(i, delta=0.1, cvd=0.0) for i in range(MIDNIGHT)]
    changed, _ = cascade(rows, {}, None)
    assert [row.cvd for row in changed] == [float(Decimal(i + 1) / 10) for i in range(MIDNIGHT)]
    assert changed[2].cvd != 0.1 + 0.1 + 0.1


@pytest.mark.parametrize("text", ["0.1", "-12345.678", "0.000001", "1E-7", "0", "64000.1", "1e+16"])
def test_a_stored_double_gives_its_decimal_back(text: str) -> None:
    assert exact(float(text)) == Decimal(text)


@pytest.mark.parametrize("seed", range(8))
def test_repairs_in_any_order_leave_a_chain_without_a_break(seed: int) -> None:
    generator = random.Random(seed)
    truth = [
        feature_row(i, delta=generator.randint(-5000, 5000) / 1000) for i in range(2 * MIDNIGHT)
    ]
    truth = merged([], cascade([], rebuilt(*truth), None)[0])
    rows = [
        msgspec.structs.replace(row, complete=False, delta=0.0, trade_count=0)
        if generator.random() < 0.3
        else row
        for row in truth
        if generator.random() < 0.8 or row is truth[0]
    ]
    seen = merged(rows, cascade(rows, {}, None)[0])
    for row in generator.sample(truth, len(truth)):
        earlier = [r for r in seen if r.window_start_ms < row.window_start_ms]
        later = [r for r in seen if r.window_start_ms >= row.window_start_ms]
        before = state_after(earlier[-1]) if earlier else None
        seen = merged(seen, cascade(later, rebuilt(row), before)[0])
        report = check_chain("BTCUSDT", _columns(seen), WINDOW_MS)
        assert not report.broken
    assert [(r.cvd, r.cvd_complete, r.cvd_anchor_ms) for r in seen] == [
        (r.cvd, r.cvd_complete, r.cvd_anchor_ms) for r in truth
    ]
    assert check_chain("BTCUSDT", _columns(seen), WINDOW_MS).is_whole


def _columns(rows: list[FeatureRow]) -> ChainColumns:
    names = ChainColumns.__struct_fields__
    return ChainColumns(**{name: np.array([getattr(row, name) for row in rows]) for name in names})
