"""What a model said, checked: shape, ranges, and every number it cites against what it was shown.

reply text + ``Prompt`` → ``Reading``, or ``Rejected`` with the outcome and a reason that can be told to
the model. A cited number may be shortened, never invented.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import floor, isfinite, log10
from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from ai.contract import Completion, Outcome
from ai.prompt import MAX_EVIDENCE, MAX_RATIONALE_CHARS, Limits, Prompt
from domain.events import Action

MAX_REPLY_CHARS = 16_384
_SUM_TOLERANCE = 0.02
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_CONTROL = re.compile(r"[^\S ]+|[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+")
_NAME = re.compile(r"[A-Za-z]+[A-Za-z0-9]*(?:_[A-Za-z0-9]+)+|\b[rs][1-3]\b", re.IGNORECASE)
_SPAN = re.compile(
    r"\b\d+(?:\.\d+)?[\s-]?(?:ms|seconds?|secs?|minutes?|mins?|hours?|[smh]|levels?)\b"
)
_NUMBER = re.compile(r"(?<![\w.])[-−+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LARGEST_PLAIN_COUNT = 5  # "two of the 3 signs"
_FILTERED_REASONS = {"content_filter", "sensitive"}


class EvidenceItem(BaseModel):
    """One cited number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    feature: str
    value: float


class Reply(BaseModel):
    """The reply's shape. No defaults and no extras: exactly what strict JSON schemas can say."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    action: Literal["BUY", "SELL", "HOLD"]
    confidence: float
    p_up: float
    p_flat: float
    p_down: float
    horizon_s: int
    rationale: str
    evidence: list[EvidenceItem]
    invalidation: float | None


REPLY_SCHEMA: Mapping[str, object] = Reply.model_json_schema()
"""What the providers are held to, where they can be."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that holds."""

    action: Action
    confidence: float
    p_up: float
    p_flat: float
    p_down: float
    horizon_s: int
    rationale: str
    evidence: dict[str, float | None]
    invalidation: float | None


class Rejected(msgspec.Struct, frozen=True):
    """A reply that does not, and why; ``reason`` holds no text of the reply."""

    outcome: Outcome
    reason: str


def read_reply(completion: Completion, prompt: Prompt) -> Reading | Rejected:
    """Check a completion against the question."""
    reason = completion.finish_reason
    if reason in _FILTERED_REASONS:
        return Rejected(Outcome.CONTENT_FILTERED, "the content filter withheld it")
    if not completion.has_choice:
        return Rejected(Outcome.EMPTY_REPLY, "there was none")
    if completion.text is None or not completion.text.strip():
        return Rejected(Outcome.EMPTY_REPLY, "it was empty")
    if reason == "length":
        return Rejected(Outcome.TRUNCATED, "it was longer than allowed; be brief")
    return check_text(completion.text, prompt)


def check_text(text: str, prompt: Prompt) -> Reading | Rejected:
    """Check the text of a reply against the question."""
    if len(text) > MAX_REPLY_CHARS:
        return Rejected(Outcome.WRONG_SHAPE, "it is too long")
    fenced = _FENCE.match(text)
    try:
        reply = Reply.model_validate_json(fenced[1] if fenced else text)
    except ValidationError as error:
        return _misshapen(error)
    return (
        _out_of_range(reply, prompt.limits)
        or _contradiction(reply)
        or _invented(reply, prompt)
        or _wrong_level(reply, prompt)
        or _reading(reply)
    )


def _misshapen(error: ValidationError) -> Rejected:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Rejected(Outcome.NOT_JSON, "it is not valid JSON")
    known = [str(part) for part in first["loc"] if part in Reply.model_fields or part == "value"]
    where = ".".join(known) or "an unknown field"
    problem = {"missing": "is missing", "extra_forbidden": "is not allowed"}.get(first["type"])
    return Rejected(Outcome.WRONG_SHAPE, f"{where} {problem or 'has the wrong type'}")


def _out_of_range(reply: Reply, limits: Limits) -> Rejected | None:
    shares = {
        "confidence": reply.confidence,
        "p_up": reply.p_up,
        "p_flat": reply.p_flat,
        "p_down": reply.p_down,
    }
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            return Rejected(Outcome.OUT_OF_RANGE, f"{name} is not between 0 and 1")
    if not limits.shortest_horizon_s <= reply.horizon_s <= limits.longest_horizon_s:
        bounds = f"{limits.shortest_horizon_s} and {limits.longest_horizon_s}"
        return Rejected(Outcome.OUT_OF_RANGE, f"horizon_s is not between {bounds}")
    if not 1 <= len(reply.evidence) <= MAX_EVIDENCE:
        return Rejected(Outcome.OUT_OF_RANGE, f"evidence needs 1 to {MAX_EVIDENCE} numbers")
    if not reply.rationale.strip() or len(reply.rationale) > MAX_RATIONALE_CHARS:
        return Rejected(Outcome.OUT_OF_RANGE, "rationale is empty or too long")
    return None


def _contradiction(reply: Reply) -> Rejected | None:
    if abs(reply.p_up + reply.p_flat + reply.p_down - 1.0) > _SUM_TOLERANCE:
        return Rejected(Outcome.CONTRADICTORY, "the probabilities do not sum to 1")
    lead = reply.p_up - reply.p_down
    if (reply.action == "BUY" and lead < 0.0) or (reply.action == "SELL" and lead > 0.0):
        return Rejected(Outcome.CONTRADICTORY, "the action is against the probabilities")
    return None


def _invented(reply: Reply, prompt: Prompt) -> Rejected | None:
    for item in reply.evidence:
        shown = prompt.shown.get(item.feature)
        if shown is None:
            return Rejected(Outcome.INVENTED_NUMBER, "evidence names a feature not in the data")
        if not is_citation(item.value, shown):
            reason = f"evidence gives a value for {item.feature} that is not in the data"
            return Rejected(Outcome.INVENTED_NUMBER, reason)
    own = [reply.confidence, reply.p_up, reply.p_flat, reply.p_down, reply.horizon_s]
    own += [] if reply.invalidation is None else [reply.invalidation]
    if not _cites_only(reply.rationale, [*prompt.shown.values(), *own]):
        return Rejected(Outcome.INVENTED_NUMBER, "rationale holds a number not in the data")
    return None


def is_citation(cited: float, shown: float) -> bool:
    """Whether ``cited`` is ``shown``, or shortened: its last digits rounded or cut off.

    Two digits may go, of four; of numbers from a thousand on, prices above all, only one.
    """
    if not isfinite(cited) or (cited > 0) != (shown > 0):
        return cited == shown
    size, claim = abs(shown), abs(cited)
    if size == 0.0 or abs(claim - size) <= 1e-9 * size:
        return claim == size or size > 0.0
    text = f"{size:.10g}".split("e")[0].replace(".", "")
    digits = len(text if size >= 1_000 else text.strip("0"))
    for kept in range(max(2, digits - (1 if size >= 1_000 else 2)), digits):
        step = 10.0 ** (floor(log10(size)) + 1 - kept)
        for value in (floor(size / step + 0.5 + 1e-9) * step, floor(size / step + 1e-9) * step):
            if abs(claim - value) <= 1e-9 * size:
                return True
    return False


def _cites_only(text: str, known: Iterable[float]) -> bool:
    """Whether every number in a sentence is known, in either sign, or as a percentage of one."""
    numbers = list(known)
    bare = _SPAN.sub(" ", _NAME.sub(" ", text))
    for found in _NUMBER.findall(bare):
        cited = abs(float(found.replace(",", "").replace("−", "-")))
        if cited <= _LARGEST_PLAIN_COUNT and cited.is_integer():
            continue
        if not any(is_citation(cited, abs(n)) or is_citation(cited, abs(n) * 100) for n in numbers):
            return False
    return True


def _wrong_level(reply: Reply, prompt: Prompt) -> Rejected | None:
    level, price = reply.invalidation, prompt.price
    if reply.action == "HOLD":
        return None
    if level is None:
        return Rejected(Outcome.WRONG_LEVEL, "invalidation is missing")
    if abs(level - price) > prompt.limits.max_invalidation_ratio * price:
        return Rejected(Outcome.WRONG_LEVEL, "invalidation is too far from the price")
    if (level < price) != (reply.action == "BUY") or level == price:
        side = "below" if reply.action == "BUY" else "above"
        return Rejected(Outcome.WRONG_LEVEL, f"invalidation must be {side} the price")
    return None


def _reading(reply: Reply) -> Reading:
    total = reply.p_up + reply.p_flat + reply.p_down
    return Reading(
        action=Action(reply.action),
        confidence=reply.confidence,
        p_up=reply.p_up / total,
        p_flat=reply.p_flat / total,
        p_down=reply.p_down / total,
        horizon_s=reply.horizon_s,
        rationale=" ".join(_CONTROL.sub(" ", reply.rationale).split()),
        evidence={item.feature: item.value for item in reply.evidence},
        invalidation=None if reply.action == "HOLD" else reply.invalidation,
    )
