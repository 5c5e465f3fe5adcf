"""The three services behind their own SDKs, each imported only when its key is configured.

prompt → ``Completion``. Addresses come from the SDKs' own variables (``GROQ_BASE_URL``,
``DASHSCOPE_BASE_URL``, ``OPENAI_BASE_URL``) unless one is given. The SDKs' retries are off and their
time-outs out of the way: the router owns both. What they raise goes up as it is.
"""

from __future__ import annotations

import contextvars
import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from ai.bounded_reply import bound_replies
from ai.contract import (
    Capability,
    Completion,
    Message,
    Price,
    Provider,
    ReplyFormat,
    Secret,
    capability_of,
)

log = structlog.get_logger()

SDK_TIMEOUT_S = 120.0  # never the one that ends a call
_PLAIN = {"Accept-Encoding": "identity"}  # so that the bytes read are the bytes there are
_SCHEMA_NAME = "market_reading"
_MODEL_PAGES = 10


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One provider: its key, its models in order of preference, its address if not the usual one."""

    name: str
    key: Secret
    models: tuple[str, ...]
    base_url: str | None = None
    prices: Mapping[str, Price] = {}

    def __repr__(self) -> str:
        return f"ProviderSettings({self.name}, models={self.models})"


class GroqProvider:
    """https://console.groq.com/docs through the ``groq`` SDK."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.name = settings.name
        self._settings = settings
        self._client: Any = None

    def prepare(self) -> None:
        groq, httpx = importlib.import_module("groq"), importlib.import_module("httpx")
        self._client = groq.AsyncGroq(
            api_key=_key(self._settings),
            base_url=self._settings.base_url,
            max_retries=0,
            timeout=SDK_TIMEOUT_S,
            http_client=groq.DefaultAsyncHttpxClient(
                event_hooks={"response": [bound_replies(httpx)]}, headers=_PLAIN
            ),
        )
        _load_the_rest(self._client)

    async def complete(
        self, model: str, messages: tuple[Message, ...], schema: Mapping[str, object] | None
    ) -> Completion:
        capability = capability_of(model, self._settings.prices)
        request = _request(model, messages, schema, capability)
        if capability.reasoning_effort is not None:
            request["include_reasoning"] = False
        raw = await self._client.chat.completions.with_raw_response.create(**request)
        return read_completion(raw.http_response.content)

    async def models(self) -> list[str]:
        return [model.id for model in (await self._client.models.list()).data]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


class OpenAIProvider:
    """https://developers.openai.com through the ``openai`` SDK, or any server that speaks like it."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.name = settings.name
        self._settings = settings
        self._client: Any = None

    def prepare(self) -> None:
        openai, httpx2 = importlib.import_module("openai"), importlib.import_module("httpx2")
        self._client = openai.AsyncOpenAI(
            api_key=_key(self._settings),
            base_url=self._settings.base_url,
            max_retries=0,
            timeout=SDK_TIMEOUT_S,
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [bound_replies(httpx2)]}, headers=_PLAIN
            ),
        )
        _load_the_rest(self._client)

    async def complete(
        self, model: str, messages: tuple[Message, ...], schema: Mapping[str, object] | None
    ) -> Completion:
        capability = capability_of(model, self._settings.prices)
        request = _request(model, messages, schema, capability)
        raw = await self._client.chat.completions.with_raw_response.create(**request)
        return read_completion(raw.http_response.content)

    async def models(self) -> list[str]:
        return [model.id for model in (await self._client.models.list()).data]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


class DashScopeProvider:
    """https://www.alibabacloud.com/help/en/model-studio through the ``dashscope`` SDK, version 2."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.name = settings.name
        self._settings = settings
        self._client: Any = None

    def prepare(self) -> None:
        dashscope, httpx = importlib.import_module("dashscope"), importlib.import_module("httpx")
        with warnings.catch_warnings():
            # It advises a workspace of one's own; the shared gateway is what a bare key has.
            warnings.filterwarnings("ignore", message="no workspace configured")
            self._client = dashscope.AsyncClient(
                api_key=_key(self._settings),
                base_url=self._settings.base_url,
                protocol="openai",
                timeout=SDK_TIMEOUT_S,
                max_retries=0,
            )
        http_client = self._client.transport.http_client
        http_client.event_hooks = {"response": [bound_replies(httpx)]}
        http_client.headers.update(_PLAIN)
        _load_the_rest(self._client)

    async def complete(
        self, model: str, messages: tuple[Message, ...], schema: Mapping[str, object] | None
    ) -> Completion:
        capability = capability_of(model, self._settings.prices)
        request = _request(model, messages, schema, capability)
        request["max_tokens"] = request.pop("max_completion_tokens")
        reply = await self._client.chat.completions.create(enable_thinking=False, **request)
        choice = reply.choices[0] if reply.choices else None
        usage = reply.usage
        details = getattr(usage, "prompt_tokens_details", None)
        return Completion(
            text=None if choice is None else choice.message.content,
            finish_reason=None if choice is None else choice.finish_reason,
            has_choice=choice is not None,
            prompt_tokens=None if usage is None else usage.input_tokens,
            completion_tokens=None if usage is None else usage.output_tokens,
            cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        )

    async def models(self) -> list[str]:
        found: list[str] = []
        for page in range(1, _MODEL_PAGES + 1):
            listed = await self._client.models.list(page_no=page, page_size=100)
            found += [str(_model_name(model)) for model in listed.models]
            if not listed.models or len(found) >= listed.total_count:
                break
        return found

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


BUILDERS: Mapping[str, type[GroqProvider | DashScopeProvider | OpenAIProvider]] = {
    "groq": GroqProvider,
    "dashscope": DashScopeProvider,
    "openai": OpenAIProvider,
}


def build_provider(settings: ProviderSettings) -> Provider:
    """The provider of that name; imports nothing yet."""
    return BUILDERS[settings.name](settings)


def _load_the_rest(client: Any) -> None:
    """What an SDK would import at its first request, in the loop (20-40 ms); here in ``prepare``'s thread."""
    _ = client.chat.completions
    anyio = importlib.import_module("anyio")
    try:  # its side of asyncio; a thread's context says that a loop is running where the caller's does
        contextvars.Context().run(anyio.run, anyio.sleep, 0)
    except Exception as error:  # noqa: BLE001 - then the first request loads it
        log.debug("ai.not_loaded_ahead", error=str(error))


def is_sendable(key: Secret) -> bool:
    """Whether a key can be put into a header at all (printable ASCII without spaces)."""
    text = key.get_secret_value().strip()
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def read_completion(body: bytes) -> Completion:
    """An OpenAI-style chat completion, as far as it is one.

    Raises:
        msgspec.DecodeError: the body is no JSON object with ``choices``.
    """
    reply = msgspec.json.decode(body, type=_WireReply)
    choice = reply.choices[0] if reply.choices else None
    usage = reply.usage
    details = None if usage is None else usage.prompt_tokens_details
    message = None if choice is None else choice.message
    return Completion(
        text=None if message is None else message.content,
        finish_reason=None if choice is None else choice.finish_reason,
        has_choice=choice is not None,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        cached_tokens=0 if details is None else details.cached_tokens or 0,
    )


class _WireDetails(msgspec.Struct):
    cached_tokens: int | None = 0


class _WireUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _WireDetails | None = None


class _WireMessage(msgspec.Struct):
    content: str | None = None


class _WireChoice(msgspec.Struct):
    message: _WireMessage | None = None
    finish_reason: str | None = None


class _WireReply(msgspec.Struct):
    choices: list[_WireChoice] | None
    usage: _WireUsage | None = None


def _request(
    model: str,
    messages: tuple[Message, ...],
    schema: Mapping[str, object] | None,
    capability: Capability,
) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "max_completion_tokens": capability.max_output_tokens,
    }
    if schema is not None:
        request["response_format"] = _response_format(schema, capability.reply_format)
    if capability.temperature is not None:
        request["temperature"] = capability.temperature
    if capability.reasoning_effort is not None:
        request["reasoning_effort"] = capability.reasoning_effort
    return request


def _response_format(schema: Mapping[str, object], form: ReplyFormat) -> dict[str, object]:
    if form is ReplyFormat.JSON_OBJECT:
        return {"type": "json_object"}
    wanted = {"name": _SCHEMA_NAME, "strict": True, "schema": dict(schema)}
    return {"type": "json_schema", "json_schema": wanted}


def _key(settings: ProviderSettings) -> str:
    return settings.key.get_secret_value().strip()


def _model_name(model: Any) -> object:
    return getattr(model, "model", None) or getattr(model, "id", None) or ""


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
