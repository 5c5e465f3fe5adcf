"""Gaps and outliers of a series, piece by piece: what came before a piece is remembered.

Consumes columns in order → produces the columns with ``gap`` and ``outlier`` marks. A hole is filled
only if asked, with flat candles, each of them marked. Nothing real is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np

from domain.intervals import INTERVAL_MS, open_times_ms

type Columns = dict[str, np.ndarray]

_MIN_VALUES: Final = 20  # fewer do not tell what is usual
_MIN_SPREAD: Final = 1e-12  # below, rounding is all there is
_PRICES: Final = ("open", "high", "low", "close", "price")
_SIZES: Final = ("volume", "quote_volume", "trade_count", "taker_buy_volume", "quantity")
_THRESHOLDS: Final = {"iqr": 3.0, "zscore": 4.0, "rolling": 5.0}


class GapSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
    fill: Put flat candles into holes.
    max_fill: Leave holes with more missing candles than this alone; ``None``: fill all.
    min_missing: Fewer missing rows than this are no gap.
    """

    fill: bool = False
    max_fill: int | None = None
    min_missing: int = 1


class OutlierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
    method: ``iqr`` and ``zscore`` compare with the whole piece (and, of a stream, with up to
        ``window`` rows before it), ``rolling`` with the ``window`` rows before each row.
    threshold: Quartile ranges beyond the quartiles (``iqr``), or standard deviations from the mean;
        ``None``: 3, 4 (``zscore``) or 5 (``rolling``).
    window: Rows.
    column: Prices are judged by their log return, sizes by the logarithm of 1 + size; ``None``: the
        close, or the price of ticks.
    """

    method: Literal["iqr", "zscore", "rolling"] = "rolling"
    threshold: float | None = None
    window: int = 200
    column: str | None = None


class Gap(msgspec.Struct, frozen=True):
    """A hole: the first missing key, the first one after it, and how many are missing.

    Keys are open times (ms), of ticks ids.
    """

    start: int
    end: int
    missing: int


class Checked(msgspec.Struct, frozen=True):
    """A piece with its marks (``gap`` and ``outlier`` are columns) and the holes found in it."""

    columns: Columns
    gaps: list[Gap]


def gap_settings(given: Mapping[str, Any] | None, *, interval: str | None) -> GapSettings:
    """Read ``gap_params``.

    Args:
        given: As the user wrote it.
        interval: Of the candles; ``None``: ticks, which cannot be filled.

    Raises:
        ValueError: An unknown name or an unusable value.
    """
    found = _read(given, GapSettings, "gap_params")
    if found.min_missing < 1 or (found.max_fill is not None and found.max_fill < 1):
        raise ValueError("gap_params: min_missing and max_fill must be at least 1")
    if found.fill and interval is None:
        raise ValueError("gap_params: ticks cannot be filled")
    return found


def outlier_settings(given: Mapping[str, Any] | None, *, interval: str | None) -> OutlierSettings:
    """Read ``outlier_params``; see ``gap_settings``."""
    found = _read(given, OutlierSettings, "outlier_params")
    names = ("price", "quantity") if interval is None else (*_PRICES[:4], *_SIZES[:4])
    if found.column not in {None, *names}:
        raise ValueError(f"outlier_params: column must be one of {', '.join(names)}")
    if found.window < _MIN_VALUES:
        raise ValueError(f"outlier_params: window must be at least {_MIN_VALUES}")
    if found.threshold is not None and not 0 < found.threshold < 1e9:
        raise ValueError("outlier_params: threshold must be above 0")
    return found


def _read[T](given: Mapping[str, Any] | None, kind: type[T], name: str) -> T:
    try:
        return msgspec.convert(dict(given or {}), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from None


class QualityCheck:
    """Marks one series.

    Args:
        interval: Of the candles; ``None``: ticks.
        gaps: See ``GapSettings``.
        outliers: See ``OutlierSettings``.
        expected: The key the first row should have; ``None``: any.
    """

    def __init__(
        self,
        interval: str | None,
        gaps: GapSettings,
        outliers: OutlierSettings,
        *,
        expected: int | None = None,
    ) -> None:
        self._interval = interval
        self._gaps = gaps
        self._outliers = outliers
        self._expected = expected
        self._column = outliers.column or ("price" if interval is None else "close")
        self._last_value: float | None = None  # of ``column``
        self._last_close: float | None = None
        self._usual = np.empty(0)  # what the next piece is compared with

    @property
    def key_column(self) -> str:
        """What tells rows apart and in which order they come."""
        return "agg_trade_id" if self._interval is None else "open_time_ms"

    def check(self, columns: Columns) -> Checked:
        """Mark the next piece; its keys are above all before, ascending and unique."""
        keys = columns[self.key_column]
        if not len(keys):
            none = np.empty(0, np.bool_)
            return Checked({**columns, "gap": none, "outlier": none}, [])
        after = self.after(keys)
        expected = keys.copy()
        expected[1:] = after[:-1]
        if self._expected is not None:
            expected[0] = min(self._expected, int(keys[0]))
        missing = self._missing(expected, keys)
        is_gap = missing >= self._gaps.min_missing
        at = np.flatnonzero(is_gap)
        found = [Gap(int(expected[i]), int(keys[i]), int(missing[i])) for i in at.tolist()]
        marked = {**columns, "gap": is_gap, "outlier": self._judge(columns[self._column])}
        if self._gaps.fill and found:
            marked = self._filled(marked, at, found)
        self._expected = int(after[-1])
        if self._interval is not None:
            self._last_close = float(columns["close"][-1])
        return Checked(marked, found)

    def ended(self, checked: Checked, stop: int) -> Checked:
        """Add the hole, if there is one, between the last row and the key that should follow it."""
        if self._expected is None or self._expected >= stop:
            return checked
        ends = np.array([self._expected]), np.array([stop])
        missing = int(self._missing(*ends)[0])
        if missing < self._gaps.min_missing:
            return checked
        return Checked(checked.columns, [*checked.gaps, Gap(self._expected, stop, missing)])

    def after(self, keys: np.ndarray) -> np.ndarray:
        """The key that follows each one."""
        if self._interval is None:
            return keys + 1
        following: np.ndarray = keys + INTERVAL_MS[self._interval]
        if self._interval == "1M":
            following = open_times_ms(keys + 32 * INTERVAL_MS["1d"], "1M")
        return following

    def _missing(self, expected: np.ndarray, keys: np.ndarray) -> np.ndarray:
        between: np.ndarray = keys - expected
        if self._interval == "1M":
            between = _months(keys) - _months(expected)
        elif self._interval is not None:
            between = between // INTERVAL_MS[self._interval]
        return between

    # --- holes ---

    def _filled(self, columns: Columns, at: np.ndarray, gaps: list[Gap]) -> Columns:
        """Flat candles at the last close in every hole that may be filled."""
        limit = self._gaps.max_fill
        places: list[int] = []
        opens: list[int] = []
        closes: list[float] = []
        is_gap = columns["gap"].copy()
        for place, gap in zip(at.tolist(), gaps, strict=True):
            before = self._last_close if place == 0 else float(columns["close"][place - 1])
            if before is None or (limit is not None and gap.missing > limit):
                continue
            is_gap[place] = False  # the hole is in the rows before it now
            inside = self._opens(gap)
            places += [place] * len(inside)
            opens += inside
            closes += [before] * len(inside)
        fresh: dict[str, Any] = {"gap": True, "outlier": False, "open_time_ms": opens}
        fresh["close_time_ms"] = self.after(np.array(opens, np.int64)) - 1
        fresh |= dict.fromkeys(("open", "high", "low", "close"), closes)
        return {
            name: np.insert(is_gap if name == "gap" else values, places, fresh.get(name, 0))
            for name, values in columns.items()
        }

    def _opens(self, gap: Gap) -> list[int]:
        if self._interval == "1M":
            days = np.arange(gap.start, gap.end, INTERVAL_MS["1d"], dtype=np.int64)
            return sorted(set(open_times_ms(days, "1M").tolist()))
        return list(range(gap.start, gap.end, INTERVAL_MS[self._interval or "1m"]))

    # --- outliers ---

    def _judge(self, values: np.ndarray) -> np.ndarray:
        """Which rows are outliers; bool[n]."""
        measured = self._measured(values)
        settings = self._outliers
        threshold = settings.threshold or _THRESHOLDS[settings.method]
        known = np.concatenate([self._usual, measured])
        if settings.method == "rolling":
            flags = _far_from_before(known, settings.window, threshold)
        elif settings.method == "zscore":
            flags = _far_from_mean(known, threshold)
        else:
            flags = _outside_quartiles(known, threshold)
        self._usual = known[-settings.window :]
        return flags[len(known) - len(values) :]

    def _measured(self, values: np.ndarray) -> np.ndarray:
        """Log returns of prices (NaN for the very first), logarithms of sizes; float64[n]."""
        if self._column in _SIZES:
            return np.log1p(values.astype(np.float64))
        before = np.nan if self._last_value is None else self._last_value
        self._last_value = float(values[-1])
        with np.errstate(all="ignore"):
            returns: np.ndarray = np.diff(np.log(values), prepend=np.log(before))
        return returns


def _months(opens_ms: np.ndarray) -> np.ndarray:
    """Months since the epoch."""
    months: np.ndarray = opens_ms.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    return months


def _far_from_before(values: np.ndarray, window: int, threshold: float) -> np.ndarray:
    """Deviations from the mean of the ``window`` values before each, in their standard deviations."""
    import pandas as pd  # noqa: PLC0415 - only the connector's users need it

    rolling = pd.Series(values).rolling(window, min_periods=_MIN_VALUES)
    mean = rolling.mean().shift(1).to_numpy()
    spread = rolling.std().shift(1).to_numpy()
    return _beyond(np.abs(values - mean), spread, threshold)


def _far_from_mean(values: np.ndarray, threshold: float) -> np.ndarray:
    known = values[np.isfinite(values)]
    if len(known) < _MIN_VALUES:
        return np.zeros(len(values), np.bool_)
    return _beyond(np.abs(values - known.mean()), np.float64(known.std()), threshold)


def _outside_quartiles(values: np.ndarray, threshold: float) -> np.ndarray:
    """Tukey's fences: https://en.wikipedia.org/wiki/Interquartile_range#Outliers."""
    known = values[np.isfinite(values)]
    if len(known) < _MIN_VALUES:
        return np.zeros(len(values), np.bool_)
    low, high = np.quantile(known, (0.25, 0.75))
    return _beyond(np.maximum(low - values, values - high), high - low, threshold)


def _beyond(distance: np.ndarray, spread: np.ndarray | np.float64, threshold: float) -> np.ndarray:
    """NaN is never beyond, and without a spread nothing is."""
    with np.errstate(invalid="ignore"):
        flags: np.ndarray = (distance > threshold * spread) & (spread > _MIN_SPREAD)
    return flags
