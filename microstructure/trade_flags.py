"""Statistical doubts about trades: flags, never removals. One batch of many symbols at a time.

Consumes ``TRADE_DTYPE`` rows grouped by symbol, in id order but for late ones; fills their
``suspect`` column and keeps the short history the tests need. Rules: docs/reference.md, "Validation".
"""

from __future__ import annotations

import enum
import statistics as stats
from collections.abc import Sequence

import msgspec
import numpy as np

from microstructure.jump_watch import JumpWatch, PriceJump

_PRICES = 128  # remembered prices per symbol for the jump test
_ENOUGH_PRICES = 50
_SIZE_BINS = 64  # by powers of two of the quantity
_ENOUGH_SIZES = 10_000
_BOUND_EVERY = 1_000  # trades of a symbol between two looks at its usual sizes
_POWERS = 10.0 ** np.arange(20)
_MAD_TO_SIGMA = 0.6745  # Iglewicz & Hoaglin 1993: modified z-score


class Suspect(enum.IntFlag):
    """Why a kept trade is doubtful."""

    OFF_GRID = 1  # price not on the tick grid, or quantity not on the lot grid
    TIME_BACKWARDS = 2  # transaction time runs back beyond the tolerance
    PRICE_JUMP = 4  # robust outlier against the last trades (may be a real crash)
    ODD_SIZE = 8  # far beyond the largest usual sizes
    CLOCK = 16  # stamped in the future, the learned clock offset considered
    OUTSIDE_BOOK = 32  # aggressor far on the wrong side of a fresh best quote
    LATE = 64  # came long after trades with higher ids


class ValidatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds; every one only flags.

    Attributes:
        time_backwards_ms: tolerated step back of the transaction time.
        jump_bps: a price closer than this to the last one is never a jump.
        jump_z: modified z-score beyond which it is one.
        jump_confirming_prints: later prints on the jump's side that make it a real move; 0: none do.
        late_ms: how far behind the newest trade an id that comes late may lie.
        odd_size_factor: times the 99.99 % quantile of sizes.
        clock_tolerance_ms: how far an event may lie ahead of the learned clock.
        outside_book_bps: how far beyond the opposite best quote an aggressor may trade.
        book_fresh_ms: age up to which the last quote is used for that.
        clock_warning_ms: size of the learned clock offset beyond which it is warned of, once.
        clock_window_s: how far back the clock offset's median looks, s.
    """

    time_backwards_ms: int = 1_000
    jump_bps: float = 50.0
    jump_z: float = 10.0
    jump_confirming_prints: int = 3
    late_ms: int = 2_000
    odd_size_factor: float = 20.0
    clock_tolerance_ms: float = 1_000.0
    outside_book_bps: float = 20.0
    book_fresh_ms: int = 1_000
    clock_warning_ms: float = 250.0
    clock_window_s: float = 60.0


class TradeFlags:
    """The tests and their history for ``count`` symbols (arrays of that length)."""

    def __init__(self, count: int, settings: ValidatorSettings) -> None:
        self._settings = settings
        self._last_price = np.full(count, np.nan)
        self._prices = np.full((count, _PRICES), np.nan)  # ring per symbol
        self._price_count = np.zeros(count, dtype=np.int64)
        self._sizes = np.zeros((count, _SIZE_BINS), dtype=np.int64)
        self._size_bound = np.full(count, np.inf)
        self._bound_due = np.full(count, _ENOUGH_SIZES, dtype=np.int64)
        self._tick = np.full(count, np.nan)
        self._step = np.full(count, np.nan)
        self._bid = np.full(count, np.nan)
        self._ask = np.full(count, np.nan)
        self._quote_ms = np.zeros(count, dtype=np.int64)
        self._counts = dict.fromkeys(Suspect, 0)
        self._steps_back = 0
        self._jumps = JumpWatch(settings.jump_confirming_prints)
        self._confirmed: list[tuple[int, int]] = []
        self._confirmed_count = 0

    def set_grid(self, symbol_index: int, tick_size: float, step_size: float) -> None:
        """The tick and lot grid of a symbol."""
        self._tick[symbol_index], self._step[symbol_index] = tick_size, step_size

    def quote(self, symbol_index: int, bid: float, ask: float, time_ms: int) -> None:
        """The best quote of a symbol."""
        self._bid[symbol_index], self._ask[symbol_index] = bid, ask
        self._quote_ms[symbol_index] = time_ms

    def statistics(self) -> dict[str, int]:
        """Trades flagged, by flag, and steps back of the transaction time within the tolerance too."""
        counts = {f"suspect_{flag.name}".lower(): count for flag, count in self._counts.items()}
        return {
            **counts,
            "confirmed_jumps": self._confirmed_count,
            "time_steps_back": self._steps_back,
        }

    def take_confirmed(self) -> list[tuple[int, int]]:
        """(symbol_index, trade id) of earlier jumps that the last batch confirmed as real moves."""
        taken, self._confirmed = self._confirmed, []
        self._confirmed_count += len(taken)
        return taken

    def flag(
        self,
        rows: np.ndarray,
        groups: Sequence[tuple[int, int, int]],
        last_ms: Sequence[int],
        *,
        live: bool,
        clock_offset_ms: float | None,
        is_late: np.ndarray | None = None,
    ) -> int:
        """Fill ``suspect`` of new rows and learn from them.

        Args:
            rows: ``TRADE_DTYPE``, grouped by symbol.
            groups: (symbol_index, start, stop) of each symbol's rows.
            last_ms: per group, transaction time of the symbol's highest id before these rows.
            live: the rows came over a socket: clock and book can be compared.
            clock_offset_ms: learned receipt minus event time; None: not learned yet.
            is_late: bool[n], rows whose id is below one already known; None: none of them.

        Returns:
            How many rows are flagged.
        """
        symbols = rows["symbol_index"]
        price = rows["price"] / _POWERS[rows["price_decimals"]]
        quantity = rows["quantity"] / _POWERS[rows["quantity_decimals"]]
        starts = np.array([start for _, start, _ in groups])
        suspect = np.zeros(len(rows), dtype=np.uint8)
        times = rows["transact_time_ms"]
        self._flag_times(times, groups, last_ms, is_late, suspect, live=live)
        ids = rows["agg_trade_id"]
        self._confirmed += self._jumps.settle(groups, ids, price, self._is_quoted)
        self._flag_jumps(symbols, price, times, ids, starts, groups, suspect)
        self._flag_sizes(symbols, quantity, groups, suspect)
        off = _off_grid(price, self._tick[symbols]) | _off_grid(quantity, self._step[symbols])
        suspect[off] |= np.uint8(Suspect.OFF_GRID)
        if live and clock_offset_ms is not None:
            self._flag_clock(rows, clock_offset_ms, suspect)
        if live:
            self._flag_book(rows, symbols, price, suspect)
        rows["suspect"] = suspect
        return self._count(suspect)

    def _count(self, suspect: np.ndarray) -> int:
        flagged = suspect[suspect != 0]
        if flagged.size:
            for flag in Suspect:
                self._counts[flag] += int(np.count_nonzero(flagged & np.uint8(flag)))
        return int(flagged.size)

    def _flag_times(
        self,
        times: np.ndarray,
        groups: Sequence[tuple[int, int, int]],
        last_ms: Sequence[int],
        is_late: np.ndarray | None,
        suspect: np.ndarray,
        *,
        live: bool,
    ) -> None:
        """Time may not run back from one id to the next higher one; a late id is just late.

        Very late ones are flagged as such, but not what REST gives back: that is late by nature.
        """
        before = np.empty_like(times)
        before[1:] = times[:-1]
        before[[start for _, start, _ in groups]] = last_ms
        if not (times < before).any():
            return
        for (_, start, stop), known_ms in zip(groups, last_ms, strict=True):
            part = times[start:stop]
            late = np.zeros(stop - start, np.bool_) if is_late is None else is_late[start:stop]
            in_order = np.where(late, known_ms, part)
            back_ms = np.maximum(np.maximum.accumulate(in_order), known_ms) - part
            runs_back = (back_ms > self._settings.time_backwards_ms) & ~late
            suspect[start:stop][runs_back] |= np.uint8(Suspect.TIME_BACKWARDS)
            self._steps_back += int(np.count_nonzero((back_ms > 0) & ~late))
            if live and is_late is not None:
                too_late = (back_ms > self._settings.late_ms) & late
                suspect[start:stop][too_late] |= np.uint8(Suspect.LATE)

    def _flag_jumps(
        self,
        symbols: np.ndarray,
        price: np.ndarray,
        times: np.ndarray,
        ids: np.ndarray,
        starts: np.ndarray,
        groups: Sequence[tuple[int, int, int]],
        suspect: np.ndarray,
    ) -> None:
        before = np.empty_like(price)
        before[1:] = price[:-1]
        before[starts] = self._last_price[symbols[starts]]
        moved = np.abs(price / before - 1) * 1e4 > self._settings.jump_bps  # False for the first
        if moved.any():
            for symbol_index, start, stop in groups:
                for i in (start + np.flatnonzero(moved[start:stop])).tolist():
                    if not self._is_jump(symbol_index, price[start:i], price[i]):
                        continue
                    jump = PriceJump(int(ids[i]), int(times[i]), float(before[i]), float(price[i]))
                    if self._is_unconfirmed(symbol_index, jump, price[i + 1 : stop]):
                        suspect[i] |= np.uint8(Suspect.PRICE_JUMP)
        self._remember_prices(symbols, price, starts, groups)

    def _remember_prices(
        self,
        symbols: np.ndarray,
        price: np.ndarray,
        starts: np.ndarray,
        groups: Sequence[tuple[int, int, int]],
    ) -> None:
        lengths = np.diff(np.append(starts, len(price)))
        rank = np.arange(len(price)) - np.repeat(starts, lengths)
        places = (self._price_count[symbols] + rank) % _PRICES
        if int(lengths.max()) > _PRICES:  # a place would be written twice: keep the newest
            fresh = rank >= np.repeat(lengths, lengths) - _PRICES
            self._prices[symbols[fresh], places[fresh]] = price[fresh]
        else:
            self._prices[symbols, places] = price
        owners = symbols[starts]
        self._price_count[owners] += lengths
        self._last_price[owners] = price[[stop - 1 for _, _, stop in groups]]

    def _is_jump(self, symbol_index: int, fresh: np.ndarray, price: float) -> bool:
        """Whether a price is an outlier of the last ``_PRICES`` before it, ``fresh`` included."""
        count = int(self._price_count[symbol_index])
        ring = np.roll(self._prices[symbol_index], -(count % _PRICES))[-min(count, _PRICES) :]
        history = np.concatenate([ring if count else fresh[:0], fresh])[-_PRICES:].tolist()
        if len(history) < _ENOUGH_PRICES:
            return False
        median = stats.median(history)
        spread = stats.median(abs(value - median) for value in history)
        tick = float(self._tick[symbol_index])
        spread = max(spread, tick if tick > 0 else 0.0, 1e-4 * median)
        return bool(abs(_MAD_TO_SIGMA * (price - median) / spread) > self._settings.jump_z)

    def _is_quoted(self, symbol_index: int, price: float, time_ms: int) -> bool:
        """Whether a fresh best quote has the price between or near its two sides."""
        margin = self._settings.outside_book_bps / 1e4
        low, high = self._bid[symbol_index] * (1 - margin), self._ask[symbol_index] * (1 + margin)
        age_ms = abs(time_ms - self._quote_ms[symbol_index])
        return bool(low <= price <= high and age_ms <= self._settings.book_fresh_ms)

    def _is_unconfirmed(self, symbol_index: int, jump: PriceJump, later: np.ndarray) -> bool:
        """Whether neither a quote nor the prints known so far bear a jump out; then more may come."""
        verdict = self._jumps.judge(jump, later)
        if verdict or self._is_quoted(symbol_index, jump.price, jump.time_ms):
            return False
        if verdict is None:
            self._jumps.wait(symbol_index, jump)
        return True

    def _flag_sizes(
        self,
        symbols: np.ndarray,
        quantity: np.ndarray,
        groups: Sequence[tuple[int, int, int]],
        suspect: np.ndarray,
    ) -> None:
        odd = quantity > self._size_bound[symbols]
        if odd.any():
            suspect[odd] |= np.uint8(Suspect.ODD_SIZE)
        bins = np.frexp(quantity)[1] + _SIZE_BINS // 2
        np.clip(bins, 0, _SIZE_BINS - 1, out=bins)
        np.add.at(self._sizes, (symbols, bins), 1)
        for symbol_index, start, stop in groups:
            self._bound_due[symbol_index] -= stop - start
            if self._bound_due[symbol_index] <= 0:
                self._learn_bound(symbol_index)

    def _learn_bound(self, symbol_index: int) -> None:
        self._bound_due[symbol_index] = _BOUND_EVERY
        counts = np.cumsum(self._sizes[symbol_index])
        top = int(np.searchsorted(counts, 0.9999 * counts[-1]))
        self._size_bound[symbol_index] = (
            2.0 ** (top - _SIZE_BINS // 2) * self._settings.odd_size_factor
        )

    def _flag_clock(self, rows: np.ndarray, offset_ms: float, suspect: np.ndarray) -> None:
        ahead = rows["event_time_ms"] - rows["receive_time_ns"] / 1e6 + offset_ms
        wrong = ahead > self._settings.clock_tolerance_ms
        if wrong.any():
            wrong &= (rows["event_time_ms"] > 0) & (rows["receive_time_ns"] > 0)
            suspect[wrong] |= np.uint8(Suspect.CLOCK)

    def _flag_book(
        self, rows: np.ndarray, symbols: np.ndarray, price: np.ndarray, suspect: np.ndarray
    ) -> None:
        margin = self._settings.outside_book_bps / 1e4
        sells = rows["is_buyer_maker"]
        too_high = sells & (price > self._ask[symbols] * (1 + margin))
        wrong = too_high | (~sells & (price < self._bid[symbols] * (1 - margin)))
        if wrong.any():
            age_ms = np.abs(rows["transact_time_ms"] - self._quote_ms[symbols])
            wrong &= age_ms <= self._settings.book_fresh_ms
            suspect[wrong] |= np.uint8(Suspect.OUTSIDE_BOOK)


def _off_grid(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    steps = values / step  # NaN where the grid is unknown: never off it
    off: np.ndarray = np.abs(steps - np.rint(steps)) > np.maximum(1e-9, 1e-12 * steps)
    return off
