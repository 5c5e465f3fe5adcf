"""Where notifications go: the log, a file, a webhook, and through apprise everything else.

A channel takes one notification: it is delivered when ``send`` returns, to be tried again at
``NotDelivered``, never to be taken at ``Refused``. Secrets and addresses are in no message.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, Self

import aiohttp
import msgspec
import structlog

from alerts.notification import Notification, NotificationKind, rank, text_of, title_of
from domain.errors import ConfigError, OrderFlowError, StorageError
from lake.atomic import ensure_folder, storage_error
from lake.journal import append_durably

log = structlog.get_logger()

SEND_TIMEOUT_S: Final = 10.0
APPRISE_TIMEOUT_S: Final = 60.0
_TAIL_BYTES: Final = 262_144
_LONGEST_RETRY_AFTER_S: Final = 3_600.0
# The receiver says that these bytes will never do; anything else may be put right by waiting.
_REFUSED: Final = {400, 413, 415, 422}


class NotDelivered(OrderFlowError):
    """Not this time. ``retry_after_s``: what the receiver asked for, if it did."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(OrderFlowError):
    """The receiver will never take this notification."""


class Channel(Protocol):
    """One place people look at."""

    name: str

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...
    async def send(self, notification: Notification) -> None:
        """Deliver; see the module."""


class ConsoleChannel:
    """The log: stderr, or the log file while the dashboard has the screen."""

    def __init__(self, name: str = "console") -> None:
        self.name = name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def send(self, notification: Notification) -> None:
        """One line per alert."""
        if notification.kind is not NotificationKind.ALERTS:
            log.info("alert.note", title=title_of(notification), text=text_of(notification))
        for item in notification.items:
            write = (log.info, log.warning, log.error)[rank(item.severity)]
            write(
                f"alert.{item.state}",
                alert=item.name,
                symbol=item.labels.get("symbol"),
                message=item.message,
            )


class FileChannel:
    """``alerts-YYYY-MM-DD.jsonl``: one notification a line, each key once."""

    def __init__(self, folder: Path, name: str = "file") -> None:
        self.name = name
        self._folder = folder
        self._path: Path | None = None
        self._keys: set[str] = set()
        self._is_torn = False  # a crash left half a line

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def send(self, notification: Notification) -> None:
        """Append durably, in a worker thread."""
        try:
            await asyncio.to_thread(self._append, notification)
        except (StorageError, OSError) as error:
            raise NotDelivered(str(error)) from error

    def _append(self, notification: Notification) -> None:
        date = datetime.fromtimestamp(notification.created_ms / 1_000, UTC).strftime("%Y-%m-%d")
        path = self._folder / f"alerts-{date}.jsonl"
        if path != self._path:
            ensure_folder(self._folder)
            tail = _tail(path)
            self._path, self._keys = path, _keys_in(tail)
            self._is_torn = bool(tail) and not tail.endswith(b"\n")
        if notification.key not in self._keys:
            line = msgspec.json.encode(notification) + b"\n"
            append_durably(path, b"\n" + line if self._is_torn else line)
            self._is_torn = False
            self._keys.add(notification.key)


class WebhookChannel:
    """POSTs JSON, signed as by standardwebhooks.com: ``webhook-id``, ``-timestamp``, ``-signature``.

    The id is the idempotency key (also as ``Idempotency-Key``): a receiver that honours it gets
    nothing twice, whatever is sent again.

    Args:
        url: http(s) address; redirects are not followed.
        secret: signs, where given: ``v1,base64(HMAC-SHA256(secret, id.timestamp.body))``.
        timeout_s: of one attempt.
        wall_s: the machine's time, for the timestamp.
    """

    def __init__(
        self,
        url: str,
        secret: str | None,
        *,
        name: str = "webhook",
        timeout_s: float = SEND_TIMEOUT_S,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._url = url
        self._secret = None if secret is None else _secret_bytes(secret)
        self._timeout_s = timeout_s
        self._wall_s = wall_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, notification: Notification) -> None:
        """One attempt."""
        if self._session is None:
            raise RuntimeError("the channel is used outside its context")
        body = webhook_body(notification)
        headers = webhook_headers(notification.key, body, self._secret, int(self._wall_s()))
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status, asked = response.status, response.headers.get("Retry-After", "")
        except TimeoutError as error:
            raise NotDelivered("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotDelivered(f"connection failed ({type(error).__name__})") from None
        if 200 <= status < 300:
            return
        if status in _REFUSED:
            raise Refused(f"the receiver answered {status}")
        raise NotDelivered(f"the receiver answered {status}", _seconds(asked))


def webhook_body(notification: Notification) -> bytes:
    """What is posted: the notification as JSON, and its title and text as chats take them."""
    fields = msgspec.to_builtins(notification)
    text = f"{title_of(notification)}\n{text_of(notification)}"
    return msgspec.json.encode(
        {**fields, "severity": notification.severity, "title": title_of(notification), "text": text}
    )


def webhook_headers(
    key: str, body: bytes, secret: bytes | None, timestamp_s: int
) -> Mapping[str, str]:
    """The headers of one attempt; see https://www.standardwebhooks.com (version 1)."""
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "webhook-id": key,
        "webhook-timestamp": str(timestamp_s),
    }
    if secret is not None:
        signed = f"{key}.{timestamp_s}.".encode() + body
        digest = hmac.new(secret, signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


class AppriseChannel:
    """One address of a service that apprise knows. Those services honour no key: twice is possible."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        try:
            module = importlib.import_module("apprise")  # late: it takes 300 ms, and is an extra
        except ModuleNotFoundError:
            raise ConfigError("ALERT_URLS: the package apprise is not installed") from None
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it logs addresses with tokens
        self._apprise: Any = module.Apprise()
        if not self._apprise.add(url):
            raise ConfigError(f"ALERT_URLS: {name} is no address that apprise knows")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def send(self, notification: Notification) -> None:
        """One attempt, in a worker thread."""
        kind = ("info", "warning", "failure")[rank(notification.severity)]
        try:
            async with asyncio.timeout(APPRISE_TIMEOUT_S):
                is_sent = await asyncio.to_thread(
                    self._apprise.notify,
                    title=title_of(notification),
                    body=text_of(notification),
                    notify_type=kind,
                )
        except TimeoutError as error:
            raise NotDelivered("no answer in time") from error
        if not is_sent:
            raise NotDelivered("the service did not take it")


class ChannelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which channels there are. Addresses and secrets are shown nowhere.

    Attributes:
        names: console, file, webhook, apprise: those that are used where they are set up.
        folder: of the file channel.
        webhook_url: http(s) address.
        webhook_secret: signs what is posted.
        urls: apprise's addresses, a channel each.
    """

    names: tuple[str, ...] = ("console", "file", "webhook", "apprise")
    folder: Path
    webhook_url: str | None = None
    webhook_secret: str | None = None
    urls: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"ChannelSettings(names={self.names})"


def make_channels(settings: ChannelSettings) -> list[Channel]:
    """Everything that is named and set up.

    Raises:
        ConfigError: an address or secret cannot be used, or apprise is not installed.
    """
    found: list[Channel] = []
    if "console" in settings.names:
        found.append(ConsoleChannel())
    if "file" in settings.names:
        found.append(FileChannel(settings.folder))
    if "webhook" in settings.names and settings.webhook_url is not None:
        found.append(WebhookChannel(settings.webhook_url, settings.webhook_secret))
    if "apprise" in settings.names:
        found += [AppriseChannel(u, f"apprise-{n}") for n, u in enumerate(settings.urls, start=1)]
    return found


def _tail(path: Path) -> bytes:
    """The last lines: what a crash may have left undone in the outbox is among them."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise storage_error("cannot read", path, error) from error


def _keys_in(tail: bytes) -> set[str]:
    keys = set()
    for line in tail.split(b"\n"):
        try:
            keys.add(str(json.loads(line)["key"]))
        except (ValueError, TypeError, KeyError):  # cut off at the front, or by a crash at the end
            continue
    return keys


def _secret_bytes(secret: str) -> bytes:
    """``whsec_…`` holds base64, as receivers' libraries expect; anything else is taken as it is."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            raise ConfigError("ALERT_WEBHOOK_SECRET: whsec_ is not followed by base64") from None
    return secret.encode()


def _seconds(header: str) -> float | None:
    return min(float(header), _LONGEST_RETRY_AFTER_S) if header.isdecimal() else None
