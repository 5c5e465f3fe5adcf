"""A connection to the exchange that synchronous code can use: the REST client on a loop of its own.

Consumes coroutines from any thread → runs them on the loop's thread, gives back their results. The
caller's own event loop, if it has one (a notebook), is never touched. ``close`` leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, Final

import structlog

from binance_api.connector_settings import ConnectorSettings, settings_of
from binance_api.errors import ExchangeError, InvalidKey
from binance_api.rest import RestClient
from domain.errors import OrderFlowError

log = structlog.get_logger()

_CHECK_S: Final = 30.0  # for the first contact, waits and retries included
_WAIT_S: Final = 0.2  # between two looks at a result: Ctrl-C is heard everywhere meanwhile
_JOIN_S: Final = 5.0
_WORKERS: Final = 4  # for names to be resolved and large replies to be decoded


class ConnectionClosed(OrderFlowError):
    """The connection was closed, before or while it was used."""


class BinanceConnection:
    """The REST client and the thread it lives in. Usable from any thread.

    Args:
        settings: See ``ConnectorSettings``.

    Attributes:
        rest: To be used on the connection's own loop only (``run``, ``start``).
        is_ready: The exchange answered, and took the API key if there is one.
    """

    def __init__(self, settings: ConnectorSettings) -> None:
        self.settings = settings
        self.rest = RestClient(settings.rest)
        self.is_ready = False
        self._lock = threading.Lock()
        self._is_closed = False
        self._opened: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._live, name="binance-connection", daemon=True)
        self._thread.start()
        self._loop = self._opened.result()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait for it; an interrupt here cancels it.

        Raises:
            ConnectionClosed: Closed, perhaps while waiting.
            RuntimeError: Called on the connection's own thread.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("this would wait for itself: call it from another thread")
        future = self.start(work)
        try:
            while not wait([future], timeout=_WAIT_S).done:
                pass
            return future.result()
        except CancelledError:
            raise ConnectionClosed("the connection was closed") from None
        except BaseException:
            future.cancel()
            raise

    def start[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the loop; returns at once."""
        with self._lock:
            if self._is_closed:
                work.close()
                raise ConnectionClosed("the connection is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def check(self) -> None:
        """Find out whether the exchange answers, and whether it takes the API key."""
        try:
            if self.settings.rest.api_key is None:
                await self.rest.time(deadline_s=_CHECK_S)
            else:
                await self.rest.account_status(deadline_s=_CHECK_S)
        except InvalidKey as error:
            log.error("connector.keys_refused", code=error.code, reason=error.msg)
        except ExchangeError as error:
            log.error("connector.not_connected", reason=str(error), code=error.code)
        else:
            self.is_ready = True
            is_signed = self.settings.rest.api_key is not None
            log.info("connector.connected", market=self.settings.rest.market, keys=is_signed)

    def close(self) -> None:
        """End everything that runs on the loop, and the thread. Idempotent, from any thread."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def _live(self) -> None:
        loop = asyncio.new_event_loop()  # a Runner starts a thread when it ends: see ``_Workers``
        workers = _Workers(_WORKERS)
        loop.set_default_executor(workers)
        try:
            loop.run_until_complete(self._main())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            workers.join(_JOIN_S / 2)

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self.rest:
            self._opened.set_result(loop)
            await self._stop.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_JOIN_S)


class _Workers(ThreadPoolExecutor):
    """A few threads, started at once and never refusing work.

    The library's own pool takes none once the main thread has ended, and no thread can be started
    then either; but a stream goes on after that, and needs names resolved to reconnect.
    """

    def __init__(self, count: int) -> None:
        super().__init__(max_workers=1)  # it starts no thread of its own before ``submit``
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._own_threads = [
            threading.Thread(target=self._work, name="binance-worker", daemon=True)
            for _ in range(count)
        ]
        for thread in self._own_threads:
            thread.start()

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - as the library's own pool does
                future.set_exception(error)

        self._calls.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's signature
        """End the threads after what is waiting, without waiting for them."""
        for _ in self._own_threads:
            self._calls.put(None)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def join(self, timeout_s: float) -> None:
        """Wait for the threads; one that resolves a name may take longer than anyone can wait."""
        deadline = time.monotonic() + timeout_s
        for thread in self._own_threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def connect_to_binance(config: Mapping[str, Any] | None = None) -> BinanceConnection:
    """Open a connection and check the API key, if there is one.

    Wrong keys and an exchange that does not answer are logged and show in ``is_ready``; public data
    can be asked for all the same.

    Args:
        config: See docs/connector.md; keys come from here or from the environment alone.

    Raises:
        ValueError: The config cannot be used.
    """
    connection = BinanceConnection(settings_of(config))
    try:
        connection.run(connection.check())
    except BaseException:
        connection.close()
        raise
    return connection


def close_binance_connection(connection: BinanceConnection | None) -> None:
    """Close a connection; ``None`` and closed ones are fine."""
    if connection is not None:
        connection.close()
