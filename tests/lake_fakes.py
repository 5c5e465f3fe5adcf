"""Rows and dying writers for the tests of the stores."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from domain.events import Action, Signal
from domain.features import FeatureRow
from lake.atomic import Step

DAY_MS = 86_400_000
START_MS = 1_721_347_200_000 - 60_000  # 2024-07-18 23:59:00 UTC
WINDOW_MS = 5_000


def feature_row(index: int = 0, symbol: str = "BTCUSDT", revision: int = 0, **fields) -> FeatureRow:
    """Window ``index`` after START_MS; every window buys 0.001, CVD starts again at midnight."""
    start_ms = START_MS + index * WINDOW_MS
    anchor_ms = max(START_MS, start_ms - start_ms % DAY_MS)
    position = (start_ms - anchor_ms) // WINDOW_MS + 1
    values: dict[str, Any] = {
        "symbol": symbol,
        "window_start_ms": start_ms,
        "window_end_ms": start_ms + WINDOW_MS,
        "revision": revision,
        "complete": True,
        "missing_trades": 0,
        "trade_count": 2,
        "fill_count": 3,
        "first_agg_id": 10 * index,
        "last_agg_id": 10 * index + 9,
        "open": 64000.1,
        "high": 64000.2,
        "low": 64000.0,
        "close": 64000.1,
        "vwap": 64000.1,
        "volume": 0.001,
        "quote_volume": 64.0001,
        "buy_volume": 0.001,
        "sell_volume": 0.0,
        "delta": 0.001,
        "cvd": position / 1000,
        "net_flow_quote": 64.0001,
        "flow_imbalance": 1.0,
        "whale_buy_volume": 0.0,
        "whale_sell_volume": 0.0,
        "whale_delta": 0.0,
        "whale_count": 0,
        "burst_count": 0,
        "suspect_count": 0,
        "cvd_anchor_ms": anchor_ms,
        "cvd_complete": True,
        "realized_vol": None,
        "spread_bps": 0.1,
        "microprice": 64000.05,
        "book_imbalance": -0.25,
        "ofi": None,
        "depth_frames": 50,
        "origin": "live",
    }
    return FeatureRow(**(values | fields))


def signal(number: int = 0, symbol: str = "BTCUSDT", **fields) -> Signal:
    end_ms = START_MS + (number + 1) * WINDOW_MS
    values: dict[str, Any] = {
        "signal_id": f"rules-{symbol}-{end_ms}",
        "symbol": symbol,
        "window_end_ms": end_ms,
        "decided_at_ms": end_ms + 300,
        "price": 64000.1,
        "action": Action.HOLD,
        "confidence": 0.5,
        "horizon_s": 60,
        "rationale": "trend flat, «neutral»",
        "evidence": {"delta": 0.001, "ofi": None},
        "invalidation": None,
        "source": "rules",
    }
    return Signal(**(values | fields))


class Killed(BaseException):
    """Stands for kill -9: no handler of ours runs after it."""


class DyingWriter:
    """A hook that kills the writer at its n-th step (0: never)."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.steps: list[Step] = []

    def __call__(self, step: Step, path: Path) -> None:
        self.steps.append(step)
        if len(self.steps) == self.at:
            raise Killed


class FullDisk:
    """A hook that refuses with ENOSPC at one step while ``is_full``."""

    def __init__(self, at: Step = Step.WRITTEN) -> None:
        self.at = at
        self.is_full = True

    def __call__(self, step: Step, path: Path) -> None:
        if self.is_full and step is self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
