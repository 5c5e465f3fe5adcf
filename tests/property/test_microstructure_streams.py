"""Measures of streams: event by event equals the whole sequence at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microstructure import hawkes
from microstructure.book_tape import BookTape
from microstructure.hawkes import HawkesIntensity, HawkesParameters
from microstructure.measures import day_bins, features_of, window_bins
from microstructure.ofi import level_events, ofi_event
from microstructure.resilience import Resilience, ResilienceSettings, recoveries
from microstructure.spoof_indicator import SpoofIndicator, SpoofSettings, spoof_like
from microstructure.vpin import Vpin, volume_buckets, vpin
from tests.book_tapes import trades_of

QUARTERS = st.integers(1, 40).map(lambda n: n / 4)
FILLS = st.lists(st.tuples(st.integers(0, 12_000), st.integers(96, 104), st.booleans()))
TRADES = st.lists(st.tuples(QUARTERS, st.booleans()), max_size=40)
SNAPSHOTS = st.lists(
    st.tuples(
        st.sampled_from([1, 40, 50, 100, 150]),
        st.sampled_from([float("nan"), *map(float, range(11))]),
        st.sampled_from([False] * 9 + [True]),
    ),
    max_size=60,
)


@given(TRADES, QUARTERS, st.integers(1, 5))
def test_volume_buckets(trades: list[tuple[float, bool]], volume: float, count: int) -> None:
    stream = Vpin(volume, count)
    filled = [bucket for quantity, buys in trades for bucket in stream.push(quantity, is_buy=buys)]
    quantities = np.array([quantity for quantity, _ in trades], dtype=np.float64)
    is_buy = np.array([buys for _, buys in trades], dtype=np.bool_)
    buckets, _ = volume_buckets(quantities, is_buy, volume)
    np.testing.assert_allclose(buckets, np.array(filled).reshape(-1, 2), atol=1e-9)
    whole = vpin(buckets, count)
    assert stream.value == (pytest.approx(whole[-1], abs=1e-9) if len(whole) else None)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.floats(0.01, 200.0))
def test_hawkes_intensities(waits_ms: list[int], beta: float) -> None:
    parameters = HawkesParameters(0.5, 0.6 * beta, beta)
    times = np.cumsum(waits_ms) / 1000.0
    stream = HawkesIntensity(parameters)
    one_by_one = [stream.push(time_s) for time_s in times.tolist()]
    assert hawkes.intensities(times, parameters).tolist() == pytest.approx(one_by_one, rel=1e-9)


@given(SNAPSHOTS, st.integers(0, 2000))
def test_recoveries(snapshots: list[tuple[int, float, bool]], cap_ms: int) -> None:
    settings = ResilienceSettings(cap_ms=cap_ms)
    times = np.cumsum([wait for wait, _, _ in snapshots], dtype=np.int64)
    depth = np.array([value for _, value, _ in snapshots], dtype=np.float64)
    is_break = np.array([broken for _, _, broken in snapshots], dtype=np.bool_)
    stream = Resilience(settings)
    found = [
        stream.push(int(at), float(value), is_break=bool(broken))
        for at, value, broken in zip(times, depth, is_break, strict=True)
    ]
    expected = recoveries(times, depth, is_break, settings)
    assert [recovery for recovery in found if recovery] == expected


@st.composite
def tapes(draw: st.DrawFn) -> BookTape:
    """Small books whose touch moves, with absent levels and breaks."""
    count, levels = draw(st.integers(1, 12)), 4
    sizes = st.sampled_from([0.25, 1.0, 5.0, 8.0, 20.0])
    prices = np.full((2, count, levels), np.nan)
    amounts = np.full((2, count, levels), np.nan)
    for row in range(count):
        best = draw(st.integers(98, 101))
        for side, sign in ((0, -1), (1, 1)):
            missing = draw(st.sampled_from([0, 0, 0, 1, 4]))
            ticks = np.arange(levels - missing)
            prices[side, row, : len(ticks)] = (best + (sign > 0) + sign * ticks) * 0.5
            amounts[side, row, : len(ticks)] = draw(
                st.lists(sizes, min_size=len(ticks), max_size=len(ticks))
            )
    waits = draw(st.lists(st.integers(1, 3000), min_size=count, max_size=count))
    breaks = draw(st.lists(st.sampled_from([False] * 7 + [True]), min_size=count, max_size=count))
    return BookTape.of_arrays(
        np.cumsum(waits), prices[0], amounts[0], prices[1], amounts[1], breaks
    )


@given(tapes())
def test_order_flow_of_levels(tape: BookTape) -> None:
    columns = (tape.bid_price, tape.bid_size, tape.ask_price, tape.ask_size)
    events = level_events(tape, 4)
    for level in range(4):
        quotes = np.stack([column[:, level] for column in columns], axis=1)
        for place, (before, now) in enumerate(pairwise(quotes.tolist()), start=1):
            is_known = not (tape.is_break[place] or np.isnan(before + now).any())
            expected = ofi_event(tuple(before), tuple(now)) if is_known else np.nan
            np.testing.assert_equal(events[place, level], expected)


def trades_at(fills: list[tuple[int, int, bool]]) -> np.ndarray:
    """Rows of one unit each at prices in half units."""
    rows = trades_of(1, len(fills), 1)
    rows["price_decimals"], rows["quantity_decimals"], rows["quantity"] = 1, 0, 1
    for row, (at_ms, ticks, sells) in zip(rows, sorted(fills), strict=True):
        row["transact_time_ms"], row["price"], row["is_buyer_maker"] = at_ms, 5 * ticks, sells
    return rows


@given(tapes(), FILLS, st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True))
def test_window_bins(tape: BookTape, fills: list[tuple[int, int, bool]], places: list[int]) -> None:
    trades, starts = trades_at(fills), 1000 * np.sort(places)
    day = day_bins(trades, tape, starts, 1000)
    for row, start_ms in zip(day, starts.tolist(), strict=True):
        of_window = trades["transact_time_ms"] // 1000 == start_ms // 1000
        own = tape.between(start_ms, start_ms + 1000)
        assert window_bins(trades[of_window], own, start_ms, 1000).tobytes() == row.tobytes()
    features = features_of(day, 1000)
    for stop in range(1, len(day) + 1):
        assert features_of(day[:stop], 1000)[-1].tobytes() == features[stop - 1].tobytes()


@given(tapes(), FILLS)
def test_spoof_like_events(tape: BookTape, fills: list[tuple[int, int, bool]]) -> None:
    settings = SpoofSettings(tick=0.5, wall_size=3.0, opposing_volume=0.5)
    trades = trades_at(fills)
    stream = SpoofIndicator(settings)
    found, done = [], 0
    for row, at_ms in enumerate(tape.time_ms.tolist()):
        while done < len(trades) and trades["transact_time_ms"][done] <= at_ms:
            trade = trades[done]
            stream.push_trade(int(trade["price"]) / 10, 1.0, is_sell=bool(trade["is_buyer_maker"]))
            done += 1
        sides = [
            {
                round(price / 0.5): size
                for price, size in zip(prices[row].tolist(), sizes[row].tolist(), strict=True)
                if price == price
            }
            for prices, sizes in (
                (tape.bid_price, tape.bid_size),
                (tape.ask_price, tape.ask_size),
            )
        ]
        found += stream.push_book(at_ms, *sides, is_break=bool(tape.is_break[row]))
    found.sort(key=lambda event: (event.removed_ms, event.posted_ms, event.price_ticks))
    assert found == spoof_like(tape, trades, settings)
