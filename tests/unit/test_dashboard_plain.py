"""The view: a pure state, a pure picture, and a terminal that can stall without anyone noticing."""

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from dashboard.picture import render, to_text
from dashboard.plain import QUEUE_EVENTS, Screen, supports_view, watch
from dashboard.view_state import WINDOWS_KEPT, ViewState, reduce, summary
from domain.events import (
    Action,
    Alert,
    AnalysisUnavailable,
    ConnectionEvent,
    ConnectionState,
    FeaturesEvent,
    GapEvent,
    GapState,
    HealthEvent,
    Signal,
    Topic,
    WindowEvent,
)
from domain.features import FeatureRow
from domain.flow import FlowMetrics, Origin
from event_bus import Envelope, EventBus

T0 = 1_721_347_200_000


def window(
    end_ms: int = T0,
    symbol: str = "BTCUSDT",
    *,
    complete: bool = True,
    missing: int | None = 0,
    trades: int = 10,
    quote_volume: str = "100",
    cvd: str = "17.5",
    origin: Origin = Origin.LIVE,
) -> WindowEvent:
    values: dict[str, Any] = dict.fromkeys(FlowMetrics.__struct_fields__)
    zeros = ("volume", "buy_volume", "sell_volume", "net_flow_quote", "flow_imbalance")
    values |= dict.fromkeys(zeros, Decimal(0))
    values |= {
        "symbol": symbol,
        "window_start_ms": end_ms - 5_000,
        "window_end_ms": end_ms,
        "origin": origin,
        "complete": complete,
        "missing_trades": missing,
        "trade_count": trades,
        "close": Decimal("64123.40"),
        "quote_volume": Decimal(quote_volume),
        "delta": Decimal("-1.250"),
        "cvd": Decimal(cvd),
        "cvd_complete": True,
        "whale_delta": Decimal(3),
        "whale_count": 2,
        "schema_version": 1,
    }
    return WindowEvent(FlowMetrics(**values), origin, 0, (end_ms + 260) * 1_000_000)


def features(origin: Origin) -> FeaturesEvent:
    required = [f.name for f in msgspec.structs.fields(FeatureRow) if f.required]
    return FeaturesEvent(FeatureRow(**dict.fromkeys(required)), origin)  # type: ignore[arg-type]


def socket(state: ConnectionState, socket_id: int = 0, route: str = "trades") -> ConnectionEvent:
    return ConnectionEvent(
        route=route, socket_id=socket_id, state=state, reason="because", at_ns=T0 * 1_000_000
    )


def gap(state: GapState, first_id: int | None = 5, kind: str = "trades") -> GapEvent:
    return GapEvent(
        kind=kind,
        symbol="BTCUSDT",
        first_id=first_id,
        last_id=first_id,
        state=state,
        cause="test",
        from_ms=None,
        until_ms=None,
        repairable_until_ms=None,
        at_ns=0,
    )


def signal(action: Action = Action.BUY) -> Signal:
    return Signal(
        signal_id="s",
        symbol="ETHUSDT",
        window_end_ms=T0,
        decided_at_ms=T0,
        price=1.0,
        action=action,
        confidence=0.75,
        horizon_s=60,
        rationale="whales bought",
        evidence={},
        invalidation=None,
        source="rules",
    )


def after(*payloads: msgspec.Struct, state: ViewState | None = None) -> ViewState:
    batch = [Envelope(Topic.WINDOW, n, payload) for n, payload in enumerate(payloads, 1)]
    return reduce(state or ViewState(), batch)


def drawn(
    state: ViewState, problems: Sequence[str] = (), rows: int = 40, columns: int = 120
) -> str:
    picture = render(state, now_ms=T0 + 9_000, rows=rows, columns=columns, problems=problems)
    return to_text(picture, width=columns, colour=False)


def test_reducing_does_not_change_the_old_state() -> None:
    old = after(socket(ConnectionState.CONNECTING), gap(GapState.OPEN))
    before = msgspec.json.encode([str(old.sockets), str(old.open_gaps), str(old.gap_counts)])
    after(socket(ConnectionState.HEALTHY), gap(GapState.REPAIRED), window(), state=old)
    assert before == msgspec.json.encode(
        [str(old.sockets), str(old.open_gaps), str(old.gap_counts)]
    )


def test_live_recovered_and_revised_windows_are_counted_apart() -> None:
    state = after(
        window(),
        features(Origin.LIVE),
        window(complete=False),
        features(Origin.LIVE),
        window(origin=Origin.RECOVERED),  # closed in order, but long after its end
        features(Origin.RECOVERED),
        features(Origin.RECOVERED),
        *[features(Origin.REVISED)] * 2,
    )
    assert (state.window_count, state.incomplete_count) == (2, 1)
    assert (state.recovered_count, state.revised_count) == (2, 2)
    assert state.trade_count == 20
    assert "  recovered" in drawn(state)
    assert "windows recovered 2, revised 2" in drawn(state)


def test_a_dead_socket_is_shown_until_another_takes_its_place() -> None:
    dead = [socket(ConnectionState.DISCONNECTED, n) for n in range(100)]
    state = after(socket(ConnectionState.CLOSED, 7, "depth"), *dead)
    assert list(state.sockets) == [("depth", 7), ("trades", 99)]
    state = after(
        socket(ConnectionState.HEALTHY, 100), socket(ConnectionState.SUSPECT, 98), state=state
    )
    assert sorted(state.sockets) == [("depth", 7), ("trades", 98), ("trades", 100)]


def test_a_gap_is_open_until_it_is_repaired_or_lost() -> None:
    state = after(gap(GapState.OPEN, 5), gap(GapState.OPEN, 9), gap(GapState.REPAIRED, 5))
    assert [event.first_id for event in state.open_gaps.values()] == [9]
    state = after(gap(GapState.LOST, 9), state=state)
    assert not state.open_gaps
    assert "0 open, 1 repaired, 1 lost" in drawn(state)


def test_a_depth_break_is_counted_but_never_waited_for() -> None:
    assert not after(gap(GapState.OPEN, None, "depth")).open_gaps


def test_the_state_stays_bounded() -> None:
    state = ViewState()
    for first_id in range(1_200):
        state = after(window(), signal(), gap(GapState.OPEN, first_id), state=state)
    assert len(state.windows) == WINDOWS_KEPT
    assert len(state.open_gaps) == 1_000
    assert len(state.signals) < 100
    assert state.window_count == 1_200


def test_the_picture_shows_connections_windows_signals_and_problems() -> None:
    state = after(
        socket(ConnectionState.HEALTHY),
        socket(ConnectionState.DISCONNECTED, 1, "depth"),
        window(),
        window(T0 + 5_000, "ETHUSDT", complete=False, missing=None),
        signal(),
        Alert(name="a", severity="error", symbol=None, message="disk is slow", at_ns=0),
        AnalysisUnavailable(
            symbol="BTCUSDT", window_end_ms=T0, reason="all providers failed", attempts=()
        ),
        HealthEvent(at_ns=0, values={"flow.frames": 1_000}),
        HealthEvent(
            at_ns=30_000_000_000,
            values={
                "recovery.windows_done": 20,
                "recovery.windows_wanted": 1_000,
                "recovery.eta_s": 42.4,
                "flow.frames": 7_000,
                "validator.clock_offset_ms": 12.5,
                "loop.worst_lag_ms": 3.2,
                "bus.dropped_count": 4,
            },
        ),
    )
    text = drawn(state, problems=["00:00:00 warning stream.gap symbol=BTCUSDT"])
    for expected in (
        "trades #0  healthy",
        "depth #1",
        "disconnected",
        "64,123.40",
        "-1.250",
        "+17.5",
        "+3 (2)",
        "no, ? missing",
        "BUY 75%",
        "whales bought",
        "disk is slow",
        "all providers failed",
        "recovering 20 of 1,000 windows, about 42 s left",
        "200 messages/s",
        "received 12 ms after the event",
        "loop lag at most 3 ms",
        "4 events dropped",
        "stream.gap",
        "2 trades/s",
        "closed 260 ms after its end",
    ):
        assert expected in text


def test_an_empty_state_can_be_drawn() -> None:
    assert "connecting" in drawn(ViewState())
    assert summary(ViewState())["windows"] == 0


def test_of_windows_that_end_together_the_busiest_come_first() -> None:
    events = [window(T0, f"S{n}USDT", quote_volume=str(n)) for n in range(100)]
    text = drawn(after(*events), rows=24)
    assert text.index("S99USDT") < text.index("S98USDT")
    assert "S1USDT" not in text
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 30), (200, 50)])
def test_no_line_wraps_and_the_view_fits_the_terminal(columns: int, rows: int) -> None:
    words = "a reason much longer than any terminal is wide " * 8
    sockets = [
        msgspec.structs.replace(socket(ConnectionState.SUSPECT, n, route), reason=words, attempt=15)
        for route in ("trades", "depth")
        for n in (1, 2)
    ]
    events = [
        window(T0 - 5_000 * n, "1000SHIBUSDT", complete=False, missing=None, cvd="-123456.789")
        for n in range(100)
    ]
    alerts = [
        Alert(name="a", severity="error", symbol=None, message=words, at_ns=0) for _ in range(9)
    ]
    signals = [msgspec.structs.replace(signal(), rationale=words)] * 20
    state = after(*sockets, *events, *alerts, *signals)
    text = drawn(state, problems=[words] * 9, rows=rows, columns=columns)
    lines = text.splitlines()
    assert len(lines) < rows
    assert all(len(line) <= columns for line in lines)
    assert ("+3 (2)" in text) == (columns >= 100)
    assert lines[0].startswith("00:00:09 UTC" if columns < 120 else "order flow · ")
    assert "closed " in lines[0]
    assert "…" not in lines[0]
    shown = [line for line in lines if "1000SHIBUSDT" in line]
    assert shown
    assert all("-123,457 " in line and "+3" in line and "no, ?" in line for line in shown)


@pytest.mark.parametrize(
    ("cvd", "shown"),
    [("0.00001234", "+0.00001234"), ("-1234.5678", "-1,234.57"), ("98765432.1", "+98,765,432 ")],
)
def test_flows_are_shown_with_six_digits_at_most(cvd: str, shown: str) -> None:
    assert shown in drawn(after(window(cvd=cvd)))


def test_the_summary_names_every_socket() -> None:
    state = after(socket(ConnectionState.HEALTHY), socket(ConnectionState.SUSPECT, 1, "depth"))
    assert summary(state)["connections"] == "depth#1 suspect, trades#0 healthy"


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_caller() -> None:
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            screen = Screen(stream, tuple)
            with screen:
                states = [after(*[window(T0 + k) for k in range(200)]) for _ in range(30)]
                for _ in range(400):  # nobody reads: the terminal's buffer fills up
                    for state in states:
                        screen.show(state)
    finally:
        os.set_blocking(ours, False)
        for thread in threading.enumerate():
            while thread.name == "view" and thread.is_alive():
                _drain(ours)
                thread.join(0.01)
        os.close(ours)
        os.close(theirs)


def test_only_a_terminal_that_knows_escape_sequences_gets_a_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            monkeypatch.setenv("TERM", "xterm")
            assert supports_view(stream)
            monkeypatch.setenv("TERM", "dumb")
            assert not supports_view(stream)
        monkeypatch.setenv("TERM", "xterm")
        with (tmp_path / "file").open("w") as stream:
            assert not supports_view(stream)
    finally:
        os.close(ours)
        os.close(theirs)


def _drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except BlockingIOError:
        return b""


def test_the_view_draws_what_the_bus_says_and_gives_the_terminal_back() -> None:
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    ours, theirs = pty.openpty()
    read = bytearray()

    def reader() -> None:
        while b"\x1b[?1049l" not in read:
            read.extend(os.read(ours, 65_536))

    async def work(stream: Any) -> None:
        bus = EventBus()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, with_view=True, stream=stream))
            await asyncio.sleep(0)
            bus.publish(Topic.WINDOW, window())
            while b"64,123.40" not in read:
                await asyncio.sleep(0.01)
            bus.close()

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            asyncio.run(work(stream))
        thread.join(10)
        assert not thread.is_alive()
        assert read.startswith(b"\x1b[?1049h")
    finally:
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_a_summary_is_logged_at_the_end() -> None:
    async def work() -> None:
        bus = EventBus()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, with_view=False, stream=sys.stdout))
            await asyncio.sleep(0)
            bus.publish(Topic.WINDOW, window())
            bus.close()

    with structlog.testing.capture_logs() as entries:
        asyncio.run(work())
    (entry,) = entries
    assert entry["event"] == "run.summary"
    assert entry["windows"] == 1
    assert entry["trades"] == 10


def test_a_view_that_fails_is_logged_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        bus = EventBus()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, with_view=False, stream=sys.stdout))
            await asyncio.sleep(0)
            for _ in range(QUEUE_EVENTS * 2):
                bus.publish(Topic.ALERT, signal())

    monkeypatch.setattr("dashboard.plain.reduce", failing)
    with structlog.testing.capture_logs() as entries:
        asyncio.run(work())
    assert "view.failed" in [entry["event"] for entry in entries]
