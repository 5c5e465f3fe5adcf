"""What the AI analyst can be told. Keys stay in objects that do not show them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ai.breaker import BreakerSettings
from ai.contract import Price, Secret
from ai.providers import ProviderSettings
from ai.triggers import TriggerSettings

DEFAULT_MODELS: Mapping[str, tuple[str, ...]] = {
    "groq": ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
    "dashscope": ("qwen-plus",),
    "openai": ("gpt-6-luna",),
}


class AIMode(enum.StrEnum):
    """Where answers come from."""

    LIVE = "live"  # the providers
    REPLAY = "replay"  # the journal, by context hash, at no cost
    RULES = "rules"  # nobody but the rules analyst
    OFF = "off"


class AISettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the AI analyst works. Times in seconds; budgets per provider and UTC day.

    Attributes:
        mode: where answers come from.
        providers: names in the order in which they are asked.
        keys: by provider; one without a key is left out.
        models: by provider, in order of preference.
        base_urls: by provider, in place of the SDK's own variable.
        prices: by model, in place of the known price.
        min_interval_s: market time between two questions about a symbol; 0: every window asks.
        deadline_s: for a whole analysis.
        attempt_deadline_s: for one call; less where other providers still need their share.
        daily_tokens: None: no limit.
        daily_usd: None: no limit.
        parallel: questions under way at once, never two about one symbol.
        max_context_age_s: older contexts are not asked about any more.
        replay_folder: the journal that answers in replay mode; None: the analyst's own.
    """

    mode: AIMode = AIMode.LIVE
    providers: tuple[str, ...] = ("groq", "dashscope", "openai")
    keys: Mapping[str, Secret] = {}
    models: Mapping[str, tuple[str, ...]] = msgspec.field(
        default_factory=lambda: dict(DEFAULT_MODELS)
    )
    base_urls: Mapping[str, str] = {}
    prices: Mapping[str, Price] = {}
    min_interval_s: float = 60.0
    deadline_s: float = 12.0
    attempt_deadline_s: float = 6.0
    daily_tokens: int | None = 200_000
    daily_usd: float | None = 1.0
    parallel: int = 2
    max_context_age_s: float = 15.0
    triggers: TriggerSettings = TriggerSettings()
    breaker: BreakerSettings = BreakerSettings()
    replay_folder: Path | None = None

    def provider_settings(self, name: str) -> ProviderSettings | None:
        """The settings of one provider; ``None`` without a key for it."""
        key = self.keys.get(name)
        if key is None or not key.get_secret_value().strip():
            return None
        return ProviderSettings(
            name=name,
            key=key,
            models=self.models.get(name, DEFAULT_MODELS[name]),
            base_url=self.base_urls.get(name),
            prices=self.prices,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys themselves, for keeping them out of texts."""
        return tuple([key.get_secret_value().strip() for key in self.keys.values()])
