"""Recovered spans settle holes: what was rebuilt is repaired, what the history lacks is lost."""

from __future__ import annotations

from data_validator import MissingRange
from domain.events import GapEvent, GapState
from lake.gap_ledger import Gap
from market_orchestrator.settled_holes import settled
from tests.lake_fakes import START_MS, feature_row

SYMBOL = "BTCUSDT"


def rows(first_id: int, last_id: int):
    return [feature_row(0, SYMBOL, first_agg_id=first_id, last_agg_id=last_id)]


def gap(first_id: int | None, last_id: int | None, state: GapState = GapState.OPEN) -> Gap:
    return Gap(
        gap_id=1,
        kind="trades",
        symbol=SYMBOL,
        first_id=first_id,
        last_id=last_id,
        from_ms=START_MS,
        until_ms=START_MS + 400,
        repairable_until_ms=None,
        cause="lost connection",
        state=state,
        found_at_ns=1,
        changed_at_ns=1,
    )


def hole(first_id: int, last_id: int) -> MissingRange:
    return MissingRange(first_id, last_id, START_MS, START_MS + 400, 0, lost=True)


def ranges(events: list[GapEvent], state: GapState) -> list[tuple[int | None, int | None]]:
    return [(event.first_id, event.last_id) for event in events if event.state is state]


def test_an_open_hole_inside_the_rebuilt_ids_is_repaired():
    events = settled([gap(120, 130)], rows(100, 200), [], at_ns=5)
    assert ranges(events, GapState.REPAIRED) == [(120, 130)]
    assert events[0].cause == "lost connection"
    assert events[0].until_ms == START_MS + 400
    assert events[0].at_ns == 5


def test_only_the_rebuilt_part_of_a_hole_is_repaired():
    events = settled([gap(90, 110), gap(190, None)], rows(100, 200), [], at_ns=5)
    assert ranges(events, GapState.REPAIRED) == [(100, 110), (190, 200)]


def test_ids_the_history_lacks_are_lost_and_not_repaired():
    events = settled([gap(120, 130)], rows(100, 200), [hole(124, 126), hole(160, 160)], at_ns=5)
    assert ranges(events, GapState.LOST) == [(124, 126), (160, 160)]
    assert ranges(events, GapState.REPAIRED) == [(120, 123), (127, 130)]
    assert events[0].state is GapState.LOST


def test_what_is_known_to_be_lost_is_not_told_again():
    assert settled([gap(120, 130, GapState.LOST)], rows(100, 200), [hole(122, 130)], at_ns=5) == []


def test_holes_known_by_time_alone_and_settled_ones_are_left():
    gaps = [gap(None, None), gap(120, 130, GapState.REPAIRED), gap(140, 141, GapState.EXPIRED)]
    assert settled(gaps, rows(100, 200), [], at_ns=5) == []


def test_a_lost_beginning_and_end_leave_what_lies_between():
    events = settled([gap(90, 210)], rows(103, 196), [hole(95, 102), hole(197, 220)], at_ns=5)
    assert ranges(events, GapState.REPAIRED) == [(103, 196)]


def test_without_windows_nothing_is_settled():
    assert settled([gap(120, 130)], [], [hole(120, 130)], at_ns=5) == []
