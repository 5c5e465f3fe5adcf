import itertools
import json
from typing import Any

import numpy as np
import pytest

from simulator import candles
from simulator.frames import Frame, FrameKind
from simulator.synthetic import SyntheticMarket

START_MS = 1_780_012_345_678
DAY_MS = 86_400_000


def market(
    seed: int = 1,
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT"),
    start_ms: int = START_MS,
    rate_multiplier: float = 1.0,
) -> SyntheticMarket:
    return SyntheticMarket(seed, symbols, start_ms=start_ms, rate_multiplier=rate_multiplier)


def frames(source: SyntheticMarket, seconds: int) -> list[Frame]:
    return list(itertools.chain.from_iterable(itertools.islice(source.chunks(), seconds)))


@pytest.fixture(scope="module")
def ten_minutes() -> dict[str, dict[str, list[Any]]]:
    played = frames(market(start_ms=1_780_000_000_000), 600)
    out: dict[str, dict[str, list[Any]]] = {}
    for frame in played:
        kinds = out.setdefault(frame.symbol, {"TRADE": [], "DEPTH": []})
        kinds[frame.kind.name].append(json.loads(frame.data))
    return out


def test_a_market_is_a_function_of_its_seed_wherever_it_starts() -> None:
    early = {frame.data: frame.due_ns for frame in frames(market(), 90)}
    late = frames(market(start_ms=START_MS + 60_000), 20)
    assert len(late) > 400
    assert all(early[frame.data] == frame.due_ns for frame in late)
    other = {frame.data for frame in frames(market(seed=2), 5)}
    assert not other & set(early)


def test_the_feed_and_the_past_are_the_same_trades() -> None:
    source = market()
    played = [frame for frame in frames(source, 60) if frame.kind is FrameKind.TRADE]
    eth = [json.loads(frame.data) for frame in played if frame.symbol == "ETHUSDT"]
    rows = market(start_ms=0).from_id("ETHUSDT", eth[0]["a"], len(eth)).rows
    assert rows["agg_trade_id"].tolist() == [trade["a"] for trade in eth]
    assert rows["transact_time_ms"].tolist() == [trade["T"] for trade in eth]
    assert [value / 100 for value in rows["price"]] == [float(trade["p"]) for trade in eth]


@pytest.mark.parametrize("symbol", ["BTCUSDT", "DOGEUSDT"])
@pytest.mark.parametrize("multiplier", [0.3, 1.0, 12.0])
def test_ids_and_times_run_on_over_minutes_blocks_and_midnight(
    symbol: str, multiplier: float
) -> None:
    source = market(symbols=(symbol,), rate_multiplier=multiplier)
    midnight = START_MS // DAY_MS * DAY_MS
    tape = source.between(symbol, midnight - 600_000, midnight + 600_000)
    ids, times = tape.rows["agg_trade_id"], tape.rows["transact_time_ms"]
    assert (np.diff(ids) == 1).all()
    assert (np.diff(times) >= 0).all()
    assert (np.diff(tape.due_ns) >= 0).all()
    assert times[0] < midnight <= times[-1]
    across = source.from_id(symbol, int(ids[0]), len(ids))
    assert (across.rows == tape.rows).all()
    last = source.before(symbol, int(tape.due_ns[-1]), 10)
    assert last.rows["agg_trade_id"][-1] >= ids[-1]
    assert len(last) == 10
    fills = tape.rows["last_trade_id"] - tape.rows["first_trade_id"] + 1
    assert (fills >= 1).all()
    assert (tape.rows["first_trade_id"][1:] > tape.rows["last_trade_id"][:-1]).all()


def test_prices_do_not_jump_at_minute_and_day_borders() -> None:
    source = market(symbols=("BTCUSDT",))
    midnight = START_MS // DAY_MS * DAY_MS
    rows = source.between("BTCUSDT", midnight - 1_800_000, midnight + 1_800_000).rows
    returns = np.abs(np.diff(np.log(rows["price"])))
    border = np.diff(rows["transact_time_ms"] // 60_000) > 0
    assert returns[border].max() < 0.002
    assert returns.max() < 0.005


def test_every_candle_is_built_from_the_trades() -> None:
    source = market(symbols=("ETHUSDT",))
    begin = START_MS // 3_600_000 * 3_600_000 - 3_600_000
    tape = source.between("ETHUSDT", begin, begin + 5 * 60_000)
    rows = source.minute_rows("ETHUSDT", begin, begin + 5 * 60_000, START_MS * 1_000_000)
    assert rows["volume"].sum() == tape.rows["quantity"].sum()
    assert rows["high"].max() == tape.rows["price"].max()
    assert rows["close"][-1] == tape.rows["price"][-1]
    whole = candles.kline_rows(rows, source.spec("ETHUSDT"), "5m")
    opened, *_, count, _, _, _ = json.loads(whole[0])
    fills = tape.rows["last_trade_id"] - tape.rows["first_trade_id"] + 1
    assert (len(whole), opened, count) == (1, begin, fills.sum())


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_books_are_sound_and_chained(
    ten_minutes: dict[str, dict[str, list[Any]]], symbol: str
) -> None:
    books = ten_minutes[symbol]["DEPTH"]
    assert len(books) >= 5_990
    one_tick = 0.1 if symbol == "BTCUSDT" else 0.01
    narrow = 0
    for previous, book in itertools.pairwise(books):
        assert book["pu"] == previous["u"] < book["U"] <= book["u"]
        bids = [float(price) for price, _ in book["b"]]
        asks = [float(price) for price, _ in book["a"]]
        assert len(bids) == len(asks) == 20
        assert bids == sorted(set(bids), reverse=True)
        assert asks == sorted(set(asks))
        assert all(float(size) > 0 for _, size in book["b"] + book["a"])
        narrow += abs(asks[0] - bids[0] - one_tick) < 1e-6
    assert narrow / len(books) >= 0.99


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_order_flow_explains_moves_as_in_recordings(
    ten_minutes: dict[str, dict[str, list[Any]]], symbol: str
) -> None:
    """Contemporaneous R² of the mid on level-1 OFI at 1 s lies in 0.3-0.7 (Cont et al. 2014)."""
    books = ten_minutes[symbol]["DEPTH"]
    best = np.array([[*map(float, (*book["b"][0], *book["a"][0]))] for book in books])
    bid, bid_size, ask, ask_size = best.T
    ofi = (
        (bid[1:] >= bid[:-1]) * bid_size[1:]
        - (bid[1:] <= bid[:-1]) * bid_size[:-1]
        - (ask[1:] <= ask[:-1]) * ask_size[1:]
        + (ask[1:] >= ask[:-1]) * ask_size[:-1]
    )
    mid = (bid + ask) / 2
    count = len(ofi) // 10 * 10
    flow = ofi[:count].reshape(-1, 10).sum(axis=1)
    move = np.diff(mid)[:count].reshape(-1, 10).sum(axis=1)
    assert 0.3 <= np.corrcoef(flow, move)[0, 1] ** 2 <= 0.7
    assert abs(np.corrcoef(flow[:-1], move[1:])[0, 1]) < 0.3


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_trades_cluster_sweep_and_have_heavy_tails(
    ten_minutes: dict[str, dict[str, list[Any]]], symbol: str
) -> None:
    trades = ten_minutes[symbol]["TRADE"]
    sweeps: dict[tuple[int, bool], float] = {}
    for trade in trades:
        key = (trade["T"], trade["m"])
        sweeps[key] = sweeps.get(key, 0.0) + float(trade["p"]) * float(trade["q"])
    q50, q90, q99 = np.quantile(list(sweeps.values()), (0.5, 0.9, 0.99))
    assert 1_000 < q50 < 3_000
    assert 10 < q90 / q50 < 35
    assert 100 < q99 / q50 < 600
    assert 0.6 < len(sweeps) / len(trades) < 0.9
    seconds = np.bincount([(trade["T"] - trades[0]["T"]) // 1_000 for trade in trades])
    assert seconds.var() / seconds.mean() > 1.5  # Poisson arrivals would give 1


def test_trades_happen_at_the_touch_of_the_book_around_them(
    ten_minutes: dict[str, dict[str, list[Any]]],
) -> None:
    books = {book["E"]: book for book in ten_minutes["BTCUSDT"]["DEPTH"]}
    near = []
    for trade in ten_minutes["BTCUSDT"]["TRADE"]:
        around = [books.get(trade["E"] - 100), books.get(trade["E"])]
        if None in around:
            continue
        side = "b" if trade["m"] else "a"
        touches = [float(book[side][0][0]) for book in around if book]
        price = float(trade["p"])
        near.append(min(touches) - 0.85 <= price <= max(touches) + 0.85)
    assert len(near) > 1_000
    assert np.mean(near) > 0.99
