"""How a verb's coroutine runs: event loop, signals, and an end within ten seconds of the first one.

Consumes a coroutine that returns an exit code, produces that code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NoReturn

STOP_TIMEOUT_S = 10.0
SAME_SIGNAL_S = 0.5  # a process group's signal and make's copy of it are one request to stop


def run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run ``work`` on uvloop where it exists, until it ends or a signal stops it."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_until_signalled(work))


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """First signal: cancel ``work`` and allow it ``STOP_TIMEOUT_S``. Second signal: leave at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    too_late = f"stopping took longer than {STOP_TIMEOUT_S:.0f} s"
    watchdog = threading.Timer(STOP_TIMEOUT_S, _leave, (1, too_late))
    watchdog.daemon = True
    stopping_since = None

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping_since
        if stopping_since is None:
            stopping_since = time.monotonic()
            watchdog.start()
            loop.call_soon_threadsafe(task.cancel)
        elif time.monotonic() - stopping_since > SAME_SIGNAL_S:
            _leave(128 + number, "stopped at once")

    previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        return await work
    except asyncio.CancelledError:
        if stopping_since is None:
            raise
        return 0
    finally:
        watchdog.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop here; a hang-up only if the parent does not ignore it (nohup)."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    found = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


def _leave(code: int, reason: str) -> NoReturn:
    """End the process without waiting for anything; the terminal is put back to normal first."""
    if "dashboard.screen" in sys.modules:
        from dashboard.screen import abandon_terminal

        abandon_terminal()
    os.write(2, f"\n{reason}\n".encode())
    os._exit(code)
