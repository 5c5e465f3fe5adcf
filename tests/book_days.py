"""Days of trades and books for tests of datasets: a seeded random walk, written as stream files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from domain.market import NO_VALUE, TRADE_DTYPE
from lake.paths import LakePaths
from lake.stream_files import LevelColumn, depth_table, trade_table, write_stream_file

DAY_MS = 86_400_000
DAY = "2024-07-18"
START_MS = 1_721_260_800_000  # its midnight
LEVELS = 20
TICK_DECIMALS = 1
FIRST_TICK = 640_000
_EPOCH_STEPS = 40  # a resting size is replaced every four seconds


class Walk:
    """A market between two times: a book every 100 ms and some trades a second."""

    def __init__(
        self,
        start_ms: int,
        end_ms: int,
        *,
        seed: int = 5,
        trades_per_s: float = 4.0,
        symbol: str = "BTCUSDT",
    ) -> None:
        self.symbol = symbol
        self._seed = seed
        random = np.random.default_rng(seed)
        self.time_ms = np.arange(start_ms + 37, end_ms, 100, dtype=np.int64)
        moves = random.choice([-1, 0, 1], len(self.time_ms), p=[0.1, 0.8, 0.1])
        self.bid_tick = FIRST_TICK + np.cumsum(moves)
        self._sizes = np.round(random.lognormal(0.0, 1.0, 65_536) + 0.001, 3)
        self._start_ms, self._end_ms = start_ms, end_ms
        self._trades_per_s = trades_per_s

    def size(self, tick: np.ndarray, step: np.ndarray) -> np.ndarray:
        return self._sizes[(tick * 7_919 + (step // _EPOCH_STEPS) * 104_729) % 65_536]

    def depth(self, keep: np.ndarray | None = None) -> pa.Table:
        """Rows in ``DEPTH_SCHEMA``; a snapshot left out breaks the chain."""
        rows = np.arange(len(self.time_ms)) if keep is None else np.flatnonzero(keep)
        sides = []
        for outward, offset in ((-1, 0), (1, 1)):
            tick = self.bid_tick[rows, None] + offset + outward * np.arange(LEVELS)
            size = self.size(tick, rows[:, None])
            levels = np.stack([tick / 10.0**TICK_DECIMALS, size], axis=2)
            sides.append(LevelColumn(np.full(len(rows), LEVELS), levels.ravel()))
        time_ms = self.time_ms[rows]
        return depth_table(
            np.zeros(len(rows), np.int32),
            [self.symbol],
            event_time_ms=time_ms + 3,
            transact_time_ms=time_ms,
            receive_time_ns=time_ms * 1_000_000,
            first_update_id=10 * rows + 1,
            final_update_id=10 * rows + 10,
            prev_final_update_id=10 * rows,
            bids=sides[0],
            asks=sides[1],
        )

    def trade_rows(self) -> np.ndarray:
        random = np.random.default_rng((self._seed, 1))
        count = int((self._end_ms - self._start_ms) / 1_000 * self._trades_per_s)
        rows = np.zeros(count, TRADE_DTYPE)
        time_ms = np.sort(random.integers(self._start_ms, self._end_ms, count))
        is_sale = random.random(count) < 0.5
        step = np.clip((time_ms - self._start_ms - 37) // 100, 0, len(self.time_ms) - 1)
        rows["transact_time_ms"], rows["event_time_ms"] = time_ms, time_ms + 2
        rows["receive_time_ns"] = time_ms * 1_000_000
        rows["is_buyer_maker"] = is_sale
        rows["price"] = self.bid_tick[step] + ~is_sale
        rows["price_decimals"], rows["quantity_decimals"] = TICK_DECIMALS, 3
        rows["quantity"] = np.maximum(random.lognormal(4.0, 1.5, count), 1.0)
        rows["quantity_ex_rpi"] = NO_VALUE
        ids = self._start_ms // 1_000 + np.arange(count)
        rows["agg_trade_id"] = rows["first_trade_id"] = rows["last_trade_id"] = ids
        return rows

    def trades(self) -> pa.Table:
        return trade_table(self.trade_rows(), [self.symbol], "stream")

    def write(
        self, paths: LakePaths, *, books: bool = True, keep: np.ndarray | None = None
    ) -> None:
        write_stream_file(paths, "trades", self.trades(), metadata={})
        if books:
            write_stream_file(paths, "depth", self.depth(keep), metadata={})
