"""The report on past signals: every stored signal against what the market then did.

Consumes the signal store of one data folder, its recorded trades, its feature store and, for long
horizons, its ingested klines, produces a ``Report``: plain data that serialises to JSON. Prices are
streamed by day; signals take up to 500 bytes each at the peak.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import msgspec
import numpy as np

from domain.events import Signal
from evaluation.forward_returns import (
    STATUS_TEXT,
    Outcomes,
    PricedBy,
    Status,
    entry_from_ms,
    market_returns,
    outcomes_of,
    steps_of,
)
from evaluation.kline_prices import KlinePrices
from evaluation.prices import PriceDays, SymbolPrices
from evaluation.reference import MarketSamples, Reference, pairs_of, reference_of
from evaluation.scores import holm
from evaluation.sharpe import Sharpe, sharpes_of
from evaluation.signal_columns import SignalColumns, Vocabularies, signal_days
from evaluation.slices import (
    Decisions,
    SliceReport,
    Verdict,
    measure,
    verdict_of,
)
from evaluation.trade_prices import TradePrices, scored_by_trades
from evaluation.versus import Curves, Versus, baselines_beside, curves_of
from feature_store import FeatureStore
from lake.buffered import BufferedStore
from lake.paths import DAY_MS

HISTOGRAM_BINS: Final = 20
_RULES: Final = "rules"
_HOUR_MS: Final = 3_600_000
REPORT_VERSION: Final = 1
_LONG_S: Final = 3_600  # a horizon that bars measure well
_BAR_STEPS: Final = (
    700_000  # beyond a week of 1-second windows: a horizon in bars is a pair of its own
)


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to report on.

    Attributes:
        fee_bps: fee of one leg (taker), 1e-4 of the notional.
        symbols: which ones; None for all.
        start_ms: only signals of windows that end at or after it, UTC.
        end_ms: ... and before it.
    """

    fee_bps: float
    symbols: Collection[str] | None = None
    start_ms: int | None = None
    end_ms: int | None = None


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How confident the signals were: counts in ``HISTOGRAM_BINS`` equal bins over 0–1."""

    calls: list[int]
    holds: list[int]


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One source: its scores, its baselines, and what its plots show; ``priced_by`` as in ``Report``."""

    name: str
    signals: int
    left_out: dict[str, int]
    priced_by: dict[str, int]
    summary: SliceReport | None
    sharpe: Sharpe | None
    baselines: list[Versus]
    curves: Curves | None
    histogram: Histogram


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the ``signals`` verb shows. Times are UTC.

    ``left_out`` counts signals that cannot be scored, by reason, ``priced_by`` those that are by whose
    prices (trades, windows, klines), ``without_spread`` those whose spread was not recorded at entry or
    exit. ``entry_delay_s``: median time from the end of a signal's window to its entry (of windows:
    the end of the entry window). ``slices_tested``: how many slices had enough
    data for a verdict; those verdicts hold for all of them together (Holm).
    """

    version: int = REPORT_VERSION
    generated_at_ms: int
    window_ms: int | None
    fee_bps: float
    first_ms: int | None = None
    last_ms: int | None = None
    symbols: list[str] = []
    signals: int = 0
    scored: int = 0
    left_out: dict[str, int] = {}
    priced_by: dict[str, int] = {}
    without_spread: int = 0
    entry_delay_s: float | None = None
    sources: list[SourceReport] = []
    slices: list[SliceReport] = []
    slices_tested: int = 0


def build_report(
    features: FeatureStore,
    signals: BufferedStore[Signal],
    options: ReportOptions,
    klines: KlinePrices | None = None,
    trades: TradePrices | None = None,
) -> Report:
    """Read, score and slice all signals that the options name. Blocks.

    Args:
        features: Windows and their prices.
        signals: What was said.
        options: What to report on.
        klines: Prices of horizons from an hour on that neither trades nor windows cover.
        trades: Prices that count before those of windows, where there are any.

    Raises:
        StorageError: The system refused to read a file.
    """
    texts = Vocabularies()
    found, samples, window_ms = _collect(features, signals, texts, options, klines)
    if found is not None and trades is not None:
        found = scored_by_trades(found, trades, samples, texts.symbol.texts)
    empty = Report(
        generated_at_ms=time.time_ns() // 1_000_000, window_ms=window_ms, fee_bps=options.fee_bps
    )
    if found is None:
        return empty
    scored = found.take(found.status == Status.SCORED)
    keys, pair = pairs_of(scored)
    reference = reference_of(samples, keys, pair, scored.return_bps)
    decisions = Decisions(scored, pair)
    slices = _slices(decisions, reference, texts)
    delay_ms = scored.entry_end_ms - scored.window_end_ms
    return msgspec.structs.replace(
        empty,
        first_ms=int(found.window_end_ms.min()),
        last_ms=int(found.window_end_ms.max()),
        symbols=sorted(texts.symbol.texts[code] for code in np.unique(found.symbol)),
        signals=len(found),
        scored=len(scored),
        left_out=_left_out(found.status),
        priced_by=_priced_by(scored),
        without_spread=int((~scored.has_spread).sum()),
        entry_delay_s=float(np.median(delay_ms)) / 1_000.0 if len(scored) else None,
        sources=_sources(found, decisions, reference, texts),
        slices=slices,
        slices_tested=sum(s.verdict is not Verdict.TOO_FEW for s in slices),
    )


# --- reading ---


def _collect(
    features: FeatureStore,
    signals: BufferedStore[Signal],
    texts: Vocabularies,
    options: ReportOptions,
    klines: KlinePrices | None,
) -> tuple[Outcomes | None, MarketSamples, int | None]:
    prices = PriceDays(features, options.symbols)
    samples = MarketSamples(len(signals.partitioned.dates()))
    rules_source = texts.source.code(_RULES)
    parts = []
    days = signal_days(
        signals,
        texts,
        symbols=options.symbols,
        start_ms=options.start_ms,
        end_ms=options.end_ms,
    )
    for day_ms, columns in days:
        by_symbol = _prices_for(columns, prices, texts)
        outcomes = outcomes_of(
            columns, by_symbol, fee_bps=options.fee_bps, rules_source=rules_source
        )
        _add_samples(samples, outcomes, by_symbol, day_ms)
        if klines is not None:
            outcomes = _with_bars(columns, outcomes, klines, samples, texts, options, day_ms)
        parts.append(outcomes)
    return (Outcomes.joined(parts) if parts else None), samples, prices.window_ms


def _with_bars(
    columns: SignalColumns,
    outcomes: Outcomes,
    klines: KlinePrices,
    samples: MarketSamples,
    texts: Vocabularies,
    options: ReportOptions,
    day_ms: int,
) -> Outcomes:
    """The outcomes with those of long horizons that only bars can score."""
    is_open = (outcomes.status != Status.SCORED) & (outcomes.status != Status.BAD_HORIZON)
    rows = np.flatnonzero(is_open & (columns.horizon_s >= _LONG_S))
    some = columns.take(rows)
    if not len(some):
        return outcomes
    prices = _prices_for(some, klines, texts)
    again = outcomes_of(
        some, prices, fee_bps=options.fee_bps, rules_source=None, priced_by=PricedBy.KLINES
    )
    _add_samples(samples, again, prices, day_ms, key_offset=_BAR_STEPS)
    again = msgspec.structs.replace(
        again, steps=again.steps + _BAR_STEPS, rules=outcomes.rules[rows]
    )
    known = again.status != Status.NO_WINDOWS
    return outcomes.replaced(rows[known], again.take(known))


def _prices_for(
    columns: SignalColumns, prices: PriceDays | KlinePrices, texts: Vocabularies
) -> dict[int, SymbolPrices]:
    """Prices by symbol code from the longest look-back to the last exit the store has."""
    names = {texts.symbol.texts[code]: int(code) for code in np.unique(columns.symbol)}
    last_ms = max(prices.last_start_ms(names).values(), default=None)
    if last_ms is None or prices.window_ms is None:
        return {}
    reach_ms = steps_of(columns.horizon_s, prices.window_ms) * prices.window_ms
    first_known_ms = int((columns.window_end_ms - reach_ms).min()) - prices.window_ms
    exit_ms = entry_from_ms(columns) + reach_ms + prices.window_ms
    until_ms = max(min(int(exit_ms.max()), last_ms), int(columns.window_end_ms.max()))
    found = prices.between(names, first_known_ms, until_ms)
    return {names[name]: by_name for name, by_name in found.items()}


def _add_samples(
    samples: MarketSamples,
    outcomes: Outcomes,
    prices: dict[int, SymbolPrices],
    day_ms: int,
    *,
    key_offset: int = 0,
) -> None:
    scored = outcomes.status == Status.SCORED
    pairs = np.unique(np.stack([outcomes.symbol[scored], outcomes.steps[scored]], axis=1), axis=0)
    for symbol, steps in pairs.tolist():
        found = prices[symbol]
        stride = samples.stride(DAY_MS // found.window_ms, len(pairs))
        moves = market_returns(found, day_ms, day_ms + DAY_MS, steps, stride)
        samples.add(symbol, steps + key_offset, moves)


# --- slicing ---


def _sources(
    found: Outcomes, decisions: Decisions, reference: Reference, texts: Vocabularies
) -> list[SourceReport]:
    sharpes = sharpes_of(decisions)
    reports = []
    for name, code in _in_order(found.source, texts):
        some = decisions.take(decisions.outcomes.source == code)
        own = found.source == code
        has_scored = len(some.pair) > 0
        summary = measure(some, reference, source=name, dimension="source", value=name)
        reports.append(
            SourceReport(
                name=name,
                signals=int(own.sum()),
                left_out=_left_out(found.status[own]),
                priced_by=_priced_by(some.outcomes),
                summary=summary if has_scored else None,
                sharpe=sharpes.get(code),
                baselines=baselines_beside(some, name) if has_scored else [],
                curves=curves_of(some, name) if has_scored else None,
                histogram=_histogram(found.confidence[own], found.direction[own]),
            )
        )
    summaries = [r.summary for r in reports if r.summary is not None]
    judged = {s.source: s for s in _judged_together(summaries)}
    return [msgspec.structs.replace(r, summary=judged.get(r.name)) for r in reports]


def _slices(decisions: Decisions, reference: Reference, texts: Vocabularies) -> list[SliceReport]:
    """Each source by model, template, symbol and hour, where there is more than one of them."""
    found = []
    for name, source in _in_order(decisions.outcomes.source, texts):
        some = decisions.take(decisions.outcomes.source == source)
        hours = (some.outcomes.window_end_ms // _HOUR_MS) % 24
        dimensions: list[tuple[str, np.ndarray, list[str]]] = [
            ("model", some.outcomes.model, texts.model.texts),
            ("template", some.outcomes.template, texts.template.texts),
            ("symbol", some.outcomes.symbol, texts.symbol.texts),
            ("hour", hours, [f"{hour:02d}:00" for hour in range(24)]),
        ]
        for dimension, codes, names in dimensions:
            present = np.unique(codes)
            for code in present if len(present) > 1 else ():
                value = names[code] or "(none)"
                part = some.take(codes == code)
                found.append(
                    measure(part, reference, source=name, dimension=dimension, value=value)
                )
    return _judged_together(found)


def _in_order(codes: np.ndarray, texts: Vocabularies) -> list[tuple[str, int]]:
    """Sources by name; the rules, which all are compared with, come first."""
    named = [(texts.source.texts[code], code) for code in np.unique(codes).tolist()]
    return sorted(named, key=lambda item: (item[0] != _RULES, item[0]))


def _judged_together(slices: list[SliceReport]) -> list[SliceReport]:
    """Verdicts that allow for how many slices were looked at."""
    tested = [s for s in slices if s.verdict is not Verdict.TOO_FEW and s.hit_rate is not None]
    kept = holm([s.hit_rate.p_value for s in tested if s.hit_rate is not None])
    significant = {id(s): is_kept for s, is_kept in zip(tested, kept, strict=True)}
    return [
        msgspec.structs.replace(
            s,
            verdict=verdict_of(s.hit_rate, s.blocks, is_significant=significant.get(id(s), False)),
        )
        for s in slices
    ]


def _left_out(status: np.ndarray) -> dict[str, int]:
    counts = {
        text: int((status == reason).sum())
        for reason, text in STATUS_TEXT.items()
        if reason is not Status.SCORED
    }
    return {text: count for text, count in counts.items() if count}


def _priced_by(scored: Outcomes) -> dict[str, int]:
    counts = {one.name.lower(): int((scored.priced_by == one).sum()) for one in PricedBy}
    return {name: count for name, count in counts.items() if count}


def _histogram(confidence: np.ndarray, direction: np.ndarray) -> Histogram:
    known = ~np.isnan(confidence)
    position = np.clip(confidence[known] * HISTOGRAM_BINS, 0, HISTOGRAM_BINS - 1)
    is_call = direction[known] != 0
    index = position.astype(np.int64)
    return Histogram(
        calls=np.bincount(index[is_call], minlength=HISTOGRAM_BINS).tolist(),
        holds=np.bincount(index[~is_call], minlength=HISTOGRAM_BINS).tolist(),
    )
