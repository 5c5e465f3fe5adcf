from __future__ import annotations

import asyncio
import importlib
import sys

import pytest

from market_orchestrator.connection.transport import (
    CONNECT_ERRORS,
    AddressError,
    HandshakeError,
    PicowsTransport,
    environment_proxy,
)
from tests.integration.connection_exchange import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    LocalExchange,
    quiet,
    wait_until,
)

LIMIT = 64 * 1024


RUNNERS = {"asyncio": asyncio.run}
if sys.platform != "win32":
    RUNNERS["uvloop"] = importlib.import_module("uvloop").run


@pytest.fixture(params=list(RUNNERS))
def run(request):
    """Runs a coroutine on each event loop the product uses."""
    return RUNNERS[request.param]


@pytest.fixture
def transport():
    return PicowsTransport(max_message_bytes=LIMIT)


class Recorder:
    """A frame handler that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def on_open(self) -> None:
        self.events.append("open")

    def on_frame(self, payload: bytes) -> None:
        self.events.append(payload)

    def on_frames(self, payloads: list[bytes]) -> None:
        self.events.extend(payloads)

    def on_pong(self) -> None:
        self.events.append("pong")


def url(exchange: LocalExchange) -> str:
    return f"{exchange.ws_base}/market/stream?streams=btcusdt@aggTrade"


async def received(transport, script, recorder=None):
    """What a handler saw of one scripted connection, and how it ended."""
    recorder = recorder or Recorder()
    async with LocalExchange(script) as exchange:
        connection = await transport.connect(url(exchange), recorder)
        async with asyncio.timeout(60):
            closed = await connection.receive()
        await connection.close(timeout_s=0.5)
        await wait_until(lambda: exchange.open_count == 0)
    return recorder.events, closed


def test_messages_arrive_in_order_after_open(run, transport):
    async def script(peer):
        for number in range(3000):
            peer.frame(TEXT, b"%d" % number)
        peer.close(1000)
        await peer.gone.wait()

    events, closed = run(received(transport, script))
    assert events == ["open", *(b"%d" % number for number in range(3000))]
    assert closed.code == 1000


def test_fragments_become_one_message_with_a_ping_in_between(run, transport):
    async def script(peer):
        peer.frame(TEXT, b'{"a":', fin=False)
        peer.frame(PING, b"mid")
        peer.frame(CONTINUATION, b'"b",', fin=False)
        peer.frame(CONTINUATION, b'"c":1}')
        peer.frame(TEXT, b"next")
        await wait_until(lambda: (PONG, b"mid") in peer.received)
        peer.close(1001, "going away")
        await peer.gone.wait()

    events, closed = run(received(transport, script))
    assert events == ["open", b'{"a":"b","c":1}', b"next"]
    assert (closed.code, closed.reason) == (1001, "going away")


def test_binary_messages_are_passed_on(run, transport):
    async def script(peer):
        peer.frame(BINARY, b"\x00\xff")
        peer.close(1000)
        await peer.gone.wait()

    events, _ = run(received(transport, script))
    assert events == ["open", b"\x00\xff"]


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 4000])
def test_the_close_code_of_the_server_is_reported(run, transport, code):
    async def script(peer):
        peer.close(code)
        await peer.gone.wait()

    _, closed = run(received(transport, script))
    assert closed.code == code


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_a_connection_without_close_frame_ends_with_1006(run, transport, how):
    recorder = Recorder()

    async def script(peer):
        peer.frame(TEXT, b"last")
        await wait_until(lambda: b"last" in recorder.events)  # a reset may overtake it
        getattr(peer, how)()

    events, closed = run(received(transport, script, recorder))
    assert events == ["open", b"last"]
    assert closed.code == 1006


def test_a_message_beyond_the_limit_ends_the_connection(run, transport):
    async def script(peer):
        peer.frame(TEXT, b"x" * (LIMIT + 1))
        await peer.gone.wait()

    events, closed = run(received(transport, script))
    assert events == ["open"]
    assert closed.code == 1009


def test_fragments_beyond_the_limit_end_the_connection(run, transport):
    async def script(peer):
        peer.frame(TEXT, b"x" * (LIMIT // 2), fin=False)
        peer.frame(CONTINUATION, b"x" * (LIMIT // 2), fin=False)
        peer.frame(CONTINUATION, b"x")
        await peer.gone.wait()

    events, closed = run(received(transport, script))
    assert events == ["open"]
    assert closed.code == 1009


def test_pings_of_ours_are_answered_and_text_arrives(run, transport):
    async def check():
        recorder = Recorder()
        async with LocalExchange(quiet) as exchange:
            connection = await transport.connect(url(exchange), recorder)
            async with asyncio.TaskGroup() as tasks:
                receiving = tasks.create_task(connection.receive())
                await connection.send_text('{"id":1}')
                await connection.ping()
                await wait_until(lambda: "pong" in recorder.events)
                receiving.cancel()
            await connection.close(timeout_s=0.5)
            opcodes = [opcode for opcode, _ in exchange.peers[0].received]
            assert (TEXT, b'{"id":1}') in exchange.peers[0].received
            assert opcodes[:2] == [TEXT, PING]

    run(check())


@pytest.mark.parametrize("status", [403, 451, 503])
def test_a_refused_handshake_names_its_status(run, transport, status):
    async def check():
        async with LocalExchange(quiet) as exchange:
            exchange.refuse = lambda _index: status
            with pytest.raises(HandshakeError) as caught:
                await transport.connect(url(exchange), Recorder())
            assert caught.value.status == status

    run(check())


def test_a_closed_port_is_an_os_error(run, transport):
    async def check():
        async with LocalExchange(quiet) as exchange:
            address = url(exchange)
        with pytest.raises(OSError):
            await transport.connect(address, Recorder())

    run(check())


def test_a_handshake_dropped_by_the_server_is_an_error(run, transport):
    async def check():
        async def drop(_reader, writer):
            writer.close()

        server = await asyncio.start_server(drop, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((HandshakeError, OSError)):
            await transport.connect(f"ws://127.0.0.1:{port}/x", Recorder())
        server.close()

    run(check())


def test_an_address_that_is_none_is_told_apart(run, transport):
    async def check():
        with pytest.raises(AddressError):
            await transport.connect("gopher://127.0.0.1/", Recorder())

    run(check())


def test_a_cancelled_handshake_leaves_no_connection(run, transport):
    async def check():
        async with LocalExchange(quiet) as exchange:
            exchange.hang = True
            connecting = asyncio.ensure_future(transport.connect(url(exchange), Recorder()))
            await wait_until(lambda: exchange.attempts == 1)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await wait_until(lambda: exchange.open_count == 0)

    run(check())


def test_close_without_patience_drops_the_connection(run, transport):
    async def check():
        async with LocalExchange(quiet) as exchange:
            connection = await transport.connect(url(exchange), Recorder())
            await connection.close(timeout_s=0.0)
            await wait_until(lambda: exchange.open_count == 0)

    run(check())


def test_a_cancelled_close_leaves_no_connection(run, transport):
    async def deaf(peer):
        peer.answers_close = False
        await asyncio.Event().wait()

    async def check():
        async with LocalExchange(deaf) as exchange:
            connection = await transport.connect(url(exchange), Recorder())
            await wait_until(lambda: exchange.peers)
            closing = asyncio.ensure_future(connection.close(timeout_s=30))
            await wait_until(lambda: exchange.peers[0].received)  # the close frame
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await wait_until(lambda: exchange.open_count == 0)

    run(check())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 Auth\r\n\r\n", b"garbage\r\n\r\n", b""])
def test_a_proxy_that_refuses_is_a_failed_attempt(run, transport, monkeypatch, answer):
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def check():
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(CONNECT_ERRORS):
            await transport.connect("wss://fstream.example/market", Recorder())
        server.close()

    run(check())


def test_the_proxy_comes_from_the_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert environment_proxy("wss://fstream.binance.com/market") == "http://proxy.example:3128"
    assert environment_proxy("wss://inside.example/market") is None
    assert environment_proxy("wss://127.0.0.1:9443/market") is None
    assert environment_proxy("wss://localhost:9443/market") is None
    assert environment_proxy("ws://fstream.binance.com/market") is None
