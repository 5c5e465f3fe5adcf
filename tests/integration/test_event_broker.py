"""Events through a real NATS server: sharded bots, outages of the server, restarts of a bot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from domain.errors import ConfigError
from event_broker import BrokerSettings, EventBroker, Received, follow
from tests.monitoring_scene import PATIENCE_S, Served, serving, signal_of, until


class Server:
    """A NATS server of the test's own; its streams survive ``kill`` and ``start``."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("nats-server")
        if program is None:
            pytest.skip("nats-server is not installed (Debian: apt-get install nats-server)")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._command = [
            *(program, "-js", "-sd", str(folder / "jetstream")),
            *("-a", "127.0.0.1", "-p", str(self.port)),
        ]
        self._log = folder / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    found.start()
    yield found
    found.kill()


def broker_at(server: Server, folder: Path) -> Callable:
    settings = BrokerSettings(
        url=server.url, market="um", timeout_s=1, retry_s=0.05, retry_cap_s=0.1
    )
    return lambda stream: EventBroker(settings, stream, folder / "broker.json")


def bot(server: Server, folder: Path, keep: int = 1_000) -> contextlib.AbstractAsyncContextManager:
    return serving(folder, keep=keep, broker=broker_at(server, folder))


async def received(server: Server, count: int, **options: Any) -> list[Received]:
    """The first messages at a subscriber, then nothing for a while."""
    found: list[Received] = []
    messages = follow(server.url, retry_s=0.05, timeout_s=1, **options)
    async with asyncio.timeout(PATIENCE_S):
        async for message in messages:
            found.append(message)
            if len(found) == count:
                break
    await messages.aclose()
    return found


def names(messages: list[Received], symbol: str) -> list[str]:
    of_symbol = [m for m in messages if m.subject == f"orderflow.um.signal.{symbol}"]
    return [json.loads(message.json)["payload"]["signal_id"] for message in of_symbol]


def expected(numbers: range, symbol: str) -> list[str]:
    return [signal_of(number, symbol).signal_id for number in numbers]


def all_confirmed(served: Served) -> bool:
    return served.monitoring.read().get("broker.behind") == 0


def test_two_sharded_bots_reach_a_subscriber_once_and_in_order_through_a_dead_server(
    tmp_path: Path, server: Server
) -> None:
    symbols = [Settings(symbols="BTCUSDT,ETHUSDT", shard=f"{n}/2").symbols[0] for n in (1, 2)]
    assert symbols == ["BTCUSDT", "ETHUSDT"]

    async def scene() -> list[Received]:
        async with bot(server, tmp_path / "1") as one, bot(server, tmp_path / "2") as two:
            following = asyncio.ensure_future(
                received(server, 600, subjects="orderflow.um.signal.*")
            )
            for begin in (0, 100, 200):
                if begin == 100:
                    await until(lambda: all_confirmed(one) and all_confirmed(two))
                    await asyncio.to_thread(server.kill)  # under the subscriber as well
                for number in range(begin, begin + 100):
                    one.publish(number, symbol=symbols[0])
                    two.publish(number, symbol=symbols[1])
                    await asyncio.sleep(0)
                if begin == 100:
                    await until(lambda: one.monitoring.read()["broker.failures"] > 0)
                    assert one.monitoring.read()["broker.connected"] == 0
                    await asyncio.to_thread(server.start)
            return await following

    found = asyncio.run(scene())
    for symbol in symbols:
        assert names(found, symbol) == expected(range(300), symbol)


def test_a_bot_that_starts_while_the_server_is_away_catches_up(
    tmp_path: Path, server: Server
) -> None:
    async def scene() -> list[Received]:
        await asyncio.to_thread(server.kill)
        async with bot(server, tmp_path / "1") as served:
            served.publish(*range(50))
            await until(lambda: served.monitoring.read()["broker.failures"] > 0)
            await asyncio.to_thread(server.start)
            return await received(server, 50)

    assert names(asyncio.run(scene()), "BTCUSDT") == expected(range(50), "BTCUSDT")


def test_what_was_published_when_a_bot_ended_without_the_server_comes_with_its_next_run(
    tmp_path: Path, server: Server
) -> None:
    async def scene() -> list[Received]:
        async with bot(server, tmp_path / "1") as served:
            served.publish(*range(10))
            await until(lambda: served.monitoring.read().get("broker.published") == 10)
            await asyncio.to_thread(server.kill)
            served.publish(*range(10, 20))
        await asyncio.to_thread(server.start)
        async with bot(server, tmp_path / "1") as served:
            served.publish(*range(20, 30))
            return await received(server, 30)

    assert names(asyncio.run(scene()), "BTCUSDT") == expected(range(30), "BTCUSDT")


def test_events_published_again_after_a_crash_are_known_to_the_server(
    tmp_path: Path, server: Server
) -> None:
    async def scene() -> tuple[list[Received], dict]:
        async with bot(server, tmp_path / "1") as served:
            served.publish(*range(10))
            await until(lambda: served.monitoring.read().get("broker.published") == 10)
        # As if killed before it noted how far it came.
        position = tmp_path / "1" / "broker.json"
        known = json.loads(position.read_bytes())["sequence"]
        position.write_text(json.dumps({"sequence": known - 5}))
        async with bot(server, tmp_path / "1") as served:
            served.publish(10)
            await until(lambda: served.monitoring.read().get("broker.published") == 6)
            return await received(server, 11), served.monitoring.read()

    found, values = asyncio.run(scene())
    assert names(found, "BTCUSDT") == expected(range(11), "BTCUSDT")
    assert [message.sequence for message in found] == list(range(1, 12))
    assert values["broker.duplicates"] == 5


def test_a_long_outage_costs_the_oldest_events_and_says_how_many(
    tmp_path: Path, server: Server
) -> None:
    async def scene() -> tuple[list[Received], dict]:
        await asyncio.to_thread(server.kill)
        async with bot(server, tmp_path / "1", keep=20) as served:
            for number in range(50):
                served.publish(number)
                await asyncio.sleep(0)
            delivered = "subscriber.event_stream.delivered_count"
            await until(lambda: served.bus.statistics()[delivered] == 50)
            await asyncio.to_thread(server.start)
            return await received(server, 20), served.monitoring.read()

    found, values = asyncio.run(scene())
    assert names(found, "BTCUSDT") == expected(range(30, 50), "BTCUSDT")
    assert values["broker.missed"] == 30


def test_a_subscriber_resumes_behind_what_it_knows(tmp_path: Path, server: Server) -> None:
    async def scene() -> list[Received]:
        async with bot(server, tmp_path / "1") as served:
            served.publish(*range(10))
            first = await received(server, 4)
            return await received(server, 6, after=first[-1].sequence)

    assert names(asyncio.run(scene()), "BTCUSDT") == expected(range(4, 10), "BTCUSDT")


def test_shards_cover_every_symbol_once() -> None:
    symbols = ",".join(f"{letter}USDT" for letter in "GACEBFD")
    shares = [Settings(symbols=symbols, shard=f"{n}/3").symbols for n in (1, 2, 3)]
    assert sorted(sum(shares, ())) == sorted(symbols.split(","))
    assert {len(share) for share in shares} == {2, 3}
    turned = ",".join(reversed(symbols.split(",")))
    assert set(Settings(symbols=turned, shard="1/3").symbols) == set(shares[0])
    with pytest.raises(ConfigError, match="SHARD"):
        Settings(symbols="BTCUSDT", shard="2/2")
