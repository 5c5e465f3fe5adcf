"""What an exception of an SDK means: pure, and without importing any SDK.

exception → ``Failure``. The three SDKs name their exceptions alike and carry ``status_code``,
``body`` and headers; what lies beneath (httpx) is found along the chain of causes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from ai.bounded_reply import ReplyTooLarge
from ai.contract import Failure, Outcome

LONGEST_WAIT_S = 86_400.0
_ERROR_CHARS = 300
_HIDDEN = "***"
SHORTEST_SECRET = 6  # the "key" of a local server may be a word or a digit
_LOOKS_SECRET = re.compile(r"(?i)\b(?:sk|gsk)[-_][\w*\-]{6,}|\bbearer\s+\S+")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|s|m|h|d)")
_TRY_AGAIN = re.compile(r"(?i)try again in ((?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86_400}

_MODEL_CODES = {
    *("model_not_found", "model_decommissioned", "model_not_active", "model.notexist"),
    *("modelnotfound", "model_not_supported", "invalid_model"),
    *("model_permission_blocked_org", "model_permission_blocked_project"),
}
_FILTER_CODES = {
    *("content_filter", "content_policy_violation", "datainspectionfailed"),
    "data_inspection_failed",
}
_BY_NAME = {
    "ContentFilterError": Outcome.CONTENT_FILTERED,
    "RateLimitError": Outcome.RATE_LIMITED,
    "AuthenticationError": Outcome.UNAUTHORIZED,
    "PermissionDeniedError": Outcome.UNAUTHORIZED,
    "NotFoundError": Outcome.UNKNOWN_MODEL,
    "ServiceUnavailableError": Outcome.SERVER_ERROR,
    "GatewayTimeoutError": Outcome.SERVER_ERROR,
    "InternalServerError": Outcome.SERVER_ERROR,
}
_RESET_NAMES = {"ReadError", "WriteError", "RemoteProtocolError", "CloseError"}


def classify(error: BaseException, secrets: Iterable[str] = (), now_s: float = 0.0) -> Failure:
    """Understand what an SDK raised.

    Args:
        error: The exception.
        secrets: Texts that must not appear in ``Failure.error``.
        now_s: Wall clock, s; only used where a reply gives a date to wait for but no ``Date``.
    """
    body = _body(error)
    codes = {str(body.get(key) or "").lower() for key in ("code", "type")}
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) else None
    outcome = _outcome(error, status, codes)
    wait_s = None
    if outcome is Outcome.RATE_LIMITED:
        wait_s = retry_after_s(_headers(error), str(body.get("message") or ""), now_s)
    generation = body.get("failed_generation")
    return Failure(
        outcome=outcome,
        error=redact(f"{type(error).__name__}: {_message(error, body)}", secrets)[:_ERROR_CHARS],
        status=status,
        retry_after_s=wait_s,
        generation=generation if isinstance(generation, str) else None,
    )


def _outcome(error: BaseException, status: int | None, codes: set[str]) -> Outcome:
    chain = list(_chain(error))
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if any(isinstance(link, ReplyTooLarge) for link in chain):
        return Outcome.REPLY_TOO_LARGE
    if "TimeoutError" in names or "TimeoutException" in names or status == 408:
        return Outcome.TIMEOUT
    if codes & _MODEL_CODES:
        return Outcome.UNKNOWN_MODEL
    if codes & _FILTER_CODES:
        return Outcome.CONTENT_FILTERED
    if "json_validate_failed" in codes:
        return Outcome.SCHEMA_FAILED
    if status == 429 or "rate_limit_exceeded" in codes:
        return Outcome.RATE_LIMITED
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_NAME:
            return _BY_NAME[kind.__name__]
    if status is not None and status != 200:
        return _of_status(status)
    if names & _RESET_NAMES or "ConnectionResetError" in names:
        return Outcome.CONNECTION_RESET
    if "APIConnectionError" in names or "TransportError" in names or "OSError" in names:
        return Outcome.NOT_CONNECTED
    is_body = names & {"JSONDecodeError", "ValidationError", "DecodeError", "DecodingError"}
    return Outcome.BROKEN_BODY if is_body or "UnicodeDecodeError" in names else Outcome.FAILED


def _of_status(status: int) -> Outcome:
    if status in {401, 402, 403}:
        return Outcome.UNAUTHORIZED
    if status == 404:
        return Outcome.UNKNOWN_MODEL
    # 498 is Groq's "flex tier capacity exceeded": https://console.groq.com/docs/errors
    return Outcome.SERVER_ERROR if status >= 500 or status == 498 else Outcome.BAD_REQUEST


def retry_after_s(headers: Mapping[str, str], message: str, now_s: float) -> float | None:
    """How long a provider that refused asks us to stay away, s; None where it does not say.

    Reads ``retry-after-ms``, ``retry-after`` (seconds, a duration such as ``2m59.56s``, or a date,
    taken against the reply's own ``Date``), then the ``x-ratelimit-reset-*`` of what is used up
    (Groq, OpenAI), then "try again in 7.66s" of the message. Never negative, at most a day.
    """
    lowered = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    found = _seconds(lowered.get("retry-after-ms", ""))
    if found is not None:
        return _bounded(found / 1_000)
    text = lowered.get("retry-after", "")
    found = _seconds(text)
    found = _duration(text) if found is None else found
    found = _until(text, lowered.get("date", ""), now_s) if found is None else found
    if found is None:
        found = _reset(lowered)
    if found is None and (match := _TRY_AGAIN.search(message)):
        found = _duration(match[1])
    return None if found is None else _bounded(found)


def _reset(headers: Mapping[str, str]) -> float | None:
    waits = []
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}") == "0":
            text = headers.get(f"x-ratelimit-reset-{what}", "")
            waits += [w for w in (_duration(text), _seconds(text)) if w is not None][:1]
    return max(waits, default=None)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _duration(text: str) -> float | None:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _until(text: str, date: str, now_s: float) -> float | None:
    until_s = _date_s(text)
    if until_s is None:
        return None
    sent_s = _date_s(date)
    return until_s - (now_s if sent_s is None else sent_s)


def _date_s(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` on one line, without the given secrets nor anything that looks like a key."""
    return " ".join(_LOOKS_SECRET.sub(_HIDDEN, hide(text, secrets)).split())


def hide(text: str, secrets: Iterable[str]) -> str:
    """``text`` without the given secrets, in plain or JSON spelling."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN).replace(json.dumps(secret)[1:-1], _HIDDEN)
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _body(error: BaseException) -> dict[str, Any]:
    """The error object in the reply, however deep the SDK or the provider put it."""
    body = getattr(error, "body", None)
    if not isinstance(body, dict):
        body = {}
    inner = body.get("error")
    found = dict(inner) if isinstance(inner, dict) else dict(body)
    code = getattr(error, "code", None)
    if isinstance(code, str) and not found.get("code"):
        found["code"] = code
    return found


def _message(error: BaseException, body: Mapping[str, Any]) -> str:
    text = body.get("message")
    if isinstance(text, str) and text:
        return text
    cause = [str(link) for link in _chain(error) if str(link)]
    return cause[-1] if cause else ""


def _headers(error: BaseException) -> Mapping[str, str]:
    headers = getattr(error, "headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    return headers if isinstance(headers, Mapping) else {}
