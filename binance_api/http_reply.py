"""What an HTTP exchange looks like to those who do not speak HTTP themselves.

Produced by ``http_session``, consumed by ``request_runner`` and the clients.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec


class HttpReply(msgspec.Struct, frozen=True):
    """Any whole answer, whatever its status; header names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpStream(msgspec.Struct, frozen=True):
    """The beginning of an answer whose body is still coming, in ``pieces``."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class Sender(Protocol):
    """What speaks HTTP.

    Raises ``Unreachable`` when there is no whole answer and ``BadReply`` when it is too large.
    """

    async def get(
        self, path: str, params: Mapping[str, str | int], headers: Mapping[str, str]
    ) -> HttpReply: ...

    def stream(
        self, path: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[HttpStream]: ...
