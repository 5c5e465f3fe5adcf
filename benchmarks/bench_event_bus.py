"""Events per second from one publisher to three subscribers: our bus beside three ``asyncio.Queue``s.

Both sides run in the same call, in turn; medians and their ratio are printed with versions and machine.
``python -m benchmarks.bench_event_bus [--json FILE] [--smoke]``
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.report import arguments, machine, publish, versions
from domain.events import HealthEvent, Topic
from event_bus import DropOldest, EventBus

SUBSCRIBERS = 3
BURST = 100  # events between two turns of the loop: a boundary's windows, features and signals
EVENT = HealthEvent(at_ns=0, values={})


async def through_bus(events: int, *, in_batches: bool = False) -> int:
    bus = EventBus()
    subscriptions = [
        bus.subscribe([Topic.HEALTH], policy=DropOldest(10 * BURST), name=str(number))
        for number in range(SUBSCRIBERS)
    ]

    async def read(number: int) -> int:
        count = 0
        if in_batches:
            while batch := await subscriptions[number].next_batch():
                count += len(batch)
        else:
            async for _ in subscriptions[number]:
                count += 1
        return count

    async def publish() -> None:
        for number in range(events):
            bus.publish(Topic.HEALTH, EVENT)
            if number % BURST == 0:
                await asyncio.sleep(0)
        bus.close()

    return await _delivered(read, publish)


async def through_bus_in_batches(events: int) -> int:
    return await through_bus(events, in_batches=True)


async def through_queues(events: int) -> int:
    queues: list[asyncio.Queue[HealthEvent | None]] = [
        asyncio.Queue(10 * BURST) for _ in range(SUBSCRIBERS)
    ]

    async def read(number: int) -> int:
        count = 0
        queue = queues[number]
        while await queue.get() is not None:
            count += 1
        return count

    async def publish() -> None:
        for number in range(events):
            for queue in queues:
                queue.put_nowait(EVENT)
            if number % BURST == 0:
                await asyncio.sleep(0)
        for queue in queues:
            await queue.put(None)

    return await _delivered(read, publish)


async def _delivered(
    read: Callable[[int], Awaitable[int]], publish: Callable[[], Awaitable[None]]
) -> int:
    readers = [asyncio.ensure_future(read(number)) for number in range(SUBSCRIBERS)]
    await publish()
    return sum(await asyncio.gather(*readers))


def measure(run: Callable[[int], Awaitable[int]], events: int) -> float:
    """Events published per second, each delivered to all subscribers."""

    async def timed() -> float:
        begun = time.perf_counter()
        delivered = await run(events)
        elapsed = time.perf_counter() - begun
        if delivered != events * SUBSCRIBERS:
            raise RuntimeError(f"{delivered} of {events * SUBSCRIBERS} events arrived")
        return events / elapsed

    if sys.platform == "win32":
        return asyncio.run(timed())
    import uvloop  # noqa: PLC0415

    return uvloop.run(timed())


def main() -> None:
    given = arguments(__doc__).parse_args()
    events, rounds = (2_000, 1) if given.smoke else (200_000, 7)
    sides = {
        "event_bus": through_bus,
        "event_bus in batches": through_bus_in_batches,
        "asyncio.Queue": through_queues,
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            rates[name].append(measure(run, events))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "benchmark": "event_bus",
        "events": events,
        "rounds": rounds,
        "subscribers": SUBSCRIBERS,
        "events_per_s": {name: round(value) for name, value in medians.items()},
        "deliveries_per_s": {name: round(v * SUBSCRIBERS) for name, v in medians.items()},
        "ratio_to_asyncio_queue": {
            name: round(value / medians["asyncio.Queue"], 2) for name, value in medians.items()
        },
        "versions": versions(("uvloop", "msgspec")),
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
