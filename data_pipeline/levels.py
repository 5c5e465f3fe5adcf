"""Key levels of a completed day: classic pivots and the volume profile.

A day's high, low, close and its volume by price → prices to watch. Sources: the floor traders'
pivots; Steidlmayer's market profile as published by the CBOT (value area grown row by row).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, floor, log

import msgspec

from domain.context import KeyLevels

VALUE_AREA_RATIO = 0.7
MAX_PROFILE_BINS = 256


class Pivots(msgspec.Struct, frozen=True):
    """Classic pivot points."""

    pivot: float
    r1: float
    r2: float
    r3: float
    s1: float
    s2: float
    s3: float


class ValueArea(msgspec.Struct, frozen=True):
    """Where a day traded: bin indices of the point of control and of the value area's ends."""

    poc: int
    high: int
    low: int
    covered_ratio: float


def classic_pivots(high: float, low: float, close: float) -> Pivots:
    """Pivots of a completed day.

    ``P = (H + L + C) / 3``, ``R1, S1 = 2P - L, 2P - H``, ``R2, S2 = P ± (H - L)``,
    ``R3, S3 = H + 2(P - L), L - 2(H - P)``.
    """
    pivot = (high + low + close) / 3.0
    return Pivots(
        pivot=pivot,
        r1=2.0 * pivot - low,
        r2=pivot + (high - low),
        r3=high + 2.0 * (pivot - low),
        s1=2.0 * pivot - high,
        s2=pivot - (high - low),
        s3=low - 2.0 * (high - pivot),
    )


def value_area(volumes: Sequence[float], ratio: float = VALUE_AREA_RATIO) -> ValueArea | None:
    """Grow the value area from the point of control by the larger neighbour (a tie goes up).

    Args:
        volumes: Volume per price bin, lowest price first.
        ratio: Share of the volume the area must hold.

    Returns:
        ``None`` without volume. A tie for the point of control goes to the bin nearest to the
        centre, then to the lower one.
    """
    total = sum(volumes)
    if not volumes or total <= 0.0:
        return None
    largest, centre = max(volumes), (len(volumes) - 1) / 2.0
    candidates = [index for index, volume in enumerate(volumes) if volume == largest]
    poc = min(candidates, key=lambda index: (abs(index - centre), index))
    low = high = poc
    covered = volumes[poc]
    while covered < ratio * total and (low > 0 or high < len(volumes) - 1):
        above = volumes[high + 1] if high < len(volumes) - 1 else -1.0
        below = volumes[low - 1] if low > 0 else -1.0
        if above >= below:
            high += 1
            covered += above
        else:
            low -= 1
            covered += below
    return ValueArea(poc, high, low, covered / total)


class VolumeProfile:
    """Volume by price of one day on a logarithmic grid, in bounded memory.

    The grid is relative (``bin_bps``, default 5 bps: about the fiftieth part of a usual daily true
    range) because the day's own range is unknown while it runs. A day wider than
    ``MAX_PROFILE_BINS`` used bins doubles the bin width. Bins without volume are no rows.
    """

    __slots__ = ("_volumes", "_width")

    def __init__(self, bin_bps: float = 5.0) -> None:
        self._width = bin_bps * 1e-4  # in log price
        self._volumes: dict[int, float] = {}

    def add(self, price: float, volume: float) -> None:
        """Add base ``volume`` traded at (an average of) ``price``."""
        if volume <= 0.0:
            return
        index = floor(log(price) / self._width)
        volumes = self._volumes
        volumes[index] = volumes.get(index, 0.0) + volume
        if len(volumes) > MAX_PROFILE_BINS:
            self._coarsen()

    def merge(self, other: VolumeProfile) -> None:
        """Add another profile's volume, at the centres of its bins."""
        for index, volume in other._volumes.items():
            self.add(exp((index + 0.5) * other._width), volume)

    def levels(self) -> tuple[float, float, float] | None:
        """Prices of the point of control, the value area's high and its low, at bin centres."""
        indices = sorted(self._volumes)
        area = value_area([self._volumes[index] for index in indices])
        if area is None:
            return None
        return (
            exp((indices[area.poc] + 0.5) * self._width),
            exp((indices[area.high] + 0.5) * self._width),
            exp((indices[area.low] + 0.5) * self._width),
        )

    def _coarsen(self) -> None:
        self._width *= 2.0
        merged: dict[int, float] = {}
        for index, volume in self._volumes.items():
            merged[index // 2] = merged.get(index // 2, 0.0) + volume
        self._volumes = merged


def key_levels(
    day_start_ms: int, high: float, low: float, close: float, profile: VolumeProfile
) -> KeyLevels:
    """Everything worth watching from one completed day."""
    pivots = classic_pivots(high, low, close)
    area = profile.levels()
    return KeyLevels(
        day_start_ms=day_start_ms,
        high=high,
        low=low,
        close=close,
        poc=area[0] if area else None,
        vah=area[1] if area else None,
        val=area[2] if area else None,
        **msgspec.structs.asdict(pivots),
    )
