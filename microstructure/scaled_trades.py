"""Trades of several windows as exact scaled integers, one scale per window. Pure.

Consumes ``TRADE_DTYPE`` rows grouped by window → produces mantissa columns whose sums of price
times quantity are proven not to overflow int64; where they would, trailing zeros are taken off
("60000.00000000"), and if that is not enough the columns hold Python integers.
"""

from __future__ import annotations

import functools
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

EXACT = Context(prec=2000, traps=[Inexact, InvalidOperation])
"""Sums and products never round here: a result that would need more digits raises."""

type Exact = NDArray[Any]  # int64, or object holding Python integers
type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]

_SAFE_TOTAL = 2.0**62
"""A float total below it proves that the int64 total of as many positive terms does not overflow."""

_POW10 = np.array([10.0**k if k <= 308 else np.inf for k in range(511)])
_POW10_INT = np.array([10**k for k in range(19)], dtype=np.int64)


class ScaledTrades(msgspec.Struct, frozen=True):
    """Trades of the windows that have any; per-window arrays are in the order of ``starts``.

    A price is ``price * 10**price_zeros / 10**price_decimals`` of its window, a quantity likewise.
    """

    starts: Ints  # first row of each window
    counts: Ints  # rows of each window, at least 1
    window: Ints  # per trade: its window
    is_sell: Mask  # the aggressor sold
    sign: NDArray[np.int8]  # 1, or -1 where the aggressor sold
    price: Exact
    quantity: Exact
    quote: Exact  # price * quantity
    notional: Floats  # per trade, quote units
    price_float: Floats  # per trade, quote units per base unit
    price_decimals: list[int]
    quantity_decimals: list[int]
    price_zeros: list[int]
    quantity_zeros: list[int]

    def quote_decimals(self) -> list[int]:
        """Decimals of ``quote``, per window."""
        parts = (self.price_decimals, self.quantity_decimals, self.price_zeros, self.quantity_zeros)
        return [p + q - pz - qz for p, q, pz, qz in zip(*parts, strict=True)]

    @property
    def is_wide(self) -> bool:
        """Whether int64 did not suffice and the exact columns hold Python integers."""
        return bool(self.quote.dtype == object)

    def quantity_divisor(self) -> Floats:
        """Divides quantities of each window into base units."""
        pairs = zip(self.quantity_decimals, self.quantity_zeros, strict=True)
        return _powers([decimals - zeros for decimals, zeros in pairs])

    def quote_divisor(self) -> Floats:
        """Divides ``quote`` sums of each window into quote units."""
        return _powers(self.quote_decimals())

    def price_units(self) -> list[Decimal]:
        """What one step of ``price`` is worth, per window; its exponent is the natural scale."""
        return [unit(*key) for key in zip(self.price_zeros, self.price_decimals, strict=True)]

    def quantity_units(self) -> list[Decimal]:
        """What one step of ``quantity`` is worth, per window."""
        return [unit(*key) for key in zip(self.quantity_zeros, self.quantity_decimals, strict=True)]


@functools.lru_cache(maxsize=4096)
def unit(zeros: int, decimals: int) -> Decimal:
    """``10**zeros / 10**decimals`` with exactly ``decimals`` decimal places."""
    return Decimal((0, (1, *([0] * zeros)), -decimals))


def scale_trades(rows: np.ndarray, starts: Ints, counts: Ints) -> ScaledTrades:
    """Brings each window's prices and quantities to the window's finest scale.

    Args:
        rows: ``TRADE_DTYPE``, the windows one after the other.
        starts: First row of each window, ascending, no window empty.
        counts: Rows of each window.

    Returns:
        The columns; int64 wherever each window's Σ price·quantity fits.
    """
    price, price_decimals = _one_scale(rows["price"], rows["price_decimals"], starts, counts)
    quantity, quantity_decimals = _one_scale(
        rows["quantity"], rows["quantity_decimals"], starts, counts
    )
    price_float = price.astype(np.float64)
    notional = quantity.astype(np.float64)
    notional *= price_float
    is_wide = object in (price.dtype, quantity.dtype)
    price_zeros = quantity_zeros = [0] * starts.size
    total = np.add.reduceat(notional, starts)
    if not is_wide and total.max() >= _SAFE_TOTAL:
        price, price_zeros = _without_zeros(price, price_decimals, starts, counts)
        quantity, quantity_zeros = _without_zeros(quantity, quantity_decimals, starts, counts)
        total /= _POW10[price_zeros] * _POW10[quantity_zeros]
        is_wide = bool(total.max() >= _SAFE_TOTAL)
    if is_wide:
        price, quantity = price.astype(object), quantity.astype(object)
    _divide(price_float, price_decimals, counts)
    _divide(
        notional, [p + q for p, q in zip(price_decimals, quantity_decimals, strict=True)], counts
    )
    is_sell = np.ascontiguousarray(rows["is_buyer_maker"])
    return ScaledTrades(
        starts=starts,
        counts=counts,
        window=_windows(counts, len(rows)),
        is_sell=is_sell,
        sign=1 - 2 * is_sell.view(np.int8),
        price=price,
        quantity=quantity,
        quote=price * quantity,
        notional=notional,
        price_float=price_float,
        price_decimals=price_decimals,
        quantity_decimals=quantity_decimals,
        price_zeros=price_zeros,
        quantity_zeros=quantity_zeros,
    )


def _windows(counts: Ints, size: int) -> Ints:
    if counts.size == 1:
        return np.zeros(size, dtype=np.int64)
    return np.repeat(np.arange(counts.size), counts)


def _one_scale(
    mantissa: np.ndarray, decimals: np.ndarray, starts: Ints, counts: Ints
) -> tuple[Exact, list[int]]:
    """The mantissas of each window at its largest number of decimals, and that number."""
    if (decimals == decimals[0]).all():
        return np.ascontiguousarray(mantissa), [int(decimals[0])] * starts.size
    finest = np.maximum.reduceat(decimals, starts)
    shift = np.repeat(finest, counts) - decimals
    scales: list[int] = finest.tolist()
    widest = int(shift.max())
    if widest == 0:
        return np.ascontiguousarray(mantissa), scales
    if (mantissa.astype(np.float64) * _POW10[shift]).max() < _SAFE_TOTAL and widest < 19:
        return mantissa * _POW10_INT[shift], scales
    return mantissa.astype(object) * np.array([10**k for k in shift.tolist()], dtype=object), scales


def _without_zeros(
    mantissa: Ints, decimals: list[int], starts: Ints, counts: Ints
) -> tuple[Ints, list[int]]:
    """The mantissas without the decimal places that are zero in all of their window, and how many."""
    zeros = []
    for divisor, places in zip(np.gcd.reduceat(mantissa, starts).tolist(), decimals, strict=True):
        count = 0
        while count < min(places, 18) and divisor % 10 ** (count + 1) == 0:
            count += 1
        zeros.append(count)
    return mantissa // np.repeat(_POW10_INT[zeros], counts), zeros


def _divide(values: Floats, decimals: list[int], counts: Ints) -> None:
    """Divides each window's values by its power of ten, in place."""
    if min(decimals) == max(decimals):
        values /= _POW10[decimals[0]]
    else:
        values /= np.repeat(_POW10[decimals], counts)


def _powers(decimals: list[int]) -> Floats:
    powers: Floats = _POW10[decimals]
    return powers
