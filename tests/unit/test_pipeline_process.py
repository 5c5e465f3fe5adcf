from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from data_pipeline.context import sample_of_window
from data_pipeline.enrich import book_shape, enrich
from data_pipeline.features import FeatureSettings, ZScoreHistory
from data_pipeline.pipeline import DataPipeline, PipelineSettings
from domain.context import MarketContext
from domain.features import FeatureRow
from domain.flow import BookWindow, FlowMetrics
from tests.pipeline_samples import DAY, DAY_MS, WINDOW_MS, book_window, kline, metrics, silent
from tests.pipeline_samples import snapshot as depth

QUICK = PipelineSettings(
    features=FeatureSettings(zscore_lookback_s=100, zscore_minimum_windows=4)  # 20 windows
)
SCORES = ("delta_z", "volume_z", "net_flow_quote_z", "trade_count_z", "ofi_z", "spread_bps_z")


def _windows(count: int, seed: int = 1) -> list[tuple[FlowMetrics, BookWindow]]:
    source = random.Random(seed)
    windows = []
    price = 100.0
    for k in range(count):
        price *= 1 + source.gauss(0, 1e-3)
        start_ms = DAY + k * WINDOW_MS
        flow = metrics(
            start_ms,
            price=f"{price:.2f}",
            buy=f"{source.random():.3f}",
            sell=f"{source.random():.3f}",
            trade_count=source.randrange(1, 50),
        )
        bids = [(price - 0.1 * n, source.random() + 0.1) for n in range(20)]
        asks = [(price + 0.1 * n + source.random(), 1.0) for n in range(1, 21)]
        last = depth(bids, sorted(asks), start_ms + 4900)
        windows.append((flow, book_window(start_ms, last, ofi=source.gauss(0, 5))))
    return windows


def _row(pipeline: DataPipeline, flow: FlowMetrics, book: BookWindow | None = None) -> FeatureRow:
    result = pipeline.process(flow, book)
    assert result.rejected is None
    assert result.row is not None
    return result.row


def _columns(row: FeatureRow) -> dict[str, Any]:
    return msgspec.structs.asdict(row)


def test_a_row_carries_the_exact_columns_as_nearest_doubles() -> None:
    row = _row(DataPipeline(QUICK), metrics(price="0.3", buy="0.1", sell="0.2"), book_window(DAY))
    assert (row.symbol, row.window_start_ms, row.revision) == ("BTCUSDT", DAY, 0)
    assert (row.open, row.vwap, row.volume, row.delta) == (0.3, 0.3, 0.3, -0.1)
    assert row.flow_imbalance == float(Decimal("-0.1") / Decimal("0.3"))
    assert row.participant_volume == (0.1, 0.2)
    assert (row.depth_frames, row.ofi, row.origin) == (50, 1.5, "live")
    assert row.spread_bps == pytest.approx(0.1 / 100.05 * 1e4)


def test_a_book_measured_ahead_changes_no_row() -> None:
    at_once, ahead = DataPipeline(QUICK), DataPipeline(QUICK)
    for flow, book in _windows(30):
        assert book.last is not None
        ahead.measure_ahead(book.last)
        assert _row(ahead, flow, book) == _row(at_once, flow, book)


def test_a_book_measured_ahead_is_not_taken_for_another() -> None:
    pipeline = DataPipeline(QUICK)
    (_, other), (flow, book) = _windows(2)
    assert other.last is not None
    pipeline.measure_ahead(other.last)
    assert _row(pipeline, flow, book) == _row(DataPipeline(QUICK), flow, book)


def test_the_revision_is_passed_on() -> None:
    result = DataPipeline(QUICK).process(metrics(), None, revision=3)
    assert result.row is not None
    assert result.row.revision == 3


def test_a_silent_window_has_sums_of_zero_and_no_prices() -> None:
    row = _row(DataPipeline(QUICK), silent(DAY))
    assert (row.volume, row.delta, row.flow_imbalance, row.trade_count) == (0.0, 0.0, 0.0, 0)
    assert (row.open, row.close, row.vwap, row.realized_vol, row.price) == (None,) * 5


def test_without_a_book_its_columns_are_null() -> None:
    row = _row(DataPipeline(QUICK), metrics())
    assert row.depth_frames == 0
    for name, value in _columns(row).items():
        if name.startswith(("bid_", "ask_", "depth_bid", "depth_ask", "book_", "ofi", "spread")):
            assert value is None, name


def test_a_rejected_window_has_no_row_and_ages_the_context() -> None:
    pipeline = DataPipeline(QUICK)
    _row(pipeline, metrics(DAY))
    result = pipeline.process(metrics(DAY + WINDOW_MS, low=Decimal(101)), None)
    assert (result.row, result.rejected) == (None, "ohlc")
    assert result.context.price == 100.0
    assert _row(pipeline, metrics(DAY + 2 * WINDOW_MS)).history_windows == 1
    counts = pipeline.statistics()
    assert (counts["validation_in"], counts["validation_out"]) == (3, 2)
    assert counts["validation_rejected"] == 1
    assert counts["features_out"] == 2


def test_a_corrected_window_is_counted_and_stored_corrected() -> None:
    pipeline = DataPipeline(QUICK)
    assert _row(pipeline, metrics(volume=Decimal(9))).volume == 4.0
    assert pipeline.statistics()["validation_corrected"] == 1


def test_a_crossed_book_is_counted_and_leaves_its_columns_null() -> None:
    pipeline = DataPipeline(QUICK)
    crossed = book_window(DAY, depth([(101.0, 1.0)], [(100.0, 1.0)]))
    row = _row(pipeline, metrics(), crossed)
    assert (row.spread_bps, row.microprice, row.book_imbalance) == (None, None, None)
    assert (row.depth_frames, row.ofi) == (50, 1.5)
    assert pipeline.statistics()["enrich_rejected"] == 1


def test_scores_wait_for_their_minimum_of_past_windows() -> None:
    pipeline = DataPipeline(QUICK)
    for k, (flow, book) in enumerate(_windows(6)):
        row = _columns(_row(pipeline, flow, book))
        for name in SCORES:
            assert (row[name] is None) == (k < 4), (k, name)


def test_scores_compare_with_the_past_only() -> None:
    windows = _windows(30)
    quiet, loud = DataPipeline(QUICK), DataPipeline(QUICK)
    for flow, book in windows[:-1]:
        _row(quiet, flow, book)
        _row(loud, flow, book)
    last, book = windows[-1]
    usual = _row(quiet, metrics(last.window_start_ms, buy="1", sell="0"), book)
    spike = _row(loud, metrics(last.window_start_ms, buy="1001", sell="0"), book)
    past = [float(flow.delta) for flow, _ in windows[9:-1]]  # the last 20 before it
    mean = sum(past) / 20
    deviation = (sum((value - mean) ** 2 for value in past) / 19) ** 0.5
    assert usual.delta_z == pytest.approx((1.0 - mean) / deviation)
    assert spike.delta_z == pytest.approx((1001.0 - mean) / deviation)


def test_incomplete_windows_are_scored_but_not_remembered() -> None:
    pipeline, clean = DataPipeline(QUICK), DataPipeline(QUICK)
    windows = _windows(12)
    for k, (flow, book) in enumerate(windows):
        partial = k == 8
        if partial:
            flow = metrics(flow.window_start_ms, buy="999", complete=False)  # noqa: PLW2901
        row = _row(pipeline, flow, book)
        if partial:
            assert row.delta_z is not None
        else:
            found = _row(clean, flow, book)
            assert row.delta_z == pytest.approx(found.delta_z) if k > 4 else True


def test_a_constant_measure_has_no_score() -> None:
    pipeline = DataPipeline(QUICK)
    for k in range(10):
        row = _row(pipeline, metrics(DAY + k * WINDOW_MS), book_window(DAY + k * WINDOW_MS))
    assert (row.delta_z, row.volume_z, row.spread_bps_z) == (None, None, None)


def test_a_window_out_of_sequence_has_no_look_backs_and_changes_nothing() -> None:
    windows = _windows(40)
    pipeline, undisturbed = DataPipeline(QUICK), DataPipeline(QUICK)
    for flow, book in windows[:30]:
        _row(pipeline, flow, book)
        _row(undisturbed, flow, book)
    late = _row(pipeline, *windows[3])
    assert (late.delta_z, late.return_1m_bps, late.history_windows) == (None, None, 1)
    assert late.volume == float(windows[3][0].volume)
    for flow, book in windows[30:]:
        assert _row(pipeline, flow, book) == _row(undisturbed, flow, book)
    assert pipeline.statistics()["context_rejected"] == 1


def test_the_row_repeats_the_context() -> None:
    pipeline = DataPipeline(QUICK)
    for flow, book in _windows(200):
        result = pipeline.process(flow, book)
    assert result.row is not None
    row = _columns(result.row)
    shared = set(MarketContext.__struct_fields__) & set(row)
    assert len(shared) > 20
    for name in shared:
        assert row[name] == getattr(result.context, name), name


def test_a_context_is_json() -> None:
    result = DataPipeline(QUICK).process(metrics(), book_window(DAY))
    text = msgspec.json.encode(result.context)
    assert msgspec.json.decode(text, type=MarketContext) == result.context


def test_walls_age_while_they_stand() -> None:
    pipeline = DataPipeline(QUICK)
    ages = []
    for k, size in enumerate((900.0, 800.0, 700.0, 1.0, 900.0, 900.0)):
        bids = [(1000.0 - n / 10, 5.0 if n != 3 else size) for n in range(20)]
        book = book_window(DAY, depth(bids, [(1000.1 + n / 10, 5.0) for n in range(20)]))
        row = _row(pipeline, metrics(DAY + k * WINDOW_MS), book)
        ages.append(row.bid_wall_age_s)
    assert ages == [None, 5.0, 10.0, None, None, 5.0]  # one that is new does not stand yet
    assert (row.bid_wall_price, row.bid_wall_size, row.ask_wall_price) == (999.7, 900.0, None)


def _restart(
    windows: list[tuple[FlowMetrics, BookWindow]], stop: int, seen_before_warming: int
) -> tuple[list[FeatureRow], list[FeatureRow]]:
    whole = DataPipeline(QUICK)
    expected = [_row(whole, flow, book) for flow, book in windows]
    restarted = DataPipeline(QUICK)
    found = [_row(restarted, *window) for window in windows[stop : stop + seen_before_warming]]
    stored = expected[:stop]
    restarted.warm("BTCUSDT", [], [*stored, *stored[-5:]])
    found += [_row(restarted, *window) for window in windows[stop + seen_before_warming :]]
    return expected[stop:], found


@pytest.mark.parametrize("seen", [0, 7])
def test_a_restart_warmed_from_stored_rows_goes_on_as_if_nothing_had_happened(seen: int) -> None:
    expected, found = _restart(_windows(260), 200, seen)
    for before, after in zip(expected[seen:], found[seen:], strict=True):
        known, got = _columns(before), _columns(after)
        for name, value in known.items():
            if name.endswith("wall_age_s"):
                continue
            if isinstance(value, float):
                assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
            else:
                assert got[name] == value, name


def test_of_several_revisions_of_a_row_the_highest_warms() -> None:
    pipeline = DataPipeline(QUICK)
    source = DataPipeline(QUICK)
    first = _row(source, metrics(DAY, price="90"))
    second = msgspec.structs.replace(first, revision=1, close=95.0, high=95.0, low=90.0)
    pipeline.warm("BTCUSDT", [], [second, first])
    assert _row(pipeline, metrics(DAY + WINDOW_MS)).high_15m == 100.0
    assert _row(pipeline, silent(DAY + 2 * WINDOW_MS)).low_15m == 90.0


def test_klines_fill_the_levels_at_once() -> None:
    pipeline = DataPipeline(QUICK)
    bars = [kline(DAY - DAY_MS + k * 60_000, str(90 + k % 21)) for k in range(1440 + 60)]
    random.Random(2).shuffle(bars)
    pipeline.warm("BTCUSDT", [*bars, *bars[:50]], [])
    row = _row(pipeline, metrics(DAY + 3600_000), book_window(DAY + 3600_000))
    assert (row.previous_high, row.previous_low) == (110.0, 90.0)
    assert row.previous_close == 90 + 1439 % 21
    assert row.pivot == pytest.approx((110 + 90 + row.previous_close) / 3)
    assert row.profile_poc is not None
    assert row.volatility_regime == "normal"
    assert row.trend_regime is not None
    assert row.return_15m_bps is not None
    assert row.session_coverage_ratio == 1.0
    assert row.delta_z is None  # klines know nothing of windows


def test_warming_again_adds_nothing_twice() -> None:
    pipeline = DataPipeline(QUICK)
    bars = [kline(DAY + k * 60_000) for k in range(60)]
    pipeline.warm("BTCUSDT", bars, [])
    first = _row(pipeline, metrics(DAY + 3600_000))
    pipeline.warm("BTCUSDT", bars, [])
    second = _row(pipeline, silent(DAY + 3600_000 + WINDOW_MS))
    assert first.session_vwap == second.session_vwap
    assert second.session_coverage_ratio == 1.0


def test_warming_late_still_brings_the_day_and_its_levels() -> None:
    settings = PipelineSettings(rewarm_windows=3)
    pipeline = DataPipeline(settings)
    start_ms = DAY + 3600_000
    for k in range(10):
        row = _row(pipeline, metrics(start_ms + k * WINDOW_MS))
    assert row.pivot is None
    bars = [kline(DAY - DAY_MS + k * 60_000, "90") for k in range(1440 + 62)]
    pipeline.warm("BTCUSDT", bars, [])
    row = _row(pipeline, silent(start_ms + 10 * WINDOW_MS))
    assert row.pivot == 90.0
    assert row.session_vwap == pytest.approx((600 * 90.0 + 40 * 100.0) / 640)
    assert row.session_coverage_ratio == 1.0
    assert row.history_windows == 11


def test_the_row_repeats_the_flow_column_by_column() -> None:
    distinct = iter(range(101, 200))
    optional = [
        name
        for name, value in msgspec.structs.asdict(metrics()).items()
        if value is None and name not in {"first_agg_id", "last_agg_id"}
    ]
    exact = {"net_flow_quote_1m", "net_flow_quote_5m", "net_flow_quote_15m", "whale_quantile_delta"}
    values: dict[str, Any] = {
        name: Decimal(next(distinct)) if name in exact else next(distinct) for name in optional
    }
    values |= {"burst_count": 31, "suspect_count": 32, "sweep_count": 33, "missing_trades": 34}
    values |= {"open": Decimal(99), "high": Decimal(102), "low": Decimal(98), "cvd": Decimal(77)}
    values |= {"whale_count": 3, "whale_buy_volume": Decimal(2), "whale_sell_volume": Decimal(1)}
    flow = metrics(complete=False, cvd_complete=False, whale_delta=Decimal(1), **values)
    row = _columns(_row(DataPipeline(QUICK), flow, book_window(DAY)))
    for name, value in msgspec.structs.asdict(flow).items():
        if not name.startswith("second_") and name != "schema_version":
            expected = tuple(map(float, value)) if isinstance(value, tuple) else value
            assert row[name] == expected, name


def test_the_row_repeats_the_book_column_by_column() -> None:
    source = random.Random(4)
    bids = [(1000.0 - 0.02 * 1.6**n, 1.0 + source.random()) for n in range(12)]
    asks = [(1000.1 + 0.03 * 1.6**n, 1.0 + source.random()) for n in range(12)]
    bids[4], asks[5] = (bids[4][0], 100.0), (asks[5][0], 120.0)
    last = depth(bids, asks)
    shape = book_shape(last, QUICK.enrich)
    assert shape is not None
    pipeline = DataPipeline(QUICK)
    _row(pipeline, metrics(DAY - WINDOW_MS), book_window(DAY - WINDOW_MS, last))
    row = _columns(_row(pipeline, metrics(), book_window(DAY, last)))
    for name in ("mid_price", "bid_price", "bid_size", "ask_price", "ask_size", "microprice"):
        assert row[name] == getattr(shape, name), name
    assert row["spread_bps"] == shape.spread_bps
    for levels, name in ((1, "_1"), (5, ""), (10, "_10"), (20, "_20")):
        assert row[f"book_imbalance{name}"] == getattr(shape, f"imbalance_{levels}")
    for side, profile, wall in (
        ("bid", shape.bids, shape.bid_walls[0]),
        ("ask", shape.asks, shape.ask_walls[0]),
    ):
        within = [row[f"depth_{side}_{band}bps_quote"] for band in (1, 5, 10, 25)]
        assert within == profile.within
        assert row[f"depth_{side}_quote"] == profile.total
        assert row[f"depth_{side}_reach_bps"] == profile.reach_bps
        assert row[f"{side}_wall_price"] == wall.price
        assert row[f"{side}_wall_size"] == wall.size
        assert row[f"{side}_wall_distance_bps"] == wall.distance_bps
        assert row[f"{side}_wall_age_s"] == 5.0


def test_the_row_repeats_the_key_levels_and_scores_by_name() -> None:
    pipeline = DataPipeline(QUICK)
    bars = [
        kline(DAY - DAY_MS + k * 60_000, f"{100 + (k * k % 997) / 100:.2f}") for k in range(1440)
    ]
    pipeline.warm("BTCUSDT", bars, [])
    twin = ZScoreHistory("BTCUSDT", WINDOW_MS, QUICK.features)
    for flow, book in _windows(12):
        result = pipeline.process(flow, book)
        sample = sample_of_window(enrich(flow, book, QUICK.enrich))
        scores = twin.score(sample)
        twin.remember(sample)
    assert result.row is not None
    row, levels = _columns(result.row), result.context.levels
    assert levels is not None
    for column, field in (
        *((f"previous_{name}", name) for name in ("high", "low", "close")),
        *((f"pivot_{name}", name) for name in ("r1", "r2", "r3", "s1", "s2", "s3")),
        *((f"profile_{name}", name) for name in ("poc", "vah", "val")),
        ("pivot", "pivot"),
    ):
        assert row[column] == getattr(levels, field), column
    for name, value in msgspec.structs.asdict(scores).items():
        assert row[f"{name}_z"] == value, name
