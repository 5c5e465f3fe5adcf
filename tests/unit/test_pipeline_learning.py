"""What windows teach reaches the next ones, whenever it is learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_pipeline.absorption import AbsorptionSettings
from data_pipeline.bars import BarSettings
from data_pipeline.context import ContextSettings
from data_pipeline.features import FeatureSettings
from data_pipeline.pipeline import DataPipeline, PipelineResult, PipelineSettings
from data_pipeline.walls import WallSettings
from domain.flow import BookWindow, FlowMetrics
from tests.pipeline_samples import DAY, WINDOW_MS, book_window, metrics
from tests.pipeline_samples import snapshot as depth

SETTINGS = PipelineSettings(
    features=FeatureSettings(zscore_lookback_s=100, zscore_minimum_windows=4),
    absorption=AbsorptionSettings(minimum_bars=20),
    context=ContextSettings(
        bars=BarSettings(
            volatility_bars=3, volatility_minimum=2, reference_bars=10, reference_minimum=4
        ),
        walls=WallSettings(quantile=0.9, quantile_levels=100),
    ),
)
SECONDS = 5


def _windows(count: int, seed: int) -> Iterator[tuple[FlowMetrics, BookWindow | None]]:
    draw = random.Random(seed)
    start_ms, price = DAY, 100.0
    for _ in range(count):
        price *= 1 + draw.gauss(0, 1e-3)
        flow = metrics(
            start_ms,
            price=f"{price:.2f}",
            buy=f"{draw.random():.3f}",
            sell=f"{draw.random():.3f}",
            complete=draw.random() < 0.95,
            second_closes=tuple(price + draw.gauss(0, 0.01) for _ in range(SECONDS)),
            second_sides=tuple(draw.choice((-1, 1)) for _ in range(SECONDS)),
            second_flows=tuple(draw.gauss(0, 1) for _ in range(SECONDS)),
        )
        sizes = [draw.choice([1.0] * 6 + [500.0]) for _ in range(20)]
        bids = [(round(price, 1) - 0.1 * n, size) for n, size in enumerate(sizes)]
        asks = [(round(price, 1) + 0.1 * n + 0.1, 1.0) for n in range(20)]
        book = book_window(start_ms, depth(bids, asks, start_ms + 4900))
        yield flow, book if draw.random() < 0.95 else None
        start_ms += WINDOW_MS * draw.choice([1] * 200 + [2, 13, 200])


def test_rows_do_not_depend_on_when_it_is_learnt() -> None:
    windows = list(_windows(600, seed=3))
    before = DataPipeline(SETTINGS)
    stored = [row for flow, book in windows[:60] if (row := before.process(flow, book).row)]
    at_once, later = DataPipeline(SETTINGS), DataPipeline(SETTINGS, learns_later=True)
    draw, found = random.Random(4), list[PipelineResult]()
    for number, window in enumerate(windows[60:]):
        if number == 20:
            for pipeline in (at_once, later):
                pipeline.warm("BTCUSDT", [], stored)
        is_repeated = number % 50 == 7  # a window comes again, out of sequence
        for flow, book in (window, windows[number + 57]) if is_repeated else (window,):
            found.append(later.process(flow, book))
            assert at_once.process(flow, book) == found[-1]
        while later.unlearnt and draw.random() < 0.6:
            later.learn_more()
    rows = [result.row for result in found if result.row is not None]
    for name in ("delta_z", "absorption", "volatility_ratio", "bid_wall_price"):
        assert sum(getattr(row, name) is not None for row in rows) > 10, name


def test_a_level_that_is_usual_for_the_symbol_stops_being_a_wall() -> None:
    pipeline = DataPipeline(SETTINGS)
    shown = []
    for number in range(12 * 5):  # five of forty levels are large in every window
        bids = [(1000.0 - n / 10, 500.0 if 3 <= n < 8 else 20.0) for n in range(20)]
        asks = [(1000.1 + n / 10, 20.0) for n in range(20)]
        at_ms = DAY + number * WINDOW_MS
        row = pipeline.process(metrics(at_ms), book_window(at_ms, depth(bids, asks, at_ms))).row
        assert row is not None
        shown.append(row.bid_wall_price)
    assert shown[5] is not None
    bids[10] = (999.0, 300.0)
    for number in range(60, 63):
        at_ms = DAY + number * WINDOW_MS
        book = depth([(p, s if p == 999.0 else 20.0) for p, s in bids], asks, at_ms)
        row = pipeline.process(metrics(at_ms), book_window(at_ms, book)).row
        assert row is not None
        assert row.bid_wall_price is None  # large beside its neighbours, usual for the symbol
