"""Decoded events → accepted, flagged or rejected ones; keeps what is known about ids, order and clock.

Only structural faults remove a trade (a payload that contradicts an id already seen; unparsable and
non-positive ones were rejected by the decoder). Everything statistical flags (``Suspect``) and keeps.
A rejected trade never marks its id as seen. Rules and thresholds: docs/reference.md, "Validation".
"""

from __future__ import annotations

import enum
import math
import statistics as stats
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import msgspec
import numpy as np

from domain.market import NO_VALUE, TRADE_DTYPE, AggTrade, DepthSnapshot, Side

_RING = 512  # remembered payload digests per symbol (a power of two)
_PRICES = 128  # remembered prices per symbol for the jump test
_SIZE_BINS = 64  # by powers of two of the quantity
_POWERS = 10.0 ** np.arange(20)
_MAX_DECIMALS = 18
_UNCHAINED = -1  # stands for the update id of a book that nothing can follow
_MAD_TO_SIGMA = 0.6745  # Iglewicz & Hoaglin 1993: modified z-score


class Suspect(enum.IntFlag):
    """Why a kept trade is doubtful."""

    OFF_GRID = 1  # price not on the tick grid, or quantity not on the lot grid
    TIME_BACKWARDS = 2  # transaction time runs back beyond the tolerance
    PRICE_JUMP = 4  # robust outlier against the last trades (may be a real crash)
    ODD_SIZE = 8  # far beyond the largest usual sizes
    CLOCK = 16  # stamped in the future, the learned clock offset considered
    OUTSIDE_BOOK = 32  # aggressor far on the wrong side of a fresh best quote


class ValidatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds; every one only flags.

    Attributes:
        time_backwards_ms: tolerated step back of the transaction time.
        jump_bps: a price closer than this to the last one is never a jump.
        jump_z: modified z-score beyond which it is one.
        odd_size_factor: times the 99.99 % quantile of sizes.
        clock_tolerance_ms: how far an event may lie ahead of the learned clock.
        outside_book_bps: how far beyond the opposite best quote an aggressor may trade.
        book_fresh_ms: age up to which the last quote is used for that.
        clock_samples: batches over which the clock offset's median is taken.
    """

    time_backwards_ms: int = 1_000
    jump_bps: float = 50.0
    jump_z: float = 10.0
    odd_size_factor: float = 20.0
    clock_tolerance_ms: float = 1_000.0
    outside_book_bps: float = 20.0
    book_fresh_ms: int = 1_000
    clock_samples: int = 240


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
                    parts.append(
                        msgspec.structs.replace(gap, last_id=trade_id - 1, before_ms=time_ms)
                    )
                if trade_id < gap.last_id:
                    parts.append(
                        msgspec.structs.replace(gap, first_id=trade_id + 1, after_ms=time_ms)
                    )
                self.missing[index : index + 1] = parts
                return True
        return False


class ClockOffset:
    """Learns receipt minus event time (milliseconds) as a rolling median; wall clocks may be wrong.

    A recording of another year, or a machine whose clock is 1.5 s behind, is normal data.
    """

    def __init__(self, samples: int) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=samples)
        self._median_ms: float | None = None
        self._since_median = 0

    def add(self, receive_time_ns: int, event_time_ms: int) -> None:
        """Note one message: when it was received and when the exchange says it was sent."""
        self._samples.append((receive_time_ns, receive_time_ns / 1e6 - event_time_ms))
        self._since_median += 1
        if self._since_median >= 16 or len(self._samples) < 16:
            self._median_ms = stats.median(offset for _, offset in self._samples)
            self._since_median = 0

    @property
    def median_ms(self) -> float | None:
        """Receipt minus event time, None before the first message."""
        return self._median_ms

    @property
    def drift_ms(self) -> float:
        """How far the newest offsets moved from the oldest: large when the clocks run at unlike speed."""
        if len(self._samples) < 2:
            return float("inf")
        half = len(self._samples) // 2
        offsets = [offset for _, offset in self._samples]
        return abs(stats.median(offsets[:half]) - stats.median(offsets[half:]))

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
        self._prices = [deque[float](maxlen=_PRICES) for _ in range(count)]
        self._sizes = np.zeros((count, _SIZE_BINS), dtype=np.int64)
        self._ticks: dict[int, tuple[float, float]] = {}
        self._quotes: dict[int, tuple[float, float, int]] = {}
        self._final_update_id: dict[int, int] = {}
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
            ),
            0,
        )

    def set_grid(self, symbol: str, tick_size: float, step_size: float) -> None:
        """Tell the tick and lot grid (from exchangeInfo) so that off-grid trades are flagged."""
        self._ticks[self.index[symbol]] = (tick_size, step_size)

    def check_trades(
        self, rows: np.ndarray, now_ns: int, *, authoritative: bool = False
    ) -> CheckedTrades:
        """Check a batch of structurally sound rows (``TRADE_DTYPE``, arrival order).

        Args:
            rows: the batch; its ``suspect`` column is filled in place.
            now_ns: monotonic time, stamped on holes that appear.
            authoritative: rows come from REST, whose copy of a disputed id wins.
        """
        rows, groups = _by_symbol(rows)
        kept: list[np.ndarray] = []
        kept_groups: list[tuple[int, int, int]] = []
        replaced, rejected = [], []
        changed: set[int] = set()
        position = 0
        for symbol_index, start, stop in groups:
            group = rows[start:stop]
            if self._is_contiguous(symbol_index, group):
                sequence = self.sequences[symbol_index]
                self._flag(symbol_index, group, sequence.last_ms, live=not authoritative)
                sequence.max_id = int(group["agg_trade_id"][-1])
                sequence.last_ms = int(group["transact_time_ms"][-1])
                self._remember(symbol_index, group)
            else:
                group, again, contradicting = self._one_by_one(
                    symbol_index, group, now_ns, authoritative=authoritative
                )
                changed.add(symbol_index)
                replaced.extend(again)
                rejected.extend(contradicting)
            if len(group):
                kept.append(group)
                kept_groups.append((symbol_index, position, position + len(group)))
                position += len(group)
        self._counts["trades"] += position
        if not authoritative and len(rows):
            self._learn_clock(rows)
        return CheckedTrades(
            kept[0] if len(kept) == 1 else _joined(kept, rows),
            kept_groups,
            _joined(replaced, rows),
            _joined(rejected, rows),
            changed,
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
        return Rejected("duplicate", trade.symbol)

    def check_depth(self, snapshot: DepthSnapshot) -> Accepted[DepthSnapshot] | Rejected:
        """Check one snapshot: sorted, positive, uncrossed; tells whether the ``pu`` chain broke.

        A rejected snapshot breaks the chain for its successor: what it held is unknown.
        """
        if snapshot.symbol not in self.index:
            return Rejected("wrong symbol", snapshot.symbol)
        index = self.index[snapshot.symbol]
        previous = self._final_update_id.get(index)
        if previous is not None and snapshot.final_update_id <= previous:
            self._counts["depth_rejected"] += 1
            return Rejected("depth out of order", snapshot.symbol)
        reason = _book_fault(snapshot)
        if reason is not None:
            self._counts["depth_rejected"] += 1
            return Rejected(reason, snapshot.symbol)
        chained = previous != _UNCHAINED and snapshot.prev_final_update_id in (None, previous)
        broken = previous is not None and not chained
        self._final_update_id[index] = snapshot.final_update_id
        self._counts["depth"] += 1
        self._counts["chain_breaks"] += broken
        if snapshot.bids and snapshot.asks:
            self._quotes[index] = (
                snapshot.bids[0][0],
                snapshot.asks[0][0],
                snapshot.transact_time_ms,
            )
        return Accepted(snapshot, chain_broken=broken)

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
        return {**self._counts, "missing_ids": open_ids, "clock_offset_ms": self.clock.median_ms}

    def _is_contiguous(self, symbol_index: int, group: np.ndarray) -> bool:
        last = self.sequences[symbol_index].max_id
        ids = group["agg_trade_id"]
        return bool(
            last is not None
            and ids[0] == last + 1
            and ids[-1] == last + len(ids)
            and (len(ids) < 3 or (np.diff(ids) == 1).all())
        )

    def _one_by_one(
        self, symbol_index: int, group: np.ndarray, now_ns: int, *, authoritative: bool
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        sequence = self.sequences[symbol_index]
        digests = _digests(group)
        before_ms, before_id = sequence.last_ms, sequence.max_id
        kept: list[int] = []
        replaced: list[np.ndarray] = []
        rejected: list[np.ndarray] = []
        for i, (trade_id, time_ms) in enumerate(
            zip(group["agg_trade_id"].tolist(), group["transact_time_ms"].tolist(), strict=True)
        ):
            row = group[i : i + 1]
            if trade_id in sequence.disputed and authoritative:
                sequence.disputed.discard(trade_id)
                replaced.append(row)
            elif sequence.first_id is not None and trade_id < sequence.first_id:
                self._counts["before_start"] += 1
                continue
            elif sequence.extend(trade_id, time_ms, now_ns):
                kept.append(i)
            elif self._contradicts(symbol_index, trade_id, digests[i]):
                if not authoritative:
                    sequence.disputed.add(trade_id)
                self._counts["conflicts"] += 1
                (replaced if authoritative else rejected).append(row)
            else:
                self._counts["duplicates"] += 1
                continue
            if not rejected or rejected[-1] is not row:
                self._remember(symbol_index, row)
        new = group[kept]
        if len(new):
            newest = np.maximum.accumulate(new["agg_trade_id"])
            is_late = new["agg_trade_id"] < np.maximum(newest, before_id or 0)
            self._flag(symbol_index, new, before_ms, live=not authoritative, is_late=is_late)
        return new, replaced, rejected

    def _contradicts(self, symbol_index: int, trade_id: int, digest: np.int64) -> bool:
        slot = trade_id % _RING
        return bool(
            self._digest_id[symbol_index, slot] == trade_id
            and self._digest[symbol_index, slot] != digest
        )

    def _remember(self, symbol_index: int, group: np.ndarray) -> None:
        group = group[-_RING:]
        slots = group["agg_trade_id"] % _RING
        self._digest_id[symbol_index, slots] = group["agg_trade_id"]
        self._digest[symbol_index, slots] = _digests(group)

    def _flag(
        self,
        symbol_index: int,
        group: np.ndarray,
        last_ms: int,
        *,
        live: bool,
        is_late: np.ndarray | None = None,
    ) -> None:
        """Fill the ``suspect`` column; cheap tests first, robust ones only where those hit.

        Time may not run back from one id to the next higher one; a late id (bool[n]) is just late.
        """
        times = group["transact_time_ms"]
        suspect = group["suspect"]
        price = group["price"] / _POWERS[group["price_decimals"]]
        quantity = group["quantity"] / _POWERS[group["quantity_decimals"]]
        settings = self.settings
        if times[0] < last_ms or (len(times) > 1 and (np.diff(times) < 0).any()):
            in_order = times if is_late is None else np.where(is_late, last_ms, times)
            back_ms = np.maximum(np.maximum.accumulate(in_order), last_ms) - in_order
            runs_back = back_ms > settings.time_backwards_ms
            if is_late is not None:
                runs_back &= ~is_late
            suspect[runs_back] |= np.uint8(Suspect.TIME_BACKWARDS)
        self._flag_jumps(symbol_index, price, suspect)
        self._flag_sizes(symbol_index, quantity, suspect)
        if symbol_index in self._ticks:
            tick, step = self._ticks[symbol_index]
            off = _off_grid(price, tick) | _off_grid(quantity, step)
            suspect[off] |= np.uint8(Suspect.OFF_GRID)
        if live:
            self._flag_clock_and_book(symbol_index, group, price, suspect)
        if suspect.any():
            self._counts["suspects"] += int(np.count_nonzero(suspect))

    def _flag_jumps(self, symbol_index: int, price: np.ndarray, suspect: np.ndarray) -> None:
        past = self._prices[symbol_index]
        limit = self.settings.jump_bps / 1e4
        reference = past[-1] if past else price[0]
        if abs(price.max() / reference - 1) > limit or abs(price.min() / reference - 1) > limit:
            known = [*past, *price.tolist()]
            for i in range(len(price)):
                history = known[max(0, len(past) + i - _PRICES) : len(past) + i]
                if self._is_jump(symbol_index, history, float(price[i])):
                    suspect[i] |= np.uint8(Suspect.PRICE_JUMP)
        past.extend(price[-_PRICES:].tolist())

    def _is_jump(self, symbol_index: int, history: list[float], price: float) -> bool:
        if len(history) < 50 or abs(price / history[-1] - 1) * 1e4 <= self.settings.jump_bps:
            return False
        median = stats.median(history)
        spread = stats.median(abs(value - median) for value in history)
        tick, _ = self._ticks.get(symbol_index, (0.0, 0.0))
        spread = max(spread, tick, 1e-4 * median)
        return abs(_MAD_TO_SIGMA * (price - median) / spread) > self.settings.jump_z

    def _flag_sizes(self, symbol_index: int, quantity: np.ndarray, suspect: np.ndarray) -> None:
        counts = self._sizes[symbol_index]
        total = int(counts.sum())
        exponents = np.frexp(quantity)[1] + _SIZE_BINS // 2
        bins = np.clip(exponents, 0, _SIZE_BINS - 1)
        if total >= 10_000:
            top = int(np.searchsorted(np.cumsum(counts), 0.9999 * total))
            bound = 2.0 ** (top - _SIZE_BINS // 2) * self.settings.odd_size_factor
            suspect[quantity > bound] |= np.uint8(Suspect.ODD_SIZE)
        counts += np.bincount(bins, minlength=_SIZE_BINS)

    def _flag_clock_and_book(
        self, symbol_index: int, group: np.ndarray, price: np.ndarray, suspect: np.ndarray
    ) -> None:
        offset = self.clock.median_ms
        if offset is not None:
            ahead = group["event_time_ms"] - group["receive_time_ns"] / 1e6 + offset
            is_stamped = (group["event_time_ms"] > 0) & (group["receive_time_ns"] > 0)
            suspect[is_stamped & (ahead > self.settings.clock_tolerance_ms)] |= np.uint8(
                Suspect.CLOCK
            )
        quote = self._quotes.get(symbol_index)
        if quote is None or abs(int(group["transact_time_ms"][-1]) - quote[2]) > (
            self.settings.book_fresh_ms
        ):
            return
        margin = self.settings.outside_book_bps / 1e4
        sells = group["is_buyer_maker"]
        wrong = np.where(sells, price > quote[1] * (1 + margin), price < quote[0] * (1 - margin))
        suspect[wrong] |= np.uint8(Suspect.OUTSIDE_BOOK)

    def _learn_clock(self, rows: np.ndarray) -> None:
        if rows["event_time_ms"][-1] > 0 and rows["receive_time_ns"][-1] > 0:
            self.clock.add(int(rows["receive_time_ns"][-1]), int(rows["event_time_ms"][-1]))


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


def _joined(parts: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.concatenate(parts) if parts else like[:0]


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


def _off_grid(values: np.ndarray, step: float) -> np.ndarray:
    steps = values / step
    off: np.ndarray = np.abs(steps - np.rint(steps)) > np.maximum(1e-9, 1e-12 * steps)
    return off


def _book_fault(snapshot: DepthSnapshot) -> str | None:
    bid_prices, bid_sizes = zip(*snapshot.bids, strict=True) if snapshot.bids else ((), ())
    ask_prices, ask_sizes = zip(*snapshot.asks, strict=True) if snapshot.asks else ((), ())
    if not math.isfinite(sum(bid_sizes) + sum(ask_sizes) + sum(bid_prices) + sum(ask_prices)):
        return "depth with a number that is not finite"  # also keeps the comparisons below honest
    if min(bid_sizes, default=1.0) <= 0 or min(ask_sizes, default=1.0) <= 0:
        return "depth with a size that is not positive"
    if list(bid_prices) != sorted(bid_prices, reverse=True) or list(ask_prices) != sorted(
        ask_prices
    ):
        return "unsorted book"
    if min(bid_prices, default=1.0) <= 0 or min(ask_prices, default=1.0) <= 0:
        return "depth with an impossible price"
    if bid_prices and ask_prices and bid_prices[0] >= ask_prices[0]:
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
