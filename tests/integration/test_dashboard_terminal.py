"""The dashboard of a real run in a real pseudo-terminal."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals here", allow_module_level=True)

import asyncio
import termios
import threading

import pexpect  # type: ignore[import-untyped]
import pyte

from command_line.terminal import terminal_of
from config import Settings
from dashboard.screen import THREAD_NAME
from dashboard.watch import Terminal, watch
from domain.events import FeaturesEvent, GapEvent, Topic
from event_bus import DropOldest
from market_orchestrator.market_orchestrator import EnhancedMarketBot

LEAVE = b"\x1b[?1049l"
WAIT_S = 120.0
SYMBOLS = "BTCUSDT,ETHUSDT"
# A run that breaks after its first window, as a defect would.
CRASHING = """
import sys
import main
from market_orchestrator.outputs import Outputs
emit, count = Outputs.emit, 0
def failing(self, closed):
    global count
    emit(self, closed)
    count += 1
    if count > 2:
        raise ZeroDivisionError("a defect")
Outputs.emit = failing
sys.exit(main.main(sys.argv[1:]))
"""


def _mind_a_hang_up() -> None:
    """Whoever started the tests (nohup) may have told their processes to ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal80:
    """A program on a pseudo-terminal, and what its screen shows."""

    def __init__(self, repository: Path, arguments: list[str], columns: int = 80, rows: int = 24):
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.sent = bytearray()
        environment = {**os.environ, "TERM": "xterm-256color"}
        self.child = pexpect.spawn(
            sys.executable,
            arguments,
            cwd=repository,
            dimensions=(rows, columns),
            env=environment,
            timeout=5,
            preexec_fn=_mind_a_hang_up,
        )
        self.mode = termios.tcgetattr(self.child.child_fd)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def until(self, is_there: Callable[[str], object]) -> str:
        """Read until the screen's text satisfies ``is_there``."""
        deadline = time.monotonic() + WAIT_S
        while not is_there(self.text):
            assert time.monotonic() < deadline, self.text
            self._read()
        return self.text

    def _read(self) -> bool:
        try:
            data = self.child.read_nonblocking(65_536, 0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.sent += data
        self._stream.feed(data)
        return True

    def resize(self, columns: int, rows: int) -> None:
        self.child.setwinsize(rows, columns)
        self._screen.resize(rows, columns)

    def end(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + WAIT_S
        while self._read():
            assert time.monotonic() < deadline, self.text
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -1


@pytest.fixture
def demo(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal80]]:
    started: list[Terminal80] = []

    def start(*program: str) -> Terminal80:
        arguments = [
            *(program or ("main.py",)),
            *("run", "--source", "demo", "--symbols", SYMBOLS, "--window-duration", "1"),
            *("--data-dir", str(tmp_path / "data"), "--ai", "rules"),
        ]
        started.append(Terminal80(repository, arguments))
        return started[-1]

    yield start
    for terminal in started:
        terminal.child.close(force=True)


def is_clean(terminal: Terminal80) -> bool:
    """Left the alternate screen, cursor and wrapping are back, and the mode is as before."""
    tail = bytes(terminal.sent[terminal.sent.rfind(LEAVE) - 20 :])
    return LEAVE in tail and b"\x1b[?25h" in tail and b"\x1b[?7h" in tail


def test_it_starts_updates_takes_keys_survives_resizing_and_leaves_a_clean_terminal(
    demo: Callable[..., Terminal80],
) -> None:
    terminal = demo()
    first = terminal.until(lambda text: re.match(r"BTCUSDT +\d", text) and "msg/s" in text)
    assert "demo um" in first
    clock = re.search(r"\d\d:\d\d:\d\d UTC", first)
    assert clock is not None
    terminal.until(lambda text: clock[0] not in text.split("\n")[0])
    assert not termios.tcgetattr(terminal.child.child_fd)[3] & termios.ICANON
    terminal.child.send(b"\x1b[C")
    terminal.until(lambda text: text.startswith("ETHUSDT"))
    terminal.child.send(b"h")
    terminal.until(lambda text: "another symbol" in text)
    terminal.child.send(b"h")
    terminal.resize(120, 40)
    wide = terminal.until(lambda text: "Whale tape" in text and "Events" in text)
    assert max(len(line.rstrip()) for line in wide.split("\n")) > 100
    terminal.resize(80, 24)
    terminal.until(lambda text: "Whale tape" not in text and "Alerts and events" in text)
    terminal.child.send(b"\x1a")  # Ctrl-Z must not suspend the bot
    terminal.child.send(b"q")
    terminal.until(lambda text: "y stops" in text)
    terminal.child.send(b"n")
    terminal.until(lambda text: "y stops" not in text)
    terminal.child.send(b"\x03")
    assert terminal.end() == 0
    assert is_clean(terminal)


@pytest.mark.long
def test_after_ctrl_s_and_ctrl_q_the_picture_goes_on(demo: Callable[..., Terminal80]) -> None:
    terminal = demo()
    terminal.until(lambda text: re.match(r"BTCUSDT +\d", text))
    terminal.child.send(b"\x13")
    for _ in range(15):  # several pictures more than fit between the program and its terminal
        terminal._read()
    terminal.child.send(b"2\x11")
    terminal.until(lambda text: text.startswith("ETHUSDT"))
    terminal.child.send(b"\x13")
    for _ in range(5):
        terminal._read()
    terminal.child.send(b"\x03")
    assert terminal.end() == 0
    assert is_clean(terminal)


@pytest.mark.long
def test_q_and_y_stop_the_bot(demo: Callable[..., Terminal80]) -> None:
    terminal = demo()
    terminal.until(lambda text: "msg/s" in text)
    terminal.child.send(b"qy")
    assert terminal.end() == 0
    assert is_clean(terminal)


def test_a_crash_leaves_a_clean_terminal_and_says_so_on_it(
    demo: Callable[..., Terminal80],
) -> None:
    terminal = demo("-c", CRASHING)
    descriptor = terminal.child.child_fd
    assert terminal.mode[3] & termios.ICANON
    terminal.until(lambda _: b"unexpected ZeroDivisionError" in terminal.sent)
    assert termios.tcgetattr(descriptor)[3] & termios.ICANON
    assert terminal.end() == 1
    assert is_clean(terminal)
    assert terminal.sent.rfind(LEAVE) < terminal.sent.rfind(b"unexpected ZeroDivisionError")


@pytest.mark.long
def test_a_hang_up_ends_the_run(demo: Callable[..., Terminal80]) -> None:
    terminal = demo()
    terminal.until(lambda text: "msg/s" in text)
    terminal.child.kill(signal.SIGHUP)
    assert terminal.end() == 0


@pytest.mark.long
def test_a_terminal_that_nobody_reads_for_ten_seconds_costs_no_trade(tmp_path: Path) -> None:
    """The feed goes on while the writer is stuck: every window closes, complete and in time."""
    ours, theirs = os.openpty()
    settings = Settings(
        source="demo", symbols=("BTCUSDT", "ETHUSDT"), window_duration=1, data_dir=tmp_path
    )
    drawn: list[float] = []

    async def work(stream: object) -> tuple[list[FeaturesEvent], list[GapEvent]]:
        bot = EnhancedMarketBot(settings)
        usual = terminal_of("demo", list)
        terminal = Terminal(
            stream=stream,  # type: ignore[arg-type]
            keys=stream,  # type: ignore[arg-type]
            banner=lambda: drawn.append(time.monotonic()) or usual.banner(),  # type: ignore[func-returns-value]
            stop=usual.stop,
        )
        events = bot.bus.subscribe(
            (Topic.FEATURES, Topic.GAP), policy=DropOldest(10_000), name="test"
        )
        async with asyncio.TaskGroup() as tasks:
            view = tasks.create_task(watch(bot.bus, terminal))
            running = tasks.create_task(bot.run())
            payloads = [envelope.payload for envelope in await events.next_batch()]
            await asyncio.sleep(10.0)
            while len(payloads) < 16:
                payloads += [envelope.payload for envelope in await events.next_batch()]
            view.cancel()
            running.cancel()
        payloads += [envelope.payload for envelope in events.drain_nowait()]
        return (
            [p for p in payloads if isinstance(p, FeaturesEvent)],
            [p for p in payloads if isinstance(p, GapEvent)],
        )

    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            rows, gaps = asyncio.run(work(stream))
    finally:
        _release(ours)
        os.close(ours)
        os.close(theirs)
    assert len(rows) >= 16
    assert all(event.row.complete for event in rows)
    assert not gaps
    for symbol in ("BTCUSDT", "ETHUSDT"):
        own = [event.row for event in rows if event.row.symbol == symbol]
        traded = [row for row in own if row.trade_count]
        for before, after in itertools.pairwise(traded):
            assert before.last_agg_id is not None
            assert after.first_agg_id == before.last_agg_id + 1
    assert drawn[-1] - drawn[0] < 9.0  # the terminal really was stuck


def _release(descriptor: int) -> None:
    """Let a stuck writer go on to its end."""
    os.set_blocking(descriptor, False)
    for thread in threading.enumerate():
        while thread.name == THREAD_NAME and thread.is_alive():
            try:
                os.read(descriptor, 65_536)
            except OSError:
                thread.join(0.01)
