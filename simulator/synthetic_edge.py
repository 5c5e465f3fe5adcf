"""A market whose only pattern is one planted on purpose, for models to find.

Consumes seed, symbol and minute ends → produces a price path that is a random walk but for a hidden
state per 100 ms step: it pushes the price of its step, and the book before that step leans with it. Who
reads the book knows a part of what comes; at edge 0 nobody knows anything. Trades follow the price here:
were it the other way round, they would give away how far the rest of their minute must still go.
"""

from __future__ import annotations

import numpy as np

from simulator.synthetic_path import autoregressive

MEMORY_STEPS = 100
"""About ten seconds: after these the state's correlation with itself is 1/e."""
LEVELS_LEANING = 10
_PUSH = 0.1  # of a step's usual move, at edge 1 and a state of 1
_LEAN = 0.8  # log ratio of a level's size, at a state of 1
_FOLLOWING = 0.6  # share of trades that go the way the price goes in their step


def planted_path(
    source: np.random.Generator, ends: np.ndarray, sigma: np.ndarray, steps: int, edge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Best bid at every step and the state that pushed it: a walk between the minute ends.

    What is missing to a minute's end is spread evenly over its steps: a bridge as wide as the walk
    that its ends are of, so that no move tells of the next one.

    Args:
        source: Random numbers of the block's own.
        ends: int64[minutes + 1], ticks.
        sigma: float64[minutes], the walk's standard deviation over each minute, ticks.
        steps: Of a minute.
        edge: 0 to 1.

    Returns:
        int64[minutes·steps + 1], ticks; float64[minutes·steps + 1] of unit variance, the state of
        every step and of the one after the last.
    """
    shape = len(sigma), steps
    state = autoregressive(
        source.standard_normal(shape[0] * steps + 1), float(np.exp(-1 / MEMORY_STEPS))
    )
    usual = (sigma / np.sqrt(steps))[:, None]
    moves = usual * (source.standard_normal(shape) + edge * _PUSH * state[:-1].reshape(shape))
    moves += (np.diff(ends)[:, None] - moves.sum(axis=1, keepdims=True)) / steps
    inner = ends[:-1, None] + np.cumsum(moves, axis=1)
    path = np.concatenate((ends[:1], np.rint(inner).astype(np.int64).ravel()))
    return np.maximum(path, 1), state


def following(source: np.random.Generator, sign: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Signs of trades, int64[n], most of them those of their step's move instead of their own."""
    follows = (source.random(len(sign)) < _FOLLOWING) & (move != 0)
    return np.where(follows, np.sign(move), sign)


def leaning(steps: np.ndarray, state: np.ndarray, direction: int) -> np.ndarray:
    """Sizes of one side, int64[n, levels], its first levels leaning with the coming step's state.

    Args:
        steps: Sizes as they would be, best level first.
        state: float64[n], of the step after each snapshot.
        direction: 1 for bids, which grow before a rise, -1 for asks.
    """
    leant = steps.copy()
    factor = np.exp(direction * _LEAN * state)[:, None]
    leant[:, :LEVELS_LEANING] = np.maximum(1, np.rint(steps[:, :LEVELS_LEANING] * factor))
    return leant
