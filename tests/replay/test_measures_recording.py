"""Array kernels and features on a real recording: the ranges measured on it by other code."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from binance_api.decode import decode_trades
from binance_api.decode_depth import decode_depth, read_levels
from microstructure import hawkes
from microstructure.book_tape import BookTape
from microstructure.impact_regression import impact_fit
from microstructure.measures import FEATURE_NAMES, day_bins, features_of
from microstructure.microprice import estimate
from microstructure.ofi import level_events
from microstructure.trade_cost import median_of, sweep_costs, sweeps_of

RECORDING = "recordings/usdm_20240718.ndjson.gz"
TICKS = {"BTCUSDT": 0.1, "ETHUSDT": 0.01}
SYMBOLS = {symbol: place for place, symbol in enumerate(TICKS)}
SECOND_MS = 1000
WINDOW_MS = 5000
LEVELS = 20

type Recorded = dict[str, tuple[np.ndarray, BookTape]]


@pytest.fixture(scope="module")
def recorded(recordings_dir: Path) -> Recorded:
    """Trades and book of each symbol, through the decoders of the live bot."""
    with gzip.open(recordings_dir / RECORDING, "rb") as lines:
        frames = [line.split(b" ", 1) for line in lines.read().splitlines()]
    books = [(int(at), text) for at, text in frames if b"@depth20" in text[:60]]
    others = [(int(at), text) for at, text in frames if b"@aggTrade" in text[:60]]
    tops = decode_depth([text for _, text in books], [at for at, _ in books], SYMBOLS).tops
    rows = decode_trades([text for _, text in others], [at for at, _ in others], SYMBOLS).rows
    found = {}
    for symbol, place in SYMBOLS.items():
        own = [top for top in tops if top.symbol == symbol]
        final = [None, *(top.final_update_id for top in own[:-1])]
        is_break = [top.prev_final_update_id != last for top, last in zip(own, final, strict=True)]
        levels = np.array(
            [[book.bids, book.asks] for book in map(read_levels, own) if book is not None]
        )
        times = [top.transact_time_ms for top in own]
        bids, asks = levels[:, 0], levels[:, 1]
        tape = BookTape.of_arrays(
            times, bids[..., 0], bids[..., 1], asks[..., 0], asks[..., 1], is_break
        )
        found[symbol] = rows[rows["symbol_index"] == place], tape
    return found


def by_second(tape: BookTape, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mid at the end of each second with snapshots, and the sum of values in it."""
    seconds, of = np.unique(tape.time_ms // SECOND_MS, return_inverse=True)
    last = np.searchsorted(of, np.arange(len(seconds)), side="right") - 1
    return tape.mid_price[last], np.bincount(of, weights=values)


@pytest.mark.parametrize("symbol", list(TICKS))
def test_the_spread_is_one_tick_in_nearly_every_frame(recorded: Recorded, symbol: str) -> None:
    _, tape = recorded[symbol]
    spread = (tape.ask_price[:, 0] - tape.bid_price[:, 0]) / TICKS[symbol]
    assert len(tape) > 4000
    assert tape.levels == LEVELS
    assert np.mean(np.abs(spread - 1.0) < 0.01) >= 0.99


@pytest.mark.parametrize("symbol", list(TICKS))
def test_order_flow_explains_the_mid_of_its_second(recorded: Recorded, symbol: str) -> None:
    _, tape = recorded[symbol]
    events = level_events(tape, 10)
    mid, flow = by_second(tape, np.nan_to_num(events[:, 0]))
    fit = impact_fit(np.diff(mid), flow[1:])
    assert fit is not None
    assert fit.count > 400
    assert fit.r2 is not None and 0.3 <= fit.r2 <= 0.6
    assert fit.slope > 0.0
    assert fit.t is not None and fit.t > 5.0


@pytest.mark.parametrize("symbol", list(TICKS))
def test_features_of_the_recording_are_whole_and_the_same_live(
    recorded: Recorded, symbol: str
) -> None:
    trades, tape = recorded[symbol]
    first = -(-int(tape.time_ms[0]) // WINDOW_MS) * WINDOW_MS
    starts = np.arange(first, int(tape.time_ms[-1]) - WINDOW_MS, WINDOW_MS)
    bins = day_bins(trades, tape, starts, WINDOW_MS)
    features = features_of(bins, WINDOW_MS)
    assert len(features) > 90
    assert not np.isnan(features[61:]).any()
    live = np.stack([features_of(bins[: n + 1][-61:], WINDOW_MS)[-1] for n in range(len(bins))])
    assert live.tobytes() == features.tobytes()
    spread = features[:, FEATURE_NAMES.index("spread_bps")]
    assert np.median(spread) == pytest.approx(1e4 * TICKS[symbol] / tape.mid_price[0], rel=0.02)
    flow = features[:, FEATURE_NAMES.index("integrated_ofi")]
    moves = features[:, FEATURE_NAMES.index("mid_return_bps_1")]
    assert np.corrcoef(flow[61:], moves[61:])[0, 1] > 0.3


@pytest.mark.parametrize("symbol", list(TICKS))
def test_takers_pay_about_the_spread(recorded: Recorded, symbol: str) -> None:
    trades, tape = recorded[symbol]
    sweeps = sweeps_of(trades)
    costs = sweep_costs(sweeps, tape, 5000)
    spread_bps = 1e4 * TICKS[symbol] / tape.mid_price[0]
    assert median_of(costs.effective_bps) == pytest.approx(spread_bps, rel=0.05)
    assert 0.2 < costs.is_stale.mean() < 0.8  # a snapshot every 100 ms, half of them old


@pytest.mark.parametrize("symbol", list(TICKS))
def test_the_microprice_leans_to_the_longer_queue(recorded: Recorded, symbol: str) -> None:
    _, tape = recorded[symbol]
    table = estimate(tape, TICKS[symbol])
    one_tick = table.adjustments_ticks[0]
    assert one_tick == pytest.approx(-one_tick[::-1], abs=1e-9)
    assert one_tick[-1] > 0.0 > one_tick[0]
    assert np.abs(one_tick).max() < 2.0
    ahead = np.diff(tape.mid_price)
    lean = (table.microprices(tape) - tape.mid_price)[:-1]
    assert np.corrcoef(lean, ahead)[0, 1] > 0.05


def test_arrivals_excite_each_other(recorded: Recorded) -> None:
    for trades, _ in recorded.values():
        times = np.unique(trades["transact_time_ms"])
        found = hawkes.fit((times - times[0]) / 1000.0, float(times[-1] - times[0] + 1) / 1000.0)
        assert found is not None
        assert 0.1 < found.branching_ratio < 0.95
