"""Liquidity walls of one symbol: levels large now, large for the symbol, and standing for a while.

Last snapshots of successive windows (``BookShape`` with its candidates) → ``Walls``. A candidate is
large against its neighbours (``enrich``); here it must also reach the trailing quantile of the
symbol's level notionals and have stood at its price. Bounded: two small tables per symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, ldexp

import msgspec

from data_pipeline.enrich import BookShape
from microstructure.book import DepthProfile, Wall

_MINUTE_MS = 60_000
_STEPS = 4  # bins per power of two
_REMEMBERED = 50_000  # levels, about a day of minutes: from here on the past counts half


class WallSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate must be to count as a wall.

    Attributes:
        stands_s: least time it has stood at its price in the last snapshots of windows, s.
        quantile: of the symbol's level notionals, sampled once a minute, that it must reach.
        quantile_levels: levels needed before the quantile counts.
    """

    stands_s: float = 3.0
    quantile: float = 0.995
    quantile_levels: int = 1_000


class Walls(msgspec.Struct, frozen=True, gc=False):
    """The nearest standing wall of each side, and for how long it has stood (s)."""

    bid: Wall | None = None
    bid_age_s: float | None = None
    ask: Wall | None = None
    ask_age_s: float | None = None


NO_WALLS = Walls()


class LevelSizes:
    """Counts of level notionals by quarters of a power of two, the distant past fading."""

    __slots__ = ("_counts", "_total", "bound")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0
        self.bound = 0.0  # lower edge of the quantile's bin; 0 while warming up

    def add(self, notionals: Sequence[float], settings: WallSettings) -> None:
        """Take levels in and move the bound."""
        counts = self._counts
        for notional in notionals:
            mantissa, exponent = frexp(notional)
            place = exponent * _STEPS + int((mantissa - 0.5) * 2 * _STEPS)
            counts[place] = counts.get(place, 0) + 1
        self._total += len(notionals)
        if self._total >= _REMEMBERED:
            self._counts = {place: count // 2 for place, count in counts.items() if count > 1}
            self._total = sum(self._counts.values())
        if self._total >= settings.quantile_levels:
            self.bound = self._lower_edge((1.0 - settings.quantile) * self._total)

    def _lower_edge(self, above: float) -> float:
        place, held = 0, 0
        for place in sorted(self._counts, reverse=True):
            held += self._counts[place]
            if held > above:
                break
        exponent, step = divmod(place, _STEPS)
        return ldexp(0.5 + step / (2 * _STEPS), exponent)


class WallTracker:
    """Follows the candidates of one symbol from window to window."""

    __slots__ = ("_asks", "_bids", "_minute", "_settings", "_sizes")

    def __init__(self, settings: WallSettings) -> None:
        self._settings = settings
        self._sizes = LevelSizes()
        self._minute = -1  # of the last sample
        self._bids: dict[float, int] = {}  # price of a candidate → first seen at
        self._asks: dict[float, int] = {}

    def observe(self, shape: BookShape | None, end_ms: int) -> Walls:
        """Take a window's last snapshot; windows come in time order."""
        if shape is None:
            self._bids, self._asks = {}, {}
            return NO_WALLS
        bound = self._sizes.bound
        self._bids = _seen(self._bids, shape.bid_walls, bound, end_ms)
        self._asks = _seen(self._asks, shape.ask_walls, bound, end_ms)
        if not (self._bids or self._asks):
            return NO_WALLS
        bid, bid_age_s = self._nearest(shape.bid_walls, self._bids, end_ms)
        ask, ask_age_s = self._nearest(shape.ask_walls, self._asks, end_ms)
        return Walls(bid, bid_age_s, ask, ask_age_s)

    def learn(self, shape: BookShape | None, end_ms: int) -> None:
        """Take the levels of the snapshot observed last into the quantile, once a minute."""
        if shape is not None and end_ms // _MINUTE_MS != self._minute:
            self._minute = end_ms // _MINUTE_MS
            levels = _behind_touch(shape.bids, shape) + _behind_touch(shape.asks, shape)
            self._sizes.add(levels, self._settings)

    def _nearest(
        self, walls: Sequence[Wall], seen: dict[float, int], end_ms: int
    ) -> tuple[Wall | None, float | None]:
        for wall in walls:
            since_ms = seen.get(wall.price)
            if since_ms is not None and end_ms - since_ms >= 1000.0 * self._settings.stands_s:
                return wall, (end_ms - since_ms) / 1000.0
        return None, None


def _seen(
    known: dict[float, int], walls: Sequence[Wall], bound: float, end_ms: int
) -> dict[float, int]:
    """When each of these walls was first seen; the others are forgotten."""
    if not walls:
        return {}
    return {
        wall.price: known.get(wall.price, end_ms)
        for wall in walls
        if wall.price * wall.size >= bound
    }


def _behind_touch(side: DepthProfile, shape: BookShape) -> list[float]:
    """Notionals of the levels that could be walls."""
    within_bps = shape.wall_within_bps
    pairs = zip(side.distances_bps[1:], side.notionals[1:], strict=True)
    return [notional for distance, notional in pairs if distance <= within_bps]
