from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.repair_plan import (
    Turn,
    archive_until_ms,
    archive_work,
    days_of,
    is_beyond_rest,
    missing_of,
    period_end_ms,
    published_from_ms,
    turn_of,
)
from collectors.repair_rest import Page, pieces_of
from domain.events import GapState
from domain.market import TRADE_DTYPE
from lake.gap_ledger import Gap
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS
from lake.repaired_rows import Missing

HOUR_MS = 3_600_000
REACH_MS = 48 * HOUR_MS


def gap(first_id=10, last_id=19, state=GapState.OPEN, **fields):
    values = {
        "gap_id": 1,
        "kind": "trades",
        "symbol": "BTCUSDT",
        "first_id": first_id,
        "last_id": last_id,
        "from_ms": 1_000,
        "until_ms": 2_000,
        "repairable_until_ms": None,
        "cause": "x",
        "state": state,
        "found_at_ns": 0,
        "changed_at_ns": 0,
    }
    return Gap(**(values | fields))


def test_rest_is_asked_first_then_the_archive_then_nobody():
    turns = {state: turn_of(gap(state=state)) for state in GapState}
    assert turns == {
        GapState.OPEN: Turn.REST,
        GapState.EXPIRED: Turn.ARCHIVE,
        GapState.LOST: Turn.NOBODY,
        GapState.REPAIRED: Turn.NOBODY,
    }
    assert turn_of(gap(kind="depth")) is Turn.NOBODY


@pytest.mark.parametrize(("age_ms", "is_beyond"), [(REACH_MS - 1, False), (REACH_MS, True)])
def test_a_hole_is_beyond_rest_when_its_end_is(age_ms, is_beyond):
    assert (
        is_beyond_rest(gap(until_ms=10 * REACH_MS), 10 * REACH_MS + age_ms, REACH_MS) is is_beyond
    )
    assert not is_beyond_rest(gap(until_ms=0), 10 * REACH_MS, None)
    assert not is_beyond_rest(gap(until_ms=None), 10 * REACH_MS, REACH_MS)


def test_archives_are_asked_for_from_the_hour_they_may_be_there():
    assert published_from_ms("2024-07-18") == date_start_ms("2024-07-19") + 8 * HOUR_MS
    assert published_from_ms("2024-02") == date_start_ms("2024-03-02")
    assert period_end_ms("2024-12") == date_start_ms("2025-01-01")


def test_the_archive_is_given_up_45_days_after_the_end_of_the_month():
    assert date_of(archive_until_ms(date_start_ms("2024-07-18") + 5)) == "2024-09-15"


def test_a_hole_over_a_months_end_needs_each_of_its_days_and_both_months():
    start_ms = date_start_ms("2024-07-30")
    long = gap(from_ms=start_ms + 5, until_ms=start_ms + 2 * DAY_MS)
    other = gap(symbol="AAAUSDT", from_ms=start_ms, until_ms=start_ms + 1)
    assert days_of(long) == ["2024-07-30", "2024-07-31", "2024-08-01"]
    days = [(work.period, work.symbol) for work in archive_work([long, other], monthly=False)]
    assert days == [
        ("2024-07-30", "AAAUSDT"),
        ("2024-07-30", "BTCUSDT"),
        ("2024-07-31", "BTCUSDT"),
        ("2024-08-01", "BTCUSDT"),
    ]
    months = [(work.period, work.symbol) for work in archive_work([long, other], monthly=True)]
    assert months == [("2024-07", "AAAUSDT"), ("2024-07", "BTCUSDT"), ("2024-08", "BTCUSDT")]


def test_what_is_missing_is_told_by_ids_or_by_time():
    by_time = gap(None, None, from_ms=5_000, until_ms=6_000)
    missing = missing_of([gap(10, 12), gap(20, None), by_time])
    ids = np.array([9, 10, 12, 13, 19, 20, 10**9, 13, 13, 13])
    times = np.array([0, 0, 0, 0, 0, 0, 0, 4_999, 5_000, 6_000])
    assert missing.mask(ids, times).tolist() == [
        *(False, True, True, False, False, True, True, False, True, False)
    ]
    assert not Missing()
    assert not Missing().mask(ids, times).any()


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(0, 40))
def test_the_pieces_of_a_page_tell_every_proven_id_once(present, a, b):
    first, last = min(a, b), max(a, b)
    ids = sorted(n for n in present if first <= n <= last)
    rows = np.zeros(len(ids), dtype=TRADE_DTYPE)
    rows["agg_trade_id"], rows["transact_time_ms"] = ids, np.array(ids, dtype=np.int64) * 10
    pieces = pieces_of(Page(rows, (first, last)), gap(from_ms=-1, until_ms=1_000))
    told = [(n, piece.is_found) for piece in pieces for n in range(piece.ids[0], piece.ids[1] + 1)]
    assert told == [(n, n in present) for n in range(first, last + 1)]
    for piece in pieces:
        low, high = piece.times_ms
        if piece.is_found:
            assert (low, high) == (piece.ids[0] * 10, piece.ids[1] * 10)
        else:  # the trades around it
            assert low < piece.ids[0] * 10
            assert high > piece.ids[1] * 10
