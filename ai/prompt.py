"""What a model is told: a versioned template, static part first, then one window's numbers.

``FeatureRow`` + ``MarketContext`` of one window → ``Prompt``; pure, the same bytes for the same input.
Only numbers, booleans and our own enums get in, never text from outside. Numbers are shown with four
significant digits (prices with ten), and what is shown is what a reply may cite.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from math import isfinite

import msgspec

from ai.contract import Message
from domain.context import MarketContext, Session, TrendRegime, VolatilityRegime
from domain.features import FeatureRow

TEMPLATE_VERSION = "flow-1"
"""Changes with every change of ``SYSTEM``, of the shown fields or of how they are shown."""

MAX_PROMPT_TOKENS = 2_500

SHORTEST_HORIZON_S = 30
LONGEST_HORIZON_S = 900
MAX_EVIDENCE = 8
MAX_RATIONALE_CHARS = 600
MAX_INVALIDATION_RATIO = 0.05

SYSTEM = f"""\
You read the order flow of one cryptocurrency market. The next message is a JSON object: measurements \
at the end of one short window of trades. Nothing later is known to anyone. Judge how likely the price \
is to move, and say when that reading would be void.

Units. Prices, levels and *_quote are in quote currency; delta, cvd, ofi, volume and whale_delta are in \
base currency, positive when buyers were the aggressors (ofi: when bids grew or asks were taken); *_bps \
are basis points; *_z are standard deviations from the last half hour; book_imbalance* run from -1 \
(asks only) to 1 (bids only) over 5 levels, or as many as the name says; whales are trades above a \
fixed notional; burst_count counts sudden rises of the trade rate; absorption is how many deviations \
less the price moved than the flow implied; cvd_divergence is 1 (bullish), 0 or -1 (bearish); levels \
are of the previous day: pivot, r1-r3, s1-s3, point of control and value area; walls are unusually \
large resting orders. What is unknown is left out.

Reply with one JSON object and nothing else:
{{"action": "BUY" or "SELL" or "HOLD", "confidence": number, "p_up": number, "p_flat": number, \
"p_down": number, "horizon_s": integer, "rationale": string, "evidence": [{{"feature": string, \
"value": number}}], "invalidation": number or null}}

Rules.
- horizon_s: {SHORTEST_HORIZON_S} to {LONGEST_HORIZON_S} seconds, the time the reading looks ahead.
- p_up, p_flat, p_down: probabilities over that time, sum 1. Flat means a move of less than half of what \
is typical over that time.
- confidence: 0 to 1, that the action is right. BUY only if p_up is above p_down, SELL only if p_down is \
above p_up. Where the evidence is weak or contradicts itself, HOLD.
- evidence: 1 to {MAX_EVIDENCE} numbers that decided, name and value copied from the data. A number that \
is not in the data makes the reply worthless.
- rationale: one to three sentences, at most 400 characters. Numbers in it must be in the data too.
- invalidation: the price at which the reading is void, below the price for BUY, above it for SELL, \
within 5 percent of it; null for HOLD.
"""

SYMBOL = re.compile(r"[A-Z0-9_]{2,40}")
UNNAMED = "UNNAMED"

_OF_ROW = (
    *("delta", "volume", "trade_count", "net_flow_quote", "flow_imbalance"),
    *("net_flow_quote_1m", "net_flow_quote_5m", "net_flow_quote_15m"),
    *("whale_delta", "whale_count", "burst_count", "max_sweep_notional", "arrival_z", "absorption"),
    *("delta_z", "volume_z", "net_flow_quote_z", "trade_count_z"),
    *("ofi", "ofi_z", "book_imbalance", "book_imbalance_1", "book_imbalance_10"),
    *("book_imbalance_20", "depth_bid_10bps_quote", "depth_ask_10bps_quote"),
    *("bid_wall_distance_bps", "bid_wall_age_s", "ask_wall_distance_bps", "ask_wall_age_s"),
    *("spread_bps", "spread_bps_z", "realized_vol_z"),
)
_OF_CONTEXT = (
    *("return_1m_bps", "return_5m_bps", "return_15m_bps", "trend_score", "volatility_ratio"),
    *("vwap_distance_bps", "cvd", "cvd_slope_5m", "cvd_divergence"),
    *("resistance_distance_bps", "support_distance_bps"),
)
_PRICES = ("price", "high_15m", "low_15m", "session_high", "session_low", "session_vwap")
_LEVELS = (
    *("high", "low", "close", "pivot", "r1", "r2", "r3", "s1", "s2", "s3"),
    *("poc", "vah", "val"),
)
_LEVEL_NAMES = {name: f"previous_{name}" for name in ("high", "low", "close")}

type Shown = Mapping[str, float | int]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply must keep to: seconds, and the share of the price."""

    shortest_horizon_s: int = SHORTEST_HORIZON_S
    longest_horizon_s: int = LONGEST_HORIZON_S
    max_invalidation_ratio: float = MAX_INVALIDATION_RATIO


class Template(msgspec.Struct, frozen=True):
    """Which question it is: its version, and the hash of all that is the same in every prompt."""

    version: str
    hash: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One question.

    Attributes:
        messages: System message, then the data.
        shown: Every number in the data, by name, as shown.
        price: Last price, unrounded.
        context_hash: Of template version, symbol, window and data.
        tokens: Upper estimate of what the messages cost.
        template: What the prompt was made from.
        limits: Of the reply.
    """

    symbol: str
    window_end_ms: int
    messages: tuple[Message, ...]
    shown: Shown
    price: float
    context_hash: str
    tokens: int
    template: Template
    limits: Limits = Limits()


def build_prompt(row: FeatureRow, context: MarketContext) -> Prompt:
    """The question about one window.

    Raises:
        ValueError: the price is unknown; there is nothing to ask then.
    """
    price = context.price
    if price is None or not isfinite(price) or price <= 0.0:
        raise ValueError("the price is unknown")
    shown = _shown(row, context)
    data: dict[str, object] = {
        "symbol": row.symbol if SYMBOL.fullmatch(row.symbol) else UNNAMED,
        "window_s": (row.window_end_ms - row.window_start_ms) // 1_000,
        "session": Session(context.session).value,
    }
    if context.volatility_regime is not None:
        data["volatility_regime"] = VolatilityRegime(context.volatility_regime).value
    if context.trend_regime is not None:
        data["trend_regime"] = TrendRegime(context.trend_regime).value
    text = msgspec.json.encode(data | shown).decode()
    messages = (Message("system", SYSTEM), Message("user", text))
    identity = (TEMPLATE_VERSION, row.symbol, row.window_end_ms, text)
    return Prompt(
        symbol=row.symbol,
        window_end_ms=row.window_end_ms,
        messages=messages,
        shown=shown,
        price=price,
        context_hash=digest(identity),
        tokens=estimate_tokens(messages),
        template=_TEMPLATE,
    )


def repair_messages(prompt: Prompt, reason: str) -> tuple[Message, ...]:
    """The same question with our reason for refusing the first reply, in our own words."""
    text = f"The reply was rejected: {reason}. Reply again to the same data, following every rule."
    return (*prompt.messages, Message("user", text))


def estimate_tokens(messages: tuple[Message, ...]) -> int:
    """What a prompt costs, rounded up: prose has over 3.5 characters a token, numbers over 2."""
    prose = sum(len(m.content) for m in messages if m.role == "system")
    data = sum(len(m.content) for m in messages if m.role != "system")
    return int(prose / 3.5 + data / 2.0) + 8 * len(messages)


def messages_hash(messages: tuple[Message, ...]) -> str:
    """Of a prompt as it is sent."""
    return digest(messages)


def template_hash() -> str:
    """Of everything that is the same in all prompts."""
    return digest((SYSTEM, _OF_ROW, _OF_CONTEXT, _PRICES, _LEVELS))


def _shown(row: FeatureRow, context: MarketContext) -> dict[str, float | int]:
    found: dict[str, float | int | None] = {}
    for name in _PRICES:
        found[name] = rounded(getattr(context, name), 10)
    for name in _OF_CONTEXT:
        found[name] = rounded(getattr(context, name), 4)
    found["volatility_1m_bps"] = _in_bps(context.volatility_1m)
    for name in _OF_ROW:
        found[name] = rounded(getattr(row, name), 4)
    found["realized_vol_bps"] = _in_bps(row.realized_vol)
    for name in ("bid_wall_price", "ask_wall_price", "microprice"):
        found[name] = rounded(getattr(row, name), 10)
    if context.levels is not None:
        for name in _LEVELS:
            value = rounded(getattr(context.levels, name), 10)
            found[_LEVEL_NAMES.get(name, name)] = value
    return {name: value for name, value in found.items() if value is not None}


def _in_bps(value: float | None) -> float | int | None:
    return None if value is None else rounded(1e4 * value, 4)


def rounded(value: float | None, digits: int) -> float | int | None:
    """As shown: few digits, and no fraction where there is none; not finite is unknown."""
    if value is None or not isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def digest(value: object) -> str:
    """A short hash of anything that JSON can say."""
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()


_TEMPLATE = Template(TEMPLATE_VERSION, template_hash())
