"""Blocks of synthetic trades: arrivals, sides, sizes and the 100 ms price path, vectorised.

Consumes seed, character and block number → produces ``Block``, a pure function of these. Arrivals
are clusters (a branching process with ratio 0.47), signs have long runs, sizes are log-normal per
sweep, and the price of each 100 ms step follows the flow in it; minutes end on the day's path.
"""

from __future__ import annotations

import msgspec
import numpy as np

from domain.market import TRADE_DTYPE
from simulator.frames import Tape
from simulator.synthetic_edge import following, planted_path
from simulator.synthetic_path import MINUTES, Character, generator, make_day

STEP_MS = 100
MINUTE_MS = 60_000
STEPS = MINUTE_MS // STEP_MS
FILLS_PER_TRADE = 16  # ids reserved per aggTrade; holes in f/l are legal on futures
_BRANCHING = 0.47
_OFFSPRING_DELAY_MS = 25.0
_SWEEP_JOIN = 0.22
_MEMORY = 0.03 * 0.93 ** np.arange(60)  # weight of past 100 ms steps in the expected flow
_LATENCY_NS = 6_000_000


class Block(msgspec.Struct, frozen=True):
    """Some whole minutes of one symbol.

    ``bid_ticks`` is int64[minutes·600 + 1]: the best bid at the start and after each 100 ms step.
    ``flow`` is float64[minutes·600]: signed, concave trade flow of each step, scale free.
    ``hidden`` is float64[minutes·600 + 1], the planted state; ``None`` in the usual market.
    """

    start_ms: int
    tape: Tape
    bid_ticks: np.ndarray
    flow: np.ndarray
    hidden: np.ndarray | None = None


class _Sweeps(msgspec.Struct, frozen=True):
    """Trades grouped into sweeps: same time, same side, one level each."""

    of_trade: np.ndarray  # int64[n]: index of the sweep
    place: np.ndarray  # int64[n]: level within the sweep
    size: np.ndarray  # int64[s]: levels
    time_ms: np.ndarray  # int64[s], from the block's start
    sign: np.ndarray  # int64[s], +1 buy
    notional: np.ndarray  # float64[s]


def first_id(seed: int, who: Character, minute: int) -> int:
    """Id of the first trade of a minute (minutes since the epoch), closed form per day."""
    day, inside = divmod(minute, MINUTES)
    return day * who.trades_per_day + int(make_day(seed, who, day).before[inside])


def minute_of_id(seed: int, who: Character, trade_id: int) -> int:
    """The minute whose trades include this id."""
    day, inside = divmod(trade_id, who.trades_per_day)
    before = make_day(seed, who, day).before
    return day * MINUTES + int(np.searchsorted(before, inside, side="right")) - 1


def make_block(seed: int, who: Character, start_minute: int, minutes: int) -> Block:
    """Trades and price path of ``minutes`` minutes that lie within one UTC day."""
    day, inside = divmod(start_minute, MINUTES)
    whole = make_day(seed, who, day)
    counts = whole.counts[inside : inside + minutes]
    source = generator(seed, "block", who.spec.symbol, start_minute, minutes)
    times = _arrivals(source, counts)
    sweeps = _sweeps(source, times, counts, who)
    tick = who.spec.tick_mantissa / 10**who.spec.price_decimals
    ends = np.rint(np.exp(whole.log_price[inside : inside + minutes + 1]) / tick)
    hidden = None
    if who.planted_edge is None:
        bid_ticks, flow = _path(source, sweeps, ends.astype(np.int64))
    else:
        planted = generator(seed, "planted", who.spec.symbol, start_minute)
        sigma = whole.sigma[inside : inside + minutes] * ends[:-1]
        bid_ticks, hidden = planted_path(
            planted, ends.astype(np.int64), sigma, STEPS, who.planted_edge
        )
        move = np.diff(bid_ticks)[sweeps.time_ms // STEP_MS]
        sweeps = msgspec.structs.replace(sweeps, sign=following(planted, sweeps.sign, move))
        flow = _flow(sweeps, minutes)
    price_ticks = _prices(sweeps, bid_ticks)
    id_start = first_id(seed, who, start_minute)
    rows = _rows(source, who, sweeps, price_ticks, id_start)
    start_ms = start_minute * MINUTE_MS
    rows["transact_time_ms"] += start_ms
    rows["event_time_ms"] = (rows["transact_time_ms"] // STEP_MS + 1) * STEP_MS
    due_ns = rows["event_time_ms"] * 1_000_000 + _LATENCY_NS
    return Block(start_ms, Tape(rows, due_ns), bid_ticks, flow, hidden)


def _arrivals(source: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Arrival times, ms from the block's start, ascending: immigrants and their offspring."""
    minute = np.repeat(np.arange(len(counts)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.arange(len(minute)) - start
    immigrants = np.maximum(1, np.rint(counts * (1 - _BRANCHING))).astype(np.int64)[minute]
    times = source.random(len(minute)) * MINUTE_MS
    delays = source.exponential(_OFFSPRING_DELAY_MS, len(minute))
    picks = source.random(len(minute))
    first = immigrants
    second = np.maximum(immigrants, np.rint(immigrants * (1 + _BRANCHING)).astype(np.int64))
    for low, high in ((first, second), (second, np.full_like(second, 2**40))):
        born = (place >= low) & (place < high)
        parents = start[born] + (picks[born] * low[born]).astype(np.int64)
        times[born] = (times[parents] + delays[born]) % MINUTE_MS
    absolute: np.ndarray = np.sort(minute * MINUTE_MS + times.astype(np.int64))
    return absolute


def _sweeps(
    source: np.random.Generator, times: np.ndarray, counts: np.ndarray, who: Character
) -> _Sweeps:
    joins = source.random(len(times)) < _SWEEP_JOIN
    first_of_minute = (np.cumsum(counts) - counts)[counts > 0]
    joins[first_of_minute] = False
    of_trade = np.cumsum(~joins) - 1
    leaders = np.flatnonzero(~joins)
    size = np.diff(leaders, append=len(times))
    place = np.arange(len(times)) - leaders[of_trade]
    runs = np.minimum(source.zipf(2.1, len(leaders)), 40)
    sides = source.integers(0, 2, len(leaders)) * 2 - 1
    sign = np.repeat(sides, runs)[: len(leaders)]
    notional = who.sweep_median_notional * np.exp(
        who.sweep_sigma * source.standard_normal(len(leaders))
    )
    notional = np.minimum(notional, who.sweep_median_notional * 3_000)
    return _Sweeps(of_trade, place, size, times[leaders], sign, notional)


def _path(
    source: np.random.Generator,
    sweeps: _Sweeps,
    ends: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Best bid in ticks at every step, moved by the flow and tied to the minute ends."""
    minutes = len(ends) - 1
    flow = _flow(sweeps, minutes)
    noise = source.standard_t(4, minutes * STEPS) * (source.random(minutes * STEPS) < 0.12)
    raw = (_surprise(flow) + 0.5 * noise).reshape(minutes, STEPS)
    spread = np.maximum(np.abs(np.diff(ends)), 1)[:, None]
    scale = 0.9 * np.sqrt(np.mean(spread.astype(np.float64) ** 2) / STEPS)
    moves = raw * max(float(scale), 0.05)
    active = np.abs(moves) + 1e-12
    missing = np.diff(ends)[:, None] - moves.sum(axis=1, keepdims=True)
    moves += missing * active / active.sum(axis=1, keepdims=True)
    inner = ends[:-1, None] + np.cumsum(moves, axis=1)
    path = np.concatenate((ends[:1], np.rint(inner).astype(np.int64).ravel()))
    return np.maximum(path, 1), flow


def _flow(sweeps: _Sweeps, minutes: int) -> np.ndarray:
    """Signed, concave trade flow of every step, scale free."""
    step = sweeps.time_ms // STEP_MS
    weight = sweeps.sign * np.power(sweeps.notional, 0.3)
    flow = np.bincount(step, weight, minutes * STEPS)
    flow /= max(float(np.sqrt(np.mean(flow**2))), 1e-9)
    return flow


def _surprise(flow: np.ndarray) -> np.ndarray:
    """Flow minus what the flow before it foretold: signs have memory, returns have none.

    Lillo and Farmer, "The long memory of the efficient market", 2004.
    """
    expected = np.convolve(flow, _MEMORY)[: len(flow)]
    surprise = flow - np.concatenate(([0.0], expected[:-1]))
    unexpected: np.ndarray = np.where(flow != 0, surprise, 0.0)
    return unexpected


def _prices(sweeps: _Sweeps, bid_ticks: np.ndarray) -> np.ndarray:
    """Tick price per trade: at the touch, or walking through the levels the book gave way."""
    step = sweeps.time_ms // STEP_MS
    move = np.diff(bid_ticks)[step]
    count = len(step)
    pushes = np.flatnonzero((np.sign(move) == sweeps.sign) & (move != 0))
    mover = np.full(len(bid_ticks) - 1, count, np.int64)
    pushed, index = np.unique(step[pushes], return_index=True)
    mover[pushed] = pushes[index]
    number = np.arange(count)
    moved = number > mover[step]
    base = np.where(moved, bid_ticks[step + 1], bid_ticks[step])
    depth = np.where(number == mover[step], np.abs(move), 0)
    of, place = sweeps.of_trade, sweeps.place
    through = (place + 1) * depth[of] // sweeps.size[of] - 1
    offset = np.maximum(place, through)
    sign = sweeps.sign[of]
    price: np.ndarray = base[of] + (sign > 0) + sign * offset
    np.maximum(price, 1, out=price)
    return price


def _rows(
    source: np.random.Generator,
    who: Character,
    sweeps: _Sweeps,
    price_ticks: np.ndarray,
    id_start: int,
) -> np.ndarray:
    spec = who.spec
    count = len(price_ticks)
    share = source.exponential(1.0, count)
    total = np.bincount(sweeps.of_trade, share, len(sweeps.size))
    notional = sweeps.notional[sweeps.of_trade] * share / total[sweeps.of_trade]
    rows = np.zeros(count, TRADE_DTYPE)
    rows["price"] = price_ticks * spec.tick_mantissa
    value = rows["price"] / 10.0**spec.price_decimals
    steps = np.rint(notional / value * 10.0**spec.quantity_decimals / spec.step_mantissa)
    rows["quantity"] = np.maximum(steps, 1).astype(np.int64) * spec.step_mantissa
    rows["price_decimals"], rows["quantity_decimals"] = spec.price_decimals, spec.quantity_decimals
    rows["agg_trade_id"] = id_start + np.arange(count)
    rows["is_buyer_maker"] = sweeps.sign[sweeps.of_trade] < 0
    rows["transact_time_ms"] = sweeps.time_ms[sweeps.of_trade]
    fills = 1 + source.poisson(np.minimum(np.sqrt(notional / 1_500.0), 14.0))
    fills = np.minimum(fills, FILLS_PER_TRADE)
    last = id_start * FILLS_PER_TRADE + np.cumsum(fills)
    rows["first_trade_id"], rows["last_trade_id"] = last - fills, last - 1
    rows["quantity_ex_rpi"] = rows["quantity"]
    rows["receive_time_ns"] = -1
    return rows
