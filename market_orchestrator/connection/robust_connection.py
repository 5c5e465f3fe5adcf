"""Keeps the market's streams coming: as many sockets as routes, redundancy and stream counts need.

Consumes stream names, produces ``FrameBatch`` calls to the sink and ``ConnectionEvent`` calls to the
listener. Invariants: DISCONNECTED or CLOSED of a socket comes after its last frame, SUBSCRIBED of a
socket before its first; frames of two depth sockets of a shard never mix; ``run`` leaves nothing
running however it ends.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from binance_api.endpoints import Route, route_of
from domain.errors import ConnectionLost
from market_orchestrator.connection.clock import Clock, Random, leaves, wait_for_first
from market_orchestrator.connection.contract import (
    ConnectionListener,
    ConnectionSettings,
    FrameBatch,
    FrameSink,
    Prober,
    SocketStatus,
)
from market_orchestrator.connection.feed import Feed
from market_orchestrator.connection.liveness import SocketLiveness
from market_orchestrator.connection.probes import ProbeDesk
from market_orchestrator.connection.rotation import rotation_age_s
from market_orchestrator.connection.shard import DEPTH_PRIMARY_SWITCHED, Shard
from market_orchestrator.connection.slot import Slot, gave_up
from market_orchestrator.connection.transport import Transport

__all__ = [
    "DEPTH_PRIMARY_SWITCHED",
    "ConnectionListener",
    "ConnectionSettings",
    "FrameBatch",
    "FrameSink",
    "Prober",
    "RobustConnectionManager",
    "SocketStatus",
]

log = structlog.get_logger()


class RobustConnectionManager:
    """All connections of a run.

    Args:
        settings: See ``ConnectionSettings``.
        streams: Stream names, each as ``binance_api.endpoints`` writes them.
        sink: Decodes frames; its answer feeds liveness. If it raises, ``run`` ends with that error.
        listener: Told of every state change.
        prober: Asked whether a silent stream is dead.
        transport: Opens connections.
        clock: Time.
        random: Jitter.
        awaits_trades: Whether the sink waits for the next trade: then none is gathered.

    Raises:
        ValueError: no streams, a stream twice, or a redundancy below 1.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        streams: Sequence[str],
        sink: FrameSink,
        listener: ConnectionListener,
        prober: Prober,
        *,
        transport: Transport,
        clock: Clock,
        random: Random,
        awaits_trades: Callable[[], bool] = lambda: False,
    ) -> None:
        if not streams or len(set(streams)) != len(streams):
            raise ValueError("streams must be given, each once")
        if settings.redundancy < 1:
            raise ValueError("redundancy must be at least 1")
        self._settings = settings
        self._sink = sink
        self._listener = listener
        self._transport = transport
        self._clock = clock
        self._random = random
        self._awaits_trades = awaits_trades
        self._probes = ProbeDesk(prober, settings)
        self._ids = itertools.count(1)
        self._shards = self._build_shards(streams)
        self._slots: list[Slot] = []
        self._failure: asyncio.Future[None] | None = None

    def _build_shards(self, streams: Sequence[str]) -> list[Shard]:
        limit = self._settings.max_streams_per_connection
        shards = []
        for route in (Route.TRADES, Route.DEPTH):  # the order in which they are opened
            names = [stream for stream in streams if route_of(stream) is route]
            shards += [
                Shard(
                    route,
                    names[start : start + limit],
                    settings=self._settings,
                    clock=self._clock,
                    sink=self._sink,
                    listener=self._listener,
                    fail=self._fail,
                    market_moves=self._market_moves,
                )
                for start in range(0, len(names), limit)
            ]
        return shards

    # --- running ---

    async def run(self) -> None:
        """Keep all connections open until cancelled.

        Raises:
            ConnectionLost: all sockets of a route failed too often in a row.
        """
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        trades_open = loop.create_future()
        self._slots = [
            self._build_slot(shard, index, replica, trades_open)
            for index, (replica, shard) in enumerate(
                itertools.product(range(self._settings.redundancy), self._shards)
            )
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for slot in self._slots:
                    tasks.create_task(slot.run())
                tasks.create_task(self._watch_failure(self._failure))
        except BaseExceptionGroup as group:
            raise leaves(group)[0] from None

    async def _watch_failure(self, failure: asyncio.Future[None]) -> None:
        await failure

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _build_slot(
        self,
        shard: Shard,
        index: int,
        replica: int,
        trades_open: asyncio.Future[None],
    ) -> Slot:
        has_trades = any(other.route is Route.TRADES for other in self._shards)

        async def before_start() -> None:
            if shard.route is Route.DEPTH and has_trades:
                await wait_for_first(self._clock, [trades_open], self._settings.stagger_s)
            if replica:
                await self._clock.sleep(replica * self._settings.stagger_s)

        def on_open() -> None:
            if shard.route is Route.TRADES and not trades_open.done():
                trades_open.set_result(None)

        return Slot(
            shard,
            index,
            settings=self._settings,
            clock=self._clock,
            random=self._random,
            new_id=lambda: next(self._ids),
            make_feed=self._make_feed,
            before_start=before_start,
            on_open=on_open,
            on_failure=lambda: self._check_given_up(shard.route),
        )

    def _make_feed(self, socket_id: int, slot: Slot, predecessor: SocketLiveness | None) -> Feed:
        settings = self._settings

        def rotation_age(connected_at_s: float) -> float:
            return rotation_age_s(
                connected_at_s,
                slot.index,
                after_s=settings.rotation_after_s,
                spread_s=settings.rotation_spread_s,
                minute=settings.rotation_minute,
            )

        return Feed(
            socket_id,
            slot.shard,
            settings=settings,
            clock=self._clock,
            transport=self._transport,
            probes=self._probes,
            rotation_age_s=rotation_age,
            is_awaited=self._awaits_trades if slot.shard.route is Route.TRADES else lambda: False,
            predecessor=predecessor,
        )

    def _check_given_up(self, route: Route) -> None:
        """Raise ``ConnectionLost`` if every slot of ``route`` is exhausted."""
        slots = [slot for slot in self._slots if slot.shard.route is route]
        if not all(slot.is_exhausted() for slot in slots):
            return
        for slot in slots:
            slot.shard.report_given_up(slot.socket_id, gave_up(slot), attempt=slot.attempts)
        log.error("connection.given_up", route=route.value, socket_count=len(slots))
        raise ConnectionLost(
            f"no connection to {self._settings.ws_base} for {route.value}: {gave_up(slots[0])}"
        )

    def _market_moves(self, now: float) -> bool | None:
        trades = [shard for shard in self._shards if shard.route is Route.TRADES]
        if not trades:
            return None
        recent_s = self._settings.market_moves_within_s
        return any(s.last_data is not None and now - s.last_data <= recent_s for s in trades)

    # --- looking in ---

    @property
    def depth_primary(self) -> int | None:
        """Socket whose depth is forwarded; of the first shard if depth needs several."""
        primaries = self.depth_primaries
        return primaries[0] if primaries else None

    @property
    def depth_primaries(self) -> list[int | None]:
        """As ``depth_primary``, one per depth shard."""
        return [s.selector.primary for s in self._shards if s.selector is not None]

    def is_healthy(self, route: Route) -> bool:
        """Whether data flow for all streams of ``route``."""
        shards = [shard for shard in self._shards if shard.route is route]
        return bool(shards) and all(shard.is_healthy() for shard in shards)

    def sockets(self, route: Route) -> list[SocketStatus]:
        """The sockets of ``route`` that are open or being opened, in order of their ids."""
        feeds = [f for s in self._shards if s.route is route for f in s.feeds.values()]
        return [feed.status() for feed in sorted(feeds, key=lambda feed: feed.socket_id)]

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start, flat; ``_s`` values are ages in seconds."""
        values: dict[str, int | float | str | None] = {
            "connect_attempts": sum(slot.connect_count for slot in self._slots),
            "connect_failures": sum(slot.failure_count for slot in self._slots),
            "rotations": sum(slot.rotation_count for slot in self._slots),
            "probes": self._probes.count,
            "probes_stalled": self._probes.stall_count,
            "probes_quiet": self._probes.quiet_count,
            "probes_unknown": self._probes.unknown_count,
            "depth_primary": self.depth_primary,
            "depth_switches": sum(s.selector.switch_count for s in self._shards if s.selector),
            "depth_withheld": sum(shard.withheld_count for shard in self._shards),
        }
        for route in dict.fromkeys(shard.route for shard in self._shards):
            values.update(self._route_statistics(route))
        return values

    def _route_statistics(self, route: Route) -> dict[str, int | float | str | None]:
        shards = [shard for shard in self._shards if shard.route is route]
        feeds = [feed for shard in shards for feed in shard.feeds.values()]
        losses: Counter[str] = Counter()
        for shard in shards:
            losses.update(shard.losses)
        last = max((s.last_data for s in shards if s.last_data is not None), default=None)
        attempts = [slot.attempts for slot in self._slots if slot.shard.route is route]
        name = route.value
        return {
            f"{name}.frames": sum(shard.total_frames() for shard in shards),
            f"{name}.bytes": sum(shard.total_bytes() for shard in shards),
            f"{name}.sockets": len(feeds),
            f"{name}.attempts": max(attempts, default=0),
            f"{name}.data_age_s": None if last is None else self._clock.monotonic() - last,
            f"{name}.state": _states(feeds),
            **{f"{name}.ended.{kind}": count for kind, count in sorted(losses.items())},
        }


def _states(feeds: Sequence[Feed]) -> str:
    return ",".join(sorted({feed.state.value for feed in feeds})) or "none"
