"""``Transport`` on aiohttp, for comparison only: what the product's own choice is measured against.

Same protocol, same handler as ``market_orchestrator.connection.transport``; see docs/decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

import aiohttp

from market_orchestrator.connection.transport import (
    MAX_MESSAGE_BYTES,
    NO_CLOSE_FRAME,
    AddressError,
    Closed,
    FrameHandler,
    HandshakeError,
    environment_proxy,
)


class AiohttpTransport:
    """``Transport`` on aiohttp: one session per connection, so that closing it leaves nothing."""

    def __init__(self, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes

    async def connect(self, url: str, handler: FrameHandler) -> AiohttpConnection:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        try:
            websocket = await self._open(session, url)
        except BaseException:
            await session.close()
            raise
        handler.on_open()
        return AiohttpConnection(session, websocket, handler)

    async def _open(
        self, session: aiohttp.ClientSession, url: str
    ) -> aiohttp.ClientWebSocketResponse[Literal[False]]:
        try:
            return await session.ws_connect(
                url,
                autoping=False,
                compress=0,
                max_msg_size=self._max_message_bytes,
                decode_text=False,
                proxy=environment_proxy(url),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise HandshakeError(f"HTTP {error.status} {error.message}", error.status) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise AddressError(f"not a WebSocket address: {url}") from error
        except aiohttp.ClientError as error:
            if isinstance(error, OSError):
                raise
            raise HandshakeError(str(error) or type(error).__name__) from error


class AiohttpConnection:
    """One open aiohttp WebSocket."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        websocket: aiohttp.ClientWebSocketResponse[Literal[False]],
        handler: FrameHandler,
    ) -> None:
        self._session = session
        self._websocket = websocket
        self._handler = handler

    async def receive(self) -> Closed:
        receive, on_frame = self._websocket.receive, self._handler.on_frame
        data_types = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
        while True:
            message = await receive()
            if message.type in data_types:
                on_frame(message.data)
            elif message.type is aiohttp.WSMsgType.PING:
                with contextlib.suppress(ConnectionError):  # receive() reports the end
                    await self._websocket.pong(message.data)
            elif message.type is aiohttp.WSMsgType.PONG:
                self._handler.on_pong()
            else:
                return self._closed(message.type, message.data, message.extra)

    def _closed(self, kind: aiohttp.WSMsgType, data: object, extra: str | None) -> Closed:
        if kind is aiohttp.WSMsgType.CLOSE:
            return Closed(data if isinstance(data, int) and data else NO_CLOSE_FRAME, extra or "")
        if kind is aiohttp.WSMsgType.ERROR:
            return Closed(int(getattr(data, "code", NO_CLOSE_FRAME)), str(data))
        # aiohttp reports a bare end of file as 1000; without a close frame it is 1006
        return Closed(NO_CLOSE_FRAME, str(self._websocket.exception() or "connection dropped"))

    async def send_text(self, text: str) -> None:
        await self._websocket.send_str(text)

    async def ping(self) -> None:
        await self._websocket.ping()

    async def close(self, *, timeout_s: float) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._websocket.close()
        finally:
            await self._session.close()
