"""Depth frames as received → level columns of Parquet, thousands at a time. Pure; for a worker thread.

Consumes payloads whose heads were checked when they arrived, produces flat prices and quantities, and
tells the frames of which a further level is malformed, unsorted or not positive. The interpreter lock
is offered between slices and not held while numbers are read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from binance_api.depth_texts import level_texts
from domain.market import Market
from lake.columns import parse_floats
from lake.stream_files import LevelColumn

SLICE_FRAMES: Final = 125
"""Frames between two offers of the interpreter lock: about 1 ms."""

_JSON_SYNTAX: Final = b'[]" \t\n\r'


class DepthLevels(msgspec.Struct, frozen=True):
    """Levels of the sound frames, in order, and which ones are sound (bool[n])."""

    bids: LevelColumn
    asks: LevelColumn
    is_sound: np.ndarray


def read_levels(payloads: Sequence[bytes], market: Market) -> DepthLevels:
    """Read all levels of frames that ``decode_depth`` accepted."""
    parts = []
    for start in range(0, len(payloads), SLICE_FRAMES):
        texts = level_texts(payloads[start : start + SLICE_FRAMES], market)
        bids, asks = _side(texts[0], falls=True), _side(texts[1], falls=False)
        is_sound = bids.is_sound & asks.is_sound
        parts.append((_only(bids, is_sound), _only(asks, is_sound), is_sound))
        time.sleep(0)
    return DepthLevels(
        _joined([bids for bids, _, _ in parts]),
        _joined([asks for _, asks, _ in parts]),
        np.concatenate([sound for _, _, sound in parts]) if parts else np.empty(0, np.bool_),
    )


class _Side(msgspec.Struct, frozen=True):
    counts: np.ndarray  # int32[n]
    levels: np.ndarray  # float64[2 * sum(counts)]
    is_sound: np.ndarray  # bool[n]


def _side(texts: Sequence[bytes], *, falls: bool) -> _Side:
    """One side of some books; prices fall (bids) or rise (asks)."""
    # "[]" has no comma, n levels have 2n - 1
    counts = np.array([(text.count(b",") + 1) // 2 for text in texts], np.int32)
    total = int(counts.sum())
    joined = b",".join([text for text, n in zip(texts, counts.tolist(), strict=True) if n])
    levels = parse_floats(joined.translate(None, _JSON_SYNTAX))
    is_plain = joined.count(b"[") == total + np.count_nonzero(counts)
    if levels is None or len(levels) != 2 * total or not is_plain:
        return _one_by_one(texts, falls=falls)
    return _Side(counts, levels, _are_sorted(counts, levels, falls=falls))


def _one_by_one(texts: Sequence[bytes], *, falls: bool) -> _Side:
    """The same where one of them is malformed: it gets no levels."""
    sides = []
    for text in texts:
        count = text.count(b"[") - 1
        numbers = parse_floats(text.translate(None, _JSON_SYNTAX))
        if numbers is None or len(numbers) != 2 * count:
            sides.append(_Side(np.zeros(1, np.int32), np.empty(0), np.zeros(1, np.bool_)))
        else:
            counts = np.array([count], np.int32)
            sides.append(_Side(counts, numbers, _are_sorted(counts, numbers, falls=falls)))
    return _Side(
        np.concatenate([side.counts for side in sides]),
        np.concatenate([side.levels for side in sides]),
        np.concatenate([side.is_sound for side in sides]),
    )


def _are_sorted(counts: np.ndarray, levels: np.ndarray, *, falls: bool) -> np.ndarray:
    """bool[n]: all of a book's prices and sizes finite and positive, prices in order."""
    owner = np.repeat(np.arange(len(counts)), counts)
    prices, sizes = levels[0::2], levels[1::2]
    is_faulty = ~((prices > 0) & (sizes > 0) & np.isfinite(prices) & np.isfinite(sizes))
    steps = prices[1:] - prices[:-1]
    is_faulty[1:] |= (owner[1:] == owner[:-1]) & ((steps > 0) if falls else (steps < 0))
    is_sound = np.ones(len(counts), np.bool_)
    is_sound[owner[is_faulty]] = False
    return is_sound


def _only(side: _Side, wanted: np.ndarray) -> LevelColumn:
    if wanted.all():
        return LevelColumn(side.counts, side.levels)
    return LevelColumn(side.counts[wanted], side.levels[np.repeat(wanted, 2 * side.counts)])


def _joined(columns: Sequence[LevelColumn]) -> LevelColumn:
    return LevelColumn(
        np.concatenate([c.counts for c in columns]) if columns else np.empty(0, np.int32),
        np.concatenate([c.levels for c in columns]) if columns else np.empty(0),
    )
