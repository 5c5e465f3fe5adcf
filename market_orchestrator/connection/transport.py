"""The only file that knows a WebSocket library (picows), behind ``Transport``.

Consumes a URL, produces open connections that hand whole text messages to a ``FrameHandler``.
Invariants: certificates are verified, compression is off, messages are bounded, every server ping
is answered with its payload, a connection that ended says with which close code (1006: none).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import urllib.request
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import picows
from python_socks import ProxyError  # what picows raises for a proxy that refuses

NO_CLOSE_FRAME = 1006  # RFC 6455, 7.4.1: the connection ended without a close frame
MESSAGE_TOO_BIG = 1009
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
READ_BUFFER_BYTES = 64 * 1024
LOOPBACK = ("", "localhost", "::1")


class HandshakeError(Exception):
    """The server answered, but not with a WebSocket. ``status`` is its HTTP status, if any."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AddressError(Exception):
    """The URL is not one; no attempt can succeed."""


CONNECT_ERRORS = (OSError, HandshakeError, AddressError)
"""What ``Transport.connect`` raises (``TimeoutError`` is an ``OSError``)."""


class Closed(msgspec.Struct, frozen=True):
    """How a connection ended: the peer's close code, or 1006 where it sent none."""

    code: int
    reason: str


class FrameHandler(Protocol):
    """Who receives what a connection delivers; called on the loop's thread, must not block."""

    def on_open(self) -> None: ...  # handshake done, before any frame
    def on_frame(self, payload: bytes) -> None: ...  # one whole message
    def on_frames(self, payloads: list[bytes]) -> None: ...  # all messages of one read
    def on_pong(self) -> None: ...


class TransportConnection(Protocol):
    """An open connection."""

    async def receive(self) -> Closed:
        """Deliver frames until the connection ends, and say how it ended."""
        ...

    async def send_text(self, text: str) -> None: ...
    async def ping(self) -> None: ...

    async def close(self, *, timeout_s: float) -> None:
        """Close with code 1000 and wait ``timeout_s`` seconds for the answer; 0: drop at once.

        Nothing is left open when it ends, also when it is cancelled.
        """
        ...


class Transport(Protocol):
    """Opens connections."""

    async def connect(self, url: str, handler: FrameHandler) -> TransportConnection:
        """Open ``url``; ``handler`` may be called before this returns.

        Raises:
            OSError: the network failed (``TimeoutError`` included).
            HandshakeError: the server refused.
            AddressError: the URL is malformed.
        """
        ...


def environment_proxy(url: str) -> str | None:
    """The proxy that ``https_proxy``, ``http_proxy`` and ``no_proxy`` ask for; none for loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get("https" if parts.scheme == "wss" else "http")


_TEXT = picows.WSMsgType.TEXT
_CONTINUATION = picows.WSMsgType.CONTINUATION
_BINARY = picows.WSMsgType.BINARY
_PING = picows.WSMsgType.PING
_PONG = picows.WSMsgType.PONG
_CLOSE = picows.WSMsgType.CLOSE


class PicowsTransport:
    """``Transport`` on picows: a callback per frame, no queue in between."""

    def __init__(self, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._ssl_context: ssl.SSLContext | None = None

    async def connect(self, url: str, handler: FrameHandler) -> PicowsConnection:
        if url.startswith("wss:") and self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        listener = _PicowsListener(handler, self._max_message_bytes)
        proxy, opener = environment_proxy(url), _SocketOpener()
        try:
            transport, _ = await picows.ws_connect(
                lambda: listener,
                url,
                ssl_context=self._ssl_context,
                websocket_handshake_timeout=None,  # the caller's timeout bounds the whole attempt
                enable_auto_pong=False,  # pongs come from the listener: it must see every frame
                max_frame_size=self._max_message_bytes,
                proxy=proxy,
                read_buffer_init_size=READ_BUFFER_BYTES,
                socket_factory=opener.open,
            )
        except picows.WSInvalidURL as error:
            raise AddressError(f"not a WebSocket address: {url}") from error
        except picows.WSHandshakeError as error:
            status = None if error.response is None else int(error.response.status)
            raise HandshakeError(str(error), status) from error
        except (picows.WSError, ProxyError) as error:
            raise HandshakeError(str(error)) from error
        except asyncio.CancelledError:
            opener.abandon()
            raise
        if not listener.is_open:  # picows returns normally when the peer drops the handshake
            raise HandshakeError("connection dropped during the handshake")
        return PicowsConnection(transport, listener)


class _SocketOpener:
    """Opens the TCP connection, and keeps hold of it: picows drops no handshake when cancelled."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    async def open(self, parsed: picows.WSParsedURL) -> socket.socket:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
        failure: OSError = OSError(f"no address for {parsed.host}")
        for family, kind, protocol, _, address in addresses:
            candidate = socket.socket(family, kind, protocol)
            candidate.setblocking(False)
            try:
                await loop.sock_connect(candidate, address)
            except OSError as error:
                candidate.close()
                failure = error
            except BaseException:
                candidate.close()
                raise
            else:
                self._socket = candidate
                return candidate
        raise failure

    def abandon(self) -> None:
        """End the connection; the transport that owns the socket sees the end and closes it."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _PicowsListener(picows.WSListener):
    """Collects the messages of one read and hands them over together."""

    def __init__(self, handler: FrameHandler, max_message_bytes: int) -> None:
        self._handler = handler
        self._max_message_bytes = max_message_bytes
        self._payloads: list[bytes] = []
        self._fragments: list[bytes] | None = None
        self._fragment_bytes = 0
        self.is_open = False
        self.closed = Closed(NO_CLOSE_FRAME, "connection dropped")

    def on_ws_connected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002 - picows' signature
        self.is_open = True
        self._handler.on_open()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == _TEXT and frame.fin:
            self._payloads.append(frame.get_payload_as_bytes())
        else:
            self._on_other(transport, frame)
        if frame.last_in_buffer and self._payloads:
            payloads, self._payloads = self._payloads, []
            if not transport.is_close_frame_sent:  # picows parses on after a message too big
                self._handler.on_frames(payloads)

    def _on_other(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind in (_TEXT, _BINARY, _CONTINUATION):
            self._on_data(transport, frame)
        elif kind == _PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind == _PONG:
            self._handler.on_pong()
        elif kind == _CLOSE:
            self._on_close(transport, frame.get_payload_as_bytes())

    def _on_data(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """Take a binary message or a fragment of any message."""
        payload = frame.get_payload_as_bytes()
        if frame.msg_type != _CONTINUATION:
            self._fragments, self._fragment_bytes = [], 0
        if self._fragments is None:
            return  # a continuation of nothing
        self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        if self._fragment_bytes > self._max_message_bytes:
            self.closed = Closed(MESSAGE_TOO_BIG, "message of fragments too big")
            self._fragments = None
            transport.send_close(picows.WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
        elif frame.fin:
            self._payloads.append(b"".join(self._fragments))
            self._fragments = None

    def _on_close(self, transport: picows.WSTransport, payload: bytes) -> None:
        if len(payload) >= 2:
            code = int.from_bytes(payload[:2], "big")
            self.closed = Closed(code, payload[2:].decode("utf-8", "replace"))
        if not transport.is_close_frame_sent:
            transport.send(_CLOSE, payload[:2])
        transport.disconnect()


class PicowsConnection:
    """One open picows WebSocket."""

    def __init__(self, transport: picows.WSTransport, listener: _PicowsListener) -> None:
        self._transport = transport
        self._listener = listener

    async def receive(self) -> Closed:
        try:
            await self._transport.wait_disconnected()
        except picows.WSProtocolError as error:
            return Closed(int(error.code), str(error))
        return self._listener.closed

    async def send_text(self, text: str) -> None:
        self._transport.send(_TEXT, text.encode())

    async def ping(self) -> None:
        self._transport.send_ping(b"")

    async def close(self, *, timeout_s: float) -> None:
        try:
            if timeout_s > 0 and not self._transport.is_disconnected:
                self._transport.send_close(picows.WSCloseCode.OK)
                with contextlib.suppress(TimeoutError, picows.WSError):
                    async with asyncio.timeout(timeout_s):
                        await self._transport.wait_disconnected()
        finally:
            self._transport.disconnect(graceful=False)


def default_transport() -> Transport:
    """What a run opens its connections with, and therefore what the doctor checks."""
    return PicowsTransport()
