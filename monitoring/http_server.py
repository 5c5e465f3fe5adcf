"""The HTTP server of a long-running verb: ``/metrics``, ``/healthz``, ``/readyz``, ``/events``.

Consumes functions that read the running parts, produces replies; nothing here can change them. On
loopback by default; elsewhere only with a token. A port in use is one warning and is tried again: the
work does not depend on being watched.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
import structlog
from aiohttp import web

from domain.errors import ConfigError
from monitoring.events_socket import EventsSocket
from monitoring.health import Report

log = structlog.get_logger()

RETRY_S = 10.0
_SHUTDOWN_S = 1.0
_OPEN_PATHS = frozenset({"/healthz"})  # says nothing but that the loop runs


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen.

    Attributes:
        host: An address of this machine.
        port: 0: any free one (see the log).
        token: Asked for as ``Authorization: Bearer …``; None: nobody is asked.
        retry_s: Seconds between two tries while the port is taken.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    token: str | None = msgspec.field(default=None)
    retry_s: float = RETRY_S

    def __repr__(self) -> str:
        return f"HttpSettings(host={self.host!r}, port={self.port})"


class Pages(msgspec.Struct, frozen=True, kw_only=True):
    """What is served.

    Attributes:
        metrics: The exposition and its content type.
        health: The checks now.
        events: The stream's clients; None: this verb has no events.
    """

    metrics: Callable[[], tuple[bytes, str]]
    health: Callable[[], Report]
    events: EventsSocket | None = None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(settings: HttpSettings) -> None:
    """Refuse to be reached by others without a token.

    Raises:
        ConfigError: It has none.
    """
    if not is_loopback(settings.host) and not settings.token:
        raise ConfigError(
            f"HTTP_TOKEN: must be set to serve at {settings.host}, which others can reach "
            "(or set HTTP_HOST to 127.0.0.1, HTTP_PORT to off)"
        )


class HttpServer:
    """``run`` serves until cancelled.

    Args:
        settings: See ``HttpSettings``.
        pages: What is served.
    """

    def __init__(self, settings: HttpSettings, pages: Pages) -> None:
        self._settings = settings
        self._pages = pages
        self.url: str | None = None  # while it listens
        self._counts = dict.fromkeys(("requests", "refused", "failures"), 0)

    async def run(self) -> None:
        """Listen as soon as the port is free, and serve until cancelled."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        if self._pages.events is not None:
            app.router.add_get("/events", self._pages.events.handle)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        try:
            await self._listen(runner)
            await asyncio.Event().wait()
        finally:
            self.url = None
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        settings = self._settings
        warned = False
        while True:
            site = web.TCPSite(runner, settings.host, settings.port)
            try:
                await site.start()
                break
            except OSError as error:
                if not warned:
                    warned = True
                    advice = "set HTTP_PORT to another port, 0 (any) or off"
                    if error.errno != errno.EADDRINUSE:
                        advice = "HTTP_HOST must be an address of this machine"
                    log.warning(
                        "http.not_served",
                        host=settings.host,
                        port=settings.port,
                        error=error.strerror or str(error),
                        advice=f"the run goes on and tries again; {advice}",
                    )
            await asyncio.sleep(settings.retry_s)
        host, port = runner.addresses[0][:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("http.listening", url=self.url, with_token=bool(settings.token))

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        self._counts["requests"] += 1
        refusal = self._refusal(request)
        if refusal is not None:
            self._counts["refused"] += 1
            return refusal
        try:
            return await handler(request)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # a defect of ours must not pass in silence, nor its text go out
            self._counts["failures"] += 1
            log.error("http.request_failed", path=request.path, exc_info=error)
            return web.json_response({"error": "internal error, see the log"}, status=500)

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Keep web pages of a browser on this machine out, and those without the token."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return web.json_response({"error": "not for pages of other sites"}, status=403)
        token = self._settings.token
        if token is None:  # a name that resolves to loopback (DNS rebinding) is not ours
            name = urlsplit(f"//{request.host}").hostname or ""
            if not is_loopback(name):
                return web.json_response({"error": "ask for a loopback address"}, status=403)
            return None
        if request.path in _OPEN_PATHS:
            return None
        given = request.headers.get("Authorization", "").encode()
        if secrets.compare_digest(given, f"Bearer {token}".encode()):
            return None
        return web.json_response(
            {"error": "needs Authorization: Bearer HTTP_TOKEN"},
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _index(self, request: web.Request) -> web.Response:
        paths = sorted(
            resource.canonical for resource in request.app.router.resources() if resource.canonical
        )
        return web.json_response({"paths": paths})

    async def _metrics(self, _request: web.Request) -> web.Response:
        body, content_type = self._pages.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, _request: web.Request) -> web.Response:
        report = self._pages.health()
        body = msgspec.json.encode(report)
        status = 200 if report.is_ready else 503
        return web.Response(body=body, status=status, content_type="application/json")

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests, refused ones, and defects."""
        return dict(self._counts)
