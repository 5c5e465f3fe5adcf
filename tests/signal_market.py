"""Markets and signals with known answers for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from domain.events import Action, Signal
from evaluation.forward_returns import Outcomes, Status, market_returns, outcomes_of
from evaluation.prices import SymbolPrices
from evaluation.reference import MarketSamples, pairs_of, reference_of
from evaluation.signal_columns import SignalColumns
from evaluation.slices import Decisions, measure
from feature_store import FeatureStore
from lake.signal_store import signal_store
from tests.lake_fakes import feature_row
from tests.lake_fakes import signal as stored_signal

T0 = 1_721_260_800_000  # 2024-07-18 00:00 UTC
WINDOW_MS = 5_000
UNKNOWN = float("nan")


def prices(mid: Any, **changes: Any) -> SymbolPrices:
    """Windows from T0 on; ``holes`` are indices that are missing or incomplete."""
    middle = np.asarray(mid, dtype=np.float64)
    holes = np.zeros(len(middle), dtype=np.bool_)
    holes[list(changes.pop("holes", ()))] = True
    columns: dict[str, Any] = {
        "first_ms": T0,
        "window_ms": WINDOW_MS,
        "last_start_ms": T0 + (len(middle) - 1) * WINDOW_MS,
        "mid_price": middle,
        "close": middle,
        "spread_bps": np.full(len(middle), 0.2),
        "delta": np.zeros(len(middle)),
        "hole_count": np.concatenate([[0], np.cumsum(holes)]),
    }
    return SymbolPrices(**(columns | changes))


def columns(window: Any, **changes: Any) -> SignalColumns:
    """Signals made at the end of these windows: BUY, 10 s, decided 300 ms later, unless changed."""
    index = np.atleast_1d(np.asarray(window, dtype=np.int64))
    end_ms = T0 + (index + 1) * WINDOW_MS
    values: dict[str, Any] = {
        "symbol": 0,
        "source": 0,
        "model": 0,
        "template": 0,
        "direction": 1,
        "window_end_ms": end_ms,
        "decided_at_ms": end_ms + 300,
        "horizon_s": 10,
        "latency_ms": 0.0,
        "confidence": 0.6,
        "p_up": UNKNOWN,
        "p_flat": UNKNOWN,
        "p_down": UNKNOWN,
        "cost_usd": UNKNOWN,
    }
    kinds = {"direction": np.int8, "confidence": np.float32}
    kinds |= dict.fromkeys(("symbol", "source", "model", "template"), np.int32)
    return SignalColumns(
        **{
            name: np.broadcast_to(np.asarray(value), index.shape).astype(
                kinds.get(name, np.asarray(value).dtype)
            )
            for name, value in (values | changes).items()
        }
    )


def scored_against(market: SymbolPrices, signals: SignalColumns, fee_bps: float = 5.0) -> Outcomes:
    return outcomes_of(signals, {0: market}, fee_bps=fee_bps, rules_source=None)


def judged(market: SymbolPrices, signals: SignalColumns, fee_bps: float = 5.0) -> Any:
    """The ``SliceReport`` of one symbol\'s signals; ``Any`` since a test knows what is there."""
    outcomes = scored_against(market, signals, fee_bps)
    scored = outcomes.take(outcomes.status == Status.SCORED)
    samples = MarketSamples(1)
    for steps in np.unique(scored.steps).tolist():
        moves = market_returns(market, T0, T0 + len(market) * WINDOW_MS, steps, 1)
        samples.add(0, steps, moves)
    keys, pair = pairs_of(scored)
    reference = reference_of(samples, keys, pair, scored.return_bps)
    return measure(Decisions(scored, pair), reference, source="x", dimension="source", value="x")


def random_walk(seed: int, count: int = 8_000) -> np.ndarray:
    """Mid prices with fat-tailed independent moves of about 2 bps a window."""
    random = np.random.default_rng(seed)
    walk: np.ndarray = 100.0 * np.exp(np.cumsum(1.4e-4 * random.standard_t(4, count)))
    return walk


def knowing_signals(seed: int, mid: np.ndarray, skill: float) -> SignalColumns:
    """A signal at every other window whose conviction is ``skill`` parts future to one part noise.

    With ``skill`` 0 it knows nothing. 60 s horizons, so neighbours overlap.
    """
    random = np.random.default_rng(seed + 10_000)
    window = np.arange(20, len(mid) - 20, 2)
    moved = np.log(mid[window + 14] / mid[window + 2])
    score = skill * moved / moved.std() + random.normal(size=len(window))
    p_up, p_flat = 0.7 / (1.0 + np.exp(-score)), np.full(len(window), 0.3)
    p_down = 0.7 - p_up
    direction = np.where(p_up > 0.42, 1, np.where(p_down > 0.42, -1, 0))
    confidence = np.where(direction > 0, p_up, np.where(direction < 0, p_down, p_flat))
    return columns(
        window,
        direction=direction,
        horizon_s=60,
        confidence=confidence,
        p_up=p_up,
        p_flat=p_flat,
        p_down=p_down,
    )


def write_market(
    root: Path, mid: Any, symbol: str = "BTCUSDT", start_ms: int = T0, **fields: Any
) -> None:
    """One feature row per price."""
    store = FeatureStore(root)
    store.write_batch(
        feature_row(
            symbol=symbol,
            window_start_ms=start_ms + k * WINDOW_MS,
            window_end_ms=start_ms + (k + 1) * WINDOW_MS,
            mid_price=float(price),
            close=float(price),
            spread_bps=0.2,
            **fields,
        )
        for k, price in enumerate(mid)
    )


def write_signals(root: Path, signals: list[Signal]) -> None:
    store = signal_store(root / "signals")
    store.write_batch(signals)


def signal_at(
    window: int, action: Action = Action.BUY, start_ms: int = T0, **fields: Any
) -> Signal:
    """A 60-second signal made at the end of a window."""
    end_ms = start_ms + (window + 1) * WINDOW_MS
    values: dict[str, Any] = {
        "source": "rules",
        "symbol": "BTCUSDT",
        "window_end_ms": end_ms,
        "decided_at_ms": end_ms + 300,
        "action": action,
        "confidence": 0.6,
        "horizon_s": 60,
        "price": 100.0,
    }
    values |= fields
    values.setdefault("signal_id", f"{values['source']}:{values['symbol']}:{end_ms}")
    return stored_signal(**values)
