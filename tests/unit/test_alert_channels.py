"""Channels: what each writes or sends, signatures, and mistakes in their settings."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import web

from alerts.channels import (
    AppriseChannel,
    ChannelSettings,
    ConsoleChannel,
    FileChannel,
    NotDelivered,
    WebhookChannel,
    make_channels,
    webhook_headers,
)
from alerts.notification import NotificationKind, text_of, title_of
from domain.errors import ConfigError
from tests.alert_receiver import SECRET, Receiver
from tests.alert_samples import T0, notification


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The vector of the reference libraries, https://github.com/standard-webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = webhook_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', secret, 1_614_265_330
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["Idempotency-Key"] == headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert "webhook-signature" not in webhook_headers("k", b"", None, 1)


def test_a_webhook_gets_fields_and_text() -> None:
    async def work() -> None:
        async with Receiver() as receiver, WebhookChannel(receiver.url, SECRET) as channel:
            await channel.send(notification())
            body = receiver.taken["k1"]
            assert receiver.bad_signatures == 0
            assert body["text"] == "[WARNING] BTCUSDT: whale\n00:00:00 whale at 64,000"
            assert body["severity"] == "warning"
            assert body["items"][0]["labels"] == {"symbol": "BTCUSDT"}

    asyncio.run(work())


def test_nobody_there_is_not_delivered_and_names_no_address() -> None:
    async def work() -> None:
        url = "http://127.0.0.1:9/a-token-in-the-path"
        async with WebhookChannel(url, None, timeout_s=2) as channel:
            with pytest.raises(NotDelivered) as caught:
                await channel.send(notification())
            assert "token" not in str(caught.value)
            assert caught.value.__cause__ is None

    asyncio.run(work())


def test_a_file_holds_each_key_once_whatever_a_crash_left(tmp_path: Path) -> None:
    async def send(*keys: str, created_ms: int = T0) -> None:
        async with FileChannel(tmp_path) as channel:
            for key in keys:
                await channel.send(notification(key, created_ms=created_ms))

    def keys(date: str) -> list[str]:
        lines = (tmp_path / f"alerts-{date}.jsonl").read_text().splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line)["key"])
            except ValueError:
                found.append("cut off")
        return found

    asyncio.run(send("a", "b", "a"))
    asyncio.run(send("b", "c"))  # another process: b was delivered, but not taken from the outbox
    with (tmp_path / "alerts-2024-07-19.jsonl").open("a") as file:
        file.write('{"key":"d","ki')  # the power went
    asyncio.run(send("d", "e"))
    asyncio.run(send("f", created_ms=T0 + 86_400_000))
    assert keys("2024-07-19") == ["a", "b", "c", "cut off", "d", "e"]
    assert keys("2024-07-20") == ["f"]


def test_a_disk_that_refuses_is_not_delivered(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("no folder")

    async def work() -> None:
        async with FileChannel(tmp_path / "alerts") as channel:
            with pytest.raises(NotDelivered):
                await channel.send(notification())

    asyncio.run(work())


@pytest.mark.parametrize(
    ("severity", "level"), [("info", "info"), ("warning", "warning"), ("error", "error")]
)
def test_the_console_is_the_log_at_the_alerts_level(severity: str, level: str) -> None:
    with structlog.testing.capture_logs() as lines:
        asyncio.run(ConsoleChannel().send(notification(severity=severity)))
    assert lines == [
        {
            "event": "alert.firing",
            "alert": "whale",
            "symbol": "BTCUSDT",
            "message": "whale at 64,000",
            "log_level": level,
        }
    ]


def test_a_digest_reads_as_counts() -> None:
    digest = msgspec.structs.replace(
        notification(),
        kind=NotificationKind.DIGEST,
        items=(),
        held_back={"burst ETHUSDT": 2, "whale BTCUSDT": 5},
        held_since_ms=T0,
    )
    assert title_of(digest) == "7 alerts held back"
    assert text_of(digest).splitlines() == [
        "Since 00:00:00 UTC, beyond this channel's rate:",
        "5 × whale BTCUSDT",
        "2 × burst ETHUSDT",
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of apprise's own plugins
def test_apprise_sends_to_what_its_addresses_name() -> None:
    pytest.importorskip("apprise")
    got: list[dict[str, Any]] = []
    script = [500, 200]

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=script.pop(0))

    async def work() -> None:
        app = web.Application()
        app.router.add_post("/", take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        try:
            async with AppriseChannel(f"json://127.0.0.1:{port}/", "apprise-1") as channel:
                with pytest.raises(NotDelivered):
                    await channel.send(notification(severity="error"))
                await channel.send(notification(severity="error"))
        finally:
            await runner.cleanup()

    asyncio.run(work())
    assert got[1]["title"] == "[ERROR] BTCUSDT: whale"
    assert got[1]["message"] == "00:00:00 whale at 64,000"
    assert got[1]["type"] == "failure"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of apprise's own plugins
def test_an_address_apprise_does_not_know_is_refused_without_showing_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("apprise")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ConfigError, match="ALERT_URLS: apprise-1 is no address") as caught,
    ):
        AppriseChannel("nosuch://a-secret-token/x", "apprise-1")
    assert "a-secret-token" not in f"{caught.value}{caplog.text}"


def test_channels_are_those_named_and_set_up(tmp_path: Path) -> None:
    def names(**given: Any) -> list[str]:
        return [c.name for c in make_channels(ChannelSettings(folder=tmp_path, **given))]

    assert names() == ["console", "file"]
    assert names(webhook_url="http://x") == ["console", "file", "webhook"]
    assert names(names=("webhook",)) == []
    assert names(names=("file",), webhook_url="http://x") == ["file"]
    settings = ChannelSettings(folder=tmp_path, webhook_url="http://x/t", webhook_secret="s3cret")
    assert "s3cret" not in repr(settings)
    assert "/t" not in repr(settings).removeprefix("ChannelSettings")
    with pytest.raises(ConfigError, match="ALERT_WEBHOOK_SECRET"):
        names(webhook_url="http://x", webhook_secret="whsec_!!")
