"""A local webhook that can fail, stall, die after taking something, and recover."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections import deque
from types import TracebackType
from typing import Any, Self

from aiohttp import web

SECRET = "whsec_" + base64.b64encode(b"a secret of this test").decode()
STALL_S = 30.0


class Receiver:
    """Honours idempotency keys: ``taken`` holds each key's body once, ``posts`` every request.

    ``script`` says what happens to the next requests: a status, ``stall``, ``reset`` or
    ``took_it_and_died``; then everything is taken.
    """

    def __init__(self, *script: int | str) -> None:
        self.script = deque(script)
        self.taken: dict[str, dict[str, Any]] = {}
        self.posts: list[str] = []
        self.bad_signatures = 0
        self.url = ""
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/hook/a-token-in-the-path", self._post)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/hook/a-token-in-the-path"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        key = request.headers["webhook-id"]
        self.posts.append(key)
        signed = f"{key}.{request.headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(b"a secret of this test", signed, hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        self.bad_signatures += request.headers["webhook-signature"] != expected
        what = self.script.popleft() if self.script else 204
        if what == "stall":
            await asyncio.sleep(STALL_S)
        if what == "reset" or what == "took_it_and_died":
            if what == "took_it_and_died":
                await self._take(key, body)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status = int(what) if isinstance(what, int) else 204
        if status < 300:
            await self._take(key, body)
        return web.Response(status=status, headers={"Retry-After": "0"} if status == 429 else {})

    async def _take(self, key: str, body: bytes) -> None:
        async with self._changed:
            self.taken.setdefault(key, json.loads(body))
            self._changed.notify_all()

    def alerts(self) -> list[str]:
        """Messages of every firing alert in what was taken, in order."""
        return [
            item["message"]
            for body in self.taken.values()
            for item in body["items"]
            if item["state"] == "firing"
        ]

    async def until(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait for so many alerts."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(self.alerts()) >= count)
