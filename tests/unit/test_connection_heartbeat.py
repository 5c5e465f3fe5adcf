from __future__ import annotations

from market_orchestrator.connection.heartbeat import Heartbeat, PauseDetector

SECOND_NS = 1_000_000_000


def test_the_first_ping_goes_out_at_once_and_then_one_per_interval():
    heartbeat = Heartbeat(20.0, 100.0)
    assert heartbeat.is_due(100.0)
    heartbeat.on_ping(100.0)
    heartbeat.on_pong(100.1)
    assert not heartbeat.is_due(119.9)
    assert heartbeat.is_due(120.0)


def test_no_pong_within_one_further_interval_is_a_loss():
    heartbeat = Heartbeat(20.0, 0.0)
    heartbeat.on_ping(0.0)
    heartbeat.on_pong(0.1)
    heartbeat.on_ping(20.0)
    assert not heartbeat.is_lost(39.9)
    heartbeat.on_ping(40.0)  # a further ping does not move the deadline
    assert heartbeat.is_lost(40.0)
    heartbeat.on_pong(40.1)
    assert not heartbeat.is_lost(59.0)


def test_an_urgent_ping_is_sent_once_and_not_while_a_pong_is_fresh():
    heartbeat = Heartbeat(20.0, 0.0)
    heartbeat.on_ping(0.0)
    heartbeat.on_pong(0.1)
    heartbeat.urge(2.0)
    assert not heartbeat.is_due(2.0)
    heartbeat.urge(8.0)
    assert heartbeat.is_due(8.0)
    heartbeat.on_ping(8.0)
    heartbeat.urge(8.5)
    assert not heartbeat.is_due(8.5)
    assert not heartbeat.is_overdue(12.9)
    assert heartbeat.is_overdue(13.0)


def test_after_a_sleep_the_ping_on_its_way_is_forgotten():
    heartbeat = Heartbeat(20.0, 0.0)
    heartbeat.on_ping(0.0)
    heartbeat.restart(3600.0)
    assert not heartbeat.is_lost(3600.0)
    assert heartbeat.is_due(3600.0)


def test_a_pause_shows_on_either_clock():
    """Suspended, the monotonic clock stands still on Linux and runs on Windows."""
    for monotonic, wall_s in ((0.25, 3600.0), (3600.0, 3600.0), (5.0, 0.25)):
        pause = PauseDetector(10.0, 50 * SECOND_NS, tick_s=0.25)
        assert not pause.paused(10.3, 50 * SECOND_NS + SECOND_NS // 3)
        assert pause.paused(10.3 + monotonic, 50 * SECOND_NS + round(wall_s * SECOND_NS))
        assert not pause.paused(10.6 + monotonic, 50 * SECOND_NS + round(wall_s * SECOND_NS))


def test_a_wall_clock_set_back_is_no_pause():
    pause = PauseDetector(10.0, 50 * SECOND_NS, tick_s=0.25)
    assert not pause.paused(10.25, 20 * SECOND_NS)
