"""Decoded events → accepted, flagged or rejected ones; keeps what is known about ids, order and clock.

Only structural faults remove a trade (a payload that contradicts an id already seen; unparsable and
non-positive ones were rejected by the decoder). Everything statistical flags (``Suspect``) and keeps.
A rejected trade never marks its id as seen. Rules and thresholds: docs/reference.md, "Validation".
"""

from __future__ import annotations

import statistics as stats
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from math import inf, isfinite

import msgspec
import numpy as np
import structlog

from domain.market import NO_VALUE, TRADE_DTYPE, AggTrade, DepthSnapshot, DepthTop, Side
from microstructure.trade_flags import Suspect, TradeFlags, ValidatorSettings

log = structlog.get_logger()

DUPLICATE = "duplicate"
"""Reason of a second copy of what is known: dropped and counted, never a fault."""

_RING = 512  # remembered payload digests per symbol (a power of two)
_POWERS = 10.0 ** np.arange(20)
_MAX_DECIMALS = 18
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


class MissingRange(msgspec.Struct):
    """Ids that were skipped: ``first_id..last_id``, between two known trades.

    ``after_ms`` and ``before_ms`` are the transaction times of the trades around the hole.
    """

    first_id: int
    last_id: int
    after_ms: int
    before_ms: int
    since_ns: int
    lost: bool = False
    absent_replies: int = 0

    @property
    def count(self) -> int:
        """Number of ids in the range."""
        return self.last_id - self.first_id + 1


class TradeSequence:
    """What is known about one symbol's ids: the highest, the holes below it, the disputed ones."""

    __slots__ = ("disputed", "first_id", "first_ms", "last_ms", "max_id", "missing")

    def __init__(self) -> None:
        self.first_id: int | None = None
        self.first_ms = 0
        self.max_id: int | None = None
        self.last_ms = 0  # transaction time of the trade with the highest id
        self.missing: list[MissingRange] = []
        self.disputed: set[int] = set()

    def resume(self, last_id: int, last_ms: int) -> None:
        """Continue after a known trade, as if it had been the last one received."""
        self.first_id, self.first_ms = last_id, last_ms
        self.max_id, self.last_ms = last_id, last_ms

    def extend(self, trade_id: int, time_ms: int, now_ns: int) -> bool:
        """Take an id into the sequence; False if it is already there (a duplicate)."""
        if self.max_id is None:
            self.first_id, self.first_ms = trade_id, time_ms
        elif trade_id <= self.max_id:
            return self._fill(trade_id, time_ms)
        elif trade_id > self.max_id + 1:
            self.missing.append(
                MissingRange(self.max_id + 1, trade_id - 1, self.last_ms, time_ms, now_ns)
            )
        self.max_id, self.last_ms = trade_id, time_ms
        return True

    def extend_head(self, first_id: int, first_ms: int) -> None:
        """Trades before the first one became known, contiguous with it."""
        self.first_id, self.first_ms = first_id, first_ms

    def mark_lost(self, first_id: int, last_id: int) -> None:
        """The exchange cannot give these back: they block nothing any more."""
        for gap in list(self.missing):
            if gap.first_id > last_id or gap.last_id < first_id or gap.lost:
                continue
            self._cut(gap, max(first_id, gap.first_id), min(last_id, gap.last_id))

    def forget_before(self, time_ms: int) -> None:
        """Drop holes that lie wholly before a time; the gap ledger keeps them."""
        self.missing = [gap for gap in self.missing if gap.before_ms >= time_ms]

    def _cut(self, gap: MissingRange, first_id: int, last_id: int) -> None:
        index = self.missing.index(gap)
        parts = []
        if gap.first_id < first_id:
            parts.append(msgspec.structs.replace(gap, last_id=first_id - 1))
        parts.append(msgspec.structs.replace(gap, first_id=first_id, last_id=last_id, lost=True))
        if gap.last_id > last_id:
            parts.append(msgspec.structs.replace(gap, first_id=last_id + 1))
        self.missing[index : index + 1] = parts

    def _fill(self, trade_id: int, time_ms: int) -> bool:
        for index, gap in enumerate(self.missing):
            if gap.first_id <= trade_id <= gap.last_id:
                parts = []
                if gap.first_id < trade_id:
                    parts.append(msgspec.structs.replace(gap, last_id=trade_id - 1))
                if trade_id < gap.last_id:
                    parts.append(msgspec.structs.replace(gap, first_id=trade_id + 1))
                self.missing[index : index + 1] = parts
                self._narrow(trade_id, time_ms)
                return True
        return False

    def _narrow(self, trade_id: int, time_ms: int) -> None:
        """A trade found between holes bounds the times of all that reach up to it."""
        last_id = trade_id - 1
        for gap in reversed(self.missing):
            if gap.last_id == last_id:
                gap.before_ms = min(gap.before_ms, time_ms)
                last_id = gap.first_id - 1
        first_id = trade_id + 1
        for gap in self.missing:
            if gap.first_id == first_id:
                gap.after_ms = max(gap.after_ms, time_ms)
                first_id = gap.last_id + 1


class ClockOffset:
    """Learns receipt minus event time (milliseconds) as a rolling median; wall clocks may be wrong.

    A recording of another year, or a machine whose clock is 1.5 s behind, is normal data.
    """

    def __init__(self, samples: int) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=samples)
        self._median_ms: float | None = None
        self._drift_ms = float("inf")
        self._since_median = 0

    def add(self, receive_time_ns: int, event_time_ms: int) -> None:
        """Note one message: when it was received and when the exchange says it was sent."""
        self._samples.append((receive_time_ns, receive_time_ns / 1e6 - event_time_ms))
        self._since_median += 1
        if self._since_median >= 16 or len(self._samples) < 16:
            offsets = [offset for _, offset in self._samples]
            self._median_ms = stats.median(offsets)
            self._drift_ms = _drift(offsets)
            self._since_median = 0

    @property
    def median_ms(self) -> float | None:
        """Receipt minus event time, None before the first message."""
        return self._median_ms

    @property
    def drift_ms(self) -> float:
        """How far the newest offsets moved from the oldest: large when the clocks run at unlike speed."""
        return self._drift_ms

    def steady_ms(self, tolerance_ms: float) -> float | None:
        """The offset, or None while it moves by more than this (clocks at unlike speed)."""
        return self._median_ms if self._drift_ms <= tolerance_ms or self.is_young else None

    @property
    def is_young(self) -> bool:
        """Whether too few messages came to judge the drift."""
        return len(self._samples) < 16

    @property
    def latest_ms(self) -> float | None:
        """Receipt minus event time of the newest message, None before the first."""
        return self._samples[-1][1] if self._samples else None

    def exchange_ms(self, local_ns: int) -> float | None:
        """The exchange's time at a local wall-clock instant, as far as learned."""
        return None if self._median_ms is None else local_ns / 1e6 - self._median_ms


class CheckedTrades(msgspec.Struct, frozen=True):
    """``rows`` are the new trades grouped by symbol; ``groups`` are (symbol_index, start, stop)."""

    rows: np.ndarray
    groups: list[tuple[int, int, int]]
    replacements: np.ndarray  # authoritative rows for disputed ids
    rejected_rows: np.ndarray  # contradicted an id already seen
    changed: set[int]  # symbols whose holes changed


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
    """Checks trades (as columns or singly) and depth snapshots of a fixed list of symbols."""

    def __init__(self, symbols: Sequence[str], settings: ValidatorSettings | None = None) -> None:
        self.settings = settings or ValidatorSettings()
        self.symbols = list(symbols)
        self.index = {symbol: i for i, symbol in enumerate(self.symbols)}
        count = len(self.symbols)
        self.sequences = [TradeSequence() for _ in range(count)]
        self.clock = ClockOffset(self.settings.clock_samples)
        self._digest_id = np.full((count, _RING), NO_VALUE, dtype=np.int64)
        self._digest = np.zeros((count, _RING), dtype=np.int64)
        self._flags = TradeFlags(count, self.settings)
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
        rows, groups = _by_symbol(rows)
        digests = _digests(rows)
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
            groups, last_ms = _groups_of(checked.is_new, groups, last_ms)
        if groups:
            slots = fresh["agg_trade_id"] % _RING
            self._digest_id[fresh["symbol_index"], slots] = fresh["agg_trade_id"]
            self._digest[fresh["symbol_index"], slots] = digests
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
        )

    def check_trade(self, trade: AggTrade, now_ns: int = 0) -> Accepted[AggTrade] | Rejected:
        """Check one trade; the columnar form above is what the bot itself uses."""
        if trade.symbol not in self.index:
            return Rejected("wrong symbol", trade.symbol)
        if not (trade.price.is_finite() and trade.quantity.is_finite()):
            return Rejected("not finite", trade.symbol)
        if trade.price <= 0 or trade.quantity <= 0:
            return Rejected("not positive", trade.symbol)
        row = _as_row(trade, self.index[trade.symbol])
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


def _drift(offsets: list[float]) -> float:
    """How far the later half lies from the earlier one, ms."""
    if len(offsets) < 2:
        return float("inf")
    half = len(offsets) // 2
    return abs(stats.median(offsets[:half]) - stats.median(offsets[half:]))


def _by_symbol(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    if not len(rows):
        return rows, []
    symbols = rows["symbol_index"]
    if symbols[0] == symbols[-1] and (symbols == symbols[0]).all():
        return rows, [(int(symbols[0]), 0, len(rows))]
    order = np.argsort(symbols, kind="stable")
    rows = rows[order]
    symbols = rows["symbol_index"]
    cuts = np.flatnonzero(np.diff(symbols)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    return rows, [(int(symbols[a]), a, b) for a, b in pairwise(edges)]


def _groups_of(
    is_new: np.ndarray, groups: list[tuple[int, int, int]], last_ms: list[int]
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The groups among the rows that stay, and their last known times."""
    before = np.concatenate([[0], np.cumsum(is_new)]).tolist()
    kept = [
        ((symbol_index, before[start], before[stop]), time_ms)
        for (symbol_index, start, stop), time_ms in zip(groups, last_ms, strict=True)
        if before[start] < before[stop]
    ]
    return [group for group, _ in kept], [time_ms for _, time_ms in kept]


def _digests(rows: np.ndarray) -> np.ndarray:
    """A 64-bit digest of what a trade says; equal payloads have equal digests (int64, wrapping).

    Numbers enter by value: ``1.0`` and ``1.00`` are the same, ``10`` and ``1.0`` are not.
    """
    price = (rows["price"] / _POWERS[rows["price_decimals"]]).view(np.int64)
    quantity = (rows["quantity"] / _POWERS[rows["quantity_decimals"]]).view(np.int64)
    digest: np.ndarray = price * np.int64(-0x61C8864680B583EB)
    digest += quantity * np.int64(-0x3D4D51C2D82B14B1)
    digest += rows["transact_time_ms"] * np.int64(0x165667B19E3779F9)
    digest += rows["last_trade_id"] * np.int64(0x27D4EB2F165667C5)
    digest ^= rows["first_trade_id"]
    digest += rows["is_buyer_maker"]
    return digest


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


def _as_row(trade: AggTrade, symbol_index: int) -> np.ndarray | None:
    """The trade as a row; None if a number has more digits than a row can hold."""
    price, quantity = _scaled(trade.price), _scaled(trade.quantity)
    if price is None or quantity is None:
        return None
    row = np.zeros(1, dtype=TRADE_DTYPE)
    row["symbol_index"] = symbol_index
    row["is_buyer_maker"] = trade.aggressor_side is Side.SELL
    row["price"], row["price_decimals"] = price
    row["quantity"], row["quantity_decimals"] = quantity
    row["quantity_ex_rpi"] = NO_VALUE
    row["agg_trade_id"] = trade.agg_trade_id
    row["first_trade_id"], row["last_trade_id"] = trade.first_trade_id, trade.last_trade_id
    row["transact_time_ms"] = trade.transact_time_ms
    row["event_time_ms"] = trade.event_time_ms if trade.event_time_ms is not None else NO_VALUE
    row["receive_time_ns"] = (
        trade.receive_time_ns if trade.receive_time_ns is not None else NO_VALUE
    )
    return row


def _scaled(value: Decimal) -> tuple[int, int] | None:
    """Mantissa and decimals of a positive finite number."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - finite, as checked by the caller
    if -exponent > _MAX_DECIMALS or len(digits) + max(0, exponent) > _MAX_DECIMALS:
        return None
    mantissa = int("".join(map(str, digits))) * 10 ** max(0, exponent)
    return mantissa, max(0, -exponent)
