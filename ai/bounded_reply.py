"""A bound on what an HTTP reply may hold, and a note of how much of it came.

Consumes the responses of an SDK's own HTTP client (httpx or its successor, same interface) through
an event hook, before a byte of the body is read; produces ``ReplyTooLarge`` instead of a megabyte.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import msgspec

from domain.errors import OrderFlowError

MAX_REPLY_BYTES = 262_144
"""A thousand tokens are 5 kB; hidden reasoning and wrapping may be several times that."""


class ReplyTooLarge(OrderFlowError):
    """The reply's body is longer than ``MAX_REPLY_BYTES``; the rest of it was not read."""


class Progress(msgspec.Struct):
    """What has come of the reply to one call."""

    has_headers: bool = False
    body_bytes: int = 0


progress_of_call: ContextVar[Progress | None] = ContextVar("progress_of_call", default=None)
"""Set by whoever makes a call, in the task that makes it."""


def bound_replies(http: ModuleType) -> Callable[[Any], Awaitable[None]]:
    """A response hook for ``http.AsyncClient(event_hooks={"response": [hook]})``."""

    class Bounded(http.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            progress = progress_of_call.get() or Progress()
            async for piece in self._stream:
                progress.body_bytes += len(piece)
                if progress.body_bytes > MAX_REPLY_BYTES:
                    raise ReplyTooLarge(f"more than {MAX_REPLY_BYTES} bytes")
                yield piece

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def hook(response: Any) -> None:
        progress = progress_of_call.get()
        if progress is not None:
            progress.has_headers = True
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > MAX_REPLY_BYTES:
            raise ReplyTooLarge(f"{announced} bytes announced")
        response.stream = Bounded(response.stream)

    return hook
