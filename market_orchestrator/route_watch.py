"""Silence on the trade route: what closes windows then, and what proves that a stream is dead.

While the socket delivers, the learned exchange clock closes silent windows. Once it is silent beyond
its own limit only the exchange's REST history does: nothing newer there proves the silence, newer
trades prove a stall. Also answers the connection manager's probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
import structlog

from binance_api.endpoints import Route, StreamKind, symbol_of
from binance_api.errors import ExchangeError
from domain.events import ConnectionEvent, ConnectionState
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.rebuild import PAGE, TradeHistory

log = structlog.get_logger()


class RouteWatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    tick_s: how often silence is looked at.
    margin_ms: how far the learned clock is trusted less than it says.
    max_drift_ms: clock offsets that moved by more are not used (clocks at unlike speed).
    probe_every_s: at most one silence probe in this time.
    probe_symbols: most active symbols asked in one probe.
    trust_silence_s: silence up to which the clock alone closes windows.
    begin_after_s: silence since the start after which windows begin at the exchange's time, without
        a trade: a quiet market has silent windows, and a restart recovers what is before them.
    settle_s: how long a trade that REST has may take to arrive over the socket.
    """

    tick_s: float = 0.05
    margin_ms: int = 150
    max_drift_ms: float = 250.0
    probe_every_s: float = 1.0
    probe_symbols: int = 2
    trust_silence_s: float = 1.5
    begin_after_s: float = 3.0
    settle_s: float = 0.3


class ExchangeState(TradeHistory, Protocol):
    """What is asked of the REST client beside trades."""

    async def time(self) -> Answer: ...
    async def depth(self, symbol: str, limit: int) -> Answer: ...


class Answer(Protocol):
    """A reply of the REST client."""

    @property
    def value(self) -> object: ...


class SocketView(Protocol):
    """What is read of a socket's status."""

    @property
    def last_data_monotonic(self) -> float | None: ...
    @property
    def silence_limit_s(self) -> float: ...


class RouteWatch:
    """Watches the trade route of one run; owned and run by the orchestrator."""

    def __init__(
        self,
        flow: MarketFlow,
        exchange: ExchangeState,
        settings: RouteWatchSettings,
        *,
        on_up: Callable[[bool], None],
        trade_sockets: Callable[[], list[SocketView]],
        monotonic: Callable[[], float],
        wall_ns: Callable[[], int],
    ) -> None:
        self._flow = flow
        self._exchange = exchange
        self._settings = settings
        self._on_up = on_up
        self._trade_sockets = trade_sockets
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._up: set[int] = set()
        self._up_since = float("inf")
        self._last_probe = float("-inf")
        self._counts = dict.fromkeys(("outages", "silence_probes", "stalls_found"), 0)

    def on_connection(self, event: ConnectionEvent) -> None:
        """Keep track of which trade sockets are up; the last one going down ends coverage."""
        if event.route != Route.TRADES:
            return
        before = bool(self._up)
        if event.state in (ConnectionState.SUBSCRIBED, ConnectionState.HEALTHY):
            self._up.add(event.socket_id)
        elif event.state in (
            ConnectionState.DISCONNECTED,
            ConnectionState.CLOSED,
            ConnectionState.GAVE_UP,
        ):
            self._up.discard(event.socket_id)
        if bool(self._up) == before:
            return
        self._up_since = self._monotonic() if self._up else float("inf")
        if not self._up:
            self._counts["outages"] += 1
            self._flow.builder.lose_coverage()
        self._on_up(bool(self._up))

    async def run(self) -> None:
        """Look at silence until cancelled."""
        async with asyncio.TaskGroup() as group:
            probe: asyncio.Task[None] | None = None
            while True:
                await asyncio.sleep(self._settings.tick_s)
                overdue = self._look()
                if overdue and (probe is None or probe.done()) and self._may_probe():
                    probe = group.create_task(self._probe_silence(), name="silence-probe")

    async def probe(self, stream: str) -> bool | None:
        """Whether the exchange has data of a stream that did not arrive (``Prober``)."""
        symbol = symbol_of(stream)
        try:
            if stream.endswith(StreamKind.AGG_TRADE.value):
                return await self._has_newer_trades(self._flow.index[symbol])
            return await self._has_newer_book(symbol)
        except ExchangeError as error:
            log.info("route.probe_failed", stream=stream, error=str(error))
            return None

    def statistics(self) -> dict[str, int | float | str | None]:
        """Outages of the whole route, silence probes, and stalls these found."""
        return {**self._counts, "sockets_up": len(self._up)}

    # --- silence --------------------------------------------------------------------------

    def _look(self) -> bool:
        """Close what the clock may close; True if a probe is wanted."""
        builder = self._flow.builder
        end_ms = builder.next_end_ms()
        clock_ms = self._clock_ms()
        now_ns = int(self._monotonic() * 1e9)
        if end_ms is None:
            return self._monotonic() - self._up_since > self._settings.begin_after_s
        if clock_ms is None:
            self._flow.close(now_ns)
            return self._is_quiet()
        lateness_ms = self._flow.settings.windows.lateness_ms
        if self._up and not self._is_quiet():
            builder.prove(int(clock_ms) - self._settings.margin_ms)
        self._flow.close(now_ns)
        due = clock_ms >= end_ms + lateness_ms + self._settings.margin_ms
        if due:
            self._flow.take(builder.close_unproven(now_ns, clock_ms))
        return due and self._is_quiet()

    def _clock_ms(self) -> float | None:
        clock = self._flow.validator.clock
        if clock.drift_ms > self._settings.max_drift_ms:
            return None
        return clock.exchange_ms(self._wall_ns())

    def _is_quiet(self) -> bool:
        """Whether every trade socket is silent beyond its own limit."""
        now = self._monotonic()
        return all(
            socket.last_data_monotonic is None
            or now - socket.last_data_monotonic
            > min(socket.silence_limit_s, self._settings.trust_silence_s)
            for socket in self._trade_sockets()
        )

    def _may_probe(self) -> bool:
        every_s = self._settings.probe_every_s
        if self._flow.validator.clock.median_ms is None:  # no trade yet: one probe per window
            every_s = max(every_s, self._flow.settings.windows.duration_ms / 1_000)
        return bool(self._up) and self._monotonic() - self._last_probe >= every_s

    async def _probe_silence(self) -> None:
        """Ask REST whether the silent route missed anything; if not, that proves the silence."""
        self._last_probe = self._monotonic()
        self._counts["silence_probes"] += 1
        try:
            server_ms = (await self._exchange.time()).value
            newer = [await self._has_newer_trades(index) for index in self._most_active()]
        except ExchangeError as error:
            log.info("route.silence_probe_failed", error=str(error))
            return
        if any(newer):
            self._counts["stalls_found"] += 1
        elif isinstance(server_ms, int) and self._up:
            if self._flow.builder.first_start_ms is None:
                self._flow.builder.begin(server_ms)
            self._flow.builder.prove(server_ms - self._settings.margin_ms)
            self._flow.close()

    def _most_active(self) -> list[int]:
        sequences = self._flow.validator.sequences
        known = [i for i, sequence in enumerate(sequences) if sequence.max_id is not None]
        known.sort(key=self._flow.builder.last_trade_ms, reverse=True)
        return known[: self._settings.probe_symbols]

    async def _has_newer_trades(self, index: int) -> bool:
        """True if REST has trades that the socket does not deliver within a moment."""
        sequence = self._flow.validator.sequences[index]
        if sequence.max_id is None:
            return False
        rows = await self._newer(index, sequence.max_id)
        if not len(rows):
            return False
        await asyncio.sleep(self._settings.settle_s)
        undelivered = rows[rows["agg_trade_id"] > (sequence.max_id or 0)]
        if not len(undelivered):
            return False
        self._flow.on_trades(undelivered, authoritative=True)
        return True

    async def _newer(self, index: int, after_id: int) -> np.ndarray:
        symbol = self._flow.symbols[index]
        reply = await self._exchange.agg_trades(
            symbol, from_id=after_id + 1, limit=PAGE, urgent=True
        )
        rows = reply.value[reply.value["agg_trade_id"] > after_id]
        rows["symbol_index"] = index
        return rows

    async def _has_newer_book(self, symbol: str) -> bool | None:
        before = self._flow.validator.book_update_id(symbol)
        if before is None:
            return None
        newest = getattr((await self._exchange.depth(symbol, 50)).value, "final_update_id", None)
        if newest is None or newest <= before:
            return False if newest is not None else None
        await asyncio.sleep(self._settings.settle_s)
        after = self._flow.validator.book_update_id(symbol)
        return after is not None and after < newest
