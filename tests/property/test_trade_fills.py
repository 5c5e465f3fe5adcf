"""Entries and exits out of trades, against a walk over them one by one."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.forward_returns import Status
from evaluation.trade_fills import MOST_QUIET_MS, Fills, Moves, Trades
from evaluation.trade_prices import TradePrices
from lake.paths import LakePaths
from tests.lake_months import SYMBOL, archive, store, trade_lines
from tests.lake_months import trades as trade_rows

DAY_MS = 86_400_000
MONTH_MS = 1_719_792_000_000  # 2024-07-01 00:00 UTC


def by_hand(trades: Trades, ready_ms: int, horizon_ms: int) -> tuple[Status, float]:
    """Status and move of one moment, by looking at every trade."""
    ids, times, price = (getattr(trades, n).tolist() for n in trades.__struct_fields__)
    entry = next((i for i, at in enumerate(times) if at >= ready_ms), None)
    if entry is None:
        return Status.PENDING, np.nan
    if entry == 0 or ids[entry] != ids[entry - 1] + 1:
        return Status.HOLE, np.nan
    if times[entry] - ready_ms > MOST_QUIET_MS:
        return Status.NO_PRICE, np.nan
    due_ms = times[entry] + horizon_ms
    after = next((i for i in range(entry, len(times)) if times[i] > due_ms), None)
    if after is None:
        return Status.PENDING, np.nan
    if any(ids[i] != ids[i - 1] + 1 for i in range(entry + 1, after + 1)):
        return Status.HOLE, np.nan
    left_ms = max(times[entry:after])
    if left_ms == times[entry] or due_ms - left_ms > MOST_QUIET_MS:
        return Status.NO_PRICE, np.nan
    return Status.SCORED, 1e4 * (price[after - 1] / price[entry] - 1.0)


@st.composite
def tapes(draw: st.DrawFn) -> Trades:
    """Trades with holes, quiet times, equal times, and times that run back."""
    steps = st.tuples(
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 50]),  # id
        st.sampled_from([0, 1, 400, 5_000, 20_000, 70_000, -3]),  # ms
        st.integers(90, 110),
    )
    rows = draw(st.lists(steps, min_size=1, max_size=60))
    ids, times, price = map(np.array, zip(*rows, strict=True))
    return Trades(np.cumsum(ids), np.cumsum(times), price.astype(np.float64))


moments = st.lists(
    st.tuples(st.integers(-2_000, 300_000), st.sampled_from([1_000, 5_000, 60_000, 200_000])),
    min_size=1,
    max_size=25,
).map(lambda found: tuple(np.array(column) for column in zip(*sorted(found), strict=True)))


def fed(trades: Trades, ready_ms: np.ndarray, horizon_ms: np.ndarray, cuts: list[int]) -> Moves:
    fills = Fills(ready_ms, horizon_ms)
    bounds = [0, *sorted(cut % (len(trades) + 1) for cut in cuts), len(trades)]
    for first, stop in itertools.pairwise(bounds):
        columns = (getattr(trades, name)[first:stop] for name in trades.__struct_fields__)
        fills.feed(Trades(*columns))
    return fills.moves


cuts = st.lists(st.integers(0, 60), max_size=5)


@given(tapes(), moments, cuts)
def test_fills_are_those_of_a_walk_over_the_trades_however_they_are_cut(
    trades: Trades, asked: tuple[np.ndarray, np.ndarray], where: list[int]
) -> None:
    moves = fed(trades, *asked, where)
    expected = [by_hand(trades, ready, horizon) for ready, horizon in zip(*asked, strict=True)]
    assert moves.status.tolist() == [status for status, _ in expected]
    np.testing.assert_allclose(moves.return_bps, [moved for _, moved in expected])


@given(tapes(), moments)
def test_neither_the_past_nor_the_future_changes_a_move(
    trades: Trades, asked: tuple[np.ndarray, np.ndarray]
) -> None:
    moves = fed(trades, *asked, [])
    for row in np.flatnonzero(moves.status == Status.SCORED).tolist():
        start_ms = moves.entry_ms[row]
        assert start_ms >= asked[0][row]
        time_ms = np.maximum.accumulate(trades.time_ms)
        outside = (time_ms < start_ms) | (time_ms > start_ms + asked[1][row])
        other = msgspec.structs.replace(trades, price=np.where(outside, 7.0, trades.price))
        assert fed(other, *asked, []).return_bps[row] == moves.return_bps[row]


files = st.lists(
    st.tuples(
        st.sets(st.integers(1, 40), min_size=1), st.sampled_from(["stream", "rest", "archive"])
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15)
@given(files, st.booleans(), st.sampled_from([1_000, 45_000]), moments)
def test_whatever_files_hold_the_trades_each_counts_once(
    tmp_path_factory, written, has_month: bool, every_ms: int, asked
) -> None:
    """Files that overlap in any way, over midnight and the month's end, beside the archive's month."""
    paths = LakePaths.of(tmp_path_factory.mktemp("lake"))
    start_ms = MONTH_MS - 20 * every_ms
    numbers = set().union(*(ids for ids, _ in written))
    for ids, source in written:
        store(paths, trade_rows(sorted(ids), start_ms=start_ms, every_ms=every_ms), source)
    if has_month:  # what of July these trades would be
        rows = trade_rows(range(22, 30), start_ms=start_ms, every_ms=every_ms)
        archive(paths, "aggTrades", trade_lines(rows))
        numbers |= set(range(22, 30))
    rows = trade_rows(sorted(numbers), start_ms=start_ms, every_ms=every_ms)
    tape = Trades(rows["agg_trade_id"], rows["transact_time_ms"], rows["price"] / 10)
    ready_ms = start_ms + asked[0][::-1]
    moves = TradePrices(paths).moves(SYMBOL, ready_ms, asked[1][::-1])
    assert moves is not None
    expected = [by_hand(tape, r, h) for r, h in zip(ready_ms, asked[1][::-1], strict=True)]
    # trades far from the moments are not read: why one is not scored may read otherwise
    scored = [status is Status.SCORED for status, _ in expected]
    assert (moves.status == Status.SCORED).tolist() == scored
    np.testing.assert_allclose(moves.return_bps, [moved for _, moved in expected])
