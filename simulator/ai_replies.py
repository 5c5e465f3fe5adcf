"""The texts of the local AI server: good readings of the numbers it is shown, and bad ones.

A chat request's messages → the text of a reply; pure, so the same prompt gets the same reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator.ai_script import Behaviour

_SIGNS = ("net_flow_quote_z", "book_imbalance", "return_1m_bps", "ofi_z", "flow_imbalance")
_SIGNS_OF_DAY = ("trend_1h", "trend_4h", "trend_1d")
_MOST_EVIDENCE = 3


def shown_data(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the prompt: the last message that is a JSON object."""
    for message in reversed(messages):
        try:
            data = json.loads(message.get("content") or "")
        except (ValueError, TypeError):
            continue
        if isinstance(data, dict):
            return data
    return {}


def good_reply(data: Mapping[str, Any]) -> dict[str, Any]:
    """A reading that holds: the sign of flow and book decides."""
    known = [name for name in (*_SIGNS, *_SIGNS_OF_DAY) if isinstance(data.get(name), int | float)]
    lead = sum((data[name] > 0) - (data[name] < 0) for name in known)
    price = float(data.get("price", 1.0))
    action = "HOLD" if lead == 0 else "BUY" if lead > 0 else "SELL"
    side = {"BUY": -1, "SELL": 1, "HOLD": 0}[action]
    evidence = [{"feature": name, "value": data[name]} for name in known[:_MOST_EVIDENCE]]
    return {
        "action": action,
        "confidence": 0.4 if action == "HOLD" else 0.55,
        "p_up": {"BUY": 0.5, "SELL": 0.2, "HOLD": 0.3}[action],
        "p_flat": {"BUY": 0.3, "SELL": 0.3, "HOLD": 0.4}[action],
        "p_down": {"BUY": 0.2, "SELL": 0.5, "HOLD": 0.3}[action],
        "horizon_s": data.get("horizon_s", 120),
        "rationale": "Flow and book lean the same way." if side else "Flow and book disagree.",
        "evidence": evidence or [{"feature": "price", "value": data.get("price", 1.0)}],
        "invalidation": round(price * (1 + 0.002 * side), 8) if side else None,
    }


def reply_text(behaviour: Behaviour, messages: Sequence[Mapping[str, Any]]) -> str:
    """What the model says under this behaviour."""
    data = shown_data(messages)
    reply = good_reply(data)
    spoil = _SPOILED.get(behaviour)
    text = json.dumps(spoil(reply, data) if spoil else reply)
    if behaviour is Behaviour.FENCED:
        return f"```json\n{text}\n```"
    if behaviour is Behaviour.PROSE:
        return "I would buy here, but please do your own research."
    return text[: len(text) // 2] if behaviour in _HALVES else text


def _directed(reply: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    price = float(data.get("price", 1.0))
    return reply | {
        "action": "BUY",
        "p_up": 0.5,
        "p_flat": 0.3,
        "p_down": 0.2,
        "invalidation": round(price * 0.998, 8),
    }


def _wrong_level(reply: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    price = float(data.get("price", 1.0))
    return _directed(reply, data) | {"invalidation": round(price * 1.002, 8)}


def _wrong_value(reply: dict[str, Any], _data: Mapping[str, Any]) -> dict[str, Any]:
    first, *rest = reply["evidence"]
    return reply | {"evidence": [first | {"value": first["value"] * 3 + 17.25}, *rest]}


type _Spoil = Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]]

_HALVES = {Behaviour.HALF_JSON, Behaviour.SCHEMA_FAILED, Behaviour.TRUNCATED}
_SPOILED: Mapping[Behaviour, _Spoil] = {
    Behaviour.WRONG_SHAPE: lambda reply, _: {"signal": reply["action"], "why": "it looks good"},
    Behaviour.CONFIDENCE_7: lambda reply, _: reply | {"confidence": 7},
    Behaviour.CONTRADICTORY: lambda reply, data: (
        _directed(reply, data) | {"p_up": 0.1, "p_down": 0.6}
    ),
    Behaviour.INVENTED_FEATURE: lambda reply, _: (
        reply | {"evidence": [{"feature": "rsi_14", "value": 71.3}]}
    ),
    Behaviour.INVENTED_VALUE: _wrong_value,
    Behaviour.INVENTED_PROSE: lambda reply, _: (
        reply | {"rationale": "Open interest rose by 48213 contracts."}
    ),
    Behaviour.WRONG_LEVEL: _wrong_level,
}
