from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from market_orchestrator.connection.depth_order import depth_order
from market_orchestrator.connection.primary import PrimarySelector


def frame(update_id: int, stream: str = "btcusdt@depth20@100ms") -> bytes:
    return b'{"stream":"%b","data":{"U":1,"u":%d,"pu":9}}' % (stream.encode(), update_id)


def selector() -> PrimarySelector:
    return PrimarySelector(stale_after_s=1.0, lead_s=0.25, retained_limit=100)


def offer(chooser: PrimarySelector, socket_id: int, update_id: int, now: float) -> list[int] | None:
    frames = chooser.offer(socket_id, [frame(update_id)], [update_id], now)
    return None if frames is None else list(frames.receive_time_ns)


def test_the_first_socket_to_deliver_is_primary_and_the_other_stands_by():
    chooser = selector()
    assert offer(chooser, 1, 10, 0.0) == [10]
    assert offer(chooser, 2, 10, 0.01) is None
    assert chooser.primary == 1


def test_a_stale_primary_is_replaced_and_no_frame_is_lost():
    chooser = selector()
    offer(chooser, 1, 10, 0.0)
    offer(chooser, 2, 10, 0.0)
    results = [offer(chooser, 2, 10 + n, 0.1 * n) for n in range(1, 12)]
    assert results[:10] == [None] * 10
    assert results[10] == list(range(11, 22))
    assert (chooser.primary, chooser.switch_count) == (2, 1)


def test_two_sockets_of_a_quiet_market_do_not_take_turns():
    chooser = selector()
    offer(chooser, 1, 0, 0.0)
    for update_id in range(1, 20):
        now = 3.0 * update_id
        assert offer(chooser, 2, update_id, now) is None
        assert offer(chooser, 1, update_id, now + 0.001) == [update_id]
    assert chooser.switch_count == 0


def test_a_lost_primary_hands_over_at_once_with_what_it_did_not_deliver():
    chooser = selector()
    for update_id in (10, 11):
        offer(chooser, 1, update_id, 0.1)
        offer(chooser, 2, update_id, 0.1)
    offer(chooser, 2, 12, 0.2)
    frames = chooser.remove(1, 0.21)
    assert frames is not None
    assert frames.receive_time_ns == [12]
    assert chooser.primary == 2


def test_a_lost_primary_without_standby_leaves_the_place_to_the_next():
    chooser = selector()
    offer(chooser, 1, 10, 0.0)
    assert chooser.remove(1, 0.5) is None
    assert chooser.primary is None
    assert offer(chooser, 3, 11, 5.0) == [11]


def test_a_lost_standby_changes_nothing():
    chooser = selector()
    offer(chooser, 1, 10, 0.0)
    offer(chooser, 2, 10, 0.0)
    assert chooser.remove(2, 0.1) is None
    assert chooser.primary == 1


def test_a_slower_successor_does_not_repeat_what_was_delivered():
    chooser = selector()
    offer(chooser, 1, 10, 0.0)
    offer(chooser, 2, 9, 0.0)
    offer(chooser, 1, 11, 0.1)
    assert chooser.promote(2, 0.2).payloads == []
    assert offer(chooser, 2, 10, 0.21) == []
    assert offer(chooser, 2, 11, 0.22) == []
    assert offer(chooser, 2, 12, 0.3) == [12]


def test_what_is_retained_is_bounded():
    chooser = selector()
    offer(chooser, 1, 0, 0.0)
    for update_id in range(1, 1000):
        offer(chooser, 2, update_id, 0.5)
    frames = chooser.remove(1, 0.6)
    assert frames is not None
    assert 50 <= len(frames.payloads) <= 100
    assert frames.receive_time_ns[-1] == 999


def test_spot_messages_are_ordered_too():
    payload = b'{"stream":"btcusdt@depth20@100ms","data":{"lastUpdateId":77,"bids":[]}}'
    assert depth_order(payload) == (b"btcusdt@depth20@100ms", 77)
    assert depth_order(b'{"stream":"x","data":{"U":5,"pu":4}}') is None
    assert depth_order(b"\xff") is None


steps = st.lists(
    st.tuples(
        st.integers(min_value=1, max_value=3),  # socket
        st.sampled_from(["deliver", "deliver", "deliver", "promote", "remove"]),
        st.floats(min_value=0.0, max_value=1.5),  # seconds since the step before
        st.integers(min_value=0, max_value=2),  # how far this socket lags behind the exchange
    ),
    max_size=80,
)


@given(steps)
def test_whatever_happens_no_book_goes_back_in_time(history):
    """Every socket delivers the book in order, each with its own lag."""
    chooser = PrimarySelector(stale_after_s=1.0, overlap_s=1e9)
    now, exchange_id = 0.0, 100
    seen: dict[int, int] = defaultdict(int)
    passed: list[int] = []
    for socket_id, action, wait, lag in history:
        now += wait
        exchange_id += 1
        if action == "deliver":
            fresh = range(max(seen[socket_id] + 1, 100), exchange_id + 1 - lag)
            if not fresh:
                continue
            seen[socket_id] = fresh[-1]
            frames = chooser.offer(socket_id, [frame(n) for n in fresh], list(fresh), now)
        elif action == "promote" and seen[socket_id]:
            frames = chooser.promote(socket_id, now)
        else:
            frames = chooser.remove(socket_id, now)
        if frames is not None:
            passed += frames.receive_time_ns
    assert passed == sorted(set(passed))
