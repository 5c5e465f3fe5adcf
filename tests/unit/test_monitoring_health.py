"""Ready or not, from readings of the parts; and what systemd is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from monitoring.health import HealthChecks, HealthSettings, Readings, State
from monitoring.systemd import Systemd

MIB = 1_048_576
HEALTHY: Readings = {
    "connection.trades.state": "healthy",
    "connection.trades.data_age_s": 0.2,
    "connection.depth.state": "healthy",
    "connection.depth.data_age_s": 0.1,
    "store.failed_flushes": 0,
    "store.flushes": 3,
    "disk.free_bytes": 10_000 * MIB,
}


def checks() -> HealthChecks:
    return HealthChecks(HealthSettings(disk_warn_mib=2_000, disk_stop_mib=200))


def test_a_program_that_is_starting_is_not_ready() -> None:
    assert not checks().report({}).is_ready


def test_a_healthy_program_is_ready() -> None:
    report = checks().report(HEALTHY)
    assert report.status is State.OK, report


@pytest.mark.parametrize(
    "changed",
    [
        {"connection.trades.state": "disconnected"},
        {"connection.depth.state": "connecting"},
        {"connection.trades.data_age_s": 40.0, "connection.depth.data_age_s": 40.0},
        {"store.failed_flushes": 1},
        {"disk.free_bytes": 100 * MIB},
    ],
    ids=str,
)
def test_what_the_bot_cannot_do_without_makes_it_unready(changed: Readings) -> None:
    assert not checks().report({**HEALTHY, **changed}).is_ready


@pytest.mark.parametrize(
    "changed",
    [
        {"ai.mode": "live"},
        {"ai.mode": "live", "ai.groq.state": "open", "ai.openai.state": "disabled"},
        {"disk.free_bytes": 1_000 * MIB},
    ],
    ids=str,
)
def test_what_it_can_do_without_only_degrades_it(changed: Readings) -> None:
    report = checks().report({**HEALTHY, **changed})
    assert report.is_ready
    assert report.status is State.DEGRADED


def test_one_provider_that_answers_is_enough() -> None:
    values = {**HEALTHY, "ai.mode": "live", "ai.groq.state": "open", "ai.openai.state": "closed"}
    assert checks().report(values).status is State.OK


def test_a_quiet_trade_stream_is_ready_while_books_come() -> None:
    assert checks().report({**HEALTHY, "connection.trades.data_age_s": 300.0}).is_ready


def test_a_writer_is_well_again_after_its_next_success() -> None:
    watch = checks()
    assert watch.report(HEALTHY).is_ready
    failed = {**HEALTHY, "store.failed_flushes": 1}
    assert not watch.report(failed).is_ready
    assert not watch.report(failed).is_ready
    assert watch.report({**failed, "store.flushes": 4}).is_ready


def test_systemd_hears_ready_with_the_first_data_and_of_progress_alone(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(5)
        systemd = Systemd({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "180000000"})
        assert systemd.watchdog_s == 180
        systemd.on_progress(0, "starting")  # nothing yet: not ready
        systemd.on_progress(5, "ok")
        systemd.on_progress(5, "ok")  # nothing new: the watchdog goes hungry
        systemd.on_progress(6, "ok")
        systemd.stopping()
        heard = [manager.recv(1_000).decode().splitlines() for _ in range(3)]
    assert heard == [
        ["READY=1", "WATCHDOG=1", "STATUS=ok"],
        ["WATCHDOG=1", "STATUS=ok"],
        ["STOPPING=1"],
    ]


def test_without_systemd_nothing_happens() -> None:
    systemd = Systemd({})
    systemd.on_progress(1, "ok")
    assert not systemd.is_present
