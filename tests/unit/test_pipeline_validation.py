from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from data_pipeline.validation import Rejected, Validated, validate
from tests.pipeline_samples import DAY, WINDOW_MS, metrics, silent


def test_sound_windows_pass_unchanged() -> None:
    for window in (metrics(), silent(DAY), metrics(buy="0"), metrics(sell="0")):
        result = validate(window, WINDOW_MS)
        assert isinstance(result, Validated)
        assert result.metrics is window
        assert result.corrected == ()


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("volume", Decimal(5), Decimal(4)),
        ("delta", Decimal(-2), Decimal(2)),
        ("whale_delta", Decimal(1), Decimal(0)),
        ("flow_imbalance", Decimal("1.5"), Decimal("0.5")),
        ("vwap", Decimal(99), Decimal(100)),
    ],
)
def test_what_follows_from_other_numbers_is_recomputed(
    field: str, wrong: Decimal, right: Decimal
) -> None:
    changes: dict[str, Any] = {field: wrong}
    result = validate(metrics(**changes), WINDOW_MS)
    assert isinstance(result, Validated)
    assert field in result.corrected
    assert getattr(result.metrics, field) == right


def test_totals_are_compared_exactly_beyond_28_digits() -> None:
    total = "1234567890123456789012.00000001000000000001"
    buy, sell = "1234567890123456789012.00000001", "0.00000000000000000001"
    window = metrics(price="1", buy=buy, sell=sell, volume=Decimal(buy))
    result = validate(window, WINDOW_MS)
    assert isinstance(result, Validated)
    assert "volume" in result.corrected
    assert str(result.metrics.volume) == total


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window_end_ms": DAY + 4000}, "time"),
        ({"window_start_ms": DAY + 1, "window_end_ms": DAY + 5001}, "time"),
        ({"trade_count": -1}, "count"),
        ({"whale_count": 8}, "count"),
        ({"cvd": Decimal("NaN")}, "not_finite"),
        ({"flow_imbalance": Decimal("NaN")}, "not_finite"),
        ({"high": Decimal("Infinity")}, "not_finite"),
        ({"net_flow_quote": Decimal("1e40")}, "out_of_range"),
        ({"low": Decimal("1e-40")}, "out_of_range"),
        ({"sell_volume": Decimal(-1)}, "negative_volume"),
        ({"close": None}, "price_missing"),
        ({"low": Decimal(101)}, "ohlc"),
        ({"high": Decimal(99)}, "ohlc"),
        ({"quote_volume": Decimal(401)}, "quote_volume"),
        ({"trade_count": 0}, "silent_window_not_empty"),
    ],
)
def test_what_would_have_to_be_invented_rejects_the_window(
    changes: dict[str, Any], reason: str
) -> None:
    assert validate(metrics(**changes), WINDOW_MS) == Rejected(reason)


def test_a_silent_window_with_a_price_is_rejected() -> None:
    window = metrics(buy="0", sell="0", close=Decimal(100))
    assert validate(window, WINDOW_MS) == Rejected("silent_window_not_empty")
