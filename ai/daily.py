"""The question about a whole day: what the daily rules read from curated bars, for a model to judge.

The rules' ``Signal`` of one symbol → ``Prompt``; pure. The model is shown the readings, not what the
rules made of them: its answer stands beside theirs and is scored like it.
"""

from __future__ import annotations

from math import isfinite

import msgspec

from ai.contract import Message
from ai.prompt import (
    MAX_EVIDENCE,
    SYMBOL,
    UNNAMED,
    Limits,
    Prompt,
    Template,
    digest,
    estimate_tokens,
    rounded,
)
from domain.events import Signal

DAILY_VERSION = "daily-flow-1"
"""Changes with every change of ``DAILY_SYSTEM`` or of what is shown."""

_DAY_S = 86_400
_LIMITS = Limits(shortest_horizon_s=_DAY_S, longest_horizon_s=_DAY_S, max_invalidation_ratio=0.25)
_PRICES = ("price", "pivot", "support", "resistance", "atr_day")

DAILY_SYSTEM = f"""\
You judge one cryptocurrency market for the day to come. The next message is a JSON object: readings of \
closed candles of one hour, four hours and one day. Nothing later is known to anyone.

Units. price, pivot (of the previous day), support, resistance and atr_day (average true range of a \
day) are in quote currency; trend_* is the drift over one day (1h), one week (4h) and twenty days (1d) \
in standard deviations; volatility (30 days) and volatility_day (the last day) are annualised; damping \
is the first over the second, at most 1. What is unknown is left out.

Reply with one JSON object and nothing else:
{{"action": "BUY" or "SELL" or "HOLD", "confidence": number, "p_up": number, "p_flat": number, \
"p_down": number, "horizon_s": {_DAY_S}, "rationale": string, "evidence": [{{"feature": string, \
"value": number}}], "invalidation": number or null}}

Rules.
- p_up, p_flat, p_down: probabilities over one day, sum 1. Flat means a move of less than half of what \
is typical for a day.
- confidence: 0 to 1, that the action is right. BUY only if p_up is above p_down, SELL only if p_down is \
above p_up. Where the evidence is weak or contradicts itself, HOLD.
- evidence: 1 to {MAX_EVIDENCE} numbers that decided, name and value copied from the data. A number that \
is not in the data makes the reply worthless.
- rationale: one to three sentences, at most 400 characters. Numbers in it must be in the data too.
- invalidation: the price at which the reading is void, below the price for BUY, above it for SELL, \
within 25 percent of it; null for HOLD.
"""

_TEMPLATE = Template(version=DAILY_VERSION, hash=digest((DAILY_SYSTEM, _PRICES)))


def build_daily_prompt(rules: Signal) -> Prompt:
    """The question about what the rules read.

    Raises:
        ValueError: The price is unknown; there is nothing to ask then.
    """
    price = rules.price
    if price is None or not isfinite(price) or price <= 0.0:
        raise ValueError("the price is unknown")
    known = {
        name: rounded(value, 10 if name in _PRICES else 4) for name, value in rules.evidence.items()
    }
    shown = {name: value for name, value in known.items() if value is not None}
    symbol = rules.symbol if SYMBOL.fullmatch(rules.symbol) else UNNAMED
    text = msgspec.json.encode({"symbol": symbol, "horizon_s": _DAY_S} | shown).decode()
    messages = (Message("system", DAILY_SYSTEM), Message("user", text))
    return Prompt(
        symbol=rules.symbol,
        window_end_ms=rules.window_end_ms,
        messages=messages,
        shown=shown,
        price=price,
        context_hash=digest((DAILY_VERSION, rules.symbol, rules.window_end_ms, text)),
        tokens=estimate_tokens(messages),
        template=_TEMPLATE,
        limits=_LIMITS,
    )
