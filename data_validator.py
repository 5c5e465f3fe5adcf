"""Decoded events → accepted, flagged or rejected ones; keeps what is known about ids, order and clock.

Only structural faults remove a trade (a payload that contradicts an id already seen; unparsable and
non-positive ones were rejected by the decoder). Everything statistical flags (``Suspect``) and keeps.
A rejected trade never marks its id as seen. Rules and thresholds: docs/reference.md, "Validation".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import msgspec
import numpy as np
import structlog

from domain.market import NO_VALUE, AggTrade, DepthSnapshot, DepthTop
from microstructure.clock_offset import ClockOffset
from microstructure.trade_flags import Suspect, TradeFlags, ValidatorSettings
from microstructure.trade_rows import as_row, by_symbol, digests_of, groups_left
from microstructure.trade_sequence import MissingRange, TradeSequence

__all__ = [
    "DUPLICATE",
    "Accepted",
    "CheckedTrades",
    "ClockOffset",
    "DataValidator",
    "MissingRange",
    "Rejected",
    "Suspect",
    "TradeSequence",
    "ValidatorSettings",
]

log = structlog.get_logger()

DUPLICATE = "duplicate"
"""Reason of a second copy of what is known: dropped and counted, never a fault."""

_RING = 512  # remembered payload digests per symbol (a power of two)
_CLOCK_IS_RIGHT = 0.8  # share of the warning's limit below which the clock counts as right again
_UNCHAINED = -1  # stands for the update id of a book that nothing can follow


class Accepted[T](msgspec.Struct, frozen=True):
    """A sound event and what is doubtful about it."""

    event: T
    suspect: Suspect = Suspect(0)
    chain_broken: bool = False


class Rejected(msgspec.Struct, frozen=True):
    """A structurally faulty event."""

    reason: str
    symbol: str


class CheckedTrades(msgspec.Struct, frozen=True):
    """``rows`` are the new trades grouped by symbol; ``groups`` are (symbol_index, start, stop)."""

    rows: np.ndarray
    groups: list[tuple[int, int, int]]
    replacements: np.ndarray  # authoritative rows for disputed ids
    rejected_rows: np.ndarray  # contradicted an id already seen
    changed: set[int]  # symbols whose holes changed
    # (symbol_index, trade id) of earlier price jumps that turned out to be real moves
    confirmed: list[tuple[int, int]] = []


class _Checked:
    """What came of the rows of one batch, by their place in it."""

    def __init__(self, is_new: np.ndarray) -> None:
        self.is_new = is_new  # bool[n]
        self.is_late: np.ndarray | None = None  # bool[n]; None: none is
        self.replaced: list[int] = []
        self.rejected: list[int] = []
        self.changed: set[int] = set()

    def note_late(self, place: int) -> None:
        if self.is_late is None:
            self.is_late = np.zeros(len(self.is_new), dtype=np.bool_)
        self.is_late[place] = True


class DataValidator:
    """Checks trades (as columns or singly) and depth snapshots of a fixed list of symbols.

    Args:
        symbols: Upper case.
        settings: See ``ValidatorSettings``.
        is_flagging: Whether doubtful trades are told; a recorder keeps them all alike.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        settings: ValidatorSettings | None = None,
        *,
        is_flagging: bool = True,
    ) -> None:
        self.settings = settings or ValidatorSettings()
        self.symbols = list(symbols)
        self.index = {symbol: i for i, symbol in enumerate(self.symbols)}
        count = len(self.symbols)
        self.sequences = [TradeSequence() for _ in range(count)]
        self.clock = ClockOffset(self.settings.clock_window_s)
        self._digest_id = np.full((count, _RING), NO_VALUE, dtype=np.int64)
        self._digest = np.zeros((count, _RING), dtype=np.int64)
        self._flags = TradeFlags(count, self.settings)
        self._is_flagging = is_flagging
        self._final_update_id: dict[int, int] = {}
        self._clock_is_off = False
        self._counts = dict.fromkeys(
            (
                "trades",
                "duplicates",
                "conflicts",
                "suspects",
                "depth",
                "depth_rejected",
                "chain_breaks",
                "before_start",
                "clock_warnings",
            ),
            0,
        )

    def set_grid(self, symbol: str, tick_size: float, step_size: float) -> None:
        """Tell the tick and lot grid (from exchangeInfo) so that off-grid trades are flagged."""
        self._flags.set_grid(self.index[symbol], tick_size, step_size)

    def check_trades(
        self, rows: np.ndarray, now_ns: int, *, authoritative: bool = False
    ) -> CheckedTrades:
        """Check a batch of structurally sound rows (``TRADE_DTYPE``, arrival order).

        Args:
            rows: the batch; its ``suspect`` column is filled in place.
            now_ns: monotonic time, stamped on holes that appear.
            authoritative: rows come from REST, whose copy of a disputed id wins.
        """
        if not len(rows):
            return CheckedTrades(rows, [], rows, rows, set())
        rows, groups = by_symbol(rows)
        digests = digests_of(rows)
        checked = _Checked(np.ones(len(rows), dtype=np.bool_))
        last_ms = []
        for symbol_index, start, stop in groups:
            sequence = self.sequences[symbol_index]
            last_ms.append(sequence.last_ms)
            if not self._extend(sequence, rows, start, stop):
                self._one_by_one(
                    symbol_index, rows, digests, (start, stop), now_ns, checked, authoritative
                )
        return self._collect(rows, groups, digests, checked, last_ms, authoritative)

    def _collect(
        self,
        rows: np.ndarray,
        groups: list[tuple[int, int, int]],
        digests: np.ndarray,
        checked: _Checked,
        last_ms: list[int],
        authoritative: bool,  # noqa: FBT001
    ) -> CheckedTrades:
        """Keep what is new, remember and flag it, and learn the clock."""
        fresh, is_late = rows, checked.is_late
        if not checked.is_new.all():
            fresh = rows[checked.is_new]
            digests = digests[checked.is_new]
            is_late = None if is_late is None else is_late[checked.is_new]
            groups, last_ms = groups_left(checked.is_new, groups, last_ms)
        if groups:
            slots = fresh["agg_trade_id"] % _RING
            self._digest_id[fresh["symbol_index"], slots] = fresh["agg_trade_id"]
            self._digest[fresh["symbol_index"], slots] = digests
            if self._is_flagging:
                self._counts["suspects"] += self._flags.flag(
                    fresh,
                    groups,
                    last_ms,
                    live=not authoritative,
                    clock_offset_ms=self.clock.steady_ms(self.settings.clock_tolerance_ms),
                    is_late=is_late,
                )
            self._counts["trades"] += len(fresh)
        if not authoritative:
            self._learn_clock(rows)
        return CheckedTrades(
            fresh,
            groups,
            rows[checked.replaced] if checked.replaced else rows[:0],
            rows[checked.rejected] if checked.rejected else rows[:0],
            checked.changed,
            self._flags.take_confirmed(),
        )

    def check_trade(self, trade: AggTrade, now_ns: int = 0) -> Accepted[AggTrade] | Rejected:
        """Check one trade; the columnar form above is what the bot itself uses."""
        if trade.symbol not in self.index:
            return Rejected("wrong symbol", trade.symbol)
        if not (trade.price.is_finite() and trade.quantity.is_finite()):
            return Rejected("not finite", trade.symbol)
        if trade.price <= 0 or trade.quantity <= 0:
            return Rejected("not positive", trade.symbol)
        row = as_row(trade, self.index[trade.symbol])
        if row is None:
            return Rejected("malformed number", trade.symbol)
        first_id = self.sequences[self.index[trade.symbol]].first_id
        if first_id is not None and trade.agg_trade_id < first_id:
            return Rejected("before the first known trade", trade.symbol)
        checked = self.check_trades(row, now_ns)
        if len(checked.rows):
            return Accepted(trade, Suspect(int(checked.rows["suspect"][0])))
        if len(checked.rejected_rows):
            return Rejected("id already seen with another payload", trade.symbol)
        return Rejected(DUPLICATE, trade.symbol)

    def check_depth(self, top: DepthTop) -> Accepted[DepthTop] | Rejected:
        """Check one frame's ids and best levels; tells whether the ``pu`` chain broke.

        A rejected frame breaks the chain for its successor: what it held is unknown.
        """
        index = self.index.get(top.symbol)
        if index is None:
            return Rejected("wrong symbol", top.symbol)
        final_id = top.final_update_id
        previous = self._final_update_id.get(index)
        if final_id == previous:
            self._counts["duplicates"] += 1
            return Rejected(DUPLICATE, top.symbol)
        if previous is not None and final_id < previous:
            self._counts["depth_rejected"] += 1
            return Rejected("depth out of order", top.symbol)
        bid, ask = top.bid, top.ask
        if (
            bid
            and ask
            and 0.0 < bid[0] < ask[0] < inf
            and 0.0 < bid[1] < inf
            and 0.0 < ask[1] < inf
        ):
            self._flags.quote(index, bid[0], ask[0], top.transact_time_ms)
        else:
            reason = _levels_fault([bid] if bid else [], [ask] if ask else [])
            if reason is not None:
                self._counts["depth_rejected"] += 1
                return Rejected(reason, top.symbol)
        chained = previous != _UNCHAINED and top.prev_final_update_id in (None, previous)
        broken = previous is not None and not chained
        self._final_update_id[index] = final_id
        self._counts["depth"] += 1
        self._counts["chain_breaks"] += broken
        return Accepted(top, chain_broken=broken)

    def check_levels(self, snapshot: DepthSnapshot) -> str | None:
        """What is wrong with a book of which all levels are read: not sorted, positive, uncrossed.

        The chain goes on over a faulty one: its ids and best levels were sound (``check_depth``).
        """
        reason = _levels_fault(snapshot.bids, snapshot.asks)
        self._counts["depth_rejected"] += reason is not None
        return reason

    def book_update_id(self, symbol: str) -> int | None:
        """Final update id of a symbol's latest accepted snapshot."""
        return self._final_update_id.get(self.index[symbol])

    def reset_depth(self) -> None:
        """The depth socket changed: chains restart (a break is reported by the next snapshot)."""
        for index in self._final_update_id:
            self._final_update_id[index] = _UNCHAINED

    def accept_head(self, symbol_index: int, rows: np.ndarray) -> np.ndarray:
        """Take REST rows that precede the first known trade; returns those contiguous with it."""
        sequence = self.sequences[symbol_index]
        if sequence.first_id is None or not len(rows):
            return rows[:0]
        rows = rows[rows["agg_trade_id"] < sequence.first_id]
        rows = rows[np.argsort(rows["agg_trade_id"], kind="stable")]
        want = np.arange(sequence.first_id - len(rows), sequence.first_id)
        contiguous = rows["agg_trade_id"] == want
        cut = int(np.flatnonzero(~contiguous)[-1]) + 1 if not contiguous.all() else 0
        rows = rows[cut:]
        if len(rows):
            sequence.extend_head(int(rows["agg_trade_id"][0]), int(rows["transact_time_ms"][0]))
        return rows

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start, open holes, and the learned clock offset in milliseconds."""
        open_ids = sum(gap.count for seq in self.sequences for gap in seq.missing if not gap.lost)
        return {
            **self._counts,
            **self._flags.statistics(),
            "missing_ids": open_ids,
            "clock_offset_ms": self.clock.median_ms,
        }

    def _extend(self, sequence: TradeSequence, rows: np.ndarray, start: int, stop: int) -> bool:
        """Take a group whose ids follow each other and the sequence (or begin it); else False."""
        ids = rows["agg_trade_id"]
        first_id, last_id = int(ids[start]), int(ids[stop - 1])
        if sequence.max_id not in (None, first_id - 1) or last_id - first_id != stop - start - 1:
            return False
        if stop - start > 2 and (np.diff(ids[start:stop]) != 1).any():
            return False
        times = rows["transact_time_ms"]
        if sequence.max_id is None:
            sequence.first_id, sequence.first_ms = first_id, int(times[start])
        sequence.max_id, sequence.last_ms = last_id, int(times[stop - 1])
        return True

    def _one_by_one(
        self,
        symbol_index: int,
        rows: np.ndarray,
        digests: np.ndarray,
        span: tuple[int, int],
        now_ns: int,
        checked: _Checked,
        authoritative: bool,  # noqa: FBT001
    ) -> None:
        """Take a group whose ids do not simply follow on, row by row."""
        sequence = self.sequences[symbol_index]
        checked.changed.add(symbol_index)
        start, stop = span
        ids = rows["agg_trade_id"][start:stop].tolist()
        times = rows["transact_time_ms"][start:stop].tolist()
        for place, trade_id, time_ms in zip(range(start, stop), ids, times, strict=True):
            known_id = sequence.max_id
            if trade_id in sequence.disputed and authoritative:
                sequence.disputed.discard(trade_id)
                self._remember(symbol_index, trade_id, digests[place])
                checked.replaced.append(place)
            elif sequence.first_id is not None and trade_id < sequence.first_id:
                self._counts["before_start"] += 1
            elif sequence.extend(trade_id, time_ms, now_ns):
                self._remember(symbol_index, trade_id, digests[place])
                if known_id is not None and trade_id < known_id:
                    checked.note_late(place)
                continue
            elif not self._contradicts(symbol_index, trade_id, digests[place]):
                self._counts["duplicates"] += 1
            elif authoritative:
                self._counts["conflicts"] += 1
                self._remember(symbol_index, trade_id, digests[place])
                checked.replaced.append(place)
            else:
                self._counts["conflicts"] += 1
                sequence.disputed.add(trade_id)
                checked.rejected.append(place)
            checked.is_new[place] = False

    def _contradicts(self, symbol_index: int, trade_id: int, digest: np.int64) -> bool:
        slot = trade_id % _RING
        return bool(
            self._digest_id[symbol_index, slot] == trade_id
            and self._digest[symbol_index, slot] != digest
        )

    def _remember(self, symbol_index: int, trade_id: int, digest: np.int64) -> None:
        slot = trade_id % _RING
        self._digest_id[symbol_index, slot] = trade_id
        self._digest[symbol_index, slot] = digest

    def _learn_clock(self, rows: np.ndarray) -> None:
        if rows["event_time_ms"][-1] > 0 and rows["receive_time_ns"][-1] > 0:
            self.clock.add(int(rows["receive_time_ns"][-1]), int(rows["event_time_ms"][-1]))
            self._watch_clock()

    def _watch_clock(self) -> None:
        """Warn once when the clock is learned to be far off, and again only after it was right."""
        offset_ms, limit_ms = self.clock.median_ms, self.settings.clock_warning_ms
        if offset_ms is None or self.clock.is_young:
            return
        if not self._clock_is_off and abs(offset_ms) > limit_ms:
            self._clock_is_off = True
            self._counts["clock_warnings"] += 1
            log.warning("validator.clock_offset", offset_ms=round(offset_ms), limit_ms=limit_ms)
        elif self._clock_is_off and abs(offset_ms) < _CLOCK_IS_RIGHT * limit_ms:
            self._clock_is_off = False
            log.info("validator.clock_offset_over", offset_ms=round(offset_ms))


def _levels_fault(bids: list[tuple[float, float]], asks: list[tuple[float, float]]) -> str | None:
    if not bids and not asks:
        return None
    prices, sizes = zip(*bids, *asks, strict=True)
    if not isfinite(sum(sizes) + sum(prices)):
        return "depth with a number that is not finite"  # also keeps the comparisons below honest
    if min(sizes) <= 0:
        return "depth with a size that is not positive"
    if bids != sorted(bids, reverse=True) or asks != sorted(asks):
        return "unsorted book"
    if min(prices) <= 0:
        return "depth with an impossible price"
    if bids and asks and bids[0][0] >= asks[0][0]:
        return "crossed book"
    return None
