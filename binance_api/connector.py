"""``BinanceConnector``: candles and ticks as DataFrames, past ones at once and new ones as they come.

Consumes a symbol, an interval and dates → produces DataFrames of one schema (docs/connector.md), with
gaps and outliers marked. For synchronous code and notebooks; never writes to disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import structlog

from binance_api.connector_batch import past
from binance_api.connector_delivery import Callback, Delivery
from binance_api.connector_followers import BarFollower, TickFollower
from binance_api.connector_frames import ohlcv_frame, tick_frame
from binance_api.connector_history import History
from binance_api.connector_marks import MarkLog
from binance_api.connector_quality import (
    Checked,
    Columns,
    GapSettings,
    OutlierSettings,
    QualityCheck,
    gap_settings,
    outlier_settings,
)
from binance_api.connector_request import CollectRequest, collect_request
from binance_api.connector_session import (
    BinanceConnection,
    ConnectionClosed,
    close_binance_connection,
    connect_to_binance,
)
from binance_api.connector_settings import settings_of
from binance_api.connector_stream import Subscription
from binance_api.errors import ExchangeError
from binance_api.rest import Reply

if TYPE_CHECKING:
    import pandas as pd

log = structlog.get_logger()

_MODES: Final = {"batch": False, "streaming": True, "real-time": True}


class BinanceConnector:
    """Candles and ticks of Binance. Usable from any thread, also as a context manager.

    Args:
        config: ``api_key, api_secret, market, rest_url, ws_url, rate_limit, timeout_s``, each
            optional; what is missing comes from the environment (docs/connector.md).
        mode: ``"batch"``: ``collect`` returns past data. ``"streaming"`` or ``"real-time"``:
            ``collect`` returns at once and new data go to the callbacks.
        gap_params: ``fill, max_fill, min_missing``; see ``connector_quality.GapSettings``.
        outlier_params: ``method, threshold, window, column``; see ``OutlierSettings``.
        debug: Log every page.

    Raises:
        ValueError: A mode, key or parameter that is none.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        mode: str = "batch",
        gap_params: Mapping[str, Any] | None = None,
        outlier_params: Mapping[str, Any] | None = None,
        debug: bool = False,  # noqa: FBT001, FBT002 - the specified signature
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, not {mode!r}")
        self._is_streaming = _MODES[mode]
        self._config = dict(config or {})
        settings_of(self._config)
        self._gap_params = dict(gap_params or {})
        self._outlier_params = dict(outlier_params or {})
        gap_settings({**self._gap_params, "fill": False}, interval=None)
        outlier_settings({**self._outlier_params, "column": None}, interval=None)
        self._debug = debug
        self._delivery = Delivery()
        self._connection: BinanceConnection | None = None
        self._subscriptions: dict[tuple[str, str], Subscription] = {}
        self._connecting = threading.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        mode = "streaming" if self._is_streaming else "batch"
        return f"BinanceConnector(mode={mode!r}, connected={self._connection is not None})"

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self) -> bool:
        """Open the session and check the API key, if there is one.

        Returns:
            True: the exchange answers, and takes the key. False: it does not (why is logged);
            public data can be collected all the same once it answers.
        """
        with self._connecting:
            self._is_closed = False
            connection = self._connection
            if connection is None:
                connection = self._connection = connect_to_binance(self._config)
            return connection.is_ready

    def on_new_data(self, callback_fn: Callback) -> None:
        """Call ``callback_fn(frame)`` with every new piece of data of a stream.

        Callbacks are called one after the other in a thread of their own. One that raises is logged;
        the others and the stream go on.
        """
        self._delivery.add(callback_fn)

    def collect(
        self,
        symbol: str,
        timeframe: str,
        start_date: Any = None,
        end_date: Any = None,
        data_type: str = "ohlcv",
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Past data as a DataFrame, or the start of a stream.

        Args:
            symbol: In any case.
            timeframe: Such as ``"1m"``; ticks have none, but it must be one.
            start_date: First time, inclusive: ISO text in any usual form, a datetime, or ms since the
                epoch; without a zone it is UTC. ``None``: the newest rows (batch), from now on
                (streaming). A stream delivers what happened since ``start_date`` first.
            end_date: Exclusive; ``None`` or later than now: now. Batch only.
            data_type: ``"ohlcv"`` or ``"tick"``.
            **kwargs: ``limit`` and ``offset`` page through the rows between the dates (batch);
                ``poll_interval_s`` between two polls while sockets do not deliver (streaming).

        Returns:
            The data; ``None`` when streaming.

        Raises:
            ValueError: No such interval, data type or time, or a range that is empty.
            TypeError: An unknown argument.
            ExchangeError: The exchange refused for good, or was not reached (logged as critical).
            ConnectionClosed: ``close`` was called meanwhile.
        """
        request = collect_request(
            symbol,
            timeframe,
            start_date,
            end_date,
            data_type,
            is_streaming=self._is_streaming,
            options=kwargs,
        )
        gaps = gap_settings(self._gap_params, interval=request.interval)
        outliers = outlier_settings(self._outlier_params, interval=request.interval)
        connection = self._opened()
        try:
            if self._is_streaming:
                self._follow(connection, request, gaps, outliers)
                return cast(
                    "pd.DataFrame", None
                )  # as specified; who reads results is in batch mode
            history = self._history(connection)
            checked = connection.run(past(history, request, gaps, outliers))
        except ExchangeError as error:
            log.critical(
                "connector.failed",
                symbol=request.symbol,
                data_type=data_type,
                code=error.code,
                reason=str(error),
            )
            raise
        _tell(request, checked)
        return _frame(request, checked)

    def close(self) -> None:
        """End streams, connections and threads. Idempotent, from any thread and any callback."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        close_binance_connection(connection)
        self._subscriptions = {}
        delivery, self._delivery = self._delivery, self._delivery.successor()
        delivery.close()
        if connection is not None:
            log.info("connector.closed", **delivery.statistics())

    def statistics(self) -> dict[str, Any]:
        """Counts of the REST client, the streams and the callbacks."""
        counts: dict[str, Any] = {**self._delivery.statistics()}
        connection = self._connection
        if connection is not None:
            counts |= connection.rest.statistics()
        for (symbol, series), subscription in list(self._subscriptions.items()):
            counts |= {f"{symbol}.{series}.{k}": v for k, v in subscription.statistics().items()}
        return counts

    def _opened(self) -> BinanceConnection:
        """The session; opened now if ``connect`` was not called."""
        if self._is_closed:
            raise ConnectionClosed("the connector is closed; connect() opens it again")
        self.connect()
        connection = self._connection
        if connection is None:
            raise ConnectionClosed("the connector was closed")
        return connection

    def _history(self, connection: BinanceConnection) -> History:
        rest = connection.settings.rest
        slots = rest.concurrency - rest.urgent_slots
        return History(connection.rest, rest.market, slots, self._on_page)

    def _on_page(self, what: str, reply: Reply[int]) -> None:
        if self._debug:
            latency_ms = round(reply.latency_ms, 1)
            log.info("connector.page", what=what, rows=reply.value, latency_ms=latency_ms)

    # --- streams ---

    def _follow(
        self,
        connection: BinanceConnection,
        request: CollectRequest,
        gaps: GapSettings,
        outliers: OutlierSettings,
    ) -> None:
        key = (request.symbol, request.interval or "tick")
        if key in self._subscriptions:
            raise ValueError(f"{key[0]} {key[1]} is streamed already")
        delivery, history = self._delivery, self._history(connection)

        async def begin() -> Subscription:
            follower: BarFollower | TickFollower
            if request.interval is None:
                follower = TickFollower(history, request.symbol)
            else:
                follower = BarFollower(history, request.symbol, request.interval)
            await follower.begin(request.start_ms)
            check = QualityCheck(request.interval, gaps, outliers, expected=follower.next_key)
            marks = MarkLog(request.symbol, request.interval)

            def deliver(columns: Columns, done: Callable[[], None]) -> None:
                def make() -> pd.DataFrame:
                    checked = check.check(columns)
                    marks.add(checked)
                    return _frame(request, checked)

                delivery.put(make, done)

            return Subscription(connection, follower, deliver, request.poll_s)

        subscription = connection.run(begin())
        self._subscriptions[key] = subscription
        delivery.start()
        connection.start(subscription.run()).add_done_callback(_tell_end)
        log.info("connector.streams", symbol=key[0], series=key[1])


def _frame(request: CollectRequest, checked: Checked) -> pd.DataFrame:
    return tick_frame(checked) if request.interval is None else ohlcv_frame(checked)


def _tell(request: CollectRequest, checked: Checked) -> None:
    log.info(
        "connector.collected",
        symbol=request.symbol,
        series=request.interval or "tick",
        rows=len(checked.columns["gap"]),
        outliers=int(checked.columns["outlier"].sum()),
    )
    marks = MarkLog(request.symbol, request.interval)
    marks.add(checked)


def _tell_end(run: Future[None]) -> None:
    """A stream ends when it is closed, and otherwise only by a fault of ours."""
    if not run.cancelled() and (error := run.exception()) is not None:
        log.critical("connector.stream_failed", error=repr(error))
