"""Watching a bus: on a terminal that may stall, or as a summary in the log."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from dashboard.scene import Banner, Scene
from dashboard.screen import THREAD_NAME, Screen, supports_view
from dashboard.watch import QUEUE_EVENTS, Terminal, watch
from domain.events import Topic
from event_bus import EventBus
from tests.dashboard_samples import busy_market, features, scene, signal, window

pytest.importorskip("pty", reason="this system has no pseudo terminals")


@pytest.fixture
def pair() -> Iterator[tuple[int, Any]]:
    """Our end of a pseudo-terminal, and a stream on the other end."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", closefd=False) as stream:
        yield ours, stream
    os.set_blocking(ours, False)
    for thread in threading.enumerate():
        while thread.name == THREAD_NAME and thread.is_alive():
            _drain(ours)
            thread.join(0.01)
    os.close(ours)
    os.close(theirs)


def _drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""


def terminal(stream: Any) -> Terminal:
    return Terminal(stream=stream, keys=stream, banner=lambda: Banner("test"), stop=lambda: None)


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_caller(
    pair: tuple[int, Any],
) -> None:
    state = busy_market()
    made: list[int] = []
    with Screen(pair[1]) as screen:
        for seconds in range(2_000):  # nobody reads: the terminal's buffer fills up

            def make(seconds: int = seconds) -> Any:
                made.append(seconds)
                return scene(state, later_s=seconds)

            screen.show(make)
    assert len(made) < 2_000


def test_a_terminal_that_takes_nothing_for_a_while_gets_the_newest_frame_afterwards(
    pair: tuple[int, Any],
) -> None:
    ours, stream = pair
    os.set_blocking(stream.fileno(), False)  # as another program on the terminal may do
    os.set_blocking(ours, False)
    state, mark = busy_market(), "LAST"

    def made(second: int, trouble: str) -> Callable[[], Scene]:
        return lambda: scene(state, later_s=second, trouble=trouble)

    with structlog.testing.capture_logs() as logs, Screen(stream) as screen:
        for second in range(100):  # nobody reads: the terminal's buffer fills up
            screen.show(made(second, f"trouble {second}"))
            time.sleep(0.005)
        screen.show(made(100, mark))
        shown, deadline = b"", time.monotonic() + 10
        while mark.encode() not in shown:
            assert time.monotonic() < deadline
            shown += _drain(ours)
    assert not logs


def test_the_dashboard_draws_what_the_bus_says_and_gives_the_terminal_back(
    pair: tuple[int, Any],
) -> None:
    ours, stream = pair
    read = bytearray()

    def reader() -> None:
        while b"\x1b[?1049l" not in read:
            read.extend(os.read(ours, 65_536))

    async def work() -> None:
        bus = EventBus()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, terminal(stream)))
            await asyncio.sleep(0)
            bus.publish(Topic.WINDOW, window())
            bus.publish(Topic.FEATURES, features())
            while b"64,123.40" not in read:
                await asyncio.sleep(0.01)
            bus.close()

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    asyncio.run(work())
    thread.join(10)
    assert not thread.is_alive()
    assert read.startswith(b"\x1b[?1049h")


def test_a_drawing_that_fails_gives_the_terminal_back_and_harms_nobody(
    pair: tuple[int, Any],
) -> None:
    def failing() -> Any:
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as entries, Screen(pair[1]) as screen:
        screen.show(failing)
        while not entries:
            time.sleep(0.01)
    assert "view.failed" in [entry["event"] for entry in entries]
    read = bytearray()
    while b"\x1b[?1049l" not in read:
        read += os.read(pair[0], 65_536)


def test_without_a_terminal_a_summary_is_logged_at_the_end() -> None:
    async def work() -> None:
        bus = EventBus()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, None))
            await asyncio.sleep(0)
            for _ in range(1_200):
                bus.publish(Topic.FEATURES, features())
            bus.close()

    with structlog.testing.capture_logs() as entries:
        asyncio.run(work())
    (entry,) = entries
    assert entry["event"] == "run.summary"
    assert entry["windows"] == 1_200
    assert entry["trades"] == 480_000


def test_of_a_run_without_an_event_there_is_no_summary() -> None:
    bus = EventBus()
    bus.close()
    with structlog.testing.capture_logs() as logs:
        asyncio.run(watch(bus, None))
    assert logs == []


def test_a_view_that_fails_is_logged_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        bus = EventBus()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(bus, None))
            await asyncio.sleep(0)
            for _ in range(QUEUE_EVENTS * 2):
                bus.publish(Topic.ALERT, signal())

    monkeypatch.setattr("dashboard.watch.reduce", failing)
    with structlog.testing.capture_logs() as entries:
        asyncio.run(work())
    assert "view.failed" in [entry["event"] for entry in entries]


def test_only_a_terminal_that_knows_escape_sequences_gets_a_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: tuple[int, Any]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert supports_view(pair[1])
    monkeypatch.setenv("TERM", "dumb")
    assert not supports_view(pair[1])
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "file").open("w") as stream:
        assert not supports_view(stream)
