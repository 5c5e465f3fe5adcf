"""What ``doctor`` says about the AI providers: keys, models on offer, what is left of the budget.

Consumes the analyst's settings and its folder, produces findings; only ``live`` makes a call that costs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from ai.checkup import ProviderCheck, check_providers
from ai.contract import Outcome
from ai.settings import AISettings
from monitoring.doctor import Finding


async def check_analyst(
    settings: AISettings, folder: Path, *, live: bool
) -> AsyncIterator[Finding]:
    """One finding per provider, in the order in which they are asked."""
    checks = await check_providers(settings, folder, live=live)
    if all(check.outcome is Outcome.NO_KEY for check in checks):
        yield Finding(
            subject="AI analyst",
            verdict="ok",
            detail="no key: the rules speak alone",
            advice="to ask models, set GROQ_API_KEY, DASHSCOPE_API_KEY or OPENAI_API_KEY",
        )
        return
    for check in checks:
        yield _finding(check)


def _finding(check: ProviderCheck) -> Finding:
    subject = f"AI {check.name}"
    if check.outcome is Outcome.NO_KEY:
        advice = f"set {check.name.upper()}_API_KEY to use it"
        return Finding(subject=subject, verdict="ok", detail="no key, left out", advice=advice)
    if check.outcome is not Outcome.ANSWERED:
        detail = f"{check.outcome.value}: {check.error or 'no reason given'}"
        advice = "check the key, the base URL and the network; others are asked meanwhile"
        return Finding(subject=subject, verdict="warning", detail=detail, advice=advice)
    detail = f"key accepted, {check.offered_count} models offered, {_budget(check)}"
    if check.live_outcome is Outcome.ANSWERED:
        detail += f", a minimal call took {check.live_ms:.0f} ms"
    elif check.live_outcome is not None:
        detail += f", a minimal call failed: {check.live_outcome.value} {check.live_error or ''}"
        return Finding(
            subject=subject, verdict="warning", detail=detail.rstrip(), advice="try again later"
        )
    if check.missing_models:
        missing = ", ".join(check.missing_models)
        return Finding(
            subject=subject,
            verdict="warning",
            detail=f"{detail}; not offered: {missing}",
            advice=f"set AI_{check.name.upper()}_MODELS to models on offer",
        )
    return Finding(subject=subject, verdict="ok", detail=detail)


def _budget(check: ProviderCheck) -> str:
    tokens = "no limit of tokens" if check.tokens_left is None else f"{check.tokens_left:,} tokens"
    dollars = "" if check.usd_left is None else f" and ${check.usd_left:.2f}"
    return f"{tokens}{dollars} left today"
