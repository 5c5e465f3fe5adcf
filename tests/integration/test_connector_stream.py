"""New data through ``BinanceConnector``, over real sockets and by polling."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pandas as pd
import pytest
from structlog.testing import capture_logs

from binance_api import BinanceConnector
from binance_api.connector_frames import OHLCV_COLUMNS, TICK_COLUMNS
from binance_api.errors import InvalidSymbol
from simulator.faults import Fault, FaultKind, FaultPlan
from tests.connector_exchange import MINUTE_MS, START_MS, config_of, simulated

pytestmark = pytest.mark.usefixtures("clean_environment")

SPEED = 240.0  # a minute of the market is a quarter of a second
BEGIN_MS = START_MS + 30_000
REFUSED = "ws://127.0.0.1:9"


class Frames:
    """A callback that keeps what it gets."""

    def __init__(self) -> None:
        self.frames: list[pd.DataFrame] = []
        self.threads: set[str] = set()
        self._more = threading.Condition()

    def __call__(self, frame: pd.DataFrame) -> None:
        with self._more:
            self.frames.append(frame)
            self.threads.add(threading.current_thread().name)
            self._more.notify_all()

    def wait_for(
        self, is_enough: Callable[[Frames], object], seconds: float = 60.0
    ) -> pd.DataFrame:
        with self._more:
            assert self._more.wait_for(lambda: is_enough(self), seconds), f"only {self.rows} rows"
            return self.whole

    def wait_rows(self, count: int) -> pd.DataFrame:
        return self.wait_for(lambda frames: frames.rows >= count)

    @property
    def rows(self) -> int:
        return sum(map(len, self.frames))

    @property
    def whole(self) -> pd.DataFrame:
        return pd.concat(self.frames, ignore_index=True)


def streaming(exchange, *, frames=None, mode="streaming", ws_url=None, **options):
    config = config_of(exchange)
    if ws_url is not None:
        config["ws_url"] = ws_url
    conn = BinanceConnector(config, mode=mode, **options)
    if frames is not None:
        conn.on_new_data(frames)
    return conn


def past(exchange, frame: pd.DataFrame, data_type: str = "ohlcv") -> pd.DataFrame:
    """The same range, asked for afterwards."""
    times = frame["timestamp"].astype("int64")
    with BinanceConnector(config_of(exchange)) as conn:
        end_ms = int(times.iloc[-1]) + 1
        return conn.collect("BTCUSDT", "1m", int(times.iloc[0]), end_ms, data_type)


VALUES = [name for name in OHLCV_COLUMNS if name not in {"gap", "outlier"}]
TICK_VALUES = [name for name in TICK_COLUMNS if name not in {"gap", "outlier"}]


def test_new_candles_are_those_rest_gives_afterwards() -> None:
    frames = Frames()
    with simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange:
        with streaming(exchange, frames=frames) as conn:
            assert conn.collect("BTCUSDT", "1m") is None
            found = frames.wait_rows(4)
            counts = conn.statistics()
        pd.testing.assert_frame_equal(found[VALUES], past(exchange, found)[VALUES])
    assert all(tuple(frame.columns) == OHLCV_COLUMNS for frame in frames.frames)
    assert found["timestamp"].diff().dropna().unique().tolist() == [pd.Timedelta(minutes=1)]
    assert not found["gap"].any()
    assert frames.threads == {"binance-callbacks"}
    assert counts["BTCUSDT.1m.polls"] == 0


def test_new_ticks_are_those_rest_gives_afterwards() -> None:
    frames = Frames()
    with simulated(start_ms=BEGIN_MS, speed=30.0) as exchange:
        with streaming(exchange, frames=frames) as conn:
            conn.collect("BTCUSDT", "1m", data_type="tick")
            found = frames.wait_rows(100)
        again = past(exchange, found, "tick")
    ids = found["agg_trade_id"]
    assert (ids.diff().dropna() == 1).all()
    known = again[again["agg_trade_id"].isin(ids)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[TICK_VALUES], known[TICK_VALUES])


def test_a_stream_with_a_start_date_delivers_what_happened_since_first() -> None:
    for data_type, start_ms in (("ohlcv", START_MS - 700 * MINUTE_MS), ("tick", START_MS - 60_000)):
        frames = Frames()
        with simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange:
            with streaming(exchange, frames=frames) as conn:
                conn.collect("BTCUSDT", "1m", start_ms, data_type=data_type)
                found = frames.wait_for(
                    lambda got: (
                        got.rows and got.whole["timestamp"].iloc[-1].value > BEGIN_MS * 10**6
                    )
                )
            again = past(exchange, found, data_type)
        names = VALUES if data_type == "ohlcv" else TICK_VALUES
        assert found["timestamp"].iloc[0].value >= start_ms * 10**6
        pd.testing.assert_frame_equal(found[names], again[names].iloc[: len(found)])
        assert not found["gap"].any()


@pytest.mark.parametrize("data_type", ["ohlcv", "tick"])
def test_where_sockets_are_blocked_polling_delivers_the_same(data_type: str) -> None:
    frames = Frames()
    with simulated(start_ms=BEGIN_MS, speed=60.0) as exchange, capture_logs() as lines:
        with streaming(exchange, frames=frames, ws_url=REFUSED) as conn:
            conn.collect("BTCUSDT", "1m", data_type=data_type, poll_interval_s=0.2)
            found = frames.wait_rows(3)
            assert conn.statistics()[
                f"BTCUSDT.{'1m' if data_type == 'ohlcv' else 'tick'}.is_polling"
            ]
        again = past(exchange, found, data_type)
    names = VALUES if data_type == "ohlcv" else TICK_VALUES
    pd.testing.assert_frame_equal(found[names], again[names].iloc[: len(found)])
    assert "connector.polling" in [line["event"] for line in lines]


def test_a_lost_connection_costs_nothing() -> None:
    faults = tuple(
        Fault(at_ms=at_ms, kind=FaultKind.DISCONNECT, mode=mode)
        for at_ms, mode in ((40_000, "abort"), (95_000, "1000"), (150_000, "reset"))
    )
    frames, ticks = Frames(), Frames()
    plan = FaultPlan(faults=faults)
    with simulated(start_ms=BEGIN_MS, speed=60.0, faults=plan) as exchange:
        with streaming(exchange, frames=frames) as conn, streaming(exchange, frames=ticks) as other:
            conn.collect("BTCUSDT", "1m", poll_interval_s=0.5)
            other.collect("BTCUSDT", "1m", data_type="tick", poll_interval_s=0.5)
            found = frames.wait_rows(4)
            seen = ticks.whole
        pd.testing.assert_frame_equal(found[VALUES], past(exchange, found)[VALUES])
        assert len(exchange.fault_log) == 3
    assert (seen["agg_trade_id"].diff().dropna() == 1).all()
    assert not found["gap"].any()
    assert not seen["gap"].any()


def test_frames_the_stream_never_sends_are_asked_for() -> None:
    faults = FaultPlan(
        faults=(Fault(at_ms=3_000, kind=FaultKind.MISSING, count=25, route="trades"),)
    )
    frames = Frames()
    with (
        simulated(started=False, start_ms=BEGIN_MS, speed=3.0, faults=faults) as exchange,
        streaming(exchange, frames=frames) as conn,
    ):
        conn.collect("BTCUSDT", "1m", data_type="tick")  # sets the clock going
        found = frames.wait_for(
            lambda got: (
                bool(exchange.fault_log)
                and bool(exchange.fault_log[0].ids)
                and got.rows > 0
                and got.whole["agg_trade_id"].max()
                > max(number for name, number in exchange.fault_log[0].ids if name == "BTCUSDT") + 5
            )
        )
    assert (found["agg_trade_id"].diff().dropna() == 1).all()
    assert not found["gap"].any()


def test_trades_that_are_lost_for_good_are_a_marked_gap() -> None:
    with simulated(started=False, start_ms=BEGIN_MS) as exchange:
        first = int(
            exchange.source.between("BTCUSDT", BEGIN_MS, BEGIN_MS + 60_000).rows[20]["agg_trade_id"]
        )
    lost = (first, first + 1, first + 2)
    fault = Fault(at_ms=0, kind=FaultKind.REST_LOST_TRADES, symbol="BTCUSDT", ids=lost)
    frames = Frames()
    with (
        simulated(
            started=False, start_ms=BEGIN_MS, speed=3.0, faults=FaultPlan(faults=(fault,))
        ) as exchange,
        streaming(exchange, frames=frames) as conn,
        capture_logs() as lines,
    ):
        conn.collect("BTCUSDT", "1m", data_type="tick")  # sets the clock going
        found = frames.wait_for(
            lambda got: got.rows > 0 and got.whole["agg_trade_id"].max() > first + 5
        )
    assert found.loc[found["gap"], "agg_trade_id"].tolist() == [first + 3]
    assert [line["missing"] for line in lines if line["event"] == "connector.gap"] == [3]


def test_a_callback_that_raises_harms_nobody_else() -> None:
    frames, calls = Frames(), []

    def spoils(frame: pd.DataFrame) -> None:
        calls.append(len(frame))
        frame.loc[:, "close"] = 0.0
        raise RuntimeError("a user's mistake")

    with (
        simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange,
        capture_logs() as lines,
        streaming(exchange) as conn,
    ):
        conn.on_new_data(spoils)
        conn.on_new_data(frames)
        conn.on_new_data(frames)  # the same one twice is called once
        conn.collect("BTCUSDT", "1m")
        found = frames.wait_for(lambda got: got.rows >= 3 and len(got.frames) >= 2)
        assert conn.statistics()["callback_failures"] >= 2
    assert (found["close"] > 0).all()
    assert found["timestamp"].is_unique
    assert len(calls) >= 2
    failures = [line for line in lines if line["event"] == "connector.callback_failed"]
    assert failures[0]["error"] == "RuntimeError"


def test_a_slow_callback_gets_everything_later() -> None:
    frames = Frames()

    def slow(frame: pd.DataFrame) -> None:
        time.sleep(0.05)
        frames(frame)

    with simulated(start_ms=BEGIN_MS, speed=30.0) as exchange, streaming(exchange) as conn:
        conn.on_new_data(slow)
        conn.collect("BTCUSDT", "1m", data_type="tick")
        found = frames.wait_rows(120)
    assert (found["agg_trade_id"].diff().dropna() == 1).all()


def test_outliers_and_gaps_are_looked_for_in_every_piece() -> None:
    frames = Frames()
    with (
        simulated(start_ms=BEGIN_MS, speed=20.0) as exchange,
        streaming(exchange, frames=frames, outlier_params={"threshold": 0.5}) as conn,
    ):
        conn.collect("BTCUSDT", "1m", START_MS - 60_000, data_type="tick")
        found = frames.wait_rows(400)
    assert found["outlier"].iloc[:20].sum() == 0  # nothing to compare with yet
    assert found["outlier"].iloc[200:].any()


def test_two_symbols_stream_side_by_side_and_one_cannot_be_streamed_twice() -> None:
    frames = Frames()
    with (
        simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange,
        streaming(exchange, frames=frames) as conn,
    ):
        conn.collect("BTCUSDT", "1m")
        conn.collect("ETHUSDT", "1m")
        with pytest.raises(ValueError, match="BTCUSDT 1m is streamed already"):
            conn.collect("btcusdt", "1m")
        frames.wait_for(lambda _: conn.statistics()["BTCUSDT.1m.pieces"])
        frames.wait_for(lambda _: conn.statistics()["ETHUSDT.1m.pieces"])


def test_an_unknown_symbol_is_refused_before_anything_is_subscribed() -> None:
    with simulated(start_ms=BEGIN_MS) as exchange, streaming(exchange) as conn:
        for data_type in ("ohlcv", "tick"):
            with pytest.raises(InvalidSymbol):
                conn.collect("NOSUCH", "1m", data_type=data_type)
        assert exchange.statistics()["accepted"] == 1  # our own, which sets the clock going
        assert not any("NOSUCH" in name for name in conn.statistics())


def test_close_works_from_a_callback_and_ends_every_thread() -> None:
    closed = threading.Event()
    with simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange:
        conn = streaming(exchange)

        def once(_frame: pd.DataFrame) -> None:
            conn.close()
            closed.set()

        conn.on_new_data(once)
        conn.collect("BTCUSDT", "1m")
        assert closed.wait(60)
        conn.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _own_threads():
            time.sleep(0.01)
        assert not _own_threads()


def _own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("binance-")]


def test_a_stream_starts_within_a_running_event_loop_and_after_close_again() -> None:
    frames = Frames()

    async def cell(conn: BinanceConnector) -> None:
        conn.collect("BTCUSDT", "1m")

    with simulated(start_ms=BEGIN_MS, speed=SPEED) as exchange:
        conn = streaming(exchange, frames=frames, mode="real-time")
        asyncio.run(cell(conn))
        first = len(frames.wait_rows(1))
        conn.close()
        assert conn.connect()
        conn.collect("BTCUSDT", "1m")
        frames.wait_rows(first + 2)
        conn.close()


def test_what_is_no_function_is_no_callback() -> None:
    with pytest.raises(TypeError, match="callable"):
        BinanceConnector(mode="streaming").on_new_data("print")  # type: ignore[arg-type]
