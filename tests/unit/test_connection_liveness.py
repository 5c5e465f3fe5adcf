from __future__ import annotations

import itertools

import pytest

from market_orchestrator.connection.liveness import LivenessSettings, SocketLiveness

FAST, SLOW = "btcusdt@aggTrade", "altusdt@aggTrade"
DEPTH_A, DEPTH_B = "btcusdt@depth20@100ms", "ethusdt@depth20@100ms"
SETTINGS = LivenessSettings()


def trades(*streams: str) -> SocketLiveness:
    return SocketLiveness(SETTINGS, streams or (FAST,), 0.0, is_depth=False)


def depth(*streams: str) -> SocketLiveness:
    return SocketLiveness(SETTINGS, streams or (DEPTH_A,), 0.0, is_depth=True)


def feed(liveness: SocketLiveness, stream: str, *, start: float, gap: float, count: int) -> float:
    """Deliver ``count`` frames, one per ``gap``; return the time of the last."""
    for number in range(count):
        liveness.on_data((stream,), start + number * gap)
    return start + (count - 1) * gap


def probe(liveness: SocketLiveness, stream: str, now: float, *, newer: bool | None) -> None:
    liveness.on_probe_started(stream, now)
    liveness.on_verdict(stream, now, now + 0.1, newer=newer)


@pytest.mark.parametrize(
    ("gap", "limit"), [(0.01, 5.0), (0.25, 5.0), (1.0, 20.0), (3.0, 60.0), (50.0, 120.0)]
)
def test_the_limit_is_twenty_mean_gaps_within_bounds(gap, limit):
    liveness = trades()
    feed(liveness, FAST, start=0.0, gap=gap, count=40)
    assert liveness.limit_s(FAST) == pytest.approx(limit)


def test_the_limit_follows_a_stream_that_slows_down():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=100)
    feed(liveness, FAST, start=last, gap=4.0, count=200)
    assert liveness.limit_s(FAST) == pytest.approx(80.0, rel=0.02)


def test_without_a_known_rate_a_trade_stream_gets_the_longest_limit():
    liveness = trades()
    feed(liveness, FAST, start=0.0, gap=0.1, count=3)
    assert liveness.limit_s(FAST) == SETTINGS.cap_s


def test_a_stream_within_its_limit_is_not_probed():
    liveness = trades(FAST, SLOW)
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    feed(liveness, SLOW, start=0.0, gap=0.1, count=1)
    assert liveness.review(last + 4.9) is None
    assert liveness.due_probes(last + 4.9) == []
    liveness.review(last + 5.1)
    assert liveness.due_probes(last + 5.1) == [FAST]


def test_a_trade_stream_that_never_delivered_is_probed_and_not_killed():
    liveness = trades(SLOW)
    now, probes = 0.0, 0
    while now < 3600.0:
        now += 1.0
        assert liveness.review(now) is None
        for stream in liveness.due_probes(now):
            probe(liveness, stream, now, newer=False)
            probes += 1
    assert 3 <= probes <= 15  # the wait between them doubles


def test_nothing_newer_makes_a_silent_socket_quiet_until_data_come():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    liveness.review(last + 6)
    assert liveness.is_all_silent()
    assert not liveness.is_proven_quiet()
    probe(liveness, FAST, last + 6, newer=False)
    liveness.review(last + 7)
    assert liveness.is_proven_quiet()
    liveness.on_data((FAST,), last + 8)
    liveness.review(last + 8)
    assert not liveness.is_all_silent()
    assert not liveness.is_proven_quiet()


def test_newer_data_at_the_exchange_and_further_silence_is_a_stall():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    liveness.review(last + 6)
    probe(liveness, FAST, last + 6, newer=True)
    assert liveness.review(last + 6.5) is None  # the trade may be on its way
    reason = liveness.review(last + 7.2)
    assert reason is not None
    assert "newer data" in reason


def test_a_trade_that_was_only_on_its_way_is_no_stall():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    liveness.review(last + 6)
    probe(liveness, FAST, last + 6, newer=True)
    liveness.on_data((FAST,), last + 6.2)
    assert liveness.review(last + 8) is None


def test_an_answer_overtaken_by_data_is_ignored():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    liveness.review(last + 6)
    liveness.on_probe_started(FAST, last + 6)
    liveness.on_data((FAST,), last + 6.1)
    liveness.on_verdict(FAST, last + 6, last + 6.2, newer=True)
    assert liveness.review(last + 20) is None


def test_a_stalled_stream_beside_a_busy_one_is_named():
    liveness = trades(FAST, "ethusdt@aggTrade")
    feed(liveness, "ethusdt@aggTrade", start=0.0, gap=0.1, count=20)
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=200)
    liveness.review(last)
    assert not liveness.is_all_silent()
    assert liveness.due_probes(last) == ["ethusdt@aggTrade"]
    probe(liveness, "ethusdt@aggTrade", last, newer=True)
    reason = liveness.review(last + 2)
    assert reason is not None
    assert reason.startswith("ethusdt@aggTrade")


def test_unknown_answers_reconnect_only_if_every_stream_is_silent():
    busy = trades(FAST, SLOW)
    alone = trades(SLOW)
    for liveness in (busy, alone):
        feed(liveness, SLOW, start=0.0, gap=0.1, count=20)
    for second in range(6, 40):
        busy.on_data((FAST,), float(second))
        assert busy.review(second) is None
        for stream in busy.due_probes(second):
            probe(busy, stream, second, newer=None)
    reasons = []
    for second in range(6, 40):
        reasons.append(alone.review(second))
        for stream in alone.due_probes(second):
            probe(alone, stream, second, newer=None)
    first = next(i for i, reason in enumerate(reasons) if reason)
    assert "3 probes without an answer" in str(reasons[first])


def test_a_reconnect_that_did_not_help_makes_the_next_one_wait_twice_as_long():
    waits = []
    liveness = trades()
    start = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    for _ in range(4):
        now, reason = start, None
        while reason is None:
            now += 0.5
            reason = liveness.review(now)
            for stream in liveness.due_probes(now):
                probe(liveness, stream, now, newer=True)
        waits.append(now - start)
        start = now
        liveness = SocketLiveness(SETTINGS, (FAST,), now, is_depth=False, predecessor=liveness)
    assert waits[0] < 8
    assert all(after >= 1.4 * before for before, after in itertools.pairwise(waits[1:]))


def test_data_end_the_patience():
    old = trades()
    last = feed(old, FAST, start=0.0, gap=0.1, count=20)
    old.review(last + 6)
    probe(old, FAST, last + 6, newer=True)
    assert old.review(last + 8) is not None
    new = SocketLiveness(SETTINGS, (FAST,), last + 8, is_depth=False, predecessor=old)
    new.on_data((FAST,), last + 9)
    new.review(last + 15)
    probe(new, FAST, last + 15, newer=True)
    assert new.review(last + 17) is not None


def test_rates_are_taken_over_so_that_a_fast_stream_is_missed_soon():
    old = trades()
    last = feed(old, FAST, start=0.0, gap=0.1, count=20)
    new = SocketLiveness(SETTINGS, (FAST,), last, is_depth=False, predecessor=old)
    assert new.limit_s(FAST) == SETTINGS.floor_s


def test_one_silent_depth_stream_beside_others_reconnects_after_four_limits():
    liveness = depth(DEPTH_A, DEPTH_B)
    silent_since = feed(liveness, DEPTH_A, start=0.0, gap=0.1, count=20)
    now = silent_since
    reason = None
    while reason is None:
        now += 0.25
        liveness.on_data((DEPTH_B,), now)
        reason = liveness.review(now, market_moves=True)
    assert now - silent_since == pytest.approx(20.0, abs=0.5)
    assert reason.startswith(DEPTH_A)


def test_a_depth_stream_that_never_came_beside_others_reconnects_at_its_deadline():
    liveness = depth(DEPTH_A, DEPTH_B)
    now, reason = 0.0, None
    while reason is None:
        now += 0.25
        liveness.on_data((DEPTH_B,), now)
        reason = liveness.review(now, market_moves=True)
    assert now == pytest.approx(30.0, abs=0.5)


def test_all_depth_silent_reconnects_only_while_trades_flow():
    liveness = depth(DEPTH_A, DEPTH_B)
    for stream in (DEPTH_A, DEPTH_B):
        last = feed(liveness, stream, start=0.0, gap=0.1, count=20)
    assert liveness.review(last + 60, market_moves=False) is None
    assert liveness.review(last + 9, market_moves=True) is None
    reason = liveness.review(last + 11, market_moves=True)
    assert reason == "all depth streams silent while trades flow"


def test_a_prober_that_clears_depth_holds_the_reconnect_off():
    liveness = depth(DEPTH_A, DEPTH_B)
    last = feed(liveness, DEPTH_A, start=0.0, gap=0.1, count=20)
    liveness.on_data((DEPTH_B,), last + 19)
    liveness.review(last + 19, market_moves=True)
    probe(liveness, DEPTH_A, last + 19, newer=False)
    liveness.on_data((DEPTH_B,), last + 21)
    assert liveness.review(last + 21, market_moves=True) is None


def test_a_restart_begins_the_silence_anew():
    liveness = trades()
    last = feed(liveness, FAST, start=0.0, gap=0.1, count=20)
    liveness.restart(last + 8 * 3600)
    assert liveness.review(last + 8 * 3600 + 4) is None
    assert liveness.due_probes(last + 8 * 3600 + 4) == []


def test_streams_that_are_not_ours_are_ignored():
    liveness = trades()
    liveness.on_data(("ethusdt@aggTrade",), 1.0)
    assert liveness.last_data(FAST) is None
