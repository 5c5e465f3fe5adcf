"""An attached dashboard follows a bot's ``/events``, through breaks and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from aiohttp import web

from dashboard.attach import Attachment
from dashboard.state import DashboardState, reduce
from domain.errors import ConfigError
from domain.events import Topic
from event_bus import DropOldest, Envelope, EventBus, Subscription, to_json
from monitoring.event_stream import EventStream
from monitoring.events_socket import EventsSocket
from tests.dashboard_samples import T0, WINDOW_MS, alert, features, health, signal, window

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/events", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def attached(
    port: int, token: str | None = None
) -> AsyncIterator[tuple[Attachment, Subscription]]:
    bus = EventBus()
    attachment = Attachment(
        bus, f"http://127.0.0.1:{port}", token, sleep=lambda _: asyncio.sleep(0.02)
    )
    with bus.subscribe(Topic, policy=DropOldest(1_000), name="test") as events:
        task = asyncio.create_task(attachment.run())
        try:
            async with asyncio.timeout(20):
                yield attachment, events
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


async def taken(events: Subscription, count: int) -> list[Envelope]:
    found: list[Envelope] = []
    while len(found) < count:
        found += await events.next_batch()
    return found


PUBLISHED: list[tuple[Topic, msgspec.Struct]] = [
    (Topic.WINDOW, window()),
    (Topic.FEATURES, features(T0, spread_bps=0.5)),
    (Topic.SIGNAL, signal("groq")),
    (Topic.ALERT, alert()),
    (Topic.HEALTH, health(0, ai__mode="live", store__rows_written=7)),
]


def test_what_a_bot_published_before_and_after_arrives_unchanged() -> None:
    async def work() -> None:
        stream = EventStream(100, wall_ns=time.time_ns)
        envelopes = [Envelope(topic, n, p) for n, (topic, p) in enumerate(PUBLISHED, 1)]
        stream.append(envelopes[:3])
        async with (
            serving(EventsSocket(stream).handle) as port,
            attached(port) as (attachment, events),
        ):
            before = await taken(events, 3)
            stream.append(envelopes[3:])
            after = await taken(events, 2)
            assert attachment.trouble == ""
            assert [e.payload for e in before + after] == [payload for _, payload in PUBLISHED]
            assert reduce(DashboardState(), before + after) == reduce(DashboardState(), envelopes)

    asyncio.run(work())


def test_after_a_break_it_goes_on_behind_what_it_has() -> None:
    async def work() -> None:
        asked: list[str] = []
        rows = [features(T0 + n * WINDOW_MS) for n in range(6)]

        async def two_then_gone(request: web.Request) -> web.StreamResponse:
            asked.append(request.query["after"])
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str('{"notice":"hello","sequence":9}')
            first = int(asked[-1])
            for n in range(first + 1, min(first + 2, len(rows)) + 1):
                await socket.send_str(to_json(Envelope(Topic.FEATURES, n, rows[n - 1])).decode())
            await socket.close()
            return socket

        async with serving(two_then_gone) as port, attached(port) as (attachment, events):
            found = await taken(events, 6)
            assert [e.payload for e in found] == rows
            await until(lambda: attachment.trouble)
            assert asked[:3] == ["0", "2", "4"]

    asyncio.run(work())


def test_a_bot_that_restarts_on_its_port_is_found_again() -> None:
    async def work() -> None:
        stream = EventStream(100, wall_ns=time.time_ns)
        async with serving(EventsSocket(stream).handle) as port:
            pass
        async with attached(port) as (attachment, events):
            await until(lambda: attachment.trouble == "no bot answers there")
            stream.append([Envelope(Topic.ALERT, 1, alert("back"))])
            async with serving(EventsSocket(stream).handle, port):
                (envelope,) = await taken(events, 1)
                assert envelope.payload == alert("back")
                assert attachment.trouble == ""
            await until(lambda: attachment.trouble)

    asyncio.run(work())


def test_the_token_is_sent_and_a_wrong_one_is_named() -> None:
    async def work() -> None:
        stream = EventStream(100, wall_ns=time.time_ns)
        stream.append([Envelope(Topic.ALERT, 1, alert())])

        async def guarded(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") != "Bearer right":
                return web.json_response({}, status=401)
            return await EventsSocket(stream).handle(request)

        async with serving(guarded) as port:
            async with attached(port, "wrong") as (attachment, _):
                await until(lambda: "HTTP_TOKEN" in attachment.trouble)
            async with attached(port, "right") as (attachment, events):
                assert await taken(events, 1)

    asyncio.run(work())


def test_what_a_newer_bot_says_is_skipped_and_counted() -> None:
    frames = (
        '{"topic":"weather","sequence":1,"payload":{}}',
        '{"topic":"alert","sequence":2,"payload":{"name":5}}',
        "no json",
        '{"notice":"missed","events":{}}',
        to_json(Envelope(Topic.ALERT, 3, alert())).decode().replace('{"name"', '{"new":1,"name"'),
    )

    async def work() -> None:
        async def newer(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            for frame in frames:
                await socket.send_str(frame)
            await asyncio.sleep(20)
            return socket

        async with serving(newer) as port, attached(port) as (attachment, events):
            (envelope,) = await taken(events, 1)
            assert envelope.payload == alert()
            found = attachment.statistics()
            assert (found["unreadable"], found["missed_notices"]) == (3, 1)

    asyncio.run(work())


@pytest.mark.parametrize("url", ["localhost", "ftp://x", "http://", "http://host:nan"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    from command_line.dashboard import VERB  # noqa: PLC0415

    with pytest.raises(ConfigError, match="attach"):
        VERB.call("dashboard", ["--attach", url])
