"""One-minute bars of one symbol and month, rebuilt from its trades, beside the official ones. Pure.

Consumes trades, a stretch of whole minutes at a time, and the month's klines; produces which minutes
traded, and which bars differ. Sums are exact: sizes become integers, and each result is the nearest
double of its quotient, as the official number's text is.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

MINUTE_MS: Final = 60_000
_MOST_DECIMALS: Final = 12
_QUOTE_TOLERANCE: Final = 1e-8  # relative; the exchange rounds each quote volume
PRICES: Final = ("open", "high", "low", "close")
SUMS: Final = ("volume", "taker_buy_volume", "quote_volume")


class BarDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One column of one minute in which the rebuilt bar is not the official one."""

    open_time_ms: int
    column: str
    official: float
    rebuilt: float


class Trades(msgspec.Struct, frozen=True):
    """Columns of one stretch of trades in the order of their ids; arrays of one length."""

    ids: np.ndarray  # int64
    times_ms: np.ndarray  # int64
    prices: np.ndarray  # float64, nearest doubles
    quantities: np.ndarray  # float64
    fills: np.ndarray  # int64
    is_buyer_maker: np.ndarray  # bool


class MinuteBars:
    """The bars of ``[start_ms, end_ms)``, all empty at first.

    Attributes:
        columns: name → float64[minutes]; NaN in prices where nothing traded.
        trade_count: int64[minutes], fills as in klines.
    """

    def __init__(self, start_ms: int, end_ms: int) -> None:
        self.start_ms = start_ms
        self.minutes = (end_ms - start_ms) // MINUTE_MS
        self.columns = {name: np.full(self.minutes, np.nan) for name in PRICES}
        self.columns |= {name: np.zeros(self.minutes) for name in SUMS}
        self.trade_count = np.zeros(self.minutes, np.int64)

    def add(self, trades: Trades) -> None:
        """Trades of minutes no other call has given."""
        if not len(trades.ids):
            return
        minutes = (trades.times_ms - self.start_ms) // MINUTE_MS
        if (np.diff(minutes) < 0).any():  # times run back within the ids' order
            order = np.argsort(minutes, kind="stable")
            minutes = minutes[order]
            trades = Trades(*(column[order] for column in msgspec.structs.astuple(trades)))
        first = np.flatnonzero(np.diff(minutes, prepend=minutes[0] - 1))
        last = np.append(first[1:], len(minutes)) - 1
        at = minutes[first]
        self.columns["open"][at] = trades.prices[first]
        self.columns["close"][at] = trades.prices[last]
        self.columns["high"][at] = np.maximum.reduceat(trades.prices, first)
        self.columns["low"][at] = np.minimum.reduceat(trades.prices, first)
        self.columns["volume"][at] = exact_sums(trades.quantities, first)
        bought = np.where(trades.is_buyer_maker, 0.0, trades.quantities)
        self.columns["taker_buy_volume"][at] = exact_sums(bought, first)
        self.columns["quote_volume"][at] = np.add.reduceat(trades.prices * trades.quantities, first)
        self.trade_count[at] = np.add.reduceat(trades.fills, first)

    @property
    def has_trades(self) -> np.ndarray:
        """bool[minutes]."""
        found: np.ndarray = self.trade_count > 0
        return found

    def differences(
        self, official: dict[str, np.ndarray], among: np.ndarray
    ) -> list[BarDifference]:
        """Where a rebuilt bar is not the official one.

        Args:
            official: Kline columns and ``trade_count`` as arrays over the same minutes.
            among: bool[minutes], the ones to compare.
        """
        found = []
        for name in (*PRICES, *SUMS, "trade_count"):
            ours = self.trade_count if name == "trade_count" else self.columns[name]
            theirs = official[name]
            if name == "quote_volume":
                differs = np.abs(ours - theirs) > np.maximum(
                    np.abs(theirs) * _QUOTE_TOLERANCE, 1e-3
                )
            else:
                differs = ours != theirs
            if (
                name in PRICES
            ):  # a minute without trades has the price before it in klines, none here
                differs &= self.has_trades
            found += [
                BarDifference(
                    open_time_ms=self.start_ms + place * MINUTE_MS,
                    column=name,
                    official=float(theirs[place]),
                    rebuilt=float(ours[place]),
                )
                for place in np.flatnonzero(differs & among).tolist()
            ]
        return sorted(found, key=lambda difference: difference.open_time_ms)


def exact_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sums of the stretches that begin at ``first``: the nearest doubles of the exact decimal sums.

    Args:
        values: float64[n], nearest doubles of decimals with up to 12 places.
        first: int64[m], increasing, from 0.
    """
    for decimals in range(_MOST_DECIMALS + 1):
        scale = 10.0**decimals
        scaled = np.rint(values * scale)
        if (scaled / scale == values).all():
            sums: np.ndarray = np.add.reduceat(scaled.astype(np.int64), first) / scale
            return sums
    rounded: np.ndarray = np.add.reduceat(values, first)
    return rounded
