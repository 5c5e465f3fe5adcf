from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api.connector_quality import (
    Gap,
    QualityCheck,
    gap_settings,
    outlier_settings,
)

MINUTE = 60_000
T0 = 1_721_347_200_000  # 2024-07-19 00:00 UTC
JAN, FEB, MAY, JUN = 1_704_067_200_000, 1_706_745_600_000, 1_714_521_600_000, 1_717_200_000_000


def bars(opens, closes=None, size: int = MINUTE) -> dict[str, np.ndarray]:
    keys = np.array(opens, np.int64)
    prices = np.array(closes if closes is not None else np.full(len(keys), 100.0), np.float64)
    return {
        "open_time_ms": keys,
        "close_time_ms": keys + size - 1,
        **dict.fromkeys(("open", "high", "low", "close"), prices),
        "volume": np.full(len(keys), 2.0),
        "trade_count": np.full(len(keys), 3, np.int64),
    }


def checker(interval="1m", gaps=None, outliers=None, expected=None) -> QualityCheck:
    return QualityCheck(
        interval,
        gap_settings(gaps, interval=interval),
        outlier_settings(outliers, interval=interval),
        expected=expected,
    )


def minutes(*numbers: int) -> list[int]:
    return [T0 + MINUTE * n for n in numbers]


def hole(first: int, after: int) -> Gap:
    return Gap(T0 + MINUTE * first, T0 + MINUTE * after, after - first)


def test_the_row_after_a_hole_is_marked_and_nothing_else() -> None:
    checked = checker().check(bars(minutes(0, 1, 4, 5)))
    assert checked.columns["gap"].tolist() == [False, False, True, False]
    assert checked.gaps == [hole(2, 4)]
    assert len(checked.columns["close"]) == 4


def test_a_hole_between_two_pieces_is_found() -> None:
    check = checker(expected=T0)
    assert check.check(bars(minutes(0, 1))).gaps == []
    assert check.check(bars(minutes(3))).gaps == [hole(2, 3)]
    assert check.check(bars([])).gaps == []
    assert check.check(bars(minutes(4))).columns["gap"].tolist() == [False]


def test_missing_rows_at_both_ends_of_a_range_are_found() -> None:
    check = checker(expected=T0)
    checked = check.check(bars(minutes(2, 3)))
    assert checked.columns["gap"].tolist() == [True, False]
    checked = check.ended(checked, T0 + 6 * MINUTE)
    assert checked.gaps == [hole(0, 2), hole(4, 6)]
    assert check.ended(checked, T0 + 4 * MINUTE).gaps == checked.gaps


def test_a_filled_hole_has_flat_rows_at_the_last_close_each_marked() -> None:
    checked = checker(gaps={"fill": True}).check(bars(minutes(0, 3), [100.0, 104.0]))
    columns = checked.columns
    assert columns["open_time_ms"].tolist() == minutes(0, 1, 2, 3)
    assert columns["gap"].tolist() == [False, True, True, False]
    assert columns["close"].tolist() == [100.0, 100.0, 100.0, 104.0]
    assert columns["volume"].tolist() == [2.0, 0.0, 0.0, 2.0]
    assert columns["trade_count"].tolist() == [3, 0, 0, 3]
    assert columns["close_time_ms"].tolist() == [t + MINUTE - 1 for t in minutes(0, 1, 2, 3)]
    assert checked.gaps == [hole(1, 3)]


def test_a_hole_between_pieces_is_filled_with_the_close_before_it() -> None:
    check = checker(gaps={"fill": True})
    check.check(bars(minutes(0), [42.0]))
    assert check.check(bars(minutes(2), [50.0])).columns["close"].tolist() == [42.0, 50.0]


def test_a_hole_that_is_too_long_or_has_nothing_before_it_stays_a_hole() -> None:
    checked = checker(gaps={"fill": True, "max_fill": 1}, expected=T0).check(bars(minutes(1, 3, 6)))
    assert checked.columns["open_time_ms"].tolist() == minutes(1, 2, 3, 6)
    assert checked.columns["gap"].tolist() == [True, True, False, True]


def test_small_holes_can_be_tolerated() -> None:
    checked = checker(gaps={"min_missing": 2}).check(bars(minutes(0, 2, 5)))
    assert checked.columns["gap"].tolist() == [False, False, True]


def test_weeks_follow_each_other_on_mondays() -> None:
    week, monday = 7 * 86_400_000, 1_721_001_600_000  # 2024-07-15
    assert checker("1w").check(bars([monday, monday + week], size=week)).gaps == []
    checked = checker("1w").check(bars([monday, monday + 3 * week], size=week))
    assert checked.gaps == [Gap(monday + week, monday + 3 * week, 2)]


def test_months_follow_each_other_whatever_their_length() -> None:
    assert checker("1M").check(bars([JAN, FEB])).gaps == []
    checked = checker("1M", gaps={"fill": True}).check(bars([FEB, JUN]))
    assert checked.gaps == [Gap(FEB + 29 * 86_400_000, JUN, 3)]
    assert checked.columns["open_time_ms"][3] == MAY
    ten_years = 1_704_067_200_000 - 1_388_534_400_000
    assert checker("1M").check(bars([JAN - ten_years, JAN])).gaps[0].missing == 119


def test_missing_ids_of_ticks_are_gaps() -> None:
    ticks = {
        "agg_trade_id": np.array([5, 6, 9]),
        "price": np.array([1.0, 1.0, 1.0]),
        "quantity": np.array([1.0, 1.0, 1.0]),
    }
    checked = checker(None, expected=5).check(ticks)
    assert checked.columns["gap"].tolist() == [False, False, True]
    assert checked.gaps == [Gap(7, 9, 2)]


def walk(count: int, seed: int = 1) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(0, 0.001, count)
    return 100.0 * np.exp(np.cumsum(steps))


@pytest.mark.parametrize("method", ["iqr", "zscore", "rolling"])
def test_a_jump_of_the_price_is_an_outlier_and_ordinary_steps_are_not(method: str) -> None:
    closes = walk(400)
    closes[300:] *= 1.05
    checked = checker(outliers={"method": method}).check(bars(minutes(*range(400)), closes))
    assert np.flatnonzero(checked.columns["outlier"]).tolist() == [300]


@pytest.mark.parametrize("method", ["iqr", "zscore", "rolling"])
def test_few_rows_and_a_flat_price_have_no_outliers(method: str) -> None:
    few = checker(outliers={"method": method}).check(bars(minutes(0, 1, 2), [1.0, 2.0, 1.0]))
    assert not few.columns["outlier"].any()
    flat = bars(minutes(*range(100)))
    assert not checker(outliers={"method": method}).check(flat).columns["outlier"].any()


def test_the_threshold_and_the_column_decide() -> None:
    columns = bars(minutes(*range(300)), walk(300))
    columns["volume"] = np.abs(np.random.default_rng(2).normal(10, 1, 300))
    columns["volume"][250] = 1_000.0
    assert checker(outliers={"threshold": 1.0}).check(columns).columns["outlier"].sum() > 20
    marked = checker(outliers={"column": "volume", "threshold": 8}).check(columns)
    assert np.flatnonzero(marked.columns["outlier"]).tolist() == [250]


def test_filled_rows_are_no_outliers_and_do_not_change_what_is_usual() -> None:
    closes = walk(300)
    closes[250:] *= 1.05
    opens = minutes(*range(200), *range(210, 310))
    plain = checker().check(bars(opens, closes))
    filled = checker(gaps={"fill": True}).check(bars(opens, closes))
    real = ~filled.columns["gap"]
    assert not filled.columns["outlier"][~real].any()
    assert filled.columns["outlier"][real].tolist() == plain.columns["outlier"].tolist()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 2**32))
def test_a_series_in_pieces_gets_the_marks_of_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    closes = walk(count, seed) * np.where(rng.random(count) < 0.03, 1.03, 1.0)
    opens = T0 + MINUTE * np.cumsum(1 + (rng.random(count) < 0.05))
    whole = checker(outliers={"window": 50}).check(bars(opens, closes))
    check, pieces = checker(outliers={"window": 50}), []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        piece = check.check(bars(opens[end - size : end], closes[end - size : end]))
        pieces.append(piece.columns)
    for name in ("gap", "outlier"):
        joint = np.concatenate([piece[name] for piece in pieces])
        assert joint.tolist() == whole.columns[name].tolist()


@pytest.mark.parametrize(
    "given_params",
    [
        {"method": "magic"},
        {"windw": 3},
        {"window": 3},
        {"threshold": 0},
        {"threshold": -1.0},
        {"column": "symbol"},
        {"window": "x"},
    ],
)
def test_outlier_params_that_mean_nothing_are_refused(given_params: dict) -> None:
    with pytest.raises(ValueError, match="outlier_params"):
        outlier_settings(given_params, interval="1m")


@pytest.mark.parametrize(
    "given_params", [{"fil": True}, {"fill": "x"}, {"max_fill": 0}, {"min_missing": 0}]
)
def test_gap_params_that_mean_nothing_are_refused(given_params: dict) -> None:
    with pytest.raises(ValueError, match="gap_params"):
        gap_settings(given_params, interval="1m")


def test_ticks_cannot_be_filled() -> None:
    with pytest.raises(ValueError, match="ticks cannot be filled"):
        gap_settings({"fill": True}, interval=None)
