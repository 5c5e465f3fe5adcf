from __future__ import annotations

from decimal import Decimal
from math import log, sqrt
from pathlib import Path

import pytest

from data_pipeline.enrich import EnrichSettings, book_shape, enrich, realized_vol
from tests.pipeline_samples import DAY, book_window, metrics, silent, snapshot, vector

SETTINGS = EnrichSettings()


def test_realized_vol_is_the_root_of_the_worked_examples_variance(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "realized_vol")
    closes = tuple(example["inputs"]["close_1m"])
    assert realized_vol(closes) == pytest.approx(sqrt(example["expected"]["rv"]), abs=1e-12)


def test_a_second_without_trades_carries_no_return() -> None:
    expected = sqrt(log(102 / 100) ** 2 + log(101 / 102) ** 2)
    assert realized_vol((100.0, None, 102.0, None, 101.0)) == pytest.approx(expected)


@pytest.mark.parametrize("closes", [(), (None,) * 5, (100.0, 101.0), (100.0, None, 101.0, None)])
def test_realized_vol_needs_two_returns(closes: tuple[float | None, ...]) -> None:
    assert realized_vol(closes) is None


def test_a_constant_price_has_no_volatility_but_a_value() -> None:
    assert realized_vol((100.0,) * 5) == 0.0


def test_exact_values_become_their_nearest_doubles() -> None:
    window = enrich(metrics(price="0.1", buy="0.3", sell="0.1"), None, SETTINGS)
    assert (window.close, window.volume, window.delta) == (0.1, 0.4, 0.2)
    assert window.quote_volume == float(Decimal("0.04"))
    assert window.shape is None


def test_a_silent_window_has_sums_and_no_prices() -> None:
    window = enrich(silent(DAY), book_window(DAY), SETTINGS)
    assert (window.volume, window.delta, window.net_flow_quote) == (0.0, 0.0, 0.0)
    assert (window.open, window.close, window.vwap, window.realized_vol) == (None,) * 4
    assert window.shape is not None  # the book is there all the same


def test_the_shape_is_that_of_the_last_snapshot() -> None:
    bids = [(100.0 - k, 1.0 + k) for k in range(20)]
    asks = [(102.0 + k, 3.0) for k in range(20)]
    shape = book_shape(snapshot(bids, asks), SETTINGS)
    assert shape is not None
    assert (shape.mid_price, shape.bid_size, shape.ask_size) == (101.0, 1.0, 3.0)
    assert shape.spread_bps == pytest.approx(2.0 / 101.0 * 1e4)
    assert shape.microprice == pytest.approx(0.25 * 102.0 + 0.75 * 100.0)
    assert shape.imbalance_1 == -0.5
    assert shape.imbalance_5 == 0.0
    assert shape.imbalance_10 == pytest.approx(2 * 55 / 85 - 1)
    assert shape.imbalance_20 == pytest.approx(2 * 210 / 270 - 1)
    assert shape.bids.within == [0.0, 0.0, 0.0, 0.0]
    assert shape.bids.total == pytest.approx(sum(price * size for price, size in bids))


def test_walls_stand_out_from_the_levels_around_them() -> None:
    bids = [(1000.0 - 0.1 * k, 20.0) for k in range(20)]
    asks = [(1000.1 + 0.1 * k, 20.0 if k != 7 else 400.0) for k in range(20)]
    shape = book_shape(snapshot(bids, asks), SETTINGS)
    assert shape is not None
    assert shape.bid_walls == ()
    (wall,) = shape.ask_walls
    assert wall.price == pytest.approx(1000.8)
    assert wall.size == 400.0


def test_a_one_sided_book_gives_no_shape() -> None:
    assert book_shape(snapshot([(100.0, 1.0)], []), SETTINGS) is None
