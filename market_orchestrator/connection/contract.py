"""What the connection layer asks of its surroundings, and what it hands to them.

Consumes settings; produces ``FrameBatch`` (to the sink), ``ConnectionEvent`` (to the listener) and
``SocketStatus`` (to whoever asks).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from binance_api.endpoints import (
    CONNECTION_LIFETIME_S,
    INBOUND_MESSAGES_PER_S,
    MAX_STREAMS_PER_CONNECTION,
    Route,
)
from domain.events import ConnectionEvent, ConnectionState
from domain.market import Market
from market_orchestrator.connection.liveness import LivenessSettings


class ConnectionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the manager behaves. ``_s`` is seconds; liveness thresholds are in ``liveness``."""

    market: Market = Market.UM
    ws_base: str = "wss://fstream.binance.com"  # host alone; routes are added by binance_api
    redundancy: int = 1  # WS_REDUNDANCY: sockets per route (and shard)
    ping_interval_s: float = 20.0  # WS_PING_INTERVAL
    max_reconnect_attempts: int = 15  # WS_MAX_RECONNECT_ATTEMPTS, 0: never give up
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 60.0  # WS_BACKOFF_CAP
    flapping_cap_s: float = 10.0  # longest wait when healthy sockets are lost again and again
    reconnect_jitter_s: float = 0.1  # at most, before the first reconnect after a loss
    connect_timeout_s: float = 10.0  # DNS, TCP, TLS and handshake together
    close_timeout_s: float = 1.0
    check_interval_s: float = 0.25  # how often liveness, pings and rotation are looked at
    batch_interval_s: float = 0.002  # between two batches, at least
    busy_interval_s: float = 0.025  # the same while batches hold many frames
    max_batch: int = 2048  # frames per FrameBatch
    max_streams_per_connection: int = MAX_STREAMS_PER_CONNECTION
    max_streams_in_url: int = 200  # the rest is subscribed by messages
    subscribe_interval_s: float = 1 / (INBOUND_MESSAGES_PER_S - 1)  # between SUBSCRIBE messages
    stagger_s: float = 1.0  # between the sockets of a redundant pair; longest wait of depth
    rotation_after_s: float = CONNECTION_LIFETIME_S - 3_600.0
    rotation_minute: int | None = None  # WS_ROTATION_MINUTE: minute of the UTC hour, 0-59
    rotation_spread_s: float = 90.0
    rotation_first_data_s: float = 30.0  # how long the new socket may take to deliver
    rotation_grace_s: float = 5.0  # for quiet streams: handshake + pong + this
    rotation_overlap_s: float = 1.0
    rotation_retry_s: float = 300.0
    depth_stale_after_s: float = 1.0  # silence of the depth primary before the standby takes over
    standby_silence_s: float = 10.0  # a silent standby beside a delivering primary reconnects
    market_moves_within_s: float = 2.0  # trades this recent say that the market moves
    probe_timeout_s: float = 5.0
    probe_concurrency: int = 2
    probe_min_interval_s: float = 2.0  # between two probes of the whole manager (REST weight)
    liveness: LivenessSettings = LivenessSettings()


class FrameBatch(msgspec.Struct):
    """Frames of one socket in arrival order, at most ``max_batch``."""

    route: Route
    socket_id: int
    payloads: list[bytes]
    receive_time_ns: list[int]


class FrameSink(Protocol):
    """Decodes a batch at once; returns the names of the streams that carried real data."""

    def __call__(self, batch: FrameBatch) -> Collection[str]: ...


class ConnectionListener(Protocol):
    """Told of every state change, before any frame that follows it."""

    def on_connection(self, event: ConnectionEvent) -> None: ...


class Prober(Protocol):
    """Asks the exchange by another way."""

    async def probe(self, stream: str) -> bool | None:
        """True: it has newer data than we received; False: nothing newer; None: unknown."""
        ...


class SocketStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One live socket. Times are monotonic seconds."""

    route: Route
    socket_id: int
    state: ConnectionState
    is_primary: bool  # its frames go to the sink
    stream_count: int
    connected_at: float | None
    last_data_monotonic: float | None
    silence_limit_s: float  # 20 x median gap between batches, within [0.5, 5]
    pong_age_s: float | None
    frame_count: int
