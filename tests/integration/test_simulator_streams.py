import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest

from domain.errors import ConfigError, SourceError
from domain.market import Market
from simulator.cli import serve
from simulator.frames import MarketSource
from simulator.server import SimulatedExchange, SimulatorSettings
from tests.integration.simulator_recordings import DEPTH, TRADES, reading, write_recording

RECORDING = "small.ndjson"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / RECORDING)


def test_routed_sockets_deliver_every_recorded_frame_as_recorded(recording: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(recording=recording, speed=10)
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + TRADES) as trades,
            reading(session, exchange.ws_url + DEPTH) as depth,
        ):
            await trades.until(lambda: len(trades.texts) == 100)
            await depth.until(lambda: bool(depth.texts) and depth.messages[-1]["data"]["u"] == 999)
            recorded = [row.split(" ", 1)[1] for row in recording.read_text().splitlines()]
            assert trades.texts == [row for row in recorded if "aggTrade" in row]
            assert set(depth.texts) <= set(recorded)

    asyncio.run(scenario())


def test_sockets_stay_open_and_answer_pings_after_the_last_frame(recording: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(recording=recording, speed=1000)
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            socket = await session.ws_connect(exchange.ws_url + TRADES, autoping=False)
            for _ in range(100):
                await socket.receive(timeout=5)
            await socket.ping(b"still there")
            answer = await socket.receive(timeout=5)
            assert (answer.type, bytes(answer.data)) == (aiohttp.WSMsgType.PONG, b"still there")
            async with session.get(exchange.rest_url + "/fapi/v1/time") as reply:
                first = (await reply.json())["serverTime"]
            assert exchange.source.end_ns is not None
            assert first >= exchange.source.end_ns // 1_000_000 - 1000
            await socket.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "delivers"),
    [
        ("/ws/btcusdt@aggTrade", False),
        ("/stream?streams=btcusdt@aggTrade", False),
        ("/public/ws/btcusdt@aggTrade", False),
        ("/market/stream?streams=btcusdt@depth20@100ms", False),
        ("/market/ws/BTCUSDT@aggTrade", False),
        ("/public/ws/btcusdt@depth20@250ms", False),
        ("/market/ws/btcusdt@aggTrade", True),
        ("/public/ws/btcusdt@depth20@100ms", True),
    ],
)
def test_only_the_right_route_and_spelling_deliver(
    recording: Path, path: str, *, delivers: bool
) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(recording=recording, speed=2000)
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + path) as reader,
        ):
            await reader.socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 7})
            await reader.until(lambda: any("result" in text for text in reader.texts))
            while not exchange.statistics()["has_ended"]:
                await asyncio.sleep(0.005)
            await reader.socket.send_json({"method": "UNSUBSCRIBE", "params": ["x"], "id": 8})
            await reader.until(lambda: any('"id":8' in text for text in reader.texts))
            data = [message for message in reader.messages if "e" in message]
            assert bool(data) is delivers

    asyncio.run(scenario())


def test_control_messages_are_acknowledged_even_for_unknown_streams(recording: Path) -> None:
    async def scenario() -> list[object]:
        settings = SimulatorSettings(recording=recording)
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            socket = await session.ws_connect(exchange.ws_url + "/market/ws")
            replies = []
            for request in (
                {"method": "SUBSCRIBE", "params": ["nosuch@thing"], "id": 1},
                {"method": "LIST_SUBSCRIPTIONS", "id": 2},
                {"method": "GET_PROPERTY", "params": ["combined"], "id": 3},
                {"method": "NONSENSE", "id": 4},
            ):
                await socket.send_json(request)
                replies.append(await socket.receive_json(timeout=5))
            await socket.send_str("{broken")
            replies.append(await socket.receive_json(timeout=5))
            await socket.close()
            return replies

    replies = asyncio.run(scenario())
    assert replies[:3] == [
        {"result": None, "id": 1},
        {"result": ["nosuch@thing"], "id": 2},
        {"result": False, "id": 3},
    ]
    assert [reply["code"] for reply in replies[3:]] == [2, 3]  # type: ignore[index]


def test_spot_serves_both_kinds_at_the_root(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(
            market=Market.SPOT, seed=3, speed=20, start_ms=1_780_000_000_000
        )
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            path = "/stream?streams=btcusdt@aggTrade/btcusdt@depth20@100ms/btcusdt@depth5"
            async with reading(session, exchange.ws_url + path) as reader:
                seen: set[str] = set()

                def all_streams() -> bool:
                    seen.update(message["stream"] for message in reader.messages)
                    return len(seen) == 3

                await reader.until(all_streams)
                by_stream = {message["stream"]: message["data"] for message in reader.messages}
                assert set(by_stream["btcusdt@depth20@100ms"]) == {"lastUpdateId", "bids", "asks"}
                assert len(by_stream["btcusdt@depth5"]["bids"]) == 5
                assert by_stream["btcusdt@aggTrade"]["M"] is True

    asyncio.run(scenario())


def test_derived_streams_agree_with_their_source(recording: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(recording=recording, speed=100)
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            path = "/public/stream?streams=btcusdt@bookTicker/btcusdt@depth5@100ms"
            async with (
                reading(session, exchange.ws_url + path) as book,
                reading(session, exchange.ws_url + "/market/ws/btcusdt@kline_1m") as klines,
            ):
                await book.until(lambda: len(book.texts) >= 4)
                await klines.until(lambda: bool(klines.texts))
                by_stream = {message["stream"]: message["data"] for message in book.messages}
                assert by_stream["btcusdt@bookTicker"]["b"] == "64000.10"
                assert len(by_stream["btcusdt@depth5@100ms"]["a"]) == 5
                candle = klines.messages[0]["k"]
                assert candle["x"] is False
                assert float(candle["l"]) <= float(candle["c"]) <= float(candle["h"])

    asyncio.run(scenario())


def test_the_1025th_stream_closes_the_socket_with_1008(recording: Path) -> None:
    async def scenario() -> tuple[int | None, bool]:
        async with (
            SimulatedExchange(SimulatorSettings(recording=recording)) as exchange,
            aiohttp.ClientSession() as session,
        ):
            names = [f"s{number}usdt@aggTrade" for number in range(1024)]
            url = exchange.ws_url + "/market/stream?streams=" + "/".join(names)
            async with reading(session, url) as reader:
                await reader.socket.send_json({"method": "GET_PROPERTY", "id": 1})
                await reader.until(lambda: bool(reader.texts))
                was_open = not reader.socket.closed
                one_more = {"method": "SUBSCRIBE", "params": ["onemore@aggTrade"], "id": 2}
                await reader.socket.send_json(one_more)
                return await reader.until_closed(), was_open

    assert asyncio.run(scenario()) == (1008, True)


def test_more_than_ten_messages_in_a_second_end_the_connection(recording: Path) -> None:
    async def scenario() -> int | None:
        async with (
            SimulatedExchange(SimulatorSettings(recording=recording)) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + "/market/ws") as reader,
        ):
            for number in range(11):
                await reader.socket.send_json({"method": "GET_PROPERTY", "id": number})
            return await reader.until_closed()

    assert asyncio.run(scenario()) == 1008


def test_a_client_without_pongs_is_dropped_and_one_with_pongs_is_not(recording: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(
            recording=recording, speed=10, ping_interval_s=5, pong_timeout_s=18
        )
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            url = exchange.ws_url + "/market/ws"
            silent = await session.ws_connect(url, autoping=False)
            async with reading(session, url) as polite:
                kinds = [(await silent.receive(timeout=5)).type]
                while kinds[-1] is aiohttp.WSMsgType.PING:
                    kinds.append((await silent.receive(timeout=5)).type)
                assert len(kinds) >= 3
                assert exchange.statistics()["pong_timeouts"] == 1
                assert not polite.socket.closed
            await silent.close()

    asyncio.run(scenario())


def test_a_connection_is_cut_at_the_end_of_its_lifetime(recording: Path) -> None:
    async def scenario() -> int | None:
        settings = SimulatorSettings(recording=recording, speed=1000, lifetime_s=20)
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + TRADES) as reader,
        ):
            return await reader.until_closed()

    assert asyncio.run(scenario()) == 1001


def test_a_client_that_does_not_read_is_closed(tmp_path: Path) -> None:
    path = write_recording(tmp_path / RECORDING, trade_count=8000, every_ms=1)

    async def scenario() -> None:
        settings = SimulatorSettings(recording=path, speed=1000, client_buffer_bytes=200_000)
        async with SimulatedExchange(settings) as exchange:
            host, port = exchange.ws_url.removeprefix("ws://").split(":")
            client = socket.create_connection((host, int(port)), timeout=5)
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            head = (
                f"GET {DEPTH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            )
            client.sendall(f"{head}{key}\r\n".encode())
            async with asyncio.timeout(60):
                while not exchange.statistics()["slow_cuts"]:
                    await asyncio.sleep(0.005)
            assert exchange.statistics()["open_sockets"] == 0
            client.close()

    asyncio.run(scenario())


def test_an_unpaced_market_loses_nothing_to_a_reader(tmp_path: Path) -> None:
    path = write_recording(tmp_path / RECORDING, trade_count=3000, every_ms=10)

    async def scenario() -> None:
        settings = SimulatorSettings(recording=path, speed=0)
        async with (
            SimulatedExchange(settings) as exchange,
            aiohttp.ClientSession() as session,
            reading(session, exchange.ws_url + TRADES) as reader,
        ):
            await reader.until(lambda: len(reader.texts) == 3000)
            assert reader.ids == list(range(1000, 4000))

    asyncio.run(scenario())


def test_the_simulate_verb_prints_its_urls_first(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        task = asyncio.ensure_future(serve(SimulatorSettings(recording=recording)))
        text = ""
        while not text:
            await asyncio.sleep(0.01)
            text = capsys.readouterr().out
        urls = json.loads(text.splitlines()[0])
        assert set(urls) == {"ws", "rest", "vision"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(urls["rest"] + "/fapi/v1/ping") as reply,
        ):
            assert (reply.status, await reply.text()) == (200, "{}")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_missing_recording_is_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SimulatedExchange(SimulatorSettings(recording=tmp_path / "no.ndjson")):
            pass

    with pytest.raises(SourceError, match=r"no\.ndjson"):
        asyncio.run(scenario())


def test_a_taken_port_is_one_line(recording: Path) -> None:
    async def scenario() -> None:
        async with SimulatedExchange(SimulatorSettings(recording=recording)) as exchange:
            port = int(exchange.rest_url.rpartition(":")[2])
            async with SimulatedExchange(SimulatorSettings(recording=recording, port=port)):
                pass

    with pytest.raises(ConfigError, match="port: cannot listen"):
        asyncio.run(scenario())


def test_both_sources_are_market_sources(recording: Path) -> None:
    async def scenario() -> None:
        for settings in (SimulatorSettings(recording=recording), SimulatorSettings(start_ms=0)):
            async with SimulatedExchange(settings) as exchange:
                source: MarketSource = exchange.source
                assert "BTCUSDT" in source.symbols

    asyncio.run(scenario())


def test_the_clock_runs_on_when_every_client_has_left(recording: Path) -> None:
    async def scenario() -> None:
        settings = SimulatorSettings(recording=recording, speed=10)
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            async with reading(session, exchange.ws_url + TRADES) as first:
                await first.until(lambda: len(first.ids) >= 2)
            left_at = first.ids[-1]
            gone_ms = exchange.clock.elapsed_ms()
            while exchange.clock.elapsed_ms() < gone_ms + 700:
                await asyncio.sleep(0.005)
            async with reading(session, exchange.ws_url + TRADES) as second:
                await second.until(lambda: bool(second.ids))
                assert second.ids[0] > left_at + 5
                url = f"{exchange.rest_url}/fapi/v1/aggTrades?symbol=BTCUSDT&fromId={left_at + 1}"
                async with session.get(url) as reply:
                    between = [row["a"] for row in await reply.json()]
                assert between[: second.ids[0] - left_at] == list(
                    range(left_at + 1, second.ids[0] + 1)
                )

    asyncio.run(scenario())
