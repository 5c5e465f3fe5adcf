"""Whatever the order, repetition and batching of the trades: the same windows in the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trade_frames import START_MS, Print
from tests.window_bench import D, WindowBench

HOLD_MS = 3_000
SYMBOLS = 2
END_MS = 20_000  # from the last trade to the one that ends the run

ids_and_windows = dict[int, tuple[int, ...]]


class Arrival(NamedTuple):
    """A trade on its way to us."""

    at_ms: int
    trade: Print


@st.composite
def markets(draw: st.DrawFn) -> list[Print]:
    """Trades of two symbols, ids consecutive, times never running back, often silent for windows."""
    steps = st.integers(0, 40) | st.integers(0, 900) | st.sampled_from([D, D + 1, 3 * D])
    trades = []
    for index in range(SYMBOLS):
        time_ms = START_MS
        for number, step in enumerate(draw(st.lists(steps, min_size=1, max_size=40)), start=1):
            time_ms += step
            trades.append(Print(number, time_ms, symbol_index=index))
    return trades


@st.composite
def deliveries(draw: st.DrawFn, trades: Sequence[Print], max_delay_ms: int) -> list[list[Arrival]]:
    """Each trade once or more, each copy with a delay of its own, cut into batches."""
    delays = st.lists(st.integers(0, max_delay_ms), min_size=1, max_size=2)
    arrivals = [Arrival(trade.time_ms + delay, trade) for trade in trades for delay in draw(delays)]
    arrivals.sort()
    cuts = draw(st.lists(st.booleans(), min_size=len(arrivals), max_size=len(arrivals)))
    batches: list[list[Arrival]] = []
    for arrival, is_cut in zip(arrivals, cuts, strict=True):
        if is_cut or not batches:
            batches.append([])
        batches[-1].append(arrival)
    return batches


def last_trades(trades: Sequence[Print]) -> list[Print]:
    """A trade of each symbol so late that everything before it must be closed."""
    newest = max(trade.time_ms for trade in trades)
    counts = [sum(trade.symbol_index == index for trade in trades) for index in range(SYMBOLS)]
    return [
        Print(count + 1, newest + END_MS, symbol_index=index) for index, count in enumerate(counts)
    ]


def expected(trades: Sequence[Print], index: int) -> ids_and_windows:
    """Window start → ids, from the sorted, unique trades; up to the window of the last trade."""
    newest = max(trade.time_ms for trade in trades)
    windows: dict[int, list[int]] = {t: [] for t in range(START_MS, newest + 1, D)}
    for trade in sorted(set(trades)):
        if trade.symbol_index == index:
            windows[trade.time_ms - trade.time_ms % D].append(trade.agg_trade_id)
    return {start: tuple(ids) for start, ids in windows.items()}


def deliver(bench: WindowBench, batches: Sequence[Sequence[Arrival]], *, rest_ms: int = 0) -> None:
    """Feed batches while the local clock runs along."""
    for batch in batches:
        bench.now_ns = max(bench.now_ns, (batch[-1].at_ms + rest_ms) * 1_000_000)
        bench.feed([arrival.trade for arrival in batch])


def started(retain_ms: int) -> WindowBench:
    bench = WindowBench(SYMBOLS, hold_ms=HOLD_MS, retain_ms=retain_ms, silence_ms=2**40)
    bench.now_ns = START_MS * 1_000_000
    bench.start(range(SYMBOLS))
    return bench


@given(st.data(), markets())
def test_any_order_repetition_and_batching_gives_the_windows_of_the_sorted_unique_trades(
    data: st.DataObject, trades: list[Print]
) -> None:
    bench = started(retain_ms=60_000)
    deliver(bench, data.draw(deliveries(trades, HOLD_MS - 500)))
    bench.now_ns += 1_000_000_000
    bench.feed(last_trades(trades))
    bench.close(after_s=1)
    assert not bench.stale
    for index in range(SYMBOLS):
        wanted = expected(trades, index)
        found = {s: w for s, w in bench.latest(index).items() if s in wanted}
        assert {start: window.ids for start, window in found.items()} == wanted
        # everything was there in time: no window ever lacked anything it knew of
        assert all(w.complete and w.missing == 0 for w in bench.windows(index))


@given(st.data(), markets())
@settings(max_examples=100)
def test_windows_are_emitted_once_each_in_order_before_any_revision(
    data: st.DataObject, trades: list[Print]
) -> None:
    bench = started(retain_ms=60_000)
    deliver(bench, data.draw(deliveries(trades, 2 * HOLD_MS)))
    bench.feed(last_trades(trades))
    bench.close(after_s=HOLD_MS / 1_000)
    for index in range(SYMBOLS):
        firsts = [w.start_ms for w in bench.windows(index) if w.origin.value == "live"]
        assert firsts == list(range(START_MS, START_MS + len(firsts) * D, D))
        revised = [w.start_ms for w in bench.windows(index) if w.origin.value == "revised"]
        assert set(revised) <= set(firsts)


@given(st.data(), markets(), st.sampled_from([10_000, 3_600_000]))
@settings(max_examples=100)
def test_dropped_trades_that_rest_gives_back_lead_to_the_same_windows(
    data: st.DataObject, trades: list[Print], retain_ms: int
) -> None:
    dropped = set(data.draw(st.lists(st.sampled_from(trades), max_size=10)))
    lost = {trade for trade in dropped if data.draw(st.booleans())}
    bench = started(retain_ms)
    arrived = [trade for trade in trades if trade not in dropped]
    if arrived:
        deliver(bench, data.draw(deliveries(arrived, HOLD_MS - 500)))
    bench.feed(last_trades(trades))
    bench.close(after_s=data.draw(st.sampled_from([0.0, 1.0, 60.0])))
    for trade in data.draw(st.permutations(sorted(dropped))):
        if trade in lost:
            bench.sequences[trade.symbol_index].mark_lost(trade.agg_trade_id, trade.agg_trade_id)
            bench.builder.touch(trade.symbol_index)
        else:
            bench.feed([trade], is_rest=True)
        bench.close(after_s=data.draw(st.sampled_from([0.0, 0.2, 4.0])))
    bench.close(after_s=HOLD_MS / 1_000)
    found_lost = 0
    for index in range(SYMBOLS):
        wanted = expected([t for t in trades if t not in lost] + last_trades(trades), index)
        del wanted[max(wanted)]  # still open
        latest = bench.latest(index)
        spoilt = _spoilt(trades, lost, index)
        for start, ids in wanted.items():
            if (index, start) in bench.stale:
                continue  # rebuilt from the history, see the tests of rebuild
            if start not in latest:
                assert start + D + 250 > max(trade.time_ms for trade in last_trades(trades))
                continue
            assert latest[start].ids == ids
            assert latest[start].complete == (start not in spoilt)
            found_lost += latest[start].missing or 0
    if not bench.stale:
        assert found_lost == len(lost)


def _spoilt(trades: Sequence[Print], lost: set[Print], index: int) -> set[int]:
    """Windows that a lost trade may belong to: from the known trade before it to the one after."""
    known = [Print(0, START_MS - 1, symbol_index=index)]
    known += sorted(t for t in trades if t.symbol_index == index and t not in lost)
    known.append(last_trades(trades)[index])
    spoilt: set[int] = set()
    for before, after in pairwise(known):
        if after.agg_trade_id > before.agg_trade_id + 1:
            first = max(START_MS, before.time_ms - before.time_ms % D)
            spoilt.update(range(first, after.time_ms + 1, D))
    return spoilt
