"""What the dashboard knows: a pure reducer with bounded histories."""

import msgspec
import pytest

from dashboard.state import (
    BARS_KEPT,
    GAPS_KEPT,
    LINES_KEPT,
    DashboardState,
    summary,
)
from domain.events import AnalysisUnavailable, ConnectionState, GapState
from domain.flow import Origin
from tests.dashboard_samples import (
    T0,
    WINDOW_MS,
    after,
    alert,
    features,
    gap,
    health,
    signal,
    socket,
    window,
)


def test_reducing_does_not_change_the_old_state() -> None:
    old = after(socket(ConnectionState.CONNECTING), gap(GapState.OPEN), features())
    before = repr(old)
    after(socket(), gap(GapState.REPAIRED), features(T0 + WINDOW_MS), window(), signal(), state=old)
    assert repr(old) == before


def test_live_recovered_and_revised_windows_are_counted_apart() -> None:
    state = after(
        features(),
        features(T0 + WINDOW_MS, complete=False),
        *[features(T0 - WINDOW_MS, origin=Origin.RECOVERED)] * 2,
        *[features(origin=Origin.REVISED)] * 3,
    )
    assert (state.window_count, state.incomplete_count) == (2, 1)
    assert (state.recovered_count, state.revised_count) == (2, 3)
    assert state.trade_count == 800


def test_a_revised_window_corrects_the_charts_and_a_recovered_one_fills_their_hole() -> None:
    state = after(features(T0), features(T0 + 2 * WINDOW_MS))
    state = after(
        features(T0 + WINDOW_MS, origin=Origin.RECOVERED, cvd=5.0),
        features(T0, origin=Origin.REVISED, cvd=3.0),
        state=state,
    )
    bars = state.symbols["BTCUSDT"].bars
    assert [bar.end_ms - T0 for bar in bars] == [0, WINDOW_MS, 2 * WINDOW_MS]
    assert [bar.cvd for bar in bars] == [3.0, 5.0, 17.5]
    row = state.symbols["BTCUSDT"].row
    assert row is not None
    assert row.window_end_ms == T0 + 2 * WINDOW_MS


def test_the_revision_of_a_whole_day_leaves_a_bounded_history() -> None:
    state = after(features(T0))
    day = [features(T0 - n * WINDOW_MS, origin=Origin.REVISED) for n in range(17_280)]
    bars = after(*day, state=state).symbols["BTCUSDT"].bars
    assert len(bars) == BARS_KEPT
    assert bars[-1].end_ms == T0


def test_many_symbols_share_one_budget_of_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.state.BARS_IN_ALL", 2_000)
    names = [f"S{n}USDT" for n in range(20)]
    state = DashboardState()
    for n in range(120):
        rows = [features(T0 + n * WINDOW_MS, name) for name in names]
        state = after(*rows, state=state)
    assert sum(len(symbol.bars) for symbol in state.symbols.values()) == 2_000


def test_symbols_stand_as_the_user_named_them_whichever_is_heard_first() -> None:
    state = DashboardState(order=("ETHUSDT", "BTCUSDT"))
    for name in ("XRPUSDT", "BTCUSDT", "ADAUSDT", "ETHUSDT"):
        state = after(features(T0, name), state=state)
    assert list(state.symbols) == ["ETHUSDT", "BTCUSDT", "ADAUSDT", "XRPUSDT"]


def test_everything_else_is_bounded_too() -> None:
    state = DashboardState()
    for first_id in range(GAPS_KEPT + 50):
        state = after(gap(GapState.OPEN, first_id), alert(), socket(), state=state)
    assert len(state.open_gaps) == GAPS_KEPT
    assert len(state.alerts) == len(state.events) == LINES_KEPT


def test_a_dead_socket_is_known_until_another_takes_its_place() -> None:
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
    assert state.gap_counts[GapState.LOST] == 1
    assert [line.severity for line in state.events] == ["warning", "warning", "info", "error"]


def test_a_depth_break_is_counted_but_never_waited_for() -> None:
    assert not after(gap(GapState.OPEN, None, "depth")).open_gaps


def test_a_models_answer_and_its_absence_are_dated_by_the_bots_clock() -> None:
    years_ms = 10**11  # a served recording's market lies years back
    late = msgspec.structs.replace(window(), closed_at_ns=(T0 + years_ms) * 1_000_000)
    missing = AnalysisUnavailable(
        symbol="BTCUSDT", window_end_ms=T0, reason="no_key", attempts=("groq: 503",)
    )
    state = after(features(), late, signal("groq", decided_at_ms=T0 + 400), missing)
    symbol = state.symbols["BTCUSDT"]
    assert symbol.analysis_ns == (T0 + 400 + years_ms) * 1_000_000
    assert symbol.unavailable_ns == (T0 + years_ms) * 1_000_000
    assert symbol.rules is None


def test_a_flush_is_dated_by_the_health_event_that_first_counts_it() -> None:
    state = after(health(0, store__flushes=0), health(30, store__flushes=1))
    state = after(health(60, store__flushes=1), state=state)
    assert state.flushed_ns == T0 * 1_000_000 + 30 * 10**9


def test_empty_holed_windows_of_a_dead_feed_make_no_price_fresh() -> None:
    heard = window(T0)
    metrics = msgspec.structs.replace(
        heard.metrics,
        window_end_ms=T0 + WINDOW_MS,
        complete=False,
        missing_trades=None,
        trade_count=0,
        close=None,
    )
    empty = msgspec.structs.replace(
        heard, metrics=metrics, closed_at_ns=heard.closed_at_ns + WINDOW_MS * 1_000_000
    )
    state = after(heard, empty)
    assert state.symbols["BTCUSDT"].seen_ns == heard.closed_at_ns
    assert after(empty).symbols["BTCUSDT"].seen_ns == 0
    silent = msgspec.structs.replace(metrics, complete=True, missing_trades=0)
    state = after(msgspec.structs.replace(empty, metrics=silent), state=state)
    assert state.symbols["BTCUSDT"].seen_ns == empty.closed_at_ns


def test_an_alert_names_its_symbol_once() -> None:
    state = after(alert("disk is slow"), alert("BTCUSDT: a large sweep"))
    assert [line.text for line in state.alerts] == [
        "BTCUSDT disk is slow",
        "BTCUSDT: a large sweep",
    ]


def test_the_order_of_batches_does_not_matter_where_events_are_cut() -> None:
    events = [features(T0 + n * WINDOW_MS) for n in range(5)] + [gap(GapState.OPEN), socket()]
    whole, pieces = after(*events), DashboardState()
    for event in events:
        pieces = after(event, state=pieces)
    assert whole == pieces


def test_the_summary_counts_and_names_every_socket() -> None:
    state = after(
        socket(), socket(ConnectionState.SUSPECT, 1, "depth"), features(), gap(GapState.OPEN)
    )
    found = summary(state)
    assert found["connections"] == "depth#1 suspect, trades#0 healthy"
    assert (found["windows"], found["trades"], found["open_gaps"]) == (1, 400, 1)
    assert found["last_window_end"] == "00:00:00"


@pytest.mark.parametrize("name", ["windows", "signals", "open_gaps"])
def test_the_summary_of_nothing_is_zero(name: str) -> None:
    assert summary(DashboardState())[name] == 0
