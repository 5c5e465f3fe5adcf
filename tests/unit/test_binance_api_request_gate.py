"""The gate's order and its behaviour under cancellation."""

from __future__ import annotations

import asyncio

import pytest

from binance_api.request_gate import RequestGate


async def spin():
    for _ in range(20):
        await asyncio.sleep(0)


class Caller:
    """A task that takes a slot and holds it until told to go."""

    def __init__(self, group, gate, *, urgent):
        self.leave = asyncio.Event()
        self.is_inside = False
        self.task = group.create_task(self._run(gate, urgent))

    async def _run(self, gate, urgent):
        async with gate.slot(urgent=urgent):
            self.is_inside = True
            await self.leave.wait()
        self.is_inside = False


def test_bulk_leaves_slots_to_urgent_callers():
    async def scenario():
        gate = RequestGate(3, 1)
        async with asyncio.TaskGroup() as group:
            bulk = [Caller(group, gate, urgent=False) for _ in range(4)]
            await spin()
            assert [c.is_inside for c in bulk] == [True, True, False, False]
            urgent = Caller(group, gate, urgent=True)
            await spin()
            assert urgent.is_inside
            assert gate.waiting_count == 2
            for caller in [*bulk, urgent]:
                caller.leave.set()
        assert gate.waiting_count == 0

    asyncio.run(scenario())


def test_urgent_callers_go_before_bulk_that_waited_longer_and_bulk_in_order():
    async def scenario():
        gate = RequestGate(1, 0)
        async with asyncio.TaskGroup() as group:
            first = Caller(group, gate, urgent=False)
            bulk = [Caller(group, gate, urgent=False) for _ in range(2)]
            await spin()
            urgent = Caller(group, gate, urgent=True)
            await spin()
            for leaving, entering in [(first, urgent), (urgent, bulk[0]), (bulk[0], bulk[1])]:
                leaving.leave.set()
                await spin()
                assert entering.is_inside
            bulk[1].leave.set()

    asyncio.run(scenario())


@pytest.mark.parametrize("release_first", [True, False])
def test_a_cancelled_caller_loses_no_slot(release_first):
    async def scenario():
        gate = RequestGate(1, 0)
        async with asyncio.TaskGroup() as group:
            first, waiting, last = (Caller(group, gate, urgent=False) for _ in range(3))
            await spin()
            if release_first:  # the slot is handed over, then its new owner is cancelled
                first.leave.set()
                await asyncio.sleep(0)
            waiting.task.cancel()
            first.leave.set()
            await spin()
            assert last.is_inside
            assert gate.waiting_count == 0
            last.leave.set()

    asyncio.run(scenario())


def test_cancelling_at_any_step_keeps_the_count():
    async def scenario(steps):
        gate = RequestGate(2, 1)
        async with asyncio.TaskGroup() as group:
            callers = [Caller(group, gate, urgent=i % 3 == 0) for i in range(6)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for caller in callers:
                caller.leave.set()
            callers[1].task.cancel()
            callers[3].task.cancel()
        async with asyncio.timeout(1), gate.slot(urgent=True), gate.slot(urgent=False):
            assert gate.waiting_count == 0

    for steps in range(8):
        asyncio.run(scenario(steps))


def test_at_least_one_slot_is_left_to_bulk():
    with pytest.raises(ValueError, match="reserved"):
        RequestGate(2, 2)
