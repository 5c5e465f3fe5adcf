"""The synthetic order book: the top 20 levels every 100 ms of one minute.

Consumes a block's price path and flow → produces level arrays, a pure function of seed and minute.
Sizes belong to a price level and live for seconds; the best sizes lean with the flow, so that order
flow imbalance explains part of each move.
"""

from __future__ import annotations

import zlib

import msgspec
import numpy as np

from simulator.frames import decimal_text
from simulator.synthetic_edge import leaning
from simulator.synthetic_path import Character, generator
from simulator.synthetic_trades import MINUTE_MS, STEPS, Block

LEVELS = 20
_CANDIDATES = 56
_SLOT_STEPS = 40  # a resting size is replaced about every four seconds
_WIDE_SHARE = 0.002
_UPDATES_PER_STEP = 10


class BookMinute(msgspec.Struct, frozen=True):
    """600 snapshots: ticks and quantity steps, int64[600, 20] each, best level first."""

    bid_ticks: np.ndarray
    bid_steps: np.ndarray
    ask_ticks: np.ndarray
    ask_steps: np.ndarray


def _mix(values: np.ndarray) -> np.ndarray:
    """A 64-bit integer hash (splitmix64's finaliser)."""
    mixed = values.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _lean(source: np.random.Generator, flow: np.ndarray) -> np.ndarray:
    """Log ratio of the best sizes, bid over ask: persistent, pushed by the flow."""
    noise = source.standard_normal(len(flow))
    lean = np.empty(len(flow))
    state = 0.0
    for index, (push, shock) in enumerate(zip(flow.tolist(), noise.tolist(), strict=True)):
        state = 0.88 * state + 0.8 * push + 0.75 * shock
        lean[index] = state
    return np.clip(lean, -5.0, 5.0)


def make_book(seed: int, who: Character, block: Block, minute: int) -> BookMinute:
    """The book of one minute of a block."""
    offset = (minute - block.start_ms // MINUTE_MS) * STEPS
    best_bid = block.bid_ticks[offset + 1 : offset + STEPS + 1]
    flow = block.flow[offset : offset + STEPS]
    source = generator(seed, "book", who.spec.symbol, minute)
    wide = (source.random(STEPS) < _WIDE_SHARE) * source.integers(1, 4, STEPS)
    lean = _lean(source, flow)
    salt = (seed * 1_000_003 + zlib.crc32(who.spec.symbol.encode())) % 2**31
    bid_ticks, bid_steps = _side(who, best_bid, -1, minute, salt)
    ask_ticks, ask_steps = _side(who, best_bid + 1 + wide, 1, minute, salt)
    unit = who.best_size_notional / who.price * 10.0**who.spec.quantity_decimals
    level = unit * np.exp(0.6 * source.standard_normal((STEPS, 2)))
    bid_steps[:, 0] = np.maximum(1, np.rint(level[:, 0] * np.exp(lean / 2)))
    ask_steps[:, 0] = np.maximum(1, np.rint(level[:, 1] * np.exp(-lean / 2)))
    if block.hidden is not None:
        state = block.hidden[offset + 1 : offset + STEPS + 1]
        bid_steps, ask_steps = leaning(bid_steps, state, 1), leaning(ask_steps, state, -1)
    return BookMinute(np.maximum(bid_ticks, 1), bid_steps, ask_ticks, ask_steps)


def _side(
    who: Character, best: np.ndarray, direction: int, minute: int, salt: int
) -> tuple[np.ndarray, np.ndarray]:
    """20 occupied levels per snapshot, chosen and sized by a hash of price and time slot."""
    ticks = best[:, None] + direction * np.arange(_CANDIDATES)[None, :]
    slot = (minute * STEPS + np.arange(STEPS)) // _SLOT_STEPS
    mixed = _mix(ticks * 2_654_435_761 + slot[:, None] * 97 + salt * direction)
    occupied = (mixed & np.uint64(7)) < 5
    occupied[:, 0] = True
    order = np.argsort(~occupied, axis=1, kind="stable")[:, :LEVELS]
    order.sort(axis=1)
    ticks = np.take_along_axis(ticks, order, axis=1)
    chosen = np.take_along_axis(mixed, order, axis=1)
    uniform = ((chosen >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    # a log-logistic size: heavy tailed, so that walls exist
    size = who.best_size_notional * 0.04 * np.power(uniform / (1 - uniform), 0.75)
    steps = np.rint(size / who.price * 10.0**who.spec.quantity_decimals)
    return ticks, np.maximum(steps, 1).astype(np.int64)


def update_ids(step: int) -> tuple[int, int, int]:
    """``U``, ``u`` and ``pu`` of the snapshot after the n-th 100 ms step since the epoch."""

    def last(number: int) -> int:
        return number * _UPDATES_PER_STEP + (number * 2_654_435_761) % 7

    previous, final = last(step - 1), last(step)
    return previous + 2, final, previous


def levels_json(who: Character, ticks: np.ndarray, steps: np.ndarray) -> str:
    """One side of one snapshot as a JSON array of string pairs."""
    spec = who.spec
    pairs = zip(
        (ticks * spec.tick_mantissa).tolist(), (steps * spec.step_mantissa).tolist(), strict=True
    )
    text = ",".join(
        f'["{decimal_text(price, spec.price_decimals)}",'
        f'"{decimal_text(size, spec.quantity_decimals)}"]'
        for price, size in pairs
    )
    return f"[{text}]"
