"""When and at what price moments would have been entered and left, out of trades that pass by. Pure.

Consumes one symbol's trades in order of id, a stretch at a time, produces a move per moment: in at the
first trade at or after it, out at the last trade at or before one horizon later. Nothing is filled
across a hole: ids must follow one another from the trade before the entry to the one after the exit.
That trade proves that the horizon is over and no trade is missing, whatever the gap ledger says and
whichever source filled it; so memory holds one stretch, however long the horizons are.
"""

from __future__ import annotations

from typing import Final, Self

import msgspec
import numpy as np

from evaluation.forward_returns import Status

MOST_QUIET_MS: Final = 60_000
"""A first trade that comes later, or a last one that is older at the exit, is no price."""


class Trades(msgspec.Struct, frozen=True, eq=False):
    """Consecutive trades of one symbol: int64[n] ids and times, float64[n] prices."""

    ids: np.ndarray
    time_ms: np.ndarray
    price: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, last: Self | None) -> Self:
        """These with the trade before them in front."""
        if last is None:
            return self
        names = self.__struct_fields__
        parts = {n: np.concatenate([getattr(last, n), getattr(self, n)]) for n in names}
        return type(self)(**parts)


class Moves(msgspec.Struct, frozen=True, eq=False):
    """What became of each moment: int8[n], int64[n] (0 while unknown) and float64[n] (NaN)."""

    status: np.ndarray
    entry_ms: np.ndarray
    return_bps: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Self:
        """Some of them, by index or range."""
        return type(self)(self.status[rows], self.entry_ms[rows], self.return_bps[rows])


class Fills:
    """Gathers entries and exits while trades pass by.

    Args:
        ready_ms: int64[n], before which nothing may be entered; ascending.
        horizon_ms: int64[n], from an entry to its exit.
    """

    def __init__(self, ready_ms: np.ndarray, horizon_ms: np.ndarray) -> None:
        count = len(ready_ms)
        self._ready_ms, self._horizon_ms = ready_ms, horizon_ms
        self._status = np.full(count, Status.PENDING, dtype=np.int8)
        self._entry_ms = np.zeros(count, dtype=np.int64)
        self._entry_price = np.full(count, np.nan)
        self._breaks_before = np.zeros(count, dtype=np.int64)
        self._return_bps = np.full(count, np.nan)
        self._next = 0  # the first moment that waits for its entry
        self._held = np.empty(0, dtype=np.int64)  # moments entered and not left
        self._last: Trades | None = None
        self._breaks = 0  # holes so far

    @property
    def moves(self) -> Moves:
        """What is known by now; a moment whose exit is not proven is pending."""
        return Moves(self._status, self._entry_ms, self._return_bps)

    @property
    def has_seen_trades(self) -> bool:
        """Whether any trade passed by."""
        return self._last is not None

    def feed(self, trades: Trades) -> None:
        """The next trades; ids that go back count as a hole."""
        if not len(trades):
            return
        trades = trades.after(self._last)
        is_break = np.diff(trades.ids, prepend=trades.ids[:1] - (self._last is not None)) != 1
        breaks = self._breaks + np.cumsum(is_break)
        # exchange times may run back by a moment: what came later by id is not known earlier
        time_ms = np.maximum.accumulate(trades.time_ms)
        self._enter(time_ms, trades.price, is_break, breaks)
        self._leave(time_ms, trades.price, breaks)
        self._last = Trades(trades.ids[-1:], time_ms[-1:], trades.price[-1:])
        self._breaks = int(breaks[-1])

    def _enter(
        self, time_ms: np.ndarray, price: np.ndarray, is_break: np.ndarray, breaks: np.ndarray
    ) -> None:
        until = int(np.searchsorted(self._ready_ms, time_ms[-1], side="right"))
        new = np.arange(self._next, until)
        self._next = until
        place = np.searchsorted(time_ms, self._ready_ms[new], side="left")
        is_late = time_ms[place] - self._ready_ms[new] > MOST_QUIET_MS
        status = np.select([is_break[place], is_late], [Status.HOLE, Status.NO_PRICE], -1)
        is_filled = status < 0
        self._status[new[~is_filled]] = status[~is_filled]
        new, place = new[is_filled], place[is_filled]
        self._entry_ms[new], self._entry_price[new] = time_ms[place], price[place]
        self._breaks_before[new] = breaks[place]
        self._held = np.concatenate([self._held, new])

    def _leave(self, time_ms: np.ndarray, price: np.ndarray, breaks: np.ndarray) -> None:
        due_ms = self._entry_ms[self._held] + self._horizon_ms[self._held]
        after = np.searchsorted(time_ms, due_ms, side="right")
        is_over = after < len(time_ms)
        done, after = self._held[is_over], after[is_over]
        exit_ms = time_ms[after - 1]
        is_quiet = (due_ms[is_over] - exit_ms > MOST_QUIET_MS) | (exit_ms <= self._entry_ms[done])
        has_hole = breaks[after] > self._breaks_before[done]
        status = np.select([has_hole, is_quiet], [Status.HOLE, Status.NO_PRICE], Status.SCORED)
        moved = 1e4 * (price[after - 1] / self._entry_price[done] - 1.0)
        self._status[done] = status
        self._return_bps[done] = np.where(status == Status.SCORED, moved, np.nan)
        self._held = self._held[~is_over]
