from __future__ import annotations

import asyncio

from market_orchestrator.connection.control import ControlKind, control_kind
from market_orchestrator.connection.frame_buffer import FrameBuffer

HOUR_S = 3600.0


def collected(work, *, interval_s: float = HOUR_S, max_batch: int = 4) -> list[list[bytes]]:
    """The batches that ``work`` makes a buffer deliver."""

    async def run() -> list[list[bytes]]:
        batches: list[list[bytes]] = []

        def deliver(payloads: list[bytes], stamps: list[int]) -> None:
            assert len(payloads) == len(stamps)
            assert stamps == sorted(stamps)
            batches.append(payloads)

        buffer = FrameBuffer(deliver, interval_s=interval_s, max_batch=max_batch)
        result = work(buffer)
        if asyncio.iscoroutine(result):
            await result
        return batches

    return asyncio.run(run())


def test_a_full_buffer_is_handed_on_at_once():
    def work(buffer):
        for number in range(9):
            buffer.add(b"%d" % number)

    assert collected(work) == [[b"0", b"1", b"2", b"3"], [b"4", b"5", b"6", b"7"]]


def test_a_large_read_is_split():
    def work(buffer):
        buffer.add(b"0")
        buffer.extend([b"%d" % number for number in range(1, 10)])

    assert [len(batch) for batch in collected(work)] == [4, 4, 2]


def test_the_timer_hands_on_what_is_there():
    async def work(buffer):
        buffer.add(b"0")
        buffer.extend([b"1", b"2"])
        await asyncio.sleep(0.02)
        buffer.add(b"3")
        await asyncio.sleep(0.02)

    assert collected(work, interval_s=0.001) == [[b"0", b"1", b"2"], [b"3"]]


def test_closing_hands_on_the_rest_and_takes_nothing_more():
    async def work(buffer):
        buffer.add(b"0")
        buffer.close()
        buffer.add(b"1")
        buffer.extend([b"2"])
        buffer.flush()
        await asyncio.sleep(0.005)

    assert collected(work, interval_s=0.001) == [[b"0"]]


def test_a_lasting_rate_is_gathered_until_it_ends() -> None:
    batches: list[list[bytes]] = []

    async def work() -> None:
        buffer = FrameBuffer(
            lambda payloads, _: batches.append(payloads),
            interval_s=0.0,
            busy_interval_s=HOUR_S,
            max_batch=100,
        )

        async def read(*payloads: bytes) -> None:
            buffer.extend(list(payloads))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        for _ in range(8):
            await read(b"1", b"2", b"3", b"4")
        assert len(batches) == 8  # one read, one batch: not known to last so far
        await read(b"5", b"6", b"7", b"8")
        assert len(batches) == 8  # waits for more
        buffer.flush()
        await read(b"9")

    asyncio.run(work())
    assert batches[8:] == [[b"5", b"6", b"7", b"8"], [b"9"]]  # few in an hour are no rate


def test_what_is_awaited_is_not_gathered_and_gathering_goes_on_after_it() -> None:
    batches: list[list[bytes]] = []
    is_awaited = False

    async def work() -> None:
        nonlocal is_awaited
        buffer = FrameBuffer(
            lambda payloads, _: batches.append(payloads),
            interval_s=0.0,
            busy_interval_s=HOUR_S,
            max_batch=100,
            is_awaited=lambda: is_awaited,
        )

        async def read(*payloads: bytes) -> None:
            buffer.extend(list(payloads))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        for _ in range(8):
            await read(b"1", b"2", b"3", b"4")
        is_awaited = True
        buffer.add(b"5")
        is_awaited = False  # another socket brought it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batches[8:] == [[b"5"]]
        await read(b"6", b"7", b"8", b"9")
        assert len(batches) == 9
        buffer.close()

    asyncio.run(work())
    assert batches[9:] == [[b"6", b"7", b"8", b"9"]]


def test_control_messages_are_told_from_data():
    assert control_kind(b'{"result":null,"id":1}') is ControlKind.ACKNOWLEDGED
    assert control_kind(b'{"error":{"code":2,"msg":"Invalid"},"id":1}') is ControlKind.REFUSED
    assert control_kind(b'{"e":"serverShutdown","E":1770123456789}') is ControlKind.SHUTDOWN
    assert control_kind(b'{"stream":"x@aggTrade","data":{"id":1,"result":2}}') is None
    assert control_kind(b"\xff garbage") is None
    assert control_kind(b'{"id":1,"result":"' + b"x" * 200) is None
