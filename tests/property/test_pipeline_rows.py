"""Whatever a window holds, its row is finite, JSON-able and keeps its exact columns."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.absorption import AbsorptionSettings
from data_pipeline.features import FeatureSettings
from data_pipeline.pipeline import DataPipeline, PipelineSettings
from domain.features import FeatureRow
from domain.flow import BookWindow, FlowMetrics
from domain.market import DepthSnapshot
from rules_analyst import RulesAnalyst
from tests.pipeline_samples import DAY, WINDOW_MS, metrics, snapshot

SETTINGS = PipelineSettings(
    absorption=AbsorptionSettings(minimum_bars=3),
    features=FeatureSettings(zscore_lookback_s=50, zscore_minimum_windows=2),
)
COMMON_PRICES = st.integers(1, 10**9).map(lambda n: Decimal(n).scaleb(-4))
COMMON_AMOUNTS = st.integers(0, 10**6).map(lambda n: Decimal(n).scaleb(-3))
EXTREME_PRICES = st.sampled_from([Decimal("1e-29"), Decimal("1e-12"), Decimal("9e29")])
EXTREME_AMOUNTS = st.sampled_from([Decimal("1e-30"), Decimal("1e-400"), Decimal("9e20")])
STATISTICS = st.none() | st.floats()
ANY_NUMBER = st.floats(allow_nan=True) | st.floats(0.01, 1000.0) | st.just(0.0)


def _rarely(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 9)) == 9


@st.composite
def flows(draw: st.DrawFn, start_ms: int) -> FlowMetrics:
    is_extreme = _rarely(draw)
    amounts = EXTREME_AMOUNTS if is_extreme else COMMON_AMOUNTS
    is_silent = _rarely(draw)
    closes = draw(st.lists(st.none() | st.floats(1e-30, 1e30), min_size=5, max_size=5))
    return metrics(
        start_ms,
        price=str(draw(EXTREME_PRICES if is_extreme else COMMON_PRICES)),
        buy="0" if is_silent else str(draw(amounts)),
        sell="0" if is_silent else str(draw(amounts)),
        complete=not _rarely(draw),
        trade_notional_gini=draw(STATISTICS),
        arrival_z=draw(STATISTICS),
        hill_alpha=draw(STATISTICS),
        second_closes=tuple(closes),
        second_sides=tuple(draw(st.lists(st.sampled_from([-1, 1]), min_size=5, max_size=5))),
        second_flows=tuple(draw(st.lists(st.floats(-1e30, 1e30), min_size=5, max_size=5))),
    )


@st.composite
def snapshots(draw: st.DrawFn, at_ms: int) -> DepthSnapshot:
    if _rarely(draw):
        level = st.tuples(ANY_NUMBER, ANY_NUMBER)
        return snapshot(draw(st.lists(level, max_size=4)), draw(st.lists(level, max_size=4)), at_ms)
    touch, spread = draw(st.integers(1, 10**6)), draw(st.integers(0, 3))
    sizes = st.floats(1e-9, 1e9)
    bids = [(float(touch - k), draw(sizes)) for k in range(min(touch, 3))]
    asks = [(float(touch + spread + k), draw(sizes)) for k in range(3)]
    return snapshot(bids, asks if not _rarely(draw) else [], at_ms)


@st.composite
def windows(draw: st.DrawFn) -> list[tuple[FlowMetrics, BookWindow | None]]:
    sequence: list[tuple[FlowMetrics, BookWindow | None]] = []
    start_ms = DAY
    for _ in range(draw(st.integers(4, 10))):
        book = None
        if not _rarely(draw):
            book = BookWindow(
                symbol="BTCUSDT",
                window_start_ms=start_ms,
                window_end_ms=start_ms + WINDOW_MS,
                depth_frames=1,
                ofi=draw(st.none() | st.floats(-1e12, 1e12)),
                ofi_restarts=0,
                last=draw(snapshots(start_ms)),
            )
        sequence.append((draw(flows(start_ms)), book))
        start_ms += WINDOW_MS * draw(st.sampled_from([1] * 12 + [2, 15, 400]))
    return sequence


def _assert_finite(value: object) -> None:
    if isinstance(value, float):
        assert isfinite(value)
    elif isinstance(value, dict):
        for inner in value.values():
            _assert_finite(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            _assert_finite(inner)


@given(windows())
def test_no_row_context_or_signal_ever_holds_nan_or_infinity(
    sequence: list[tuple[FlowMetrics, BookWindow | None]],
) -> None:
    pipeline, analyst = DataPipeline(SETTINGS), RulesAnalyst()
    for flow, book in sequence:
        result = pipeline.process(flow, book)
        assert (result.row is None) == (result.rejected is not None)
        _assert_finite(msgspec.structs.asdict(result.context))
        if result.row is None:
            continue
        _assert_finite(msgspec.structs.asdict(result.row))
        assert msgspec.json.decode(msgspec.json.encode(result.row), type=FeatureRow) == result.row
        assert result.row.volume == float(flow.volume)
        assert result.row.delta == float(flow.delta)
        signal = analyst.analyze(result.row, result.context, 0)
        _assert_finite(msgspec.structs.asdict(signal))
        assert signal.p_up is not None
        assert signal.p_flat is not None
        assert signal.p_down is not None
        assert abs(signal.p_up + signal.p_flat + signal.p_down - 1.0) < 1e-9
        assert 0.0 <= signal.confidence <= 1.0
        if signal.invalidation is not None:
            assert signal.price is not None
            is_buy = signal.action.value == "BUY"
            assert (signal.invalidation < signal.price) == is_buy


@given(windows())
def test_the_same_windows_give_the_same_rows(
    sequence: list[tuple[FlowMetrics, BookWindow | None]],
) -> None:
    first, second = DataPipeline(SETTINGS), DataPipeline(SETTINGS)
    for flow, book in sequence:
        assert first.process(flow, book) == second.process(flow, book)


@given(windows(), st.randoms(use_true_random=False))
def test_when_scores_learn_of_a_window_changes_no_row(
    sequence: list[tuple[FlowMetrics, BookWindow | None]], random: Random
) -> None:
    at_once, later = DataPipeline(SETTINGS), DataPipeline(SETTINGS, learns_later=True)
    warmed = random.randrange(len(sequence) + 1)
    for k, (flow, book) in enumerate(sequence):
        if k == warmed:
            for pipeline in (at_once, later):
                pipeline.warm(flow.symbol, [], [])
        assert at_once.process(flow, book) == later.process(flow, book)
        while later.unlearnt and random.random() < 0.5:
            later.learn_more()
