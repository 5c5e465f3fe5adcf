"""How a connection ended, as a value and as the exception that carries it out of a task group."""

from __future__ import annotations

import enum

import msgspec

from market_orchestrator.connection.clock import leaves


class LossKind(enum.StrEnum):
    """Why a connection ended; each has its counter."""

    CLOSED_BY_PEER = "closed_by_peer"
    DROPPED = "dropped"  # no close frame
    NO_PONG = "no_pong"
    STALLED = "stalled"
    SEND_FAILED = "send_failed"
    RETIRED = "retired"  # replaced by us
    STOPPED = "stopped"  # the run ends


PLANNED = (LossKind.RETIRED, LossKind.STOPPED)


class Loss(msgspec.Struct, frozen=True):
    """How a connection ended."""

    kind: LossKind
    reason: str
    close_code: int | None = None


class LostError(Exception):
    """Carries a ``Loss`` out of the task group of a feed."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.reason)
        self.loss = loss


def first_loss(group: BaseExceptionGroup[LostError]) -> Loss:
    """The most telling loss: how the connection ended rather than what failed because of it."""
    losses = [leaf.loss for leaf in leaves(group) if isinstance(leaf, LostError)]
    return min(losses, key=lambda loss: loss.kind is LossKind.SEND_FAILED)
