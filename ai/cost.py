"""What a call costs: token counts and prices → US dollars; pure."""

from __future__ import annotations

from decimal import Decimal

from ai.contract import CAUTIOUS_PRICE, Completion, Price


def usage_of(completion: Completion) -> tuple[int, int, int]:
    """Tokens of the prompt that were not cached, that were, and of the reply; never negative."""
    cached = max(0, completion.cached_tokens)
    new = (completion.prompt_tokens or 0) - cached
    return max(0, new), cached, max(0, completion.completion_tokens or 0)


def budgeted_cost(price: Price | None, prompt: int, cached: int, output: int) -> float:
    """For the ledger: an unknown price counts as a high one. ``prompt`` without the cached tokens."""
    return _cost(price or CAUTIOUS_PRICE, prompt, cached, output)


def known_cost(price: Price | None, completion: Completion | None) -> Decimal | None:
    """For the record: ``None`` where the price or the usage is unknown."""
    if price is None or completion is None or completion.prompt_tokens is None:
        return None
    return Decimal(f"{_cost(price, *usage_of(completion)):.8f}")


def _cost(price: Price, prompt: int, cached: int, output: int) -> float:
    cached_price = price.input if price.cached_input is None else price.cached_input
    return (prompt * price.input + cached * cached_price + output * price.output) / 1e6
