"""The planted market: a random walk but for the pattern that is put into it; the usual one stays as it was."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

import main
from domain.errors import ConfigError
from simulator.settings import SimulatorSettings
from simulator.synthetic import SyntheticMarket

START_MS = 1_721_347_200_000
HOUR_MS = 3_600_000
HOURS = 6
AS_IT_WAS = "f836341c74a75c44620746d3a43c93619e20fa2b198efd27fc5e265e1f8bf7fe"


def market(edge: float | None, symbol: str = "BTCUSDT") -> SyntheticMarket:
    return SyntheticMarket(3, (symbol,), start_ms=START_MS, planted_edge=edge)


def book_of(source: SyntheticMarket, hours: int) -> tuple[np.ndarray, np.ndarray]:
    """Mid in ticks (twice) and the log ratio of the ten best sizes, one row per 100 ms."""
    first = START_MS // 60_000
    made = [source.snapshots("BTCUSDT", first + k) for k in range(60 * hours)]
    middle = np.concatenate([book.bid_ticks[:, 0] + book.ask_ticks[:, 0] for book in made])
    bids, asks = (
        np.concatenate([side[:, :10].sum(axis=1) for side in sides])
        for sides in zip(*((book.bid_steps, book.ask_steps) for book in made), strict=True)
    )
    return middle.astype(float), np.log(bids / asks)


def flow_of(source: SyntheticMarket, hours: int) -> np.ndarray:
    """Trades bought less sold, one row per 100 ms."""
    rows = source.trades("BTCUSDT", START_MS, START_MS + hours * HOUR_MS).rows
    step = (rows["transact_time_ms"] - START_MS) // 100
    return np.bincount(step, np.where(rows["is_buyer_maker"], -1.0, 1.0), hours * 36_000)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left, right)[0, 1])


def test_the_usual_market_is_to_the_last_digit_what_it_was():
    digest = hashlib.sha256()
    symbols = ("BTCUSDT", "XYZUSDT")
    source = SyntheticMarket(7, symbols, start_ms=START_MS, rate_multiplier=0.2)
    for symbol in symbols:
        digest.update(source.trades(symbol, START_MS, START_MS + 600_000).rows.tobytes())
    for chunk in itertools.islice(source.chunks(), 60):
        for frame in chunk:
            digest.update(frame.data)
    assert digest.hexdigest() == AS_IT_WAS


def test_at_edge_zero_nothing_tells_the_next_move():
    source = market(0.0)
    middle, lean = book_of(source, HOURS)
    flow = flow_of(source, HOURS)
    for steps in (50, 100, 300):
        moves = np.diff(middle[::steps])
        past_flow = flow[: len(moves) * steps].reshape(-1, steps).sum(axis=1)
        noise = 3.0 / np.sqrt(len(moves))
        assert abs(correlation(moves[:-1], moves[1:])) < noise
        assert abs(correlation(lean[::steps][: len(moves)], moves)) < noise
        assert abs(correlation(past_flow[:-1], moves[1:])) < noise
        assert correlation(past_flow[1:], moves[1:]) > 0.1  # trades and price go together


def test_a_planted_edge_is_seen_in_the_book_before_the_price_moves():
    found = []
    for edge in (0.5, 1.0):
        middle, lean = book_of(market(edge), 2)
        moves = np.diff(middle[::100])
        found.append(correlation(lean[::100][: len(moves)], moves))
    assert 0.1 < found[0] < found[1] < 0.5


def test_minutes_end_where_they_did_and_ids_are_the_same():
    usual, planted = market(None), market(1.0)
    minute = START_MS // 60_000
    for number in range(3):
        last = [source.snapshots("BTCUSDT", minute + number) for source in (usual, planted)]
        assert last[0].bid_ticks[-1, 0] == last[1].bid_ticks[-1, 0]
    tapes = [source.trades("BTCUSDT", START_MS, START_MS + 60_000) for source in (usual, planted)]
    for name in ("agg_trade_id", "transact_time_ms"):
        assert np.array_equal(tapes[0].rows[name], tapes[1].rows[name])


def test_impossible_edges_are_refused_in_one_line(capsys):
    with pytest.raises(ConfigError, match="planted_edge"):
        SimulatorSettings(planted_edge=1.5)
    assert main.main(["simulate", "--planted-edge", "-1"]) == 2
    assert "planted_edge: must be 0 to 1, got -1.0" in capsys.readouterr().err
    assert main.main(["simulate", "--planted-edge", "1", "--recording", "x"]) == 2
    assert "--planted-edge: a recording has its own" in capsys.readouterr().err
