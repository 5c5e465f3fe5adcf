"""Payloads of the event bus: immutable, versioned, JSON-serialisable (Decimals as strings).

Topics (``Topic``): connection, gap, window, features, signal, analysis_unavailable, alert, health.
The bus adds the sequence number; see ``event_bus.Envelope``.
"""

from __future__ import annotations

import enum
from decimal import Decimal

import msgspec

from domain.features import FeatureRow
from domain.flow import FlowMetrics, Origin, WhalePrint
from domain.market import SCHEMA_VERSION

MOST_WHALE_PRINTS = 8


class Topic(enum.StrEnum):
    """What can be subscribed to."""

    CONNECTION = "connection"
    GAP = "gap"
    WINDOW = "window"
    FEATURES = "features"
    SIGNAL = "signal"
    ANALYSIS_UNAVAILABLE = "analysis_unavailable"
    ALERT = "alert"
    HEALTH = "health"


class ConnectionState(enum.StrEnum):
    """States of one socket."""

    CONNECTING = "connecting"
    SUBSCRIBED = "subscribed"  # handshake done, first data frame awaited
    HEALTHY = "healthy"  # data flows
    SUSPECT = "suspect"  # a stream is silent past its limit, being probed
    ROTATING = "rotating"  # planned replacement is being opened
    DISCONNECTED = "disconnected"
    GAVE_UP = "gave_up"
    CLOSED = "closed"  # closed by us, on purpose


class ConnectionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One state change of one socket, with its reason."""

    route: str  # "trades" | "depth"
    socket_id: int
    state: ConnectionState
    reason: str
    attempt: int = 0
    close_code: int | None = None
    at_ns: int  # wall clock
    schema_version: int = SCHEMA_VERSION


class GapState(enum.StrEnum):
    """Life of a missing id range."""

    OPEN = "open"
    REPAIRED = "repaired"
    LOST = "lost"  # the exchange cannot give it back
    EXPIRED = "expired"  # outside REST's reach; the archive may have it


class GapEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A missing range of aggTrade ids (or a depth break: ids None), when found and when its state changes."""

    kind: str  # "trades" | "depth"
    symbol: str
    first_id: int | None
    last_id: int | None
    state: GapState
    cause: str
    from_ms: int | None  # exchange time of the last trade or frame before the hole
    until_ms: int | None
    repairable_until_ms: int | None
    at_ns: int
    schema_version: int = SCHEMA_VERSION


class WindowEvent(msgspec.Struct, frozen=True, gc=False):
    """A closed window. ``revision`` 0 is the first emission.

    ``whale_prints`` are its largest whales' trades by time, of live windows, and at most
    ``MOST_WHALE_PRINTS``; ``metrics.whale_count`` counts them all.
    """

    metrics: FlowMetrics
    origin: Origin
    revision: int
    closed_at_ns: int
    whale_prints: tuple[WhalePrint, ...] = ()
    schema_version: int = SCHEMA_VERSION


class FeaturesEvent(msgspec.Struct, frozen=True, gc=False):
    """The feature row of a closed window, as stored."""

    row: FeatureRow
    origin: Origin
    schema_version: int = SCHEMA_VERSION


class Action(enum.StrEnum):
    """What a signal says to do."""

    BUY = "BUY"
    SELL = "SELL"
    HOLD = "HOLD"


class Signal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One decision about one symbol at one window's end, whoever made it."""

    signal_id: str
    symbol: str
    window_end_ms: int
    decided_at_ms: int
    price: float | None
    action: Action
    confidence: float  # 0-1
    p_up: float | None = None
    p_flat: float | None = None
    p_down: float | None = None
    horizon_s: int
    rationale: str
    evidence: dict[str, float | None]
    invalidation: float | None  # price at which the reading is void
    source: str  # groq | dashscope | openai | rules | model:NAME
    model: str | None = None
    template_version: str | None = None
    latency_ms: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: Decimal | None = None
    context_hash: str = ""
    schema_version: int = SCHEMA_VERSION


class AnalysisUnavailable(msgspec.Struct, frozen=True, kw_only=True):
    """No analyst could answer; never replaced by an invented HOLD."""

    symbol: str
    window_end_ms: int
    reason: str
    attempts: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Something its owner should know.

    ``alert_id`` is unique where the alert engine fired it, empty where a part raised it itself.
    """

    name: str
    severity: str  # info | warning | error
    symbol: str | None
    message: str
    at_ns: int
    alert_id: str = ""
    schema_version: int = SCHEMA_VERSION


class HealthEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A periodic reading of every part's ``statistics()``, flattened: ``part.name`` to number."""

    at_ns: int
    values: dict[str, float | int | str | None]
    schema_version: int = SCHEMA_VERSION
