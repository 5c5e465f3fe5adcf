"""Spans of windows rebuilt from the history, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from binance_api.errors import ExchangeError
from domain.flow import Origin
from market_orchestrator import rebuild as rebuilding
from market_orchestrator.rebuild import PAGE, Head, Span, fetch_head, rebuild
from market_orchestrator.windows import WindowSettings
from microstructure.trade_flags import ValidatorSettings
from tests.trade_frames import START_MS, FakeHistory, Print
from tests.window_bench import D, Window, windows_of

WINDOWS = 40
END_MS = START_MS + WINDOWS * D


def market(count: int = 4_000, step_ms: int = 50, first_id: int = 1_000) -> list[Print]:
    """Trades at a steady pace, the first one exactly at the start."""
    return [Print(first_id + i, START_MS + i * step_ms) for i in range(count)]


def expected(prints: Sequence[Print], end_ms: int = END_MS) -> dict[int, tuple[int, ...]]:
    windows: dict[int, list[int]] = {start: [] for start in range(START_MS, end_ms, D)}
    for trade in prints:
        if START_MS <= trade.time_ms < end_ms:
            windows[trade.time_ms - trade.time_ms % D].append(trade.agg_trade_id)
    return {start: tuple(ids) for start, ids in windows.items()}


def run(
    history: FakeHistory,
    *,
    from_id: int = 1_000,
    from_known: bool = True,
    until_id: int | None = None,
    end_ms: int = END_MS,
) -> dict[int, Window]:
    """Rebuild the span; every window must come once, in order."""

    async def collect() -> list[Window]:
        span = Span("BTCUSDT", START_MS, end_ms, from_id, from_known, until_id)
        found: list[Window] = []
        async for batches in rebuild(history, span, WindowSettings(), ValidatorSettings()):
            assert batches
            found += [windows_of(batch)[0] for batch in batches]
        return found

    found = asyncio.run(collect())
    assert [window.start_ms for window in found] == list(range(START_MS, end_ms, D))
    assert {window.origin for window in found} == {Origin.RECOVERED}
    return {window.start_ms: window for window in found}


def ids(windows: dict[int, Window]) -> dict[int, tuple[int, ...]]:
    return {start: window.ids for start, window in windows.items()}


def incomplete(windows: dict[int, Window]) -> dict[int, int | None]:
    """Number of each incomplete window → what it misses."""
    return {
        (start - START_MS) // D: window.missing
        for start, window in windows.items()
        if not window.complete
    }


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_LAG_WAIT_S", 0.0)


def test_a_span_gets_every_trade_of_its_windows_over_several_pages() -> None:
    prints = market(6_000)
    history = FakeHistory(prints)
    windows = run(history)
    assert ids(windows) == expected(prints)
    assert not incomplete(windows)
    assert [from_id for _, from_id, _ in history.requests] == [1_000 + PAGE * i for i in range(5)]


def test_silence_within_and_after_the_last_trade_is_windows_without_trades() -> None:
    prints = [Print(1_000, START_MS + 10), Print(1_001, START_MS + 7 * D)]
    windows = run(FakeHistory(prints))
    assert ids(windows) == expected(prints)
    assert not incomplete(windows)


def test_a_trade_whose_time_runs_back_over_the_end_of_the_span_is_taken() -> None:
    end_ms = START_MS + 2 * D
    prints = [Print(1_000 + i, START_MS + 9 * i) for i in range(PAGE - 1)]
    prints += [Print(1_000 + PAGE - 1, end_ms + 20), Print(1_000 + PAGE, end_ms - 20)]
    prints += [Print(1_001 + PAGE, end_ms + 400)]
    windows = run(FakeHistory(prints), end_ms=end_ms)
    assert ids(windows) == expected(prints, end_ms)


def test_ids_the_history_lacks_are_asked_for_again_and_then_lost() -> None:
    prints = market()
    history = FakeHistory(prints)
    history.absent = {1_105, 1_106, 1_107}
    windows = run(history)
    assert incomplete(windows) == {1: 3}
    assert ids(windows) == expected([p for p in prints if p.agg_trade_id not in history.absent])
    assert ("BTCUSDT", 1_105, 4) in history.requests


def test_a_hole_across_windows_is_counted_where_it_begins() -> None:
    history = FakeHistory(market())
    history.absent = set(range(1_150, 1_450))
    assert incomplete(run(history)) == {1: 300, 2: 0, 3: 0, 4: 0}


def test_the_first_ids_of_a_span_are_missed_in_its_first_window() -> None:
    history = FakeHistory(market())
    history.absent = set(range(1_000, 1_005))
    assert incomplete(run(history)) == {0: 5}


def test_an_id_that_was_only_late_is_found_by_asking_again() -> None:
    prints = market()
    history = FakeHistory(prints)
    history.absent = {1_105}

    def appear() -> None:
        if len(history.requests) == 2:
            history.absent = set()

    history.before_reply = appear
    windows = run(history)
    assert ids(windows) == expected(prints)
    assert not incomplete(windows)


def test_a_full_page_with_an_unreadable_entry_is_not_the_end_of_the_history() -> None:
    prints = market(6_000)
    history = FakeHistory(prints)
    history.unreadable = {1_530, 1_999}  # within a page, and its last entry
    windows = run(history)
    assert incomplete(windows) == {5: 1, 9: 1, 10: 0}
    assert ids(windows) == expected([p for p in prints if p.agg_trade_id not in {1_530, 1_999}])


def test_a_page_nobody_can_read_ends_the_span_without_a_claim_to_completeness() -> None:
    history = FakeHistory(market(6_000))
    history.unreadable = set(range(2_000, 2_000 + PAGE))
    windows = run(history)
    assert [k for k in range(WINDOWS) if k not in incomplete(windows)] == list(range(9))


# --- the end ------------------------------------------------------------------------------


def test_a_history_that_lags_is_asked_until_it_reaches_the_trade_known_to_follow() -> None:
    prints = market(4_200)
    history = FakeHistory(prints)
    history.visible_id = 4_900  # some 5 s before the end

    def catch_up() -> None:
        if len(history.requests) == 7:
            history.visible_id = None

    history.before_reply = catch_up
    windows = run(history, until_id=5_000)
    assert ids(windows) == expected(prints)
    assert not incomplete(windows)


def test_a_history_that_never_reaches_it_leaves_the_last_windows_incomplete() -> None:
    prints = market(4_200)
    history = FakeHistory(prints)
    history.visible_id = 4_880
    windows = run(history, until_id=5_000)
    assert incomplete(windows) == {38: 119, 39: 0}


def test_a_failed_request_is_the_callers_and_what_was_yielded_stands() -> None:
    prints = market(6_000)
    history = FakeHistory(prints)

    def fail() -> None:
        if len(history.requests) == 3:
            raise ExchangeError("out of order")

    history.before_reply = fail
    found: list[Window] = []

    async def collect() -> None:
        span = Span("BTCUSDT", START_MS, END_MS, 1_000, True)
        async for batches in rebuild(history, span, WindowSettings(), ValidatorSettings()):
            found.extend(windows_of(batch)[0] for batch in batches)

    with pytest.raises(ExchangeError):
        asyncio.run(collect())
    assert {w.start_ms: w.ids for w in found} == {
        start: wanted for start, wanted in expected(prints).items() if start < START_MS + 19 * D
    }
    assert all(window.complete for window in found)


# --- the beginning ------------------------------------------------------------------------


def head(history: FakeHistory, first_id: int, start_ms: int) -> Head:
    return asyncio.run(fetch_head(history, "BTCUSDT", first_id, start_ms, urgent=True))


def test_the_head_reaches_back_until_a_trade_before_the_start_is_seen() -> None:
    history = FakeHistory(market(4_000))
    found = head(history, 4_000, START_MS + 50_000)
    assert found.proven
    assert found.rows["agg_trade_id"].tolist() == list(range(1_000, 4_000))
    assert len(history.requests) == 3  # the third page begins before the start


def test_the_head_is_proven_by_the_very_first_id_of_a_symbol() -> None:
    history = FakeHistory(market(20, first_id=0))
    found = head(history, 5, START_MS - D)
    assert found.proven
    assert found.rows["agg_trade_id"].tolist() == [0, 1, 2, 3, 4]
    assert head(history, 0, START_MS).proven


def test_the_head_is_not_proven_where_the_history_begins_too_late() -> None:
    history = FakeHistory(market(), first_id=1_500)
    found = head(history, 1_600, START_MS)
    assert not found.proven
    assert found.rows["agg_trade_id"].tolist() == list(range(1_500, 1_600))
    assert not head(history, 1_500, START_MS).proven


def test_the_head_ends_at_a_hole() -> None:
    history = FakeHistory(market())
    history.absent = {1_300}
    found = head(history, 1_400, START_MS)
    assert not found.proven
    assert found.rows["agg_trade_id"].tolist() == list(range(1_301, 1_400))
    just_before = head(history, 1_301, START_MS)
    assert not just_before.proven
    assert not len(just_before.rows)


def test_a_span_whose_beginning_is_unknown_is_completed_backwards() -> None:
    before = [Print(990 + i, START_MS - 500 + 50 * i) for i in range(10)]
    prints = market()
    windows = run(FakeHistory([*before, *prints]), from_id=1_030, from_known=False)
    assert ids(windows) == expected(prints)
    assert not incomplete(windows)


def test_without_proof_of_its_beginning_every_window_up_to_the_first_known_trade_is_incomplete() -> (
    None
):
    history = FakeHistory(market(), first_id=1_250)  # its trade is 12.5 s after the start
    windows = run(history, from_id=1_300, from_known=False)
    assert incomplete(windows) == {0: None, 1: None, 2: None}
    assert windows[START_MS + 2 * D].ids == tuple(range(1_250, 1_300))


def test_without_any_trade_before_it_the_first_page_tells_how_much_is_unknown() -> None:
    history = FakeHistory(market(), first_id=1_120)
    windows = run(history, from_id=1_120, from_known=False)
    assert incomplete(windows) == {0: None, 1: None}


def test_a_span_of_which_nothing_at_all_is_known_is_incomplete_throughout() -> None:
    windows = run(FakeHistory([]), from_id=1_000, from_known=False)
    assert incomplete(windows) == dict.fromkeys(range(WINDOWS))
