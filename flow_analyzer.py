"""Trade flow of closed windows: exact sums, running CVD, and rolling measures of each symbol.

Consumes a ``WindowBatch`` (all windows of one boundary) → produces one ``FlowMetrics`` per window.
Windows of a symbol come in time order; old windows that are rebuilt go through ``measure``, or an
analyzer of their own. Synchronous and pure but for the history it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec
import numpy as np

from domain.features import FeatureRow
from domain.flow import FlowMetrics, WindowBatch
from domain.market import NO_VALUE
from microstructure.flow_history import ArrivalBurst, BurstSettings, NetFlow
from microstructure.flow_settings import FlowSettings
from microstructure.rolling_sizes import (
    RollingThreshold,
    RoundLots,
    SizeDistribution,
    Threshold,
)
from microstructure.running_cvd import RunningCvd
from microstructure.scaled_trades import EXACT
from microstructure.trade_flow import (
    SECOND_MS,
    ZERO,
    FlowColumns,
    WhaleUnit,
    WindowSums,
    measure_columns,
    second_count,
    silent_sums,
    split_flow,
)

__all__ = [
    "BurstSettings",
    "FlowSettings",
    "TradeFlowAnalyzer",
    "WhaleUnit",
    "WindowSums",
    "measure",
]

_MINUTE_MS = 60_000
_HORIZONS_MS = (_MINUTE_MS, 5 * _MINUTE_MS, 15 * _MINUTE_MS)
_DEFAULTS = FlowSettings()


def measure(batch: WindowBatch, settings: FlowSettings = _DEFAULTS) -> list[WindowSums]:
    """The exact sums of each window from its own trades alone, whatever its origin.

    Args:
        batch: Windows closed together, or rebuilt.
        settings: Of which only the fixed thresholds count.

    Returns:
        One entry per symbol of ``batch.symbol_index``, same order.
    """
    thresholds = settings.thresholds()
    columns = measure_columns(batch, thresholds)
    if columns is None:
        return [silent_sums(index, thresholds) for index in batch.symbol_index]
    return columns.sums


class _Statistics(msgspec.Struct, gc=False):
    """What a window says beside the exact sums of its trades."""

    threshold: Threshold | None
    seconds: list[int]  # trades per second
    closes: tuple[float | None, ...]
    sides: tuple[int, ...]
    flows: tuple[float, ...]
    sweep_count: int = 0
    max_sweep: float | None = None
    max_trade: float | None = None
    quantile_count: int = 0
    quantile_delta: Decimal = ZERO


class TradeFlowAnalyzer:
    """Turns windows into ``FlowMetrics``, with a CVD and rolling history per symbol.

    Bursts and arrival z need windows of whole seconds; with others they stay 0 and None. They
    restart after a hole, learn nothing from an incomplete window, and net flow over minutes needs
    that many minutes without either.
    """

    def __init__(self, symbols: Sequence[str], settings: FlowSettings = _DEFAULTS) -> None:
        self._symbols = list(symbols)
        self._index = {symbol: k for k, symbol in enumerate(symbols)}
        self._settings = settings
        self._thresholds = settings.thresholds()
        self._cvd = [RunningCvd() for _ in symbols]
        self._last_ms = [NO_VALUE] * len(self._symbols)  # start of the last window analysed
        self._whales = RollingThreshold(
            len(self._symbols),
            quantile=settings.whale_quantile,
            size=settings.whale_quantile_sweeps,
            minimum=settings.whale_quantile_minimum,
            floor=settings.whale_quantile_floor,
        )
        self._sizes = SizeDistribution(
            len(self._symbols), size=settings.size_trades, minimum=settings.size_minimum
        )
        self._round_lots = RoundLots(
            len(self._symbols),
            size=settings.size_trades,
            minimum=settings.size_minimum,
            steps=settings.round_lot_steps,
        )
        self._counts = dict.fromkeys(
            ("windows", "trades", "incomplete_windows", "holes", "bursts", "wide_batches"), 0
        )
        self._begin(duration_ms=SECOND_MS)

    def _begin(self, duration_ms: int) -> None:
        """Starts the measures that depend on the windows' length."""
        self._duration_ms = duration_ms
        self._horizons = [
            horizon // duration_ms if horizon % duration_ms == 0 else 0 for horizon in _HORIZONS_MS
        ]
        self._net_flow = [NetFlow(max(self._horizons)) for _ in self._symbols]
        self._bursts = [ArrivalBurst(self._settings.burst) for _ in self._symbols]

    def analyze(self, batch: WindowBatch) -> list[FlowMetrics]:
        """Measures the windows of one boundary and takes them into the history.

        Args:
            batch: One window per symbol, each after the symbol's previous one.

        Returns:
            One ``FlowMetrics`` per symbol of ``batch.symbol_index``, same order.

        Raises:
            ValueError: If a window does not come after the symbol's last one.
        """
        duration_ms = batch.end_ms - batch.start_ms
        if duration_ms != self._duration_ms:
            self._begin(duration_ms)
        self._admit(batch)
        columns = measure_columns(batch, self._thresholds)
        silent = self._thresholds
        sums = columns.sums if columns else [silent_sums(k, silent) for k in batch.symbol_index]
        statistics = self._window_statistics(batch, columns)
        if columns:
            self._remember(batch, columns)
        self._counts["windows"] += len(sums)
        self._counts["trades"] += int(batch.offsets[-1] - batch.offsets[0])
        self._counts["incomplete_windows"] += batch.complete.count(False)
        parts = enumerate(zip(sums, statistics, strict=True))
        return [self._metrics(batch, place, *part) for place, part in parts]

    def restore_cvd(
        self,
        symbol: str,
        *,
        cvd: Decimal,
        anchor_ms: int,
        complete: bool,
        last_window_start_ms: int | None = None,
    ) -> None:
        """Sets the state to that after the last stored window.

        Args:
            symbol: One of the analyzer's symbols.
            cvd: Of that window, base units.
            anchor_ms: Its ``cvd_anchor_ms``.
            complete: Its ``cvd_complete``.
            last_window_start_ms: Its start; if given, windows missing between it and the next one
                make the CVD incomplete, and windows up to it are not added again. Otherwise the
                next window is taken to follow.
        """
        last_ms = NO_VALUE if last_window_start_ms is None else last_window_start_ms
        self._cvd[self._index[symbol]] = RunningCvd(cvd, anchor_ms, complete, last_ms)

    def cvd_state(self, symbol: str) -> tuple[Decimal, int, bool]:
        """CVD, its anchor (``NO_VALUE`` before the first window) and whether it is complete."""
        state = self._cvd[self._index[symbol]]
        return state.value, state.anchor_ms, state.is_complete

    def warm(self, symbol: str, rows: Sequence[FeatureRow]) -> int:
        """Puts stored windows before the net flow over minutes seen so far.

        Args:
            symbol: One of the analyzer's symbols.
            rows: Its windows in time order. Only complete, consecutive ones up to the last count,
                and that one must end where the analyzer's own history begins (or will begin).

        Returns:
            How many windows were taken.
        """
        tail: list[FeatureRow] = []
        for row in reversed(rows):
            follows = not tail or row.window_end_ms == tail[-1].window_start_ms
            if not (row.complete and follows):
                break
            tail.append(row)
        if not tail:
            return 0
        tail.reverse()
        start_ms, end_ms = tail[0].window_start_ms, tail[-1].window_end_ms
        if tail[0].window_end_ms - start_ms != self._duration_ms:
            if self._counts["windows"]:
                return 0
            self._begin(tail[0].window_end_ms - start_ms)
        history = self._net_flow[self._index[symbol]]
        if history.is_empty:
            history.restart(end_ms)
        # The shortest decimal of a stored double is the exact sum while that has <= 15 digits.
        flows = [Decimal(repr(row.net_flow_quote)) for row in tail]
        return len(tail) if history.prepend(start_ms, end_ms, flows) else 0

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start."""
        return {"symbols": len(self._symbols), **self._counts}

    def _admit(self, batch: WindowBatch) -> None:
        """Checks the order of time, and restarts what cannot go on after a hole."""
        for index in batch.symbol_index:
            if batch.start_ms <= self._last_ms[index]:
                message = f"window {batch.start_ms} comes after {self._last_ms[index]}"
                raise ValueError(f"{self._symbols[index]}: {message}")
        for index in batch.symbol_index:
            if self._last_ms[index] not in (NO_VALUE, batch.start_ms - self._duration_ms):
                self._counts["holes"] += 1
                self._bursts[index] = ArrivalBurst(self._settings.burst)
            self._last_ms[index] = batch.start_ms

    def _window_statistics(
        self, batch: WindowBatch, columns: FlowColumns | None
    ) -> list[_Statistics]:
        """Sweeps, sizes and seconds of each window, against the history before it."""
        width = second_count(batch.start_ms, batch.end_ms)
        silence = [0] * width, (None,) * width, (0,) * width, (0.0,) * width
        result = [_Statistics(self._whales.of(index), *silence) for index in batch.symbol_index]
        if columns:
            _add_trades([result[place] for place in columns.filled], columns)
        return result

    def _remember(self, batch: WindowBatch, columns: FlowColumns) -> None:
        """Takes the trades into the look-backs that are counted in events."""
        owners = np.array([batch.symbol_index[place] for place in columns.filled], dtype=np.int64)
        self._whales.append(owners, np.bincount(columns.sweeps.window), columns.sweeps.notional)
        self._sizes.update(owners, columns.trades.counts, columns.trades.notional)
        self._round_lots.update(owners, columns.trades)
        self._counts["wide_batches"] += columns.trades.is_wide

    def _metrics(
        self,
        batch: WindowBatch,
        place: int,
        sums: WindowSums,
        statistics: _Statistics,
    ) -> FlowMetrics:
        index, threshold = sums.symbol_index, statistics.threshold
        is_complete = batch.complete[place]
        cvd = self._cvd[index]
        cvd.add(batch.start_ms, self._duration_ms, sums.delta, is_complete=is_complete)
        net_flow = self._net_flow[index]
        if is_complete:
            net_flow.append(batch.start_ms, batch.end_ms, sums.net_flow_quote)
        else:
            net_flow.restart(batch.end_ms)
        bursts, arrival_z = 0, None
        if self._duration_ms % SECOND_MS == 0:
            bursts, arrival_z = self._bursts[index].observe(
                statistics.seconds, is_complete=is_complete
            )
            self._counts["bursts"] += bursts
        q50, q90, q99, hill, gini = self._sizes.of(index)
        flow_1m, flow_5m, flow_15m = map(net_flow.over, self._horizons)
        return FlowMetrics(
            symbol=self._symbols[index],
            window_start_ms=batch.start_ms,
            window_end_ms=batch.end_ms,
            origin=batch.origin,
            complete=is_complete,
            missing_trades=batch.missing_trades[place],
            trade_count=sums.trade_count,
            fill_count=sums.fill_count,
            first_agg_id=sums.first_agg_id,
            last_agg_id=sums.last_agg_id,
            open=sums.open,
            high=sums.high,
            low=sums.low,
            close=sums.close,
            vwap=sums.vwap,
            volume=sums.volume,
            quote_volume=sums.quote_volume,
            buy_volume=sums.buy_volume,
            sell_volume=sums.sell_volume,
            delta=sums.delta,
            cvd=cvd.value,
            cvd_anchor_ms=cvd.anchor_ms,
            cvd_complete=cvd.is_complete,
            net_flow_quote=sums.net_flow_quote,
            flow_imbalance=sums.flow_imbalance,
            whale_buy_volume=sums.whale_buy_volume,
            whale_sell_volume=sums.whale_sell_volume,
            whale_delta=sums.whale_delta,
            whale_count=sums.whale_count,
            suspect_count=sums.suspect_count,
            burst_count=bursts,
            net_flow_quote_1m=flow_1m,
            net_flow_quote_5m=flow_5m,
            net_flow_quote_15m=flow_15m,
            whale_threshold_quantile_notional=threshold.value if threshold else None,
            whale_quantile_count=statistics.quantile_count if threshold else None,
            whale_quantile_delta=statistics.quantile_delta if threshold else None,
            sweep_count=statistics.sweep_count,
            max_sweep_notional=statistics.max_sweep,
            trade_notional_q50=q50,
            trade_notional_q90=q90,
            trade_notional_q99=q99,
            trade_notional_max=statistics.max_trade,
            hill_alpha=hill,
            trade_notional_gini=gini,
            round_lot_ratio=self._round_lots.of(index),
            participant_volume=sums.participant_volume,
            participant_delta=sums.participant_delta,
            arrival_z=arrival_z if is_complete else None,
            second_closes=statistics.closes,
            second_sides=statistics.sides,
            second_flows=statistics.flows,
        )


def _add_trades(windows: list[_Statistics], columns: FlowColumns) -> None:
    """Completes the statistics of the filled windows."""
    sweeps, trades = columns.sweeps, columns.trades
    limits = np.array([_limit(window.threshold) for window in windows])
    chosen = (sweeps.notional >= limits[sweeps.window]).nonzero()[0]
    bought, sold, count = split_flow(
        chosen, sweeps.window, sweeps.volume, sweeps.is_sell, len(windows)
    )
    closes = columns.seconds.close.astype(object)
    closes[np.isnan(columns.seconds.close)] = None
    sweep_counts = np.bincount(sweeps.window)
    max_sweeps = np.maximum.reduceat(sweeps.notional, np.cumsum(sweep_counts) - sweep_counts)
    max_trades = np.maximum.reduceat(trades.notional, trades.starts)
    columns_of = (
        columns.seconds.count.tolist(),
        closes.tolist(),
        columns.seconds.side.tolist(),
        columns.seconds.flow.tolist(),
        sweep_counts.tolist(),
        max_sweeps.tolist(),
        max_trades.tolist(),
        count,
    )
    for window, seconds, close, sides, flows, sweep_count, max_sweep, max_trade, whale_count in zip(
        windows, *columns_of, strict=True
    ):
        window.seconds = seconds
        window.closes = tuple(close)
        window.sides = tuple(sides)
        window.flows = tuple(flows)
        window.sweep_count = sweep_count
        window.max_sweep = max_sweep
        window.max_trade = max_trade
        window.quantile_count = whale_count
    if chosen.size:
        units = trades.quantity_units()
        for window, buy, sell, step in zip(windows, bought, sold, units, strict=True):
            window.quantile_delta = EXACT.multiply(buy - sell, step)


def _limit(threshold: Threshold | None) -> float:
    """From which notional a sweep is a whale; nothing is while the threshold separates nothing."""
    return threshold.value if threshold and threshold.is_above_median else np.inf
