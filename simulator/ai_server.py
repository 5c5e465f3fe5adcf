"""A local server that speaks the three AI providers' protocols and misbehaves on command.

Consumes chat requests of the real SDKs and a ``Script``, produces replies, errors, silence and resets.
Nothing leaves the machine. By hand: ``POST /script`` with a script's text changes it while it runs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from domain.errors import ConfigError
from simulator.ai_replies import reply_text
from simulator.ai_script import PROVIDERS, Behaviour, Script, Step, parse_script

_PATHS = {"groq": "/openai/v1", "dashscope": "/compatible-mode/v1", "openai": "/v1"}
USUAL_MODELS = {
    "groq": ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
    "dashscope": ("qwen-plus",),
    "openai": ("gpt-6-luna",),
}
"""What the lists of models name unless they are given: those the bot asks unless told otherwise."""

_DEFAULT_WAIT_S = 30.0
_DEFAULT_DRIP_S = 60.0
_KEPT_REQUESTS = 1_000
_MEGABYTE = 2**20


class ReceivedRequest(msgspec.Struct, frozen=True):
    """One chat request as it came, and what was done with it."""

    provider: str
    body: dict[str, Any]
    headers: dict[str, str]
    step: Step


class ScriptedAI:
    """The server, as an async context manager on loopback.

    Args:
        script: What it does.
        keys: The key each provider accepts; a provider that is not named accepts any.
        models: The models each provider knows; one that is not named lists the usual ones, knows any.
        port: TCP port; 0 picks a free one.

    Attributes:
        urls: What ``GROQ_BASE_URL``, ``DASHSCOPE_BASE_URL`` and ``OPENAI_BASE_URL`` are to be, by
            provider; valid inside the context.
        requests: The last chat requests.

    Raises:
        ConfigError: The port is taken (on entering).
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        keys: dict[str, str] | None = None,
        models: dict[str, tuple[str, ...]] | None = None,
        port: int = 0,
    ) -> None:
        self.script = script or Script()
        self.urls: dict[str, str] = {}
        self.requests: deque[ReceivedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self.counts: Counter[str] = Counter()
        self._keys = keys or {}
        self._models = models or {}
        self._port = port
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner

    async def __aenter__(self) -> Self:
        application = web.Application()
        for provider, path in _PATHS.items():
            application.router.add_post(f"{path}/chat/completions", self._chat_of(provider))
            application.router.add_get(f"{path}/models", self._models_of(provider))
        application.router.add_post("/script", self._set_script)
        application.router.add_get("/counts", self._show_counts)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"port: cannot listen on {self._port}: {error.strerror}") from None
        host = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        # The groq SDK adds the path itself: its variable holds the host alone.
        self.urls = {name: host + ("" if name == "groq" else _PATHS[name]) for name in PROVIDERS}
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        await self._runner.cleanup()

    def set_script(self, text: str) -> None:
        """Change what the named providers do from the next request on.

        Raises:
            ConfigError: The text is no script.
        """
        for provider, steps in parse_script(text).items():
            self.script.set(provider, steps)

    def _chat_of(self, provider: str) -> Any:
        async def chat(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            key = request.headers.get("Authorization", "").removeprefix("Bearer ")
            step = self._step(provider, key, str(body.get("model")))
            self.requests.append(ReceivedRequest(provider, body, dict(request.headers), step))
            self.counts[f"{provider}.{step.behaviour.value}"] += 1
            return await self._reply(request, provider, key, body, step)

        return chat

    def _step(self, provider: str, key: str, model: str) -> Step:
        if key != self._keys.get(provider, key):
            return Step(Behaviour.REFUSED_KEY)
        if model not in self._models.get(provider, (model,)):
            return Step(Behaviour.UNKNOWN_MODEL)
        return self.script.next(provider)

    async def _reply(
        self, request: web.Request, provider: str, key: str, body: dict[str, Any], step: Step
    ) -> web.StreamResponse:
        behaviour = step.behaviour
        if behaviour in _REFUSALS:
            return self._refuse(provider, key, body, step)
        if behaviour is Behaviour.RESET:
            return _cut(request)
        if behaviour is Behaviour.HANG:
            await self._stopping.wait()
            return web.Response(status=503)
        if behaviour is Behaviour.OK and step.argument:
            await asyncio.sleep(step.argument)
        content = json.dumps(_completion(provider, body, behaviour)).encode()
        if behaviour is Behaviour.HALF_BODY:
            content = content[: len(content) // 2]
        if behaviour is Behaviour.DRIP:
            return await self._drip(request, content, step.argument or _DEFAULT_DRIP_S)
        if behaviour in {Behaviour.CUT_OFF, Behaviour.MEGABYTE_CHUNKED}:
            return await _piecewise(request, content, is_cut=behaviour is Behaviour.CUT_OFF)
        return web.Response(body=content, content_type="application/json")

    def _refuse(
        self, provider: str, key: str, body: dict[str, Any], step: Step
    ) -> web.StreamResponse:
        status, code, message = _REFUSALS[step.behaviour]
        message = message.format(key=key, model=body.get("model"))
        error: dict[str, Any] = {"message": message, "type": code, "code": code, "param": None}
        if step.behaviour in {Behaviour.SCHEMA_FAILED, Behaviour.SCHEMA_MISSED}:
            error["failed_generation"] = reply_text(step.behaviour, body["messages"])
        wait_s = _DEFAULT_WAIT_S if step.argument is None else step.argument
        return web.json_response(
            {"error": error, "request_id": f"{provider}-1"},
            status=status,
            headers=_wait_headers(step.behaviour, wait_s),
        )

    async def _drip(
        self, request: web.Request, content: bytes, seconds: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        pause_s = seconds / len(content)
        for number in range(len(content)):
            await response.write(content[number : number + 1])
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                break
            except TimeoutError:
                continue
        return response

    def _models_of(self, provider: str) -> Any:
        async def models(_request: web.Request) -> web.Response:
            names = self._models.get(provider, USUAL_MODELS[provider])
            # The SDK of DashScope reads its own catalogue's shape, the others OpenAI's.
            native = {"models": [{"model": name} for name in names], "total": len(names)}
            listed = [
                {"id": name, "object": "model", "created": 0, "owned_by": ""} for name in names
            ]
            return web.json_response({"object": "list", "data": listed, "output": native})

        return models

    async def _set_script(self, request: web.Request) -> web.Response:
        try:
            self.set_script(await request.text())
        except ConfigError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"ok": True})

    async def _show_counts(self, _request: web.Request) -> web.Response:
        return web.json_response(dict(self.counts))


def _completion(provider: str, body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    messages = body["messages"]
    text: str | None = reply_text(behaviour, messages)
    if behaviour in {Behaviour.MEGABYTE, Behaviour.MEGABYTE_CHUNKED}:
        text = "x" * _MEGABYTE
    finish = {Behaviour.CONTENT_FILTER: "content_filter", Behaviour.TRUNCATED: "length"}
    if behaviour in {Behaviour.CONTENT_FILTER, Behaviour.EMPTY_TEXT}:
        text = None if behaviour is Behaviour.CONTENT_FILTER else ""
    prompt_tokens = sum(len(str(message.get("content"))) for message in messages) // 4
    completion_tokens = len(text or "") // 4
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": finish.get(behaviour, "stop"),
    }
    return {
        "id": f"{provider}-1",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [] if behaviour is Behaviour.EMPTY_CHOICES else [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _piecewise(request: web.Request, content: bytes, *, is_cut: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    if is_cut:
        response.content_length = len(content)
    await response.prepare(request)
    try:
        for start in range(0, len(content) // 2 if is_cut else len(content), 65_536):
            end = min(start + 65_536, len(content) // 2 if is_cut else len(content))
            await response.write(content[start:end])
    except ConnectionError:
        return response  # the client has had enough
    if is_cut:
        await asyncio.sleep(0)
        _cut(request)
    return response


def _wait_headers(behaviour: Behaviour, wait_s: float) -> dict[str, str]:
    if behaviour is Behaviour.RATE_LIMITED:
        return {"Retry-After": f"{wait_s:g}"}
    if behaviour is Behaviour.RATE_LIMITED_DATE:
        return {"Retry-After": formatdate(time.time() + wait_s, usegmt=True)}
    if behaviour is Behaviour.RATE_LIMITED_RESET:
        reset = f"{int(wait_s // 60)}m{wait_s % 60:g}s"
        return {
            "x-ratelimit-remaining-requests": "12",
            "x-ratelimit-reset-requests": "23h59m",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": reset,
        }
    return {}


_LIMIT = (429, "rate_limit_exceeded", "Rate limit reached for model {model}.")
_REFUSALS: dict[Behaviour, tuple[int, str, str]] = {
    Behaviour.RATE_LIMITED: _LIMIT,
    Behaviour.RATE_LIMITED_DATE: _LIMIT,
    Behaviour.RATE_LIMITED_RESET: _LIMIT,
    Behaviour.RATE_LIMITED_SILENT: _LIMIT,
    Behaviour.SERVER_ERROR: (500, "internal_server_error", "Internal error."),
    Behaviour.OVER_CAPACITY: (498, "capacity_exceeded", "Flex tier capacity exceeded."),
    Behaviour.REFUSED_KEY: (401, "invalid_api_key", "Incorrect API key provided: {key}."),
    Behaviour.UNKNOWN_MODEL: (404, "model_not_found", "The model `{model}` does not exist."),
    Behaviour.BAD_REQUEST: (400, "invalid_request_error", "Unsupported parameter."),
    Behaviour.SCHEMA_FAILED: (400, "json_validate_failed", "Failed to validate JSON."),
    Behaviour.SCHEMA_MISSED: (400, "json_validate_failed", "Failed to validate JSON."),
    Behaviour.CONTENT_REFUSED: (400, "data_inspection_failed", "Content was refused."),
}
