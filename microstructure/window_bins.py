"""What a model's features need of one window of one symbol: sums and last values, one row each.

``TRADE_DTYPE`` rows and a ``BookTape`` → ``BINS_DTYPE`` rows. A row depends on its window's trades and
snapshots alone: order flow between the last snapshot of one window and the first of the next belongs
to neither. A whole day at once gives the same bits as window by window.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from microstructure.book import BPS
from microstructure.book_shape import (
    asymmetry,
    book_slopes,
    cumulated,
    depth_within,
    distances_bps,
    imbalance,
    queue_imbalances,
    weighted_mids,
)
from microstructure.book_tape import BookTape
from microstructure.ofi import level_events
from microstructure.trade_rows import prices_and_quantities

OFI_LEVELS: Final = 10
IMBALANCE_LEVELS: Final = (1, 5, 10, 20)
BANDS_BPS: Final = (0.2, 1.0, 5.0)
WHALE_NOTIONAL: Final = 100_000.0
_CHUNK_WINDOWS: Final = 512
_SECOND_MS: Final = 1000

BINS_DTYPE: Final = np.dtype(
    [
        ("start_ms", np.int64),
        ("trades", np.int64),
        ("buy_base", np.float64),
        ("sell_base", np.float64),
        ("buy_quote", np.float64),
        ("sell_quote", np.float64),
        ("whale_quote", np.float64),  # of trades of at least WHALE_NOTIONAL
        ("last_price", np.float64),  # NaN without a trade
        ("snapshots", np.int64),  # two-sided ones
        ("ofi_events", np.int64),
        ("ofi", np.float64),  # level 1, base units
        ("mlofi", np.float64, (OFI_LEVELS,)),  # NaN: no event of that level
        ("touch_depth", np.float64),  # Σ (q_b + q_a) / 2 of the best level, over snapshots
        ("depth", np.float64),  # the same over the OFI levels …
        ("depth_cells", np.int64),  # … and how many there were
        ("imbalance_sum", np.float64),  # of the best level, over snapshots
        ("variance", np.float64),  # Σ of squared 1-second log returns of the mid
        ("returns", np.int64),  # how many returns that were
        ("last_ms", np.int64),  # of the last two-sided snapshot, -1 without one; NaN below then
        ("bid_price", np.float64),
        ("ask_price", np.float64),
        ("mid_price", np.float64),
        ("spread_bps", np.float64),
        ("microprice_offset_bps", np.float64),
        ("queue_imbalance", np.float64, (len(IMBALANCE_LEVELS),)),
        ("bid_slope", np.float64),  # share of the side's depth per bps
        ("ask_slope", np.float64),
        ("slope_asymmetry", np.float64),
        ("depth_asymmetry", np.float64, (len(BANDS_BPS),)),
    ]
)
_FIRST_OF_BOOK: Final = "bid_price"
_NAMES: Final = BINS_DTYPE.names or ()
_OF_LAST_BOOK: Final = _NAMES[_NAMES.index(_FIRST_OF_BOOK) :]


def window_bins(trades: np.ndarray, books: BookTape, start_ms: int, window_ms: int) -> np.void:
    """The row of one window; trades and snapshots outside it are left out.

    Args:
        trades: ``TRADE_DTYPE`` rows of one symbol, ascending by id.
        books: Snapshots of the symbol.
        start_ms: Start of the window.
        window_ms: Its length.
    """
    row: np.void = day_bins(trades, books, np.array([start_ms]), window_ms)[0]
    return row


def day_bins(
    trades: np.ndarray, books: BookTape, starts_ms: npt.NDArray[np.int64], window_ms: int
) -> np.ndarray:
    """The rows of many windows; the same bits as ``window_bins`` gives for each.

    Args:
        trades: ``TRADE_DTYPE`` rows of one symbol, ascending by id.
        books: Snapshots of the symbol.
        starts_ms: int64[n], ascending, the windows do not overlap.
        window_ms: Their length.

    Returns:
        ``BINS_DTYPE`` rows, n of them.

    Raises:
        ValueError: Windows overlap.
    """
    starts_ms = np.asarray(starts_ms, dtype=np.int64)
    if np.any(starts_ms[1:] - starts_ms[:-1] < window_ms):
        raise ValueError("windows must ascend and not overlap")
    bins = np.zeros(len(starts_ms), BINS_DTYPE)
    bins["start_ms"] = starts_ms
    _add_trades(bins, trades, window_ms)
    for first in range(0, len(bins), _CHUNK_WINDOWS):
        chunk = bins[first : first + _CHUNK_WINDOWS]
        end_ms = int(chunk["start_ms"][-1]) + window_ms
        _add_books(chunk, books.between(int(chunk["start_ms"][0]), end_ms), window_ms)
    return bins


def _window_of(
    times: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], window_ms: int
) -> npt.NDArray[np.intp]:
    """The window each time lies in, -1 for none."""
    if not len(starts):
        return np.full(len(times), -1, np.intp)
    window = np.searchsorted(starts, times, side="right") - 1
    inside = (window >= 0) & (times - starts[window] < window_ms)
    return np.where(inside, window, -1)


def _sums(
    window: npt.NDArray[np.intp], values: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    """Sum per window, one value after the other: no grouping can change a bit of it."""
    return np.bincount(window, weights=values, minlength=count)


def _add_trades(bins: np.ndarray, trades: np.ndarray, window_ms: int) -> None:
    window = _window_of(trades["transact_time_ms"], bins["start_ms"], window_ms)
    inside = window >= 0
    if not inside.all():
        trades, window = trades[inside], window[inside]
    count = len(bins)
    price, quantity = prices_and_quantities(trades)
    notional = price * quantity
    is_sell = trades["is_buyer_maker"]
    bins["trades"] = np.bincount(window, minlength=count)
    for side, of_side in (("buy", ~is_sell), ("sell", is_sell)):
        bins[f"{side}_base"] = _sums(window, quantity * of_side, count)
        bins[f"{side}_quote"] = _sums(window, notional * of_side, count)
    bins["whale_quote"] = _sums(window, notional * (notional >= WHALE_NOTIONAL), count)
    bins["last_price"] = np.nan
    bins["last_price"][window] = price  # of equal indices the last one stays


def _add_books(bins: np.ndarray, tape: BookTape, window_ms: int) -> None:
    window = _window_of(tape.time_ms, bins["start_ms"], window_ms)
    bins["mlofi"] = np.nan
    for name in _OF_LAST_BOOK:
        bins[name] = np.nan
    bins["last_ms"] = -1
    _add_flow(bins, tape, window)
    usable = np.flatnonzero((window >= 0) & tape.is_two_sided)
    window = window[usable]
    bins["snapshots"] = np.bincount(window, minlength=len(bins))
    _add_depth(bins, tape, usable, window)
    _add_variance(bins, tape, usable, window)
    last = np.full(len(bins), -1, np.intp)
    last[window] = usable
    has_book = last >= 0
    bins["last_ms"][has_book] = tape.time_ms[last[has_book]]
    for name, values in _shape(tape, last[has_book]).items():
        bins[name][has_book] = values


def _add_flow(bins: np.ndarray, tape: BookTape, window: npt.NDArray[np.intp]) -> None:
    count = len(bins)
    events = level_events(tape, OFI_LEVELS)
    events[1:][window[1:] != window[:-1]] = np.nan
    events[window < 0] = np.nan
    for level in range(events.shape[1]):
        of_level = np.flatnonzero(np.isfinite(events[:, level]))
        sums = _sums(window[of_level], events[of_level, level], count)
        number = np.bincount(window[of_level], minlength=count)
        bins["mlofi"][:, level] = np.where(number > 0, sums, np.nan)
        if level == 0:
            bins["ofi"], bins["ofi_events"] = sums, number


def _add_depth(
    bins: np.ndarray, tape: BookTape, usable: npt.NDArray[np.intp], window: npt.NDArray[np.intp]
) -> None:
    count = len(bins)
    bid, ask = tape.bid_size[usable, :OFI_LEVELS], tape.ask_size[usable, :OFI_LEVELS]
    sizes = (bid + ask) / 2.0
    bins["touch_depth"] = _sums(window, sizes[:, 0], count)
    bins["depth"] = _sums(window, cumulated(sizes)[:, -1], count)
    cells = np.isfinite(sizes).sum(axis=1).astype(np.float64)
    bins["depth_cells"] = _sums(window, cells, count)
    bins["imbalance_sum"] = _sums(window, imbalance(bid[:, 0], ask[:, 0]), count)


def _add_variance(
    bins: np.ndarray, tape: BookTape, usable: npt.NDArray[np.intp], window: npt.NDArray[np.intp]
) -> None:
    second = tape.time_ms[usable] // _SECOND_MS
    is_last = np.ones(len(usable), np.bool_)
    is_last[:-1] = (second[1:] != second[:-1]) | (window[1:] != window[:-1])
    sampled, of = usable[is_last], window[is_last]
    chain = np.cumsum(tape.is_break)[sampled]
    joined = (of[1:] == of[:-1]) & (chain[1:] == chain[:-1])
    mid = (tape.bid_price[sampled, 0] + tape.ask_price[sampled, 0]) / 2.0
    moves = np.log(mid[1:] / mid[:-1])[joined]
    bins["variance"] = _sums(of[1:][joined], moves * moves, len(bins))
    bins["returns"] = np.bincount(of[1:][joined], minlength=len(bins))


def _shape(tape: BookTape, rows: npt.NDArray[np.intp]) -> dict[str, npt.NDArray[np.float64]]:
    """Measures of single snapshots, by the names of their columns."""
    bid, ask = tape.bid_price[rows], tape.ask_price[rows]
    bid_size, ask_size = tape.bid_size[rows], tape.ask_size[rows]
    best_bid, best_ask = bid[:, 0], ask[:, 0]
    mid = (best_bid + best_ask) / 2.0
    micro = weighted_mids(best_bid, bid_size[:, 0], best_ask, ask_size[:, 0])
    bid_distance, ask_distance = distances_bps(bid, mid), distances_bps(ask, mid)
    bid_slope = book_slopes(bid_distance, bid_size)
    ask_slope = book_slopes(ask_distance, ask_size)
    bands = [
        asymmetry(
            depth_within(bid, bid_size, bid_distance, band),
            depth_within(ask, ask_size, ask_distance, band),
        )
        for band in BANDS_BPS
    ]
    imbalances = [queue_imbalances(bid_size, ask_size, levels) for levels in IMBALANCE_LEVELS]
    return {
        "bid_price": best_bid,
        "ask_price": best_ask,
        "mid_price": mid,
        "spread_bps": BPS * (best_ask - best_bid) / mid,
        "microprice_offset_bps": BPS * (micro - mid) / mid,
        "queue_imbalance": np.stack(imbalances, axis=1),
        "bid_slope": bid_slope / cumulated(bid_size)[:, -1],
        "ask_slope": ask_slope / cumulated(ask_size)[:, -1],
        "slope_asymmetry": asymmetry(bid_slope, ask_slope),
        "depth_asymmetry": np.stack(bands, axis=1),
    }
