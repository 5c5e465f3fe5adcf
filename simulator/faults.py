"""Scripted faults: what goes wrong, when (market ms since the start), and to whom.

Consumes a plan (objects, a JSON or TOML file, or ``random:SEED``) → produces ``FaultPlan``.
Everything is a pure function of the plan; wall time never decides.
"""

from __future__ import annotations

import enum
import random
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from domain.errors import ConfigError
from simulator.rest_faults import RestFault
from simulator.vision_faults import VisionFault


class FaultKind(enum.StrEnum):
    """What can go wrong."""

    DISCONNECT = "disconnect"  # mode: a close code, "abort" (no close frame) or "reset" (TCP RST)
    STALL = "stall"  # no data for duration_ms, pongs go on; mode: "drop" or "delay"
    MISSING = "missing"  # count frames are never sent
    DUPLICATED = "duplicated"  # count frames are sent again, up to 5 frames later
    REORDERED = "reordered"  # count frames are sent in another order
    CORRUPTED = "corrupted"  # count frames are damaged; mode says how
    DELAYED = "delayed"  # frames due within duration_ms arrive late by as much as delay_ms
    REFUSED = "refused"  # new connections fail for duration_ms; mode: "503" or "reset"
    REST_FAILURE = "rest_failure"  # REST fails for duration_ms; mode says how
    REST_LOST_TRADES = "rest_lost_trades"  # trades that neither the socket nor REST ever give
    LIFETIME = "lifetime"  # every socket is cut, as after 24 hours
    SERVER_SHUTDOWN = "server_shutdown"  # spot's event, then the cut after duration_ms


CLOSE_MODES = ("1000", "1001", "1008", "1011", "1012", "abort", "reset")
CORRUPTION_MODES = (
    "truncated",
    "bit_flip",
    "not_utf8",
    "html",
    "wrong_symbol",
    "zero_price",
    "negative_price",
    "changed_payload",
)
TRADE_ONLY_MODES = CORRUPTION_MODES[4:]
REST_MODES = ("500", "503", "429", "418", "timeout", "html", "reset")
MODES: dict[FaultKind, tuple[str, ...]] = {
    FaultKind.DISCONNECT: CLOSE_MODES,
    FaultKind.LIFETIME: CLOSE_MODES,
    FaultKind.SERVER_SHUTDOWN: CLOSE_MODES,
    FaultKind.STALL: ("drop", "delay"),
    FaultKind.CORRUPTED: CORRUPTION_MODES,
    FaultKind.REFUSED: ("503", "reset"),
    FaultKind.REST_FAILURE: REST_MODES,
}
COUNTED = (
    FaultKind.MISSING,
    FaultKind.DUPLICATED,
    FaultKind.REORDERED,
    FaultKind.CORRUPTED,
    FaultKind.REST_LOST_TRADES,
)
TIMED = (
    FaultKind.STALL,
    FaultKind.DELAYED,
    FaultKind.REFUSED,
    FaultKind.REST_FAILURE,
)
FRAME_KINDS = (*COUNTED, FaultKind.STALL, FaultKind.DELAYED)
ROUTES = ("trades", "depth")


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault.

    Args:
        at_ms: Market ms since the start.
        kind: What happens.
        mode: Variant, see ``MODES``; None takes the first one.
        route: ``trades`` or ``depth``; None both.
        symbol: Only this symbol's frames; None all.
        connection_index: Only the n-th open socket of the route, oldest first, counted when the
            fault begins; None all.
        duration_ms: Length in market ms, where the kind has one.
        count: Frames touched, where the kind counts.
        delay_ms: Lateness of ``delayed`` frames, market ms.
        endpoint: REST faults: only paths that end so (``aggTrades``); None all.
        ids: ``rest_lost_trades``: these aggTrade ids (``symbol`` is then needed) instead of the
            next ``count`` trades.
    """

    at_ms: int
    kind: FaultKind
    mode: str | None = None
    route: str | None = None
    symbol: str | None = None
    connection_index: int | None = None
    duration_ms: int = 0
    count: int = 0
    delay_ms: int = 0
    endpoint: str | None = None
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything, naming the field."""
        allowed = MODES.get(self.kind, ())
        if self.mode is not None and self.mode not in allowed:
            raise ConfigError(f"fault {self.kind}: mode must be one of {', '.join(allowed)}")
        if self.at_ms < 0 or self.duration_ms < 0 or self.count < 0 or self.delay_ms < 0:
            raise ConfigError(f"fault {self.kind}: times and counts must not be negative")
        if self.route is not None and self.route not in ROUTES:
            raise ConfigError(f"fault {self.kind}: route must be trades or depth")
        if self.kind in COUNTED and self.count == 0 and not self.ids:
            raise ConfigError(f"fault {self.kind}: count must be at least 1")
        if self.kind in TIMED and self.duration_ms == 0:
            raise ConfigError(f"fault {self.kind}: duration_ms must be at least 1")
        if self.ids and (self.kind is not FaultKind.REST_LOST_TRADES or self.symbol is None):
            raise ConfigError(f"fault {self.kind}: ids need rest_lost_trades and a symbol")
        if self.kind is FaultKind.DELAYED and self.delay_ms == 0:
            raise ConfigError("fault delayed: delay_ms must be at least 1")

    @property
    def variant(self) -> str:
        """The mode, or the kind's first one."""
        return self.mode or next(iter(MODES.get(self.kind, ("",))))


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults in order of time. As a file: ``{"faults": [{"at_ms": …, "kind": …}, …]}``.

    Args:
        faults: Of the sockets and REST.
        vision: Of the archive, by file.
        rest: Of single REST replies, by endpoint and number.
    """

    faults: tuple[Fault, ...] = ()
    vision: tuple[VisionFault, ...] = ()
    rest: tuple[RestFault, ...] = ()

    def __post_init__(self) -> None:
        """Order by time; equal times keep the order given."""
        ordered = tuple(sorted(self.faults, key=lambda fault: fault.at_ms))
        msgspec.structs.force_setattr(self, "faults", ordered)

    @staticmethod
    def random(
        seed: int,
        duration_ms: int,
        kinds: Sequence[FaultKind] | None = None,
        *,
        mean_interval_ms: int = 10_000,
        quiet_tail_ms: int = 0,
    ) -> FaultPlan:
        """A random plan, the same for the same arguments.

        Args:
            seed: Any integer.
            duration_ms: Market time the plan covers.
            kinds: Kinds to draw from; None: everything a client can recover from completely
                (all but ``rest_lost_trades`` and ``server_shutdown``).
            mean_interval_ms: Mean market time between faults (exponential).
            quiet_tail_ms: Market time at the end in which nothing begins and nothing lasts.

        Returns:
            The plan.
        """
        source = random.Random(seed)
        chosen = tuple(kinds) if kinds is not None else RECOVERABLE
        end_ms = duration_ms - quiet_tail_ms
        faults: list[Fault] = []
        at_ms = source.expovariate(1 / mean_interval_ms)
        while at_ms < end_ms:
            fault = _random_fault(source, int(at_ms), source.choice(chosen))
            limit_ms = max(1, end_ms - fault.at_ms)
            if fault.duration_ms > limit_ms:
                fault = msgspec.structs.replace(fault, duration_ms=limit_ms)
            faults.append(fault)
            at_ms += source.expovariate(1 / mean_interval_ms)
        return FaultPlan(faults=tuple(faults))


RECOVERABLE = tuple(
    kind
    for kind in FaultKind
    if kind not in (FaultKind.REST_LOST_TRADES, FaultKind.SERVER_SHUTDOWN)
)


_WITHOUT_SOCKET = (
    FaultKind.LIFETIME,
    FaultKind.REFUSED,
    FaultKind.REST_FAILURE,
    FaultKind.REST_LOST_TRADES,
    FaultKind.SERVER_SHUTDOWN,
)


def _random_fault(source: random.Random, at_ms: int, kind: FaultKind) -> Fault:
    modes = MODES.get(kind)
    mode = source.choice(modes) if modes else None
    route = source.choice((None, "trades", "trades", "depth"))
    if kind is FaultKind.REST_LOST_TRADES or mode in TRADE_ONLY_MODES:
        route = "trades"
    connection_index = source.choice((None, None, 0))
    if kind in _WITHOUT_SOCKET:
        connection_index = None
    if kind in (FaultKind.LIFETIME, FaultKind.REST_FAILURE):
        route = None
    return Fault(
        at_ms=at_ms,
        kind=kind,
        mode=mode,
        route=route,
        connection_index=connection_index,
        duration_ms=source.randint(200, 5_000) if kind in TIMED else 0,
        count=source.randint(2, 20) if kind in COUNTED else 0,
        delay_ms=source.randint(100, 2_000) if kind is FaultKind.DELAYED else 0,
    )


def load_plan(text: str, default_duration_ms: int) -> FaultPlan:
    """A plan from ``random:SEED`` or from a JSON or TOML file.

    Args:
        text: What the user wrote.
        default_duration_ms: Market time a random plan covers.

    Raises:
        ConfigError: One line that names what is wrong.
    """
    if text.startswith("random:"):
        seed = text.removeprefix("random:")
        if not seed.lstrip("-").isdigit():
            raise ConfigError(f"faults: random:SEED needs an integer, got {seed!r}")
        return FaultPlan.random(int(seed), default_duration_ms)
    path = Path(text)
    try:
        content = path.read_bytes()
        if path.suffix == ".toml":
            return msgspec.convert(tomllib.loads(content.decode()), FaultPlan)
        return msgspec.json.decode(content, type=FaultPlan)
    except OSError as error:
        raise ConfigError(f"faults: {path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"faults: {path}: {error}") from error


class AppliedFault(msgspec.Struct, kw_only=True):
    """What a fault really did. ``ids`` are the aggTrades it touched, as (symbol, id)."""

    fault: Fault
    at_ms: int  # market ms since the start
    detail: str
    ids: list[tuple[str, int]] = msgspec.field(default_factory=list)
    frame_count: int = 0
