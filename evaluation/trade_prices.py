"""Scores of signals by recorded trades, where the lake has them.

Consumes outcomes and the trades of one symbol after the other, a few hours at a time and only around
days with signals; produces the outcomes with exact entries and exits, and moves at any moment of those
days: base rates must come from the prices that the signals are judged by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from evaluation.forward_returns import Outcomes, PricedBy, Status
from evaluation.reference import MarketSamples
from evaluation.trade_fills import MOST_QUIET_MS, Fills, Moves, Trades
from lake.columns import numpy_of
from lake.historical_files import months_of
from lake.paths import DAY_MS, LakePaths
from lake.sequence import Wanted, stored_pieces, woven
from lake.stream_files import stream_dates

_TRADE_STEPS: Final = 1 << 20
"""Beyond any horizon in windows or bars: one priced by trades is a pair of its own."""
_MOST_ROWS: Final = 1_000_000
"""Of a day that is read at once; a day of more is read in parts."""
_PART_MS: Final = 6 * 3_600_000
_AROUND_MS: Final = 10 * MOST_QUIET_MS
"""How far from a day's signals trades are looked for that prove their neighbours."""
_SAMPLE_GRID_MS: Final = 5_000
_COLUMNS: Final = ("agg_trade_id", "transact_time_ms", "price")


class TradePrices:
    """Reads the trades of a data folder.

    Args:
        paths: The data folder.
    """

    def __init__(self, paths: LakePaths) -> None:
        self._paths = paths
        self._has_recordings = bool(stream_dates(paths, "trades"))

    def may_have(self, symbol: str) -> bool:
        """False where there is no file to look into."""
        return self._has_recordings or bool(months_of(self._paths, symbol, "aggTrades"))

    def moves(self, symbol: str, ready_ms: np.ndarray, horizon_ms: np.ndarray) -> Moves | None:
        """What a symbol did from each moment on; ``None`` where the lake has no trade around them.

        Args:
            symbol: Upper case.
            ready_ms: int64[n], in any order.
            horizon_ms: int64[n].

        Raises:
            StorageError: The system refused to read a file.
        """
        order = np.argsort(ready_ms, kind="stable")
        fills = Fills(ready_ms[order], horizon_ms[order])
        for trades in self._around(symbol, ready_ms, ready_ms + horizon_ms):
            fills.feed(trades)
        if not fills.has_seen_trades:
            return None
        return fills.moves.take(np.argsort(order, kind="stable"))

    def _around(self, symbol: str, first_ms: np.ndarray, last_ms: np.ndarray) -> Iterator[Trades]:
        """The trades that moments need, in order; a busy day in parts."""
        length_ms = _PART_MS
        for from_ms, until_ms in _needed(first_ms, last_ms):
            start_ms = from_ms
            while start_ms < until_ms:
                end_ms = min(start_ms - start_ms % length_ms + length_ms, until_ms)
                trades = self._read(symbol, start_ms, end_ms)
                yield trades
                is_busy = len(trades) * DAY_MS > _MOST_ROWS * (end_ms - start_ms)
                length_ms = _PART_MS if is_busy else DAY_MS
                start_ms = end_ms

    def _read(self, symbol: str, start_ms: int, end_ms: int) -> Trades:
        wanted = Wanted.of("trades", symbol, start_ms, end_ms, _COLUMNS)
        table = woven(wanted, stored_pieces(self._paths, wanted))
        return Trades(*(numpy_of(table.column(name)) for name in _COLUMNS))


def _needed(first_ms: np.ndarray, last_ms: np.ndarray) -> list[tuple[int, int]]:
    """Times to read, in order and apart, for moments that need trades from … to."""
    found: list[tuple[int, int]] = []
    day = first_ms // DAY_MS
    for one in np.unique(day).tolist():
        of_day = day == one
        start_ms = int(first_ms[of_day].min()) - _AROUND_MS
        until_ms = int(last_ms[of_day].max()) + MOST_QUIET_MS + _AROUND_MS
        if found and start_ms <= found[-1][1]:
            start_ms, reached_ms = found.pop()
            until_ms = max(until_ms, reached_ms)
        found.append((start_ms, until_ms))
    return found


def scored_by_trades(
    outcomes: Outcomes, trades: TradePrices, samples: MarketSamples, symbols: Sequence[str]
) -> Outcomes:
    """The outcomes, with those that trades can score scored by them.

    Args:
        outcomes: By other prices; their costs and baselines stay.
        trades: Where trades are.
        samples: Gets moves of the market.
        symbols: Names of the codes in ``outcomes``.

    Raises:
        StorageError: The system refused to read a file.
    """
    can_wait = outcomes.ready_ms - outcomes.window_end_ms < DAY_MS
    is_usable = (outcomes.status != Status.BAD_HORIZON) & can_wait
    pairs = np.stack([outcomes.symbol, outcomes.horizon_ms], axis=1)[is_usable]
    stride = samples.stride(DAY_MS // _SAMPLE_GRID_MS, len(np.unique(pairs, axis=0)))
    by_trades = outcomes.copied()
    for code in np.unique(outcomes.symbol[is_usable]).tolist():
        if trades.may_have(symbols[code]):
            rows = np.flatnonzero(is_usable & (outcomes.symbol == code))
            ready_ms, horizon_ms = outcomes.ready_ms[rows], outcomes.horizon_ms[rows]
            moments = _moments_of_days(ready_ms, horizon_ms, stride * _SAMPLE_GRID_MS)
            both = (np.append(ready_ms, moments[0]), np.append(horizon_ms, moments[1]))
            moves = trades.moves(symbols[code], *both)
            if moves is not None:
                _take_over(by_trades, rows, moves.take(slice(len(rows))))
                _add_samples(samples, code, moments[1], moves.take(slice(len(rows), None)))
    return by_trades


def _moments_of_days(
    ready_ms: np.ndarray, horizon_ms: np.ndarray, every_ms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Times all over the days that have signals, with each horizon that the day has."""
    days = np.unique(np.stack([ready_ms // DAY_MS * DAY_MS, horizon_ms], axis=1), axis=0)
    within = np.arange(0, DAY_MS, every_ms)
    at_ms: np.ndarray = (days[:, :1] + within).ravel()
    return at_ms, np.repeat(days[:, 1], len(within))


def _take_over(outcomes: Outcomes, rows: np.ndarray, moves: Moves) -> None:
    """Enter what became of these rows; reasons of other prices stay where there are any."""
    is_unknown = outcomes.status[rows] == Status.NO_WINDOWS
    outcomes.status[rows[is_unknown]] = moves.status[is_unknown]
    is_scored = moves.status == Status.SCORED
    scored = rows[is_scored]
    outcomes.status[scored] = Status.SCORED
    outcomes.priced_by[scored] = PricedBy.TRADES
    outcomes.entry_ms[scored] = outcomes.entry_end_ms[scored] = moves.entry_ms[is_scored]
    outcomes.steps[scored] = _steps_of(outcomes.horizon_ms[scored])
    outcomes.return_bps[scored] = moves.return_bps[is_scored]


def _add_samples(samples: MarketSamples, code: int, horizon_ms: np.ndarray, moves: Moves) -> None:
    is_scored = moves.status == Status.SCORED
    for horizon in np.unique(horizon_ms):
        chosen = is_scored & (horizon_ms == horizon)
        samples.add(code, int(_steps_of(horizon)), moves.return_bps[chosen])


def _steps_of(horizon_ms: np.ndarray) -> np.ndarray:
    steps: np.ndarray = _TRADE_STEPS + horizon_ms // 1_000
    return steps
