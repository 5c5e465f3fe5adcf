"""What ``doctor`` wants to know of the AI providers: keys, models offered, what is left of the budget.

``AISettings`` + the ledger's folder → one ``ProviderCheck`` per provider; asks for the list of models,
which costs nothing, and only where told to makes one minimal call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ai.bounded_reply import Progress, progress_of_call
from ai.budget import Budget, BudgetSettings
from ai.classify import classify, redact
from ai.contract import Message, Outcome, Provider, capability_of
from ai.cost import budgeted_cost, usage_of
from ai.prompt import estimate_tokens
from ai.providers import build_provider, is_sendable
from ai.settings import AISettings
from domain.errors import StorageError

CHECK_TIMEOUT_S = 10.0
_MINIMAL = (Message("user", 'Reply with the JSON object {"ok": true} and nothing else.'),)


class ProviderCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One provider as it stands.

    Attributes:
        outcome: ANSWERED if the list of models came; else why not.
        error: One line without secrets.
        missing_models: Configured models that the provider does not offer.
        tokens_left: Of today's budget; ``None``: no limit.
        usd_left: Likewise.
        live_outcome: Of the minimal call; ``None`` if none was made.
        live_ms: How long it took.
        live_error: One line without secrets.
    """

    name: str
    outcome: Outcome
    error: str | None = None
    offered_count: int = 0
    missing_models: tuple[str, ...] = ()
    tokens_left: int | None = None
    usd_left: float | None = None
    live_outcome: Outcome | None = None
    live_ms: float | None = None
    live_error: str | None = None


async def check_providers(
    settings: AISettings,
    folder: Path,
    *,
    live: bool = False,
    wall_ns: Callable[[], int] = time.time_ns,
) -> list[ProviderCheck]:
    """Check every provider in the configured order, whether or not it has a key."""
    limits = BudgetSettings(daily_tokens=settings.daily_tokens, daily_usd=settings.daily_usd)
    budget = Budget(folder, limits, wall_ns=wall_ns, on_failure=_ignore)
    try:
        await asyncio.to_thread(budget.read)
    except StorageError as error:
        return [
            ProviderCheck(name=name, outcome=Outcome.FAILED, error=str(error))
            for name in settings.providers
        ]
    return [await _check(settings, name, budget, live=live) for name in settings.providers]


async def _check(settings: AISettings, name: str, budget: Budget, *, live: bool) -> ProviderCheck:
    spent = budget.spent_today(name)
    found = ProviderCheck(
        name=name,
        outcome=Outcome.NO_KEY,
        tokens_left=None if settings.daily_tokens is None else settings.daily_tokens - spent.tokens,
        usd_left=None if settings.daily_usd is None else settings.daily_usd - spent.usd,
    )
    own = settings.provider_settings(name)
    if own is None:
        return found
    if not is_sendable(own.key):
        return msgspec.structs.replace(found, outcome=Outcome.BAD_KEY)
    provider = build_provider(own)
    try:
        await asyncio.to_thread(provider.prepare)
    except ImportError as error:
        return msgspec.structs.replace(found, outcome=Outcome.SDK_MISSING, error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever an SDK makes of our settings
        text = redact(str(error), settings.secrets)
        return msgspec.structs.replace(found, outcome=Outcome.FAILED, error=text)
    try:
        found = await _listed(provider, own.models, settings, found)
        if live and own.models:
            found = await _called(provider, own.models[0], settings, budget, found)
    finally:
        await provider.close()
    return found


async def _listed(
    provider: Provider, models: tuple[str, ...], settings: AISettings, found: ProviderCheck
) -> ProviderCheck:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            offered = await provider.models()
    except Exception as error:  # noqa: BLE001 - classified and shown
        failure = classify(error, settings.secrets, time.time())
        return msgspec.structs.replace(found, outcome=failure.outcome, error=failure.error)
    missing = tuple([model for model in models if model not in offered])
    return msgspec.structs.replace(
        found, outcome=Outcome.ANSWERED, offered_count=len(offered), missing_models=missing
    )


async def _called(
    provider: Provider, model: str, settings: AISettings, budget: Budget, found: ProviderCheck
) -> ProviderCheck:
    capability = capability_of(model, settings.prices)
    prompt, output = estimate_tokens(_MINIMAL), capability.max_output_tokens
    usd = budgeted_cost(capability.price, prompt, 0, output)
    reserved = await budget.reserve(provider.name, prompt + output, usd)
    if reserved is None:
        return msgspec.structs.replace(found, live_outcome=Outcome.BUDGET_SPENT)
    progress_of_call.set(Progress())
    began = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            completion = await provider.complete(model, _MINIMAL, None)
    except Exception as error:  # noqa: BLE001 - classified and shown
        failure = classify(error, settings.secrets, time.time())
        return msgspec.structs.replace(
            found, live_outcome=failure.outcome, live_error=failure.error
        )
    if completion.prompt_tokens is not None:
        new, cached, output = usage_of(completion)
        usd = budgeted_cost(capability.price, new, cached, output)
        budget.settle(reserved, new + output, usd)
        await budget.flush()
    took_ms = round((time.monotonic() - began) * 1_000, 1)
    outcome = Outcome.ANSWERED if completion.text else Outcome.EMPTY_REPLY
    return msgspec.structs.replace(found, live_outcome=outcome, live_ms=took_ms)


def _ignore(_error: StorageError) -> None:
    """A ledger that cannot be written does not keep ``doctor`` from looking."""
