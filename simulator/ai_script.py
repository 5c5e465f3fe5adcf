"""What the local AI server does with each request: a script per provider.

Text such as ``groq=ok*3,rate_limited:30;dashscope=ok`` → ``Script``, which gives one ``Step`` per request;
the last step of a provider goes on for ever, and a provider without steps answers well.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

import msgspec

from domain.errors import ConfigError

PROVIDERS = ("groq", "dashscope", "openai")


class Behaviour(enum.StrEnum):
    """What can happen to a request. An argument is seconds where it makes sense."""

    OK = "ok"  # a good reply; argument: after so long
    FENCED = "fenced"  # a good reply in a Markdown fence
    RATE_LIMITED = "rate_limited"  # 429, Retry-After in seconds (default 30)
    RATE_LIMITED_DATE = "rate_limited_date"  # ... as a date
    RATE_LIMITED_RESET = "rate_limited_reset"  # ... as x-ratelimit-reset-tokens only
    RATE_LIMITED_SILENT = "rate_limited_silent"  # 429 and nothing else
    SERVER_ERROR = "server_error"  # 500
    OVER_CAPACITY = "over_capacity"  # 498
    HANG = "hang"  # no reply at all
    DRIP = "drip"  # a good reply, byte by byte over so long (default 60)
    RESET = "reset"  # the connection is cut before a reply
    CUT_OFF = "cut_off"  # ... in the middle of one
    HALF_BODY = "half_body"  # the HTTP body is half a JSON object
    MEGABYTE = "megabyte"  # a reply of a megabyte, announced
    MEGABYTE_CHUNKED = "megabyte_chunked"  # ... not announced
    REFUSED_KEY = "refused_key"  # 401 that repeats the key
    UNKNOWN_MODEL = "unknown_model"  # 404
    BAD_REQUEST = "bad_request"  # 400
    SCHEMA_FAILED = "schema_failed"  # 400 json_validate_failed, half a reply in it
    SCHEMA_MISSED = "schema_missed"  # 400 json_validate_failed, a good reply in it
    CONTENT_REFUSED = "content_refused"  # 400 of a content filter
    CONTENT_FILTER = "content_filter"  # a reply ended by a content filter
    EMPTY_CHOICES = "empty_choices"
    EMPTY_TEXT = "empty_text"
    TRUNCATED = "truncated"  # ended by the token limit
    PROSE = "prose"  # no JSON at all
    HALF_JSON = "half_json"
    WRONG_SHAPE = "wrong_shape"
    CONFIDENCE_7 = "confidence_7"
    CONTRADICTORY = "contradictory"
    INVENTED_FEATURE = "invented_feature"
    INVENTED_VALUE = "invented_value"
    INVENTED_PROSE = "invented_prose"
    WRONG_LEVEL = "wrong_level"


class Step(msgspec.Struct, frozen=True):
    """One behaviour and its argument."""

    behaviour: Behaviour
    argument: float | None = None


class Script:
    """The steps that are still to come, by provider."""

    def __init__(self, steps: dict[str, list[Step]] | None = None) -> None:
        self._steps = {name: list(some) for name, some in (steps or {}).items()}

    def set(self, provider: str, steps: Iterable[Step]) -> None:
        """Replace what a provider will do."""
        self._steps[provider] = list(steps)

    def next(self, provider: str) -> Step:
        """What to do with the next request."""
        steps = self._steps.get(provider)
        if not steps:
            return Step(Behaviour.OK)
        return steps.pop(0) if len(steps) > 1 else steps[0]


def parse_script(text: str) -> dict[str, list[Step]]:
    """Read ``PROVIDER=BEHAVIOUR[:SECONDS][*TIMES],...;...``.

    Raises:
        ConfigError: A provider, behaviour or number is not one; the message names it.
    """
    found: dict[str, list[Step]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        provider, _, steps = part.partition("=")
        if provider.strip() not in PROVIDERS:
            raise ConfigError(f"ai script: {provider!r} is none of {', '.join(PROVIDERS)}")
        found[provider.strip()] = [
            step for item in steps.split(",") if item.strip() for step in _steps(item.strip())
        ]
    return found


def _steps(item: str) -> list[Step]:
    rest, _, times = item.partition("*")
    name, _, argument = rest.partition(":")
    try:
        behaviour = Behaviour(name)
    except ValueError:
        known = ", ".join(Behaviour)
        raise ConfigError(f"ai script: unknown behaviour {name!r}; there are {known}") from None
    try:
        seconds = float(argument) if argument else None
        count = int(times) if times else 1
    except ValueError:
        raise ConfigError(f"ai script: {item!r} holds something that is no number") from None
    if count < 1 or count > 10_000 or (seconds is not None and not 0 <= seconds < math.inf):
        raise ConfigError(f"ai script: {item!r} holds a number out of range")
    return [Step(behaviour, seconds)] * count
