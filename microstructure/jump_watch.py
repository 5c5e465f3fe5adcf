"""Price jumps that the market has not confirmed yet, kept across batches until it did or did not.

Flagged jumps → ids of those that turned out to be real moves: a fresh best quote has the price, or
enough of the next prints stay near it. Bounded: a symbol keeps its newest few. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

_MOST_PER_SYMBOL = 16


class PriceJump(msgspec.Struct):
    """One flagged trade; ``followed`` counts the later prints nearer to it than to the one before."""

    trade_id: int
    time_ms: int
    before: float
    price: float
    followed: int = 0


class JumpWatch:
    """Waits for what confirms or refutes flagged jumps."""

    def __init__(self, confirming_prints: int) -> None:
        """``confirming_prints``: later prints that make a jump a real move; 0: none do."""
        self._needed = confirming_prints
        self._waiting: dict[int, list[PriceJump]] = {}

    def judge(self, jump: PriceJump, later: np.ndarray) -> bool | None:
        """Whether the prints after a jump follow it; None while too few of them came.

        Args:
            jump: Whose count of followers goes on.
            later: Prices of the next prints, in id order.
        """
        if not self._needed:
            return False
        later = later[: self._needed - jump.followed]
        if not (np.abs(later - jump.price) < np.abs(later - jump.before)).all():
            return False
        jump.followed += len(later)
        return True if jump.followed >= self._needed else None

    def wait(self, symbol_index: int, jump: PriceJump) -> None:
        """Keep a jump that neither prints nor quotes have settled."""
        jumps = self._waiting.setdefault(symbol_index, [])
        jumps.append(jump)
        del jumps[:-_MOST_PER_SYMBOL]

    def settle(
        self,
        groups: Sequence[tuple[int, int, int]],
        ids: np.ndarray,
        price: np.ndarray,
        is_quoted: Callable[[int, float, int], bool],
    ) -> list[tuple[int, int]]:
        """Compare waiting jumps with the prints of a batch and the quotes known by now.

        Args:
            groups: (symbol_index, start, stop) of each symbol's rows.
            ids: int64[n], trade ids of the rows.
            price: float64[n].
            is_quoted: Whether a quote fresh at a time has a symbol's price.

        Returns:
            (symbol_index, trade id) of the jumps that are real moves; they are forgotten, as are
            those that prints have refuted.
        """
        if not self._waiting:
            return []
        rows_of = {index: slice(start, stop) for index, start, stop in groups}
        confirmed: list[tuple[int, int]] = []
        for index, jumps in list(self._waiting.items()):
            rows = rows_of.get(index, slice(0, 0))
            left = []
            for jump in jumps:
                later = price[rows][ids[rows] > jump.trade_id]
                verdict = self.judge(jump, later)
                if verdict or is_quoted(index, jump.price, jump.time_ms):
                    confirmed.append((index, jump.trade_id))
                elif verdict is None:
                    left.append(jump)
            if left:
                self._waiting[index] = left
            else:
                del self._waiting[index]
        return confirmed
