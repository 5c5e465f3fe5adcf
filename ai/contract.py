"""What a provider is, how an attempt can end, and what each model is able to do.

Consumes nothing; produces the values that the router, the providers and the journal exchange.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

import msgspec


class Secret(Protocol):
    """A key that never shows itself; pydantic's ``SecretStr`` fits."""

    def get_secret_value(self) -> str: ...


class Outcome(enum.StrEnum):
    """How one attempt ended, or why none was made; counted, journalled, never guessed."""

    ANSWERED = "answered"
    # the provider did not give a reply
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"  # nothing came within the deadline
    SLOW_REPLY = "slow_reply"  # a reply had begun and was still dripping in at the deadline
    NOT_CONNECTED = "not_connected"
    CONNECTION_RESET = "connection_reset"
    SERVER_ERROR = "server_error"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_MODEL = "unknown_model"
    BAD_REQUEST = "bad_request"
    SCHEMA_FAILED = "schema_failed"  # the provider could not keep to its own schema
    BROKEN_BODY = "broken_body"  # the HTTP body is no chat completion
    REPLY_TOO_LARGE = "reply_too_large"
    FAILED = "failed"  # anything the SDK raised that is none of the above
    CANCELLED = "cancelled"  # by us: the run stops
    # a reply came and cannot be used
    CONTENT_FILTERED = "content_filtered"
    EMPTY_REPLY = "empty_reply"
    TRUNCATED = "truncated"
    NOT_JSON = "not_json"
    WRONG_SHAPE = "wrong_shape"
    OUT_OF_RANGE = "out_of_range"
    CONTRADICTORY = "contradictory"
    INVENTED_NUMBER = "invented_number"
    WRONG_LEVEL = "wrong_level"  # invalidation on the wrong side of the price, or far from it
    # nobody was asked
    NO_KEY = "no_key"
    BAD_KEY = "bad_key"  # not printable: it could not even be sent
    SDK_MISSING = "sdk_missing"
    DISABLED = "disabled"  # refused key or unknown model, until restart
    BREAKER_OPEN = "breaker_open"
    WAITING = "waiting"  # until the time the provider asked for
    PROBING = "probing"  # another question is already the probe of a half-open breaker
    BUDGET_SPENT = "budget_spent"
    NO_TIME = "no_time"
    # noted beside the attempts
    CLOCK_JUMP = "clock_jump"


NO_ANSWER = frozenset(
    {
        *(Outcome.TIMEOUT, Outcome.SLOW_REPLY, Outcome.NOT_CONNECTED, Outcome.CONNECTION_RESET),
        *(Outcome.SERVER_ERROR, Outcome.BROKEN_BODY, Outcome.REPLY_TOO_LARGE, Outcome.FAILED),
    }
)
"""Failures of the provider: they count towards its breaker."""

REPAIRABLE = frozenset(
    {
        *(Outcome.CONTENT_FILTERED, Outcome.EMPTY_REPLY, Outcome.TRUNCATED, Outcome.NOT_JSON),
        *(Outcome.WRONG_SHAPE, Outcome.OUT_OF_RANGE, Outcome.CONTRADICTORY),
        *(Outcome.INVENTED_NUMBER, Outcome.WRONG_LEVEL, Outcome.SCHEMA_FAILED),
    }
)
"""The provider works, its reply does not: it is told why, once."""

MAY_BE_CHARGED = frozenset(
    {
        *(Outcome.TIMEOUT, Outcome.SLOW_REPLY, Outcome.CONNECTION_RESET, Outcome.CANCELLED),
        *(Outcome.BROKEN_BODY, Outcome.REPLY_TOO_LARGE, Outcome.FAILED, Outcome.SCHEMA_FAILED),
    }
)
"""The request was sent and the usage is unknown: the ledger keeps the whole reservation."""


class Price(msgspec.Struct, frozen=True):
    """US dollars per million tokens. ``cached_input`` None: cached tokens cost like others."""

    input: float
    output: float
    cached_input: float | None = None


class ReplyFormat(enum.StrEnum):
    """How far a model can be held to the reply's shape."""

    STRICT_SCHEMA = "strict_schema"
    JSON_OBJECT = "json_object"


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes. ``max_output_tokens`` bounds its reply, hidden reasoning included."""

    reply_format: ReplyFormat = ReplyFormat.JSON_OBJECT
    max_output_tokens: int = 900
    price: Price | None = None
    temperature: float | None = 0.0
    reasoning_effort: str | None = None


_GPT_OSS_TOKENS = 1_600  # it reasons before it answers, at low effort some hundred tokens

CAPABILITIES: Mapping[str, Capability] = {
    # https://console.groq.com/docs/structured-outputs, https://console.groq.com/docs/models;
    # cached input at half price: https://console.groq.com/docs/prompt-caching
    "openai/gpt-oss-120b": Capability(
        reply_format=ReplyFormat.STRICT_SCHEMA,
        max_output_tokens=_GPT_OSS_TOKENS,
        price=Price(0.15, 0.60, 0.075),
        reasoning_effort="low",
    ),
    "openai/gpt-oss-20b": Capability(
        reply_format=ReplyFormat.STRICT_SCHEMA,
        max_output_tokens=_GPT_OSS_TOKENS,
        price=Price(0.075, 0.30, 0.0375),
        reasoning_effort="low",
    ),
    # JSON mode only; the international price, the highest of the regions:
    # https://www.alibabacloud.com/help/en/model-studio/models
    "qwen-plus": Capability(price=Price(0.40, 1.20)),
    # https://developers.openai.com/api/docs/models/gpt-6-luna
    "gpt-6-luna": Capability(
        reply_format=ReplyFormat.STRICT_SCHEMA,
        price=Price(0.10, 0.50, 0.01),
        temperature=None,
        reasoning_effort="none",
    ),
}
"""Known models. Any other one is asked for a JSON object and has no known price."""

CAUTIOUS_PRICE = Price(5.0, 30.0)
"""Stands in for an unknown price where dollars are budgeted; a signal's cost stays unknown."""


def capability_of(model: str, prices: Mapping[str, Price]) -> Capability:
    """A model's capabilities; a configured price replaces the known one."""
    known = CAPABILITIES.get(model, Capability())
    return msgspec.structs.replace(known, price=prices[model]) if model in prices else known


class Message(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: str  # system | user | assistant
    content: str


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider replied, in one shape. Token counts are None where it reports none."""

    text: str | None
    finish_reason: str | None
    has_choice: bool
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An exception, understood.

    Attributes:
        outcome: What it means.
        error: One short line without secrets.
        status: HTTP status, where there was one.
        retry_after_s: Seconds the provider asked us to stay away.
        generation: What the model wrote although it missed the schema.
    """

    outcome: Outcome
    error: str
    status: int | None = None
    retry_after_s: float | None = None
    generation: str | None = None


class Provider(Protocol):
    """One service that answers prompts."""

    name: str

    def prepare(self) -> None:
        """Import the SDK and build its client. Blocks for up to a second: call it in a thread."""

    async def complete(
        self, model: str, messages: tuple[Message, ...], schema: Mapping[str, object] | None
    ) -> Completion:
        """Ask once; no retries. Raises whatever the SDK raises; ``classify`` understands it."""

    async def models(self) -> list[str]:
        """Names of the models this key may use."""

    async def close(self) -> None:
        """Close the connections."""
