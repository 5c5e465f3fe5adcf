import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from domain.market import Market
from simulator.faults import CORRUPTION_MODES, Fault, FaultKind, FaultPlan
from simulator.server import SimulatedExchange, SimulatorSettings
from tests.integration.simulator_recordings import (
    DEPTH,
    TRADES,
    Reader,
    reading,
    write_recording,
)

ALL_IDS = list(range(1000, 1100))
Check = Callable[[SimulatedExchange, aiohttp.ClientSession, Reader], Awaitable[None]]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "small.ndjson")


def play(recording: Path, check: Check, *faults: Fault, speed: float = 100) -> None:
    async def main() -> None:
        plan = FaultPlan(faults=faults)
        settings = SimulatorSettings(recording=recording, speed=speed, faults=plan)
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + TRADES) as reader,
        ):
            await check(exchange, session, reader)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def until_ended(exchange: SimulatedExchange) -> None:
    await until(lambda: exchange.statistics()["has_ended"])


@pytest.mark.parametrize(
    ("mode", "code"),
    [("1000", 1000), ("1001", 1001), ("1008", 1008), ("1011", 1011), ("1012", 1012)],
)
def test_a_disconnect_closes_with_its_code(recording: Path, mode: str, code: int) -> None:
    async def check(exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        assert await reader.until_closed() == code
        assert reader.ids[0] == 1000
        assert len(exchange.fault_log) == 1

    play(recording, check, Fault(at_ms=2_000, kind=FaultKind.DISCONNECT, mode=mode), speed=20)


@pytest.mark.parametrize("mode", ["abort", "reset"])
def test_a_disconnect_without_a_close_frame(recording: Path, mode: str) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        assert await reader.until_closed() == 1006

    play(recording, check, Fault(at_ms=2_000, kind=FaultKind.DISCONNECT, mode=mode), speed=20)


def test_a_disconnect_of_one_route_or_one_socket_spares_the_others(recording: Path) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        async with (
            reading(session, exchange.ws_url + TRADES) as second,
            reading(session, exchange.ws_url + DEPTH) as depth,
        ):
            await second.until_closed()
            await reader.until(lambda: len(reader.ids) == 100)
            assert not depth.socket.closed

    # The fault comes 0.9 s after the first subscription: the other two are there by then.
    only = Fault(at_ms=9_000, kind=FaultKind.DISCONNECT, route="trades", connection_index=1)
    play(recording, check, only, speed=10)


def test_missing_frames_are_not_sent_but_rest_has_them(recording: Path) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        await reader.until(lambda: len(reader.ids) == 95)
        missing = sorted(set(ALL_IDS) - set(reader.ids))
        assert missing == [number for _, number in exchange.fault_log[0].ids]
        assert len(missing) == 5
        url = f"{exchange.rest_url}/fapi/v1/aggTrades?symbol=BTCUSDT&fromId={missing[0]}&limit=5"
        async with session.get(url) as reply:
            assert [row["a"] for row in await reply.json()] == missing

    play(recording, check, Fault(at_ms=3_000, kind=FaultKind.MISSING, route="trades", count=5))


def test_duplicated_frames_come_twice_byte_for_byte(recording: Path) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await reader.until(lambda: len(reader.ids) == 104)
        assert sorted(set(reader.ids)) == ALL_IDS
        assert len(set(reader.texts)) == 100

    play(recording, check, Fault(at_ms=3_000, kind=FaultKind.DUPLICATED, route="trades", count=4))


def test_reordered_frames_all_come_in_another_order(recording: Path) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await reader.until(lambda: len(reader.ids) == 100)
        assert sorted(reader.ids) == ALL_IDS
        moved = [number for place, number in enumerate(reader.ids) if number != 1000 + place]
        assert 2 <= len(moved) <= 6
        assert max(moved) - min(moved) < 6

    play(recording, check, Fault(at_ms=3_000, kind=FaultKind.REORDERED, route="trades", count=6))


def test_an_unfinished_reordering_is_released_in_time(recording: Path) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await reader.until(lambda: len(reader.ids) == 100)
        assert sorted(reader.ids) == ALL_IDS

    play(recording, check, Fault(at_ms=9_500, kind=FaultKind.REORDERED, route="trades", count=50))


@pytest.mark.parametrize("mode", [mode for mode in CORRUPTION_MODES if mode != "not_utf8"])
def test_corrupted_frames_cannot_pass_for_sound_ones(recording: Path, mode: str) -> None:
    sound = {row.split(" ", 1)[1] for row in recording.read_text().splitlines()}

    async def check(exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        sent = 103 if mode == "changed_payload" else 100
        await reader.until(lambda: len(reader.texts) == sent)
        bad = [text for text in reader.texts if text not in sound]
        assert len(bad) == 3
        touched = {number for _, number in exchange.fault_log[0].ids}
        for text in bad:
            try:
                data = json.loads(text)["data"]
            except ValueError:
                assert mode in ("truncated", "bit_flip", "html")
                continue
            assert data["a"] in touched
            assert data["s"] != "BTCUSDT" or float(data["p"]) <= 0 or mode == "changed_payload"

    fault = Fault(at_ms=3_000, kind=FaultKind.CORRUPTED, mode=mode, route="trades", count=3)
    play(recording, check, fault)


def test_invalid_utf8_fails_the_connection_as_the_standard_demands(recording: Path) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await reader.until_closed()
        assert reader.failure is aiohttp.WSMsgType.ERROR

    fault = Fault(at_ms=3_000, kind=FaultKind.CORRUPTED, mode="not_utf8", route="trades", count=1)
    play(recording, check, fault)


@pytest.mark.parametrize(("mode", "expected"), [("drop", 20), ("delay", 100)])
def test_a_stall_is_silent_while_pongs_go_on(recording: Path, mode: str, expected: int) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        pinger = await session.ws_connect(exchange.ws_url + TRADES, autoping=False)
        await until(lambda: exchange.fault_log)
        await pinger.ping(b"x")
        while (message := await pinger.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
            pass  # from before the stall
        assert message.type is aiohttp.WSMsgType.PONG
        assert exchange.clock.elapsed_ms() < 8_900
        await until_ended(exchange)
        await reader.until(lambda: len(reader.ids) == expected)
        assert reader.ids == sorted(reader.ids)
        await pinger.close()

    fault = Fault(at_ms=950, kind=FaultKind.STALL, mode=mode, route="trades", duration_ms=8_000)
    play(recording, check, fault, speed=8)


def test_delayed_frames_keep_their_order_and_all_come(recording: Path) -> None:
    async def check(_exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await reader.until(lambda: len(reader.ids) == 100)
        assert reader.ids == ALL_IDS

    fault = Fault(at_ms=3_000, kind=FaultKind.DELAYED, duration_ms=3_000, delay_ms=900)
    play(recording, check, fault)


@pytest.mark.parametrize("mode", ["503", "reset"])
def test_new_connections_are_refused_for_a_while(recording: Path, mode: str) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        await until(lambda: exchange.fault_log)
        with pytest.raises(aiohttp.ClientError):
            await session.ws_connect(exchange.ws_url + TRADES)
        await reader.until(lambda: len(reader.ids) == 100)  # until after the refusals
        async with reading(session, exchange.ws_url + TRADES) as late:
            assert not late.socket.closed

    fault = Fault(at_ms=1_000, kind=FaultKind.REFUSED, mode=mode, duration_ms=8_000)
    play(recording, check, fault, speed=10)


def test_the_24_hour_cut_takes_every_socket(recording: Path) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        async with reading(session, exchange.ws_url + DEPTH) as depth:
            assert await reader.until_closed() == 1000
            assert await depth.until_closed() == 1000

    play(recording, check, Fault(at_ms=8_000, kind=FaultKind.LIFETIME), speed=10)


def test_the_same_plan_and_recording_send_the_same_bytes(recording: Path) -> None:
    plan = FaultPlan.random(
        7,
        9_000,
        (FaultKind.MISSING, FaultKind.DUPLICATED, FaultKind.REORDERED, FaultKind.CORRUPTED),
        mean_interval_ms=700,
    )
    kept = tuple(fault for fault in plan.faults if fault.mode != "not_utf8")
    runs: list[list[str]] = []

    async def check(exchange: SimulatedExchange, _session: object, reader: Reader) -> None:
        await until_ended(exchange)
        await reader.socket.send_json({"method": "GET_PROPERTY", "id": 1})
        await reader.until(lambda: '"id":1' in reader.texts[-1])
        runs.append(reader.texts)

    for _ in range(2):
        play(recording, check, *kept, speed=500)
    assert len(kept) >= 5
    assert runs[0] == runs[1]


def test_spot_announces_its_shutdown_before_the_cut() -> None:
    async def main() -> None:
        shutdown = Fault(at_ms=300, kind=FaultKind.SERVER_SHUTDOWN, duration_ms=400)
        settings = SimulatorSettings(
            market=Market.SPOT,
            start_ms=1_780_000_000_000,
            speed=10,
            faults=FaultPlan(faults=(shutdown,)),
        )
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + "/ws/btcusdt@aggTrade") as reader,
        ):
            assert await reader.until_closed() == 1000
            events = [message for message in reader.messages if message["e"] == "serverShutdown"]
            assert events == [{"e": "serverShutdown", "E": 1_780_000_000_300}]
            assert [entry.at_ms for entry in exchange.fault_log] == [300, 700]

    asyncio.run(main())


def test_a_frame_fault_can_touch_one_of_two_sockets(recording: Path) -> None:
    async def check(
        exchange: SimulatedExchange, session: aiohttp.ClientSession, reader: Reader
    ) -> None:
        async with reading(session, exchange.ws_url + TRADES) as second:
            await reader.until(lambda: reader.ids[-1:] == [1099])
            await second.until(lambda: second.ids[-1:] == [1099])
            assert reader.ids == ALL_IDS
            missing = set(range(second.ids[0], 1100)) - set(second.ids)
            assert missing == {number for _, number in exchange.fault_log[0].ids}
            assert len(missing) == 4

    fault = Fault(at_ms=9_000, kind=FaultKind.MISSING, route="trades", connection_index=1, count=4)
    play(recording, check, fault, speed=10)
