from __future__ import annotations

import numpy as np
import pytest

from microstructure.book_tape import BookTape
from microstructure.measures import (
    BINS_DTYPE,
    FEATURE_NAMES,
    LOOK_BACK_MS,
    LOOK_BACK_WINDOWS,
    MEASURE_NAMES,
    day_bins,
    day_measures,
    features_of,
    window_bins,
)
from microstructure.model_input import INPUT_VERSION
from tests.book_tapes import START_MS, tape_of, trades_of

WINDOW_MS = 5000
WINDOWS = 140
SPAN_MS = WINDOWS * WINDOW_MS
PINNED_VERSION = "1"
PINNED_MEANS = [
    -0.0276034,
    -0.0855234,
    -0.119705,
    -0.112632,
    -0.154332,
    -0.140262,
    0.0872269,
    -0.284201,
    0.502594,
    0.549871,
    0.132285,
    -0.323073,
    -0.270692,
    -0.531869,
    -0.327543,
    -0.0874792,
    0.00666806,
    0.0196393,
    0.0324094,
    0.0118079,
    0.0156265,
    -0.00068351,
    3.30692,
    3.35658,
    0.0251719,
    0.00798528,
    0.0323945,
    0.0323945,
    -0.00276923,
    -0.00553845,
    -0.0359995,
    -0.544534,
    0.0431155,
    0.0461741,
    0.047283,
    -0.00534049,
    -0.0789196,
    0.523337,
    0.538486,
    0.0101603,
    0.423301,
    0.0367151,
    0.999291,
]
STARTS = START_MS + WINDOW_MS * np.arange(WINDOWS)


def with_losses(tape: BookTape) -> BookTape:
    """The tape with breaks, absent levels, a one-sided and a crossed snapshot."""
    columns = [tape.bid_price, tape.bid_size, tape.ask_price, tape.ask_size]
    bid, bid_size, ask, ask_size = (column.copy() for column in columns)
    bid[10:30, 8:] = bid_size[10:30, 8:] = np.nan
    ask[333] = ask_size[333] = np.nan
    bid[777, 0] = ask[777, 0] + 1.0
    is_break = np.zeros(len(tape), np.bool_)
    is_break[[55, 1234, 3000]] = True
    return BookTape.of_arrays(tape.time_ms, bid, bid_size, ask, ask_size, is_break)


@pytest.fixture(scope="module")
def tape() -> BookTape:
    return with_losses(tape_of(3, SPAN_MS // 100))


@pytest.fixture(scope="module")
def trades() -> np.ndarray:
    return trades_of(4, 3000, SPAN_MS)


@pytest.fixture(scope="module")
def bins(trades: np.ndarray, tape: BookTape) -> np.ndarray:
    return day_bins(trades, tape, STARTS, WINDOW_MS)


def column(features: np.ndarray, name: str) -> np.ndarray:
    return features[:, FEATURE_NAMES.index(name)]


def test_a_day_at_once_has_the_bits_of_window_by_window(
    bins: np.ndarray, trades: np.ndarray, tape: BookTape
) -> None:
    times = trades["transact_time_ms"]
    for row, start in zip(bins, STARTS.tolist(), strict=True):
        own = trades[(times >= start) & (times < start + WINDOW_MS)]
        alone = window_bins(own, tape.between(start, start + WINDOW_MS), start, WINDOW_MS)
        assert alone.tobytes() == row.tobytes()
        more = tape.between(start - 30_000, start + 2 * WINDOW_MS)
        assert window_bins(trades, more, start, WINDOW_MS).tobytes() == row.tobytes()


def test_the_last_rows_alone_give_the_features_of_the_whole_day(bins: np.ndarray) -> None:
    day = features_of(bins, WINDOW_MS)
    assert LOOK_BACK_MS == LOOK_BACK_WINDOWS * WINDOW_MS
    for stop in (1, 2, 13, 60, 61, 62, 100, WINDOWS):
        live = features_of(bins[max(0, stop - LOOK_BACK_WINDOWS) : stop], WINDOW_MS)
        assert live[-1].tobytes() == day[stop - 1].tobytes()
    whole = day[LOOK_BACK_WINDOWS:]
    assert not np.isnan(whole[:, [name != "integrated_ofi" for name in FEATURE_NAMES]]).any()


def test_features_are_not_looked_up_across_missing_windows(bins: np.ndarray) -> None:
    gapped = np.delete(bins, 70)
    features, whole = features_of(gapped, WINDOW_MS), features_of(bins, WINDOW_MS)
    after = column(features, "flow_imbalance_3")[70:]
    assert np.isnan(after[:2]).all()
    assert not np.isnan(after[2:]).any()
    assert np.isnan(column(features, "mid_return_bps_60")[70:130]).all()
    assert features[130:].tobytes() == whole[131:].tobytes()
    assert features[:70].tobytes() == whole[:70].tobytes()


def test_bins_hold_plain_sums_of_their_window(
    bins: np.ndarray, trades: np.ndarray, tape: BookTape
) -> None:
    row, start = bins[20], int(STARTS[20])
    own = [
        (t["price"] / 10, t["quantity"] / 1000, bool(t["is_buyer_maker"]))
        for t in trades
        if start <= t["transact_time_ms"] < start + WINDOW_MS
    ]
    assert row["trades"] == len(own)
    assert row["buy_base"] == pytest.approx(sum(q for _, q, sold in own if not sold))
    assert row["sell_quote"] == pytest.approx(sum(p * q for p, q, sold in own if sold))
    assert row["whale_quote"] == pytest.approx(sum(p * q for p, q, _ in own if p * q >= 1e5))
    assert row["last_price"] == own[-1][0]
    books = tape.between(start, start + WINDOW_MS)
    assert row["snapshots"] == len(books)
    assert row["ofi_events"] == len(books) - 1
    bid, ask = books.bid_size[:, 0], books.ask_size[:, 0]
    assert row["imbalance_sum"] == pytest.approx(((bid - ask) / (bid + ask)).sum())
    assert row["touch_depth"] == pytest.approx(((bid + ask) / 2).sum())
    assert row["last_ms"] == books.time_ms[-1]
    seconds = books.time_ms // 1000
    mids = [books.mid_price[seconds == second][-1] for second in np.unique(seconds)]
    assert row["variance"] == pytest.approx((np.diff(np.log(mids)) ** 2).sum())
    assert row["returns"] == 4


def test_nothing_is_counted_across_a_break_or_beside_a_faulty_book(tape: BookTape) -> None:
    none = trades_of(1, 1, 1)[:0]
    window = 1234 // 50
    row = window_bins(none, tape, int(STARTS[window]), WINDOW_MS)
    assert row["ofi_events"] == 50 - 1 - 1
    one_sided = window_bins(none, tape, int(STARTS[333 // 50]), WINDOW_MS)
    assert one_sided["snapshots"] == 49
    assert one_sided["ofi_events"] == 50 - 1 - 2


def test_features_equal_their_definitions(bins: np.ndarray) -> None:
    features = features_of(bins, WINDOW_MS)
    at = 100
    last12, last60 = bins[at - 11 : at + 1], bins[at - 59 : at + 1]
    volume = last12["buy_base"].sum() + last12["sell_base"].sum()
    expected = {
        "flow_imbalance_12": (last12["buy_base"].sum() - last12["sell_base"].sum()) / volume,
        "toxicity_12": np.abs(last12["buy_base"] - last12["sell_base"]).sum() / volume,
        "ofi_12": last12["ofi"].sum()
        / 12
        / (last12["touch_depth"].sum() / last12["snapshots"].sum()),
        "volatility_bps_60": 1e4 * np.sqrt(last60["variance"].mean()),
        "mid_return_bps_12": 1e4 * np.log(bins[at]["mid_price"] / bins[at - 12]["mid_price"]),
    }
    past = bins["trades"][at - 60 : at]
    deviation = max(past.std(ddof=1), 1.0)
    expected["trade_count_z"] = (bins["trades"][at] - past.mean()) / deviation
    net = last60["buy_quote"] - last60["sell_quote"]
    moves = 1e4 * np.diff(np.log(bins["mid_price"][at - 60 : at + 1]))
    usual = (last60["buy_quote"] + last60["sell_quote"]).mean()
    expected["kyle_lambda_60"] = np.polyfit(net, moves, 1)[0] * usual
    for name, value in expected.items():
        assert column(features, name)[at] == pytest.approx(value, rel=1e-5), name


def test_the_integrated_flow_is_weighted_by_the_past_alone(bins: np.ndarray) -> None:
    at = 120
    scaled = bins["mlofi"] / (bins["depth"] / bins["depth_cells"])[:, None]
    values, vectors = np.linalg.eigh(np.cov(scaled[at - 60 : at].T))
    weights = vectors[:, -1] * np.sign(vectors[:, -1].sum())
    expected = weights @ scaled[at] / np.abs(weights).sum()
    assert values[-1] > values[-2]
    found = column(features_of(bins, WINDOW_MS), "integrated_ofi")[at]
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_trades_or_books_features_are_undefined_and_flow_is_zero() -> None:
    none, nothing = trades_of(1, 1, 1)[:0], BookTape.empty()
    bins = day_bins(none, nothing, STARTS, WINDOW_MS)
    features = features_of(bins, WINDOW_MS)
    assert column(features, "flow_imbalance_1").tolist() == [0.0] * WINDOWS
    rest = [name.startswith(("flow_", "time_", "trade_count")) for name in FEATURE_NAMES]
    assert np.isnan(features[:, ~np.array(rest)]).all()
    assert features_of(bins[:0], WINDOW_MS).shape == (0, len(FEATURE_NAMES))
    assert day_bins(none, nothing, STARTS[:0], WINDOW_MS).dtype == BINS_DTYPE


def test_overlapping_windows_are_refused(trades: np.ndarray, tape: BookTape) -> None:
    with pytest.raises(ValueError, match="overlap"):
        day_bins(trades, tape, STARTS, WINDOW_MS + 1)


def test_values_of_features_stay_with_their_version(bins: np.ndarray) -> None:
    means = np.nanmean(features_of(bins, WINDOW_MS)[LOOK_BACK_WINDOWS:].astype(np.float64), axis=0)
    message = "features changed: raise INPUT_VERSION, then pin the new means"
    assert INPUT_VERSION == PINNED_VERSION, message
    assert means.tolist() == pytest.approx(PINNED_MEANS, rel=1e-4, abs=1e-7), message


def test_measures_know_nothing_of_what_follows() -> None:
    span_ms = 3_900_000
    starts = START_MS + WINDOW_MS * np.arange(span_ms // WINDOW_MS)
    tape, trades = tape_of(8, span_ms // 500, step_ms=500), trades_of(9, 20_000, span_ms)
    whole = day_measures(trades, tape, starts, WINDOW_MS)
    cut_ms = START_MS + 3_700_000
    known = starts + WINDOW_MS <= cut_ms
    past_trades = trades[trades["transact_time_ms"] < cut_ms]
    past = day_measures(past_trades, tape.between(0, cut_ms), starts[known], WINDOW_MS)
    assert tuple(whole) == MEASURE_NAMES
    for name, values in whole.items():
        np.testing.assert_array_equal(values[known], past[name], err_msg=name)
        if name != "hawkes_branching":
            assert not np.isnan(values[-1]), name


def test_measures_without_a_book_are_those_of_trades() -> None:
    starts = START_MS + WINDOW_MS * np.arange(480)
    trades = trades_of(9, 20_000, 2_400_000)
    measures = day_measures(trades, BookTape.empty(), starts, WINDOW_MS, bucket_volume=50.0)
    known = {name for name, values in measures.items() if not np.isnan(values[-1])}
    assert {"vpin", "hawkes_base_rate"} <= known
    assert not known & {"kyle_lambda", "effective_spread_bps", "tsrv", "noise_ratio"}
