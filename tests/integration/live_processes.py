"""``python main.py …`` as processes of their own: started, watched, killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from feature_store import FeatureStore
from market_orchestrator.recovery import read_bookmarks
from tests.integration.live_parity import SYMBOLS, UNLIMITED_WEIGHT, Rows, differences, rows_of

MAIN = Path(__file__).resolve().parents[2] / "main.py"
PATIENCE_S = 120.0  # costs nothing while tests pass; a busy machine starts programs slowly


class Program:
    """One process of ours; all it prints is kept in ``folder``.

    Args:
        folder: For its output and as its working directory (no stray ``.env``).
        arguments: What follows ``main.py``.
        variables: Environment beside the machine's own.
    """

    started: ClassVar[list[Program]] = []

    def __init__(
        self, folder: Path, *arguments: object, variables: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.stderr")))
        self._stderr_path = folder / f"{number}-{arguments[0] if arguments else 'run'}.stderr"
        environment = {
            **{name: text for name, text in os.environ.items() if not _is_ours(name)},
            "TMPDIR": str(folder),  # the weight budget of a port must not outlive the test
            **(variables or {}),
        }
        with self._stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(MAIN), *map(str, arguments)],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.started.append(self)

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text("utf-8", "replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def first_line(self) -> str:
        """The first line on stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._close()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code; what it printed is checked for tracebacks."""
        try:
            code = self.process.wait(timeout_s)
        finally:
            if self.is_running:
                self.kill()
            self._close()
        assert "Traceback" not in self.stderr, self.stderr
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.send(number)
        return self.wait()

    def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Wait for a condition while it runs; False when that did not come."""
        end = time.monotonic() + timeout_s
        while (begun := time.monotonic()) < end:
            if condition():
                return True
            assert self.is_running, f"exit code {self.process.returncode}: {self.stderr}"
            time.sleep(max(0.05, 2 * (time.monotonic() - begun)))  # leave it to the program
        return False

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


def _is_ours(name: str) -> bool:
    return name.startswith(
        ("BINANCE_", "WS_", "WINDOW_", "FEATURE_", "LOG_", "GAP_", "HTTP_", "DATA_DIR")
    )


@contextlib.contextmanager
def simulating(folder: Path, **options: object) -> Iterator[dict[str, str]]:
    """A ``simulate`` process; yields the variables that point a bot at it."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    program = Program(folder, "simulate", "--port", 0, *flags)
    try:
        urls = json.loads(program.first_line())
        yield {"BINANCE_WS_URL": urls["ws"], "BINANCE_REST_URL": urls["rest"]}
        assert program.stop() == 0
    finally:
        if program.is_running:
            program.kill()


FAST = {
    "WS_BACKOFF_CAP": "0.5",
    "FEATURE_FLUSH_SECONDS": "1",
    "HTTP_PORT": "0",
    "BINANCE_RATE_LIMIT_WEIGHT": str(UNLIMITED_WEIGHT),
}


def start_bot(
    folder: Path, data_dir: Path, *flags: object, variables: Mapping[str, str]
) -> Program:
    """A headless bot with short flushes."""
    return Program(
        folder, "run", "--headless", "--data-dir", data_dir, *flags, variables={**FAST, **variables}
    )


def has_begun(data_dir: Path) -> bool:
    """Whether the store remembers where every symbol began."""
    return set(read_bookmarks(FeatureStore(data_dir).folder.parent)) == set(SYMBOLS)


def has_rows(data_dir: Path, count: int) -> bool:
    """Whether so many windows are on disk."""
    return len(rows_of(data_dir)) >= count


def crash_through(
    folder: Path,
    data_dir: Path,
    truth: Rows,
    *,
    recording: Path,
    seed: int,
    kills: int,
    market_s: float,
    speed: float,
    faults: Path | None = None,
    redundancy: int = 1,
) -> None:
    """Kill the bot at random moments of the market's life, then let it finish."""
    source = random.Random(seed)
    options = {"recording": recording, "speed": speed}
    if faults is not None:
        options["faults"] = faults
    with simulating(folder, **options) as urls:
        variables = {**urls, "WS_REDUNDANCY": str(redundancy)}
        for number in range(kills):
            bot = start_bot(folder, data_dir, variables=variables)
            if number == 0:
                assert bot.until(lambda: has_begun(data_dir)), bot.stderr
            time.sleep(source.uniform(0, market_s / speed / kills))
            bot.kill()
            assert "Traceback" not in bot.stderr
        bot = start_bot(folder, data_dir, variables=variables)
        if not bot.until(lambda: not differences(truth, rows_of(data_dir))):
            left = differences(truth, rows_of(data_dir))
            assert not left, "\n".join([*left[:20], bot.stderr])
        assert bot.stop() == 0
