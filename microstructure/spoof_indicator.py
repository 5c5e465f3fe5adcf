"""Large orders near the touch that vanish untraded: a spoof-like indicator, never proof. Pure.

Snapshots and trades of one symbol → ``SpoofLike`` events: size of a wall posted 1 to 20 ticks behind the
touch, at least 80 % of it removed within five seconds without a trade at its price, while aggressors
of the other side traded. Levels are seen, not owners; about a third of large orders could be such
(arXiv 2504.15908). A level that the price moved through, or that left the visible book, is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from microstructure.book_tape import BookTape
from microstructure.trade_rows import prices_and_quantities

type Floats = npt.NDArray[np.float64]
type Levels = dict[int, float]
"""Size by price in ticks."""

BID: Final = 1
ASK: Final = -1


class SpoofSettings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an event is.

    Attributes:
        tick: Quote units.
        wall_size: Base units that must be added at a price between two snapshots.
        opposing_volume: Base units that aggressors of the other side must trade more than, such as
            the 90th percentile of what they do in that time.
        furthest_ticks: Greatest distance behind the touch of the same side.
        removed_share: Share of what was added that must go again.
        longest_ms: Longest life.
    """

    tick: float
    wall_size: float
    opposing_volume: float
    furthest_ticks: int = 20
    removed_share: float = 0.8
    longest_ms: int = 5000


class SpoofLike(msgspec.Struct, frozen=True, gc=False):
    """Size that came and went; ``side`` is +1 for bids, −1 for asks, sizes and volume base units."""

    side: int
    price_ticks: int
    posted_ms: int
    removed_ms: int
    size: float
    distance_ticks: int
    opposing_volume: float


class SpoofSummary(msgspec.Struct, frozen=True, gc=False):
    """Events of a span: how often, how long they lived and how far from the touch; None without any."""

    per_minute: float
    mean_life_ms: float | None
    mean_distance_ticks: float | None


class _Posting:
    __slots__ = ("base", "distance", "opposing", "posted_ms", "size")

    def __init__(self, posted_ms: int, base: float, size: float, distance: int) -> None:
        self.posted_ms = posted_ms
        self.base = base
        self.size = size
        self.distance = distance
        self.opposing = 0.0


class SpoofIndicator:
    """Events of one symbol as its trades and snapshots come, a snapshot after the trades up to it."""

    __slots__ = ("_last", "_postings", "_settings")

    def __init__(self, settings: SpoofSettings) -> None:
        self._settings = settings
        self._last: dict[int, Levels] = {BID: {}, ASK: {}}
        self._postings: dict[tuple[int, int], _Posting] = {}

    def push_trade(self, price: float, quantity: float, *, is_sell: bool) -> None:
        """Take in a trade; ``is_sell`` says that the aggressor sold."""
        side = BID if is_sell else ASK  # whose resting orders it met
        self._postings.pop((side, round(price / self._settings.tick)), None)
        for (of_side, _), posting in self._postings.items():
            if of_side == side:
                posting.opposing += quantity

    def push_book(
        self, time_ms: int, bids: Levels, asks: Levels, *, is_break: bool = False
    ) -> list[SpoofLike]:
        """Take in a snapshot; returns the events that it ends.

        Args:
            time_ms: Its time.
            bids: Sizes by price in ticks.
            asks: Same.
            is_break: The update chain was broken before it: all state is forgotten.
        """
        if is_break or not bids or not asks:
            self._postings.clear()
            self._last = {BID: {}, ASK: {}}
        if not bids or not asks:
            return []
        found = [*self._removals(time_ms, BID, bids), *self._removals(time_ms, ASK, asks)]
        for side, levels in ((BID, bids), (ASK, asks)):
            if self._last[side]:
                self._take_postings(time_ms, side, levels)
            self._last[side] = levels
        return found

    def _removals(self, time_ms: int, side: int, levels: Levels) -> Iterator[SpoofLike]:
        touch, end = max(levels, key=side.__mul__), min(levels, key=side.__mul__)
        for key, posting in list(self._postings.items()):
            of_side, price = key
            if of_side != side:
                continue
            is_seen = side * end <= side * price <= side * touch
            if not is_seen or time_ms - posting.posted_ms > self._settings.longest_ms:
                del self._postings[key]
                continue
            left = levels.get(price, 0.0) - posting.base
            if left > (1.0 - self._settings.removed_share) * posting.size:
                continue
            del self._postings[key]
            if posting.opposing > self._settings.opposing_volume:
                yield SpoofLike(
                    side,
                    price,
                    posting.posted_ms,
                    time_ms,
                    posting.size,
                    posting.distance,
                    posting.opposing,
                )

    def _take_postings(self, time_ms: int, side: int, levels: Levels) -> None:
        last = self._last[side]
        touch = max(levels, key=side.__mul__)
        end = min(last, key=side.__mul__)
        for price, size in levels.items():
            distance = side * (touch - price)
            base = last.get(price, 0.0)
            if (
                size - base >= self._settings.wall_size
                and 1 <= distance <= self._settings.furthest_ticks
                and side * price >= side * end
                and (side, price) not in self._postings
            ):
                self._postings[side, price] = _Posting(time_ms, base, size - base, distance)


def spoof_like(tape: BookTape, trades: np.ndarray, settings: SpoofSettings) -> list[SpoofLike]:
    """All events of a tape and its trades, in order of their end.

    A trade of a snapshot's own millisecond counts as before it.
    """
    found: list[SpoofLike] = []
    price, quantity = prices_and_quantities(trades)
    ticks = np.rint(price / settings.tick).astype(np.int64)
    order = np.argsort(trades["transact_time_ms"], kind="stable")
    flow = _Flow(
        trades["transact_time_ms"][order],
        ticks[order],
        quantity[order],
        trades["is_buyer_maker"][order],
    )
    for side in (BID, ASK):
        found += _of_side(_side_of(tape, side, settings.tick), flow, settings)
    return sorted(found, key=lambda event: (event.removed_ms, event.posted_ms, event.price_ticks))


class _Flow(msgspec.Struct, frozen=True, eq=False):
    """Trades in time order, as columns."""

    time_ms: npt.NDArray[np.int64]
    ticks: npt.NDArray[np.int64]
    quantity: Floats
    is_sell: npt.NDArray[np.bool_]

    def between(self, after_ms: int, until_ms: int, side: int, price: int) -> tuple[float, bool]:
        """Volume of aggressors against a side in ``(after, until]``, and whether any met a price."""
        first, stop = np.searchsorted(self.time_ms, [after_ms, until_ms], side="right").tolist()
        against = self.is_sell[first:stop] == (side == BID)
        met = self.ticks[first:stop][against] == price
        return float(sum(self.quantity[first:stop][against].tolist())), bool(met.any())


class _Side(msgspec.Struct, frozen=True, eq=False):
    """One side of a tape: ``ticks`` times its sign grow towards the touch; absent levels hold 0."""

    sign: int
    time_ms: npt.NDArray[np.int64]
    ticks: npt.NDArray[np.int64]
    sizes: Floats
    is_there: npt.NDArray[np.bool_]
    chain: npt.NDArray[np.int64]

    def size_at(self, row: int, price: int) -> float:
        """Resting size at a price in a snapshot."""
        at = self.is_there[row] & (self.ticks[row] == price)
        return float(self.sizes[row][at].sum())

    def is_seen(self, row: int, price: int) -> bool:
        """Whether a price lies between a snapshot's touch and its last level."""
        height = self.sign * self.ticks[row][self.is_there[row]]
        return bool(height.min() <= self.sign * price <= height.max())


def _side_of(tape: BookTape, sign: int, tick: float) -> _Side:
    prices, sizes = (
        (tape.bid_price, tape.bid_size) if sign == BID else (tape.ask_price, tape.ask_size)
    )
    is_there = ~(np.isnan(prices) | np.isnan(sizes))
    ticks = np.rint(np.where(is_there, prices, 0.0) / tick).astype(np.int64)
    is_whole = ~(np.isnan(tape.bid_price[:, 0]) | np.isnan(tape.ask_price[:, 0]))
    cut = tape.is_break | ~is_whole
    cut[1:] |= ~is_whole[:-1]
    sizes = np.where(is_there, sizes, 0.0)
    return _Side(sign, tape.time_ms, ticks, sizes, is_there, np.cumsum(cut))


def _of_side(side: _Side, flow: _Flow, settings: SpoofSettings) -> Iterator[SpoofLike]:
    busy_until: dict[int, int] = {}
    for at, level in _postings(side, settings):
        price = int(side.ticks[at, level])
        if at < busy_until.get(price, 0):
            continue
        event, busy_until[price] = _life(side, flow, at, level, settings)
        if event is not None:
            yield event


def _postings(side: _Side, settings: SpoofSettings) -> list[tuple[int, int]]:
    """(snapshot, level) of each size that was added in view, in order."""
    ticks, sizes, is_there = side.ticks, side.sizes, side.is_there
    base = np.zeros(sizes[1:].shape)
    for level in range(sizes.shape[1]):
        earlier = slice(level, level + 1)
        same = (ticks[1:] == ticks[:-1, earlier]) & is_there[:-1, earlier]
        base += np.where(same, sizes[:-1, earlier], 0.0)
    height = side.sign * ticks
    deepest = np.where(is_there, height, np.iinfo(np.int64).max).min(axis=1)
    distance = height[1:, :1] - height[1:]
    is_near = (distance >= 1) & (distance <= settings.furthest_ticks)
    is_known = is_there[1:] & (height[1:] >= deepest[:-1, None])
    is_known &= (side.chain[1:] == side.chain[:-1])[:, None]
    rows, levels = np.nonzero(is_known & is_near & (sizes[1:] - base >= settings.wall_size))
    return list(zip((rows + 1).tolist(), levels.tolist(), strict=True))


def _life(
    side: _Side, flow: _Flow, at: int, level: int, settings: SpoofSettings
) -> tuple[SpoofLike | None, int]:
    """The event that a posting becomes, and the first snapshot that may show a new one there."""
    price, posted_ms = int(side.ticks[at, level]), int(side.time_ms[at])
    base = side.size_at(at - 1, price)
    size = float(side.sizes[at, level]) - base
    for row in range(at + 1, len(side.time_ms)):
        now_ms = int(side.time_ms[row])
        if side.chain[row] != side.chain[at] or not side.is_seen(row, price):
            return None, row
        opposing, was_met = flow.between(posted_ms, now_ms, side.sign, price)
        if was_met or now_ms - posted_ms > settings.longest_ms:
            return None, row
        left = side.size_at(row, price) - base
        if left <= (1.0 - settings.removed_share) * size:
            distance = abs(int(side.ticks[at, 0]) - price)
            event = SpoofLike(side.sign, price, posted_ms, now_ms, size, distance, opposing)
            return (event if opposing > settings.opposing_volume else None), row
    return None, len(side.time_ms)


def summary_of(events: list[SpoofLike], span_ms: int) -> SpoofSummary:
    """Counts and means of the events of a span."""
    count = len(events)
    lives = sum(event.removed_ms - event.posted_ms for event in events)
    distances = sum(event.distance_ticks for event in events)
    return SpoofSummary(
        per_minute=count * 60_000.0 / span_ms,
        mean_life_ms=lives / count if count else None,
        mean_distance_ticks=distances / count if count else None,
    )
