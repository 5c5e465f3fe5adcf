"""The one place that speaks HTTP: whole small answers, and large ones as they come.

Consumes a path below one base URL → produces ``HttpReply`` or ``HttpStream``. Failures of the
network are ``Unreachable``; what a status means is decided by the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from urllib.parse import urlsplit

import aiohttp

from binance_api.errors import BadReply, Unreachable
from binance_api.http_reply import HttpReply, HttpStream
from binance_api.request_runner import RestSettings


class HttpSession:
    """A ``http_reply.Sender`` over aiohttp, for one host.

    Args:
        settings: Its timeouts, its concurrency and the longest whole answer.
        base_url: Scheme and host, perhaps a port.

    Raises:
        ValueError: The base URL is none.
    """

    def __init__(self, settings: RestSettings, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be http(s)://host[:port]")
        self.base_url = base_url.rstrip("/")
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make it usable; needs a running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._settings.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=self._settings.request_timeout_s,
                connect=self._settings.connect_timeout_s,
            ),
        )

    async def close(self) -> None:
        """Close its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(
        self, path: str, params: Mapping[str, str | int], headers: Mapping[str, str]
    ) -> HttpReply:
        """One whole answer.

        Raises:
            Unreachable: There is none.
            BadReply: It is too large.
        """
        with _mapped_errors(path):
            async with self._opened().get(
                self.base_url + path, params=params, headers=headers, allow_redirects=False
            ) as response:
                body = await self._read(response, path)
                return HttpReply(status=response.status, headers=response.headers, body=body)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[HttpStream]:
        """An answer of any length, bounded by the silence between two of its pieces.

        Raises:
            Unreachable: There is none, or it broke off (also while its pieces are read).
        """
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self._settings.connect_timeout_s,
            sock_read=self._settings.request_timeout_s,
        )
        # A body that is compressed once more could not be taken up in the middle.
        asked = {**headers, "Accept-Encoding": "identity"}
        with _mapped_errors(path):
            response = await self._opened().get(
                self.base_url + path, headers=asked, timeout=timeout, allow_redirects=False
            )
        try:
            yield HttpStream(
                status=response.status, headers=response.headers, pieces=_pieces(response, path)
            )
        finally:
            response.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        return self._session

    async def _read(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        chunks: list[bytes] = []
        size_bytes = 0
        async for chunk in response.content.iter_any():
            size_bytes += len(chunk)
            if size_bytes > self._settings.max_reply_bytes:
                raise BadReply("the answer is too large", endpoint=path, status=response.status)
            chunks.append(chunk)
        return b"".join(chunks)


async def _pieces(response: aiohttp.ClientResponse, path: str) -> AsyncIterator[bytes]:
    with _mapped_errors(path):
        async for piece in response.content.iter_any():
            yield piece


@contextlib.contextmanager
def _mapped_errors(path: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Unreachable("timed out", endpoint=path) from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unreachable(_describe(error), endpoint=path) from error


def _describe(error: Exception) -> str:
    """A network failure in words, without the URL some of these errors repeat."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port} ({error.strerror or error.os_error})"
    return f"connection failed ({type(error).__name__})"
