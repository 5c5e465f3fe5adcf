"""Trades and snapshots → accepted, flagged or rejected; ids, order and clock."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from data_validator import (
    Accepted,
    CheckedTrades,
    ClockOffset,
    DataValidator,
    MissingRange,
    Rejected,
    TradeSequence,
)
from domain.market import AggTrade, DepthSnapshot, DepthTop, Side
from microstructure.trade_flags import Suspect, ValidatorSettings
from tests.pipeline_samples import vector
from tests.trade_frames import START_MS, Print, rows_of


def validator(**settings: Any) -> DataValidator:
    return DataValidator(["BTCUSDT", "ETHUSDT"], ValidatorSettings(**settings))


def run(ids: range, **changes: Any) -> list[Print]:
    """Consecutive trades, 10 ms apart."""
    return [Print(i, START_MS + 10 * i, **changes) for i in ids]


def ids_of(rows: np.ndarray) -> list[int]:
    return rows["agg_trade_id"].tolist()


def suspects(checked: CheckedTrades) -> list[Suspect]:
    return [Suspect(int(value)) for value in checked.rows["suspect"]]


def holes(checker: DataValidator, symbol_index: int = 0) -> list[tuple[int, int]]:
    return [(gap.first_id, gap.last_id) for gap in checker.sequences[symbol_index].missing]


def agg_trade(
    agg_trade_id: int, time_ms: int, price: str, quantity: str, **changes: Any
) -> AggTrade:
    fields: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "agg_trade_id": agg_trade_id,
        "price": Decimal(price),
        "quantity": Decimal(quantity),
        "first_trade_id": agg_trade_id,
        "last_trade_id": agg_trade_id,
        "transact_time_ms": time_ms,
        "aggressor_side": Side.BUY,
    }
    return AggTrade(**(fields | changes))


# --- reference vectors --------------------------------------------------------------------


def test_the_reference_sequence_of_trades_is_flagged_as_defined(recordings_dir: Path) -> None:
    entry = vector(recordings_dir, "trade_sequence_flags")
    checker = validator(time_backwards_ms=0)
    found: list[list[str]] = []
    for row in entry["inputs"]["rows"]:
        before = checker.statistics()["missing_ids"]
        newest = checker.sequences[0].max_id
        result = checker.check_trade(agg_trade(row["a"], row["T"], str(row["p"]), str(row["q"])))
        opened = int(checker.statistics()["missing_ids"] or 0) - int(before or 0)
        flags = []
        if isinstance(result, Rejected):
            assert result.reason == "not positive"
            flags.append("non_positive")
        else:
            if opened > 0:
                flags.append(f"gap:{opened}")
            if newest is not None and row["a"] < newest:
                flags.append("late")
            if result.suspect & Suspect.TIME_BACKWARDS:
                flags.append("time_backwards")
        found.append(flags)
    assert found == entry["expected"]["flags"]
    assert holes(checker) == [(12, 12)]


def test_the_reference_outlier_is_flagged_at_its_threshold(recordings_dir: Path) -> None:
    entry = vector(recordings_dir, "mad_outlier")
    history = [
        round(price * 100) for price in entry["inputs"]["history"]
    ] * 8  # median, MAD unmoved
    new = round(entry["inputs"]["new"] * 100)
    z = entry["expected"]["z"]
    for jump_z, is_flagged in ((z - 1e-6, True), (z + 1e-6, False)):
        checker = validator(jump_z=jump_z)
        past = [Print(i, START_MS + i, price) for i, price in enumerate(history)]
        checker.check_trades(rows_of(past), 0)
        checked = checker.check_trades(rows_of([Print(len(past), START_MS + 999, new)]), 0)
        assert suspects(checked) == [Suspect.PRICE_JUMP if is_flagged else Suspect(0)]


# --- ids ----------------------------------------------------------------------------------


def test_consecutive_trades_pass_unflagged() -> None:
    checker = validator()
    checked = checker.check_trades(rows_of(run(range(50))), 0)
    assert ids_of(checked.rows) == list(range(50))
    assert checked.groups == [(0, 0, 50)]
    assert not checked.rows["suspect"].any()
    assert not holes(checker)


def test_trades_of_several_symbols_are_grouped_and_keep_their_order() -> None:
    checker = validator()
    mixed = [
        trade
        for pair in zip(run(range(5)), run(range(90, 95), symbol_index=1), strict=True)
        for trade in pair
    ]
    checked = checker.check_trades(rows_of(mixed), 0)
    assert checked.groups == [(0, 0, 5), (1, 5, 10)]
    assert ids_of(checked.rows) == [*range(5), *range(90, 95)]


def test_a_duplicate_is_dropped_silently() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(5))), 0)
    checked = checker.check_trades(rows_of(run(range(2, 8)), delay_ms=400), 0)
    assert ids_of(checked.rows) == [5, 6, 7]
    assert not len(checked.rejected_rows)
    assert checker.statistics()["duplicates"] == 3
    assert checker.statistics()["conflicts"] == 0


def test_a_duplicate_padded_with_zeros_is_the_same_trade() -> None:
    checker = validator()
    checker.check_trades(rows_of([Print(1, START_MS)]), 0)
    again = rows_of([Print(1, START_MS)])
    again["price"] *= 10
    again["price_decimals"] += 1
    again["quantity"] *= 100
    again["quantity_decimals"] += 2
    assert not len(checker.check_trades(again, 0).rejected_rows)


OTHER_PAYLOADS = {
    "price": {"price": 6_400_011},
    "dot moved": {"price_decimals": 1},
    "quantity": {"quantity": 251},
    "side": {"is_buyer_maker": True},
    "time": {"transact_time_ms": START_MS + 1},
    "first fill": {"first_trade_id": 9},
    "last fill": {"last_trade_id": 12},
}


@pytest.mark.parametrize("change", OTHER_PAYLOADS.values(), ids=OTHER_PAYLOADS.keys())
def test_another_payload_under_a_known_id_is_rejected_and_the_id_disputed(
    change: dict[str, int],
) -> None:
    checker = validator()
    checker.check_trades(rows_of([Print(1, START_MS)]), 0)
    other = rows_of([Print(1, START_MS)])
    for name, value in change.items():
        other[name] = value
    checked = checker.check_trades(other, 0)
    assert not len(checked.rows)
    assert ids_of(checked.rejected_rows) == [1]
    assert checker.sequences[0].disputed == {1}


def test_the_rest_copy_of_a_disputed_id_replaces_the_one_received() -> None:
    checker = validator()
    checker.check_trades(rows_of([Print(1, START_MS), Print(1, START_MS, price=9)]), 0)
    checked = checker.check_trades(
        rows_of([Print(1, START_MS, price=9)], is_rest=True), 0, authoritative=True
    )
    assert checked.replacements["price"].tolist() == [9]
    assert not checker.sequences[0].disputed
    repeated = checker.check_trades(rows_of([Print(1, START_MS, price=9)]), 0)
    assert not len(repeated.rejected_rows)  # now the known payload
    contradicting = checker.check_trades(rows_of([Print(1, START_MS)]), 0)
    assert ids_of(contradicting.rejected_rows) == [1]


def test_rest_rows_that_contradict_an_accepted_trade_win_without_a_dispute() -> None:
    checker = validator()
    checker.check_trades(rows_of([Print(1, START_MS)]), 0)
    checked = checker.check_trades(
        rows_of([Print(1, START_MS, quantity=1)], is_rest=True), 0, authoritative=True
    )
    assert checked.replacements["quantity"].tolist() == [1]
    assert not len(checked.rejected_rows)


def test_a_rejected_trade_does_not_mark_its_id_as_seen() -> None:
    checker = validator()
    assert isinstance(checker.check_trade(agg_trade(1, START_MS, "5", "1")), Accepted)
    assert isinstance(checker.check_trade(agg_trade(2, START_MS, "5", "0")), Rejected)
    assert isinstance(checker.check_trade(agg_trade(2, START_MS, "5", "2")), Accepted)
    assert not holes(checker)


def test_skipped_ids_are_a_hole_between_the_times_around_it() -> None:
    checker = validator()
    checked = checker.check_trades(rows_of(run(range(3)) + run(range(7, 9))), now_ns=77)
    assert ids_of(checked.rows) == [0, 1, 2, 7, 8]
    assert checked.changed == {0}
    assert checker.sequences[0].missing == [MissingRange(3, 6, START_MS + 20, START_MS + 70, 77)]
    assert checker.statistics()["missing_ids"] == 4


def test_a_late_id_splits_a_hole_and_the_last_one_closes_it() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(3)) + run(range(7, 9))), 0)
    checker.check_trades(rows_of(run(range(5, 6))), 0)
    assert holes(checker) == [(3, 4), (6, 6)]
    assert [(g.after_ms, g.before_ms) for g in checker.sequences[0].missing] == [
        (START_MS + 20, START_MS + 50),
        (START_MS + 50, START_MS + 70),
    ]
    checked = checker.check_trades(rows_of(run(range(3, 7)), is_rest=True), 0, authoritative=True)
    assert ids_of(checked.rows) == [3, 4, 6]
    assert not holes(checker)
    assert checker.statistics()["missing_ids"] == 0


def test_part_of_a_hole_can_be_lost_and_still_be_filled_later() -> None:
    sequence = TradeSequence()
    for trade_id in (0, 10):
        sequence.extend(trade_id, START_MS + trade_id, 0)
    sequence.mark_lost(3, 5)
    assert [(g.first_id, g.last_id, g.lost) for g in sequence.missing] == [
        (1, 2, False),
        (3, 5, True),
        (6, 9, False),
    ]
    assert sequence.extend(4, START_MS + 4, 0)
    assert [g.first_id for g in sequence.missing if g.lost] == [3, 5]
    assert sum(g.count for g in sequence.missing) == 8


def test_a_trade_found_between_lost_ids_bounds_their_times() -> None:
    sequence = TradeSequence()
    for trade_id in (0, 6):
        sequence.extend(trade_id, START_MS + 1_000 * trade_id, 0)
    for lost in (1, 2, 4, 5):
        sequence.mark_lost(lost, lost)
    assert sequence.extend(3, START_MS + 3_000, 0)
    assert [(g.first_id, g.after_ms, g.before_ms) for g in sequence.missing] == [
        (1, START_MS, START_MS + 3_000),
        (2, START_MS, START_MS + 3_000),
        (4, START_MS + 3_000, START_MS + 6_000),
        (5, START_MS + 3_000, START_MS + 6_000),
    ]


def test_losing_ids_over_several_holes_leaves_what_is_outside() -> None:
    sequence = TradeSequence()
    for trade_id in (0, 5, 10):
        sequence.extend(trade_id, START_MS, 0)
    sequence.mark_lost(3, 7)
    lost = [(g.first_id, g.last_id) for g in sequence.missing if g.lost]
    assert lost == [(3, 4), (6, 7)]


def test_ids_before_the_first_known_trade_are_not_taken_as_new() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(10, 12))), 0)
    checked = checker.check_trades(rows_of(run(range(8, 12))), 0)
    assert not len(checked.rows)
    assert checker.statistics()["before_start"] == 2


def test_the_head_takes_only_rows_contiguous_with_the_first_trade() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(10, 12))), 0)
    head = rows_of(run(range(4, 6)) + run(range(7, 11)), is_rest=True)
    assert ids_of(checker.accept_head(0, head)) == [7, 8, 9]
    assert checker.sequences[0].first_id == 7
    assert not len(checker.accept_head(0, head[:2]))


def test_a_resumed_sequence_knows_a_hole_before_the_first_trade_received() -> None:
    checker = validator()
    checker.sequences[0].resume(5, START_MS)
    checker.check_trades(rows_of(run(range(9, 10))), 0)
    assert holes(checker) == [(6, 8)]


# --- what only flags ----------------------------------------------------------------------


def test_a_receive_clock_behind_the_exchange_is_normal() -> None:
    checker = validator()
    for batch in range(20):
        trades = run(range(batch * 5, batch * 5 + 5))
        assert not any(suspects(checker.check_trades(rows_of(trades, clock_ms=-1_500), 0)))
    assert checker.statistics()["clock_offset_ms"] == -1_500
    exchange_ms = checker.clock.exchange_ms((START_MS - 1_500) * 1_000_000)
    assert exchange_ms == START_MS


def test_a_trade_stamped_in_the_future_is_flagged_and_kept() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(5)), clock_ms=-1_500), 0)
    checked = checker.check_trades(rows_of(run(range(5, 6)), clock_ms=-4_000), 0)
    assert suspects(checked) == [Suspect.CLOCK]


def test_a_clock_far_off_is_warned_of_once_until_it_was_right() -> None:
    checker = validator(clock_window_s=0.3)  # trades come 10 ms apart

    def trades_at(clock_ms: int) -> None:
        for _ in range(64):
            newest = checker.sequences[0].max_id
            trade_id = 0 if newest is None else newest + 1
            checked = checker.check_trades(
                rows_of(run(range(trade_id, trade_id + 1)), clock_ms=clock_ms), 0
            )
            assert len(checked.rows) == 1

    with capture_logs() as logs:
        for clock_ms in (0, -1_300, -240, -1_300, 190, 260):
            trades_at(clock_ms)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("validator.clock_offset", "warning"),
        ("validator.clock_offset_over", "info"),
        ("validator.clock_offset", "warning"),
    ]
    assert checker.statistics()["clock_warnings"] == 2
    assert checker.statistics()["trades"] == 6 * 64


def test_clocks_of_unlike_speed_show_as_drift() -> None:
    steady, drifting = ClockOffset(60.0), ClockOffset(60.0)
    for i in range(64):
        steady.add((START_MS + 100 * i - 1_400) * 1_000_000, START_MS + 100 * i)
        drifting.add((START_MS + 50 * i) * 1_000_000, START_MS + 100 * i)
    assert steady.drift_ms == 0
    assert drifting.drift_ms > 1_000


def test_the_clock_offset_is_the_median_of_the_last_minute_however_many_messages_came() -> None:
    clock = ClockOffset(60.0)
    for i in range(7_000):  # 70 s: for 30 s the clock is right, then 500 ms ahead
        offset_ms = 0 if i < 3_000 else 500
        clock.add((START_MS + 10 * i + offset_ms) * 1_000_000, START_MS + 10 * i)
    assert clock.median_ms == pytest.approx(500)  # 40 of the last 60 s
    assert clock.latest_ms == pytest.approx(500)


def test_a_quiet_feed_keeps_its_last_messages_and_a_clock_set_back_goes_on_learning() -> None:
    clock = ClockOffset(60.0)
    for i in range(20):  # one message in two minutes
        clock.add((START_MS + 120_000 * i + 70) * 1_000_000, START_MS + 120_000 * i)
    assert clock.median_ms == pytest.approx(70, abs=0.01)
    assert clock.drift_ms == 0
    for i in range(200):
        at_ms = START_MS + 2_400_000 + 100 * i
        clock.add((at_ms - 3_600_000) * 1_000_000, at_ms)
    assert clock.median_ms == pytest.approx(-3_600_000)


JUMP = Suspect.PRICE_JUMP
CRASH = [Print(100 + i, START_MS + 1_000 + i, 6_400_010 - 64_000 * (i + 1)) for i in range(5)]


def test_a_price_jump_is_flagged_and_kept_unless_the_next_prints_follow_it() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(100))), 0)
    checked = checker.check_trades(rows_of(CRASH), 0)
    assert ids_of(checked.rows) == [100, 101, 102, 103, 104]
    assert suspects(checked) == [Suspect(0)] * 2 + [JUMP] * 3  # the last three have too few after
    assert checker.statistics()["suspects"] == checker.statistics()["suspect_price_jump"] == 3


@pytest.mark.parametrize("back_after", [1, 2, 3, 4])
def test_a_print_that_the_next_ones_do_not_follow_is_a_jump(back_after: int) -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(100))), 0)
    prices = [6_336_010] * back_after + [6_400_010] * 6
    spike = [Print(100 + i, START_MS + 1_000 + i, price) for i, price in enumerate(prices)]
    first = suspects(checker.check_trades(rows_of(spike), 0))[0]
    assert first == (Suspect(0) if back_after == 4 else JUMP)


def final_jumps(checker: DataValidator, batches: list[list[Print]]) -> set[int]:
    """Ids of the price jumps that stay flagged after all batches."""
    flagged: set[int] = set()
    for batch in batches:
        checked = checker.check_trades(rows_of(batch), 0)
        flagged -= {trade_id for _, trade_id in checked.confirmed}
        flagged |= set(checked.rows["agg_trade_id"][(checked.rows["suspect"] & JUMP) != 0].tolist())
    return flagged


@pytest.mark.parametrize("seed", range(8))
def test_a_jump_is_judged_by_the_next_prints_however_they_are_batched(seed: int) -> None:
    source = random.Random(seed)
    prices, level = [6_400_010] * 100, 6_400_010
    for _ in range(60):
        level += source.choice([0, 0, 0, -64_000, 64_000])
        prices.append(level if source.random() < 0.8 else level + 200_000)
    prints = [Print(i, START_MS + 10 * i, price) for i, price in enumerate(prices)]
    cuts = sorted(source.sample(range(101, 160), 25))
    split = [prints[a:b] for a, b in itertools.pairwise([0, 100, *cuts, 160])]
    whole, parts = validator(), validator()
    expected = final_jumps(whole, [prints[:100], prints[100:]])
    assert final_jumps(parts, split) == expected
    assert expected
    assert parts.statistics()["confirmed_jumps"] != 0


def test_a_quote_that_comes_after_a_jump_confirms_it() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(100))), 0)
    jump = Print(100, START_MS + 5_000, 6_336_010, is_sell=True)
    assert suspects(checker.check_trades(rows_of([jump]), 0)) == [JUMP]
    checker.check_depth(
        top(
            bid=(63_360.0, 1.0),
            ask=(63_360.1, 1.0),
            transact_time_ms=START_MS + 5_050,
            final_update_id=2,
        )
    )
    other = Print(7, START_MS + 5_100, 6_400_010, symbol_index=1)
    assert checker.check_trades(rows_of([other]), 0).confirmed == [(0, 100)]


def test_how_many_prints_make_a_jump_a_move_is_a_setting() -> None:
    for needed, flagged in ((0, 5), (1, 1), (4, 4), (5, 5)):
        checker = validator(jump_confirming_prints=needed)
        checker.check_trades(rows_of(run(range(100))), 0)
        assert suspects(checker.check_trades(rows_of(CRASH), 0)).count(JUMP) == flagged


@pytest.mark.parametrize(
    ("bid", "age_ms", "flag"),
    [(63_360.0, 0, Suspect(0)), (63_360.0, 1_001, JUMP), (64_000.0, 0, JUMP)],
    ids=["quoted", "stale quote", "quoted elsewhere"],
)
def test_a_price_the_book_quotes_is_no_jump(bid: float, age_ms: int, flag: Suspect) -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(100))), 0)
    at_ms = START_MS + 5_000
    checker.check_depth(
        top(bid=(bid, 1.0), ask=(bid + 0.1, 1.0), transact_time_ms=at_ms, final_update_id=2)
    )
    moved = [Print(100, at_ms + age_ms, 6_336_010, is_sell=True)]
    assert suspects(checker.check_trades(rows_of(moved), 0)) == [flag]


def test_a_calm_market_that_moves_less_than_the_least_jump_is_not_flagged() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(100))), 0)
    moved = checker.check_trades(rows_of(run(range(100, 101), price=6_400_010 + 28_000)), 0)
    assert suspects(moved) == [Suspect(0)]


def test_an_odd_size_is_flagged() -> None:
    checker = validator()
    checker.check_trades(rows_of(run(range(10_000))), 0)
    usual = checker.check_trades(rows_of(run(range(10_000, 10_001), quantity=2_000)), 0)
    odd = checker.check_trades(rows_of(run(range(10_001, 10_002), quantity=50_000)), 0)
    assert (suspects(usual), suspects(odd)) == ([Suspect(0)], [Suspect.ODD_SIZE])


@pytest.mark.parametrize(
    ("price", "quantity", "flag"),
    [
        (6_400_010, 250, Suspect(0)),
        (6_400_015, 250, Suspect.OFF_GRID),
        (9_999_999_990, 250, Suspect(0)),
        (9_999_999_995, 250, Suspect.OFF_GRID),
        (6_400_010, 251, Suspect.OFF_GRID),
        (10, 10, Suspect(0)),
    ],
)
def test_what_is_off_the_grid_is_flagged(price: int, quantity: int, flag: Suspect) -> None:
    checker = validator()
    checker.set_grid("BTCUSDT", tick_size=0.1, step_size=0.01)
    checked = checker.check_trades(rows_of([Print(1, START_MS, price, quantity)]), 0)
    assert suspects(checked) == [flag]


def test_time_that_runs_back_is_flagged_beyond_the_tolerance() -> None:
    checker = validator(time_backwards_ms=1_000)
    times = [START_MS, START_MS + 5_000, START_MS + 4_000, START_MS + 3_999, START_MS + 5_001]
    checked = checker.check_trades(rows_of(Print(i, t) for i, t in enumerate(times)), 0)
    back = Suspect.TIME_BACKWARDS
    assert suspects(checked) == [Suspect(0), Suspect(0), Suspect(0), back, Suspect(0)]


def test_a_late_trade_is_not_one_whose_time_runs_back() -> None:
    checker = validator(time_backwards_ms=0)
    late = [Print(i, START_MS + 500 * i) for i in (0, 3, 2)]
    assert not any(suspects(checker.check_trades(rows_of(late), 0)))
    assert checker.statistics()["time_steps_back"] == 0
    repaired = rows_of([Print(1, START_MS + 500)], is_rest=True)
    assert not any(suspects(checker.check_trades(repaired, 0, authoritative=True)))


def test_small_steps_back_in_time_are_counted() -> None:
    checker = validator()
    times = [START_MS, START_MS + 9, START_MS + 8, START_MS + 9, START_MS + 5]
    checked = checker.check_trades(rows_of(Print(i, t) for i, t in enumerate(times)), 0)
    assert not any(suspects(checked))
    assert checker.statistics()["time_steps_back"] == 2


@pytest.mark.parametrize(("behind_ms", "flag"), [(2_000, Suspect(0)), (2_001, Suspect.LATE)])
def test_an_id_that_comes_very_late_is_flagged_but_not_when_rest_gives_it(
    behind_ms: int, flag: Suspect
) -> None:
    for is_rest in (False, True):
        checker = validator()
        newest = [Print(0, START_MS), Print(3, START_MS + 9_000)]
        checker.check_trades(rows_of(newest), 0)
        late = rows_of([Print(1, START_MS + 9_000 - behind_ms)], is_rest=is_rest)
        checked = checker.check_trades(late, 0, authoritative=is_rest)
        assert suspects(checked) == [Suspect(0) if is_rest else flag]


def test_an_aggressor_far_outside_a_fresh_book_is_flagged() -> None:
    checker = validator()
    checker.check_depth(top(final_update_id=1))
    outside = [
        Print(1, START_MS, 6_400_010),
        Print(2, START_MS, 6_380_000),  # a buy 30 bps below the best bid
        Print(3, START_MS, 6_420_000, is_sell=True),  # a sell above the best ask
        Print(4, START_MS, 6_420_000),
    ]
    beyond = Suspect.OUTSIDE_BOOK
    assert suspects(checker.check_trades(rows_of(outside), 0)) == [
        Suspect(0), beyond, beyond, Suspect(0)
    ]  # fmt: skip
    later = checker.check_trades(rows_of([Print(5, START_MS + 2_000, 6_380_000)]), 0)
    assert suspects(later) == [Suspect(0)]


# --- single trades ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trade", "reason"),
    [
        (agg_trade(2, START_MS, "1", "1", symbol="XRPUSDT"), "wrong symbol"),
        (agg_trade(2, START_MS, "NaN", "1"), "not finite"),
        (agg_trade(2, START_MS, "1", "Infinity"), "not finite"),
        (agg_trade(2, START_MS, "-1", "1"), "not positive"),
        (agg_trade(2, START_MS, "1", "0"), "not positive"),
        (agg_trade(2, START_MS, "1E+30", "1"), "malformed number"),
        (agg_trade(2, START_MS, "1", "1E-30"), "malformed number"),
        (agg_trade(1, START_MS, "1", "1"), "duplicate"),
        (agg_trade(1, START_MS, "2", "1"), "id already seen with another payload"),
        (agg_trade(0, START_MS, "1", "1"), "before the first known trade"),
    ],
)
def test_a_single_trade_is_rejected_with_its_reason(trade: AggTrade, reason: str) -> None:
    checker = validator()
    assert checker.check_trade(agg_trade(1, START_MS, "1.0", "1E+0")) == Accepted(
        agg_trade(1, START_MS, "1.0", "1E+0")
    )
    assert checker.check_trade(trade) == Rejected(reason, trade.symbol)


def test_a_trade_without_times_of_its_own_is_no_clock_fault() -> None:
    checker = validator()
    year_ms = 365 * 86_400_000
    checker.check_trades(rows_of(run(range(1, 4)), clock_ms=year_ms), 0)  # replayed a year later
    accepted = checker.check_trade(agg_trade(4, START_MS + 40, "64000.10", "0.25"))
    assert accepted == Accepted(agg_trade(4, START_MS + 40, "64000.10", "0.25"))


# --- depth --------------------------------------------------------------------------------

BIDS = [(64_000.0, 1.0), (63_999.9, 2.0), (63_999.8, 3.0)]
ASKS = [(64_000.1, 1.0), (64_000.2, 2.0), (64_000.3, 3.0)]
NAN, INF = float("nan"), float("inf")


def top(**changes: Any) -> DepthTop:
    fields: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "event_time_ms": START_MS,
        "transact_time_ms": START_MS,
        "receive_time_ns": START_MS * 1_000_000,
        "first_update_id": 1,
        "final_update_id": 10,
        "prev_final_update_id": 0,
        "bid": BIDS[0],
        "ask": ASKS[0],
        "payload": b"",
    }
    return DepthTop(**(fields | changes))


BAD_TOPS = {
    "crossed": {"bid": (64_000.2, 1.0)},
    "locked": {"bid": (64_000.1, 1.0)},
    "size zero": {"bid": (64_000.0, 0.0)},
    "negative size": {"ask": (64_000.1, -1.0)},
    "negative size alone": {"bid": None, "ask": (64_000.1, -1.0)},
    "negative price": {"bid": (-5.0, 1.0)},
    "price zero alone": {"bid": (0.0, 1.0), "ask": None},
    "NaN price": {"bid": (NAN, 1.0)},
    "NaN price alone": {"bid": None, "ask": (NAN, 1.0)},
    "NaN size": {"bid": (64_000.0, NAN)},
    "infinite price": {"ask": (INF, 1.0)},
    "infinite size": {"ask": (64_000.1, INF)},
    "unknown symbol": {"symbol": "XRPUSDT"},
}


@pytest.mark.parametrize("changes", BAD_TOPS.values(), ids=BAD_TOPS.keys())
def test_impossible_best_levels_are_rejected_and_break_the_chain(changes: dict[str, Any]) -> None:
    checker = validator()
    assert checker.check_depth(top()) == Accepted(top())
    faulty = top(final_update_id=20, prev_final_update_id=10, **changes)
    assert isinstance(checker.check_depth(faulty), Rejected)
    after = top(final_update_id=30, prev_final_update_id=20)
    accepted = checker.check_depth(after)
    assert isinstance(accepted, Accepted)
    assert accepted.chain_broken


@pytest.mark.parametrize("sides", [{"bid": None}, {"ask": None}, {"bid": None, "ask": None}])
def test_an_empty_side_is_no_fault(sides: dict[str, Any]) -> None:
    assert isinstance(validator().check_depth(top(**sides)), Accepted)


BAD_LEVELS = {
    "crossed": ({"bids": [(64_000.2, 1.0)]}, "crossed book"),
    "unsorted bids": ({"bids": BIDS[::-1]}, "unsorted book"),
    "unsorted asks": ({"asks": [ASKS[0], ASKS[2], ASKS[1]]}, "unsorted book"),
    "size zero": ({"bids": [BIDS[0], (63_999.0, 0.0)]}, "depth with a size that is not positive"),
    "negative size": ({"asks": [ASKS[0], (64_000.2, -1.0)]}, "depth with a size that is not"),
    "negative price": ({"bids": [BIDS[0], (-5.0, 1.0)]}, "depth with an impossible price"),
    "price zero": ({"bids": [BIDS[0], (0.0, 1.0)]}, "depth with an impossible price"),
    "NaN price": ({"asks": [ASKS[0], (NAN, 1.0), ASKS[2]]}, "depth with a number that is not"),
    "NaN size": ({"bids": [BIDS[0], (63_999.9, NAN), BIDS[2]]}, "depth with a number that is not"),
    "infinite price": ({"asks": [ASKS[0], (INF, 1.0)]}, "depth with a number that is not finite"),
}


def whole_book(bids: list[Any] = BIDS, asks: list[Any] = ASKS) -> DepthSnapshot:
    return DepthSnapshot("BTCUSDT", START_MS, START_MS, START_MS * 1_000_000, 1, 10, 0, bids, asks)


@pytest.mark.parametrize(("sides", "reason"), BAD_LEVELS.values(), ids=BAD_LEVELS.keys())
def test_a_book_with_an_impossible_level_is_named(sides: dict[str, Any], reason: str) -> None:
    checker = validator()
    assert str(checker.check_levels(whole_book(**sides))).startswith(reason)
    assert checker.statistics()["depth_rejected"] == 1


@pytest.mark.parametrize("sides", [{}, {"bids": []}, {"asks": []}, {"bids": [], "asks": []}])
def test_a_sound_book_passes_with_all_its_levels(sides: dict[str, Any]) -> None:
    checker = validator()
    assert checker.check_levels(whole_book(**sides)) is None
    assert checker.statistics()["depth_rejected"] == 0


def test_a_chain_holds_as_long_as_pu_is_the_last_u() -> None:
    checker = validator()
    chain = [(10, 3), (15, 10), (21, 19), (30, 21)]
    broken = []
    for final, previous in chain:
        result = checker.check_depth(top(final_update_id=final, prev_final_update_id=previous))
        assert isinstance(result, Accepted)
        broken.append(result.chain_broken)
    assert broken == [False, False, True, False]
    assert checker.statistics()["chain_breaks"] == 1
    assert checker.book_update_id("BTCUSDT") == 30


def test_a_snapshot_out_of_order_is_rejected_and_breaks_nothing() -> None:
    checker = validator()
    checker.check_depth(top(final_update_id=20))
    assert isinstance(checker.check_depth(top(final_update_id=20)), Rejected)
    assert isinstance(checker.check_depth(top(final_update_id=15)), Rejected)
    successor = checker.check_depth(top(final_update_id=25, prev_final_update_id=20))
    assert successor == Accepted(top(final_update_id=25, prev_final_update_id=20))


@pytest.mark.parametrize("previous", [10, None], ids=["futures", "spot"])
def test_another_socket_restarts_the_chain_even_from_lower_ids(previous: int | None) -> None:
    checker = validator()
    checker.check_depth(top(final_update_id=10, prev_final_update_id=None))
    checker.reset_depth()
    result = checker.check_depth(top(final_update_id=8, prev_final_update_id=previous))
    assert isinstance(result, Accepted)
    assert result.chain_broken
    unseen = checker.check_depth(top(symbol="ETHUSDT"))
    assert unseen == Accepted(top(symbol="ETHUSDT"))  # it had no chain to break
