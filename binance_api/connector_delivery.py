"""Callbacks, in a thread of their own: a slow one delays only the others, a failing one nobody.

Consumes what makes a DataFrame → calls every registered function with it. The thread is what keeps
the process alive while a stream runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    import pandas as pd

log = structlog.get_logger()

type Callback = Callable[[pd.DataFrame], object]
type Make = Callable[[], pd.DataFrame]
_JOIN_S: Final = 5.0


class Delivery:
    """One thread, started by the first stream. Who puts something in bounds what waits here."""

    def __init__(self, callbacks: tuple[Callback, ...] = ()) -> None:
        self._callbacks = callbacks
        self._waiting: queue.SimpleQueue[tuple[Make, Callable[[], None]] | None]
        self._waiting = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._counts = {"delivered": 0, "callback_failures": 0}

    def add(self, callback: Callback) -> None:
        """Also call ``callback``, from the next piece of data on; registering it again does nothing.

        Raises:
            TypeError: It cannot be called.
        """
        if not callable(callback):
            raise TypeError("callback_fn must be callable")
        with self._lock:
            if callback not in self._callbacks:
                self._callbacks = (*self._callbacks, callback)

    def successor(self) -> Delivery:
        """Another one for the same callbacks."""
        return Delivery(self._callbacks)

    def start(self) -> None:
        """Start the thread, if it does not run yet."""
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="binance-callbacks")
                self._thread.start()

    def put(self, make: Make, done: Callable[[], None]) -> None:
        """Deliver what ``make`` gives; ``done`` is called afterwards, in the thread."""
        self._waiting.put((make, done))

    def close(self) -> None:
        """End the thread after the callback under way. Idempotent, also from a callback."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._waiting.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)
            if thread.is_alive():
                log.warning("connector.callback_still_runs", waited_s=_JOIN_S)

    def statistics(self) -> dict[str, int]:
        """Frames delivered, and callbacks that raised."""
        return dict(self._counts)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None and not self._is_closed:
            make, done = item
            try:
                self._deliver(make())
            except Exception:
                log.exception("connector.delivery_failed")
            finally:
                done()

    def _deliver(self, frame: pd.DataFrame) -> None:
        callbacks = self._callbacks
        for callback in callbacks:
            own = frame if len(callbacks) == 1 else frame.copy()  # what one does, no other sees
            try:
                callback(own)
            except Exception as error:
                self._counts["callback_failures"] += 1
                log.exception("connector.callback_failed", error=type(error).__name__)
        self._counts["delivered"] += 1
