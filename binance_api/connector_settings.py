"""What a ``BinanceConnector`` is told: its ``config``, over the environment and ``.env``.

Consumes a mapping → produces ``ConnectorSettings``. Unknown keys are refused; no value is ever shown,
as it may be a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from binance_api.request_runner import RestSettings
from binance_api.signing import ApiKey
from domain.market import Market

CONFIG_KEYS: Final = (
    *("api_key", "api_secret", "market", "rest_url", "ws_url", "rate_limit", "timeout_s"),
)


class ConnectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the exchange is asked.

    Attributes:
        rest: Of the REST client, its API key included.
        ws_url: WebSocket host.
    """

    rest: RestSettings
    ws_url: str


def settings_of(config: Mapping[str, Any] | None) -> ConnectorSettings:
    """Read a ``config``; what it lacks comes from the environment (see docs/connector.md).

    Raises:
        ValueError: An unknown key, or a value that cannot be used.
    """
    given = dict(config or {})
    unknown = [str(name) for name in given if name not in CONFIG_KEYS]
    if unknown:
        known = ", ".join(CONFIG_KEYS)
        raise ValueError(f"config: unknown key {', '.join(unknown)}; there are {known}")
    # The settings of the product cost more to load than the rest of this package.
    from config import Settings  # noqa: PLC0415

    market = None if given.get("market") is None else _market(given["market"])
    settings = Settings() if market is None else Settings(market=market)
    changed: dict[str, Any] = {"api_key": _api_key(given)}
    if given.get("rest_url") is not None:
        changed["base_url"] = _host(given, "rest_url", "http", "https")
    if given.get("rate_limit") is not None:
        changed["weight_limit"] = int(_positive(given, "rate_limit"))
    if given.get("timeout_s") is not None:
        timeout_s = _positive(given, "timeout_s")
        changed |= {
            "request_timeout_s": timeout_s,
            "connect_timeout_s": min(timeout_s, settings.rest_settings.connect_timeout_s),
        }
    own_ws = given.get("ws_url") is not None
    return ConnectorSettings(
        rest=msgspec.structs.replace(settings.rest_settings, **changed),
        ws_url=_host(given, "ws_url", "ws", "wss") if own_ws else settings.ws_url,
    )


def _api_key(given: Mapping[str, Any]) -> ApiKey | None:
    """Of ``config``, else of the environment; one of the two alone is an error."""
    key, secret = given.get("api_key"), given.get("api_secret")
    if key is None and secret is None:
        from config import ExchangeKeys  # noqa: PLC0415 - as in ``settings_of``

        keys = ExchangeKeys()
        key = keys.binance_api_key.get_secret_value()
        secret = keys.binance_api_secret.get_secret_value()
    if not all(isinstance(text, str | None) for text in (key, secret)):
        raise ValueError("config: api_key and api_secret must be text")
    if bool(key) != bool(secret):
        raise ValueError("config: api_key and api_secret are needed both, or neither")
    return ApiKey(key, secret) if key and secret else None


def _market(value: object) -> Market:
    try:
        return Market(str(value).lower())
    except ValueError:
        raise ValueError("config: market must be um or spot") from None


def _host(given: Mapping[str, Any], name: str, *schemes: str) -> str:
    url = str(given[name]).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.path or parts.query:
        raise ValueError(f"config: {name} must look like {schemes[-1]}://host or host:port")
    return url


def _positive(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"config: {name} must be a number above 0")
    return float(value)
