"""The event bus delivers in order, never waits, and counts whatever it does not deliver."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import msgspec
import pytest

from domain.events import Action, Alert, Signal, Topic
from event_bus import (
    Conflate,
    DropOldest,
    Envelope,
    EventBus,
    Fail,
    SubscriberOverflow,
    Subscription,
    to_json,
)


def alert(name: str, symbol: str | None = None) -> Alert:
    return Alert(name=name, severity="info", symbol=symbol, message="", at_ns=0)


def names(batch: list[Envelope]) -> list[str]:
    return [e.payload.name for e in batch if isinstance(e.payload, Alert)]


async def read_all(subscription: Subscription) -> list[str]:
    return names([envelope async for envelope in subscription])


def run_with_bus(work: Callable[[EventBus], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await work(EventBus())

    asyncio.run(limited())


def test_every_subscriber_of_a_topic_gets_its_events_in_order_and_no_others() -> None:
    async def work(bus: EventBus) -> None:
        first = bus.subscribe([Topic.ALERT], policy=DropOldest(10), name="first")
        second = bus.subscribe([Topic.ALERT, Topic.GAP], policy=Fail(10), name="second")
        other = bus.subscribe([Topic.SIGNAL], policy=DropOldest(10), name="other")
        for name in "abc":
            bus.publish(Topic.ALERT, alert(name))
        bus.close()
        assert await read_all(first) == await read_all(second) == ["a", "b", "c"]
        assert await read_all(other) == []

    run_with_bus(work)


def test_sequence_numbers_count_per_topic_also_without_subscribers() -> None:
    async def work(bus: EventBus) -> None:
        assert [bus.publish(Topic.ALERT, alert("a")) for _ in range(3)] == [1, 2, 3]
        assert bus.publish(Topic.HEALTH, alert("a")) == 1
        subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(1), name="late")
        bus.publish(Topic.ALERT, alert("b"))
        assert [e.sequence for e in await subscription.next_batch()] == [4]

    run_with_bus(work)


def test_a_waiting_reader_is_woken_by_an_event() -> None:
    async def work(bus: EventBus) -> None:
        subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(4), name="reader")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read_all(subscription))
            await asyncio.sleep(0)
            bus.publish(Topic.ALERT, alert("a"))
            await asyncio.sleep(0)
            bus.publish(Topic.ALERT, alert("b"))
            subscription.close()
        assert reading.result() == ["a", "b"]

    run_with_bus(work)


def test_drop_oldest_keeps_the_newest_and_counts_the_rest() -> None:
    async def work(bus: EventBus) -> None:
        subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(2), name="slow")
        for name in "abcde":
            bus.publish(Topic.ALERT, alert(name))
        assert bus.statistics()["subscriber.slow.dropped_count"] == 3
        assert bus.statistics()["dropped_count"] == 3
        bus.close()
        assert await read_all(subscription) == ["d", "e"]
        assert bus.statistics()["dropped_count"] == 3  # also after the subscriber has gone

    run_with_bus(work)


def test_conflate_keeps_the_newest_event_per_key_and_topic() -> None:
    async def work(bus: EventBus) -> None:
        policy = Conflate(lambda payload: getattr(payload, "symbol", None), capacity=3)
        subscription = bus.subscribe([Topic.ALERT, Topic.HEALTH], policy=policy, name="latest")
        for name, symbol in [("a1", "A"), ("b1", "B"), ("a2", "A")]:
            bus.publish(Topic.ALERT, alert(name, symbol))
        bus.publish(Topic.HEALTH, alert("h", "A"))
        assert subscription.conflated_count == 1
        bus.publish(Topic.ALERT, alert("c1", "C"))  # a fourth key pushes the oldest out
        assert subscription.dropped_count == 1
        assert names(await subscription.next_batch()) == ["a2", "h", "c1"]
        bus.publish(Topic.ALERT, alert("a3", "A"))
        bus.close()
        assert await read_all(subscription) == ["a3"]

    run_with_bus(work)


def test_fail_tells_the_slow_subscriber_and_counts_it_as_broken() -> None:
    async def work(bus: EventBus) -> None:
        subscription = bus.subscribe([Topic.ALERT], policy=Fail(2), name="alerts")
        healthy = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="healthy")
        for name in "abcd":
            bus.publish(Topic.ALERT, alert(name))
        assert names([await anext(subscription), await anext(subscription)]) == ["a", "b"]
        with pytest.raises(SubscriberOverflow, match="alerts"):
            await anext(subscription)
        assert bus.statistics()["broken_subscriber_count"] == 1
        assert subscription.statistics()["undelivered_count"] == 1
        assert names(await healthy.next_batch()) == ["a", "b", "c", "d"]

    run_with_bus(work)


def test_a_failing_key_breaks_its_own_subscription_only() -> None:
    def bad_key(payload: msgspec.Struct) -> str:
        raise KeyError(type(payload).__name__)

    async def work(bus: EventBus) -> None:
        bad = bus.subscribe([Topic.ALERT], policy=Conflate(bad_key), name="bad")
        good = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="good")
        assert bus.publish(Topic.ALERT, alert("a")) == 1
        assert bus.publish(Topic.ALERT, alert("b")) == 2
        assert names(await good.next_batch()) == ["a", "b"]
        with pytest.raises(SubscriberOverflow, match="KeyError"):
            await bad.next_batch()

    run_with_bus(work)


def test_a_reader_that_raises_harms_no_other() -> None:
    async def raising(subscription: Subscription) -> None:
        with subscription:
            async for _ in subscription:
                raise ZeroDivisionError

    async def work(bus: EventBus) -> None:
        bad = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="bad")
        good = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="good")
        bus.publish(Topic.ALERT, alert("a"))
        with pytest.raises(ZeroDivisionError):
            await raising(bad)
        bus.publish(Topic.ALERT, alert("b"))
        bus.close()
        assert await read_all(good) == ["a", "b"]

    run_with_bus(work)


def test_a_cancelled_reader_loses_nothing_that_was_queued() -> None:
    async def work(bus: EventBus) -> None:
        subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="reader")
        reading = asyncio.ensure_future(subscription.next_batch())
        await asyncio.sleep(0)
        bus.publish(Topic.ALERT, alert("a"))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert names(await subscription.next_batch()) == ["a"]

    run_with_bus(work)


def test_a_second_reader_of_one_subscription_is_refused() -> None:
    async def work(bus: EventBus) -> None:
        subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(9), name="reader")
        reading = asyncio.ensure_future(subscription.next_batch())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already has a reader"):
            await subscription.next_batch()
        bus.close()
        assert await reading == []

    run_with_bus(work)


def test_names_are_unique_while_open_and_free_afterwards() -> None:
    bus = EventBus()
    subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(1), name="one")
    with pytest.raises(ValueError, match="in use"):
        bus.subscribe([Topic.GAP], policy=DropOldest(1), name="one")
    subscription.close()
    subscription.close()
    bus.subscribe([Topic.GAP], policy=DropOldest(1), name="one")


@pytest.mark.parametrize("policy", [DropOldest(0), Fail(0), Conflate(str, 0)])
def test_a_queue_without_room_is_refused(policy: DropOldest | Conflate | Fail) -> None:
    with pytest.raises(ValueError, match="capacity"):
        EventBus().subscribe([Topic.ALERT], policy=policy, name="none")


def test_a_subscription_without_topics_is_refused() -> None:
    with pytest.raises(ValueError, match="no topic"):
        EventBus().subscribe([], policy=DropOldest(1), name="none")


def test_a_closed_bus_still_counts_but_delivers_nothing() -> None:
    bus = EventBus()
    bus.close()
    subscription = bus.subscribe([Topic.ALERT], policy=DropOldest(1), name="late")
    assert bus.publish(Topic.ALERT, alert("a")) == 1
    assert asyncio.run(subscription.next_batch()) == []


class Mutable(msgspec.Struct):
    schema_version: int = 1


class Unversioned(msgspec.Struct, frozen=True):
    name: str = ""


@pytest.mark.parametrize("payload", [Mutable(), Unversioned()])
def test_payloads_must_be_frozen_and_versioned(payload: msgspec.Struct) -> None:
    with pytest.raises(TypeError, match="payload"):
        EventBus().publish(Topic.ALERT, payload)


def test_json_has_decimals_as_strings_and_undefined_as_null() -> None:
    signal = Signal(
        signal_id="1",
        symbol="BTCUSDT",
        window_end_ms=5_000,
        decided_at_ms=5_001,
        price=float("nan"),
        action=Action.BUY,
        confidence=0.5,
        horizon_s=60,
        rationale="",
        evidence={"delta": 1.5, "ofi": None},
        invalidation=None,
        source="rules",
        cost_usd=Decimal("0.10"),
    )
    decoded = msgspec.json.decode(to_json(Envelope(Topic.SIGNAL, 7, signal)))
    assert decoded["topic"] == "signal"
    assert decoded["sequence"] == 7
    assert decoded["payload"]["cost_usd"] == "0.10"
    assert decoded["payload"]["price"] is None
    assert decoded["payload"]["action"] == "BUY"
    assert decoded["payload"]["schema_version"] == 1
