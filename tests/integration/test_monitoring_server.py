"""Metrics, health and events over a real socket: who may ask, what comes, what a slow client is told."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest

from domain.errors import ConfigError
from monitoring import events_socket
from monitoring.http_server import HttpSettings, check_address
from tests.monitoring_scene import frames, serving, signal_of, until

HEALTHY = {
    "connection.trades.state": "healthy",
    "connection.trades.data_age_s": 0.1,
    "connection.trades.frames": 7,
}


def ids(events: list[dict]) -> list[str]:
    return [event["payload"]["signal_id"] for event in events]


def test_metrics_and_health_say_what_the_parts_say(tmp_path: Path) -> None:
    async def scene() -> None:
        values: dict = {}
        async with serving(tmp_path, read=lambda: values) as served:
            get = served.session.get
            async with get(f"{served.url}/healthz") as reply:
                assert reply.status == 200
            async with get(f"{served.url}/readyz") as reply:
                assert reply.status == 503
                assert (await reply.json())["checks"]["start"]["state"] == "failing"
            values.update(HEALTHY)
            served.publish(1, 2)
            await until(lambda: served.monitoring.read()["event_journal.lines"] == 2)
            async with get(f"{served.url}/readyz") as reply:
                assert reply.status == 200
                assert (await reply.json())["status"] == "ok"
            async with get(f"{served.url}/metrics") as reply:
                text = await reply.text()
                assert reply.headers["Content-Type"].startswith("text/plain; version=")
            assert 'orderflow_feed_messages_total{route="trades"} 7.0' in text
            assert 'orderflow_signals_total{action="HOLD",source="rules"} 2.0' in text
            assert "orderflow_ready 1.0" in text

    asyncio.run(scene())


def test_with_a_token_nobody_else_gets_more_than_a_sign_of_life(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(tmp_path, token="canary-token") as served:
            for path, status in [("/healthz", 200), ("/readyz", 401), ("/metrics", 401)]:
                async with served.session.get(served.url + path) as reply:
                    assert reply.status == status, path
            wrong = {"Authorization": "Bearer canary-tokem"}
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await served.events(headers=wrong)
            right = {"Authorization": "Bearer canary-token"}
            async with served.events(headers=right) as client:
                assert (await frames(client, 1))[0]["notice"] == "hello"

    asyncio.run(scene())


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere.example"}, {"Host": "rebound.example:8787"}], ids=str
)
def test_a_web_page_cannot_read_through_the_browser(tmp_path: Path, headers: dict) -> None:
    async def scene() -> None:
        async with serving(tmp_path) as served:
            async with served.session.get(f"{served.url}/metrics", headers=headers) as reply:
                assert reply.status == 403
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await served.events(headers=headers)

    asyncio.run(scene())


def test_an_address_beyond_this_machine_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="HTTP_TOKEN"):
        check_address(HttpSettings(host="10.1.2.3"))
    check_address(HttpSettings(host="10.1.2.3", token="x"))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_address(HttpSettings(host=host))
    assert "x1x" not in repr(HttpSettings(token="x1x"))


def test_a_taken_port_costs_nothing_but_the_serving_until_it_is_free(tmp_path: Path) -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            waiting = serving(tmp_path, port=port, listens=False)
            served = await waiting.__aenter__()
            served.publish(1)
            await until(lambda: served.monitoring.read().get("event_journal.lines") == 1)
            assert served.monitoring.server is not None
            assert served.monitoring.server.url is None
        await until(lambda: served.monitoring.server and served.monitoring.server.url)
        async with served.events("?after=0") as client:
            assert ids((await frames(client, 2))[1:]) == [signal_of(1).signal_id]
        await waiting.__aexit__(None, None, None)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?topics=signal,weather", "weather"),
        ("?after=-1", "after"),
        ("?policy=wait", "policy"),
        ("?symbol=BTCUSDT", "symbol"),
    ],
)
def test_a_wrong_query_is_told_what_there_is(tmp_path: Path, query: str, named: str) -> None:
    async def scene() -> None:
        async with (
            serving(tmp_path) as served,
            served.session.get(f"{served.url}/events{query}") as reply,
        ):
            assert reply.status == 400
            assert named in (await reply.json())["error"]

    asyncio.run(scene())


def test_a_client_gets_the_topics_and_symbols_it_asked_for(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            serving(tmp_path) as served,
            served.events("?topics=signal&symbols=ethusdt") as client,
        ):
            await frames(client, 1)
            served.publish(1)
            served.publish_health(1)
            served.publish(2, 3, symbol="ETHUSDT")
            found = await frames(client, 2)
        assert ids(found) == ["rules:ETHUSDT:2", "rules:ETHUSDT:3"]
        assert found[0]["sequence"] < found[1]["sequence"]

    asyncio.run(scene())


def test_a_client_follows_through_a_restart_without_missing_a_signal(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(tmp_path) as served:
            async with served.events("?topics=signal") as client:
                await frames(client, 1)
                served.publish(1, 2)
                known = await frames(client, 2)
            served.publish(3)  # while the client is away
        async with serving(tmp_path) as served:
            served.publish(4)
            async with served.events(f"?topics=signal&after={known[-1]['sequence']}") as client:
                hello, *found = await frames(client, 3)
        assert hello["notice"] == "hello"
        assert ids(found) == ["rules:BTCUSDT:3", "rules:BTCUSDT:4"]

    asyncio.run(scene())


def test_a_client_gets_the_last_events_and_a_goodbye_when_the_run_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(tmp_path) as served:
            client = await served.events("?topics=signal")
            await frames(client, 1)
            session = served.session
            served.publish(1, 2, 3)
            served.bus.close()  # at once: nothing has been numbered yet
            reading = asyncio.ensure_future(_rest(client))
            await asyncio.sleep(0)
        found, code = await reading
        assert session.closed
        assert ids(found[:-1]) == [signal_of(n).signal_id for n in (1, 2, 3)]
        assert found[-1]["notice"] == "closing"
        assert code == 1001

    asyncio.run(scene())


async def _rest(client: aiohttp.ClientWebSocketResponse) -> tuple[list[dict], int | None]:
    found = [json.loads(message.data) async for message in client]
    return found, client.close_code


def test_a_slow_client_is_told_what_it_missed_and_a_quick_one_misses_nothing(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        async with serving(tmp_path, keep=20) as served:
            slow = await served.events("?topics=health")
            quick = await served.events("?topics=signal")
            conflating = await served.events("?topics=health&policy=conflate")
            for client in (slow, quick, conflating):
                await frames(client, 1)
            total = 300
            for number in range(total):  # 60 MB: more than any buffer on the way
                served.publish_health(number, size=200_000)
                served.publish(number)
                assert ids(await frames(quick, 1)) == [signal_of(number).signal_id]
            seen, missed = 0, 0
            while seen + missed < total:
                frame = (await frames(slow, 1))[0]
                if frame.get("notice") == "missed":
                    assert frame["reason"] == "too_slow"
                    missed += frame["events"]["health"]
                else:
                    seen += 1
            assert missed > 0
            newest = (await frames(conflating, 1))[0]
            while newest.get("payload", {}).get("at_ns") != total - 1:
                newest = (await frames(conflating, 1))[0]
            assert int(served.monitoring.read()["socket.missed"] or 0) >= missed

    asyncio.run(scene())


def test_a_client_that_takes_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        events_socket.EventsSocket.__init__, "__kwdefaults__", {"send_timeout_s": 0.2}
    )

    async def scene() -> None:
        async with serving(tmp_path, keep=20) as served, served.events("?topics=health") as stalled:
            await frames(stalled, 1)
            number = 0
            while not served.monitoring.read()["socket.stalled_clients"]:
                number += 1
                served.publish_health(number, size=200_000)
                await asyncio.sleep(0.01)
            await until(lambda: served.monitoring.read()["socket.clients"] == 0)

    asyncio.run(scene())
