"""Windows close by proof, wait for holes, and are revised by what comes later."""

from __future__ import annotations

from typing import Any

from domain.flow import Origin
from market_orchestrator.windows import WindowSettings
from microstructure.trade_flags import Suspect
from tests.trade_frames import START_MS, Print, rows_of
from tests.window_bench import D, Window, WindowBench

LATENESS = WindowSettings().lateness_ms


def at(agg_trade_id: int, offset_ms: int, symbol_index: int = 0) -> Print:
    return Print(agg_trade_id, START_MS + offset_ms, symbol_index=symbol_index)


def window(number: int, *ids: int, complete: bool = True, missing: int | None = 0) -> Window:
    return Window(START_MS + number * D, complete, missing, ids)


def revised(number: int, *ids: int, complete: bool = True, missing: int | None = 0) -> Window:
    return Window(START_MS + number * D, complete, missing, ids, Origin.REVISED)


def started(symbols: int = 1, **settings: Any) -> WindowBench:
    bench = WindowBench(symbols, **settings)
    bench.start(range(symbols))
    return bench


# --- closing ------------------------------------------------------------------------------


def test_a_window_closes_by_an_own_trade_beyond_the_lateness() -> None:
    bench = started()
    bench.feed([at(1, 0), at(2, 4_999), at(3, D)], delay_ms=0)
    bench.feed([at(4, D + LATENESS - 1)], delay_ms=0)
    assert not bench.emitted
    bench.feed([at(5, D + LATENESS)], delay_ms=0)
    assert bench.windows() == [window(0, 1, 2)]


def test_a_window_holds_the_trades_from_its_start_to_before_its_end() -> None:
    bench = started()
    bench.feed([at(1, 0), at(2, D - 1), at(3, D), at(4, 2 * D - 1), at(5, 2 * D), at(6, 3 * D)])
    assert bench.windows() == [window(0, 1, 2), window(1, 3, 4)]


def test_the_first_trade_starts_the_window_it_lies_in() -> None:
    bench = WindowBench()
    bench.feed([at(7, 3_210)])
    assert bench.builder.next_start_ms(0) == START_MS
    assert bench.builder.next_end_ms() == START_MS + D
    assert bench.builder.last_trade_ms(0) == START_MS + 3_210


def test_looking_before_the_first_trade_does_not_stop_windows_from_closing_later() -> None:
    bench = WindowBench(repairable=False)
    bench.close()
    bench.builder.begin(START_MS)
    bench.builder.prove(START_MS + D + LATENESS)
    bench.close()
    assert bench.windows() == [window(0, complete=False, missing=None)]


def test_silent_windows_are_emitted_without_trades() -> None:
    bench = started()
    bench.feed([at(1, 10), at(2, 4 * D)])
    assert bench.windows() == [window(0, 1), window(1), window(2)]


def test_the_event_time_of_another_symbol_closes_a_silent_one() -> None:
    bench = started(2, silence_ms=60_000)
    bench.feed([at(1, 10), at(1, 20, 1)])
    bench.feed([at(2, D, 1)], delay_ms=LATENESS - 1)
    assert not bench.emitted
    bench.feed([at(3, D + 1, 1)], delay_ms=LATENESS)
    assert bench.windows(0) == [window(0, 1)]
    assert bench.windows(1) == [window(0, 1)]


def test_the_proven_time_of_the_route_closes_silent_windows() -> None:
    bench = started()
    bench.builder.prove(START_MS + 2 * D + LATENESS)
    bench.close()
    assert bench.windows() == [window(0), window(1)]


def test_trades_from_rest_prove_nothing_about_other_symbols() -> None:
    bench = started(2)
    bench.feed([at(1, 10), at(1, 20, 1)])
    bench.feed([at(2, 3 * D)], is_rest=True)
    assert bench.windows(0) == [window(0, 1), window(1)]
    assert not bench.windows(1)


def test_an_event_time_far_beyond_all_trades_is_not_believed() -> None:
    bench = started(2)
    bench.feed([at(1, 10), at(1, 20, 1)])
    bench.feed([at(2, 30, 1)], delay_ms=3_000_000)
    assert len(bench.windows(0)) <= 2


def test_windows_of_one_boundary_come_together_sorted_by_symbol_and_id() -> None:
    bench = started(3)
    rows = rows_of([at(2, 20, 2), at(1, 10, 2), at(1, 10, 0), at(1, 5, 1)])
    checked = bench.validator.check_trades(rows, 0)
    bench.builder.ingest(checked, live=True)
    bench.builder.prove(START_MS + D + LATENESS)
    (batch,) = bench.builder.close(bench.now_ns).batches
    assert (batch.start_ms, batch.end_ms) == (START_MS, START_MS + D)
    assert batch.symbol_index == [0, 1, 2]
    # symbol 2 has trade 1 out of order in the batch, both are there
    assert batch.offsets.tolist() == [0, 1, 2, 4]
    assert batch.rows["symbol_index"].tolist() == [0, 1, 2, 2]
    assert batch.rows["agg_trade_id"].tolist() == [1, 1, 1, 2]


def test_many_symbols_of_one_boundary_come_in_parts() -> None:
    bench = started(5, batch_symbols=2)
    bench.builder.prove(START_MS + D + LATENESS)
    batches = bench.builder.close(bench.now_ns).batches
    assert [batch.symbol_index for batch in batches] == [[0, 1], [2, 3], [4]]


def test_a_limited_close_leaves_the_rest_to_the_next_and_holes_do_not_use_it_up() -> None:
    bench, at_once = (started(5) for _ in range(2))
    for each in (bench, at_once):
        each.feed([at(1, 10), at(3, 30), *(at(1, 10, index) for index in range(1, 5))])  # 2 lacks
        each.builder.prove(START_MS + 2 * D + LATENESS)
    parts: list[list[tuple[int, Window]]] = []
    while not parts or bench.builder.has_more:
        parts.append(bench.take(bench.builder.close(bench.now_ns, at_most=2)))
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [index for index, _ in parts[0] + parts[1]] == [1, 2, 3, 4]  # 0 is held
    at_once.close()
    assert not at_once.builder.has_more
    assert bench.emitted == at_once.emitted


def test_proven_windows_that_a_limited_close_left_are_not_taken_for_unproven() -> None:
    bench = started(3, hold_ms=0)
    bench.feed([at(1, 10, index) for index in range(3)])
    bench.builder.prove(START_MS + D + LATENESS)
    bench.take(bench.builder.close(bench.now_ns, at_most=1))
    assert bench.builder.has_more
    assert not bench.close_unproven(START_MS + D + 1_000, after_s=1.0)
    bench.close()
    assert bench.windows(2) == [window(0, 1)]
    assert not bench.builder.uncovered()


def test_trades_whose_times_run_back_are_in_their_windows_in_order_of_ids() -> None:
    bench = started()
    bench.feed([at(1, 10), at(2, D + 50), at(3, D - 20), at(4, D + 60), at(5, 2 * D)])
    assert bench.windows() == [window(0, 1, 3)]
    bench.feed([at(6, 3 * D)])
    assert bench.windows()[1] == window(1, 2, 4)


# --- holes --------------------------------------------------------------------------------


def test_a_hole_holds_its_window_back_and_a_late_trade_in_time_completes_it() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(3, 30), at(4, 2 * D)])
    bench.close(after_s=2.9)
    assert not bench.emitted
    bench.feed([at(2, 20)])
    assert bench.windows() == [window(0, 1, 2, 3)]


def test_a_hole_that_stays_gives_an_incomplete_window_after_the_hold() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(4, 30), at(5, 2 * D)])
    bench.close(after_s=2.9)
    bench.close(after_s=0.1)
    assert bench.windows() == [window(0, 1, 4, complete=False, missing=2)]


def test_missing_ids_count_once_where_the_hole_begins_and_every_window_it_touches_is_incomplete() -> (
    None
):
    bench = started()
    bench.feed([at(1, 10), at(5, 2 * D + 10), at(6, 4 * D)])
    bench.close()
    bench.close(after_s=3)
    bench.feed([at(7, 5 * D)])
    assert bench.windows() == [
        window(0, 1, complete=False, missing=3),
        window(1, complete=False, missing=0),
        window(2, 5, complete=False, missing=0),
        window(3),
    ]


def test_a_hole_before_the_first_window_counts_in_it() -> None:
    bench = started()  # id 0 lies just before the first window
    bench.feed([at(3, 10), at(4, 2 * D)])
    bench.close(after_s=3)
    assert bench.windows() == [window(0, 3, complete=False, missing=2)]


def test_one_symbols_hole_does_not_hold_the_others() -> None:
    bench = started(2)
    bench.feed([at(1, 10), at(3, 20), at(1, 10, 1), at(4, 2 * D), at(2, 2 * D, 1)])
    assert not bench.windows(0)
    assert bench.windows(1) == [window(0, 1)]


def test_the_hold_is_not_waited_again_for_the_next_window_of_the_same_hole() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(5, D + 10), at(6, 3 * D)])
    bench.close(after_s=3)
    assert [w.start_ms for w in bench.windows()] == [START_MS, START_MS + D]


def test_duplicates_do_not_prolong_the_hold() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(3, 30), at(4, 2 * D)])
    for _ in range(31):  # a second socket repeats what is known
        bench.now_ns += 100_000_000
        bench.feed([at(4, 2 * D)])
    assert bench.windows() == [window(0, 1, 3, complete=False, missing=1)]


def test_every_hole_has_a_hold_of_its_own() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(3, 30), at(4, 2 * D)])
    bench.close(after_s=2.9)
    bench.feed([at(2, 20)])
    bench.close(after_s=60)
    bench.feed([at(6, 2 * D + 50), at(7, 4 * D)])
    assert [w.complete for w in bench.windows()] == [True, True]
    bench.close(after_s=2.9)
    assert len(bench.windows()) == 2
    bench.close(after_s=0.1)
    assert bench.windows()[2] == window(2, 4, 6, complete=False, missing=1)


def test_late_trades_revise_the_windows_that_were_emitted_without_them() -> None:
    bench = started()
    bench.feed([at(1, 10), at(4, D + 10), at(5, 3 * D)])
    bench.close(after_s=3)
    bench.feed([at(2, 20)])
    bench.close(after_s=1)
    assert bench.latest()[START_MS] == revised(0, 1, 2, complete=False, missing=1)
    bench.feed([at(3, D + 5)])
    bench.close(after_s=1)
    assert bench.latest() == {
        START_MS: revised(0, 1, 2),
        START_MS + D: revised(1, 3, 4),
    }
    count = len(bench.emitted)
    bench.feed([at(3, D + 5)])
    bench.close(after_s=5)
    assert len(bench.emitted) == count


def test_ids_lost_for_good_settle_the_window_at_once() -> None:
    bench = started(hold_ms=3_000)
    bench.feed([at(1, 10), at(4, 30), at(5, 2 * D)])
    bench.sequences[0].mark_lost(2, 3)
    bench.builder.touch(0)
    bench.close()
    assert bench.windows() == [window(0, 1, 4, complete=False, missing=2)]
    bench.close(after_s=10)
    assert len(bench.emitted) == 1


def test_a_lost_id_that_arrives_after_all_completes_the_window() -> None:
    bench = started()
    bench.feed([at(1, 10), at(3, 30), at(4, 2 * D)])
    bench.sequences[0].mark_lost(2, 2)
    bench.builder.touch(0)
    bench.close()
    bench.feed([at(2, 20)])
    assert bench.latest()[START_MS] == revised(0, 1, 2, 3)


def test_a_window_emitted_as_silent_is_revised_when_the_next_trade_reveals_a_hole() -> None:
    bench = started(2)
    bench.feed([at(1, 10), at(1, 10, 1)])
    for step in range(1, 5):
        bench.feed([at(1 + step, step * D, 1)])
    assert bench.latest(0)[START_MS + D] == window(1)
    bench.feed([at(4, 4 * D + 10)])  # 2 and 3 were traded somewhere since
    bench.close(after_s=3)
    assert bench.latest(0)[START_MS] == revised(0, 1, complete=False, missing=2)
    assert not bench.latest(0)[START_MS + D].complete
    bench.feed([at(2, D + 1), at(3, D + 2)], is_rest=True)
    bench.close(after_s=1)
    assert bench.latest(0)[START_MS] == revised(0, 1)
    assert bench.latest(0)[START_MS + D] == revised(1, 2, 3)
    assert bench.latest(0)[START_MS + 2 * D].complete


def test_the_authoritative_copy_of_a_trade_revises_its_window() -> None:
    bench = started()
    bench.feed([at(1, 10), at(1, 10)._replace(price=5), at(2, 2 * D)])
    bench.feed([at(1, 10)._replace(price=5)], is_rest=True)
    bench.close(after_s=1)
    assert bench.windows() == [window(0, 1), revised(0, 1)]


# --- the first window ---------------------------------------------------------------------


def test_a_price_jump_that_later_prints_confirm_counts_no_more_in_its_open_window() -> None:
    bench = started()
    calm = [at(i, 20 * i) for i in range(1, 101)]
    bench.feed(calm)
    for i in range(101, 106):  # one batch each; the three after the first confirm it
        bench.feed([Print(i, START_MS + 20 * i, calm[0].price - 128_000)])
    bench.feed([at(106, D), at(107, 2 * D)])
    flags = (bench.suspects[:105] & Suspect.PRICE_JUMP) != 0
    assert bench.windows()[0].ids == tuple(range(1, 106))
    assert not flags.any()
    assert bench.validator.statistics()["suspect_price_jump"] == 1  # as it came


def test_the_first_window_waits_for_the_trades_before_the_first_received() -> None:
    bench = WindowBench()
    bench.feed([at(5, 2_000), at(6, 2 * D)])
    assert bench.builder.heads() == [0]
    assert not bench.emitted
    head = bench.validator.accept_head(0, rows_of([at(3, -100), at(4, 100)], is_rest=True))
    bench.builder.insert_head(0, head, proven=True)
    bench.close()
    assert not bench.builder.heads()
    assert bench.windows() == [window(0, 4, 5)]


def test_a_first_window_whose_beginning_is_never_told_is_incomplete_by_an_unknown_number() -> None:
    bench = WindowBench(hold_ms=3_000)
    bench.feed([at(5, 2_000), at(6, 3 * D)])
    bench.close(after_s=3)
    assert bench.windows() == [window(0, 5, complete=False, missing=None), window(1)]


def test_a_head_that_comes_after_the_hold_revises_the_first_window() -> None:
    bench = WindowBench()
    bench.feed([at(5, 2_000), at(6, 2 * D)])
    bench.close(after_s=3)
    head = bench.validator.accept_head(0, rows_of([at(4, -1)], is_rest=True))
    bench.builder.insert_head(0, head, proven=True)
    bench.close(after_s=1)
    assert bench.windows()[-1] == revised(0, 5)


def test_where_nothing_can_be_asked_the_first_window_is_incomplete_at_once() -> None:
    bench = WindowBench(repairable=False)
    bench.feed([at(5, 2_000), at(6, 2 * D)])
    assert bench.windows() == [window(0, 5, complete=False, missing=None)]


def test_an_unproven_head_spoils_every_window_up_to_the_earliest_known_trade() -> None:
    bench = WindowBench()
    bench.builder.begin(START_MS)
    bench.sequences[0].resume(8, START_MS + D + 100)
    bench.feed([at(9, D + 100), at(10, 4 * D)], is_rest=True)
    bench.builder.insert_head(0, rows_of([]), proven=False, until_ms=START_MS + D + 100)
    bench.close()
    assert bench.windows() == [
        window(0, complete=False, missing=None),
        window(1, 9, complete=False, missing=None),
        window(2),
    ]


# --- coverage -----------------------------------------------------------------------------


def test_no_window_closes_while_the_route_is_down_until_the_ids_decide() -> None:
    bench = started(2)
    bench.feed([at(1, 10), at(1, 10, 1)])
    bench.builder.lose_coverage()
    bench.feed([at(2, 2 * D, 1)])  # the route is back: its first trade speaks for itself
    assert bench.builder.uncovered() == [0]
    assert not bench.windows(0)
    assert bench.windows(1) == [window(0, 1)]
    bench.builder.verify(0)  # REST has nothing newer
    bench.close()
    assert bench.windows(0) == [window(0, 1)]


def test_the_first_trade_after_an_outage_shows_what_the_outage_cost() -> None:
    bench = started()
    bench.feed([at(1, 10)])
    bench.builder.lose_coverage()
    bench.feed([at(4, 3 * D)])
    bench.close(after_s=3)
    assert bench.windows() == [
        window(0, 1, complete=False, missing=2),
        window(1, complete=False, missing=0),
    ]
    bench.feed([at(2, 20), at(3, D + 20)], is_rest=True)
    bench.close(after_s=1)
    assert bench.latest() == {START_MS: revised(0, 1, 2), START_MS + D: revised(1, 3)}


def test_a_window_the_clock_has_passed_without_proof_is_emitted_with_unknown_extent() -> None:
    bench = started()
    bench.feed([at(1, 10)])
    bench.builder.lose_coverage()
    overdue_ms = START_MS + D + LATENESS
    bench.close_unproven(overdue_ms - 1)
    bench.close_unproven(overdue_ms)
    bench.close_unproven(overdue_ms, after_s=2.9)
    assert not bench.emitted
    bench.close_unproven(overdue_ms, after_s=0.1)
    assert bench.windows() == [window(0, 1, complete=False, missing=None)]
    bench.builder.verify(0)
    bench.close(after_s=1)
    assert bench.windows()[-1] == revised(0, 1)


def test_a_route_silent_for_long_vouches_only_for_the_symbols_it_carries_again() -> None:
    bench = started(3, silence_ms=2_000)
    bench.feed([at(1, 10), at(1, 10, 1), at(1, 10, 2)])
    bench.feed([at(2, 2 * D), at(2, 2 * D, 1)])
    assert bench.builder.uncovered() == [2]
    assert [len(bench.windows(i)) for i in range(3)] == [1, 1, 0]
    bench.builder.verify(2)
    bench.close()
    assert bench.windows(2) == [window(0, 1)]


def test_coverage_lost_before_the_first_trade_means_nothing() -> None:
    bench = WindowBench()
    bench.builder.lose_coverage()
    assert not bench.builder.uncovered()


def test_the_proof_of_a_symbol_is_its_own_trades_while_it_is_not_covered() -> None:
    bench = started()
    bench.feed([at(1, 10)])
    bench.builder.prove(START_MS + 700)
    assert bench.builder.proof_ms(0) == START_MS + 700
    bench.builder.lose_coverage()
    assert bench.builder.proof_ms(0) == START_MS + 10
    assert bench.builder.statistics()["uncovered_symbols"] == 1


# --- retention ----------------------------------------------------------------------------


def long_run(bench: WindowBench, first_id: int, windows: range) -> None:
    """One trade in the middle of each of the windows."""
    for number in windows:
        bench.feed([at(first_id + number - windows.start, number * D + 2_500)])


def test_trades_of_old_windows_are_forgotten() -> None:
    bench = started(retain_ms=20_000)
    bench.feed([at(1, 10)])
    long_run(bench, 2, range(1, 201))
    retained = bench.builder.statistics()["retained_rows"]
    assert isinstance(retained, int)
    assert retained < 20


def test_a_trade_for_a_window_no_longer_held_asks_for_its_rebuilding() -> None:
    bench = started(retain_ms=20_000)
    bench.feed([at(1, 10), at(3, 30)])
    bench.close()
    long_run(bench, 4, range(1, 4))
    bench.close(after_s=3)
    assert bench.windows()[0] == window(0, 1, 3, complete=False, missing=1)
    long_run(bench, 7, range(4, 21))
    bench.feed([at(2, 20)])
    bench.close(after_s=1)
    assert bench.stale == {(0, START_MS)}
    assert all(w.origin is Origin.LIVE for w in bench.windows())


def test_a_hole_that_reaches_back_beyond_retention_asks_for_every_window_it_touches() -> None:
    bench = started(2, retain_ms=10_000)
    bench.feed([at(1, 10), at(1, 10, 1)])
    for number in range(1, 9):
        bench.feed([at(1 + number, number * D, 1)])
    bench.feed([at(3, 8 * D + 10)])
    bench.close(after_s=3)
    stale = {start for index, start in bench.stale if index == 0}
    assert stale == {START_MS + k * D for k in range(5)}
    assert {s for s, w in bench.latest(0).items() if not w.complete} == {
        START_MS + k * D for k in range(5, 7)
    }


def test_a_repair_is_published_even_when_it_lets_its_window_slide_out_of_retention() -> None:
    bench = started(2, retain_ms=10_000, silence_ms=60_000)
    bench.feed([at(1, 3 * D, 1)])  # closes silent windows of symbol 0
    assert bench.latest(0)[START_MS] == window(0)
    bench.feed([at(2, 7 * D), at(2, 7 * D, 1)])  # one of symbol 0 was missed
    bench.feed([at(1, 10)], is_rest=True)
    assert len(bench.windows(0)) > 6
    assert bench.latest(0)[START_MS] == revised(0, 1)


def test_news_of_a_window_that_waits_for_more_outlive_its_retention() -> None:
    bench = started(2, retain_ms=10_000, hold_ms=3_000, silence_ms=60_000)
    bench.feed([at(1, 3 * D, 1)])
    bench.feed([at(3, 3 * D + 10)])
    bench.feed([at(1, 10)], is_rest=True)  # 2 may be in the same window: do not publish yet
    assert len(bench.windows(0)) == 2
    bench.close(after_s=3)
    bench.feed([at(4, 9 * D), at(2, 9 * D, 1)])
    bench.feed([at(2, D + 10)], is_rest=True)
    bench.close(after_s=1)
    published = {start for start, w in bench.latest(0).items() if 1 in w.ids}
    assert START_MS in published | {start for index, start in bench.stale if index == 0}


def test_windows_of_lost_ids_are_not_asked_for_again_at_every_later_hole() -> None:
    bench = started(retain_ms=20_000)
    bench.feed([at(1, 10), at(3, 30)])
    bench.sequences[0].mark_lost(2, 2)
    bench.builder.touch(0)
    long_run(bench, 4, range(1, 21))
    assert bench.windows()[0] == window(0, 1, 3, complete=False, missing=1)
    assert not bench.stale
    bench.feed([at(25, 21 * D)])  # another hole
    bench.close(after_s=3)
    bench.feed([at(24, 20 * D + 2_600)])
    bench.close(after_s=1)
    assert not bench.stale


def test_holes_beyond_any_repair_are_forgotten_with_their_windows() -> None:
    bench = started(retain_ms=10_000)
    bench.feed([at(1, 10), at(3, 30)])
    bench.sequences[0].mark_lost(2, 2)
    long_run(bench, 4, range(1, 10))
    bench.feed([at(15, 10 * D), at(16, 12 * D)])
    bench.builder.forget_before(0, START_MS + 5 * D)
    assert [gap.first_id for gap in bench.sequences[0].missing] == [13]
    bench.builder.touch(0)
    bench.close(after_s=10)
    assert not bench.stale
    assert not bench.latest()[START_MS].complete


def test_statistics_count_emitted_windows_and_retained_rows() -> None:
    bench = started()
    bench.feed([at(1, 10), at(2, D), at(3, 3 * D)])
    read = bench.builder.statistics()
    assert (read["emitted"], read["retained_rows"]) == (2, 3)
    assert read["route_ms"] == START_MS + 3 * D + 100
