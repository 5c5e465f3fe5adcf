"""In-process publish/subscribe: one bounded queue and one overflow policy per subscriber.

Consumes immutable payloads (frozen structs with ``schema_version``), produces ``Envelope``s numbered
per topic from 1. Publishing never waits and never fails because of a subscriber; whatever a
subscriber did not get is counted. Belongs to one event loop: call it from that loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Self

import msgspec
import structlog

from domain.errors import OrderFlowError
from domain.events import Topic

log = structlog.get_logger()


class SubscriberOverflow(OrderFlowError):
    """A subscriber under policy ``Fail`` was too slow and has been cut off; what it missed is lost to it."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One published event. ``sequence`` counts from 1 per topic; a jump shows what was not delivered."""

    topic: Topic
    sequence: int
    payload: msgspec.Struct


class DropOldest(msgspec.Struct, frozen=True):
    """Keep the newest ``capacity`` events; each one pushed out is counted as dropped."""

    capacity: int = 1024


class Conflate(msgspec.Struct, frozen=True):
    """Keep the newest event per key, at most ``capacity`` keys (then the oldest key is dropped).

    Events of different topics never share a key. A key that cannot be computed breaks the
    subscription, not the publisher.
    """

    key: Callable[[msgspec.Struct], Hashable]
    capacity: int = 1024


class Fail(msgspec.Struct, frozen=True):
    """Never lose an event silently: at ``capacity`` the subscription breaks and its reader is told."""

    capacity: int = 1024


type Policy = DropOldest | Conflate | Fail


class Subscription:
    """One subscriber's queue: ``async for envelope in subscription``, by one reader at a time.

    Iteration ends after ``close`` (its own or the bus's) once the queue is drained.
    """

    __slots__ = (
        "_broken",
        "_capacity",
        "_closed",
        "_delivered_count",
        "_detach",
        "_fails",
        "_key",
        "_latest",
        "_queue",
        "_room",
        "_undelivered_count",
        "_waiter",
        "conflated_count",
        "dropped_count",
        "name",
    )

    def __init__(self, name: str, policy: Policy, detach: Callable[[Subscription], None]) -> None:
        if policy.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {policy.capacity}")
        self.name = name
        self._capacity = policy.capacity
        self._key = policy.key if isinstance(policy, Conflate) else None
        self._fails = isinstance(policy, Fail)
        self._room = 0 if self._key else policy.capacity  # of the queue; conflating has none
        self._queue: deque[Envelope] = deque()
        self._latest: dict[Hashable, Envelope] = {}  # in place of the queue when conflating
        self._detach = detach
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._broken: str | None = None
        self.dropped_count = self.conflated_count = 0
        self._delivered_count = self._undelivered_count = 0

    def offer_nowait(self, envelope: Envelope) -> None:
        """Take one event in, whatever the reader does; called by the bus."""
        if len(self._queue) < self._room:
            self._queue.append(envelope)
        elif self._key is not None:
            self._offer_conflated(envelope, self._key)
        elif self._fails:
            self._undelivered_count += 1
            self._break(f"more than {self._capacity} events waiting")
        else:
            self._queue.popleft()
            self._queue.append(envelope)
            self.dropped_count += 1
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)

    def _offer_conflated(
        self, envelope: Envelope, key_of: Callable[[msgspec.Struct], Hashable]
    ) -> None:
        try:
            key = (envelope.topic, key_of(envelope.payload))
            replaced = self._latest.pop(key, None)
        except Exception as error:  # noqa: BLE001 - a subscriber's function must not stop the publisher
            self._undelivered_count += 1
            self._break(f"conflation key failed: {error!r}")
            return
        if replaced is not None:
            self.conflated_count += 1
        elif len(self._latest) >= self._capacity:
            del self._latest[next(iter(self._latest))]
            self.dropped_count += 1
        self._latest[key] = envelope

    def _break(self, reason: str) -> None:
        self._broken = reason
        log.error("bus.subscriber_broken", subscriber=self.name, reason=reason)
        self.close()

    def close(self) -> None:
        """Take no further events; the reader still gets what is queued, then its iteration ends."""
        if self._closed:
            return
        self._closed = True
        self._detach(self)
        if self._waiter is not None:
            self._wake(self._waiter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        if self._queue:
            self._delivered_count += 1
            return self._queue.popleft()
        if not self._latest and not await self._filled():
            raise StopAsyncIteration
        self._delivered_count += 1
        if self._key is None:
            return self._queue.popleft()
        return self._latest.pop(next(iter(self._latest)))

    async def next_batch(self) -> list[Envelope]:
        """Everything queued, oldest first, waiting for at least one event.

        Returns:
            An empty list once the subscription is closed and drained.

        Raises:
            SubscriberOverflow: the subscription broke; raised after what was queued was handed out.
        """
        if not self._queue and not self._latest and not await self._filled():
            return []
        return self.drain_nowait()

    def drain_nowait(self) -> list[Envelope]:
        """Everything queued at this moment, oldest first; possibly nothing."""
        batch = [*self._queue, *self._latest.values()]
        self._queue.clear()
        self._latest.clear()
        self._delivered_count += len(batch)
        return batch

    async def _filled(self) -> bool:
        """Wait for an event; False when closed and drained. Waits without limit: silence is normal."""
        while not self._queue and not self._latest:
            if self._broken is not None:
                raise SubscriberOverflow(f"subscriber {self.name}: {self._broken}")
            if self._closed:
                return False
            if self._waiter is not None:
                raise RuntimeError(f"subscriber {self.name} already has a reader")
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        return True

    @property
    def is_broken(self) -> bool:
        """Whether an overflow under ``Fail`` or a failing key ended it."""
        return self._broken is not None

    def statistics(self) -> dict[str, int | str | None]:
        """Counts of events: waiting, delivered, dropped, conflated, undelivered (refused as it broke)."""
        return {
            "waiting_count": len(self._queue) + len(self._latest),
            "delivered_count": self._delivered_count,
            "dropped_count": self.dropped_count,
            "conflated_count": self.conflated_count,
            "undelivered_count": self._undelivered_count,
            "broken": self._broken,
        }


class EventBus:
    """Hands every published payload to the queues of the topic's subscribers."""

    def __init__(self) -> None:
        self._subscriptions: dict[Topic, tuple[Subscription, ...]] = dict.fromkeys(Topic, ())
        self._published: dict[Topic, int] = dict.fromkeys(Topic, 0)
        self._known: set[type] = set()
        self._open: dict[str, Subscription] = {}
        self._ended_drops = self._ended_conflations = self._broken_count = 0
        self._closed = False

    def publish(self, topic: Topic, payload: msgspec.Struct) -> int:
        """Queue ``payload`` for every subscriber of ``topic``; never waits.

        Args:
            topic: where it goes.
            payload: a frozen struct with ``schema_version``.

        Returns:
            Its sequence number, counted from 1 within the topic.

        Raises:
            TypeError: the payload could be changed after publishing or carries no version.
        """
        if type(payload) not in self._known:
            self._admit(type(payload))
        sequence = self._published[topic] + 1
        self._published[topic] = sequence
        subscriptions = self._subscriptions[topic]
        if subscriptions:
            envelope = Envelope(topic, sequence, payload)
            for subscription in subscriptions:
                subscription.offer_nowait(envelope)
        return sequence

    def _admit(self, payload_type: type) -> None:
        config = getattr(payload_type, "__struct_config__", None)
        if config is None or not config.frozen:
            raise TypeError(f"payload {payload_type.__name__} is not a frozen struct")
        if "schema_version" not in payload_type.__struct_fields__:  # type: ignore[attr-defined]
            raise TypeError(f"payload {payload_type.__name__} has no schema_version")
        self._known.add(payload_type)

    def subscribe(self, topics: Iterable[Topic], *, policy: Policy, name: str) -> Subscription:
        """Open a queue that gets every event of ``topics`` from now on.

        Args:
            topics: at least one topic.
            policy: the bound and what happens at it.
            name: unique among the open subscriptions; shown in ``statistics`` and logs.

        Raises:
            ValueError: no topic, a capacity below 1, or a name in use.
        """
        wanted = frozenset(topics)
        if not wanted:
            raise ValueError(f"subscriber {name} names no topic")
        if name in self._open:
            raise ValueError(f"subscriber name {name} is in use")
        subscription = Subscription(name, policy, self._detach)
        self._open[name] = subscription
        for topic in wanted:
            self._subscriptions[topic] = (*self._subscriptions[topic], subscription)
        if self._closed:
            subscription.close()
        return subscription

    def _detach(self, subscription: Subscription) -> None:
        for topic, held in self._subscriptions.items():
            if subscription in held:
                self._subscriptions[topic] = tuple(s for s in held if s is not subscription)
        del self._open[subscription.name]
        self._ended_drops += subscription.dropped_count
        self._ended_conflations += subscription.conflated_count
        self._broken_count += subscription.is_broken

    def close(self) -> None:
        """End every subscription: readers drain their queues and stop. Later events reach nobody."""
        self._closed = True
        for subscription in list(self._open.values()):
            subscription.close()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Published counts per topic, each open subscriber's counts, and totals that outlive them."""
        open_ones = self._open.values()
        values: dict[str, int | float | str | None] = {
            "dropped_count": self._ended_drops + sum(s.dropped_count for s in open_ones),
            "conflated_count": self._ended_conflations + sum(s.conflated_count for s in open_ones),
            "broken_subscriber_count": self._broken_count,
        }
        for topic, count in self._published.items():
            values[f"topic.{topic}.published_count"] = count
        for name, subscription in self._open.items():
            for key, value in subscription.statistics().items():
                values[f"subscriber.{name}.{key}"] = value
        return values


def to_json(envelope: Envelope) -> bytes:
    """One line of JSON: topic, sequence, payload. Decimals are strings; NaN and infinities are null."""
    return msgspec.json.encode(envelope)
