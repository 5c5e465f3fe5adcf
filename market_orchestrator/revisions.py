"""Stored rows + rebuilt windows → the rows to write again, with CVD carried through to midnight.

Pure. A rebuilt window replaces what depends on its own trades and keeps the rest (the book cannot be
rebuilt); every later window of the day is emitted again with its CVD moved. Sums are exact: a stored
double is the nearest one of a short decimal, which its shortest representation gives back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from domain.features import FeatureRow
from domain.flow import Origin

DAY_MS = 86_400_000

OWN_TRADE_COLUMNS = (
    "complete",
    "missing_trades",
    "trade_count",
    "fill_count",
    "first_agg_id",
    "last_agg_id",
    "open",
    "high",
    "low",
    "close",
    "vwap",
    "volume",
    "quote_volume",
    "buy_volume",
    "sell_volume",
    "delta",
    "net_flow_quote",
    "flow_imbalance",
    "whale_buy_volume",
    "whale_sell_volume",
    "whale_delta",
    "whale_count",
    "suspect_count",
    "realized_vol",
)
"""Columns that are a function of the window's own trades: these a rebuilt window replaces."""


class CvdState(msgspec.Struct, frozen=True):
    """Running CVD after a window (base units), since when, and whether nothing is missing in it."""

    window_start_ms: int
    cvd: Decimal
    anchor_ms: int
    complete: bool


def exact(value: float) -> Decimal:
    """The decimal whose nearest double is stored."""
    return Decimal(repr(value))


def state_after(row: FeatureRow) -> CvdState:
    """The CVD state a stored row leaves behind."""
    return CvdState(row.window_start_ms, exact(row.cvd), row.cvd_anchor_ms, row.cvd_complete)


def cascade(
    stored: Sequence[FeatureRow],
    rebuilt: Mapping[int, FeatureRow],
    before: CvdState | None,
) -> tuple[list[FeatureRow], CvdState | None]:
    """Merge rebuilt windows into one symbol's rows and carry the CVD on.

    Args:
        stored: the symbol's latest rows from the first rebuilt window on, by time.
        rebuilt: window start → row rebuilt from trades (its CVD columns are ignored).
        before: the state after the window before all of these; None at the start of a store.

    Returns:
        The rows that are new or differ from what is stored, and the state after the last window.
    """
    existing = {row.window_start_ms: row for row in stored}
    changed: list[FeatureRow] = []
    state = before
    for start_ms in sorted({*existing, *rebuilt}):
        old = existing.get(start_ms)
        row = _merged(old, rebuilt.get(start_ms))
        state = _advance(state, row)
        row = msgspec.structs.replace(
            row,
            cvd=float(state.cvd),
            cvd_anchor_ms=state.anchor_ms,
            cvd_complete=state.complete,
        )
        if old is None:
            changed.append(row)
        elif row != old:
            changed.append(
                msgspec.structs.replace(row, revision=old.revision + 1, origin=Origin.REVISED.value)
            )
    return changed, state


def _merged(old: FeatureRow | None, new: FeatureRow | None) -> FeatureRow:
    if new is None:
        assert old is not None  # noqa: S101 - one of the two is there by construction
        return old
    if old is None:
        return new
    if new.trade_count < old.trade_count and not new.complete:
        return old  # the source knows less than what was recorded
    columns = {name: getattr(new, name) for name in OWN_TRADE_COLUMNS}
    return msgspec.structs.replace(old, **columns)


def _advance(state: CvdState | None, row: FeatureRow) -> CvdState:
    start_ms = row.window_start_ms
    day_ms = start_ms - start_ms % DAY_MS
    duration_ms = row.window_end_ms - start_ms
    if state is None:
        anchor_ms, cvd, complete = start_ms, Decimal(0), True
    elif state.window_start_ms < day_ms:
        anchor_ms, cvd, complete = day_ms, Decimal(0), start_ms == day_ms
    else:
        anchor_ms, cvd, complete = state.anchor_ms, state.cvd, state.complete
        complete = complete and state.window_start_ms + duration_ms == start_ms
    return CvdState(start_ms, cvd + exact(row.delta), anchor_ms, complete and row.complete)
